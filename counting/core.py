"""The leader's volatile side of counting: who waits, who is silent, which round runs, what is proposed next.

The ledger (replicated) says who holds what; this core decides what to ask of it and when. It proposes one batch at
a time: what arrives meanwhile goes into the next one, so that load makes batches larger rather than more, and a
commit shows exactly the ledger that our own decisions saw. Everything here is lost with leadership and rebuilt from
streams (rule 10). Refuses to know protobuf, streams, Raft's insides, clocks.
"""

from dataclasses import dataclass, field
from typing import assert_never

from counting import commands as c
from counting import messages as m
from counting.desk import Desk, Round, top_up
from counting.fencing import Fencing
from counting.ledger import Ledger
from counting.words import Incarnation, Pool, Session, reserved, unreserved

COMMANDS_MAX = 1000
"""Most commands of one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Spans of the rules, in seconds."""

    suspect_s: float = 3.0        # a silent frontend's blocks are fenced (rule 6)
    recall_s: float = 0.5         # a holder that hasn't answered a recall by then is silent (rule 4)
    put_s: float = 10.0           # a change of limits answers by then, whoever is outstanding (rule 9)
    authority_s: float = 120.0    # a worker's start authority (rule 7)
    grace_s: float = 30.0         # a worker's shutdown grace on top of its longest timeout
    drift: float = 0.01           # bound of clock drift, as a share

    def __post_init__(self) -> None:
        assert self.recall_s < self.suspect_s < self.authority_s, self

    def evict_after_s(self, timeout_cap_s: float) -> float:
        return (self.authority_s + timeout_cap_s + self.grace_s) * (1 + self.drift)


@dataclass(slots=True, kw_only=True)
class Binding:
    """A change of limits that isn't everywhere yet. `call` None: answered already, or nobody waits for it."""

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

    def add(self, command: c.Command, origin: m.Event | None = None) -> None:
        self.commands.append(command)
        self.origins.append(origin)

    def split(self) -> tuple["Gathering", "Gathering"]:
        """What the next batch takes, and what is left for the one after it: an entry's size is bounded."""
        first = Gathering(
            commands=self.commands[:COMMANDS_MAX], origins=self.origins[:COMMANDS_MAX], reads=self.reads,
            renewals=self.renewals,
        )
        return first, Gathering(commands=self.commands[COMMANDS_MAX:], origins=self.origins[COMMANDS_MAX:])

    def __bool__(self) -> bool:
        return bool(self.commands or self.reads or self.renewals)


class CountingCore:
    """One member's core. A follower's only remembers who said hello, so that it can welcome them when it leads."""

    def __init__(self, ledger: Ledger, timing: Timing) -> None:
        self.ledger = ledger
        self.term = 0
        self.index = 0
        self.desks: dict[Pool, Desk] = {}
        self._timing = timing
        self._hint = ""
        self._leading = False
        self._hellos: dict[int, m.Hello] = {}
        self._joins: dict[int, m.Join] = {}
        self._forget_leadership()

    def _forget_leadership(self) -> None:
        self.desks = {}
        self._busy: dict[Pool, Desk] = {}            # desks where somebody waits, a round runs or a top-up is wished
        self._wake: float | None = None
        self._sessions: dict[int, Session] = {}      # link -> session
        self._links: dict[Session, int] = {}
        self._workers: dict[int, Incarnation] = {}   # link -> member
        self._heard: dict[Session, float] = {}
        self._fencing = Fencing()
        self._bindings: list[Binding] = []
        self._gathering = Gathering()
        self._in_flight: tuple[int, Gathering] | None = None
        self._number = 0
        self._rounds = 0
        self._flushing = False
        self._effects: list[m.Effect] = []

    # ------------------------------------------------------------ the one way in

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        self._effects = []
        if self._leading or isinstance(event, m.Led | m.Deposed):
            self._lead(event, now)
        else:
            self._follow(event)
        if self._leading:
            self._advance(now)
        return self._effects

    def _follow(self, event: m.Event) -> None:
        """A follower answers every opening message and every call with who leads; the rest is for another member."""
        match event:
            case m.Hello(link=link):
                self._hellos[link] = event
                self._do(m.SendNotLeader(link=link, term=self.term, hint=self._hint, cause=event.cause))
            case m.Join(link=link):
                self._joins[link] = event
                self._do(m.SendNotLeader(link=link, term=self.term, hint=self._hint, cause=event.cause))
            case m.SetReservedCall(call=call) | m.SetAccountLimitCall(call=call) | m.ReadCall(call=call):
                self._do(m.AnswerNotLeader(call=call, term=self.term, hint=self._hint, cause=event.cause))
            case m.LinkLost(link=link):
                self._lose(link)
            case _:
                pass  # a message for a leader that we no longer are: its sender hears NotLeader and sends it again

    def _lead(self, event: m.Event, now: float) -> None:
        match event:
            case m.Led() | m.Deposed():
                self._change_leadership(event, now)
            case m.Committed():
                self._committed(event, now)
            case m.Flush():
                self._flush(event)
            case m.Tick():
                self._tick(now)
            case m.SetReservedCall(account=account, function=function, value=value):
                self._gathering.add(c.SetReserved(account=account, function=function, value=value), event)
            case m.SetAccountLimitCall(account=account, limit=limit):
                self._gathering.add(c.SetAccountLimit(account=account, limit=limit), event)
            case m.ReadCall(call=call):
                self._gathering.reads.append(call)
            case m.LinkLost(link=link):
                self._lose(link)
            case m.Join() | m.Renew() | m.FenceAcked() | m.Ended() | m.Leave():
                self._worker(event, now)
            case _:
                self._frontend(event, now)

    def _change_leadership(self, event: m.Led | m.Deposed, now: float) -> None:
        self.term = event.term
        calls = [b.call for b in self._bindings] + self._waiting_calls()
        self._forget_leadership()
        self._leading = isinstance(event, m.Led)
        if isinstance(event, m.Led):
            self._hint = ""
            self._heard = dict.fromkeys((s for s in self.ledger.sessions if self.ledger.is_live(s)), now)
            members = {Incarnation(host=h, nonce=x.nonce) for h, x in self.ledger.members.items()}
            self._fencing.answered = dict.fromkeys(members, now)
            for hello in list(self._hellos.values()):
                self._hello(hello, now)
            for join in list(self._joins.values()):
                self._worker(join, now)
            return
        self._hint = event.hint
        for call in calls:
            self._do(m.AnswerNotLeader(call=call, term=event.term, hint=event.hint, cause=event.cause))
        for link in sorted({*self._hellos, *self._joins}):
            self._do(m.SendNotLeader(link=link, term=event.term, hint=event.hint, cause=event.cause))

    def _waiting_calls(self) -> list[int]:
        gatherings = [self._gathering] + ([self._in_flight[1]] if self._in_flight else [])
        calls = [call for gathering in gatherings for call in gathering.reads]
        return calls + [
            origin.call for gathering in gatherings for origin in gathering.origins
            if isinstance(origin, m.SetReservedCall | m.SetAccountLimitCall)
        ]

    def _lose(self, link: int) -> None:
        self._hellos.pop(link, None)
        self._joins.pop(link, None)
        self._workers.pop(link, None)
        session = self._sessions.pop(link, None)
        if session is not None and self._links.get(session) == link:
            del self._links[session]

    def _do(self, effect: m.Effect) -> None:
        self._effects.append(effect)

    # ------------------------------------------------------------ frontends

    def _frontend(self, event: m.Event, now: float) -> None:
        if isinstance(event, m.Hello):
            self._hellos[event.link] = event
            self._hello(event, now)
            return
        assert isinstance(
            event, m.Ask | m.GaveBack | m.RecallAnswered | m.GenerationAcked | m.Heartbeat | m.Goodbye
        ), event
        session = self._sessions.get(event.link)
        if session is None:
            return  # its hello is still on its way through the log, or it was told that its session is fenced
        if not self.ledger.is_live(session):
            self._do(m.SendFenced(link=event.link, cause=event.cause))
            return
        self._heard[session] = now
        match event:
            case m.Heartbeat():
                pass
            case m.Ask():
                self._ask(session, event, now)
            case m.RecallAnswered():
                self._recall_answered(session, event)
            case m.GaveBack(sequence=sequence, pool=pool, count=count, function=function):
                self._gathering.add(
                    c.GiveBack(session=session, sequence=sequence, pool=pool, count=count, function=function), event
                )
            case m.GenerationAcked(sequence=sequence, pool=pool, generation=generation, moved=moved):
                self._gathering.add(
                    c.AckGeneration(
                        session=session, sequence=sequence, pool=pool, generation=generation, moved=moved
                    ),
                    event,
                )
            case m.Goodbye(sequence=sequence):
                self._gathering.add(c.CloseSession(session=session, sequence=sequence), event)
            case _:
                assert_never(event)

    def _hello(self, hello: m.Hello, now: float) -> None:
        live = self.ledger.live(hello.frontend, hello.nonce)
        if live is not None:
            self._welcome(hello, live, now)
        elif hello.epoch:
            self._do(m.SendFenced(link=hello.link, cause=hello.cause))
        else:
            self._gathering.add(c.OpenSession(frontend=hello.frontend, nonce=hello.nonce), hello)

    def _welcome(self, hello: m.Hello, session: Session, now: float) -> None:
        """The session's truth: limits first, then the size of each block, which makes up for grants lost on the way."""
        link = hello.link
        self._sessions[link] = session
        self._links[session] = link
        self._heard[session] = now
        record = self.ledger.sessions[session]
        self._do(m.SendWelcome(link=link, session=session, applied=record.applied, cause=hello.cause))
        for pool in self.ledger.pools():
            if pool in record.blocks or self.ledger.exists(pool):
                self._send_generation(link, pool, hello.cause)
        for pool, block in record.blocks.items():
            self._do(m.SendGrant(
                link=link, pool=pool, generation=block.generation, count=0, applied=record.applied, size=block.size,
                cause=hello.cause,
            ))
        for holding in hello.holdings:
            self._desk(holding.pool).in_use[session] = holding.in_use
        for desk in self.desks.values():
            if desk.round is not None and session in desk.round.pending:
                self._do(m.SendRecall(link=link, round=desk.round.number, pool=desk.pool, cause=hello.cause))

    def _send_generation(self, link: int, pool: Pool, cause: str) -> None:
        ledger = self.ledger
        self._do(m.SendGeneration(
            link=link, pool=pool, generation=ledger.generation(pool), limit=ledger.limit(pool),
            gone=not ledger.exists(pool), cause=cause,
        ))

    def _desk(self, pool: Pool) -> Desk:
        desk = self.desks.get(pool)
        if desk is None:
            desk = self.desks[pool] = Desk(pool=pool)
        return desk

    def _ask(self, session: Session, event: m.Ask, now: float) -> None:
        """A wish under an older generation is refused: its sender learns the newer one and wishes again (rule 9)."""
        pool = event.pool
        if event.generation != self.ledger.generation(pool) or not self.ledger.exists(pool):
            if pool in self.desks:
                self.desks[pool].ask(session, (), 0, 0, now)
            self._send_generation(event.link, pool, event.cause)
            return
        desk = self._busy[pool] = self._desk(pool)
        desk.ask(session, event.waiting, event.spare, event.seen, now)

    def _recall_answered(self, session: Session, event: m.RecallAnswered) -> None:
        desk = self._desk(event.pool)
        desk.in_use[session] = event.in_use
        turn = desk.round
        if turn is not None and turn.number == event.round:
            turn.pending.discard(session)
            turn.found |= event.given_back > 0

    # ------------------------------------------------------------ workers

    def _worker(self, event: m.Join | m.Renew | m.FenceAcked | m.Ended | m.Leave, now: float) -> None:
        if isinstance(event, m.Join):
            self._joins[event.link] = event
            self._gathering.add(
                c.JoinWorker(incarnation=event.incarnation, timeout_cap_s=event.timeout_cap_s), event
            )
            return
        incarnation = self._workers.get(event.link)
        if incarnation is None:
            return  # not joined on this leader yet: it repeats what matters after the fence table
        match event:
            case m.Renew():
                self._gathering.renewals.append(event)
            case m.FenceAcked(session=session, runs=runs):
                self._fencing.report(session, incarnation, runs)
            case m.Ended(session=session, pool=pool, invocation=invocation):
                self._fencing.ended(session, pool, invocation, incarnation)
                self._gathering.add(
                    c.EndOfInvocation(session=session, pool=pool, invocation=invocation, incarnation=incarnation),
                    event,
                )
            case m.Leave():
                self._gathering.add(c.LeaveWorker(incarnation=incarnation), event)
            case _:
                assert_never(event)

    def _joined(self, event: m.Join, now: float) -> None:
        self._workers[event.link] = event.incarnation
        self._fencing.answered[event.incarnation] = now
        marks = tuple(Session(frontend=f, epoch=e) for f, e in sorted(self.ledger.fences.items()))
        self._do(m.SendJoined(link=event.link, watermarks=marks, cause=event.cause))
        for session, record in self.ledger.sessions.items():
            if event.incarnation in record.need:
                self._do(m.SendFence(link=event.link, session=session, cause=event.cause))

    def _fence_everywhere(self, session: Session, cause: str) -> None:
        self._heard.pop(session, None)
        for desk in self.desks.values():
            desk.drop(session)
        link = self._links.pop(session, None)
        if link is not None:
            self._do(m.SendFenced(link=link, cause=cause))
        for worker in self._workers:
            self._do(m.SendFence(link=worker, session=session, cause=cause))

    def _count_reported(self) -> None:
        for session, record in self.ledger.sessions.items():
            if not self.ledger.is_draining(session) or session in self._fencing.counting:
                continue
            if not self._fencing.complete(session, record.need):
                continue
            self._fencing.counting.add(session)
            self._gathering.add(c.CountBlocks(session=session, runs=self._fencing.runs(session)))

    # ------------------------------------------------------------ batches

    def _flush(self, event: m.Flush) -> None:
        self._flushing = False
        if self._in_flight is not None:
            return
        self._number += 1
        gathering, self._gathering = self._gathering.split()
        for desk in self._busy.values():
            self._acquire(desk, gathering)
            turn = desk.round
            # A round closes by a batch that holds every give-back that came before its last answer.
            if turn is not None and not turn.pending and turn.closing is None and not self._gathering:
                turn.closing = self._number
        self._in_flight = (self._number, gathering)
        batch = c.Batch(stamp=event.wall, number=self._number, commands=tuple(gathering.commands))
        self._do(m.Propose(batch=batch, cause=event.cause))

    def _acquire(self, desk: Desk, gathering: Gathering) -> None:
        """All who wait, oldest first; top-ups only beyond them. The ledger grants what is free when it applies."""
        pool, ledger = desk.pool, self.ledger
        generation, free = ledger.generation(pool), ledger.free(pool)
        waiting = desk.wishes()
        comes_back = any(isinstance(x, c.GiveBack) and x.pool.account == pool.account for x in gathering.commands)
        spare = self._top_ups(desk, free - len(desk.waiters))
        if not (waiting and (free > 0 or comes_back)) and not spare:
            return
        wishes = [
            c.Wish(session=session, pool=pool, generation=generation, waiting=count, spare=spare.pop(session, 0))
            for session, count in waiting
        ]
        wishes += [
            c.Wish(session=session, pool=pool, generation=generation, waiting=0, spare=count)
            for session, count in spare.items()
        ]
        gathering.add(c.Acquire(wishes=tuple(wishes)))

    def _committed(self, event: m.Committed, now: float) -> None:
        if self._in_flight is None or self._in_flight[0] != event.batch.number:
            return  # a batch of an earlier leadership of ours, applied late: the ledger has it, nobody waits for it
        _, gathering = self._in_flight
        self._in_flight = None
        self.index = event.index
        for origin, result in zip(gathering.origins, event.results, strict=True):
            self._result(origin, result, now)
        for renewal in gathering.renewals:
            self._renew(renewal, now)
        for call in gathering.reads:
            self._do(m.AnswerRead(call=call, cause=event.cause))
        for desk in self._busy.values():
            if desk.round is not None and desk.round.closing == event.batch.number:
                self._close_round(desk, desk.round)

    def _renew(self, renewal: m.Renew, now: float) -> None:
        """A quorum confirmed us since the renewal arrived, so no eviction by another leader overtook it (rule 7)."""
        incarnation = self._workers.get(renewal.link)
        if incarnation is None or not self.ledger.is_member(incarnation):
            self._do(m.SendEvicted(link=renewal.link, cause=renewal.cause))
            return
        self._fencing.answered[incarnation] = now
        self._do(m.SendRenewed(
            link=renewal.link, number=renewal.number, authority_s=self._timing.authority_s, cause=renewal.cause
        ))

    def _result(self, origin: m.Event | None, result: c.Result, now: float) -> None:  # noqa: C901 - one case per result
        cause = origin.cause if origin is not None else ""
        match result:
            case c.AcquireDone():
                self._granted(result, now)
            case c.Opened(session=session, replaced=replaced):
                if replaced is not None:
                    self._fence_everywhere(replaced, f"replaced by {session}")
                if isinstance(origin, m.Hello) and self._hellos.get(origin.link) is origin:
                    self._welcome(origin, session, now)
            case c.Drained(session=session, changed=changed):
                if changed:
                    self._fence_everywhere(session, "silent")
            case c.Counted(session=session):
                self._fencing.forget(session)
            case c.Fenced(session=session):
                link = self._links.get(session)
                if link is not None:
                    self._do(m.SendFenced(link=link, cause=cause))
            case c.SequenceGap(session=session, applied=applied):
                link = self._links.get(session)
                if link is not None:
                    self._do(m.SendWelcome(link=link, session=session, applied=applied, cause=cause))
            case c.ReservedSet():
                self._limit_set(origin, result, now)
            case c.BelowFloor(account_limit=limit, reserved_elsewhere=elsewhere, floor=floor):
                if isinstance(origin, m.SetReservedCall | m.SetAccountLimitCall):
                    self._do(m.AnswerBelowFloor(
                        call=origin.call, account_limit=limit, reserved_elsewhere=elsewhere, floor=floor, cause=cause
                    ))
            case c.MemberGone():
                if isinstance(origin, m.Join):
                    self._do(m.SendEvicted(link=origin.link, cause=cause))
            case c.Done():
                self._done(origin, now)
            case _:
                assert_never(result)

    def _done(self, origin: m.Event | None, now: float) -> None:
        match origin:
            case m.Join():
                if origin.link in self._joins:
                    self._joined(origin, now)
            case m.GaveBack(pool=pool) if pool in self.desks:
                self._busy[pool] = self.desks[pool]  # there may be room now for a top-up that was wished before
            case m.Ended(link=link, invocation=invocation):
                self._do(m.SendEndApplied(link=link, invocation=invocation, cause=origin.cause))
            case m.Goodbye(link=link):
                session = self._sessions.get(link)
                if session is not None and not self.ledger.is_live(session):
                    self._fence_everywhere(session, origin.cause)
            case _:
                pass

    def _granted(self, result: c.AcquireDone, now: float) -> None:
        for grant in result.grants:
            desk = self._desk(grant.pool)
            desk.serve(grant.session, grant.waiting, self.index, now)
            if grant.spare:
                desk.spare[grant.session] = 0  # one top-up per wish
            link = self._links.get(grant.session)
            if link is not None:
                self._do(m.SendGrant(
                    link=link, pool=grant.pool, generation=grant.generation, count=grant.waiting + grant.spare,
                    applied=grant.applied, size=grant.size,
                ))
        for wish in result.stale:
            self._desk(wish.pool).ask(wish.session, (), 0, 0, now)
            link = self._links.get(wish.session)
            if link is not None:
                self._send_generation(link, wish.pool, "stale")

    # ------------------------------------------------------------ limits (rule 9)

    def _limit_set(self, origin: m.Event | None, result: c.ReservedSet, now: float) -> None:
        pools = [unreserved(result.account)]
        if result.function:
            pools.append(reserved(result.account, result.function))
        if result.changed:
            for link in self._links.values():
                for pool in pools:
                    self._send_generation(link, pool, origin.cause if origin else "")
        if isinstance(origin, m.SetReservedCall | m.SetAccountLimitCall):
            self._bindings.append(Binding(
                call=origin.call, pools=tuple(pools), generation=result.generation, changed=result.changed,
                deadline=now + self._timing.put_s,
            ))

    def _answer_bound(self, now: float) -> None:
        waiting: list[Binding] = []
        for binding in self._bindings:
            late = {s: None for pool in binding.pools for s in self.ledger.outstanding(pool)}
            if late and now < binding.deadline:
                waiting.append(binding)
                continue
            # What a silent holder runs ends by its workers' longest timeout, or with their eviction.
            cap = max((x.timeout_cap_s for x in self.ledger.members.values()), default=0.0)
            until = self._timing.evict_after_s(cap)
            self._do(m.AnswerLimit(
                call=binding.call, generation=binding.generation, changed=binding.changed,
                outstanding=tuple(m.Outstanding(node=s.frontend, wait_s=until) for s in late),
            ))
        self._bindings = waiting

    # ------------------------------------------------------------ rounds (rule 4)

    def _begin_rounds(self, now: float) -> None:
        """Only between batches: a grant that is on its way through the log must reach its holder before the recall."""
        for desk in self._busy.values():
            if not desk.waiters or desk.round is not None or self.ledger.free(desk.pool) > 0:
                continue
            self._rounds += 1
            # The term makes the number one that no other leader uses, ever.
            number = (self.term << 32) | self._rounds
            holders = self.ledger.holders(desk.pool)
            desk.begin(number, holders, now + self._timing.recall_s)
            for session in holders:
                link = self._links.get(session)
                if link is not None:
                    self._do(m.SendRecall(link=link, round=number, pool=desk.pool, cause=f"round {number}"))

    def _close_round(self, desk: Desk, turn: Round) -> None:
        """Everybody answered, their give-backs are applied, and a quorum confirmed us after that."""
        desk.round = None
        ledger, pool = self.ledger, desk.pool
        if turn.found or ledger.free(pool) > 0:
            return  # something came back: it goes to the oldest, and who still waits gets a round of their own
        draining = ledger.draining(pool)
        if draining:
            silent = tuple(dict.fromkeys(s.frontend for s in draining))
            self._refuse_unproven(desk, turn, "a frontend that is gone holds permits not yet counted", silent)
        elif ledger.precautionary(pool):
            self._refuse_unproven(desk, turn, "a change of limits isn't acknowledged everywhere yet", ())
        else:
            for session, ids in desk.refuse(turn.bound).items():
                desk.throttled += len(ids)
                link = self._links.get(session)
                if link is not None:
                    self._do(m.SendThrottled(
                        link=link, pool=pool, waiting=ids, limit=ledger.limit(pool), in_use=ledger.charge(pool),
                        round=turn.number, cause=f"round {turn.number}",
                    ))

    def _refuse_unproven(self, desk: Desk, turn: Round, reason: str, silent: tuple[str, ...]) -> None:
        for session, ids in desk.refuse(turn.bound).items():
            link = self._links.get(session)
            if link is not None:
                self._do(m.SendUnavailable(
                    link=link, pool=desk.pool, waiting=ids, reason=reason, silent=silent, cause=f"round {turn.number}"
                ))

    # ------------------------------------------------------------ time

    def _tick(self, now: float) -> None:
        timing = self._timing
        self._wake = None
        for desk in self._busy.values():
            turn = desk.round
            if turn is not None and turn.pending and turn.deadline <= now:
                desk.round = None
                silent = tuple(sorted(s.frontend for s in turn.pending))
                self._refuse_unproven(desk, turn, "a frontend that holds permits doesn't answer", silent)
        for session, heard in list(self._heard.items()):
            if heard + timing.suspect_s <= now:
                del self._heard[session]
                self._gathering.add(c.MarkDraining(session=session))
        for incarnation, answered in list(self._fencing.answered.items()):
            member = self.ledger.members.get(incarnation.host)
            if member is None or member.nonce != incarnation.nonce:
                del self._fencing.answered[incarnation]
            elif answered + timing.evict_after_s(member.timeout_cap_s) <= now:
                del self._fencing.answered[incarnation]
                self._gathering.add(c.EvictWorker(incarnation=incarnation))

    def _advance(self, now: float) -> None:
        """After every event: what follows from where we are now."""
        self._answer_bound(now)
        self._count_reported()
        if self._in_flight is None:
            self._begin_rounds(now)
            if not self._flushing and self._has_work():
                self._flushing = True
                self._do(m.FlushSoon())
        wake = self._next_wake()
        if wake is not None and (self._wake is None or wake < self._wake):
            self._wake = wake
            self._do(m.WakeAt(at=wake))

    def _has_work(self) -> bool:
        """Whether a batch would do anything. Desks where nothing is left to do leave the busy ones here."""
        work = bool(self._gathering)
        for pool, desk in list(self._busy.items()):
            free = self.ledger.free(pool)
            turn = desk.round
            closes = turn is not None and not turn.pending and turn.closing is None
            if closes or (desk.waiters and free > 0) or self._top_ups(desk, free - len(desk.waiters)):
                work = True
            elif not desk.waiters and turn is None:
                del self._busy[pool]
        return work

    def _top_ups(self, desk: Desk, free: int) -> dict[Session, int]:
        limit, sessions = self.ledger.limit(desk.pool), len(self._heard)
        if free <= 0:
            return {}
        wanted = {s: top_up(spare=n, free=free, limit=limit, sessions=sessions) for s, n in desk.spare.items()}
        return {session: count for session, count in wanted.items() if count > 0}

    def _next_wake(self) -> float | None:
        timing = self._timing
        times = [desk.round.deadline for desk in self._busy.values() if desk.round is not None and desk.round.pending]
        times += [heard + timing.suspect_s for heard in self._heard.values()]
        times += [binding.deadline for binding in self._bindings]
        for incarnation, answered in self._fencing.answered.items():
            member = self.ledger.members.get(incarnation.host)
            times.append(answered + (timing.evict_after_s(member.timeout_cap_s) if member else 0.0))
        return min(times, default=None)

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        self.ledger.check()
        for desk in self.desks.values():
            desk.check()
        for session, link in self._links.items():
            assert self._sessions[link] == session, (session, link)
