"""The leader's volatile side of counting: who waits, who is silent, which round runs, what is proposed next.

The ledger (replicated) says who holds what; this core decides what to ask of it and when. It proposes one batch at
a time: what arrives meanwhile goes into the next one, so that load makes batches larger rather than more, and a
commit shows exactly the ledger that our own decisions saw. Everything here is lost with leadership and rebuilt from
streams (rule 10). Refuses to know protobuf, streams, Raft's insides, clocks.
"""

from typing import assert_never

from counting import commands as c
from counting import frontends, limits, report, rounds, workers
from counting import messages as m
from counting.desk import Desk, Why
from counting.fencing import Ending, Proof
from counting.leadership import Leadership, Timing
from counting.ledger import Ledger
from counting.words import Incarnation, Pool


class CountingCore:
    """One member's core. A follower's only remembers who said hello, so that it can welcome them when it leads."""

    def __init__(self, ledger: Ledger, timing: Timing) -> None:
        self._own = Leadership(ledger=ledger, timing=timing)
        self._hint = ""
        self._leading = False
        self._hellos: dict[int, m.Hello] = {}
        self._joins: dict[int, m.Join] = {}

    @property
    def ledger(self) -> Ledger:
        return self._own.ledger

    @property
    def term(self) -> int:
        return self._own.term

    @property
    def index(self) -> int:
        """Of the newest entry that this leadership knows."""
        return self._own.index

    @property
    def leads(self) -> bool:
        return self._leading

    @property
    def proofs(self) -> report.ProofReport:
        """For operators: the rounds, fences and evictions of this leadership."""
        return report.proofs(self._own)

    @property
    def commands_waiting(self) -> int:
        """For the next batch."""
        return len(self._own.gathering.commands)

    @property
    def changes_outstanding(self) -> int:
        """Changes of limits whose callers wait until they bind everywhere."""
        return len(self._own.bindings)

    @property
    def desks(self) -> dict[Pool, Desk]:
        return self._own.desks

    def hosts(self, now: float) -> list[report.HostReport]:
        """For operators: every host that has a worker in the ledger, or had one that was declared dead."""
        return report.hosts(self._own, now)

    def report(self, account: str, now: float) -> list[report.PoolReport]:
        """For operators: every pool of an account, or of all."""
        return report.pools(self._own, account, now)

    @property
    def leads_since(self) -> float:
        """When this leadership began."""
        return self._own.since

    # ------------------------------------------------------------ the one way in

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        self._own.effects = []
        if self._leading or isinstance(event, m.Led | m.Deposed):
            self._lead(event, now)
        else:
            self._follow(event)
        if self._leading:
            self._advance(now)
        return self._own.effects

    def _follow(self, event: m.Event) -> None:
        """A follower answers every opening message and every call with who leads; the rest is for another member."""
        match event:
            case m.Hello(link=link):
                self._hellos[link] = event
                self._own.do(m.SendNotLeader(link=link, term=self._own.term, hint=self._hint, cause=event.cause))
            case m.Join(link=link):
                self._joins[link] = event
                self._own.do(m.SendNotLeader(link=link, term=self._own.term, hint=self._hint, cause=event.cause))
            case (
                m.SetReservedCall(call=call) | m.SetProvisionedCall(call=call) | m.SetAccountLimitCall(call=call)
                | m.DeclareDeadCall(call=call) | m.ReadCall(call=call)
            ):
                self._own.do(m.AnswerNotLeader(call=call, term=self._own.term, hint=self._hint, cause=event.cause))
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
            case m.SetReservedCall() | m.SetProvisionedCall() | m.SetAccountLimitCall():
                limits.ask(self._own, event)
            case m.DeclareDeadCall():
                workers.declare_dead(self._own, event)
            case m.ReadCall(call=call):
                self._own.gathering.reads.append(call)
            case m.LinkLost(link=link):
                self._lose(link)
            case m.Join() | m.Renew() | m.FenceAcked() | m.Ended() | m.Leave():
                if isinstance(event, m.Join):
                    self._joins[event.link] = event
                workers.handle(self._own, event, now)
            case m.Hello():
                self._hellos[event.link] = event
                frontends.hello(self._own, event, now)
            case _:
                frontends.handle(self._own, event, now)

    def _change_leadership(self, event: m.Led | m.Deposed, now: float) -> None:
        calls = [b.call for b in self._own.bindings] + self._waiting_calls()
        old = self._own
        self._own = Leadership(
            ledger=old.ledger, timing=old.timing, term=event.term, index=old.index, since=now,
            number=event.term << 32,
        )
        self._leading = isinstance(event, m.Led)
        if isinstance(event, m.Led):
            self._hint = ""
            self._own.heard = dict.fromkeys((s for s in self._own.ledger.sessions if self._own.ledger.is_live(s)), now)
            members = {Incarnation(host=h, nonce=x.nonce) for h, x in self._own.ledger.members.items()}
            self._own.fencing.answered = dict.fromkeys(members, now)
            for hello in list(self._hellos.values()):
                frontends.hello(self._own, hello, now)
            for join in list(self._joins.values()):
                workers.handle(self._own, join, now)
            return
        self._hint = event.hint
        for call in calls:
            self._own.do(m.AnswerNotLeader(call=call, term=event.term, hint=event.hint, cause=event.cause))
        for link in sorted({*self._hellos, *self._joins}):
            self._own.do(m.SendNotLeader(link=link, term=event.term, hint=event.hint, cause=event.cause))

    def _waiting_calls(self) -> list[int]:
        gatherings = [self._own.gathering] + ([self._own.in_flight[1]] if self._own.in_flight else [])
        calls = [call for gathering in gatherings for call in gathering.reads]
        return calls + [
            origin.call for gathering in gatherings for origin in gathering.origins
            if isinstance(origin, m.LimitCall | m.DeclareDeadCall)
        ]

    def _lose(self, link: int) -> None:
        self._hellos.pop(link, None)
        self._joins.pop(link, None)
        self._own.workers.pop(link, None)
        session = self._own.sessions.pop(link, None)
        if session is not None and self._own.links.get(session) == link:
            del self._own.links[session]

    # ------------------------------------------------------------ batches

    def _flush(self, event: m.Flush) -> None:
        self._own.flushing = False
        if self._own.in_flight is not None:
            return
        self._own.number += 1
        # What was once proposed in is known to all, also while one of them is away.
        self._own.version = max(self._own.version, self._own.ledger.version, event.version)
        gathering, self._own.gathering = self._own.gathering.split()
        for desk in self._own.busy.values():
            rounds.acquire(self._own, desk, gathering)
            turn = desk.round
            # A round closes by a batch that holds every give-back that came before its last answer.
            if turn is not None and not turn.pending and turn.closing is None and not self._own.gathering:
                turn.closing = self._own.number
        self._own.in_flight = (self._own.number, gathering)
        batch = c.Batch(
            stamp=event.wall, number=self._own.number, commands=tuple(gathering.commands), version=self._own.version
        )
        self._own.do(m.Propose(batch=batch, cause=event.cause))

    def _committed(self, event: m.Committed, now: float) -> None:
        if self._own.in_flight is None or self._own.in_flight[0] != event.batch.number:
            return  # another leadership's: applied before we were told that ours is over, and nobody here waits for it
        _, gathering = self._own.in_flight
        self._own.in_flight = None
        self._own.index = event.index
        for origin, command, result in zip(gathering.origins, gathering.commands, event.results, strict=True):
            self._result(origin, command, result, now)
        for renewal in gathering.renewals:
            workers.renew(self._own, renewal, now)
        for call in gathering.reads:
            self._own.do(m.AnswerRead(call=call, cause=event.cause))
        for desk in self._own.busy.values():
            if desk.round is not None and desk.round.closing == event.batch.number:
                rounds.close(self._own, desk, desk.round, now)

    def _result(  # noqa: C901 - one case per result
        self, origin: m.Event | None, command: c.Command, result: c.Result, now: float
    ) -> None:
        cause = origin.cause if origin is not None else ""
        match result:
            case c.AcquireDone():
                frontends.granted(self._own, result, now)
            case c.Opened(session=session, replaced=replaced):
                if replaced is not None:
                    workers.fence_everywhere(self._own, replaced, Ending.REPLACED, f"replaced by {session}")
                if isinstance(origin, m.Hello) and self._hellos.get(origin.link) is origin:
                    frontends.welcome(self._own, origin, session, now)
                else:
                    self._own.heard[session] = now  # its stream broke meanwhile: suspected like everybody's
            case c.Drained(session=session, changed=changed):
                if changed:
                    workers.fence_everywhere(self._own, session, Ending.SILENT, "silent")
            case c.Counted(session=session):
                self._own.fencing.forget(session)
            case c.Fenced(session=session):
                link = self._own.links.get(session)
                if link is not None:
                    self._own.do(m.SendFenced(link=link, cause=cause))
            case c.SequenceGap(session=session, applied=applied):
                link = self._own.links.get(session)
                if link is not None:
                    self._own.do(m.SendWelcome(link=link, session=session, applied=applied, cause=cause))
            case c.LimitSet():
                limits.changed(self._own, origin, result, now)
            case c.BelowFloor() | c.AboveReservation():
                limits.refused(self._own, origin, result)
            case c.Joined(replaced=replaced_worker):
                self._own.fencing.evicted[Proof.REPLACED] += replaced_worker is not None
                if isinstance(origin, m.Join) and origin.link in self._joins:
                    workers.joined(self._own, origin, now)
                elif isinstance(origin, m.Join):    # its stream broke meanwhile: evicted like everybody who is silent
                    self._own.fencing.answered.setdefault(origin.incarnation, now)
            case c.Evicted(changed=changed):
                self._own.fencing.evicted[Proof.TIME] += changed
            case c.Declared():
                workers.declared(self._own, origin, result)
            case c.MemberGone():
                if isinstance(origin, m.Join):
                    self._own.do(m.SendEvicted(link=origin.link, cause=cause))
            case c.Done():
                self._done(origin, command)
            case _:
                assert_never(result)

    def _done(self, origin: m.Event | None, command: c.Command) -> None:
        match origin:
            case m.GaveBack(pool=pool) if pool in self._own.desks:
                self._own.busy[pool] = self._own.desks[pool]  # there may be room for its top-up now
            case m.Ended(link=link, invocation=invocation):
                self._own.do(m.SendEndApplied(link=link, invocation=invocation, cause=origin.cause))
            case m.Goodbye():
                # By the command, not by the stream: that has ended with its process when this is committed.
                assert isinstance(command, c.CloseSession), command
                if not self._own.ledger.is_live(command.session):
                    workers.fence_everywhere(self._own, command.session, Ending.LEFT, origin.cause)
            case _:
                pass

    # ------------------------------------------------------------ time

    def _tick(self, now: float) -> None:
        timing = self._own.timing
        self._own.wake = None
        for desk in self._own.busy.values():
            turn = desk.round
            if turn is not None and turn.pending and turn.deadline <= now:
                desk.round = None
                rounds.refuse_unproven(self._own, desk, turn, Why.SILENT, turn.pending, now)
        for session, heard in list(self._own.heard.items()):
            if heard + timing.suspect_s <= now:
                del self._own.heard[session]
                self._own.gathering.add(c.MarkDraining(session=session))
        for incarnation, answered in list(self._own.fencing.answered.items()):
            member = self._own.ledger.members.get(incarnation.host)
            if member is None or member.nonce != incarnation.nonce:
                del self._own.fencing.answered[incarnation]
            elif answered + timing.evict_after_s(member.timeout_cap_s) <= now:
                del self._own.fencing.answered[incarnation]
                self._own.gathering.add(c.EvictWorker(incarnation=incarnation))

    def _advance(self, now: float) -> None:
        """After every event: what follows from where we are now."""
        limits.answer_bound(self._own, now)
        workers.count_reported(self._own)
        if self._own.in_flight is None:
            rounds.begin(self._own, now)
            if not self._own.flushing and self._has_work():
                self._own.flushing = True
                self._own.do(m.FlushSoon())
        wake = self._next_wake(now)
        if wake is not None and (self._own.wake is None or wake < self._own.wake):
            self._own.wake = wake
            self._own.do(m.WakeAt(at=wake))

    def _has_work(self) -> bool:
        """Whether a batch would do anything. Desks where nothing is left to do leave the busy ones here."""
        work = bool(self._own.gathering)
        for pool, desk in list(self._own.busy.items()):
            free = self._own.ledger.free(pool)
            turn = desk.round
            closes = turn is not None and not turn.pending and turn.closing is None
            if closes or (desk.waiters and free > 0) or rounds.top_ups(self._own, desk, free - len(desk.waiters)):
                work = True
            elif not desk.waiters and turn is None:
                del self._own.busy[pool]
        return work

    def _next_wake(self, now: float) -> float | None:
        timing = self._own.timing
        turns = [desk.round for desk in self._own.busy.values() if desk.round is not None]
        times = [turn.deadline for turn in turns if turn.pending]
        times += [
            desk.pause_until for desk in self._own.busy.values()
            if desk.waiters and desk.round is None and desk.pause_until > now
        ]
        times += [heard + timing.suspect_s for heard in self._own.heard.values()]
        times += [binding.deadline for binding in self._own.bindings]
        for incarnation, answered in self._own.fencing.answered.items():
            member = self._own.ledger.members.get(incarnation.host)
            times.append(answered + (timing.evict_after_s(member.timeout_cap_s) if member else 0.0))
        return min(times, default=None)

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        self._own.ledger.check()
        for desk in self._own.desks.values():
            desk.check()
        for session, link in self._own.links.items():
            assert self._own.sessions[link] == session, (session, link)
