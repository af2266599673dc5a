"""One run judged: from what was recorded to violations. The only thing that the rest of the simulation knows of it is
``judge``.

Invariants by number (docs/invariants.md); 0 is a failure inside a service or a region that didn't recover.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from simulation.history import History, bounds_of
from simulation.record import LOST, LimitChange, Record, Request, Run

REFUSED = frozenset({429, 503})     # "this certainly did not happen"
ANSWERS = frozenset({200, 429, 500, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """``about``: the names by which the trace knows what it is about. ``at``: true time, infinite for the end."""

    invariant: int
    what: str
    about: tuple[str, ...] = ()
    at: float = math.inf

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.what}" if self.invariant else self.what


def judge(record: Record) -> list[Violation]:
    found = [
        Violation(invariant=0, what=bug.what, about=(f'"node":"{bug.node}"',) if bug.node else (), at=bug.at)
        for bug in record.bugs
    ]
    for rule in (_limits, _once, _answers, _sandboxes, _revisions):
        found += rule(record)
    found += _traced(record)
    return found


# ------------------------------------------------------------ 1: limits


def _limits(record: Record) -> Iterator[Violation]:
    by_function: dict[str, list[LimitChange]] = defaultdict(list)
    for change in record.limits:
        by_function[change.function].append(change)
    for run in record.runs:
        asked = record.requests[run.name].asked
        for function, running in ((run.function, run.with_it), ("", run.in_all)):
            allowed = _allowed(by_function[function], asked, run.began)
            if running > allowed:
                who = function or "the account"
                yield Violation(
                    invariant=1, about=(run.name,), at=run.began,
                    what=f"{running} of {who} run at {run.began:.3f} s, {allowed:g} were allowed since "
                         f"{run.name} was asked for at {asked:.3f} s",
                )


def _allowed(changes: list[LimitChange], asked: float, began: float) -> float:
    """The highest limit that may have been in force when this was admitted. A change may count from when it is sent on,
    and for as long as no later one is known to bind."""
    if not changes:
        return math.inf
    highest = 0.0
    for place, change in enumerate(changes):
        if change.sent > began:
            break
        # One that was never answered may be applied after a later one: it is in force for good.
        end = math.inf
        if change.binds_at < math.inf:
            end = min((later.binds_at for later in changes[place + 1:]), default=math.inf)
        if asked <= end:
            highest = max(highest, math.inf if change.value is None else change.value)
    return highest


# ------------------------------------------------------------ 5 to 8: requests and sandboxes


def _once(record: Record) -> Iterator[Violation]:
    begun: set[str] = set()
    for run in record.runs:
        if run.name in begun:
            yield Violation(invariant=5, what=f"{run.name} began twice", about=(run.name,), at=run.began)
        begun.add(run.name)
        request = record.requests[run.name]
        if request.status in REFUSED:
            yield Violation(
                invariant=5, about=(run.name,), at=max(run.began, request.answered),
                what=f"{run.name} ran and was answered {request.status}, which says that it didn't: {_text(request)}",
            )


def _answers(record: Record) -> Iterator[Violation]:
    runs = {run.name: run for run in record.runs}
    for request in record.requests.values():
        if request.status is None:
            yield Violation(invariant=15, what=f"{request.name} was never answered", about=(request.name,))
        elif request.status == 200 and not request.failed:
            yield from _result(request, runs.get(request.name))
        elif request.status not in ANSWERS | {LOST}:
            yield Violation(
                invariant=15, what=f"{request.name} was answered {request.status}: {_text(request)}",
                about=(request.name,), at=request.answered,
            )
        elif request.status in REFUSED and not _explains_itself(request):
            yield Violation(
                invariant=15, what=f"{request.name} was refused without saying why: {_text(request)}",
                about=(request.name,), at=request.answered,
            )


def _result(request: Request, run: Run | None) -> Iterator[Violation]:
    told = json.loads(request.body)
    if told.get("name") != request.name:
        yield Violation(
            invariant=6, what=f"{request.name} got the answer of {told.get('name')}", about=(request.name,),
            at=request.answered,
        )
    elif run is None:
        yield Violation(
            invariant=6, what=f"{request.name} has an answer and never ran", about=(request.name,), at=request.answered
        )


def _explains_itself(request: Request) -> bool:
    try:
        told = json.loads(request.body)
    except ValueError:
        return False
    return bool(request.error_type and told.get("Detail"))


def _sandboxes(record: Record) -> Iterator[Violation]:
    free_from: dict[int, tuple[float, str]] = {}
    serves: dict[int, tuple[str, int]] = {}
    for run in record.runs:
        ends, before = free_from.get(run.sandbox, (0.0, ""))
        if run.began < ends:
            yield Violation(
                invariant=7, what=f"{before} and {run.name} run on one sandbox at once", about=(before, run.name),
                at=run.began,
            )
        free_from[run.sandbox] = run.ended, run.name
        life = serves.setdefault(run.sandbox, (run.function, run.revision))
        if life != (run.function, run.revision) or run.named != run.function:
            yield Violation(
                invariant=8, what=f"a sandbox of {run.named} served {life} and {run.name}", about=(run.name,),
                at=run.began,
            )


def _revisions(record: Record) -> Iterator[Violation]:
    for run in record.runs:
        request = record.requests[run.name]
        if run.revision < request.revision:
            yield Violation(
                invariant=8, about=(run.name,), at=run.began,
                what=f"{run.name} ran on revision {run.revision} of {run.function}, "
                     f"{request.revision} was Successful when it was asked for",
            )


# ------------------------------------------------------------ all of them, by the trace


def _traced(record: Record) -> Iterator[Violation]:
    """In the order in which they happened. What hosts' own times leave open, nothing is made of."""
    lines, over = record.parsed(), record.lines.until(record.over_at)
    bounds = bounds_of(lines, record.lines.at)
    history = History(time_scale=record.lease_scale, bounds=bounds)
    for line in lines[:over]:
        history.read(line)
    if math.isfinite(record.over_at):
        history.close(record.over_at)
    for line in lines[over:]:
        history.read(line)
    for one in history.end().violations:
        yield Violation(
            invariant=one.invariant, what=one.what, about=tuple(word for word in one.what.split() if "-" in word),
            at=max((shown.at + bounds.get(shown.node, (0.0, 0.0))[1] for shown in one.records), default=math.inf),
        )


def _text(request: Request) -> str:
    return f"{request.error_type} {request.body[:300].decode(errors='replace')}".strip()


# ------------------------------------------------------------ the story


def story(record: Record, violation: Violation, *, length: int = 40) -> list[str]:
    """The last lines of trace and plan that concern a violation, up to where it shows."""
    names = {*violation.about, *_invocations(record, violation.about)}
    told = [(at, f"plan: {what}") for at, what in record.told if at <= violation.at]
    if names:
        end = record.lines.until(violation.at)
        told += [
            (at, _shown(line))
            for at, line, text in zip(
                record.lines.at[:end], record.lines.values[:end], record.lines.text[:end], strict=True
            )
            if any(name in text for name in names)
        ]
    told.sort(key=lambda line: line[0])
    return [f"{at:10.4f} s  {what}" for at, what in told[-length:]]


def _invocations(record: Record, names: Iterable[str]) -> set[str]:
    """Traces know invocations by their request ids, which functions were told."""
    return {record.request_ids[name] for name in names if name in record.request_ids}


def _shown(line: Any) -> str:
    if "note" in line:
        return f"{line['node']} notes {_brief(line['note'])}"
    if "event" not in line:
        return f"{line['node']}: begins, {line['core']}"
    effects = ", ".join(_brief(effect) for effect in line["effects"])
    return f"{line['node']}: {_brief(line['event'])}" + (f"  ->  {effects}" if effects else "")


def _brief(message: Any) -> str:
    told = ", ".join(
        f"{name}={value if isinstance(value, int | float | str) else json.dumps(value)}"[:120]
        for name, value in message.items() if name not in ("type", "cause", "environment", "ticket")
    )
    return f"{message['type']}({told})"[:400]


Judge = Callable[[Record], list[Violation]]
"""What a checker of histories is to everybody else."""
