"""Random walks: two frontends' cores against a small ledger, messages delayed and reordered between streams.

The ledger here models the promises that counting makes, it is not its code: sizes within the limit, (session, sequence)
applied once, generations, fences. What must hold: nobody runs without a permit that the ledger counts.
"""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontend import messages as m
from frontend.core import FrontendCore, Session, Timing
from frontend.permits import Block, unreserved

POOL = unreserved("acct")


@dataclass
class Home:
    """One frontend: its core, its stream, and what runs."""

    core: FrontendCore
    link: int
    up: deque = field(default_factory=deque)      # to the ledger
    down: deque = field(default_factory=deque)    # from the ledger
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


class Walk(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 6))
    def begin(self, limit):
        self.limit, self.generation, self.index, self.term, self.round = limit, 0, 0, 1, 0
        self.now = 0.0
        self.homes = [Home(FrontendCore(Timing()), link) for link in (1, 2)]
        self.sessions: dict[tuple[int, int], Account] = {}
        self.epochs = [0, 0]
        for home in range(2):
            self.feed(home, m.LinkUp(link=self.homes[home].link))

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

    @rule(number=st.integers(0, 1))
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

    @rule(number=st.integers(0, 1), pick=st.integers(0, 100))
    def end(self, number, pick):
        home = self.homes[number]
        if home.running:
            block = home.running.pop(pick % len(home.running))
            block.give("f")
            if block.watched:
                self.feed(number, m.Freed(
                    pool=POOL, epoch=block.epoch, generation=block.generation, function="f"
                ))

    @rule(number=st.integers(0, 1), request=st.integers(1, 20))
    def waiter_gone(self, number, request):
        self.feed(number, m.WaiterGone(request=request))

    @rule(number=st.integers(0, 1))
    def flush(self, number):
        self.feed(number, m.Flush())

    @rule(number=st.integers(0, 1), later=st.floats(0.1, 1.5))
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

    @precondition(lambda self: any(home.up for home in self.homes))
    @rule(number=st.integers(0, 1))
    def ledger_hears(self, number):
        home = self.homes[number]
        if not home.up:
            return
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

    @rule(number=st.integers(0, 1), spare=st.booleans())
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

    @rule(number=st.integers(0, 1))
    def ledger_recalls(self, number):
        self.round += 1
        self.send(number, m.Recalled(
            link=self.homes[number].link, stamp=self.stamp(), round=self.round, pool=POOL
        ))

    @rule(number=st.integers(0, 1))
    def ledger_refuses(self, number):
        session = self.session(number)
        if session is not None and session.live and session.waiting:
            self.send(number, m.Throttled(
                link=self.homes[number].link, stamp=self.stamp(), pool=POOL, waiting=session.waiting, limit=self.limit,
                in_use=self.limit, round=self.round,
            ))
            session.waiting = ()

    @rule(limit=st.integers(0, 6))
    def limit_changes(self, limit):
        self.limit = limit
        self.generation += 1
        self.index += 1
        for number in range(2):
            session = self.session(number)
            if session is not None and session.live:
                session.waiting = ()
                self.tell_generation(number)

    @rule(number=st.integers(0, 1))
    def session_fenced(self, number):
        session = self.session(number)
        if session is not None:
            session.live = False
            self.send(number, m.Fenced(link=self.homes[number].link, stamp=self.stamp()))

    @rule()
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

    @precondition(lambda self: any(home.down for home in self.homes))
    @rule(number=st.integers(0, 1))
    def frontend_hears(self, number):
        home = self.homes[number]
        if home.down:
            self.feed(number, home.down.popleft())

    # ------------------------------------------------------------ what must hold

    @invariant()
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


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
