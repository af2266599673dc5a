"""Invariant 1: at every instant, per pool, executions running <= limit; and no permit is granted twice.

A limit that was raised counts from when the ledger has it, one that was lowered from when it binds everywhere, for
requests that came after that: what was admitted before may still begin. Of runs on several hosts only those count that
certainly ran at the same time.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.leading import Leading
from simulation.history.records import (
    Asked,
    Authority,
    Block,
    Bound,
    End,
    FenceAcked,
    Led,
    Level,
    Life,
    Member,
    Record,
    Room,
    Session,
    Start,
)
from simulation.history.runs import Run

# Whoever is declared dead by an operator is told so later, if it lives: that is the operator's to answer for.
_COUNTED_OUT = frozenset({"left", "replaced", "evicted"})


class LimitsHold(Check):
    """1."""

    number = 1

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._leading = lead = Leading()
        self._asked: dict[str, Asked] = {}
        self._bounds: dict[str, list[Bound]] = defaultdict(list)
        self._changes: dict[str, list[Level]] = defaultdict(list)       # that changed the pool's limit
        self._homes: dict[str, list[Level]] = defaultdict(list)         # that gave or took the function a reservation
        self._levels: dict[str, Level] = {}                             # of this leadership
        self._presumed: dict[str, Level] = {}                           # of pools that it has said nothing of yet
        self._rooms: dict[str, Room] = {}                               # by account
        self._blocks: dict[str, dict[str, int]] = defaultdict(dict)     # sizes by pool and session
        self._fences: dict[tuple[str, str], tuple[int, FenceAcked]] = {}   # by worker and frontend
        self._out: dict[str, Member] = {}                               # by incarnation
        self._authority: dict[str, Authority] = {}
        self._lives: dict[str, Life] = {}                               # by worker: that had no authority yet
        return {
            Asked: self._ask, Bound: self._bind, Level: lead.only(self._level), Room: lead.only(self._room),
            Block: lead.only(self._block), Session: lead.only(self._session), Led: self._led,
            FenceAcked: self._fence, Member: self._member, Authority: self._authorise, Life: self._life,
            Start: self._start, End: self._end,
        }

    # ------------------------------------------------------------ what the ledger does

    def _led(self, led: Led) -> None:
        if self._leading.led(led):
            self._levels.clear()
            self._rooms.clear()
            self._blocks.clear()
            self._presume_gone(led)

    def _presume_gone(self, led: Led) -> None:
        """Who begins to lead tells of every pool there is: a reservation of which it says nothing was given up in an
        entry that no leader told of."""
        self._presumed.clear()
        for pool, homes in self._homes.items():
            if _is_reserved(homes[-1]):
                gone = self._presumed[pool] = Level(at=led.at, node=led.node, pool=pool, limit=0, granted=0)
                homes.append(gone)
                self._changes[pool].append(gone)

    def _still_there(self, level: Level) -> None:
        gone = self._presumed.get(level.pool)
        if gone is not None and level.at == gone.at:
            del self._presumed[level.pool]
            self._homes[level.pool].remove(gone)
            self._changes[level.pool].remove(gone)

    def _bind(self, bound: Bound) -> None:
        self._bounds[bound.pool].append(bound)

    def _room(self, room: Room) -> None:
        self._rooms[room.account] = room

    def _block(self, block: Block) -> None:
        self._blocks[block.pool][block.session] = block.size

    def _session(self, session: Session) -> None:
        if session.state == "gone":
            for sizes in self._blocks.values():
                sizes.pop(session.session, None)

    def _level(self, level: Level) -> None:
        """Told after the blocks and the rooms of the same entry."""
        self._still_there(level)
        known = self._changes[level.pool]
        if not known or known[-1].limit != level.limit:
            known.append(level)
        homes = self._homes[level.pool]
        if not homes or _is_reserved(homes[-1]) != _is_reserved(level):
            homes.append(level)
        before = self._levels.get(level.pool)
        self._levels[level.pool] = level
        held = sum(self._blocks[level.pool].values())
        if held != level.granted:
            self.violated(f"{held} permits of {level.pool} are held and {level.granted} were granted", level)
        if before is None or level.granted <= before.granted:
            return
        if level.granted + level.crossing > level.limit:
            self.violated(
                f"{level.granted - before.granted} permits of {level.pool} were granted, which made "
                f"{level.granted + level.crossing} of {level.limit}", before, level,
            )
        if level.room is not None and level.room < 0:
            self.violated(
                f"{level.granted - before.granted} permits of {level.pool} were granted, {-level.room} more than its "
                "function's reservation", before, level,
            )
        room = self._rooms.get(level.pool.partition("/")[0])
        if room is not None and room.room < 0:
            self.violated(
                f"{level.granted - before.granted} permits of {level.pool} were granted, {-room.room} more than the "
                "account's limit", before, room, level,
            )

    # ------------------------------------------------------------ starts that nobody counts

    def _ask(self, asked: Asked) -> None:
        self._asked[asked.request] = asked

    def _fence(self, fence: FenceAcked) -> None:
        frontend, epoch = _parts(fence.session)
        known = self._fences.get((fence.node, frontend))
        if known is None or epoch > known[0]:
            self._fences[fence.node, frontend] = (epoch, fence)
        if not fence.reports:
            return
        for run in self.ground.runs.on(fence.node):
            frontend_of_run, epoch_of_run = _parts(run.start.session)
            if (frontend_of_run, epoch_of_run) == (frontend, epoch) and run.start.invocation not in fence.running:
                self.violated(
                    f"{fence.node} reported what runs of {fence.session} without {run.start.invocation}", run.start,
                    fence,
                )

    def _member(self, member: Member) -> None:
        if member.state in _COUNTED_OUT:
            self._out[member.incarnation] = member

    def _authorise(self, authority: Authority) -> None:
        self._authority[authority.node] = authority
        self._lives.pop(authority.node, None)

    def _life(self, life: Life) -> None:
        if life.incarnation:
            self._lives[life.node] = life
        self._authority.pop(life.node, None)
        for key in [key for key in self._fences if key[0] == life.node]:
            del self._fences[key]

    def _start(self, start: Start) -> None:
        frontend, epoch = _parts(start.session)
        fence = self._fences.get((start.node, frontend))
        if start.session and fence is not None and epoch <= fence[0]:
            self.violated(
                f"{start.node} starts {start.invocation} by a permit of {start.session}, which is fenced there",
                fence[1], start,
            )
        out = self._out.get(self.ground.runs.incarnations.get(start.node, ""))
        if out is not None and self.ground.clocks.before(out, start):
            self.violated(
                f"{start.node} starts {start.invocation} and had been {out.state} ({out.incarnation}): nobody counts "
                "it", out, start,
            )
        authority = self._authority.get(start.node)
        if authority is not None and start.at >= authority.until:
            self.violated(
                f"{start.node} starts {start.invocation} at {start.at:.3f}, it might do so until "
                f"{authority.until:.3f}", authority, start,
            )
        life = self._lives.get(start.node)
        if life is not None:
            self.violated(
                f"{start.node} starts {start.invocation} before {life.incarnation} had any authority", life, start
            )

    def _end(self, end: End) -> None:
        run = self.ground.runs.counted_out.get(end.invocation.partition("#")[0])
        if run is None or (run.start.node, run.start.sandbox) != (end.node, end.sandbox):
            return
        out = run.end
        if isinstance(out, Member) and out.state in _COUNTED_OUT and self.ground.clocks.before(out, end):
            self.violated(
                f"{end.invocation} ran on {end.node} which had been {out.state} ({out.incarnation}): nobody counted it",
                run.start, out, end,
            )

    # ------------------------------------------------------------ runs

    def end(self) -> None:
        of_pool: dict[str, list[Run]] = defaultdict(list)
        for run in self.ground.runs.all:
            self._is_at_home(run.start)
            own = f"{run.start.account}/{run.start.function}" if run.start.account else run.start.pool
            for pool in {run.start.pool, own}:      # a function that got a reservation: its older runs count there too
                if pool in self._bounds:
                    of_pool[pool].append(run)
        for pool, runs in of_pool.items():
            self._sweep(pool, runs)

    def _is_at_home(self, start: Start) -> None:
        """Whose function has had a reservation since before it was asked for isn't the account's rest's."""
        own, clocks = f"{start.account}/{start.function}", self.ground.clocks
        asked = self._asked.get(start.request)
        if start.pool != f"{start.account}/*" or asked is None:
            return
        bound = self._bound(own, asked)
        if bound is None:
            return
        written, homes = self._written(bound), self._homes[own]
        known = sum(
            home.at <= bound.since if home.node == bound.node else clocks.latest(home) <= written for home in homes
        )
        later = [home for home in homes[known:] if not clocks.before(start, home)]
        if known and all(map(_is_reserved, [homes[known - 1], *later])):
            self.violated(
                f"{start.invocation} of {start.function} was admitted from {start.pool}, its function has had a "
                "reservation since before it was asked for", homes[known - 1], bound, asked, start,
            )

    def _sweep(self, pool: str, runs: list[Run]) -> None:
        """The worst start of each limit."""
        clocks = self.ground.clocks
        spans = [
            (clocks.latest(run.start), clocks.earliest(run.end) if run.end is not None else float("inf"))
            for run in runs
        ]
        certain = [span for span in spans if span[0] <= span[1]]
        begins, ends = sorted(begin for begin, _ in certain), sorted(end for _, end in certain)
        worst: dict[int, tuple[int, Run, float]] = {}
        for run, (at, _) in zip(runs, spans, strict=True):
            limit = self._limit(pool, run.start) if run.start.pool == pool else None
            if limit is None:
                continue
            gone = self._gone(pool, at)
            if gone is None:
                running = bisect_right(begins, at) - bisect_right(ends, at)
            else:       # what the function began since then is of another pool, and no business of this one's
                running = sum(
                    begin <= at < end and (other.start.pool == pool or begin <= gone)
                    for other, (begin, end) in zip(runs, spans, strict=True)
                )
            if running > max(limit, worst[limit][0] if limit in worst else 0):
                worst[limit] = (running, run, at)
        for limit, (running, run, at) in worst.items():
            shown = [
                other.start for other, (begin, end) in zip(runs, spans, strict=True) if begin <= at < end
            ]
            self.violated(
                f"{running} runs of {pool} at once (at {run.start.at:.3f}), its limit was {limit}", *shown
            )

    def _gone(self, pool: str, at: float) -> float | None:
        """From when on a start may have been another pool's, because this one had gone; None while it had permits."""
        clocks = self.ground.clocks
        change = next((one for one in reversed(self._changes[pool]) if clocks.earliest(one) <= at), None)
        return clocks.earliest(change) if change is not None and change.limit == 0 else None

    def _limit(self, pool: str, start: Start) -> int | None:
        """What the pool may have had when this start was admitted. None: nothing is known of that time."""
        clocks = self.ground.clocks
        since = self._asked.get(start.request, start)
        bound = self._bound(pool, since)
        if bound is None:
            return None
        written = self._written(bound)
        later = [
            change.limit for change in self._changes[pool]
            if clocks.latest(change) > written and not clocks.before(start, change)
        ]
        return max([bound.limit, *later])

    def _bound(self, pool: str, record: Record) -> Bound | None:
        """The newest that certainly came before."""
        before = self.ground.clocks.before
        return next((one for one in reversed(self._bounds.get(pool, ())) if before(one, record)), None)

    def _written(self, bound: Bound) -> float:
        """When its change was, at the earliest."""
        return bound.since + self.ground.clocks.earliest(bound) - bound.at


def _is_reserved(level: Level) -> bool:
    """Whether the pool's function has a reservation."""
    return level.room is not None


def _parts(session: str) -> tuple[str, int]:
    """FRONTEND#EPOCH."""
    frontend, _, epoch = session.rpartition("#")
    return frontend, int(epoch or 0)
