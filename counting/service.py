"""Inbound edge of a counting member: streams and calls in, effects out; joins core, ledger and Raft.

Data flow: stream -> event -> core -> effects -> stream or Raft; Raft -> ledger -> event -> core. Owns links, calls and
timers. Refuses to decide anything.
"""

import asyncio
import random
from pathlib import Path
from typing import Any, assert_never

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from chassis.machine import Driver, Trace
from chassis.metrics import Metrics
from chassis.rpc import Caller, Handlers, Network, Outbox, Server, Stream, StreamNetwork, converse, listen
from counting import messages as m
from counting import wire
from counting.commands import PROVISIONING, VERSION, Batch, Result, decode, encode
from counting.config import CountingConfig
from counting.core import CountingCore
from counting.leadership import Timing
from counting.ledger import Ledger
from counting.metrics import measure
from counting.peers import RaftLinks
from counting.raft.framing import DamagedFileError
from counting.raft.member import Group, LogCounts, Member, RaftTiming
from counting.replay import LedgerAside
from counting.snapshot import dump, load
from counting.voters import Voters
from counting.words import Incarnation
from protos import counting_pb2, counting_rpc, placement_pb2, raft_pb2, raft_rpc

_log = structlog.get_logger(__name__)

FrontendStream = Stream[counting_pb2.FrontendAnswer, counting_pb2.FrontendMessage]
WorkerStream = Stream[counting_pb2.WorkerAnswer, counting_pb2.WorkerMessage]
NOBODY = Incarnation(host="", nonce=0)
HAND_OVER_S = 0.5       # a leader that is told to end lets another one lead; after that, silence does


class LedgerMachine:
    """The ledger as Raft replicates it: bytes in, results out. ``knows``: the newest command language."""

    def __init__(self, ledger: Ledger, knows: int, aside: LedgerAside | None = None) -> None:
        self._ledger = ledger
        self._knows = knows
        self._aside = aside     # of a traced member

    def apply(self, index: int, command: bytes) -> tuple[Batch, list[Result]]:
        batch = decode(command, self._knows)
        if self._aside is not None:
            self._aside.applied(index, batch)
        return batch, self._ledger.apply(batch)

    def save(self) -> bytes:
        return dump(self._ledger)

    def restore(self, state: bytes) -> None:
        if self._aside is not None:
            self._aside.restored(state)
        self._ledger.become(load(state))


class CountingService:
    """One member. ``start`` raises Fault when it can't be (files lost, address taken).

    ``version``: the newest command language that it knows; a test of a rolling upgrade makes it an older one.
    """

    def __init__(
        self, config: CountingConfig, *, network: Network, streams: StreamNetwork, clock: Clock,
        generator: random.Random, durable: bool = True, pid: int = 0, trace: Trace | None = None,
        version: int = VERSION, metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._config = config
        self._version = version
        self._pid = pid
        self._network = network
        self._streams = streams     # to the other members: Raft's messages go over it
        self._clock = clock
        self._generator = generator
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger()
        timing = Timing(
            suspect_s=config.suspect_s, recall_s=config.recall_s, unproven_s=config.unproven_s, put_s=config.put_s,
            authority_s=config.authority_s, grace_s=config.grace_s, drift=config.drift,
        )
        core = CountingCore(self._ledger, timing)
        self._aside = LedgerAside() if trace is not None else None
        self._driver: Driver[m.Event, m.Effect] = Driver(
            core, clock=clock, perform=self._perform, trace=trace, check=config.node.check,
            observe=measure(self.metrics, core, lambda: self._member), parameters={"timing": timing},
            aside=self._aside,
        )
        self._outboxes: dict[int, Outbox[Any]] = {}
        self._workers: set[int] = set()
        self._calls: dict[int, asyncio.Future[m.Effect]] = {}
        self._next = 0
        self._wake: asyncio.TimerHandle | None = None
        self._member: Member | None = None
        self._links: RaftLinks | None = None
        self._voters: Voters | None = None
        self._server: Server | None = None
        self._raft_server: Server | None = None
        self._directory: Directory | None = None
        self._role = "follower"

    @property
    def core(self) -> CountingCore:
        core = self._driver.core
        assert isinstance(core, CountingCore)
        return core

    @property
    def leads(self) -> bool:
        return self._raft().leads

    @property
    def log(self) -> LogCounts:
        """What became of this process's log so far."""
        return self._raft().log

    @property
    def address(self) -> str:
        return self._server.address if self._server is not None else ""

    async def start(self) -> "CountingService":
        config, node = self._config, self._config.node
        self._links = RaftLinks(
            network=self._streams, own=config.members[node.node],
            connected=lambda peer: self._raft().connected(peer),
            disconnected=lambda peer: self._raft().disconnected(peer),
        )
        try:
            self._member = Member(
                member=node.node, founders=Group(voters=config.members),
                directory=Path(config.directory),
                machine=LedgerMachine(self._ledger, self._version, self._aside), clock=self._clock,
                generator=self._generator,
                timing=RaftTiming(
                    heartbeat_s=config.heartbeat_s, election_min_s=config.election_min_s,
                    election_max_s=config.election_max_s, compact_entries=config.compact_entries,
                ),
                send=self._links.send, on_committed=self._on_committed, on_role=self._on_role, on_group=self._on_group,
                durable=self._durable,
            )
        except DamagedFileError as error:
            raise Fault(str(error), definite=True) from error
        self._voters = Voters(
            node=node.node, seeds=config.members, version=self._version, proposed=lambda: self._ledger.version,
            member=self._member, links=self._links, clock=self._clock,
        )
        raft_listen = config.raft_listen or config.members[node.node]
        self._raft_server = await self._streams.serve(raft_listen, self._raft_handlers())
        self._server = await self._network.serve(node.listen, self._handlers())
        self._voters.changed()
        if node.placement:
            self._directory = Directory(
                network=self._network, clock=self._clock, seeds=node.placement, node=placement_pb2.Node(
                    node=node.node, service=node.service, az=node.az, host=node.host,
                    address=node.reached(self._server.address),
                    role=self._role, pid=self._pid, metrics=self.metrics.address, nonce=self._generator.getrandbits(63),
                ),
            )
            self._directory.start()
        return self

    async def drain(self) -> None:
        """Leaves the region's view, stops serving and closes the files."""
        if self._directory is not None:
            self._directory.leave()
        assert self._server is not None
        assert self._links is not None
        assert self._voters is not None
        if self._raft().leads:
            await self._voters.step_aside(HAND_OVER_S)
        for outbox in list(self._outboxes.values()):
            outbox.close()
        assert self._raft_server is not None
        await self._server.close(0.0)  # streams are for life: nothing of them finishes by waiting
        await self._raft_server.close(0.0)
        await self._links.close()
        if self._directory is not None:
            await self._directory.close()
        if self._wake is not None:
            self._wake.cancel()
        self._raft().close()

    async def kill(self) -> None:
        """Everything at once gone, what isn't synced as well: for tests and the simulation."""
        self._raft().crash()
        if self._wake is not None:
            self._wake.cancel()
        if self._directory is not None:
            await self._directory.close()
        if self._links is not None:
            await self._links.close()
        for server in (self._server, self._raft_server):
            if server is not None:
                await server.close(0.0)

    # ------------------------------------------------------------ Raft

    def _raft(self) -> Member:
        assert self._member is not None
        return self._member

    def _on_committed(self, index: int, command: bytes, outcome: tuple[Batch, list[Result]]) -> None:
        batch, results = outcome
        self._feed(m.Committed(index=index, batch=batch, results=tuple(results), cause=f"batch {batch.number}"))

    def _on_role(self, *, leads: bool, term: int, hint: str) -> None:
        if leads:
            self._feed(m.Led(term=term, cause=f"term {term}"))
        else:
            self._feed(m.Deposed(term=term, hint=hint, cause=f"term {term}"))
        self._on_group()
        role = "leader" if leads else "follower"
        if role != self._role:
            self._role = role
            _log.info("role", role=role, term=term)
            if self._directory is not None:
                self._directory.update(role=role)

    def _on_group(self) -> None:
        if self._voters is not None:
            self._voters.changed()

    async def _exchange(self, stream: Stream[raft_pb2.RaftReceipt, raft_pb2.RaftMessage], caller: Caller) -> None:
        """From any member of this region, voter or not: the certificate says that it is one."""
        links = self._links
        assert links is not None

        def on_message(message: raft_pb2.RaftMessage) -> None:
            if message.HasField("introduction"):
                links.introduce(caller.node, message.introduction.address)
            else:
                self._guarded(lambda: self._raft().receive(caller.node, message))

        links.arrived(caller.node)
        try:
            await stream.send(raft_pb2.RaftReceipt(version=self._version))
            await listen(stream, on_message)
        finally:
            links.left(caller.node)

    # ------------------------------------------------------------ streams

    def _handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(counting_rpc.FRONTEND, self._frontend)
        handlers.bidi(counting_rpc.WORKER, self._worker)
        handlers.unary(counting_rpc.SET_RESERVED, self._set_reserved)
        handlers.unary(counting_rpc.SET_PROVISIONED, self._set_provisioned)
        handlers.unary(counting_rpc.SET_ACCOUNT_LIMIT, self._set_account_limit)
        handlers.unary(counting_rpc.GET_LIMITS, self._get_limits)
        handlers.unary(counting_rpc.LIST_POOLS, self._list_pools)
        handlers.unary(counting_rpc.LIST_HOSTS, self._list_hosts)
        handlers.unary(counting_rpc.DECLARE_DEAD, self._declare_dead)
        assert self._voters is not None
        self._voters.serve(handlers)
        return handlers

    def _raft_handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(raft_rpc.EXCHANGE, self._exchange)
        return handlers

    async def _frontend(self, stream: FrontendStream, caller: Caller) -> None:
        link, outbox = self._open(stream)
        try:
            await converse(stream, outbox, lambda message: self._feed(wire.frontend_event(link, message, caller)))
        finally:
            self._lose(link)

    async def _worker(self, stream: WorkerStream, caller: Caller) -> None:
        link, outbox = self._open(stream)
        self._workers.add(link)
        who = NOBODY

        def on_message(message: counting_pb2.WorkerMessage) -> None:
            nonlocal who
            if message.HasField("join"):
                who = wire.incarnation_of(message)
            for event in wire.worker_events(link, message, caller, who):
                self._feed(event)

        try:
            await converse(stream, outbox, on_message)
        finally:
            self._lose(link)

    def _open(self, stream: Stream[Any, Any]) -> tuple[int, Outbox[Any]]:
        self._next += 1
        outbox = self._outboxes[self._next] = Outbox(stream)
        return self._next, outbox

    def _lose(self, link: int) -> None:
        self._outboxes.pop(link, None)
        self._workers.discard(link)
        self._feed(m.LinkLost(link=link))

    # ------------------------------------------------------------ calls

    async def _ask(self, make: Any) -> m.Effect:
        """Feeds a call's event and waits for its answer; the caller's own deadline ends it."""
        self._next += 1
        call = self._next
        future: asyncio.Future[m.Effect] = self._loop.create_future()
        self._calls[call] = future
        try:
            self._feed(make(call))
            return await future
        finally:
            self._calls.pop(call, None)

    async def _set_reserved(
        self, request: counting_pb2.SetReservedRequest, _caller: Caller
    ) -> counting_pb2.SetReservedAnswer:
        if not request.account or not request.function:
            raise wire.bad("a reservation names its account and its function")
        value = request.value if request.HasField("value") else None
        return self._limit_answer(await self._ask(lambda call: m.SetReservedCall(
            call=call, account=request.account, function=request.function, value=value, request=request.request,
            cause=request.request,
        )))

    async def _set_provisioned(
        self, request: counting_pb2.SetProvisionedRequest, _caller: Caller
    ) -> counting_pb2.SetReservedAnswer:
        if not request.account or not request.function or not request.qualifier:
            raise wire.bad("what is provisioned names its account, its function and the version's qualifier")
        value = request.value if request.HasField("value") else None
        if value == 0:
            raise wire.bad("value is 0: at least 1 is provisioned, and without a value it is given up")
        return self._limit_answer(await self._ask(lambda call: m.SetProvisionedCall(
            call=call, account=request.account, function=request.function, qualifier=request.qualifier, value=value,
            request=request.request, version=self._known_by_all(), cause=request.request,
        )))

    async def _set_account_limit(
        self, request: counting_pb2.SetAccountLimitRequest, _caller: Caller
    ) -> counting_pb2.SetReservedAnswer:
        if not request.account:
            raise wire.bad("an account's limit names its account")
        return self._limit_answer(await self._ask(
            lambda call: m.SetAccountLimitCall(
                call=call, account=request.account, limit=request.limit, request=request.request, cause=request.request
            )
        ))

    def _limit_answer(self, effect: m.Effect) -> counting_pb2.SetReservedAnswer:
        answer = counting_pb2.SetReservedAnswer
        match effect:
            case m.AnswerNotLeader():
                return answer(not_leader=counting_pb2.NotLeader(term=effect.term, hint=effect.hint))
            case m.AnswerBelowFloor():
                return answer(below_floor=answer.BelowFloor(
                    account_limit=effect.account_limit, reserved_elsewhere=effect.reserved_elsewhere, floor=effect.floor
                ))
            case m.AnswerAboveReservation():
                return answer(above_reservation=answer.AboveReservation(
                    reserved=effect.reserved, provisioned=effect.provisioned
                ))
            case m.AnswerTooOld():
                raise Fault(wire.too_old(effect.version, PROVISIONING, self._version), code=FaultCode.UNAVAILABLE)
            case m.AnswerLimit():
                wall = self._clock.wall()
                outstanding = [answer.Outstanding(node=o.node, until=wall + o.wait_s) for o in effect.outstanding]
                return answer(generation=effect.generation, changed=effect.changed, outstanding=outstanding)
            case _:
                raise AssertionError(f"a change of limits was answered by {effect}")

    async def _get_limits(
        self, request: counting_pb2.GetLimitsRequest, _caller: Caller
    ) -> counting_pb2.GetLimitsAnswer:
        effect = await self._ask(lambda call: m.ReadCall(call=call))
        if isinstance(effect, m.AnswerNotLeader):
            refusal = counting_pb2.NotLeader(term=effect.term, hint=effect.hint)
            return counting_pb2.GetLimitsAnswer(not_leader=refusal)
        account = self._ledger.account(request.account)
        return counting_pb2.GetLimitsAnswer(
            account_limit=account.limit, unreserved=account.unreserved(), reserved=account.reserved
        )

    async def _list_pools(
        self, request: counting_pb2.ListPoolsRequest, _caller: Caller
    ) -> counting_pb2.ListPoolsAnswer:
        effect = await self._ask(lambda call: m.ReadCall(call=call))
        if isinstance(effect, m.AnswerNotLeader):
            refusal = counting_pb2.NotLeader(term=effect.term, hint=effect.hint)
            return counting_pb2.ListPoolsAnswer(not_leader=refusal)
        return wire.pools_out(self.core, request.account, self._clock.monotonic(), self._clock.wall())

    async def _list_hosts(
        self, _request: counting_pb2.ListHostsRequest, _caller: Caller
    ) -> counting_pb2.ListHostsAnswer:
        effect = await self._ask(lambda call: m.ReadCall(call=call))
        if isinstance(effect, m.AnswerNotLeader):
            refusal = counting_pb2.NotLeader(term=effect.term, hint=effect.hint)
            return counting_pb2.ListHostsAnswer(not_leader=refusal)
        return wire.hosts_out(self.core, self._clock.monotonic(), self._clock.wall())

    async def _declare_dead(
        self, request: counting_pb2.DeclareDeadRequest, caller: Caller
    ) -> counting_pb2.DeclareDeadAnswer:
        incarnation = Incarnation(host=request.incarnation.host, nonce=request.incarnation.nonce)
        if not incarnation.host or not incarnation.nonce:
            raise wire.bad("who is declared dead is named by host and nonce: another life of that host isn't meant")
        effect = await self._ask(lambda call: m.DeclareDeadCall(
            call=call, incarnation=incarnation, force=request.force, version=self._known_by_all(), cause=caller.node,
        ))
        _log.warning("declared dead", host=incarnation.host, nonce=incarnation.nonce, by=caller.node,
                     force=request.force, answer=type(effect).__name__)
        return wire.declared_out(effect, self._version)

    # ------------------------------------------------------------ the core's driver

    def _feed(self, event: m.Event) -> None:
        self._guarded(lambda: self._driver.feed(event))

    def _guarded(self, action: Any) -> None:
        """A bug ends the process, wherever it shows: a handler's exception would only end its stream."""
        try:
            action()
        except AssertionError as error:
            self._loop.call_exception_handler({"message": "a bug in counting", "exception": error})

    def _flush(self) -> None:
        self._feed(m.Flush(wall=self._clock.wall(), version=self._known_by_all()))

    def _known_by_all(self) -> int:
        """The newest command language that every member knows; one that never said anything knows the first."""
        assert self._voters is not None
        return self._voters.known_by_all()

    def _perform(self, effect: m.Effect) -> None:
        match effect:
            case m.FlushSoon():
                self._loop.call_soon(self._flush)
            case m.WakeAt(at=at):
                if self._wake is not None:
                    self._wake.cancel()
                delay = max(0.0, at - self._clock.monotonic())
                self._wake = self._loop.call_later(delay, self._feed, m.Tick(cause="timer"))
            case m.Propose(batch=batch):
                self._raft().propose(encode(batch))
            case m.SendNotLeader(link=link):
                refusal = counting_pb2.NotLeader(term=effect.term, hint=effect.hint)
                kind = counting_pb2.WorkerAnswer if link in self._workers else counting_pb2.FrontendAnswer
                self._put(link, kind(not_leader=refusal))
            case (
                m.AnswerLimit() | m.AnswerBelowFloor() | m.AnswerAboveReservation() | m.AnswerDeclared()
                | m.AnswerHeard() | m.AnswerTooOld() | m.AnswerRead() | m.AnswerNotLeader()
            ):
                future = self._calls.get(effect.call)
                if future is not None and not future.done():
                    future.set_result(effect)
            case (
                m.SendJoined() | m.SendFence() | m.SendRenewed() | m.SendEvicted() | m.SendEndApplied()
            ):
                self._put(effect.link, wire.to_worker(effect))
            case (
                m.SendWelcome() | m.SendGrant() | m.SendRecall() | m.SendThrottled() | m.SendUnavailable()
                | m.SendGeneration() | m.SendFenced() | m.SendGone()
            ):
                self._put(effect.link, wire.to_frontend(effect, self._version))
            case _:
                assert_never(effect)

    def _put(self, link: int, answer: counting_pb2.FrontendAnswer | counting_pb2.WorkerAnswer) -> None:
        outbox = self._outboxes.get(link)
        if outbox is not None:
            answer.stamp.term, answer.stamp.index = self.core.term, self.core.index
            outbox.put(answer)
