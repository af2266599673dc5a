"""A fault plan: what befalls a simulated region and what is asked of it, as data drawn from a seed.

Owns the kinds of faults, how often and for how long each comes, and the plan's JSON. A plan says everything besides
the seed itself: an entry less is another plan of the same seed, which is how a failure is made small. Refuses to know
how a fault is done (``inflict.py``).
"""

import dataclasses
import enum
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simulation.members import AZS, EMBEDDED

LENGTH_S = 30.0     # of faults and load; healing comes after it
DRIFT_MAX = 0.004   # a host's rate is off by so much at most: two hosts stay within counting's bound of 1 %
LEADERS = ("counting-leader", "placement-leader", "manager-active")     # whoever that is when it is meant
FUNCTIONS = ("f", "g", "h")


class Kind(enum.StrEnum):
    """``amount`` is each kind's own."""

    DELAY = "delay"             # every message from and to the target is up to amount s late
    SPIKES = "spikes"           # amount of all messages are up to 0.8 s late
    LOSS = "loss"               # amount of all messages are lost, with their streams
    REPEAT = "repeat"           # amount of Raft's messages come twice, out of order
    ONE_WAY = "one-way"         # the target's messages don't reach the other
    DEAF = "deaf"               # the target hears nobody
    PARTITION = "partition"     # an AZ is cut off, its stores too
    PAUSE = "pause"             # SIGSTOP, SIGCONT
    CRASH = "crash"             # kill -9; started again, from its files, when the time is over
    TEAR = "tear"               # the same of a member of counting whose last write was cut short
    CORRUPT = "corrupt"         # the same, and bytes of its files changed: it must not start again
    DRIFT = "drift"             # the target host's clocks run at 1 + amount
    WALL = "wall"               # the target host's wall clock jumps by amount s
    ROLL = "roll"               # every process of a service is drained and started again, one after the other
    STORE = "store"             # the target's way to the store is cut
    SLOW = "slow"               # the store answers the target amount s later
    LIMIT = "limit"             # the target function's reservation becomes amount; below 0: it is taken away
    ACCOUNT = "account"         # the account's limit becomes amount
    UPDATE = "update"           # the target function's configuration changes
    OPEN = "open"               # amount invokes per second of the target function, whether they are answered or not
    CLOSED = "closed"           # amount clients of the target function, each of which waits for its answer


LOADS = frozenset({Kind.OPEN, Kind.CLOSED})
ALWAYS = LOADS | {Kind.LIMIT, Kind.UPDATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fault, change or load. ``at`` and ``for_s`` in true virtual seconds since the region was ready."""

    kind: Kind
    at: float
    for_s: float = 0.0
    target: str = ""
    other: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        ends = f" to {self.at + self.for_s:.2f}" if self.for_s else ""
        names = " ".join(filter(None, (self.target, self.other)))
        return f"{self.at:6.2f}{ends} s  {self.kind} {names}{f' {self.amount:g}' if self.amount else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    seed: int
    entries: tuple[Entry, ...]
    compact_entries: int = 5_000    # of counting's log
    lease_scale: float = 1.0        # of worker leases
    account_limit: int = 1_000
    length_s: float = LENGTH_S

    def only(self, entries: Iterable[Entry]) -> "Plan":
        return dataclasses.replace(self, entries=tuple(entries))

    def to_json(self) -> str:
        """One line per entry, so that a person can take one away."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                    if field.name != "entries"}
        lines = ",\n  ".join(json.dumps(dataclasses.asdict(entry)) for entry in self.entries)
        return f'{{"settings": {json.dumps(settings)},\n "entries": [\n  {lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises ValueError for what is no plan."""
        try:
            told = json.loads(text)
            entries = tuple(Entry(**{**entry, "kind": Kind(entry["kind"])}) for entry in told["entries"])
            return cls(entries=entries, **told["settings"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no fault plan: {error!r}") from error


def draw(seed: int, *, swarm: bool = False) -> Plan:
    """``swarm``: this seed has about half of the kinds of faults, others have others: what all of them together would
    hide shows where few are."""
    dice = random.Random(f"{seed}/plan")
    kinds = [kind for kind in Kind if kind not in ALWAYS and kind is not Kind.ACCOUNT]
    if swarm:
        kinds = [kind for kind in kinds if dice.random() < 0.5]
    small = dice.random() < 0.25    # an account of few permits, instead of reservations
    entries = [*_loads(dice), *_changes(dice, small=small)]
    weights = [_WEIGHTS.get(kind, 1.0) for kind in kinds]
    for kind in dice.choices(kinds, weights, k=dice.randint(6, 12)) if kinds else ():
        if kind is Kind.CORRUPT and any(entry.kind is kind for entry in entries):
            continue    # the majority of the others is what is left
        entries.append(_DRAWS[kind](dice))
    return Plan(
        seed=seed, entries=tuple(sorted(entries, key=lambda entry: entry.at)),
        compact_entries=dice.choice((20, 40, 5_000)), lease_scale=dice.choice((1.0, 1.0, 0.001)),
        account_limit=dice.randint(3, 6) if small else 1_000,
    )


def _loads(dice: random.Random) -> list[Entry]:
    opened = dice.uniform(4.0, 6.0)
    entries = [
        Entry(kind=Kind.OPEN, at=0.0, for_s=LENGTH_S, target="g", amount=round(opened * 0.5, 2)),
        Entry(kind=Kind.OPEN, at=0.0, for_s=LENGTH_S, target="h", amount=round(opened * 0.5, 2)),
        Entry(kind=Kind.CLOSED, at=0.0, for_s=LENGTH_S, target="f", amount=dice.randint(3, 5)),
    ]
    if dice.random() < 0.3:     # a burst of three times that
        entries.append(Entry(
            kind=Kind.OPEN, at=dice.uniform(2.0, 20.0), for_s=dice.uniform(1.0, 3.0), target=dice.choice(FUNCTIONS),
            amount=round(3 * opened, 2),
        ))
    return entries


def _changes(dice: random.Random, *, small: bool) -> list[Entry]:
    """Limits and updates, while everything runs."""
    entries = [
        Entry(kind=Kind.UPDATE, at=dice.uniform(1.0, LENGTH_S - 2), target=dice.choice(FUNCTIONS))
        for _ in range(dice.randint(1, 3))
    ]
    if not small:   # exact at limits of few, which are always wanted
        entries += [Entry(kind=Kind.LIMIT, at=0.0, target=name, amount=dice.randint(1, 3)) for name in ("f", "g")]
    for _ in range(dice.randint(1, 4)):
        at = dice.uniform(1.0, LENGTH_S - 2)
        if small and dice.random() < 0.5:
            entries.append(Entry(kind=Kind.ACCOUNT, at=at, amount=dice.randint(3, 6)))
        else:
            amount = dice.choice((0, -1)) if small else dice.choice((0, 1, 2, 3, 5, -1))
            entries.append(Entry(kind=Kind.LIMIT, at=at, target=dice.choice(("f", "g")), amount=amount))
    return entries


# ------------------------------------------------------------ one entry of each kind

COUNTING = ("counting-az1", "counting-az2", "counting-az3")
PLACEMENTS = tuple(EMBEDDED.placements)
MANAGERS = tuple(EMBEDDED.managers)
FRONTENDS = tuple(f"frontend-{az}-1" for az in AZS)
WORKERS = tuple(f"worker-{az}-1" for az in AZS)
NODES = (*COUNTING, *PLACEMENTS, *MANAGERS, *FRONTENDS, *WORKERS)
SERVICES = ("counting", "placement", "manager", "frontend", "worker")
HOSTS = tuple(f"{kind}-{az}{number}" for kind, number in (("control", ""), ("host", "-1")) for az in AZS)


def _when(dice: random.Random, lasts_s: float) -> float:
    return dice.uniform(0.5, max(1.0, LENGTH_S - lasts_s))


def _node(dice: random.Random) -> str:
    """Any, and more often one that matters more than others."""
    return dice.choice(dice.choice((COUNTING, FRONTENDS, FRONTENDS, WORKERS, LEADERS, NODES)))


def _delay(dice: random.Random) -> Entry:
    lasts = dice.uniform(2.0, 8.0)
    return Entry(kind=Kind.DELAY, at=_when(dice, lasts), for_s=lasts, target=dice.choice(("", _node(dice))),
                 amount=dice.uniform(0.005, 0.08))


def _spikes(dice: random.Random) -> Entry:
    lasts = dice.uniform(3.0, 10.0)
    return Entry(kind=Kind.SPIKES, at=_when(dice, lasts), for_s=lasts, amount=dice.uniform(0.01, 0.08))


def _loss(dice: random.Random) -> Entry:
    lasts = dice.uniform(1.0, 6.0)
    return Entry(kind=Kind.LOSS, at=_when(dice, lasts), for_s=lasts, amount=dice.uniform(0.001, 0.02))


def _repeat(dice: random.Random) -> Entry:
    lasts = dice.uniform(5.0, 15.0)
    return Entry(kind=Kind.REPEAT, at=_when(dice, lasts), for_s=lasts, amount=dice.uniform(0.1, 0.5))


def _one_way(dice: random.Random) -> Entry:
    lasts = dice.uniform(1.0, 12.0)
    sender = _node(dice)
    return Entry(kind=Kind.ONE_WAY, at=_when(dice, lasts), for_s=lasts, target=sender,
                 other=dice.choice([node for node in (*LEADERS, *NODES) if node != sender]))


def _deaf(dice: random.Random) -> Entry:
    lasts = dice.uniform(2.0, 10.0)
    return Entry(kind=Kind.DEAF, at=_when(dice, lasts), for_s=lasts, target=_node(dice))


def _partition(dice: random.Random) -> Entry:
    lasts = dice.uniform(2.0, 15.0)
    return Entry(kind=Kind.PARTITION, at=_when(dice, lasts), for_s=lasts, target=dice.choice(AZS))


def _pause(dice: random.Random) -> Entry:
    lasts = dice.choice((dice.uniform(0.3, 3.0), dice.uniform(3.0, 14.0)))
    return Entry(kind=Kind.PAUSE, at=_when(dice, lasts), for_s=lasts, target=_node(dice))


def _crash(dice: random.Random) -> Entry:
    away = dice.choice((dice.uniform(0.1, 1.5), dice.uniform(1.5, 10.0)))
    return Entry(kind=Kind.CRASH, at=_when(dice, away), for_s=away, target=_node(dice))


def _tear(dice: random.Random) -> Entry:
    away = dice.uniform(0.1, 3.0)
    return Entry(kind=Kind.TEAR, at=_when(dice, away), for_s=away, target=dice.choice((*COUNTING, "counting-leader")))


def _corrupt(dice: random.Random) -> Entry:
    away = dice.uniform(0.1, 3.0)
    return Entry(kind=Kind.CORRUPT, at=_when(dice, away), for_s=away, target=dice.choice(COUNTING))


def _drift(dice: random.Random) -> Entry:
    return Entry(kind=Kind.DRIFT, at=0.0, target=dice.choice(HOSTS), amount=dice.uniform(-DRIFT_MAX, DRIFT_MAX))


def _wall(dice: random.Random) -> Entry:
    jump = dice.choice((dice.uniform(-200.0, 200.0), 3600.0, -3600.0))
    return Entry(kind=Kind.WALL, at=_when(dice, 0.0), target=dice.choice(HOSTS), amount=round(jump, 3))


def _roll(dice: random.Random) -> Entry:
    return Entry(kind=Kind.ROLL, at=_when(dice, 6.0), target=dice.choice(SERVICES))


def _store(dice: random.Random) -> Entry:
    lasts = dice.uniform(1.0, 10.0)
    return Entry(kind=Kind.STORE, at=_when(dice, lasts), for_s=lasts, target=dice.choice((*FRONTENDS, *PLACEMENTS)))


def _slow(dice: random.Random) -> Entry:
    """Mostly for a placement: what it reads when it begins to lead is then not there for a while."""
    lasts = dice.uniform(3.0, 15.0)
    target = dice.choice((dice.choice(FRONTENDS), dice.choice(PLACEMENTS), dice.choice(PLACEMENTS)))
    return Entry(kind=Kind.SLOW, at=_when(dice, lasts), for_s=lasts, target=target, amount=dice.uniform(0.1, 1.5))


_DRAWS: dict[Kind, Callable[[random.Random], Entry]] = {
    Kind.DELAY: _delay, Kind.SPIKES: _spikes, Kind.LOSS: _loss, Kind.REPEAT: _repeat, Kind.ONE_WAY: _one_way,
    Kind.DEAF: _deaf, Kind.PARTITION: _partition, Kind.PAUSE: _pause, Kind.CRASH: _crash, Kind.TEAR: _tear,
    Kind.CORRUPT: _corrupt, Kind.DRIFT: _drift, Kind.WALL: _wall, Kind.ROLL: _roll, Kind.STORE: _store,
    Kind.SLOW: _slow,
}
_WEIGHTS = {Kind.CRASH: 4.0, Kind.PAUSE: 3.0, Kind.ONE_WAY: 1.5, Kind.CORRUPT: 0.5, Kind.ROLL: 0.5}
