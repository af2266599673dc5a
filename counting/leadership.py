"""Everything that a leader has and a follower hasn't: lost with leadership, rebuilt from streams (rule 10).

Owns the state that the parts of the leader's core share (frontends.py, workers.py, rounds.py, limits.py), the
gathering of the next batch, and the spans of the rules. Decides nothing.
"""

from dataclasses import dataclass, field

from counting import commands as c
from counting import messages as m
from counting.desk import Desk
from counting.fencing import Fencing
from counting.ledger import Ledger
from counting.words import Incarnation, Pool, Session

COMMANDS_MAX = 1000
"""Most commands of one batch; its bytes are bounded as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Spans of the rules, in seconds."""

    suspect_s: float = 3.0        # a silent frontend's blocks are fenced (rule 6)
    recall_s: float = 0.5         # a holder that hasn't answered a recall by then is silent (rule 4)
    unproven_s: float = 10.0      # a request waits so long before it is refused without a proof (rule 4)
    put_s: float = 10.0           # a change of limits answers by then, whoever is outstanding (rule 9)
    authority_s: float = 120.0    # a worker's start authority (rule 7)
    grace_s: float = 30.0         # for a silent worker's watchdog, on top of its longest timeout
    drift: float = 0.01           # bound of clock drift, as a share

    def __post_init__(self) -> None:
        assert self.recall_s < self.suspect_s < self.authority_s, self

    def evict_after_s(self, timeout_cap_s: float) -> float:
        return (self.authority_s + timeout_cap_s + self.grace_s) * (1 + self.drift)


@dataclass(slots=True, kw_only=True)
class Binding:
    """A change of limits that isn't everywhere yet, and the call that waits for it."""

    call: int
    pools: tuple[Pool, ...]
    generation: int
    changed: bool
    deadline: float


@dataclass(slots=True, kw_only=True)
class Gathering:
    """What the next batch will hold, and who is told when it is committed."""

    commands: list[c.Command] = field(default_factory=list)
    origins: list[m.Event | None] = field(default_factory=list)  # the event that each command stands for
    reads: list[int] = field(default_factory=list)
    renewals: list[m.Renew] = field(default_factory=list)
    wishes_bytes: int = 0   # of the Acquires in it

    def add(self, command: c.Command, origin: m.Event | None = None) -> None:
        self.commands.append(command)
        self.origins.append(origin)

    def split(self) -> tuple["Gathering", "Gathering"]:
        """What the next batch takes, and what is left for the one after it: an entry's size is bounded.

        One command always goes, whatever it weighs: left here, all others would wait behind it for ever."""
        count, room = 0, c.BATCH_BYTES_MAX
        for command in self.commands[:COMMANDS_MAX]:
            room -= c.weight(command)
            if room < 0 and count:
                break
            count += 1
        first = Gathering(
            commands=self.commands[:count], origins=self.origins[:count], reads=self.reads, renewals=self.renewals
        )
        return first, Gathering(commands=self.commands[count:], origins=self.origins[count:])

    def __bool__(self) -> bool:
        return bool(self.commands or self.reads or self.renewals)


@dataclass(slots=True, kw_only=True)
class Leadership:
    """One leadership's state. `effects` gathers what the event at hand leads to."""

    ledger: Ledger
    timing: Timing
    term: int = 0
    index: int = 0
    since: float = 0.0
    desks: dict[Pool, Desk] = field(default_factory=dict)
    busy: dict[Pool, Desk] = field(default_factory=dict)  # where somebody waits, a round runs or a top-up is wished
    sessions: dict[int, Session] = field(default_factory=dict)  # by link
    links: dict[Session, int] = field(default_factory=dict)
    workers: dict[int, Incarnation] = field(default_factory=dict)  # by link
    heard: dict[Session, float] = field(default_factory=dict)
    fencing: Fencing = field(default_factory=Fencing)
    bindings: list[Binding] = field(default_factory=list)
    gathering: Gathering = field(default_factory=Gathering)
    in_flight: tuple[int, Gathering] | None = None
    number: int = 0     # of the newest batch; the term is in its upper half, so that no two leaderships share one
    rounds: int = 0
    flushing: bool = False
    wake: float | None = None
    version: int = c.OLDEST  # the command language that is proposed: what every member knows (rule 11)
    effects: list[m.Effect] = field(default_factory=list)

    def do(self, effect: m.Effect) -> None:
        self.effects.append(effect)

    def desk(self, pool: Pool) -> Desk:
        desk = self.desks.get(pool)
        if desk is None:
            desk = self.desks[pool] = Desk(pool=pool)
        return desk

    def forget_desks(self) -> None:
        """Of pools that are gone and of which nobody holds, waits for or proves anything."""
        for pool in [pool for pool in self.desks if pool not in self.busy and not self.ledger.exists(pool)]:
            if not self.ledger.granted(pool):
                del self.desks[pool]

    def send_generation(self, link: int, pool: Pool, cause: str) -> None:
        ledger = self.ledger
        self.do(m.SendGeneration(
            link=link, pool=pool, generation=ledger.generation(pool), limit=ledger.limit(pool),
            gone=not ledger.exists(pool), cause=cause,
        ))
