"""Warm invokes through the whole of labda, against the floor: an HTTP front that drives the same runtimes itself.

    python -m benchmarks.invoke [SECONDS]

labda: SigV4, mutual TLS, permits, reservations, sandboxes, logs; the cluster as ``labda up`` starts it. Floor: uvicorn
with none of that (benchmarks/rig/floor.py). wrk replays one signed request to both in turns of SECONDS (4), so that a
busy machine is busy for both; figures are medians over the turns. Also: CPU time per invoke, by process.
"""

import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Self

from benchmarks.rig.cluster import ROOT, RUNTIME, SOURCE, Cluster, service_of
from benchmarks.rig.load import Measured, Request, wrk
from benchmarks.rig.processes import spent_s

TURNS = 3
# Memory is CPU time: 128 MB get 7 % of a core, which one client in a closed loop uses up. The floor has no quota.
MEMORY_MB = 512
CLIENTS = (1, 8, 16)


class Floor:
    """The floor's process. ``with Floor(...) as floor``."""

    def __init__(self, processes: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="labda-floor-")
        (Path(self._folder.name) / "app.py").write_text(SOURCE)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rig.floor", RUNTIME, str(processes), self._folder.name], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.close()
            raise SystemExit("the floor did not start")
        self.request = Request(url=f"http://127.0.0.1:{port}/", headers={"content-type": "application/json"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


def compare(cluster: Cluster, floor: Floor, clients: int, seconds: float) -> None:
    request = cluster.request("echo")
    wrk(request, clients=clients, seconds=2.0)      # sandboxes for so many are made before it counts
    wrk(floor.request, clients=clients, seconds=1.0)
    ours: list[Measured] = []
    theirs: list[Measured] = []
    cost: dict[str, float] = defaultdict(float)
    for _ in range(TURNS):
        theirs.append(wrk(floor.request, clients=clients, seconds=seconds))
        before = _cpu(cluster)
        ours.append(wrk(request, clients=clients, seconds=seconds))
        after = _cpu(cluster)
        for name in after:
            cost[name] += after[name] - before.get(name, 0.0)
    assert not any(turn.refused for turn in ours), "invokes were refused"
    p50, rate = _median(ours, lambda turn: turn.p50_ms), _median(ours, lambda turn: turn.rate)
    floor_p50, floor_rate = _median(theirs, lambda turn: turn.p50_ms), _median(theirs, lambda turn: turn.rate)
    print(
        f"{clients:2} clients: p50 {p50:6.2f} ms = {p50 / floor_p50:4.1f} x floor ({floor_p50:.2f} ms)   "
        f"{rate:6.0f} invokes/s = {rate / floor_rate:.2f} x floor ({floor_rate:.0f}/s)   "
        f"p99 {_median(ours, lambda turn: turn.p99_ms):.1f} ms"
    )
    invokes = sum(turn.requests for turn in ours)
    shares = {name: spent / invokes * 1e6 for name, spent in cost.items()}
    dearest = sorted(shares.items(), key=lambda share: -share[1])
    each = ", ".join(f"{name} {share:.0f}" for name, share in dearest if share > 5)
    print(f"            CPU per invoke: {sum(shares.values()):.0f} us ({each})")


def _cpu(cluster: Cluster) -> dict[str, float]:
    """Seconds by kind of process."""
    spent: dict[str, float] = defaultdict(float)
    for group, pids in cluster.groups().items():
        spent[service_of(group)] += sum(map(spent_s, pids))
    return spent


def _median(turns: list[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(map(of, turns))


def main(seconds: float) -> None:
    with Cluster() as cluster, Floor(max(CLIENTS)) as floor:
        cluster.deploy("echo", memory_mb=MEMORY_MB)
        for clients in CLIENTS:
            compare(cluster, floor, clients, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
