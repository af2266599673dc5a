"""Invariant 13: a waiting request gets any provably free permit of its pool within 1 s, whatever others do.

Provably free is what the ledger's own levels leave: the pool's limit less what is granted and what is charged to it
from other pools, within the account's room. A request waits from when its frontend's wish has arrived at the leader
until the leader sends a permit, or a refusal, or its frontend says that it waits no longer. Where permits are free for
moments only, each is the oldest request's: one that came more than 1 s later than another frontend's doesn't get it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from simulation.history.invariant import Check, Handler
from simulation.history.leading import Leading
from simulation.history.records import (
    Beat,
    Committed,
    Deposed,
    Granted,
    Led,
    Level,
    Life,
    Proposed,
    Record,
    Room,
    Served,
    Session,
    Throttled,
    Unproven,
    Wanted,
)

WITHIN_S = 1.0
CROSSED_S = 0.25    # a wish that comes so soon after a grant was sent before the grant was known
LOST_S = 3.0        # who asks so soon and is never served is taken to wait from then on: the grant was lost on its way
LEFT_S = 0.5        # so long a grant may have been on its way through the log, for who waits no longer


@dataclass(slots=True)
class _Free:
    """``since``: when it became more than nothing; None: it isn't."""

    record: Level | Room
    since: float | None = None

    @property
    def count(self) -> int:
        return _free(self.record)

    def update(self, record: Level | Room) -> None:
        self.record = record
        if self.count <= 0:
            self.since = None
        elif self.since is None:
            self.since = record.at


@dataclass(slots=True)
class _Wait:
    """``begins``: from when on it is owed a permit, on the leader's clock."""

    wanted: Wanted
    begins: float
    told: bool = False


class FreePermitsAreServed(Check):
    """13."""

    number = 13

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._leading = lead = Leading()
        self._pools: dict[str, _Free] = {}
        self._rooms: dict[str, _Free] = {}      # by account
        self._waits: dict[tuple[str, str], dict[int, _Wait]] = {}    # by frontend and pool, then by number
        self._granted: dict[tuple[str, str], dict[int, float]] = {}  # when, of those that may ask again without knowing
        self._done: dict[str, set[int]] = defaultdict(set)      # numbers that wait no longer, by frontend
        self._first: dict[tuple[str, str], dict[int, Wanted]] = {}  # also before a stream broke
        self._left: dict[tuple[str, str], Record] = {}      # the newest by which a request waits no longer, unserved
        self._live: dict[str, str] = {}                     # the newest session that was, by frontend
        return {
            Proposed: lead.proposed, Committed: lead.committed,
            Led: self._led, Deposed: self._deposed, Level: lead.only(self._level), Room: lead.only(self._room),
            Wanted: lead.only(self._want), Granted: lead.only(self._grant), Unproven: lead.only(self._refuse),
            Throttled: lead.only(self._throttled), Session: lead.only(self._session), Served: self._served,
            Life: self._life, Beat: self._beat,
        }

    def _led(self, led: Led) -> None:
        if self._leading.led(led):
            self._clear()

    def _deposed(self, deposed: Deposed) -> None:
        if self._leading.deposed(deposed):
            self._clear()

    def _clear(self) -> None:
        self._pools.clear()
        self._rooms.clear()
        self._waits.clear()
        self._granted.clear()
        self._first.clear()
        self._left.clear()
        self._live.clear()

    def _level(self, level: Level) -> None:
        self._pools.setdefault(level.pool, _Free(level)).update(level)

    def _room(self, room: Room) -> None:
        self._rooms.setdefault(room.account, _Free(room)).update(room)

    def _want(self, wanted: Wanted) -> None:
        key = (wanted.frontend, wanted.pool)
        before, granted = self._waits.get(key, {}), self._granted.get(key, {})
        crossed = {number for number in wanted.waiting if wanted.at - granted.get(number, -math.inf) < CROSSED_S}
        self._waits[key] = {}
        for number in wanted.waiting:
            if number in self._done[wanted.frontend]:
                continue    # the wish was longer on its way than the grant
            known = before.get(number) if number in crossed or number not in granted else None
            self._waits[key][number] = known or _Wait(wanted, wanted.at + LOST_S * (number in crossed))
        first = self._first.setdefault(key, {})
        for number in wanted.waiting:
            first.setdefault(number, wanted)
        if before.keys() - wanted.waiting:
            self._left[key] = wanted
        self._granted[key] = {number: at for number, at in granted.items() if number in crossed}

    def _grant(self, grant: Granted) -> None:
        key = (grant.frontend, grant.pool)
        waits = self._waits.get(key, {})
        known = [number for number, wait in waits.items() if wait.begins <= grant.at]
        self._is_fair(grant, known)
        for number in known[:grant.count]:
            del waits[number]
        self._granted.setdefault(key, {}).update(dict.fromkeys(known[:grant.count], grant.at))

    def _is_fair(self, grant: Granted, waiting: list[int]) -> None:
        """Of a frontend that isn't known to wait nothing is said: its wish may be older than its stream. What it gets
        beyond those who wait counts as if it had been wished for just now."""
        key, clocks = (grant.frontend, grant.pool), self.ground.clocks
        since, left = self._leading.at_work(grant), self._left.get(key)
        if not waiting or since is None or (
            left is not None and clocks.earliest(grant) - clocks.latest(left) < LEFT_S
        ):
            return
        others = [
            wait for (frontend, pool), waits in self._waits.items() if pool == grant.pool
            for wait in waits.values() if frontend != grant.frontend
        ]
        if not others:
            return
        oldest = min(others, key=_begins)
        came = grant if grant.count > len(waiting) else max(
            (self._first[key][number] for number in waiting[:grant.count]), key=_at
        )
        if came.at - max(since, oldest.begins) > WITHIN_S:
            self.violated(
                f"{grant.frontend} is granted {grant.count} of {grant.pool} for what came "
                f"{came.at - oldest.begins:.1f} s after a request of {oldest.wanted.frontend} that still waits",
                oldest.wanted, came, grant,
            )

    def _refuse(self, refused: Throttled | Unproven) -> None:
        waits = self._waits.get((refused.frontend, refused.pool), {})
        for number in refused.waiting:
            waits.pop(number, None)

    def _served(self, served: Served) -> None:
        self._done[served.node].add(served.number)
        for key, waits in self._waits.items():
            if key[0] == served.node and waits.pop(served.number, None) is not None:
                self._left[key] = served

    def _session(self, session: Session) -> None:
        """The end of an older one, which may come long after, ends nothing of its frontend's newest."""
        frontend = session.session.rpartition("#")[0]
        if session.state == "live":
            self._live[frontend] = session.session
        elif self._live.get(frontend) in {None, session.session}:
            self._forget(frontend)

    def _life(self, life: Life) -> None:
        self._done.pop(life.node, None)
        self._forget(life.node)

    def _forget(self, frontend: str) -> None:
        for known in (self._waits, self._granted, self._first, self._left):
            for key in [key for key in known if key[0] == frontend]:
                del known[key]

    def _throttled(self, throttled: Throttled) -> None:
        self._refuse(throttled)
        pool, room = self._of(throttled.pool)
        if pool is None or room is None or pool.since is None or room.since is None:
            return
        self.violated(
            f"requests for {throttled.pool} were refused in round {throttled.round} while "
            f"{min(pool.count, room.count)} of its permits were free", pool.record, room.record, throttled,
        )

    def _of(self, pool: str) -> tuple[_Free | None, _Free | None]:
        """What the pool has free, and its account."""
        return self._pools.get(pool), self._rooms.get(pool.partition("/")[0])

    def _beat(self, beat: Beat) -> None:
        since = self._leading.beat(beat)
        if since is None:
            return
        for (frontend, name), waits in self._waits.items():
            pool, room = self._of(name)
            if pool is None or room is None or pool.since is None or room.since is None:
                continue
            for number, wait in waits.items():
                waited_s = beat.at - max(since, pool.since, room.since, wait.begins)
                if waited_s > WITHIN_S and not wait.told:
                    wait.told = True
                    self.violated(
                        f"request {number} of {frontend} waited {waited_s:.1f} s for {name} while "
                        f"{min(pool.count, room.count)} of its permits were free", wait.wanted, pool.record,
                        room.record, beat,
                    )


def _at(record: Record) -> float:
    return record.at


def _begins(wait: _Wait) -> float:
    return wait.begins


def _free(record: Level | Room) -> int:
    if isinstance(record, Room):
        return record.room
    own = record.limit - record.granted - record.crossing
    return own if record.room is None else min(own, record.room)
