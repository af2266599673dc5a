"""How long counting grants nothing when its leader is killed: three real processes, over gRPC with mutual TLS.

    python -m benchmarks.failover [COUNT]

Each time the leader gets SIGKILL, and comes back from its files before the next one does. Three frontends ask all the
time, so that the gap is between two grants that somebody waited for. A fourth holds permits and admits from its block
all the while, as a frontend does whose demand stays below what it holds: not one of its starts may wait or fail.
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.rig.machine import Others
from chassis.faults import Fault
from protos import counting_pb2, counting_rpc
from tests.counting.client import Client
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, counting, frontend

COUNT = 50
MAX_S = 1.5
EACH_S = 0.01               # between a frontend's requests: the gap's grain, and what the load leaves to the members
HELD, DEMAND = 20, 10       # of the fourth: permits, and starts at a time
ASKS_S = 10.0               # a request waits that long: longer than any gap, so that none fails by the clock
BACK_S = 30.0


class Grants:
    """When somebody who waited got a permit; and what the one who needs nobody saw."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.started = 0
        self.failed = 0

    async def ask(self, client: Client) -> None:
        while True:
            await client.take(REST, within_s=ASKS_S)
            self.at.append(time.monotonic())
            client.hand_back(REST)
            await asyncio.sleep(EACH_S)

    async def start_below(self, client: Client) -> None:
        """Starts and ends ``DEMAND`` runs at a time. One that isn't admitted at once has failed."""
        block, session = client.block(REST), client.session
        while True:
            for _ in range(DEMAND):
                if block.in_use < block.size and client.session == session:
                    block.in_use += 1
                    self.started += 1
                else:
                    self.failed += 1
            await asyncio.sleep(EACH_S)
            block.in_use = 0

    def gap_s(self, since: float) -> float:
        """The longest time without a grant since then, the newest one before it included."""
        before = [at for at in self.at if at < since][-1:]
        times = before + [at for at in self.at if at >= since]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


async def main(count: int = COUNT) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder)).start()
        clients = [await _client(processes, n) for n in (1, 2, 3, 4)]
        tasks: list[asyncio.Task[None]] = []
        try:
            *asking, holder = clients
            await asyncio.gather(*(holder.take(REST) for _ in range(HELD)))
            holder.block(REST).in_use = 0
            grants = Grants()
            tasks = [asyncio.ensure_future(grants.ask(client)) for client in asking]
            tasks.append(asyncio.ensure_future(grants.start_below(holder)))
            others = Others(lambda: [process.pid for process in processes.running.values()])
            gaps, leader = [], asking[0].leader
            for _ in range(count):
                gap_s, leader = await _kill(processes, leader, grants, tasks)
                gaps.append(gap_s)
            beside = others.told()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in clients:
                await client.stop()
            processes.close()
    print(
        f"failover: {count} leaders killed, gap until the next grant p50 {statistics.median(gaps):.2f} s, max "
        f"{max(gaps):.2f} s (at most {MAX_S}: {'yes' if max(gaps) <= MAX_S else 'NO'}), "
        f"{sum(gap > MAX_S for gap in gaps)} of them longer; {beside}"
    )
    print(
        f"meanwhile, {DEMAND} of {HELD} permits held in use at a time: {grants.started:,} starts, {grants.failed} that "
        "weren't admitted at once"
    )


async def _client(processes: Processes, n: int) -> Client:
    client = await Client(processes.network(frontend(n)), frontend(n).node, processes.addresses).start()
    await client.welcomed(20.0)
    return client


async def _kill(
    processes: Processes, leader: str, grants: Grants, tasks: list[asyncio.Task[None]]
) -> tuple[float, str]:
    """The gap, and who leads then: when the one that was killed follows, and grants go on."""
    at = time.monotonic()
    processes.kill(leader)
    processes.launch(next(n for n in (1, 2, 3) if counting(n).node == leader))
    successor = await _followed(processes, leader)
    seen = len(grants.at)
    while len(grants.at) == seen:
        for task in tasks:
            if task.done():
                task.result()   # raises what ended it: a request that nobody answered
        await asyncio.sleep(EACH_S)
    return grants.gap_s(at), successor


async def _followed(processes: Processes, node: str) -> str:
    """Whom a member that has come back names as leader: it has heard from it, and counts for the next majority."""
    channel = processes.network(OPERATOR).connect(processes.addresses[node], service="counting", node=node)
    try:
        async with asyncio.timeout(BACK_S):
            while True:
                try:
                    answer = await channel.call(
                        counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account=A), timeout_s=2.0
                    )
                except Fault:
                    answer = None
                if answer is not None and not answer.HasField("not_leader"):
                    return node
                if answer is not None and answer.not_leader.hint:
                    return answer.not_leader.hint
                await asyncio.sleep(0.05)
    finally:
        await channel.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT))
