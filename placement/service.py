"""Placement's inbound edge: registration, managers' lease streams, placing; and the driver that owns the core.

Owns streams, the tick, the draws and the store's calls. Every decision is the core's.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from chassis.beat import next_beat
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.directory import WATCHERS, Directory
from chassis.faults import Fault, FaultCode
from chassis.machine import Driver, Trace
from chassis.metrics import Metrics
from chassis.process import Tasks
from chassis.rpc import Caller, Handlers, Network, Outbox, Server, Stream, converse
from placement import ranking
from placement.config import PlacementConfig
from placement.core import PlacementCore
from placement.messages import (
    Drain,
    DrawLease,
    Effect,
    Event,
    GiveRole,
    Grant,
    HandOver,
    Heartbeat,
    LeadershipFailed,
    LeadershipRead,
    LeadershipWritten,
    LeaseDrawn,
    ManagerJoined,
    ManagerLeft,
    NodesRevoked,
    Publish,
    ReadLeadership,
    ReadRecord,
    ReadRecords,
    RecordFailed,
    RecordRead,
    RecordsFailed,
    RecordsRead,
    RecordUnread,
    RecordWritten,
    Registered,
    RoleChanged,
    StreamClosed,
    TakeAway,
    Tick,
    WorkerReturned,
    WriteLeadership,
    WriteRecord,
)
from placement.metrics import measure
from placement.trust import Trust
from placement.wire import capacity_of, facts_of, grant_message, region_view
from protos import placement_pb2, placement_rpc
from storage.interfaces import Leadership, LeaseStore

STORE_TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)

RegisterStream = Stream[placement_pb2.RegionView, placement_pb2.NodeReport]
LeaseStream = Stream[placement_pb2.LeaseOrder, placement_pb2.ManagerReport]


@dataclass(frozen=True, slots=True)
class _Link:
    connection: int
    outbox: Outbox[placement_pb2.LeaseOrder]
    over: asyncio.Event                # this placement no longer leads


class PlacementService:
    """One placement process. ``start``, then ``drain``."""

    def __init__(
        self,
        config: PlacementConfig,
        *,
        network: Network,
        clock: Clock,
        rng: random.Random,
        leases: LeaseStore,
        pid: int = 0,
        version: str = "",
        trace: Trace | None = None,
        metrics: Metrics | None = None,
        trust: Trust | None = None,
    ) -> None:
        """``trust``: of a region whose processes enrol here; None: somebody else made their certificates."""
        self.metrics = metrics or Metrics()
        self.node: NodeConfig = config.node
        self.core = PlacementCore(node=config.node.node, config=config.fleet)
        self.address = ""
        self._tick_s = config.tick_s
        self._network = network
        self._clock = clock
        self._rng = rng
        self._leases = leases
        self._description = placement_pb2.Node(
            node=config.node.node, service=config.node.service, az=config.node.az, host=config.node.host,
            nonce=rng.getrandbits(63), pid=pid, version=version, role="standby",
            metrics=self.metrics.address,
        )
        self._driver: Driver[Event, Effect] = Driver(
            self.core, clock=clock, perform=self._perform, trace=trace, check=config.node.check,
            observe=measure(self.metrics, self.core),
            parameters={"node": config.node.node, "config": config.fleet},
        )
        self._tasks = Tasks()
        self._store_calls: set[asyncio.Task[None]] = set()
        self._outboxes: dict[int, Outbox[placement_pb2.RegionView]] = {}
        self._links: dict[str, _Link] = {}
        self._connections = 0
        self._server: Server | None = None
        self._trust = trust
        self._directory: Directory | None = None

    async def start(self) -> None:
        """Serves and registers, with itself too. Raises Fault when the address can't be had."""
        handlers = Handlers()
        handlers.bidi(placement_rpc.REGISTER, self._register)
        handlers.bidi(placement_rpc.LEASE, self._lease)
        handlers.unary(placement_rpc.PLACE, self._place)
        if self._trust is not None:
            self._trust.records.observe(self._see_revoked)
            await self._trust.start(handlers)
        self._server = await self._network.serve(self.node.listen, handlers)
        self.address = self._description.address = self.node.reached(self._server.address)
        self._directory = Directory(
            network=self._network, clock=self._clock, seeds=(*self.node.placement, self.address),
            node=self._description,
        )
        self._directory.start()
        self._tasks.start(self._beat(), name="tick")

    async def drain(self) -> None:
        """Gives up leadership, so that another placement takes over at once, then ends."""
        if self._directory is not None:
            self._directory.leave()
        self._driver.feed(Drain())
        with contextlib.suppress(TimeoutError):  # the store is away: others wait leadership_s
            async with asyncio.timeout(STORE_TIMEOUT_S):
                while self._store_calls:
                    await asyncio.wait(self._store_calls)
        await self._tasks.cancel()
        await self._close()

    async def kill(self) -> None:
        """Everything at once gone and nothing given back: for tests and the simulation."""
        await self._tasks.cancel()
        await self._close()

    async def _close(self) -> None:
        if self._directory is not None:
            await self._directory.close()
        if self._trust is not None:
            await self._trust.close()
        if self._server is not None:
            await self._server.close(grace_s=0.0)

    # ------------------------------------------------------------ inbound

    async def _register(self, stream: RegisterStream, caller: Caller) -> None:
        self._connections += 1
        connection = self._connections
        outbox = Outbox(stream, limit=64)
        self._outboxes[connection] = outbox
        outbox.put(self._view(whole=True))

        def hear(report: placement_pb2.NodeReport) -> None:
            if caller.service in WATCHERS:
                return
            if report.HasField("node"):
                _check_identity(report.node, caller)
                self._driver.feed(Registered(
                    facts=facts_of(report.node), connection=connection, leaving=report.leaving, cause="register",
                ))
            else:
                load = capacity_of(report.load) if report.HasField("load") else None
                self._driver.feed(Heartbeat(node=caller.node, connection=connection, load=load, cause="heartbeat"))

        try:
            await converse(stream, outbox, hear)
        finally:
            del self._outboxes[connection]
            self._driver.feed(StreamClosed(node=caller.node, connection=connection, cause="stream"))

    async def _lease(self, stream: LeaseStream, caller: Caller) -> None:
        if not self.core.leadership.leads:
            raise self._standing_by()
        self._connections += 1
        link = _Link(self._connections, Outbox(stream, limit=10_000), asyncio.Event())

        def hear(report: placement_pb2.ManagerReport) -> None:
            match report.WhichOneof("report"):
                case "hello":
                    if report.hello.manager != caller.node:
                        raise _denied(f"{caller.node} can't lease for {report.hello.manager}")
                    self._links[caller.node] = link
                    self._driver.feed(ManagerJoined(
                        manager=caller.node, nonce=report.hello.nonce, connection=link.connection,
                        held=frozenset((held.worker, held.lease) for held in report.hello.leases), cause="hello",
                    ))
                case "returned":
                    self._driver.feed(WorkerReturned(
                        manager=caller.node, worker=report.returned.worker, lease=report.returned.lease,
                        cause="returned",
                    ))
                case None:
                    raise Fault("an empty report", code=FaultCode.INVALID, definite=True)
                case _ as unknown:
                    assert_never(unknown)

        talk = self._tasks.start(converse(stream, link.outbox, hear), name=f"leases of {caller.node}")
        over = self._tasks.start(link.over.wait(), name="role")
        try:
            await asyncio.wait((talk, over), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise self._standing_by()
            await talk
        finally:
            talk.cancel()
            over.cancel()
            if self._links.get(caller.node) is link:
                del self._links[caller.node]
            self._driver.feed(ManagerLeft(manager=caller.node, connection=link.connection, cause="stream"))

    async def _place(self, request: placement_pb2.PlaceRequest, caller: Caller) -> placement_pb2.PlaceAnswer:
        if request.manager != caller.node:
            raise _denied(f"{caller.node} can't place for {request.manager}")
        if not self.core.is_active:
            raise self._standing_by()
        workers, refusal = ranking.rank(
            self.core.candidates(caller.node, frozenset(request.exclude)),
            memory_mb=request.memory_mb, runtime=request.runtime, az=request.az, same=dict(request.same),
        )
        return placement_pb2.PlaceAnswer(workers=workers, refusal=refusal)

    def _standing_by(self) -> Fault:
        leader = self.core.leadership.holder or "nobody yet"
        return Fault(
            f"{self.node.node} stands by, {leader} leads", code=FaultCode.UNAVAILABLE, definite=True
        )

    # ------------------------------------------------------------ outbound

    async def _beat(self) -> None:
        while True:
            self._driver.feed(Tick())
            await next_beat(self._tick_s)

    def _see_revoked(self) -> None:
        assert self._trust is not None, "its records told"
        self._driver.feed(NodesRevoked(revoked=tuple(self._trust.records.revoked.items()), cause="records"))
        if not self.core.is_active:     # who leads has just published it
            self._tell_all(self._view(whole=False))

    def _tell_all(self, view: placement_pb2.RegionView) -> None:
        for outbox in self._outboxes.values():
            outbox.put(view)

    def _view(self, *, whole: bool) -> placement_pb2.RegionView:
        return region_view(self.core, leader=self.core.leadership.holder, whole=whole and self.core.is_active)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Publish():
                self._tell_all(self._view(whole=True))
            case RoleChanged():
                self._take_role(effect)
            case GiveRole() | Grant() | HandOver() | TakeAway():
                self._order(effect)
            case DrawLease():
                self._driver.feed(LeaseDrawn(
                    worker=effect.worker, fraction=self._rng.random(), wall=self._clock.wall(), cause=effect.cause,
                ))
            case ReadLeadership() | WriteLeadership() | ReadRecords() | WriteRecord() | ReadRecord():
                call = self._tasks.start(self._store(effect), name=type(effect).__name__)
                self._store_calls.add(call)
                call.add_done_callback(self._store_calls.discard)
            case _:
                assert_never(effect)

    def _take_role(self, effect: RoleChanged) -> None:
        role = "active" if effect.active else "standby"
        _log.info("role", role=role, term=effect.term, cause=effect.cause)
        if self._directory is not None:
            self._directory.update(role=role)
        self._tell_all(self._view(whole=False))  # who leads gets heartbeats from now on, who stands by hardly any
        if not effect.active:
            for link in list(self._links.values()):
                link.over.set()

    def _order(self, effect: GiveRole | Grant | HandOver | TakeAway) -> None:
        link = self._links.get(effect.manager)
        if link is None:
            return  # its next Hello tells what it holds
        match effect:
            case GiveRole():
                order = placement_pb2.LeaseOrder(
                    role=placement_pb2.LeaseOrder.Role(active=effect.active, term=effect.term)
                )
            case Grant():
                order = grant_message(effect)
            case HandOver():
                order = placement_pb2.LeaseOrder(hand_over=placement_pb2.LeaseOrder.HandOver(
                    worker=effect.worker, lease=effect.lease
                ))
            case TakeAway():
                order = placement_pb2.LeaseOrder(lost=placement_pb2.LeaseOrder.Lost(
                    worker=effect.worker, lease=effect.lease, reason=effect.reason
                ))
            case _:
                assert_never(effect)
        _log.info("order", order=order.WhichOneof("order"), manager=effect.manager, cause=effect.cause,
                  worker=getattr(effect, "worker", ""), lease=getattr(effect, "lease", 0))
        link.outbox.put(order)

    # ------------------------------------------------------------ storage

    async def _store(
        self, effect: ReadLeadership | WriteLeadership | ReadRecords | WriteRecord | ReadRecord
    ) -> None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                event = await self._ask_store(effect)
        except TimeoutError:
            event = _failure(effect, f"the store did not answer within {STORE_TIMEOUT_S} s")
        except Fault as fault:
            event = _failure(effect, fault.message)
        self._driver.feed(event)

    async def _ask_store(
        self, effect: ReadLeadership | WriteLeadership | ReadRecords | WriteRecord | ReadRecord
    ) -> Event:
        match effect:
            case ReadLeadership():
                return LeadershipRead(stored=await self._leases.leadership(), cause=effect.cause)
            case WriteLeadership():
                until = self._clock.wall() + effect.lasts_s if effect.lasts_s else 0.0
                record = Leadership(holder=self.node.node, term=effect.term, renewed_until=until)
                return LeadershipWritten(
                    revision=await self._leases.lead(record, expected=effect.expected), cause=effect.cause
                )
            case ReadRecords():
                records = await self._leases.list()
                return RecordsRead(records=records, wall=self._clock.wall(), cause=effect.cause)
            case WriteRecord():
                revision = await self._leases.put(effect.record, expected=effect.expected)
                return RecordWritten(worker=effect.record.worker, revision=revision, cause=effect.cause)
            case ReadRecord():
                stored = await self._leases.get(effect.worker)
                fence = await self._leases.fence(effect.worker)
                return RecordRead(
                    worker=effect.worker, stored=stored, fence=fence, wall=self._clock.wall(), cause=effect.cause
                )
            case _:
                assert_never(effect)


def _failure(
    effect: ReadLeadership | WriteLeadership | ReadRecords | WriteRecord | ReadRecord, fault: str
) -> Event:
    _log.warning("storage", asked=type(effect).__name__, fault=fault, cause=effect.cause)
    match effect:
        case ReadLeadership() | WriteLeadership():
            return LeadershipFailed(fault=fault, cause=effect.cause)
        case ReadRecords():
            return RecordsFailed(fault=fault, cause=effect.cause)
        case WriteRecord():
            return RecordFailed(worker=effect.record.worker, fault=fault, cause=effect.cause)
        case ReadRecord():
            return RecordUnread(worker=effect.worker, fault=fault, cause=effect.cause)
        case _:
            assert_never(effect)


def _check_identity(node: placement_pb2.Node, caller: Caller) -> None:
    """A process registers what its certificate says, nothing else."""
    said = Caller(service=node.service, node=node.node, az=node.az, host=node.host)
    if said != replace(caller, enrolment=0):
        raise _denied(f"the certificate is {caller}, the registration says {said}")


def _denied(message: str) -> Fault:
    return Fault(message, code=FaultCode.DENIED, definite=True)
