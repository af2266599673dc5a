"""Random walks: two frontends' cores against a small ledger, messages delayed and reordered between streams.

The ledger here models the promises that counting makes, it is not its code: sizes within the limit, (session, sequence)
applied once, generations, fences. What must hold: nobody runs without a permit that the ledger counts.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from frontend import messages as m
from frontend.core import FrontendCore, Session, Timing
from frontend.permits import Block, unreserved

POOL = unreserved("acct")


@dataclass
class Home:
    """One frontend: its core, its stream, and what runs."""

    core: FrontendCore
    link: int
    up: deque[Any] = field(default_factory=deque)      # to the ledger
    down: deque[Any] = field(default_factory=deque)    # from the ledger
    running: list[Block] = field(default_factory=list)
    requests: int = 0
    admitted: int = 0


@dataclass
class Account:
    """A session at the ledger."""

    live: bool = True
    size: int = 0
    applied: int = 0
    generation: int = 0
    waiting: tuple[int, ...] = ()
    spare: int = 0


class Walk:
    def __init__(self, rng, limit):
        self.rng = rng
        self.limit, self.generation, self.index, self.term, self.round = limit, 0, 0, 1, 0
        self.now = 0.0
        self.homes = [Home(FrontendCore(Timing()), link) for link in (1, 2)]
        self.sessions: dict[tuple[int, int], Account] = {}
        self.epochs = [0, 0]
        for home in range(2):
            self.feed(home, m.LinkUp(link=self.homes[home].link))
            self.hear(home)
            self.frontend_hears(home, 6)

    # ------------------------------------------------------------ frontends

    def feed(self, number, event):
        home = self.homes[number]
        self.now += 0.01
        for effect in home.core.handle(event, self.now):
            match effect:
                case m.Admit():
                    home.running.append(home.core.stocks[effect.pool].block)
                    home.admitted += 1
                case m.FlushSoon() | m.Refuse():
                    pass
                case _:
                    home.up.append((self.term, effect))
        home.core.check()

    def request(self, number):
        home = self.homes[number]
        block = home.core.block_for("acct", "f")
        if block is not None and block.try_take("f"):
            home.running.append(block)
            home.admitted += 1
            if block.in_use >= block.mark:
                self.feed(number, m.Low(pool=POOL))
            return
        home.requests += 1
        self.feed(number, m.Wanted(request=home.requests, account="acct", function="f", deadline=self.now + 3))
        self.feed(number, m.Flush())

    def end(self, number, pick):
        home = self.homes[number]
        if home.running:
            block = home.running.pop(pick % len(home.running))
            block.give("f")
            session = self.sessions[number, block.epoch]
            if not session.live:
                session.size = max(0, session.size - 1)  # the worker's END goes to the ledger
            if block.watched:
                self.feed(number, m.Freed(
                    pool=POOL, epoch=block.epoch, generation=block.generation, function="f"
                ))

    def waiter_gone(self, number, request):
        self.feed(number, m.WaiterGone(request=request))

    def tick(self, number, later):
        self.now += later
        self.feed(number, m.Tick())

    # ------------------------------------------------------------ the ledger

    def stamp(self):
        return (self.term, self.index)

    def send(self, number, event):
        self.homes[number].down.append(event)

    def session(self, number):
        return self.sessions.get((number, self.epochs[number]))

    def ledger_hears(self, number, most):
        for _ in range(min(most, len(self.homes[number].up))):
            self.hear(number)

    def hear(self, number):
        home = self.homes[number]
        term, message = home.up.popleft()
        if term != self.term:
            return  # said to a leader that is no more
        link, session = home.link, self.session(number)
        if isinstance(message, m.SayHello):
            self.hello(number, message)
            return
        if session is None or not session.live:
            self.send(number, m.Fenced(link=link, stamp=self.stamp()))
            return
        match message:
            case m.Ask():
                if message.generation == self.generation:
                    session.waiting, session.spare = message.waiting, message.spare
                else:
                    self.tell_generation(number)
            case m.GiveBack() | m.AcknowledgeGeneration():
                self.in_sequence(number, session, message)
            case m.AnswerRecall():
                assert message.in_use <= session.size, (message, session)

    def in_sequence(self, number, session, message):
        if message.sequence <= session.applied:
            return
        assert message.sequence == session.applied + 1, (message, session)
        session.applied += 1
        self.index += 1
        if isinstance(message, m.GiveBack):
            assert message.count <= session.size, (message, session)
            session.size -= message.count
        elif message.generation == self.generation:
            session.generation = message.generation

    def hello(self, number, message):
        session = self.session(number)
        if session is None or not session.live:
            if message.epoch:
                self.send(number, m.Fenced(link=self.homes[number].link, stamp=self.stamp()))
                return
            self.epochs[number] += 1
            session = self.sessions[number, self.epochs[number]] = Account(generation=self.generation)
        self.send(number, m.Welcomed(
            link=self.homes[number].link, stamp=self.stamp(), epoch=self.epochs[number], applied=session.applied
        ))
        self.tell_generation(number)
        if session.size:
            self.grant(number, session, 0)

    def tell_generation(self, number):
        self.send(number, m.GenerationChanged(
            link=self.homes[number].link, stamp=self.stamp(), pool=POOL, generation=self.generation, limit=self.limit
        ))

    def granted(self):
        return sum(session.size for session in self.sessions.values())

    def grant(self, number, session, count):
        session.size += count
        self.index += 1
        self.send(number, m.Granted(
            link=self.homes[number].link, stamp=self.stamp(), pool=POOL, generation=session.generation, count=count,
            applied=session.applied, size=session.size,
        ))

    def ledger_grants(self, number, spare):
        session = self.session(number)
        if session is None or not session.live or (session.generation != self.generation and session.size):
            return
        session.generation = self.generation
        wanted = len(session.waiting) + (session.spare if spare else 0)
        count = min(wanted, self.limit - self.granted())
        if count > 0:
            session.waiting = session.waiting[count:]
            self.grant(number, session, count)

    def ledger_recalls(self, number):
        self.round += 1
        self.send(number, m.Recalled(
            link=self.homes[number].link, stamp=self.stamp(), round=self.round, pool=POOL
        ))

    def ledger_refuses(self, number):
        session = self.session(number)
        if session is not None and session.live and session.waiting:
            self.send(number, m.Throttled(
                link=self.homes[number].link, stamp=self.stamp(), pool=POOL, waiting=session.waiting, limit=self.limit,
                in_use=self.limit, round=self.round,
            ))
            session.waiting = ()

    def limit_changes(self, limit):
        self.limit = limit
        self.generation += 1
        self.index += 1
        for number in range(2):
            session = self.session(number)
            if session is not None and session.live:
                session.waiting = ()
                self.tell_generation(number)

    def session_fenced(self, number):
        session = self.session(number)
        if session is not None:
            session.live = False
            # Every worker reported: the block keeps what runs.
            session.size = sum(block.epoch == self.epochs[number] for block in self.homes[number].running)
            self.send(number, m.Fenced(link=self.homes[number].link, stamp=self.stamp()))

    def leader_changes(self):
        """Streams break: what was on its way is lost, and the new leader knows the ledger and nothing else."""
        self.term += 1
        for number, home in enumerate(self.homes):
            home.up.clear()
            home.down.clear()
            self.feed(number, m.LinkDown(link=home.link))
            home.link += 10
            for (owner, _), session in self.sessions.items():
                if owner == number:
                    session.waiting, session.spare = (), 0
            self.feed(number, m.LinkUp(link=home.link))

    def frontend_hears(self, number, most):
        home = self.homes[number]
        for _ in range(min(most, len(home.down))):
            self.feed(number, home.down.popleft())
        self.feed(number, m.Flush())

    # ------------------------------------------------------------ what must hold

    def nothing_runs_without_a_permit(self):
        """Invariant 1 where this side answers for it: held here, or on its way here, is within the ledger's size."""
        for number, home in enumerate(self.homes):
            core = home.core
            session = self.sessions.get((number, core.epoch))
            if session is None:
                continue
            on_their_way = sum(
                message.count for message in core._unapplied
                if isinstance(message, m.GiveBack) and message.sequence > session.applied
            )
            held = sum(stock.held for stock in core.stocks.values())
            if session.live:
                assert held + on_their_way <= session.size, (held, on_their_way, session)
            mine = [block for block in home.running if block.epoch == core.epoch]
            assert len(mine) == sum(stock.in_use for stock in core.stocks.values())
            assert core.state is not Session.CLOSED


    # ------------------------------------------------------------ the walk

    def step(self):
        rng = self.rng
        number = rng.randrange(2)
        moves: list[Callable[[], object]] = [
            lambda: self.request(number),
            lambda: self.end(number, rng.randrange(100)),
            lambda: self.waiter_gone(number, rng.randint(1, 40)),
            lambda: self.tick(number, rng.uniform(0.1, 1.5)),
            lambda: self.ledger_hears(number, rng.randint(1, 6)),
            lambda: self.ledger_grants(number, rng.random() < 0.5),
            lambda: self.frontend_hears(number, rng.randint(1, 6)),
            lambda: self.ledger_recalls(number),
            lambda: self.ledger_refuses(number),
            lambda: self.limit_changes(rng.randint(1, 6)),
            lambda: self.session_fenced(number),
            self.leader_changes,
        ]
        rng.choices(moves, WEIGHTS)[0]()
        self.nothing_runs_without_a_permit()


#          request end gone tick hears grants hears recall refuse limit fence leader
WEIGHTS = [20,     16, 1,   4,   20,   14,    20,   4,     1,     1,    0.4,  0.5]


@pytest.mark.parametrize("seed", range(40))
def test_no_walk_runs_anything_without_a_permit(seed):
    rng = random.Random(seed)
    walk = Walk(rng, rng.randint(1, 6))
    for _ in range(500):
        walk.step()
    assert sum(home.admitted for home in walk.homes) > 10, "a walk that admits nobody proves nothing"
