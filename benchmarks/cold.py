"""Cold invokes by phase, against the same interpreter started bare.

    python -m benchmarks.cold [COUNT]

Each of the COUNT (40) invokes of a series is the first one of a function that was created for it and is deleted after
it, so that every start is a real one. "first on its host": the code is new everywhere, and is fetched and unpacked;
"cached": another function had the same code, and each worker has unpacked it before. The phases are the frontend's own
(answer header x-labda-phases); "rest" is what is left of the whole, as the client sees it: HTTP, authentication, the
way between processes, and with several at a time the wait for its turn (starts are bounded: docs/overload.md).
Reference: the same interpreter and interface client without a sandbox, until it asks for its first event, as many at
once, in turns with the invokes.
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rig import bare
from benchmarks.rig.client import Client
from benchmarks.rig.cluster import RUNTIME, SOURCE, Cluster, archive
from benchmarks.rig.machine import Others
from benchmarks.rig.samples import percentile
from labda.api import Answer
from labda.phases import parse

PHASES = ("permit", "place", "code", "sandbox", "runtime", "init", "run")
MEMORY_MB = (1769, 128)
TOGETHER = (1, 8)
WARMING_MAX = 20

_numbers = itertools.count(1)


@dataclass(slots=True)
class Series:
    """Milliseconds of each cold start; ``bare_ms`` of the reference's."""

    whole_ms: list[float] = field(default_factory=list)
    phases_ms: list[dict[str, float]] = field(default_factory=list)
    bare_ms: list[float] = field(default_factory=list)
    warm: int = 0       # answers that were no cold start: none is expected

    def add(self, whole_ms: float, phases_ms: dict[str, float]) -> None:
        if "sandbox" not in phases_ms:
            self.warm += 1
            return
        self.whole_ms.append(whole_ms)
        self.phases_ms.append({**phases_ms, "rest": whole_ms - sum(phases_ms.values())})

    def told(self, title: str) -> str:
        p50, p99 = statistics.median(self.whole_ms), percentile(self.whole_ms, 0.99)
        bare50, bare99 = statistics.median(self.bare_ms), percentile(self.bare_ms, 0.99)
        each = ", ".join(
            f"{phase} {statistics.median(found):.0f}/{percentile(found, 0.99):.0f}" for phase in (*PHASES, "rest")
            if (found := [phases[phase] for phases in self.phases_ms if phase in phases])
        )
        return (
            f"{title:<48} {len(self.whole_ms):3} starts: "
            f"p50 {p50:4.0f} ms = {p50 / bare50:.1f} x bare ({bare50:.0f} ms)   "
            f"p99 {p99:4.0f} ms = {p99 / bare99:.1f} x bare ({bare99:.0f} ms)\n    p50/p99 by phase: {each}"
            + (f"\n    {self.warm} answers were warm and don't count" if self.warm else "")
        )


def distinct() -> bytes:
    """Code that nobody has seen."""
    return archive(f"{SOURCE}# {next(_numbers)}\n")


def cold(clients: list[Client], pool: Executor, memory_mb: int, code: Callable[[], bytes]) -> list[Answer]:
    """The first invokes of as many functions made for them, all at once."""
    names = [f"cold-{next(_numbers)}" for _ in clients]
    list(pool.map(
        lambda client, name, archive: client.create(name, runtime=RUNTIME, archive=archive, memory_mb=memory_mb),
        clients, names, [code() for _ in clients],
    ))
    answers = list(pool.map(lambda client, name: client.invoke(name, b"{}", explain=True), clients, names))
    list(pool.map(lambda client, name: client.delete(name), clients, names))
    for answer in answers:
        assert "x-amz-function-error" not in answer.headers, answer.body
    return answers


def cache_everywhere(cluster: Cluster, clients: list[Client], code: bytes) -> None:
    """Until every worker has unpacked ``code``."""
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(WARMING_MAX):
            cold(clients, pool, 128, lambda: code)
            if all(cluster.has_code(node, code) for node in cluster.workers()):
                return
    raise SystemExit("not every worker was given the code to be cached")


def series(
    clients: list[Client], count: int, memory_mb: int, code: Callable[[], bytes], folder: Path
) -> Series:
    """Rounds of as many at once as there are clients, a round of the reference after each."""
    found = Series()
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(max(1, count // len(clients))):
            for answer in cold(clients, pool, memory_mb, code):
                found.add(answer.elapsed_s * 1e3, parse(answer.headers.get("x-labda-phases", "")))
            found.bare_ms += [took_s * 1e3 for took_s in bare.starts(RUNTIME, folder, len(clients))]
    return found


def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="labda-bare-") as name, Cluster() as cluster:
        folder = Path(name)
        (folder / "app.py").write_text(SOURCE)
        bare.starts(RUNTIME, folder, 2)     # its files are in the page cache for both sides
        others = Others(cluster.pids)
        clients = [cluster.client() for _ in range(max(TOGETHER))]
        shared = distinct()
        cache_everywhere(cluster, clients, shared)
        for memory_mb in MEMORY_MB:
            for together in TOGETHER:
                for title, code in (("cached", lambda: shared), ("first on its host", distinct)):
                    found = series(clients[:together], count, memory_mb, code, folder)
                    print(found.told(f"{memory_mb:,} MB, {together} at a time, code {title}:"), flush=True)
        print(f"machine: {others.told()}")
        for client in clients:
            client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
