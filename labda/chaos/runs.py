"""From a history's records to runs: which request ran where, from when to when.

Owns what is taken for a run's begin and end when its answer, its log, or both are missing. A run is known by the answer
(the function's own words) or by its START in the log of a worker, or both, and then they have to agree. One without an
END ends when its worker's sandboxes were seen gone after the kill; one that the log of a living worker doesn't end has
no end. A request that was never answered and has no START either is no run: ``unknown`` counts those whose worker may
have been killed before it could say so.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from labda.chaos.history import End, Fault, Record, Request, Start, of_type

ENDED_BY = frozenset({"kill", "hold"})      # actions after which nothing of a worker runs
FOREVER = float("inf")
_SAME_S = 0.001     # answers and logs carry microseconds


@dataclass(slots=True, kw_only=True)
class Run:
    """``worker`` is empty where only the answer knows of it; ``calls`` 0 where only the log does."""

    nonce: str
    function: str
    sandbox: str
    worker: str
    start: float
    end: float
    calls: int = 0
    killed: bool = False


@dataclass(slots=True, kw_only=True)
class Runs:
    """``others``: starts of requests that have a run already, which no request may have."""

    all: list[Run] = field(default_factory=list)
    others: list[Start] = field(default_factory=list)
    unknown: int = 0

    def by_nonce(self) -> dict[str, Run]:
        return {run.nonce: run for run in self.all}


def find(records: Sequence[Record]) -> Runs:
    """Every run of the history, in the order of their starts."""
    found = Runs()
    starts: dict[str, list[Start]] = defaultdict(list)
    ends: dict[str, End] = {}
    for start in of_type(records, Start):
        starts[start.nonce].append(start)
    for end in of_type(records, End):
        ends[end.nonce] = end
    kills = sorted((one for one in of_type(records, Fault) if one.action in ENDED_BY), key=lambda one: one.at)
    requests = {one.nonce: one for one in of_type(records, Request)}
    for nonce in {**requests, **starts}:
        run = _one(found, requests.get(nonce), starts.get(nonce, []), ends.get(nonce), kills)
        if run is not None:
            found.all.append(run)
    found.all.sort(key=lambda run: run.start)
    _locate(found.all)
    return found


def _one(
    found: Runs, request: Request | None, starts: Sequence[Start], end: End | None, kills: Iterable[Fault]
) -> Run | None:
    if request is not None and request.begun:
        found.others += [start for start in starts if not _is(start, request)]
        return Run(
            nonce=request.nonce, function=request.function, sandbox=request.sandbox,
            worker=starts[0].worker if starts else "", start=request.begun, end=request.ended, calls=request.calls,
        )
    if not starts:
        found.unknown += request is not None and not request.explained
        return None
    first = starts[0]
    found.others += starts[1:]
    run = Run(
        nonce=first.nonce, function=first.function, sandbox=first.sandbox, worker=first.worker, start=first.at,
        end=end.at if end is not None else FOREVER,
    )
    if end is None:
        ended = (kill.done for kill in kills if first.worker in kill.nodes and kill.done >= first.at)
        run.end = min(ended, default=FOREVER)
        run.killed = run.end < FOREVER
    return run


def _is(start: Start, request: Request) -> bool:
    return start.sandbox == request.sandbox and abs(start.at - request.begun) < _SAME_S


def _locate(runs: Iterable[Run]) -> None:
    """A sandbox stays on its worker: what one run's log says of it holds for the others."""
    runs = list(runs)
    workers = {run.sandbox: run.worker for run in runs if run.worker}
    for run in runs:
        run.worker = run.worker or workers.get(run.sandbox, "")
