"""What processes cost, read from /proc: CPU time, memory, descriptors, threads.

Owns the grouping of a cluster's processes: each service's own, and what runs in its sandboxes.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one group of processes at one time. ``cpu_s`` since they started; ``pss_kb``: shared pages count in parts;
    ``anonymous_kb``: what no file holds, which no other cluster on the machine moves; a page that a child shares, which
    was forked just now, counts in full.
    """

    cpu_s: float = 0.0
    pss_kb: int = 0
    anonymous_kb: int = 0
    descriptors: int = 0
    threads: int = 0
    processes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def usage(pid: int) -> Usage:
    """Of one process; all zero when it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        sizes = rollup((folder / "smaps_rollup").read_text())
        return Usage(
            cpu_s=(int(stat[11]) + int(stat[12])) * _TICK_S, pss_kb=sizes["Pss"], anonymous_kb=sizes["Anonymous"],
            descriptors=len(list((folder / "fd").iterdir())), threads=int(stat[17]), processes=1,
        )
    except (OSError, KeyError):     # a process that is ending has no memory any more
        return Usage()


def rollup(text: str) -> dict[str, int]:
    """Of smaps_rollup: KB by name."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def files_kb(pids: Iterable[int]) -> int:
    """Pages of files that these processes map, each page about once: what they would be charged if they were alone.

    Of a piece of a file that several map, what the one with most of it in memory has.
    """
    most: dict[tuple[str, ...], int] = {}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps").read_text()
        except OSError:
            continue
        for piece, kb in _mapped(text):
            most[piece] = max(most.get(piece, 0), kb)
    return sum(most.values())


def _mapped(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Of smaps: each mapped piece of a file (permissions, offset, device, inode) and its KB that are the file's."""
    piece: tuple[str, ...] = ()
    resident = 0
    for line in text.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            piece = tuple(words[1:5])
        elif words[0] == "Rss:":
            resident = int(words[1])
        elif words[0] == "Anonymous:" and piece[3] != "0":
            yield piece, resident - int(words[1])


def spent_s(pid: int) -> float:
    """CPU seconds of all its threads, dead ones included, and of its children that have ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, stat[11:15])) * _TICK_S


def groups(started: Mapping[str, int], supervisor: int) -> dict[str, list[int]]:
    """Pids by what they are: "frontend-az1-1" and so on by node, an agent apart from its spawner, "sandboxes",
    "supervisor".

    ``started`` is node -> pid as the supervisor knows it: a worker's is its spawner.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: dict[str, list[int]] = {"supervisor": [supervisor]}
    sandboxes: list[int] = []
    for node, pid in started.items():
        found[node] = [pid]
        for child in children.get(pid, []):
            if _is_agent(child):
                found[f"{node} (agent)"] = [child]
            else:
                sandboxes += [child, *_below(child, children)]
    found["sandboxes"] = sandboxes
    return found


def _is_agent(pid: int) -> bool:
    try:
        return b"worker.agent_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _below(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, []):
        yield child
        yield from _below(child, children)


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(entry.name), int(stat[1])
