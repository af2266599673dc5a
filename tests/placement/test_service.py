"""Placement over the memory network: real directories, managers' lease streams, several placements."""

import asyncio
import contextlib
import random

import pytest

from chassis.certificates import TlsFiles
from chassis.clock import SystemClock
from chassis.config import NodeConfig
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from chassis.memory_network import Fabric
from chassis.rpc import Caller
from placement.config import FleetConfig, PlacementConfig
from placement.service import PlacementService
from protos import placement_pb2, placement_rpc
from storage.leases import MetadataLeases
from storage.memory import MemoryMetadata

TLS = TlsFiles(authority="", certificate="", key="")
FAST = FleetConfig(
    suspect_s=1.0, dead_s=2.5, takeover_s=0.2, renew_s=0.1, vacated_s=0.2, leadership_s=0.4, settle_s=0.3,
    time_scale=0.001
)


class Region:
    """Placements and small processes on one fabric; everything ends with the test."""

    def __init__(self):
        self.fabric = Fabric()
        self.clock = SystemClock()
        self.store = MemoryMetadata(self.clock)
        self.seeds = ("placement-az1:1", "placement-az2:1")
        self.running = []

    async def placement(self, az, seed=1):
        node = NodeConfig(
            service="placement", node=f"placement-{az}", az=az, host=f"host-{az}", listen=f"placement-{az}:1",
            placement=self.seeds, tls=TLS, check=True,
        )
        service = PlacementService(
            PlacementConfig(node=node, store="memory", fleet=FAST, tick_s=0.05),
            network=self.fabric.network(node.identity), clock=self.clock, rng=random.Random(seed),
            leases=MetadataLeases(self.store),
        )
        await service.start()
        self.running.append(service.kill)
        return service

    def directory(self, name, *, nonce=1, memory_mb=1024):
        service, az = name.split("-")[:2]
        caller = Caller(service=service, node=name, az=az, host=f"host-{name}")
        node = placement_pb2.Node(
            node=name, service=service, az=az, host=caller.host, address=f"{name}:1", nonce=nonce
        )
        if service == "worker":
            node.capacity.memory_mb = node.capacity.memory_free_mb = memory_mb
            node.capacity.runtimes.append("python3.12")
        network = self.fabric.network(caller)
        directory = Directory(network=network, clock=self.clock, seeds=self.seeds, node=node)
        directory.start()
        self.running.append(directory.close)
        return directory

    def lease_stream(self, manager, placement):
        caller = Caller(service="worker_manager", node=manager, az=manager.split("-")[1], host=f"host-{manager}")
        channel = self.fabric.network(caller).connect(f"{placement}:1", service="placement")
        stream = channel.stream(placement_rpc.LEASE)
        self.running.append(_cancel(stream))
        return stream


def _cancel(stream):
    async def cancel():
        stream.cancel()

    return cancel


@pytest.fixture
async def region():
    region = Region()
    yield region
    for end in reversed(region.running):
        with contextlib.suppress(Fault):
            await end()


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def orders(stream, kind):
    async with asyncio.timeout(60):
        while (order := await stream.receive()) is not None:
            if order.WhichOneof("order") == kind:
                return getattr(order, kind)
    raise AssertionError(f"the stream ended without {kind}")


def hello(manager, *held, nonce=1):
    return placement_pb2.ManagerReport(hello=placement_pb2.ManagerReport.Hello(
        manager=manager, nonce=nonce,
        leases=[placement_pb2.ManagerReport.Held(worker=worker, lease=lease) for worker, lease in held],
    ))


async def test_nodes_see_each_other_and_a_manager_gets_workers(region):
    await region.placement("az1")
    worker = region.directory("worker-az1-1")
    manager = region.directory("worker_manager-az1")
    await until(lambda: {"placement-az1", "worker-az1-1", "worker_manager-az1"} <= manager.nodes.keys())
    await until(lambda: manager.nodes["placement-az1"].role == "active")
    assert manager.leader == "placement-az1"
    stream = region.lease_stream("worker_manager-az1", manager.leader)
    await stream.send(hello("worker_manager-az1"))
    granted = await orders(stream, "granted")
    assert (granted.worker, granted.address, granted.lease) == ("worker-az1-1", "worker-az1-1:1", 1)
    assert 6 * 3.6 - 1 <= granted.soft_end_s < granted.hard_end_s <= 10 * 3.6
    await until(lambda: [owner.manager for owner in worker.owners] == ["worker_manager-az1"])


async def test_place_ranks_the_managers_workers(region):
    await region.placement("az1")
    for name, memory_mb in (("worker-az1-1", 512), ("worker-az2-1", 1024), ("worker-az3-1", 2048)):
        region.directory(name, memory_mb=memory_mb)
    manager = region.directory("worker_manager-az1")
    await manager.ready(60)
    stream = region.lease_stream("worker_manager-az1", manager.leader)
    await stream.send(hello("worker_manager-az1"))
    workers = sorted([(await orders(stream, "granted")).worker for _ in range(3)])
    caller = Caller(service="worker_manager", node="worker_manager-az1", az="az1", host="h")
    channel = region.fabric.network(caller).connect("placement-az1:1", service="placement")

    async def place(**fields):
        request = placement_pb2.PlaceRequest(manager="worker_manager-az1", runtime="python3.12", **fields)
        request.workers.extend(workers)
        return await channel.call(placement_rpc.PLACE, request, timeout_s=30)

    # The preferred AZ first, then the fullest.
    assert list((await place(memory_mb=128, az="az2")).workers) == ["worker-az2-1", "worker-az1-1", "worker-az3-1"]
    # One function's sandboxes are spread over AZs before anything else.
    spread = await place(memory_mb=128, az="az2", same={"worker-az2-1": 1, "worker-az1-1": 1})
    assert spread.workers[0] == "worker-az3-1"
    assert list((await place(memory_mb=1500)).workers) == ["worker-az3-1"]
    assert "4000 MB fit on none of 3 workers" in (await place(memory_mb=4000)).refusal
    with pytest.raises(Fault) as refused:
        await channel.call(placement_rpc.PLACE, placement_pb2.PlaceRequest(manager="another"), timeout_s=30)
    assert refused.value.code is FaultCode.DENIED


async def test_a_certificate_registers_only_itself(region):
    await region.placement("az1")
    caller = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h1")
    stream = region.fabric.network(caller).connect("placement-az1:1", service="placement").stream(
        placement_rpc.REGISTER
    )
    claims = placement_pb2.Node(node="worker-az1-1", service="worker", az="az1", host="h1", address="evil:1")
    await stream.send(placement_pb2.NodeReport(node=claims))
    with pytest.raises(Fault) as denied:
        await stream.receive()
    assert denied.value.code is FaultCode.DENIED


async def test_a_killed_placement_is_followed_by_its_standby(region):
    first = await region.placement("az1")
    manager = region.directory("worker_manager-az1")
    await manager.ready(60)
    region.directory("worker-az1-1")
    stream = region.lease_stream("worker_manager-az1", "placement-az1")
    await stream.send(hello("worker_manager-az1"))
    granted = await orders(stream, "granted")
    second = await region.placement("az2", seed=2)
    await until(lambda: "placement-az2" in manager.nodes)
    assert manager.nodes["placement-az2"].role == "standby"
    await first.kill()
    await until(lambda: manager.leader == "placement-az2")
    assert manager.term > 1
    assert second.core.is_active
    # The manager holds on to its worker: the lease goes on under its number.
    stream = region.lease_stream("worker_manager-az1", "placement-az2")
    await stream.send(hello("worker_manager-az1", (granted.worker, granted.lease)))
    assert (await orders(stream, "role")).active
    hold = second.core.holds["worker-az1-1"]
    assert (hold.manager, hold.record.number) == ("worker_manager-az1", granted.lease)


async def test_a_drained_placement_hands_over_at_once(region):
    first = await region.placement("az1")
    manager = region.directory("worker_manager-az1")
    await manager.ready(60)
    await region.placement("az2", seed=2)
    await until(lambda: "placement-az2" in manager.nodes)
    await first.drain()
    await until(lambda: manager.leader == "placement-az2")


async def test_a_restarted_placement_keeps_leases_and_numbers(region):
    first = await region.placement("az1")
    manager = region.directory("worker_manager-az1")
    await manager.ready(60)
    region.directory("worker-az1-1")
    stream = region.lease_stream("worker_manager-az1", "placement-az1")
    await stream.send(hello("worker_manager-az1"))
    granted = await orders(stream, "granted")
    await first.kill()
    again = await region.placement("az1", seed=3)
    await until(lambda: again.core.is_active)
    await until(lambda: manager.term > 1)
    stream = region.lease_stream("worker_manager-az1", "placement-az1")
    await stream.send(hello("worker_manager-az1", nonce=7))  # another process of the manager holds nothing
    regranted = await orders(stream, "granted")
    assert regranted.lease > granted.lease


async def test_the_store_away_stops_grants_and_nothing_else(region):
    await region.placement("az1")
    manager = region.directory("worker_manager-az1")
    await manager.ready(60)
    stream = region.lease_stream("worker_manager-az1", "placement-az1")
    await stream.send(hello("worker_manager-az1"))
    assert (await orders(stream, "role")) is not None

    async def away(key):
        raise Fault("the store is away", definite=True)

    calm, region.store.before_write = region.store.before_write, away
    region.directory("worker-az1-1")
    await until(lambda: "worker-az1-1" in manager.nodes)
    region.store.before_write = calm
    assert (await orders(stream, "granted")).worker == "worker-az1-1"


def test_a_leader_renews_before_it_stops_deciding():
    node = NodeConfig(
        service="placement", node="placement-az1", az="az1", host="h", listen="placement-az1:1", placement=(), tls=TLS,
    )
    with pytest.raises(ValueError, match=r"vacated_s \(0.2\).*renew_s \(0.1\) and tick_s \(0.25\)"):
        PlacementConfig(node=node, store="memory", fleet=FAST)
