"""What a check is: told every record of the kinds that it names, in the order of time, it says what they contradict.

Owns the form of a violation and what all checks share: clocks, what runs, the scale of leases. Refuses to know any
invariant.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from simulation.history.clocks import Clocks
from simulation.history.records import Record
from simulation.history.runs import Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """``invariant``: its number in docs/invariants.md. ``records``: those that show it."""

    invariant: int
    what: str
    records: tuple[Record, ...]

    def __str__(self) -> str:
        return f"{self.invariant or 'history'}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """``runs`` has been told a record before any check is. ``time_scale``: of leases, as of ``labda up``."""

    time_scale: float = 1.0
    clocks: Clocks = field(default_factory=Clocks)
    runs: Runs = field(default_factory=Runs)


Handler = Callable[[Any], None]     # of the one kind of record that it is listed under


class Check:
    """One invariant. ``handlers`` once, then each record's; ``end`` when there are no more."""

    number: ClassVar[int]

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.violations: list[Violation] = []

    def handlers(self) -> Mapping[type[Record], Handler]:
        raise NotImplementedError

    def end(self) -> None:
        """What only the whole history shows."""

    def violated(self, what: str, *records: Record) -> None:
        self.violations.append(Violation(invariant=self.number, what=what, records=records))
