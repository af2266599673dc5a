"""Histories of regions, judged by the invariants of docs/invariants.md. See the README here.

Owns the ways in: traces, and files of records. Refuses to know how a region was run.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from simulation.history import traces
from simulation.history.checker import Checker, Verdict, check
from simulation.history.invariant import Violation
from simulation.history.records import Closed, Cut, Header, Record, parse

__all__ = [
    "Checker", "History", "Record", "Verdict", "Violation", "bounds_of", "check", "check_file", "judge", "judge_files",
    "trace_lines",
]


class History:
    """``read`` parsed lines of traces in the order in which they happened, then ``end`` once; ``close`` when nothing
    is under way any more, if that comes.

    ``bounds``: of clocks by node, where they aren't one (seconds; ``bounds_of``).
    """

    def __init__(self, *, time_scale: float = 1.0, bounds: Mapping[str, tuple[float, float]] | None = None) -> None:
        self._checker = Checker(time_scale=time_scale)
        self._traces = traces.Traces(bounds)
        for record in self._traces.start():
            self._checker.see(record)

    def read(self, line: Mapping[str, Any]) -> None:
        """Raises ValueError, KeyError or TypeError for what is no line of a trace."""
        for record in self._traces.read(line):
            self._checker.see(record)

    def close(self, at: float) -> None:
        """Everything had been answered and looked at by then: what goes on is wrong. Lines may follow, of the end."""
        self._checker.see(Closed(at=at))

    def end(self) -> Verdict:
        return self._checker.verdict()


def bounds_of(lines: Iterable[Mapping[str, Any]], at: Iterable[float]) -> dict[str, tuple[float, float]]:
    """Of each node's clock, by who knows the true time of every line: how far it was behind, at least and at most."""
    bounds: dict[str, tuple[float, float]] = {}
    for line, true in zip(lines, at, strict=True):
        behind = true - line["at"]
        low, high = bounds.get(line["node"], (behind, behind))
        bounds[line["node"]] = min(low, behind), max(high, behind)
    return bounds


def judge(
    lines: Iterable[str], *, time_scale: float = 1.0, bounds: Mapping[str, tuple[float, float]] | None = None
) -> Verdict:
    """Lines of any number of traces, in any order. ``bounds``: of clocks by node, where they aren't one (seconds).

    Raises ValueError, KeyError or TypeError for lines that are no trace's.
    """
    return check(traces.records(lines, bounds=bounds), time_scale=time_scale)


def judge_files(paths: Iterable[Path], *, time_scale: float = 1.0) -> Verdict:
    """Traces of real processes of one machine."""
    return check(traces.merged(map(trace_lines, paths)), time_scale=time_scale)


def check_file(path: Path) -> Verdict:
    """A file of records. Raises ValueError, KeyError or TypeError for lines that are none."""
    with path.open() as file:
        header = parse(file.readline())
        if not isinstance(header, Header):
            raise ValueError("its first line says nothing of its format")
        checker = Checker(time_scale=header.time_scale)
        last: Record = header
        for line in file:
            if line.endswith("}\n"):    # or whoever wrote it was killed in the midst
                last = parse(line)
                checker.see(last)
    if not isinstance(last, Closed):
        checker.see(Cut(at=last.at, node="everybody", reason="the file was cut short"))
    return checker.verdict()


def trace_lines(path: Path, since: int = 0) -> Iterator[str]:
    """From this byte on. The last line of a process that was killed may be torn: it is left out."""
    with path.open() as file:
        file.seek(since)
        for line in file:
            if line.endswith("}\n"):
                yield line
