"""Three times the capacity for 30 s, open loop, on an embedded cluster of its own.

Run: python -m benchmarks.overload [SECONDS [TIMES]]. It measures the capacity with a closed loop, then offers that much
times TIMES, then two thirds of it; and prints what came of it: goodput by second, refusals by reason, memory by
process, and how soon all requests succeed again. The generator shares the machine with the cluster, and says what it
took of it.
"""

import asyncio
import sys
import time
from collections.abc import Iterator

import uvloop

from benchmarks.open_loop import OpenLoop, Tally
from benchmarks.rig.cluster import Cluster
from benchmarks.rig.processes import Usage, spent_s, usage

FUNCTION = "echo"
CLIENTS = 32
CAPACITY_S = 5.0
AFTERWARDS_S = 15.0
AFTERWARDS = 0.66      # of the capacity
SAMPLE_S = 2.0


class Memory:
    """PSS of the cluster's processes by what they are, sampled; sandboxes, which come and go, are added up."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.samples: list[dict[str, float]] = []

    def sample(self) -> None:
        self.samples.append({
            group: sum((usage(pid) for pid in pids), Usage()).pss_kb / 1024
            for group, pids in self._cluster.groups().items()
        })

    async def follow(self) -> None:
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_S)

    def told(self, begin: int, end: int) -> Iterator[str]:
        for group in self.samples[0]:
            values = [sample[group] for sample in self.samples]
            yield (
                f"  {group:<22} before {values[0]:6.1f}   peak under load {max(values[begin:end] or [0.0]):6.1f}   "
                f"at the end {values[-1]:6.1f} MB"
            )


async def run(cluster: Cluster, function: str, seconds: float, times: float) -> Tally:
    request = cluster.request(function).raw()
    host, port = cluster.endpoint.removeprefix("http://").rsplit(":", 1)
    groups = cluster.groups()
    memory = Memory(cluster)
    memory.sample()
    load = OpenLoop(host, int(port))
    await load.closed(request, CLIENTS, 2.0)
    capacity = await load.closed(request, CLIENTS, CAPACITY_S)
    print(f"capacity      {capacity:7.0f} invokes/s, closed loop, {CLIENTS} clients")
    load.tally.answers.clear()

    follower = asyncio.create_task(memory.follow())
    spent = {name: sum(map(spent_s, pids)) for name, pids in groups.items()}
    own, began = time.process_time(), time.monotonic()
    first = len(memory.samples)
    begin, end = await load.run({"overload": (request, capacity * times)}, seconds)
    last = len(memory.samples)
    took = time.monotonic() - began
    print(f"generator     {(time.process_time() - own) / took * 100:5.0f} % of a core; cluster: " + ", ".join(
        f"{name} {(sum(map(spent_s, pids)) - spent[name]) / took * 100:.0f} %" for name, pids in groups.items()
    ))
    print(f"under way when the overload ended: {load.under_way}")
    _, over = await load.run({"afterwards": (cluster.request(function).raw(), capacity * AFTERWARDS)}, AFTERWARDS_S)
    answered = await load.finish(60.0)
    follower.cancel()
    memory.sample()
    load.close()

    tell(load.tally, capacity, begin, end, over)
    print(f"all answered  {answered}, unsent for want of a connection {load.tally.unsent}")
    print("memory (PSS)", *memory.told(first, last), sep="\n")
    return load.tally


def tell(tally: Tally, capacity: float, begin: float, end: float, over: float) -> None:
    seconds = end - begin
    offered, good = len(tally.of("overload")) / seconds, tally.goodput("overload", begin, end)
    print(f"offered       {offered:7.0f} /s for {seconds:.0f} s ({offered / capacity:.2f} x capacity)")
    print(f"goodput       {good:7.0f} /s ({good / capacity:.2f} x capacity), {took(tally, 'overload', 200)}")
    print("by second    ", *(f"{tally.goodput('overload', begin + n, begin + n + 1):.0f}" for n in range(int(seconds))))
    for status in (429, 503):
        if refused := tally.of("overload", status=status):
            print(f"refused {status}   {len(refused):7} in {took(tally, 'overload', status)}")
    for (status, reason), count in tally.reasons().most_common(12):
        print(f"  {count:7} x {status} {reason}")
    print(f"unexplained   {len(tally.unexplained()):7}")
    back_s = tally.recovered_after_s("afterwards", end, over)
    print(f"recovered     after {back_s:.0f} s at {AFTERWARDS:g} x capacity ({took(tally, 'afterwards', 200)})")
    print("by second    ", *(f"{tally.goodput(None, end + n, end + n + 1):.0f}" for n in range(int(over - end))))


def took(tally: Tally, kind: str, status: int) -> str:
    half, most = (tally.percentile_ms(share, kind, status=status) for share in (0.5, 0.99))
    return f"p50 {half:.0f} ms, p99 {most:.0f} ms"


def main(seconds: float, times: float) -> None:
    with Cluster() as cluster:
        cluster.deploy(FUNCTION)
        uvloop.run(run(cluster, FUNCTION, seconds, times))


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:3]]
    main(*given, *(30.0, 3.0)[len(given):])
