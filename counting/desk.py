"""The leader's desk for one pool: who waits, in which order, and the recall round that is on its way (rules 1 and 4).

Volatile: a new leader starts with an empty desk and new round numbers. Owns order and proof; refuses to know links,
commands and Raft (core.py), and how much is free (ledger.py).
"""

import enum
import math
from dataclasses import dataclass, field

from counting.words import Pool, Session

PAUSE_S = 0.25
"""Between rounds that prove nothing. What comes free goes to who waits without a round."""

REASK_S = 0.25
"""An id that was granted and is asked for again without having seen the grant counts anew only after this long."""


class Why(enum.Enum):
    """Why a round refused its requests: the word that operators count by, and the reason that is told."""

    LIMIT = ("limit", "nothing is free")
    SILENT = ("silent holder", "a frontend that holds permits doesn't answer")
    DRAINING = ("not yet counted", "a frontend that is gone holds permits not yet counted")
    PENDING = ("pending change", "a change of limits isn't acknowledged everywhere yet")
    BESIDE = ("other pools' runs", "runs of another pool, begun before a change of limits, still take its room")

    def __init__(self, word: str, reason: str) -> None:
        self.word = word
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    session: Session
    id: int
    order: int  # of arrival at this leader, over all sessions of the pool
    at: float   # when


@dataclass(slots=True, kw_only=True)
class Round:
    """One pass over the holders. It serves requests that arrived before it: order <= `bound`."""

    number: int
    bound: int
    deadline: float
    pending: set[Session]
    found: bool = False
    closing: int | None = None  # number of the batch whose commit proves that this leader still led


@dataclass(slots=True, kw_only=True)
class Desk:
    pool: Pool
    waiters: dict[tuple[Session, int], Waiter] = field(default_factory=dict)  # in order of arrival
    granted: dict[tuple[Session, int], tuple[int, float]] = field(default_factory=dict)  # (index, at) of the grant
    spare: dict[Session, int] = field(default_factory=dict)
    in_use: dict[Session, int] = field(default_factory=dict)  # as last reported
    round: Round | None = None
    pause_until: float = 0.0    # no round begins before: the one before proved nothing, and those who wait still do
    refused: dict[str, int] = field(default_factory=dict)    # requests by the reason's word, since this leader leads
    rounds: int = 0     # begun, since this leader leads
    _order: int = 0

    def ask(self, session: Session, waiting: tuple[int, ...], spare: int, seen: int, now: float) -> None:
        """The session's whole wish. An id keeps its place; one that was granted counts again only if it saw the
        grant."""
        wanted = set(waiting)
        for key in [key for key in self.waiters if key[0] == session and key[1] not in wanted]:
            del self.waiters[key]
        for key in [key for key in self.granted if key[0] == session and key[1] not in wanted]:
            del self.granted[key]
        for id_ in waiting:
            key = (session, id_)
            if key in self.waiters:
                continue
            grant = self.granted.get(key)
            if grant is not None and seen < grant[0] and now - grant[1] < REASK_S:
                continue
            self.granted.pop(key, None)
            self._order += 1
            self.waiters[key] = Waiter(session=session, id=id_, order=self._order, at=now)
        self.spare[session] = spare

    def use(self, session: Session, in_use: int) -> None:
        """What the session says that it uses of its block. Nothing follows from it: operators see it."""
        if in_use:
            self.in_use[session] = in_use
        else:
            self.in_use.pop(session, None)

    def drop(self, session: Session) -> None:
        """The session is gone: nobody waits there any more. Its answer to a round isn't coming."""
        for key in [key for key in self.waiters if key[0] == session]:
            del self.waiters[key]
        for key in [key for key in self.granted if key[0] == session]:
            del self.granted[key]
        self.spare.pop(session, None)
        self.in_use.pop(session, None)
        if self.round is not None:
            self.round.pending.discard(session)

    def wishes(self) -> list[tuple[Session, int]]:
        """(session, how many wait) in order of arrival: neighbours of one session are joined, never reordered."""
        runs: list[tuple[Session, int]] = []
        for waiter in self.waiters.values():
            if runs and runs[-1][0] == waiter.session:
                runs[-1] = (waiter.session, runs[-1][1] + 1)
            else:
                runs.append((waiter.session, 1))
        return runs

    def serve(self, session: Session, count: int, index: int, now: float) -> None:
        """`count` permits went to the session's oldest waiters."""
        oldest = [key for key in self.waiters if key[0] == session][:count]
        for key in oldest:
            del self.waiters[key]
            self.granted[key] = (index, now)

    def begin(self, number: int, holders: list[Session], deadline: float) -> Round:
        """Begins a round for everybody who waits now."""
        assert self.round is None, f"{self.pool}: round {self.round} is in flight"
        self.rounds += 1
        self.round = Round(number=number, bound=self._order, deadline=deadline, pending=set(holders))
        return self.round

    def refuse(self, bound: int, why: "Why", came_by: float = math.inf) -> dict[Session, tuple[int, ...]]:
        """Takes the waiters that a round served, and that had come by then, off the desk: their ids, oldest first."""
        refused: dict[Session, list[int]] = {}
        for key, waiter in list(self.waiters.items()):
            if waiter.order <= bound and waiter.at <= came_by:
                del self.waiters[key]
                refused.setdefault(waiter.session, []).append(waiter.id)
        count = sum(map(len, refused.values()))
        if count:
            self.refused[why.word] = self.refused.get(why.word, 0) + count
        return {session: tuple(ids) for session, ids in refused.items()}

    def check(self) -> None:
        orders = [waiter.order for waiter in self.waiters.values()]
        assert orders == sorted(orders), (str(self.pool), orders)
        assert not self.waiters.keys() & self.granted.keys(), str(self.pool)


def top_up(*, spare: int, free: int, limit: int, sessions: int) -> int:
    """How much of a top-up wish is worth granting: blocks are an optimisation for pools with room (rule 1).

    A tenth of what is free, shared by the sessions, at most 64; none from a small pool, whose blocks are exact.
    """
    sessions = max(sessions, 1)
    if limit < 16 * sessions:
        return 0
    return min(spare, 64, free // (10 * sessions))
