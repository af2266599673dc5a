"""Admission: which request gets a permit, what is asked of the ledger, and what goes back (architecture, section 3).

A pure state machine beside the hot path: a request that finds an idle permit in its pool's block never comes here. Owns
the session with the ledger, each pool's block and who waits. Refuses to know functions' code, sandboxes, protobuf,
streams and clocks.
"""

import enum
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import assert_never

from chassis.machine import Story, Transitions
from frontend import messages as m
from frontend.permits import Block, Pool, PoolKind, reserved, unreserved
from frontend.stock import Stock, Waiter
from frontend.waiting import Waiting


class Session(enum.Enum):
    """How this frontend stands with the ledger."""

    SEEKING = "seeking"    # no session: nothing can be admitted
    LIVE = "live"          # the leader knows it
    ADRIFT = "adrift"      # a session and no leader: what is held can be spent, nothing can be asked for
    CLOSED = "closed"      # goodbye was said


TRANSITIONS = Transitions({
    (Session.SEEKING, m.Welcomed): Session.LIVE,
    (Session.LIVE, m.Welcomed): Session.LIVE,
    (Session.ADRIFT, m.Welcomed): Session.LIVE,
    (Session.LIVE, m.LinkDown): Session.ADRIFT,
    (Session.LIVE, m.NotLeader): Session.ADRIFT,
    (Session.SEEKING, m.Fenced): Session.SEEKING,
    (Session.LIVE, m.Fenced): Session.SEEKING,
    (Session.ADRIFT, m.Fenced): Session.SEEKING,
    (Session.LIVE, m.RefusedAsFenced): Session.SEEKING,
    (Session.ADRIFT, m.RefusedAsFenced): Session.SEEKING,
    (Session.LIVE, m.Leave): Session.CLOSED,
})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds, unless a name says otherwise."""

    idle_s: float = 1.0             # what was idle for longer goes back (rule 2)
    pressed_s: float = 1.0          # no top-ups for so long after a recall
    adrift_s: float = 10.0          # without a leader for longer, it is no change of leaders
    rejoin_s: float = 2.0           # from then on nobody waits for one longer than this
    waiting_max: int = 2000         # requests that may wait for permits here, in all
    waiting_per_account_max: int = 1000   # of one account; and who has the most gives way when all places are taken


class FrontendCore:
    """``state`` says how the session stands; ``stocks`` holds each pool that was asked for or told of, until nothing of
    it is here and no request can come to it."""

    def __init__(self, timing: Timing) -> None:
        self.state = Session.SEEKING
        self.epoch = 0
        self.stocks: dict[Pool, Stock] = {}
        self._timing = timing
        self._reserved: dict[tuple[str, str], Stock] = {}
        self._rest: dict[str, Stock] = {}
        self._story = Story()
        self._link: int | None = None       # to the leader, while LIVE
        self._asked_anew: set[int] = set()  # links on which a new session was asked for
        self._newest: m.Stamp = (0, 0)
        self._sequence = 0
        self._unapplied: deque[m.Sequenced] = deque()
        self._waiting = Waiting(
            waiting_max=timing.waiting_max, per_account_max=timing.waiting_per_account_max
        )
        self._dirty: dict[Pool, None] = {}
        self._flushing = False
        self._look_at = math.inf
        self._leaving = False
        self._adrift_since: float | None = None     # when the leader was lost, or first missed
        self._effects: list[m.Effect] = []

    # ------------------------------------------------------------ reading

    def block_for(self, account: str, function: str) -> Block | None:
        """The block that admits invocations of ``function``; None before its pool was ever asked for."""
        stock = self._reserved.get((account, function)) or self._rest.get(account)
        return stock.block if stock is not None else None

    @property
    def timing(self) -> Timing:
        return self._timing

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def link(self) -> int | None:
        """The stream to the leader, while there is one: nobody else knows who leads (rule 10)."""
        return self._link

    def usage(self) -> dict[Pool, tuple[int, int]]:
        """(held, in use) of every pool of which something is held."""
        return {pool: (stock.held, stock.in_use) for pool, stock in self.stocks.items() if stock.held}

    def wakes_at(self) -> float | None:
        """When a Tick is wanted."""
        if self.state is Session.CLOSED:
            return None
        at = min(self._look_at, self._waiting.wakes_at())
        return None if at == math.inf else at

    # ------------------------------------------------------------ the one way in

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        self._effects = []
        if self.state is not Session.CLOSED:
            self._handle(event, now)
            if self._leaving:
                self._try_to_close()
        elif isinstance(event, m.Wanted):
            self._refuse_wanted(event, "this frontend is draining: another one takes the request")
        return self._effects

    def _handle(self, event: m.Event, now: float) -> None:
        match event:
            case m.Wanted():
                self._wanted(event, now)
            case m.WaiterGone():
                self._gone(event.request)
            case m.Freed():
                self._freed(event)
            case m.Low():
                self._low(event)
            case m.Flush():
                self._flush(now)
            case m.Tick():
                self._tick(now)
            case m.Leave():
                self._leave()
            case m.LinkUp() | m.LinkDown() | m.NotLeader() | m.Welcomed() | m.Fenced() | m.RefusedAsFenced():
                self._session(event, now)
            case m.Granted() | m.Recalled() | m.Throttled() | m.Unproven() | m.GenerationChanged():
                if event.link == self._link and event.stamp >= self._newest:
                    self._newest = event.stamp
                    self._answer(event, now)
            case _:
                assert_never(event)

    def _answer(self, event: m.Answer, now: float) -> None:
        match event:
            case m.Granted():
                self._granted(event, now)
            case m.Recalled():
                self._recalled(event, now)
            case m.Throttled() | m.Unproven():
                self._refused(event)
            case m.GenerationChanged():
                self._generation(event, now)
            case _:
                assert_never(event)

    def _do(self, effect: m.Effect) -> None:
        self._effects.append(effect)

    # ------------------------------------------------------------ requests

    def _wanted(self, event: m.Wanted, now: float) -> None:
        if self._leaving:
            self._refuse_wanted(event, "this frontend is draining: another one takes the request")
            return
        stock = self._stock_of(event.account, event.function)
        if not stock.waiting and stock.block.try_take(event.function):
            self._do(m.Admit(request=event.request, pool=stock.pool, cause=event.cause))
            return
        if not self._make_place(event.account):
            self._do(self._overloaded(event.request, stock.pool, event.cause))
            return
        waiter = Waiter(
            request=event.request, account=event.account, function=event.function, deadline=event.deadline,
            cause=event.cause,
        )
        # A load balancer reaches a frontend that was cut off again a moment before the ledger does.
        look_at = min(event.deadline, now + self._timing.rejoin_s) if self._is_adrift(now) else event.deadline
        self._waiting.add(waiter, stock, look_at=look_at)
        self._look_at = min(self._look_at, now + self._timing.idle_s)
        self._watch(stock)
        self._touch(stock)

    def _is_adrift(self, now: float) -> bool:
        """Whether there has been no leader for so long that none is to be expected soon (rule 8)."""
        if self.state is Session.LIVE:
            return False
        if self._adrift_since is None:
            self._adrift_since = now
        return now - self._adrift_since >= self._timing.adrift_s

    def _make_place(self, account: str) -> bool:
        """Whether one more of this account may wait. When all places are taken, the account with the most gives way."""
        if self._waiting.full(account):
            return False
        newest = self._waiting.gives_way(account)
        stock = self._waiting.stock(newest) if newest is not None else None
        if newest is not None and stock is not None:
            self._do(self._overloaded(newest, stock.pool, stock.waiting[newest].cause))
            self._dequeue(stock, newest)
            self._touch(stock)
        return True

    def _overloaded(self, request: int, pool: Pool, cause: str) -> m.Refuse:
        reason, limit, in_use = self._waiting.bound(pool.account)
        return m.Refuse(
            request=request, pool=pool, refusal=m.Refusal.OVERLOADED, reason=reason, cause=cause, limit=limit,
            in_use=in_use,
        )

    def _refuse_wanted(self, event: m.Wanted, reason: str) -> None:
        pool = self._stock_of(event.account, event.function).pool
        self._do(m.Refuse(
            request=event.request, pool=pool, refusal=m.Refusal.UNAVAILABLE, reason=reason, cause=event.cause
        ))

    def _dequeue(self, stock: Stock, request: int) -> Waiter:
        waiter = self._waiting.remove(request)
        self._watch(stock)
        return waiter

    def _watch(self, stock: Stock) -> None:
        """Whether a permit that comes back is told: somebody waits for it, or it goes back itself."""
        stock.block.watched = bool(stock.waiting) or self._leaving

    def _gone(self, request: int) -> None:
        stock = self._waiting.stock(request)
        if stock is not None:
            self._dequeue(stock, request)
            self._touch(stock)

    def _serve(self, stock: Stock) -> int:
        """Idle permits go to who waits longest; how many went."""
        served = 0
        while stock.waiting:
            first = next(iter(stock.waiting.values()))
            if not stock.block.try_take(first.function):
                break
            self._dequeue(stock, first.request)
            self._do(m.Admit(request=first.request, pool=stock.pool, cause=first.cause))
            served += 1
        return served

    def _freed(self, event: m.Freed) -> None:
        """A watched permit came back. One of an older generation goes back to the ledger for good (rule 9)."""
        if event.epoch != self.epoch:
            return  # a lost session's: the ledger has counted it by the workers' word, and its pool may be forgotten
        stock = self.stocks[event.pool]
        if event.generation == stock.block.generation:
            if self._serve(stock):
                self._touch(stock)
            return
        stock.older = [block for block in stock.older if block.in_use]
        self._send_back(stock, 1, event.function, event.cause)

    def _low(self, event: m.Low) -> None:
        stock = self.stocks[event.pool]
        stock.block.mark = math.inf
        stock.low = True
        self._touch(stock)

    # ------------------------------------------------------------ pools

    def _stock_of(self, account: str, function: str) -> Stock:
        stock = self._reserved.get((account, function)) or self._rest.get(account)
        return stock if stock is not None else self._stock(unreserved(account))

    def _stock(self, pool: Pool) -> Stock:
        stock = self.stocks.get(pool)
        if stock is None:
            stock = self.stocks[pool] = Stock(pool=pool, block=Block(pool, epoch=self.epoch, generation=0))
            if pool.kind is PoolKind.UNRESERVED:
                self._rest[pool.account] = stock
        return stock

    def _generation(self, event: m.GenerationChanged, now: float) -> None:
        """The pool's limit changed: what is idle goes back, what runs is acknowledged and goes back on END (rule 9)."""
        stock = self._stock(event.pool)
        if event.generation < stock.block.generation:
            return
        stock.limit = event.limit
        if event.generation > stock.block.generation:
            self._retire(stock, event.generation, event.cause)
        stock.gone = event.gone
        if event.pool.kind is PoolKind.RESERVED:
            self._route(stock)
        if stock.waiting:
            self._touch(stock)
        if stock.gone:
            self._look_at = min(self._look_at, now + self._timing.idle_s)

    def _retire(self, stock: Stock, generation: int, cause: str) -> None:
        old, held = stock.block, stock.held
        if old.idle:
            self._give_back(stock, old.idle, cause)
        if old.in_use:
            old.watched = True
            stock.older.append(old)
        stock.block = Block(stock.pool, epoch=self.epoch, generation=generation)
        self._watch(stock)
        stock.told, stock.told_spare, stock.low = (), 0, False
        if held:
            self._send(m.AcknowledgeGeneration(
                link=0, sequence=self._next(), pool=stock.pool, generation=generation, moved=stock.moved(), cause=cause
            ))

    def _route(self, stock: Stock) -> None:
        """A reservation came or went: its function's requests wait in the pool that they now belong to."""
        key = (stock.pool.account, stock.pool.function)
        rest = self._stock(unreserved(stock.pool.account))
        if stock.gone:
            self._reserved.pop(key, None)
            self._move(stock, rest, list(stock.waiting.values()))
        elif key not in self._reserved:
            self._reserved[key] = stock
            self._move(rest, stock, [w for w in rest.waiting.values() if w.function == stock.pool.function])

    def _move(self, source: Stock, target: Stock, waiters: list[Waiter]) -> None:
        for one in waiters:
            self._waiting.move(one, target)
        if waiters:
            for stock in (target, source):
                self._watch(stock)
                self._touch(stock)
            self._serve(target)

    # ------------------------------------------------------------ permits come and go

    def _granted(self, event: m.Granted, now: float) -> None:
        """A holder's size is the answer's less its own give-backs that this answer hasn't applied yet (rule 2)."""
        self._applied(event.applied)
        stock = self._stock(event.pool)
        on_their_way = sum(
            x.count for x in self._unapplied if isinstance(x, m.GiveBack) and x.pool == event.pool
        )
        size = event.size - on_their_way - stock.running_older
        if event.generation < stock.block.generation:
            # Granted under limits that are no more, and lost on the way until now.
            if size > stock.block.size:
                self._send_back(stock, size - stock.block.size, "", event.cause)
            return
        if event.generation > stock.block.generation:
            self._retire(stock, event.generation, event.cause)
        block = stock.block
        grew = size - block.size
        block.size = max(size, block.in_use)
        block.peak = block.size  # fresh: not idle for a second yet
        stock.seen = max(stock.seen, event.stamp[1])
        if grew > len(stock.told):
            stock.told_spare, stock.low = 0, False
        # The leader took as many off its list, oldest first: say the whole wish anew only where the lists have parted.
        stock.told = stock.told[event.count:]
        self._serve(stock)
        if tuple(stock.waiting) != stock.told:
            self._touch(stock)
        stock.set_mark()
        self._look_at = min(self._look_at, now + self._timing.idle_s)

    def _recalled(self, event: m.Recalled, now: float) -> None:
        """Answered at once: own waiting requests first, the rest goes back (rule 4)."""
        stock = self._stock(event.pool)
        if self._serve(stock):
            self._touch(stock)
        idle = stock.block.idle
        if idle:
            self._give_back(stock, idle, event.cause)
        stock.pressed_until = now + self._timing.pressed_s
        assert self._link is not None
        self._do(m.AnswerRecall(
            link=self._link, round=event.round, pool=event.pool, given_back=idle, in_use=stock.in_use,
            waiting=len(stock.waiting), cause=event.cause,
        ))

    def _refused(self, event: m.Throttled | m.Unproven) -> None:
        """A refusal is passed on only after our own block was tried once more (rule 4)."""
        stock = self._stock(event.pool)
        self._serve(stock)
        refused = False
        for request in event.waiting:
            if request not in stock.waiting:
                continue
            refused = True
            waiter = self._dequeue(stock, request)
            if isinstance(event, m.Throttled):
                self._do(m.Refuse(
                    request=request, pool=event.pool, refusal=m.Refusal.THROTTLED, reason="nothing is free",
                    limit=event.limit, in_use=event.in_use, round=event.round, cause=waiter.cause,
                ))
            else:
                self._do(m.Refuse(
                    request=request, pool=event.pool, refusal=m.Refusal.UNAVAILABLE, reason=event.reason,
                    silent=event.silent, retry_after_s=event.retry_after_s, cause=waiter.cause,
                ))
        if refused:
            stock.told = tuple(id_ for id_ in stock.told if id_ not in event.waiting)
            if tuple(stock.waiting) != stock.told:
                self._touch(stock)

    def _give_back(self, stock: Stock, count: int, cause: str) -> None:
        """``count`` idle permits of the current block."""
        assert count <= stock.block.idle, (str(stock.pool), count)
        stock.block.size -= count
        stock.set_mark()
        self._send_back(stock, count, "", cause)

    def _send_back(self, stock: Stock, count: int, function: str, cause: str) -> None:
        self._send(m.GiveBack(
            link=0, sequence=self._next(), pool=stock.pool, generation=stock.block.generation, count=count,
            function=function, cause=cause,
        ))

    # ------------------------------------------------------------ what the ledger is told

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _send(self, message: m.Sequenced) -> None:
        """Applied once and in order (rule 10): kept until an answer says that it was, sent again to a new leader."""
        self._unapplied.append(message)
        if self._link is not None:
            self._do(replace(message, link=self._link))

    def _applied(self, sequence: int) -> None:
        while self._unapplied and self._unapplied[0].sequence <= sequence:
            self._unapplied.popleft()

    def _touch(self, stock: Stock) -> None:
        """The pool's wish has changed: it goes out at the end of this turn."""
        self._dirty[stock.pool] = None
        if not self._flushing and self._link is not None:
            self._flushing = True
            self._do(m.FlushSoon())

    def _flush(self, now: float) -> None:
        self._flushing = False
        if self._link is None:
            return
        dirty, self._dirty = self._dirty, {}
        for pool in dirty:
            stock = self.stocks[pool]
            waiting, spare = tuple(stock.waiting), 0 if self._leaving else stock.spare(now)
            if stock.gone or (waiting == stock.told and spare == stock.told_spare):
                continue
            stock.told, stock.told_spare = waiting, spare
            stock.set_mark()
            self._do(m.Ask(
                link=self._link, pool=pool, generation=stock.block.generation, waiting=waiting, spare=spare,
                seen=stock.seen,
            ))

    # ------------------------------------------------------------ the session

    def _session(
        self, event: m.LinkUp | m.LinkDown | m.NotLeader | m.Welcomed | m.Fenced | m.RefusedAsFenced, now: float
    ) -> None:
        self._story.tell(now, event)
        match event:
            case m.LinkUp(link=link):
                if not self.epoch:
                    self._asked_anew.add(link)
                self._do(m.SayHello(link=link, epoch=self.epoch, holdings=self._holdings()))
            case m.LinkDown(link=link) | m.NotLeader(link=link):
                if isinstance(event, m.LinkDown):
                    self._asked_anew.discard(link)
                if link == self._link:
                    self.state = TRANSITIONS.next(self.state, type(event), self._story)
                    self._link, self._adrift_since = None, now
            case m.Welcomed():
                if event.stamp >= self._newest:
                    self._newest = event.stamp
                    self._welcomed(event)
            case m.Fenced():
                # A later leader's may come before the end of the stream to the one before, and is said once.
                later = event.stamp[0] > self._newest[0]
                if event.stamp >= self._newest and (later or self._link in {None, event.link}):
                    self._newest = event.stamp
                    self._fenced(event)
            case m.RefusedAsFenced(epoch=epoch):
                if epoch and epoch == self.epoch:
                    self._lost_session(event, self._link)
            case _:
                assert_never(event)

    def _holdings(self) -> tuple[m.Holding, ...]:
        return tuple(
            m.Holding(pool=pool, held=stock.held, in_use=stock.in_use, generation=stock.block.generation)
            for pool, stock in self.stocks.items() if stock.held
        )

    def _welcomed(self, event: m.Welcomed) -> None:
        self.state = TRANSITIONS.next(self.state, m.Welcomed, self._story)
        self._link, self._adrift_since = event.link, None
        self._asked_anew.clear()
        if event.epoch != self.epoch:
            self._begin_epoch(event.epoch)
        self._applied(event.applied)
        self._sequence = max(self._sequence, event.applied)
        for message in self._unapplied:
            self._do(replace(message, link=event.link))
        self._flushing = False
        for stock in self.stocks.values():
            stock.told, stock.told_spare = (), 0  # a new leader has heard of nothing
            stock.set_mark()
            if stock.waiting:
                self._touch(stock)

    def _fenced(self, event: m.Fenced) -> None:
        """Our permits are the ledger's to count now: what runs goes on, and its ENDs free nothing here (rule 6)."""
        if event.link in self._asked_anew:
            return  # said to what we sent before we asked
        self._lost_session(event, event.link)

    def _lost_session(self, event: m.Fenced | m.RefusedAsFenced, link: int | None) -> None:
        """Another one is asked for on ``link``; without one, by the hello of the next stream."""
        self.state = TRANSITIONS.next(self.state, type(event), self._story)
        self._link = None
        self._begin_epoch(0)
        if link is not None:
            self._asked_anew.add(link)
            self._do(m.SayHello(link=link, epoch=0, cause=event.cause))

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._sequence = 0
        self._unapplied.clear()
        for stock in self.stocks.values():
            for block in (*stock.older, stock.block):
                block.watched = False
                block.size = block.in_use  # a lost block admits nobody
            stock.older = []
            stock.block = Block(stock.pool, epoch=epoch, generation=stock.block.generation)
            self._watch(stock)
            stock.told, stock.told_spare, stock.low = (), 0, False

    def _leave(self) -> None:
        self._leaving = True
        for stock in self.stocks.values():
            stock.block.watched = True

    def _try_to_close(self) -> None:
        for stock in self.stocks.values():
            if stock.block.idle and not stock.waiting:
                self._give_back(stock, stock.block.idle, "leaving")
        if self.state is Session.LIVE and not self._waiting and not any(s.held for s in self.stocks.values()):
            self._send(m.SayGoodbye(link=0, sequence=self._next()))
            self.state = TRANSITIONS.next(self.state, m.Leave, self._story)

    # ------------------------------------------------------------ time

    def _tick(self, now: float) -> None:
        for request, stock in self._waiting.due(now):
            deadline = stock.waiting[request].deadline
            if deadline > now and not self._is_adrift(now):     # a leader came meanwhile
                self._waiting.look_again(request, deadline)
            else:
                self._expire(stock, request, now)
        if self._look_at <= now:
            self._look_at = math.inf
            for stock in list(self.stocks.values()):
                self._look(stock, now)

    def _expire(self, stock: Stock, request: int, now: float) -> None:
        waiter = self._dequeue(stock, request)
        self._touch(stock)
        adrift_s = self._timing.adrift_s
        reason = (
            f"no leader of the ledger has answered for {adrift_s:g} s or more, and no permit that is held here is idle"
        ) if self._is_adrift(now) else {
            Session.LIVE: "the ledger gave neither a permit nor a proof in time",
            Session.ADRIFT: "no leader of the ledger answers",
            Session.SEEKING: "this frontend has no session with the ledger",
            Session.CLOSED: "this frontend is draining",
        }[self.state]
        self._do(m.Refuse(
            request=request, pool=stock.pool, refusal=m.Refusal.UNAVAILABLE, reason=reason, cause=waiter.cause
        ))

    def _look(self, stock: Stock, now: float) -> None:
        """Gives back what nobody needed since the last look, a second ago or more, and forgets what is over."""
        block = stock.block
        unused = block.size - block.peak
        if unused > 0:
            self._give_back(stock, unused, "idle")
        stock.low = block.in_use > 0 and block.in_use >= block.size - block.size // 4
        if stock.told_spare and not block.in_use and not stock.waiting:
            self._touch(stock)  # takes the wish for a top-up back
        if stock.waiting:
            stock.told = ()  # asked again: a wish must not depend on one message
            self._touch(stock)
        block.peak = block.in_use
        stock.set_mark()
        if stock.over and self.block_for(stock.pool.account, stock.pool.function) is not block:
            self._forget(stock)
        elif block.size or stock.waiting or stock.gone:
            self._look_at = min(self._look_at, now + self._timing.idle_s)

    def _forget(self, stock: Stock) -> None:
        """Every frontend is told of every reservation: those that came and went would add up. With it goes what its
        generation was, and a late grant of an older one is taken in. It admits nobody all the same (rule 9): requests
        come to a reservation only from the news on that it is there, which brings its generation."""
        del self.stocks[stock.pool]
        self._dirty.pop(stock.pool, None)

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        """Invariants 1 (never admits without a permit) and 2 (nothing leaks here)."""
        for pool, stock in self.stocks.items():
            stock.check()
            assert pool == stock.pool
            for block in (stock.block, *stock.older):
                assert block.epoch == self.epoch, (str(pool), block.epoch, self.epoch)
        self._waiting.check()
        assert len(self._waiting) == sum(len(stock.waiting) for stock in self.stocks.values())
        assert (self._link is not None) == (self.state in {Session.LIVE, Session.CLOSED})
        sequences = [message.sequence for message in self._unapplied]
        assert sequences == sorted(set(sequences)), sequences
        for (account, function), stock in self._reserved.items():
            assert stock.pool == reserved(account, function), str(stock.pool)
            assert not stock.gone, f"{stock.pool} is gone and still has requests routed to it"
