"""A worker manager's inbound edge: frontends' Reserve streams, Describe; and the driver that owns the core.

Owns streams, the one timer, the draws. Every decision is the core's.
"""

import asyncio
import random
from typing import assert_never

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from chassis.machine import Driver, Trace
from chassis.metrics import Metrics
from chassis.rpc import Caller, Handlers, Network, Outbox, Server, Stream, converse
from protos import placement_pb2, worker_manager_pb2, worker_manager_rpc
from worker_manager import wire
from worker_manager.config import ManagerConfig
from worker_manager.core import ManagerCore
from worker_manager.messages import (
    AskPlacement,
    Connect,
    Create,
    Destroy,
    Disconnect,
    DrainWorker,
    Effect,
    Event,
    FrontendLeft,
    Leave,
    Raise,
    Recall,
    Refused,
    RegionSeen,
    Reserved,
    Retired,
    ReturnWorker,
    RoleGiven,
    TellReturned,
    Tick,
)
from worker_manager.metrics import measure
from worker_manager.peers import PlacementPeer, WorkerPeers

_FAREWELL_S = 0.5  # for what is on its way to frontends when a drained manager closes

_log = structlog.get_logger(__name__)

ReserveStream = Stream[worker_manager_pb2.ManagerReplies, worker_manager_pb2.FrontendRequests]
Replies = Outbox[worker_manager_pb2.ManagerReplies]


class ManagerService:
    """One worker manager process. ``start``, then ``drain``."""

    def __init__(
        self,
        config: ManagerConfig,
        *,
        network: Network,
        clock: Clock,
        rng: random.Random,
        pid: int = 0,
        version: str = "",
        trace: Trace | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        node = config.node
        self.core = ManagerCore(node=node.node, config=config.pool)
        self.address = ""
        self._config = config
        self._network = network
        self._clock = clock
        self._rng = rng
        self._description = placement_pb2.Node(
            node=node.node, service=node.service, az=node.az, host=node.host, nonce=rng.getrandbits(63), pid=pid,
            version=version, role="standby", metrics=self.metrics.address,
        )
        self._directory = Directory(network=network, clock=clock, seeds=node.placement, node=self._description)
        self._driver: Driver[Event, Effect] = Driver(
            self.core, clock=clock, perform=self._perform, trace=trace, check=node.check,
            observe=measure(self.metrics, self.core),
            parameters={"node": node.node, "config": config.pool},
        )
        self._workers = WorkerPeers(network=network, clock=clock, node=node.node, feed=self.feed)
        self._placement = PlacementPeer(
            network=network, directory=self._directory, feed=self.feed, held=self._held, place_s=config.place_s
        )
        self._frontends: dict[str, Replies] = {}
        self._server: Server | None = None
        self._seen: RegionSeen | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = float("inf")

    async def start(self) -> None:
        """Serves and registers. Raises Fault when the address can't be had."""
        handlers = Handlers()
        handlers.bidi(worker_manager_rpc.RESERVE, self._reserve)
        handlers.unary(worker_manager_rpc.DESCRIBE, self._describe)
        self._server = await self._network.serve(self._config.node.listen, handlers)
        self.address = self._description.address = self._config.node.reached(self._server.address)
        self._directory.observe(self._see_region)
        self._placement.start()
        self._directory.start()

    async def drain(self) -> None:
        """Hands its workers over as they are and turns requests away, so that the next owner serves at once."""
        self._directory.leave()
        self._placement.closing()
        self.feed(Leave())
        await self._placement.close()
        if self._server is not None:
            await self._server.close(grace_s=min(_FAREWELL_S, self._config.node.drain_s))
        await self._end()

    async def kill(self) -> None:
        """Everything at once gone and nothing given back: for tests and the simulation."""
        if self._server is not None:
            await self._server.close(grace_s=0.0)
        await self._placement.abort()
        await self._end()

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._workers.close()
        await self._directory.close()

    # ------------------------------------------------------------ the driver's clockwork

    def feed(self, event: Event) -> None:
        was_active = self.core.active
        self._driver.feed(event)
        if self.core.active != was_active:
            _log.info("role", active=self.core.active, term=self.core.term, cause=event.cause)
        if isinstance(event, RoleGiven | Leave):
            self._directory.update(role="active" if self.core.active else "standby")
        self._wind()

    def _wind(self) -> None:
        """One timer, for the earliest of the core's deadlines."""
        at = self.core.wakes_at()
        if at is None or at >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = at
        delay_s = max(0.0, at - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer, self._wakes_at = None, float("inf")
        self.feed(Tick())

    def _held(self) -> dict[str, int]:
        return {lease.worker: lease.number for lease in self.core.supply.leases.values()}

    def _see_region(self, directory: Directory) -> None:
        seen = RegionSeen(
            owners_version=directory.owners_version, owners=tuple(owner.manager for owner in directory.owners),
            unusable=frozenset(
                node.node for node in directory.nodes.values()
                if node.service == "worker" and node.health != "serving"
            ),
        )
        if seen != self._seen:
            self._seen = seen
            self.feed(seen)

    # ------------------------------------------------------------ inbound

    async def _reserve(self, stream: ReserveStream, caller: Caller) -> None:
        frontend = caller.node
        outbox: Replies = Outbox(stream, combine=_batch)
        if frontend in self._frontends:
            self.feed(FrontendLeft(frontend=frontend, cause="replaced"))
        self._frontends[frontend] = outbox

        def hear(batch: worker_manager_pb2.FrontendRequests) -> None:
            for request in batch.requests:
                event = wire.frontend_event(request, frontend, f"{self._rng.getrandbits(64):016x}")
                if event is not None:
                    self.feed(event)
                elif request.hello.frontend != frontend:
                    raise Fault(
                        f"{frontend} can't speak for {request.hello.frontend}", code=FaultCode.DENIED, definite=True
                    )

        try:
            await converse(stream, outbox, hear)
        finally:
            if self._frontends.get(frontend) is outbox:
                del self._frontends[frontend]
                self.feed(FrontendLeft(frontend=frontend, cause="stream"))

    async def _describe(
        self, _request: worker_manager_pb2.DescribeRequest, _caller: Caller
    ) -> worker_manager_pb2.DescribeAnswer:
        answer = worker_manager_pb2.DescribeAnswer(role="active" if self.core.active else "standby")
        ahead_s = self._clock.wall() - self._clock.monotonic()
        supply = self.core.supply
        for lease in sorted(supply.leases.values(), key=lambda lease: lease.worker):
            row = answer.workers.add(
                worker=lease.worker, host=lease.host, az=lease.az, lease=lease.number, state=lease.state.value,
                soft_end=lease.soft_end + ahead_s, hard_end=lease.hard_end + ahead_s, memory_mb=lease.memory_mb,
                memory_free_mb=max(0, lease.memory_free_mb),
            )
            for sandbox in supply.sandboxes.of_worker(lease.worker):
                row.sandboxes[sandbox.state.value] += 1
        for function in sorted(supply.sandboxes.functions()):
            counts = answer.functions.add(function=wire.function_id(function))
            for sandbox in supply.sandboxes.of_function(function):
                counts.sandboxes[sandbox.state.value] += 1
        return answer

    # ------------------------------------------------------------ outbound

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Reserved() | Refused() | Retired() | Recall():
                self._reply(effect)
            case AskPlacement():
                self._placement.ask(effect)
            case Create() | Destroy() | Raise() | DrainWorker() | ReturnWorker():
                self._order(effect)
            case Connect():
                _log.info("lease", worker=effect.worker, lease=effect.lease, cause=effect.cause)
                self._workers.connect(effect)
            case Disconnect():
                _log.info("lease over", worker=effect.worker, lease=effect.lease, cause=effect.cause)
                self._workers.disconnect(effect.worker, effect.lease)
            case TellReturned():
                self._placement.tell_returned(effect)
            case _:
                assert_never(effect)

    def _reply(self, effect: Reserved | Refused | Retired | Recall) -> None:
        if isinstance(effect, Refused):
            _log.info("refused", cause=effect.cause, frontend=effect.frontend, reason=effect.reason,
                      message=effect.message)
        outbox = self._frontends.get(effect.frontend)
        if outbox is not None:
            outbox.put(wire.reply_of(effect))

    def _order(self, effect: Create | Destroy | Raise | DrainWorker | ReturnWorker) -> None:
        if not isinstance(effect, Raise):
            _log.info("order", order=type(effect).__name__, worker=effect.worker, cause=effect.cause,
                      sandbox=getattr(effect, "sandbox", ""))
        self._workers.order(effect)


def _batch(replies: list[worker_manager_pb2.ManagerReply]) -> worker_manager_pb2.ManagerReplies:
    return worker_manager_pb2.ManagerReplies(replies=replies)
