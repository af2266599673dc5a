"""Managers over the memory network, with a real placement and small workers that speak the Manage protocol."""

import asyncio
import contextlib
import random
from dataclasses import replace

import pytest

from chassis.certificates import TlsFiles
from chassis.clock import SystemClock
from chassis.config import NodeConfig
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers
from placement.config import FleetConfig, PlacementConfig
from placement.service import PlacementService
from protos import (
    common_pb2,
    placement_pb2,
    worker_manager_pb2,
    worker_manager_rpc,
    worker_pb2,
    worker_rpc,
)
from storage.leases import MetadataLeases
from storage.memory import MemoryMetadata
from worker_manager.config import ManagerConfig, PoolConfig
from worker_manager.service import ManagerService

TLS = TlsFiles(authority="", certificate="", key="")
SEEDS = ("placement-az1:1",)
FLEET = FleetConfig(
    suspect_s=1.0, dead_s=2.5, takeover_s=0.2, renew_s=0.1, vacated_s=0.2, leadership_s=0.4, settle_s=0.3
)
QUICK = replace(FLEET, time_scale=0.6 / 21600)


class SmallWorker:
    """One worker: sandboxes are rows of a table, the Manage protocol is whole."""

    def __init__(self, region, name, memory_mb):
        self.region, self.name, self.memory_mb = region, name, memory_mb
        service, az = name.split("-")[:2]
        self.caller = Caller(service=service, node=name, az=az, host=f"host-{name}")
        self.network = region.fabric.network(self.caller)
        self.sandboxes = {}
        self.highest = 0
        self.stream = None
        self.created = []
        self.adoptions = []
        self.slow = None                    # an event that creates wait for
        self.returning = False

    async def start(self):
        handlers = Handlers()
        handlers.bidi(worker_rpc.MANAGE, self.manage)
        self.server = await self.network.serve(f"{self.name}:1", handlers)
        node = placement_pb2.Node(
            node=self.name, service="worker", az=self.caller.az, host=self.caller.host, address=f"{self.name}:1",
            nonce=7, capacity=placement_pb2.WorkerCapacity(
                memory_mb=self.memory_mb, memory_free_mb=self.memory_mb, runtimes=["python3.12"]),
        )
        self.directory = Directory(network=self.network, clock=self.region.clock, seeds=SEEDS, node=node)
        self.directory.start()

    async def stop(self):
        await self.directory.close()
        await self.server.close(grace_s=0)

    async def manage(self, stream, caller):
        while (order := await stream.receive()) is not None:
            kind = order.WhichOneof("order")
            if order.lease < self.highest:
                await self.say(stream, stale_lease=worker_pb2.WorkerEvent.StaleLease(highest=self.highest),
                               lease=order.lease)
                continue
            if kind == "adopt":
                self.highest, self.stream, self.returning = order.lease, stream, False
                self.adoptions.append((caller.node, order.lease))
                await self.say(stream, inventory=self.inventory())
            elif kind == "create":
                await self.create(stream, order.create)
            elif kind == "destroy":
                self.sandboxes.pop(order.destroy.sandbox)
                await self.say(stream, gone=worker_pb2.WorkerEvent.Gone(sandbox=order.destroy.sandbox))
            elif kind == "raise":
                wanted = getattr(order, "raise")
                row = self.sandboxes[wanted.sandbox]
                busy = row.state == "busy"
                kept = bool(wanted.used) and (busy or row.sequence < wanted.used)
                if not kept:
                    row.sequence = wanted.sequence
                await self.say(stream, raised=worker_pb2.WorkerEvent.Raised(
                    sandbox=wanted.sandbox, sequence=wanted.sequence, busy=busy, kept=kept))
            elif kind == "return":
                assert not self.sandboxes
                await self.say(stream, returned=worker_pb2.WorkerEvent.Returned())

    async def create(self, stream, create):
        self.created.append(create)
        used = sum(row.memory_mb for row in self.sandboxes.values())
        if used + create.config.memory_mb > self.memory_mb:
            await self.say(stream, no_capacity=worker_pb2.WorkerEvent.NoCapacity(
                sandbox=create.sandbox, reason="full", memory_free_mb=self.memory_mb - used))
            return
        self.sandboxes[create.sandbox] = worker_pb2.WorkerEvent.SandboxStatus(
            sandbox=create.sandbox, function=create.function, sequence=1, state="idle",
            memory_mb=create.config.memory_mb,
        )
        if self.slow is not None:
            await self.slow.wait()
        await self.say(stream, ready=worker_pb2.WorkerEvent.Ready(
            sandbox=create.sandbox, sequence=1, phases=worker_pb2.ColdPhases(code_ms=3, init_ms=2)))

    def inventory(self):
        used = sum(row.memory_mb for row in self.sandboxes.values())
        return worker_pb2.WorkerEvent.Inventory(
            lease=self.highest, incarnation=common_pb2.Incarnation(host=self.caller.host, nonce=7),
            sandboxes=self.sandboxes.values(), memory_mb=self.memory_mb, memory_free_mb=self.memory_mb - used,
            runtimes=["python3.12"], invoke_address=f"{self.caller.node}:2",
        )

    async def say(self, stream, *, lease=None, **event):
        await stream.send(worker_pb2.WorkerEvent(lease=self.highest if lease is None else lease, **event))

    async def run(self, reservation, *, until=None):
        """One invocation under a reservation; refused (False) when the sequence is below the highest."""
        row = self.sandboxes[reservation.sandbox]
        if reservation.sequence < row.sequence or reservation.lease < self.highest or row.state == "busy":
            return False
        row.sequence, row.state = reservation.sequence, "busy"
        await self.say_use(row, invocation="i")
        if until is not None:
            await until.wait()
        row.state = "idle"
        await self.say_use(row, invocation="")
        return True

    async def say_use(self, row, *, invocation):
        use = worker_pb2.WorkerEvent.Use(sandbox=row.sandbox, sequence=row.sequence, invocation=invocation)
        await self.say(self.stream, uses=worker_pb2.WorkerEvent.Uses(uses=[use]))


class SmallFrontend:
    """A Reserve stream whose replies are kept by invocation."""

    def __init__(self, region, manager, name="frontend-az1-1"):
        caller = Caller(service="frontend", node=name, az="az1", host="h")
        channel = region.fabric.network(caller).connect(f"{manager}:1", service="worker_manager")
        self.stream = channel.stream(worker_manager_rpc.RESERVE)
        self.replies = {}
        self.task = asyncio.get_running_loop().create_task(self.listen())

    async def listen(self):
        with contextlib.suppress(Fault):
            while (batch := await self.stream.receive()) is not None:
                for reply in batch.replies:
                    self.replies.setdefault(reply.invocation, []).append(reply)

    async def ask(self, invocation, **request):
        await self.stream.send(worker_manager_pb2.FrontendRequests(requests=[
            worker_manager_pb2.FrontendRequest(invocation=invocation, **request)]))

    async def reserve(self, invocation, *, function="f", memory_mb=128, deadline_s=5.0):
        await self.ask(invocation, reserve=worker_manager_pb2.FrontendRequest.Reserve(
            function=common_pb2.FunctionId(account="0", function=function, version="$LATEST", revision=1),
            config=worker_pb2.FunctionConfig(memory_mb=memory_mb, runtime="python3.12", handler="app.handler"),
            ticket=worker_pb2.CodeTicket(sha256="ab" * 32), deadline_s=deadline_s, az="az1",
        ))

    async def answer(self, invocation):
        """The first Reserved or Refused."""
        async with asyncio.timeout(60):
            while not self.replies.get(invocation):
                await asyncio.sleep(0.005)
        reply = self.replies[invocation].pop(0)
        return getattr(reply, reply.WhichOneof("reply"))

    async def reserved(self, invocation, **fields):
        await self.reserve(invocation, **fields)
        answer = await self.answer(invocation)
        assert isinstance(answer, worker_manager_pb2.ManagerReply.Reserved), answer
        return answer

    async def release(self, reservation):
        await self.ask("", release=worker_manager_pb2.FrontendRequest.Release(
            sandbox=reservation.sandbox, sequence=reservation.sequence))

    async def close(self):
        self.stream.cancel()
        await self.task


class Region:
    def __init__(self):
        self.fabric = Fabric()
        self.clock = SystemClock()
        self.ends = []

    def node(self, name):
        service, az = name.split("-")[:2]
        return NodeConfig(service=service, node=name, az=az, host=f"host-{name}", listen=f"{name}:1", placement=SEEDS,
                          tls=TLS, check=True, drain_s=0.2)

    async def placement(self, fleet=FLEET):
        node = self.node("placement-az1")
        service = PlacementService(
            PlacementConfig(node=node, store="memory", fleet=fleet, tick_s=0.05),
            network=self.fabric.network(node.identity), clock=self.clock, rng=random.Random(1),
            leases=MetadataLeases(MemoryMetadata(self.clock)),
        )
        await service.start()
        self.ends.append(service.kill)
        return service

    async def manager(self, name="worker_manager-az1", seed=2, **pool):
        node = self.node(name)
        service = ManagerService(
            ManagerConfig(node=node, pool=PoolConfig(**pool)), network=self.fabric.network(node.identity),
            clock=self.clock, rng=random.Random(seed),
        )
        await service.start()
        self.ends.append(service.kill)
        return service

    async def worker(self, name, memory_mb=1024):
        worker = SmallWorker(self, name, memory_mb)
        await worker.start()
        self.ends.append(worker.stop)
        return worker

    def frontend(self, manager="worker_manager-az1", name="frontend-az1-1"):
        frontend = SmallFrontend(self, manager, name)
        self.ends.append(frontend.close)
        return frontend


@pytest.fixture
async def region():
    region = Region()
    yield region
    for end in reversed(region.ends):
        await end()


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def usable(manager):
    return sorted(lease.worker for lease in manager.core.supply.leases.values() if lease.usable)


async def test_cold_then_warm_then_cold_beside_it(region):
    await region.placement()
    manager = await region.manager()
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(manager) == ["worker-az1-1"])
    frontend = region.frontend()
    cold = await frontend.reserved("a")
    assert cold.cold
    assert (cold.phases.code_ms, cold.phases.init_ms) == (3, 2)
    assert 0 < cold.phases.place_ms < 200, "placement was asked"
    assert cold.reservation.address == "worker-az1-1:2"
    assert cold.reservation.incarnation.nonce == 7
    create = worker.created[0]
    assert (create.config.handler, create.ticket.sha256, create.cause) == ("app.handler", "ab" * 32, "a")
    assert await worker.run(cold.reservation)
    await frontend.release(cold.reservation)
    warm = await frontend.reserved("b")
    assert not warm.cold
    assert warm.reservation.sandbox == cold.reservation.sandbox
    assert warm.reservation.sequence == cold.reservation.sequence + 1
    other = await frontend.reserved("c")
    assert other.cold
    assert other.reservation.sandbox != warm.reservation.sandbox


async def test_lingering_is_recalled_for_another_frontend(region):
    await region.placement()
    manager = await region.manager(linger_s=1.0)
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(manager))
    first, second = region.frontend(), region.frontend(name="frontend-az2-1")
    mine = (await first.reserved("a")).reservation
    assert await worker.run(mine)
    theirs = (await second.reserved("b")).reservation
    assert theirs.sandbox == mine.sandbox
    assert len(worker.created) == 1
    recall = await first.answer("a")
    assert (recall.sandbox, recall.sequence) == (mine.sandbox, mine.sequence)
    assert not await worker.run(mine), "the worker refuses the old sequence"
    assert await worker.run(theirs)


async def test_many_at_once_make_as_many_spread_over_azs(region):
    await region.placement()
    manager = await region.manager()
    workers = [await region.worker(f"worker-az{i}-1", memory_mb=4096) for i in (1, 2, 3)]
    await until(lambda: len(usable(manager)) == 3)
    frontend = region.frontend()
    answers = await asyncio.gather(*(frontend.reserved(f"i{i}") for i in range(30)))
    assert len({answer.reservation.sandbox for answer in answers}) == 30
    assert [len(worker.created) for worker in workers] == [10, 10, 10]


async def test_placing_goes_on_without_placement(region):
    placement = await region.placement()
    manager = await region.manager()
    workers = [await region.worker(f"worker-az{i}-1") for i in (1, 2)]
    await until(lambda: len(usable(manager)) == 2)
    await placement.kill()
    frontend = region.frontend()
    hosts = {(await frontend.reserved(f"i{i}")).reservation.worker for i in range(2)}
    assert hosts == {worker.name for worker in workers}


async def test_a_worker_that_breaks_is_replaced_and_adopted_again(region):
    await region.placement()
    manager = await region.manager()
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(manager))
    frontend = region.frontend()
    first = (await frontend.reserved("a")).reservation
    ends = asyncio.Event()
    run = asyncio.get_running_loop().create_task(worker.run(first, until=ends))
    await until(lambda: worker.sandboxes[first.sandbox].state == "busy")
    worker.stream.cancel()
    await until(lambda: len(worker.adoptions) == 2)
    assert worker.adoptions[0] == worker.adoptions[1], "the same lease number"
    ends.set()
    assert await run
    again = await frontend.reserved("b")
    assert (again.reservation.sandbox, again.cold) == (first.sandbox, False)
    assert again.reservation.sequence > first.sequence


async def test_a_killed_manager_is_followed_by_its_standby(region):
    await region.placement()
    first = await region.manager()
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(first))
    second = await region.manager("worker_manager-az2", seed=3)
    frontend = region.frontend()
    kept = (await frontend.reserved("a")).reservation
    await first.kill()
    await until(lambda: usable(second))
    assert [manager for manager, _ in worker.adoptions] == ["worker_manager-az1", "worker_manager-az2"]
    assert worker.adoptions[1][1] > worker.adoptions[0][1]
    frontend = region.frontend("worker_manager-az2")
    answer = await frontend.reserved("b")
    assert (answer.reservation.sandbox, answer.cold) == (kept.sandbox, False), "the sandbox is still warm"
    assert not await worker.run(kept), "the old lease number starts nothing"
    assert await worker.run(answer.reservation)


async def test_a_drained_manager_hands_over_at_once(region):
    await region.placement()
    first = await region.manager()
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(first))
    second = await region.manager("worker_manager-az2", seed=3)
    standby = region.frontend("worker_manager-az2")
    await standby.reserve("early")
    assert (await standby.answer("early")).reason == worker_manager_pb2.ManagerReply.Refused.NOT_ACTIVE
    kept = (await region.frontend().reserved("a")).reservation
    await first.drain()
    await until(lambda: usable(second))
    answer = await standby.reserved("b")
    assert (answer.reservation.sandbox, answer.cold) == (kept.sandbox, False)
    assert worker.adoptions[-1] == ("worker_manager-az2", 2)


async def test_leases_end_are_returned_and_granted_again(region):
    await region.placement(QUICK)
    manager = await region.manager()
    worker = await region.worker("worker-az1-1")
    await until(lambda: usable(manager))
    reservation = (await region.frontend().reserved("a")).reservation
    assert await worker.run(reservation)
    await until(lambda: len(worker.adoptions) >= 3)
    numbers = [lease for _, lease in worker.adoptions]
    assert numbers == sorted(set(numbers)), "each lease has a higher number"
    assert reservation.sandbox not in worker.sandboxes


async def test_describe_and_no_capacity(region):
    await region.placement()
    manager = await region.manager()
    await region.worker("worker-az1-1", memory_mb=256)
    await until(lambda: usable(manager))
    frontend = region.frontend()
    await frontend.reserved("a")
    await frontend.reserve("b", memory_mb=512)
    refused = await frontend.answer("b")
    assert refused.reason == worker_manager_pb2.ManagerReply.Refused.NO_CAPACITY
    assert "512 MB fit on none" in refused.message
    operator = Caller(service="operator", node="operator", az="az1", host="h")
    channel = region.fabric.network(operator).connect("worker_manager-az1:1", service="worker_manager")
    answer = await channel.call(worker_manager_rpc.DESCRIBE, worker_manager_pb2.DescribeRequest(), timeout_s=30)
    assert answer.role == "active"
    assert dict(answer.workers[0].sandboxes) == {"reserved": 1}
    assert (answer.workers[0].memory_mb, answer.workers[0].memory_free_mb) == (256, 128)
    assert 6 * 3600 - 60 < answer.workers[0].soft_end - region.clock.wall() < 9 * 3600
