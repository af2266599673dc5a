"""The one checker: a stream of records in, the invariants that they contradict out.

Owns the way of a record to the checks that want it. The same for histories of the simulation, of processes and of
containers, and for what a client alone has seen: a check that hears nothing has nothing to say.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from simulation.history.checks import CHECKS
from simulation.history.invariant import Ground, Handler, Violation
from simulation.history.records import Adopted, Clock, Cut, LeaseGranted, Made, Record, Returned, Start

HISTORY = 0
"""In the place of an invariant's number: what makes a history prove nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``counts``: how many records there were of each kind. ``unfinished``: runs that go on when the history ends."""

    violations: list[Violation] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)
    unfinished: int = 0

    @property
    def grants(self) -> int:
        return self.counts.get(LeaseGranted.__name__, 0)

    @property
    def adoptions(self) -> int:
        return self.counts.get(Adopted.__name__, 0)

    @property
    def ends(self) -> int:
        """Leases that ended by a return."""
        return self.counts.get(Returned.__name__, 0)

    @property
    def starts(self) -> int:
        return self.counts.get(Start.__name__, 0)

    @property
    def creates(self) -> int:
        return self.counts.get(Made.__name__, 0)


class Checker:
    """``see`` every record in the order of time, then ``verdict`` once."""

    def __init__(self, *, time_scale: float = 1.0) -> None:
        self._ground = Ground(time_scale=time_scale)
        self._checks = [kind(self._ground) for kind in CHECKS]
        self._handlers: dict[type[Record], list[Handler]] = defaultdict(list)
        for check in self._checks:
            for kind, handler in check.handlers().items():
                self._handlers[kind].append(handler)
        self._counts: Counter[str] = Counter()
        self._cuts: list[Violation] = []

    def see(self, record: Record) -> None:
        self._counts[type(record).__name__] += 1
        if isinstance(record, Clock):
            self._ground.clocks.learn(record)
        elif isinstance(record, Cut):
            what = f"what {record.node} did from {record.at:.3f} on is not in it: {record.reason}"
            self._cuts.append(Violation(invariant=HISTORY, what=what, records=(record,)))
        self._ground.runs.see(record)
        for handler in self._handlers.get(type(record), ()):
            handler(record)

    def verdict(self) -> Verdict:
        for check in self._checks:
            check.end()
        found = [violation for check in self._checks for violation in check.violations]
        return Verdict(
            violations=self._cuts + found, counts=self._counts, unfinished=len(self._ground.runs.running)
        )


def check(records: Iterable[Record], *, time_scale: float = 1.0) -> Verdict:
    """``records`` in the order of time, those of one instant in the order in which they happened."""
    checker = Checker(time_scale=time_scale)
    for record in records:
        checker.see(record)
    return checker.verdict()
