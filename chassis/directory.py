"""Registration with placement, and the region's view that comes back: how every process finds its peers.

Owns the streams to the placement processes, this process's heartbeats and the newest view; its network hears from it
whom the view calls revoked. Refuses to know what peers are for. Placement addresses are the only seeds; placements that
join later are found through the view. Without any placement the last view stays: peers known stay known.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from chassis.beat import next_beat
from chassis.clock import Clock
from chassis.faults import Fault
from chassis.process import Tasks
from chassis.rpc import Network, Outbox, Stream, converse
from protos import placement_pb2, placement_rpc

HEARTBEAT_S = 0.5       # placement routes around a process that is silent for 1 s
STANDBY_HEARTBEAT_S = 5.0   # to a placement that stands by: it judges by broken streams until it leads
REPLACED = frozenset({"worker_manager", "placement"})   # whose silence also a standby has to miss, to lead at once
WATCHERS = frozenset({"operator"})  # they see the view and are no part of it
REDIAL_S = 0.2

_log = structlog.get_logger(__name__)

Observer = Callable[["Directory"], None]


class Directory:
    """One process's registration. ``nodes`` is the region as the active placement sees it."""

    def __init__(self, *, network: Network, clock: Clock, seeds: tuple[str, ...], node: placement_pb2.Node) -> None:
        self.node = node
        self.nodes: dict[str, placement_pb2.Node] = {}
        self.owners: tuple[placement_pb2.RegionView.Owner, ...] = ()
        self.owners_version = 0
        self.margins: tuple[placement_pb2.RegionView.Margin, ...] = ()
        self.term = 0
        self.version = 0
        self.leader = ""                # node id of the active placement
        self.revoked: dict[str, int] = {}   # nodes that are refused, up to which enrolment
        self.refresh: Callable[[placement_pb2.Node], None] = lambda _node: None     # before each heartbeat
        self._network = network
        self._clock = clock
        self._tasks = Tasks()
        self._observers: list[Observer] = []
        self._outboxes: dict[str, Outbox[placement_pb2.NodeReport]] = {}
        self._dialled: set[str] = set()
        self._seeds = seeds
        self._leaving = False
        self._first_view = asyncio.Event()

    def start(self) -> None:
        for seed in self._seeds:
            self._dial(seed)

    async def ready(self, timeout_s: float) -> None:
        """Waits for the first view. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._first_view.wait()

    def observe(self, observer: Observer) -> None:
        """Calls ``observer(directory)`` after each new view, and now if there is one."""
        self._observers.append(observer)
        if self._first_view.is_set():
            observer(self)

    def of_service(self, service: str) -> list[placement_pb2.Node]:
        """Nodes of one service that are not dead, by node id."""
        nodes = [node for node in self.nodes.values() if node.service == service and node.health != "dead"]
        return sorted(nodes, key=lambda node: node.node)

    def update(self, *, role: str | None = None, **detail: str) -> None:
        """Tells the region of a change of this process's role or small facts."""
        if role is not None:
            self.node.role = role
        for key, value in detail.items():
            self.node.detail[key] = value
        self._report(placement_pb2.NodeReport(node=self.node))

    def load(self, load: placement_pb2.WorkerCapacity) -> None:
        """Tells placement of this worker's load, at once; heartbeats carry it on."""
        self.node.capacity.CopyFrom(load)
        self._report(placement_pb2.NodeReport(heartbeat=True, load=load))

    def leave(self) -> None:
        """This process drains: no new work for it, please."""
        self._leaving = True
        self._report(placement_pb2.NodeReport(node=self.node, leaving=True))

    async def close(self) -> None:
        await self._tasks.cancel()

    def _report(self, report: placement_pb2.NodeReport) -> None:
        for outbox in self._outboxes.values():
            outbox.put(report)

    def _dial(self, address: str) -> None:
        if address not in self._dialled:
            self._dialled.add(address)
            self._tasks.start(self._follow(address), name=f"register at {address}")

    async def _follow(self, address: str) -> None:
        while True:
            # Each time: an operator reaches a container that was started again at another address than before.
            channel = self._network.connect(address, service="placement")
            stream = channel.stream(placement_rpc.REGISTER)
            try:
                await self._converse(address, stream)
            except Fault as fault:
                _log.debug("placement", address=address, fault=fault.message)
            finally:
                stream.cancel()
                await channel.close()
            await asyncio.sleep(REDIAL_S)

    async def _converse(
        self, address: str, stream: Stream[placement_pb2.NodeReport, placement_pb2.RegionView]
    ) -> None:
        outbox = Outbox(stream, limit=64)
        self._outboxes[address] = outbox
        leading = asyncio.Event()      # whether this placement says that it leads
        outbox.put(placement_pb2.NodeReport(node=self.node, leaving=self._leaving))
        beat = self._tasks.start(self._beat(address, outbox, leading), name=f"heartbeat to {address}")

        def hear(view: placement_pb2.RegionView) -> None:
            if view.active:
                leading.set()
            else:
                leading.clear()
            self._see(view)

        try:
            await converse(stream, outbox, hear)
        finally:
            del self._outboxes[address]
            beat.cancel()

    async def _beat(
        self, address: str, outbox: Outbox[placement_pb2.NodeReport], leading: asyncio.Event
    ) -> None:
        if address == self.node.address or self.node.service in WATCHERS:
            return      # a placement knows that it is there itself, and misses nobody who only looks
        while True:
            if leading.is_set() or self.node.service in REPLACED:
                await next_beat(HEARTBEAT_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STANDBY_HEARTBEAT_S):
                        await leading.wait()
            report = placement_pb2.NodeReport(heartbeat=True)
            self.refresh(self.node)
            if self.node.HasField("capacity"):
                report.load.CopyFrom(self.node.capacity)
            outbox.put(report)

    def _hear_revoked(self, view: placement_pb2.RegionView) -> None:
        """From any placement, also one that stands by: no leader can keep it from anybody. It only grows."""
        news = {node: number for node, number in view.revoked.items() if number > self.revoked.get(node, -1)}
        if news:
            self.revoked |= news
            self._network.revoke(news)
            for observer in self._observers if self._first_view.is_set() else ():
                observer(self)

    def _see(self, view: placement_pb2.RegionView) -> None:
        self._hear_revoked(view)
        if not view.active or view.term < self.term:
            return
        if not view.whole or (view.term == self.term and view.version <= self.version):
            return
        self.term, self.version, self.leader = view.term, view.version, view.leader
        self.nodes = {node.node: node for node in view.nodes}
        self.owners_version, self.owners = view.owners_version, tuple(view.owners)
        self.margins = tuple(view.margins)
        for node in self.of_service("placement"):
            self._dial(node.address)
        self._first_view.set()
        for observer in self._observers:
            observer(self)
