"""Nothing grows: mixed load at a bounded rate, and what every process and the host hold meanwhile.

    python -m benchmarks.soak [SECONDS]

SECONDS (600) of load: quick and slow functions, failing ones, ones that print much, exit or exceed their timeout, one
that is throttled, payloads of 6 MB, three accounts; meanwhile code and limits of functions change, and functions are
made, invoked cold and deleted. Every second: anonymous memory, descriptors and threads of each process, mounts,
namespaces, control groups, loop devices, sandboxes, and the state directory. After a warm-up, the last quarter is
compared with the second one (``rig.growth``), with a stated tolerance: memory by its lowest values, since a body of
6 MB stays with the allocator until the process gives it back (every minute, ``chassis/process.py``), all else by its
means. Exit status 1 when something grew.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from benchmarks.open_loop import OpenLoop
from benchmarks.rig.client import Client
from benchmarks.rig.cluster import RUNTIME, Cluster, archive
from benchmarks.rig.growth import SAMPLES_MIN, Ceiling, Samples, Tolerance, Verdict
from benchmarks.rig.load import Request
from benchmarks.rig.machine import Others
from benchmarks.rig.processes import Usage, usage
from benchmarks.rig.traces import traces
from labda.refusal import Refusal
from labda.state import Credentials

SECONDS_MIN = 60.0
WARM_UP = 0.2               # of the time, and at most
WARM_UP_S_MAX = 120.0
ROUND_S = 30.0              # requests are signed again: a signature is good for five minutes
SAMPLE_S = 1.0      # a sample takes 30 ms of a cluster at rest
CHANGE_S = 4.0              # between updates, and between cold functions
SERVED_MIN = 0.98           # of the plain invokes; a cluster that refuses everything holds nothing either
LARGE = 6 * 1024 * 1024 - 1024

# So that what is bounded reaches its bounds within the warm-up: functions' logs, and the workers' store of code.
SCALED = ("--set", "worker.log_file_bytes_max=131072", "--set", "worker.code_cache_bytes_max=4096")

# By what is counted. The number of sandboxes moves with chance, and much with it.
RULES: dict[str, Tolerance | Ceiling] = {
    "memory": Tolerance(0.10, 4.0, lowest=True),    # MB of anonymous memory
    "descriptors": Tolerance(0.10, 4),
    "threads": Tolerance(0.0, 1.5),
    "sandboxes": Tolerance(0.25, 3),
    "mounts": Tolerance(0.25, 60),
    "namespaces": Tolerance(0.25, 20),
    "cgroups": Tolerance(0.25, 12),
    "loops": Tolerance(0.25, 3),
    "files": Tolerance(0.25, 4.0),          # MB
    "log": Ceiling(18.0),                   # MB: LOG_BYTES_MAX of labda/children.py, and what one look may miss
}

QUICK = "def handler(event, context):\n    return event\n"
SLOW = "import time\ndef handler(event, context):\n    time.sleep(1)\n    return event\n"
FAILING = "def handler(event, context):\n    raise ValueError('soaked')\n"
PRINTING = "def handler(event, context):\n    for n in range(300):\n        print(n, 'x' * 100)\n"
TIMING_OUT = "import time\ndef handler(event, context):\n    time.sleep(30)\n"
EXITING = "import os\ndef handler(event, context):\n    os._exit(1)\n"
THROTTLED = "import time\ndef handler(event, context):\n    time.sleep(0.2)\n"
MEASURING = "def handler(event, context):\n    return len(event)\n"
GENERATING = f"def handler(event, context):\n    return 'x' * {LARGE}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One function and the rate of its invokes per second."""

    name: str
    source: str
    rate: float
    account: int = 0
    body: bytes = b'{"n": 1}'
    memory_mb: int = 128
    timeout_s: int = 10
    reserved: int | None = None


KINDS = (
    Kind(name="quick", source=QUICK, rate=12.0),
    Kind(name="quick-1", source=QUICK, rate=4.0, account=1),
    Kind(name="quick-2", source=QUICK, rate=4.0, account=2),
    Kind(name="slow", source=SLOW, rate=2.0),
    Kind(name="failing", source=FAILING, rate=2.0),
    Kind(name="printing", source=PRINTING, rate=2.0),
    Kind(name="timing-out", source=TIMING_OUT, rate=0.2, timeout_s=1),
    Kind(name="exiting", source=EXITING, rate=0.2, account=1),
    Kind(name="throttled", source=THROTTLED, rate=8.0, reserved=1),
    Kind(name="large-in", source=MEASURING, rate=0.2, body=json.dumps("x" * LARGE).encode(), memory_mb=512),
    Kind(name="large-out", source=GENERATING, rate=0.2, memory_mb=512),
    Kind(name="updated", source=QUICK, rate=4.0),
    Kind(name="limited", source=QUICK, rate=4.0, account=2),
)


class Soak:
    """The load on one cluster. Its outcomes are counted; what an outcome should be is other tests' business."""

    def __init__(self, cluster: Cluster, accounts: list[Credentials]) -> None:
        self._cluster = cluster
        self._accounts = accounts
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.samples = Samples()

    def deploy(self) -> None:
        for kind in KINDS:
            client = self._client(kind.account)
            client.create(kind.name, runtime=RUNTIME, archive=archive(kind.source), memory_mb=kind.memory_mb,
                          timeout_s=kind.timeout_s)
            if kind.reserved is not None:
                client.reserve(kind.name, kind.reserved)
            client.close()

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._invoke(end))
            for account, change in ((0, self._update), (2, self._limit), (1, self._come_and_go)):
                group.create_task(self._change(account, change, end))
            group.create_task(self._sample(end, min(WARM_UP * seconds, WARM_UP_S_MAX)))

    # ------------------------------------------------------------ load

    async def _invoke(self, end: float) -> None:
        address = urlsplit(self._cluster.endpoint)
        assert address.hostname is not None
        assert address.port is not None
        load = OpenLoop(address.hostname, address.port, connections_max=200)
        while (left_s := end - time.monotonic()) > 0:
            signed = {kind.name: (self._request(kind).raw(), kind.rate) for kind in KINDS}
            await load.run(signed, min(ROUND_S, left_s))
            for answer in load.tally.answers:
                expected = answer.status in (200, 429)
                self.outcomes[answer.kind, str(answer.status) if expected else f"{answer.status} {answer.reason}"] += 1
            load.tally.answers.clear()
            load.close()    # new connections: every frontend meets every kind of request early, large ones too
        if not await load.finish(30.0):
            raise SystemExit(f"{load.under_way} requests were never answered")
        if load.tally.unsent:
            self.outcomes["(all)", "unsent: 200 connections were taken"] += load.tally.unsent
        load.close()

    def _request(self, kind: Kind) -> Request:
        return self._cluster.request(kind.name, kind.body, self._accounts[kind.account])

    async def _change(self, account: int, change: Callable[[Client, int], None], end: float) -> None:
        client = self._client(account)
        number = 0
        while time.monotonic() < end:
            number += 1
            try:
                await asyncio.to_thread(change, client, number)
                self.outcomes[change.__name__.strip("_"), "done"] += 1
            except Refusal as refusal:
                self.outcomes[change.__name__.strip("_"), str(refusal)[:120]] += 1
            await asyncio.sleep(CHANGE_S)
        client.close()

    def _update(self, client: Client, number: int) -> None:
        client.update("updated", archive(f"{QUICK}# {number}\n"))

    def _limit(self, client: Client, number: int) -> None:
        client.reserve("limited", (2, 1, None)[number % 3])

    def _come_and_go(self, client: Client, number: int) -> None:
        """Every one under a name of its own: what is kept for a function that is gone shows as growth."""
        name = f"short-lived-{number}"
        client.create(name, runtime=RUNTIME, archive=archive(f"{QUICK}# {name}\n"))
        try:
            client.reserve(name, 2)
            client.invoke(name, b"{}")
        finally:
            client.delete(name)

    def _client(self, account: int) -> Client:
        return self._cluster.client(self._accounts[account])

    # ------------------------------------------------------------ samples

    async def _sample(self, end: float, warm_up_s: float) -> None:
        await asyncio.sleep(warm_up_s)
        began = time.monotonic()
        while time.monotonic() < end:
            self.samples.add(time.monotonic() - began, await asyncio.to_thread(sample, self._cluster))
            await asyncio.sleep(SAMPLE_S)


def sample(cluster: Cluster) -> dict[str, float]:
    """Every quantity by name; its last word is its kind."""
    groups = cluster.groups()
    found: dict[str, float] = {}
    for group, pids in groups.items():
        used = sum(map(usage, pids), Usage())
        found[f"{group} memory"] = used.anonymous_kb / 1024
        if group == "sandboxes":    # as many as there are functions busy: their number is a quantity of its own
            found["sandboxes"] = used.processes / 2     # each has its init and its runtime
        else:
            found |= {f"{group} descriptors": used.descriptors, f"{group} threads": used.threads}
    return found | traces(cluster.state, (pid for pids in groups.values() for pid in pids))


def table(verdicts: list[Verdict]) -> str:
    lines = [f"{'quantity':<36}{'2nd quarter':>12}{'last':>10}{'highest':>10}{'per hour':>10}   allowed"]
    lines += [
        f"{one.name:<36}{one.earlier:12.1f}{one.later:10.1f}{one.highest:10.1f}{one.per_hour:+10.1f}   {one.rule!s:<18}"
        f"{'GREW' if one.grew else 'flat'}"
        for one in verdicts
    ]
    return "\n".join(lines)


def main(seconds: float) -> int:
    with Cluster(*SCALED) as cluster:
        accounts = [cluster.state.credentials(), cluster.account("soak-1"), cluster.account("soak-2")]
        soak = Soak(cluster, accounts)
        soak.deploy()
        others = Others(cluster.pids)
        uvloop.run(soak.run(seconds))
        machine = others.told()
    for (kind, outcome), count in sorted(soak.outcomes.items()):
        print(f"{kind:<16}{count:8} x {outcome}")
    verdicts = list(soak.samples.verdicts(RULES))
    print(table(verdicts))
    print(f"machine: {machine}")
    grew = [one.name for one in verdicts if one.grew]
    print(f"grew: {', '.join(grew)}" if grew else f"nothing grew in {seconds:.0f} s")
    served = served_share(soak.outcomes)
    if served < SERVED_MIN:
        print(f"only {served * 100:.1f} % of the plain invokes succeeded: this load proves nothing")
    return 1 if grew or served < SERVED_MIN else 0


def served_share(outcomes: Counter[tuple[str, str]]) -> float:
    """Of the invokes that nothing is wrong with."""
    plain = {kind.name for kind in KINDS if kind.source == QUICK and kind.reserved is None} - {"updated", "limited"}
    whole = sum(count for (name, _), count in outcomes.items() if name in plain)
    return sum(outcomes[name, "200"] for name in plain) / whole if whole else 0.0


if __name__ == "__main__":
    given_s = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    if given_s < SECONDS_MIN:
        raise SystemExit(f"{given_s:g} s: {SECONDS_MIN:g} s at least, or there are no {SAMPLES_MIN} samples to judge")
    sys.exit(main(given_s))
