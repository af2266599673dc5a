"""What the leader knows of workers beyond the ledger: who answered a fence, and when each was last given authority.

Volatile: a new leader asks for all reports again, starts every eviction timer anew (rules 6, 7, 10) and counts from 0.
Refuses to know links and commands (core.py).
"""

import enum
from dataclasses import dataclass, field

from counting.commands import Run
from counting.words import Incarnation, Pool, Session


class Ending(enum.Enum):
    """Why a frontend's session was fenced at every worker: the word that operators count by."""

    SILENT = "silent"
    REPLACED = "replaced"   # by another process of that name
    LEFT = "left"           # it said goodbye


class Proof(enum.Enum):
    """What let a worker be evicted (rule 7)."""

    TIME = "silent"                 # its authority and every timeout are over
    REPLACED = "replaced"           # by another incarnation of its host, which saw the older one dead
    DECLARED = "declared dead"      # by an operator


@dataclass(slots=True, kw_only=True)
class Fencing:
    """`reports`: per draining session, what each member said that it runs. `answered`: monotonic seconds.
    `fenced`, `evicted`: how many, since this leadership began."""

    reports: dict[Session, dict[Incarnation, set[Run]]] = field(default_factory=dict)
    counting: set[Session] = field(default_factory=set)  # a CountBlocks is on its way
    answered: dict[Incarnation, float] = field(default_factory=dict)
    fenced: dict[Ending, int] = field(default_factory=lambda: dict.fromkeys(Ending, 0))
    evicted: dict[Proof, int] = field(default_factory=lambda: dict.fromkeys(Proof, 0))

    def report(self, session: Session, incarnation: Incarnation, runs: tuple[Run, ...]) -> None:
        self.reports.setdefault(session, {})[incarnation] = set(runs)

    def ended(self, session: Session, pool: Pool, invocation: str, incarnation: Incarnation) -> None:
        """An END that comes before the count takes its id out of the report; one that comes after is a command."""
        runs = self.reports.get(session, {}).get(incarnation, set())
        runs -= {run for run in runs if run.invocation == invocation and run.pool == pool}

    def complete(self, session: Session, need: set[Incarnation]) -> bool:
        return need <= self.reports.get(session, {}).keys()

    def runs(self, session: Session) -> tuple[Run, ...]:
        """Everything that was reported of the session, in a fixed order."""
        runs = [run for report in self.reports.get(session, {}).values() for run in report]
        return tuple(sorted(runs, key=lambda run: (run.incarnation, run.pool, run.invocation)))

    def forget(self, session: Session) -> None:
        self.reports.pop(session, None)
        self.counting.discard(session)
