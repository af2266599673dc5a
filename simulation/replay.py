"""Traces of real and of simulated runs, replayed: every service's core fed again with what it was told.

Owns which cores there are, and what is said about the outcome. How a trace is read is ``chassis.replay``'s.
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import counting.replay
import frontend.replay
import placement.messages
import worker.messages
import worker_manager.messages
from chassis.replay import Recipe, UnreadableTrace, Verdict, made_of, replay
from placement.core import PlacementCore
from worker.core import WorkerCore
from worker_manager.core import ManagerCore

RECIPES: dict[str, Recipe] = {
    "CountingCore": counting.replay.RECIPE,
    "FrontendCore": frontend.replay.RECIPE,
    "ManagerCore": made_of(ManagerCore, worker_manager.messages.Event),
    "PlacementCore": made_of(PlacementCore, placement.messages.Event),
    "WorkerCore": made_of(WorkerCore, worker.messages.Event),
}


def replay_lines(lines: Iterable[str]) -> Verdict:
    """Raises UnreadableTrace."""
    return replay(lines, RECIPES)


def main(traces: Sequence[Path], out: TextIO, complaints: TextIO) -> int:
    """0: every effect is equal; 1: one is not, or a trace can't be read. A folder: each trace.ndjson in it."""
    files = list(itertools.chain.from_iterable(
        sorted(path.rglob("trace.ndjson")) if path.is_dir() else [path] for path in traces
    ))
    if not files:
        complaints.write(f"no trace.ndjson in {', '.join(map(str, traces))}: start labda up with --trace\n")
        return 1
    wrong = [path for path in files if not _replay_file(path, out, complaints)]
    out.write(f"{len(files)} traces, {len(wrong)} of them differ\n" if len(files) > 1 else "")
    return 1 if wrong else 0


def _replay_file(path: Path, out: TextIO, complaints: TextIO) -> bool:
    try:
        with contextlib.closing(path.open(encoding="utf-8")) as lines:
            verdict = replay_lines(lines)
    except (OSError, UnicodeDecodeError, UnreadableTrace) as error:
        complaints.write(f"{path}: {error}\n")
        return False
    if verdict.difference is not None:
        complaints.write(f"{path}: {verdict.difference}\n")
        return False
    out.writelines(f"{path}: {failure}\n" for failure in verdict.failures)
    cores = ", ".join(f"{name} {count}" for name, count in sorted(verdict.cores.items()))
    cut = f", {verdict.cut} cut short by a kill" if verdict.cut else ""
    out.write(f"{path}: {verdict.events} events, all effects equal ({cores}; {verdict.lives} lives{cut})\n")
    return True
