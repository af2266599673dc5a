"""How steadily a cluster served through a run: pauses between runs, permits that were stranded, leaders of counting.

Owns these figures. They are made from the records alone: who leads is what the region's view showed, and when.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from labda.chaos.history import Fault, Process, Record, Request, Stranded, of_type
from labda.chaos.runs import FOREVER, Runs

COUNTING = "counting"
LEADER = "leader"
NOBODY = ("", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Of time. ``at`` is its begin."""

    at: float
    lasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """A member began to lead."""

    at: float
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedDown:
    """A member that was stopped or whose links were broken while it led stopped leading ``after_s`` later."""

    node: str
    after_s: float


def gap(records: Sequence[Record], found: Runs, *, since: float) -> Span | None:
    """The longest time, while requests were due, in which no run began. None: nothing was due."""
    due = [one.at for one in of_type(records, Request) if one.at >= since]
    if not due:
        return None
    begins = [run.start for run in found.all if since <= run.start <= max(due)]
    return _longest(zip([min(due), *begins], [*begins, max(due)], strict=True))


def stranded(records: Sequence[Record]) -> tuple[int, Span | None]:
    """The most permits at a time of frontends that were gone and not yet counted, and the longest time with any."""
    looks = of_type(records, Stranded)
    spans: list[tuple[float, float]] = []
    begun: float | None = None
    for look in looks:
        if look.permits and begun is None:
            begun = look.at
        elif not look.permits and begun is not None:
            spans.append((begun, look.at))
            begun = None
    if begun is not None:
        spans.append((begun, looks[-1].at))
    return max((look.permits for look in looks), default=0), _longest(spans)


def leaders(records: Iterable[Record], *, since: float) -> list[Led]:
    """Whoever began to lead from then on, in order. One that stopped leading and leads again is a change, too; one
    that was only missed for a while isn't."""
    led: list[Led] = []
    leading: tuple[str, int] | None = None
    for one in _seen(records):
        who = (one.node, one.pid)
        if one.role == LEADER and one.health == "serving" and who != leading:
            if leading is not None and one.at >= since:
                led.append(Led(at=one.at, node=one.node))
            leading = who
        elif one.role != LEADER and who == leading:
            leading = NOBODY
    return led


def leaderless(records: Sequence[Record], *, since: float) -> Span | None:
    """The longest time in which no serving member led. None: one always did."""
    spans = []
    leads: set[str] = set()
    begun: float | None = None
    for one in _seen(records):
        if one.role == LEADER and one.health == "serving":
            leads.add(one.node)
        else:
            leads.discard(one.node)
        if leads and begun is not None:
            spans.append((max(begun, since), one.at))
            begun = None
        elif not leads and begun is None:
            begun = one.at
    return _longest((begin, end) for begin, end in spans if end > since)


def stepped_down(records: Sequence[Record]) -> list[SteppedDown]:
    """Of leaders whose links were broken: how soon after that, and before it was mended, the region saw them follow."""
    found = []
    faults = of_type(records, Fault)
    for fault in faults:
        for node in fault.nodes if fault.action == "strike" else ():
            mended = [one.at for one in faults if one.action == "mend" and one.at > fault.at and node in one.nodes]
            seen = [one for one in _seen(records) if one.node == node and one.at <= min(mended, default=FOREVER)]
            before = [one for one in seen if one.at <= fault.at]
            after = [one for one in seen if one.at > fault.at and one.role != LEADER]
            if before and before[-1].role == LEADER and after:
                found.append(SteppedDown(node=node, after_s=after[0].at - fault.done))
    return found


def _seen(records: Iterable[Record]) -> list[Process]:
    return [one for one in of_type(records, Process) if one.service == COUNTING]


def _longest(spans: Iterable[tuple[float, float]]) -> Span | None:
    found: Iterator[Span] = (Span(at=begin, lasted_s=end - begin) for begin, end in spans)
    return max(found, key=lambda span: span.lasted_s, default=None)
