"""Outbound calls of a worker manager: one stream per leased worker, and placement.

Owns dialling, dialling again, and the translation to events. What an event means is the core's.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.process import Tasks
from chassis.rpc import Channel, Network, Outbox, Stream, converse
from protos import placement_pb2, placement_rpc, worker_pb2, worker_rpc
from worker_manager import wire
from worker_manager.messages import (
    AskPlacement,
    Connect,
    Create,
    Destroy,
    DrainWorker,
    Event,
    Placed,
    Raise,
    ReturnWorker,
    TellReturned,
    WorkerAway,
)

REDIAL_S = 0.2
FAREWELL_S = 1.0

_log = structlog.get_logger(__name__)

Feed = Callable[[Event], None]


class WorkerPeers:
    """The Manage streams. One per leased worker, adopted anew after each break."""

    def __init__(self, *, network: Network, clock: Clock, node: str, feed: Feed) -> None:
        self._network = network
        self._clock = clock
        self._node = node
        self._feed = feed
        self._tasks = Tasks()
        self._leases: dict[str, Connect] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._outboxes: dict[str, Outbox[worker_pb2.ManagerOrder]] = {}

    def connect(self, effect: Connect) -> None:
        self._leases[effect.worker] = effect
        self._followers[effect.worker] = self._tasks.start(self._follow(effect), name=f"manage {effect.worker}")

    def disconnect(self, worker: str, lease: int) -> None:
        if worker in self._leases and self._leases[worker].lease == lease:
            del self._leases[worker]
            self._outboxes.pop(worker, None)
            self._followers.pop(worker).cancel()

    def order(self, effect: Create | Destroy | Raise | DrainWorker | ReturnWorker) -> None:
        """Without a stream nothing is lost: the inventory that comes with the next one says what is there."""
        outbox = self._outboxes.get(effect.worker)
        if outbox is not None:
            outbox.put(wire.order_of(effect, self._leases[effect.worker].lease))

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _follow(self, lease: Connect) -> None:
        channel = self._network.connect(lease.address, service="worker", node=lease.worker)
        try:
            while True:
                await self._manage(lease, channel)
                if self._leases.get(lease.worker) is not lease:
                    return
                self._feed(WorkerAway(worker=lease.worker, lease=lease.lease))
                await asyncio.sleep(REDIAL_S)
        finally:
            await channel.close()

    async def _manage(self, lease: Connect, channel: Channel) -> None:
        stream = channel.stream(worker_rpc.MANAGE)
        outbox: Outbox[worker_pb2.ManagerOrder] = Outbox(stream)
        self._outboxes[lease.worker] = outbox
        outbox.put(worker_pb2.ManagerOrder(lease=lease.lease, adopt=worker_pb2.ManagerOrder.Adopt(
            manager=self._node, lease=lease.lease, lasts_s=max(0.0, lease.lasts_until - self._clock.monotonic()),
            timeout_cap_s=lease.timeout_cap_s,
        )))
        try:
            await converse(stream, outbox, lambda event: self._hear(lease, event))
        except Fault as fault:
            _log.info("worker away", worker=lease.worker, lease=lease.lease, fault=fault.message)
        finally:
            if self._outboxes.get(lease.worker) is outbox:
                del self._outboxes[lease.worker]
            stream.cancel()

    def _hear(self, lease: Connect, event: worker_pb2.WorkerEvent) -> None:
        if self._leases.get(lease.worker) is lease:
            for word in wire.worker_events(event, lease.worker):
                self._feed(word)


class PlacementPeer:
    """The lease stream to whoever leads, and Place. Without placement everything here waits or says so."""

    def __init__(
        self, *, network: Network, directory: Directory, feed: Feed, held: Callable[[], dict[str, int]], place_s: float
    ) -> None:
        self._network = network
        self._directory = directory
        self._feed = feed
        self._held = held
        self._place_s = place_s
        self._tasks = Tasks()
        self._untold: dict[str, int] = {}           # returned while no stream was there
        self._channels: dict[str, Channel] = {}
        self._address = ""
        self._changed = asyncio.Event()
        self._stream: Stream[placement_pb2.ManagerReport, placement_pb2.LeaseOrder] | None = None
        self._outbox: Outbox[placement_pb2.ManagerReport] | None = None
        self._closing = False

    def start(self) -> None:
        self._directory.observe(self._see)
        self._tasks.start(self._follow(), name="lease stream")

    def tell_returned(self, effect: TellReturned) -> None:
        if self._outbox is None or self._closing:
            self._untold[effect.worker] = effect.lease
        else:
            self._outbox.put(_returned(effect.worker, effect.lease))

    def ask(self, effect: AskPlacement) -> None:
        self._tasks.start(self._place(effect), name=f"place {effect.sandbox}")

    def closing(self) -> None:
        """What is returned from now on is told by ``close``."""
        self._closing = True

    async def close(self) -> None:
        """Tells what was returned last, if placement is there to hear it."""
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(Fault, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    for worker, lease in self._untold.items():
                        await stream.send(_returned(worker, lease))
                    await stream.finish()
        await self.abort()

    async def abort(self) -> None:
        await self._tasks.cancel()
        for channel in self._channels.values():
            await channel.close()

    def _see(self, directory: Directory) -> None:
        leader = directory.nodes.get(directory.leader)
        address = leader.address if leader is not None else ""
        if address and address != self._address:
            self._address = address
            if self._stream is not None:
                self._stream.cancel()
            self._changed.set()

    def _channel(self, address: str) -> Channel:
        if address not in self._channels:
            self._channels[address] = self._network.connect(address, service="placement")
        return self._channels[address]

    async def _follow(self) -> None:
        while not self._closing:
            if not self._address:
                await self._changed.wait()
            self._changed.clear()
            try:
                await self._lease(self._address)
            except Fault as fault:
                _log.info("placement away", address=self._address, fault=fault.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REDIAL_S):
                    await self._changed.wait()

    async def _lease(self, address: str) -> None:
        self._stream = stream = self._channel(address).stream(placement_rpc.LEASE)
        outbox: Outbox[placement_pb2.ManagerReport] = Outbox(stream)
        untold, self._untold = self._untold, {}
        outbox.put(placement_pb2.ManagerReport(hello=placement_pb2.ManagerReport.Hello(
            manager=self._directory.node.node, nonce=self._directory.node.nonce,
            leases=[
                placement_pb2.ManagerReport.Held(worker=worker, lease=lease)
                for worker, lease in sorted((self._held() | untold).items())
            ],
        )))
        for worker, lease in untold.items():
            outbox.put(_returned(worker, lease))
        self._outbox = outbox
        try:
            await converse(stream, outbox, lambda order: self._feed(wire.placement_event(order)))
        finally:
            self._stream, self._outbox = None, None
            stream.cancel()

    async def _place(self, effect: AskPlacement) -> None:
        answer = None
        if self._address:
            request = wire.place_request(effect, self._directory.node.node)
            try:
                answer = await self._channel(self._address).call(
                    placement_rpc.PLACE, request, timeout_s=self._place_s
                )
            except Fault as fault:
                _log.info("placing alone", cause=effect.cause, fault=fault.message)
        self._feed(Placed(
            sandbox=effect.sandbox, workers=tuple(answer.workers) if answer is not None else None,
            refusal=answer.refusal if answer is not None else "", cause=effect.cause,
        ))


def _returned(worker: str, lease: int) -> placement_pb2.ManagerReport:
    return placement_pb2.ManagerReport(
        returned=placement_pb2.ManagerReport.Returned(worker=worker, lease=lease)
    )
