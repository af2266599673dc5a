"""A small region in which permits live: real cores of frontends and of counting, and the walk is everything between.

Real are FrontendCore with its edge to the ledger, CountingCore, the Ledger, snapshots, and both ends' translation to
and from the wire. Modelled are Raft (what it promises: one log, applied in order, a leader that has applied all of it
before it is told that it leads; a deposed leader may not know it yet), streams (in order, cut at any moment, what was
under way is lost), and workers (fences, authority, reports, ENDs: the rules of counting 5 to 7). Owns the truth: which
invocations may run, and by whose permit. Refuses to know in which order things happen: the walk says so
(test_permits.py).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from chassis.memory_network import Fabric
from chassis.rpc import Caller
from counting import commands as c
from counting import messages as cm
from counting import wire as counting_wire
from counting.core import CountingCore
from counting.leadership import Timing as CountingTiming
from counting.ledger import Ledger
from counting.snapshot import dump, load
from counting.words import Incarnation, reserved, unreserved
from counting.words import Pool as LedgerPool
from frontend import messages as fm
from frontend.core import FrontendCore, Timing
from frontend.peers.counting import CountingLinks
from frontend.permits import Block, PoolKind
from protos import counting_pb2
from tests.walks.parts import Admitted, Home, Link, Member, Up, Worker, frontend_name
from tests.walks.reached import Reached, ledger_pool

ACCOUNT = "acct"
WALL = 1_700_000_000.0
CAP_S, DRIFT = 3.0, 0.01
TIMING = CountingTiming(suspect_s=3.0, recall_s=0.5, put_s=10.0, authority_s=20.0, grace_s=2.0, drift=DRIFT)
WAIT_S = 6.0    # how long a request waits for a permit


class World:
    """Two frontends, two members of counting, two workers. Every method is one thing that can happen."""

    def __init__(self, limit: int) -> None:
        self.now = 100.0
        self.term, self.count, self.calls, self.told = 0, 0, 0, 0
        self.log: list[bytes] = []
        self.members = [self._member() for _ in range(2)]
        self.leader = 0
        self.homes = [self._home(number, 1) for number in range(2)]
        self.workers = [self._worker(number, 1) for number in range(2)]
        self.starts: list[Admitted] = []                         # on their way to workers
        self.live: dict[str, Admitted] = {}                      # the truth: what may run, or runs
        self.held: dict[str, Admitted] = {}                      # permits of which no END is on its way back yet
        self.answers: dict[int, cm.Effect] = {}
        self.reached = Reached((unreserved(ACCOUNT), reserved(ACCOUNT, "f")), self.truth)
        self.aim = 0                                             # the worker that the next admitted request goes to
        self.admitted = 0
        self.elect(0)
        self.call(cm.SetAccountLimitCall, limit=limit)
        self.calm()

    # ------------------------------------------------------------ lives

    def _member(self) -> Member:
        ledger = Ledger()
        return Member(core=CountingCore(ledger, TIMING), ledger=ledger)

    def _home(self, number: int, life: int) -> Home:
        core, nonce, node = FrontendCore(Timing()), 1000 * number + life, frontend_name(number)
        edge = CountingLinks(
            network=Fabric().network(_caller(number)), seeds={}, node=node, nonce=nonce,
            feed=partial(self.feed, number), leader=lambda: core.link, usage=core.usage,
            on_gone=partial(self._gone, number),
        )
        return Home(number=number, core=core, edge=edge, nonce=nonce, life=life)

    def _worker(self, number: int, nonce: int) -> Worker:
        return Worker(number=number, incarnation=Incarnation(host=f"h{number}", nonce=nonce))

    def link_frontend(self, number: int, member: int) -> None:
        home = self.homes[number]
        if member not in home.links:
            self.count += 1
            link = home.links[member] = Link(number=self.count, member=member)
            home.edge.opened(link.number, f"member-{member}", Up(link.up))

    def cut_frontend(self, number: int, member: int) -> None:
        home = self.homes[number]
        link = home.links.pop(member, None)
        if link is not None:
            home.edge.closed(link.number)
            self.tell(member, cm.LinkLost(link=link.number))

    def link_worker(self, number: int, member: int) -> None:
        worker = self.workers[number]
        if member not in worker.links:
            self.count += 1
            link = worker.links[member] = Link(number=self.count, member=member)
            link.up.append(cm.Join(link=link.number, incarnation=worker.incarnation, timeout_cap_s=CAP_S))

    def cut_worker(self, number: int, member: int) -> None:
        worker = self.workers[number]
        link = worker.links.pop(member, None)
        if link is not None:
            if worker.leader == member:
                worker.leader = None
            self.tell(member, cm.LinkLost(link=link.number))

    def kill_frontend(self, number: int) -> None:
        """kill -9 and another process at once: what it had sent to workers may still arrive."""
        for request in self.homes[number].requests:
            self.reached.served(self.homes[number], request)
        for member in list(self.homes[number].links):
            link = self.homes[number].links.pop(member)
            self.tell(member, cm.LinkLost(link=link.number))
        self.homes[number] = self._home(number, self.homes[number].life + 1)

    def leave_frontend(self, number: int) -> None:
        """SIGTERM: its clients leave, and it says goodbye once it holds nothing that it knows of."""
        while self.homes[number].requests:
            self.client_leaves(number)
        self.feed(number, fm.Leave())

    def is_evicted(self, number: int) -> None:
        """Rule 7: who stays away longer than authority and timeouts is no member, where one leader leads so long."""
        self.depose(1 - self.leader)
        end = self.now + TIMING.evict_after_s(CAP_S) + 1.0
        while self.now < end:
            for other in range(2):
                self.heartbeat(other)
            self.renew(1 - number)
            self.turn()
            self.pass_time(0.5)
        self.turn()
        assert f"h{number}" not in self.truth().members, f"h{number} says nothing, and is a member for ever"

    def kill_worker(self, number: int) -> None:
        """Its sandboxes go with it before the next incarnation may join (rule 7)."""
        worker = self.workers[number]
        for member in list(worker.links):
            self.cut_worker(number, member)
        for id_ in list(worker.running):
            del worker.running[id_]
            self.live.pop(id_, None)
        self.workers[number] = self._worker(number, worker.incarnation.nonce + 1)

    # ------------------------------------------------------------ frontends

    def feed(self, number: int, event: fm.Event) -> None:
        home = self.homes[number]
        for effect in home.core.handle(event, self.now):
            match effect:
                case fm.FlushSoon():
                    home.flush = True
                case fm.Admit():
                    function = home.requests.pop(effect.request)
                    self.reached.served(home, effect.request)
                    self._admit(home, home.core.stocks[effect.pool].block, function)
                case fm.Refuse():
                    del home.requests[effect.request]
                    if effect.refusal is fm.Refusal.THROTTLED:
                        pool = ledger_pool(effect.pool)
                        self.reached.judge(home, effect.request, pool, effect.limit, self.homes)
                        assert effect.request in home.proven, f"429, and something was free all the time: {effect}"
                        assert effect.in_use >= effect.limit, effect
                    home.proven.discard(effect.request)
                    self.reached.left(home, effect.request)
                case _:
                    home.edge.send(effect)
        home.core.check()
        assert home.core.waiting == len(home.requests), "a request was answered twice, or forgotten"

    def request(self, number: int, function: str, worker: int) -> None:
        """As Admission does: the block first, the core when that has nothing."""
        home = self.homes[number]
        self.aim = worker
        block = home.core.block_for(ACCOUNT, function)
        if block is not None and block.try_take(function):
            self._admit(home, block, function)
            if block.in_use >= block.mark:
                self.feed(number, fm.Low(pool=block.pool))
            return
        home.asked += 1
        home.requests[home.asked] = function
        self._look_for_proof()
        self.reached.came(home, home.asked, self._used())
        self.feed(number, fm.Wanted(
            request=home.asked, account=ACCOUNT, function=function, deadline=self.now + WAIT_S
        ))

    def client_leaves(self, number: int) -> None:
        home = self.homes[number]
        if home.requests:
            request = min(home.requests)
            del home.requests[request]
            home.proven.discard(request)
            self.reached.left(home, request)
            self.feed(number, fm.WaiterGone(request=request))

    def _admit(self, home: Home, block: Block, function: str) -> None:
        self.admitted += 1
        worker = self.workers[self.aim % len(self.workers)]
        one = Admitted(
            id=f"i{self.admitted}", home=home.number, life=home.life, block=block, epoch=block.epoch, pool=block.pool,
            function=function, worker=worker.number, incarnation=worker.incarnation,
        )
        self.held[one.id] = one
        self.reached.taken(one)
        if not worker.joined:   # it makes no sandbox yet: there is nothing to start on
            self._answer(one)
            return
        self.starts.append(one)
        self.live[one.id] = one
        self._limit_holds(one)

    def _limit_holds(self, one: Admitted) -> None:
        """Invariant 1, at a start under the newest limit: with it, no more run than the pool's limit says."""
        ledger = self.truth()
        if one.block.generation != ledger.generation(ledger_pool(one.pool)):
            return  # admitted before the change was heard of: it may still begin (rule 9)
        limit = ledger.limit(ledger_pool(one.pool))
        live = [x for x in self.live.values() if self._may_run(x)]
        of_pool = [x.id for x in live if x.pool == one.pool]
        assert len(of_pool) <= limit, f"{len(of_pool)} hold permits of {one.pool}, whose limit is {limit}: {of_pool}"
        if one.pool.kind is PoolKind.RESERVED:
            runs = [x.id for x in live if x.function == one.function]
            assert len(runs) <= limit, f"{len(runs)} of {one.function} run, its reservation is {limit}: {runs}"

    def hears_end(self, number: int, pick: int) -> None:
        """END, NeverStarted or the eviction of its worker reaches the frontend: only that frees a permit (rule 3)."""
        home = self.homes[number]
        if home.ends:
            one = home.ends.pop(pick % len(home.ends))
            one.block.give(one.function)
            if one.block.watched:
                self.feed(number, fm.Freed(
                    pool=one.pool, epoch=one.block.epoch, generation=one.block.generation, function=one.function
                ))

    def heartbeat(self, number: int) -> None:
        """With it the question whether workers are gone whose streams broke, as Workers asks it."""
        home = self.homes[number]
        home.edge.beat()
        lost = {
            (one.incarnation.host, one.incarnation.nonce): None for one in self.held.values()
            if (one.home, one.life) == (number, home.life) and self._is_lost(one)
        }
        if lost:
            home.edge.ask_gone(list(lost))

    def _is_lost(self, one: Admitted) -> bool:
        worker = self.workers[one.worker]
        return worker.incarnation != one.incarnation or worker.evicted

    def _gone(self, number: int, incarnations: list[tuple[str, int]]) -> None:
        for one in list(self.held.values()):
            if one.home == number and (one.incarnation.host, one.incarnation.nonce) in incarnations:
                self._answer(one)

    def frontend_hears(self, number: int, member: int, most: int) -> None:
        for _ in range(most):
            link = self.homes[number].links.get(member)
            if link is None or not link.down:
                return
            self.homes[number].edge.hear(link.number, link.down.popleft())

    def flush_frontend(self, number: int) -> None:
        home = self.homes[number]
        if home.flush:
            home.flush = False
            self.feed(number, fm.Flush())

    # ------------------------------------------------------------ counting

    def tell(self, number: int, event: cm.Event) -> None:
        member = self.members[number]
        self.told += 1
        if isinstance(event, cm.Ask):
            for id_ in event.waiting:
                member.asked.setdefault((self._frontend_at(event.link), id_), self.told)
        effects = member.core.handle(event, self.now)
        for desk in member.core.desks.values():
            if desk.round is not None:
                member.began.setdefault(desk.round.number, self.told)
        for effect in effects:
            match effect:
                case cm.FlushSoon():
                    member.flush = True
                case cm.WakeAt(at=at):
                    member.wake = at
                case cm.Propose(batch=batch):
                    member.proposed.append(c.encode(batch))
                case (
                    cm.AnswerLimit() | cm.AnswerBelowFloor() | cm.AnswerAboveReservation() | cm.AnswerRead()
                    | cm.AnswerNotLeader()
                ):
                    assert effect.call not in self.answers, "a call was answered twice"
                    self.answers[effect.call] = effect
                case _:
                    if isinstance(effect, cm.SendThrottled):
                        self._is_proven(member, effect)
                    self._send_down(member, effect)
        member.core.check()

    def _is_proven(self, member: Member, effect: cm.SendThrottled) -> None:
        """Rule 4: by a round that began after the request came, and nothing is free when it is over."""
        assert member.ledger.free(effect.pool) == 0, f"a throttle while {effect.pool} has room"
        for id_ in effect.waiting:
            asked = member.asked[self._frontend_at(effect.link), id_]
            assert asked <= member.began[effect.round], f"{id_} came after its round began"

    def _frontend_at(self, number: int) -> int:
        """Which frontend process is at the other end of a stream: its nonce."""
        return next(home.nonce for home in self.homes for link in home.links.values() if link.number == number)

    def _send_down(self, member: Member, effect: Any) -> None:
        stamp = counting_pb2.Stamp(term=member.core.term, index=member.core.index)
        for home in self.homes:
            for link in home.links.values():
                if link.number == effect.link:
                    if isinstance(effect, cm.SendNotLeader):
                        refusal = counting_pb2.NotLeader(term=effect.term, hint=effect.hint)
                        answer = counting_pb2.FrontendAnswer(not_leader=refusal)
                    else:
                        answer = counting_wire.to_frontend(effect, c.VERSION)
                    answer.stamp.CopyFrom(stamp)
                    link.down.append(answer)
        for worker in self.workers:
            for link in worker.links.values():
                if link.number == effect.link:
                    link.down.append((member.core.term, effect))

    def member_hears(self, number: int, member: int, most: int) -> None:
        link = self.homes[number].links.get(member)
        for _ in range(most):
            if link is None or not link.up:
                return
            self.tell(member, counting_wire.frontend_event(link.number, link.up.popleft(), _caller(number)))

    def flush_member(self, number: int) -> None:
        member = self.members[number]
        if member.flush:
            member.flush = False
            self.tell(number, cm.Flush(wall=WALL + self.now))

    def commit(self) -> None:
        """The leader's next proposal is in the log for good, and the leader hears of it first."""
        member = self.members[self.leader]
        if member.leads and member.proposed:
            self.log.append(member.proposed.popleft())
            self.apply(self.leader)

    def apply(self, number: int) -> None:
        member = self.members[number]
        while member.applied < len(self.log):
            batch = c.decode(self.log[member.applied])
            before = {pool: member.ledger.granted(pool) for pool in member.ledger.pools()}
            results = tuple(member.ledger.apply(batch))
            _grants_are_covered(member.ledger, before)
            member.applied += 1
            self._on_applied()
            self.tell(number, cm.Committed(index=member.applied, batch=batch, results=results))

    def restore(self, number: int) -> None:
        """A member falls far behind and is sent a snapshot."""
        source = max(self.members, key=lambda member: member.applied)
        member = self.members[number]
        if not member.leads:
            member.ledger.become(load(dump(source.ledger)))
            member.applied = source.applied

    def elect(self, number: int, *, kept: int = 0, unaware: bool = False) -> None:
        """Another leader. ``kept`` of the old one's proposals are in the log; it may not know that it is deposed."""
        old = self.members[self.leader]
        if old.leads:
            for _ in range(min(kept, len(old.proposed))):
                self.log.append(old.proposed.popleft())
        old.proposed.clear()
        self.term += 1
        if self.leader != number and not unaware:
            self.depose(self.leader)
        if self.members[number].leads:
            self.depose(number)
        self.leader = number
        self.apply(number)
        self.members[number].leads = True
        self.members[number].wake = None
        self.tell(number, cm.Led(term=self.term))

    def depose(self, number: int) -> None:
        member = self.members[number]
        if member.leads:
            member.leads, member.flush, member.wake = False, False, None
            member.proposed.clear()
            self.tell(number, cm.Deposed(term=self.term, hint="another"))
            self.apply(number)

    def call(self, kind: Any, **arguments: Any) -> int:
        """A change of limits, asked of the leader."""
        self.calls += 1
        self.tell(self.leader, kind(call=self.calls, account=ACCOUNT, **arguments))
        return self.calls

    def truth(self) -> Ledger:
        """The state after everything that is in the log."""
        return max(self.members, key=lambda member: member.applied).ledger

    def _on_applied(self) -> None:
        members = self.members
        if members[0].applied == members[1].applied:
            assert dump(members[0].ledger) == dump(members[1].ledger), "replicas differ"
        self._look_for_proof()
        self.reached.looked(self._used())
        self._evicted_are_told()

    def _look_for_proof(self) -> None:
        ledger = self.truth()
        for home in self.homes:
            for request, function in home.requests.items():
                stock = home.core._stock_of(ACCOUNT, function)
                if ledger.free(ledger_pool(stock.pool)) == 0:
                    home.proven.add(request)

    def _used(self) -> dict[LedgerPool, int]:
        return self.reached.used(self.held.values(), self.homes, self.workers)

    def _evicted_are_told(self) -> None:
        """Nothing runs any more of an incarnation that left the ledger: its permits come back to who asks for it."""
        for one in list(self.held.values()):
            member = self.truth().members.get(one.incarnation.host)
            gone = one.incarnation.nonce in self.truth().gone.get(one.incarnation.host, ())
            if gone or (member is not None and member.nonce > one.incarnation.nonce):
                running = self.workers[one.worker].running
                assert one.id not in running, f"{one.incarnation} was evicted while {one.id} ran there"
                self.live.pop(one.id, None)
                self.starts = [start for start in self.starts if start is not one]

    # ------------------------------------------------------------ workers

    def start_arrives(self, pick: int) -> None:
        if not self.starts:
            return
        one = self.starts.pop(pick % len(self.starts))
        worker = self.workers[one.worker]
        allowed = (
            worker.incarnation == one.incarnation and worker.joined and not worker.evicted
            and self.now < worker.authority_until and not worker.fenced(one.session)
        )
        if allowed:
            worker.running[one.id] = one
        elif worker.incarnation == one.incarnation:
            self.live.pop(one.id, None)
            self._answer(one)
        else:
            self.live.pop(one.id, None)     # lost with its worker: its frontend hears of the eviction

    def ends(self, number: int, pick: int) -> None:
        worker = self.workers[number]
        if worker.running:
            self._end(worker, sorted(worker.running)[pick % len(worker.running)])

    def all_end(self) -> None:
        """Everything that runs, and its frontends hear of it."""
        for number, worker in enumerate(self.workers):
            for _ in range(len(worker.running)):
                self.ends(number, 0)
        for number, home in enumerate(self.homes):
            while home.ends:
                self.hears_end(number, 0)

    def _end(self, worker: Worker, id_: str) -> None:
        one = worker.running.pop(id_)
        self.live.pop(id_, None)
        self._answer(one)
        if worker.fenced(one.session):
            worker.unapplied[id_] = one
            self._say_end(worker, one)

    def _say_end(self, worker: Worker, one: Admitted) -> None:
        link = worker.links.get(worker.leader) if worker.leader is not None else None
        if link is not None:
            link.up.append(cm.Ended(
                link=link.number, session=one.session, pool=ledger_pool(one.pool), invocation=one.id
            ))

    def _answer(self, one: Admitted) -> None:
        home = self.homes[one.home]
        if self.held.pop(one.id, None) is not None and home.life == one.life:
            home.ends.append(one)

    def renew(self, number: int) -> None:
        worker = self.workers[number]
        link = worker.links.get(worker.leader) if worker.leader is not None else None
        if link is not None and worker.joined:
            self.count += 1
            worker.renewals[self.count] = self.now
            link.up.append(cm.Renew(link=link.number, number=self.count))

    def worker_speaks(self, number: int, member: int, most: int) -> None:
        link = self.workers[number].links.get(member)
        for _ in range(most):
            if link is None or not link.up:
                return
            self.tell(member, link.up.popleft())

    def worker_hears(self, number: int, member: int, most: int) -> None:
        worker = self.workers[number]
        for _ in range(most):
            link = worker.links.get(member)
            if link is None or not link.down:
                return
            term, answer = link.down.popleft()
            self._worker_hears(worker, member, link, term, answer)

    def _worker_hears(self, worker: Worker, member: int, link: Link, term: int, answer: Any) -> None:
        if isinstance(answer, cm.SendNotLeader):
            if worker.leader == member:
                worker.leader = None
            return
        if term < worker.term:
            return
        worker.term = term
        match answer:
            case cm.SendJoined():
                worker.leader, worker.joined = member, True
                for session in answer.watermarks:
                    worker.fences[session.frontend] = max(worker.fences.get(session.frontend, 0), session.epoch)
                for one in list(worker.unapplied.values()):
                    self._say_end(worker, one)
            case cm.SendFence(session=session):
                worker.fences[session.frontend] = max(worker.fences.get(session.frontend, 0), session.epoch)
                runs = tuple(
                    c.Run(
                        pool=ledger_pool(one.pool), function=one.function, invocation=one.id,
                        incarnation=worker.incarnation,
                    )
                    for one in worker.running.values() if one.session == session
                )
                link.up.append(cm.FenceAcked(link=link.number, session=session, runs=runs))
            case cm.SendRenewed(number=number):
                sent = worker.renewals.pop(number, None)
                if sent is not None:
                    worker.authority_until = max(worker.authority_until, sent + answer.authority_s)
            case cm.SendEvicted():
                worker.evicted = True
            case cm.SendEndApplied():
                worker.unapplied.pop(answer.invocation, None)

    # ------------------------------------------------------------ time

    def pass_time(self, seconds: float) -> None:
        """In steps no longer than the shortest span that anybody waits for: timers fire when they are due."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for worker in self.workers:
                if worker.authority_until + CAP_S + TIMING.grace_s <= self.now:
                    for id_ in list(worker.running):
                        self._end(worker, id_)      # the watchdog
            for number, home in enumerate(self.homes):
                at = home.core.wakes_at()
                if at is not None and at <= self.now:
                    self.feed(number, fm.Tick())
            for number, member in enumerate(self.members):
                if member.wake is not None and member.wake <= self.now:
                    member.wake = None
                    self.tell(number, cm.Tick())

    def something_moves(self, rng: random.Random) -> None:
        """One thing that can happen now and needs no fault: a request comes, something arrives, an invocation ends."""
        one = rng.randrange(2)
        waiting = sum(len(home.requests) for home in self.homes)
        moves: list[tuple[float, Callable[[], object]]] = [
            (3 / (1 + waiting), lambda: self.request(one, rng.choice("ffg"), rng.randrange(2))),
            (0.3, lambda: self.heartbeat(one)),
            (0.3, lambda: self.renew(one)),
            (0.2, lambda: self.pass_time(rng.choice([0.02, 0.1, 0.3]))),
            (0.05, lambda: self.client_leaves(one)),
            *self._arrivals(rng.randint(1, 4)),
        ]
        if self.starts:
            moves.append((2, lambda: self.start_arrives(rng.randrange(8))))
        if self.members[self.leader].proposed:
            moves.append((2, self.commit))
        for number in range(2):
            if self.workers[number].running:
                moves.append((0.5, partial(self.ends, number, rng.randrange(8))))
            if self.homes[number].ends:
                moves.append((1, partial(self.hears_end, number, rng.randrange(8))))
            if self.homes[number].flush:
                moves.append((1, partial(self.flush_frontend, number)))
            if self.members[number].flush:
                moves.append((1, partial(self.flush_member, number)))
            if self.members[number].applied < len(self.log):
                moves.append((0.5, partial(self.apply, number)))
        rng.choices([move for _, move in moves], [weight for weight, _ in moves])[0]()

    def _arrivals(self, most: int) -> Iterator[tuple[float, Callable[[], object]]]:
        """Streams on which something is under way."""
        for number in range(2):
            for member, link in self.homes[number].links.items():
                if link.up:
                    yield 1, partial(self.member_hears, number, member, most)
                if link.down:
                    yield 1, partial(self.frontend_hears, number, member, most)
            for member, link in self.workers[number].links.items():
                if link.up:
                    yield 1, partial(self.worker_speaks, number, member, most)
                if link.down:
                    yield 1, partial(self.worker_hears, number, member, most)

    def turn(self) -> None:
        """Everything that is on its way arrives, once; every end of turn comes."""
        for number in range(2):
            for member in range(2):
                self.member_hears(number, member, 100)
                self.worker_speaks(number, member, 100)
        for number in range(2):
            self.flush_member(number)
        for _ in range(3):
            self.commit()
        for number in range(2):
            self.apply(number)
        for number in range(2):
            for member in range(2):
                self.frontend_hears(number, member, 100)
                self.worker_hears(number, member, 100)
            self.flush_frontend(number)

    def calm(self) -> None:
        """All streams up, everybody beats and renews, and what is on its way arrives."""
        self.depose(1 - self.leader)
        for _ in range(4):
            for number in range(2):
                for member in range(2):
                    self.link_frontend(number, member)
                    self.link_worker(number, member)
                if self.workers[number].evicted:
                    self.kill_worker(number)
                self.heartbeat(number)
                self.renew(number)
            for _ in range(4):
                self.turn()
            self.pass_time(0.1)
            while self.starts:
                self.start_arrives(0)
            for number in range(2):
                while self.homes[number].ends:
                    self.hears_end(number, 0)

    # ------------------------------------------------------------ what must hold

    def _may_run(self, one: Admitted) -> bool:
        """It runs, or it is on its way and nobody has promised yet that it never begins."""
        return one.id in self.workers[one.worker].running or self.truth().is_live(one.session) or (
            self.truth().is_draining(one.session)
        )

    def check(self) -> None:
        """Every invocation that runs or may yet run is covered by its session's block in the ledger (invariant 1)."""
        ledger = self.truth()
        counts = Counter((one.session, one.pool) for one in self.live.values() if self._may_run(one))
        for (session, pool), count in counts.items():
            size = ledger._size(session, ledger_pool(pool))
            assert count <= size, f"{count} may run by {session}'s block of {pool}, which the ledger counts as {size}"

    def nothing_leaks(self) -> None:
        """Invariants 2 and 13 after quiet: who waits has what is free; when all has ended, everything is free. And who
        is heard keeps its session."""
        for _ in range(5):
            self.calm()
            self.pass_time(0.7)
        epochs = [home.core.epoch for home in self.homes]
        for home in self.homes:
            for function in home.requests.values():
                pool = ledger_pool(home.core._stock_of(ACCOUNT, function).pool)
                assert self.truth().free(pool) == 0, f"{function} waits at {home.number}, and {pool} has room"
        for _ in range(12):
            for worker in self.workers:
                for id_ in sorted(worker.running):
                    self._end(worker, id_)
            self.calm()
            self.pass_time(0.7)
        assert [home.core.epoch for home in self.homes] == epochs, "a frontend that beats was fenced"
        ledger = self.truth()
        assert not self.live
        assert not any(home.requests for home in self.homes), "nothing runs, and requests still wait"
        out = {str(pool): ledger.granted(pool) for pool in ledger.pools() if ledger.granted(pool)}
        assert not out, f"nothing runs, and permits are out: {out}"
        assert set(self.answers) == set(range(1, self.calls + 1)), "a change of limits was never answered"


def _grants_are_covered(ledger: Ledger, before: dict[LedgerPool, int]) -> None:
    """Rule 1: a pool that grew is within its limit, and its account too: a carved permit moves, it is not made."""
    for pool in ledger.pools():
        if ledger.granted(pool) > before.get(pool, 0):
            account = ledger.account(pool.account)
            assert ledger.charge(pool) <= ledger.limit(pool), f"{pool}: {ledger.charge(pool)} of {ledger.limit(pool)}"
            assert account.total() <= account.limit, f"{pool.account}: {account.total()} of {account.limit}"


def _caller(number: int) -> Caller:
    return Caller(service="frontend", node=frontend_name(number), az="az1", host=f"h{number}")
