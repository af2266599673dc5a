"""Registration: the newest view of the highest term counts, and peers known stay known."""

import asyncio
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers
from protos import placement_pb2, placement_rpc, worker_pb2, worker_rpc

WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="h1")


class Placement:
    """Speaks the Register stream: keeps what is reported, sends what the test says."""

    def __init__(self, fabric: Fabric, name: str) -> None:
        self.caller = Caller(service="placement", node=name, az="az1", host="h0")
        self.network = fabric.network(self.caller)
        self.reports: list[placement_pb2.NodeReport] = []
        self.streams: list[Any] = []

    async def serve(self) -> str:
        handlers = Handlers()
        handlers.bidi(placement_rpc.REGISTER, self._register)
        self.server = await self.network.serve("10.0.0.1:0", handlers)
        return self.server.address

    async def _register(self, stream, caller):
        self.streams.append(stream)
        while (report := await stream.receive()) is not None:
            self.reports.append(report)

    async def view(
        self, term: int, version: int, *, active: bool = True, nodes: tuple[str, ...] = (),
        revoked: dict[str, int] | None = None,
    ) -> None:
        view = placement_pb2.RegionView(
            term=term, version=version, active=active, leader=self.caller.node, whole=True, revoked=revoked or {},
            nodes=[placement_pb2.Node(node=node, service="counting", health="serving") for node in nodes],
        )
        for stream in self.streams:
            await stream.send(view)


async def until(holds) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
async def region():
    fabric = Fabric()
    first, second = Placement(fabric, "placement-1"), Placement(fabric, "placement-2")
    seeds = (await first.serve(), await second.serve())
    node = placement_pb2.Node(node=WORKER.node, service="worker", az="az1", host="h1")
    directory = Directory(network=fabric.network(WORKER), clock=SystemClock(), seeds=seeds, node=node)
    directory.start()
    await until(lambda: first.streams and second.streams)
    yield directory, first, second
    await directory.close()
    for placement in (first, second):
        await placement.server.close(0)


async def test_views_of_a_lower_term_a_standby_or_an_older_version_are_dropped(region):
    directory, first, second = region
    await first.view(term=2, version=5, nodes=("a", "b"))
    await directory.ready(60)
    await second.view(term=1, version=9, nodes=("stale",))
    await second.view(term=3, version=1, active=False, nodes=("standby",))
    await first.view(term=2, version=4, nodes=("older",))
    await first.view(term=2, version=6, nodes=("a", "c"))
    await until(lambda: directory.version == 6)
    assert sorted(directory.nodes) == ["a", "c"]
    await second.view(term=3, version=1, nodes=("d",))
    await until(lambda: directory.term == 3)
    assert sorted(directory.nodes) == ["d"]


async def test_changes_and_leaving_reach_every_placement_heartbeats_the_leading_one(region):
    directory, first, second = region
    directory.update(role="active", runtimes="python3.11")
    directory.leave()
    await first.view(term=1, version=1)
    await second.view(term=1, version=1, active=False)
    await until(lambda: sum(report.heartbeat for report in first.reports) >= 2)
    assert not any(report.heartbeat for report in second.reports), "who stands by is to cost hardly anything"
    await second.view(term=2, version=1)
    await until(lambda: any(report.heartbeat for report in second.reports))
    for placement in (first, second):
        assert any(report.node.role == "active" for report in placement.reports)
        assert any(report.node.detail["runtimes"] == "python3.11" for report in placement.reports)
        assert any(report.leaving for report in placement.reports)


async def test_a_placement_that_comes_back_is_registered_with_again_and_the_view_stays(region):
    directory, first, _ = region
    await first.view(term=1, version=1, nodes=("a",))
    await directory.ready(60)
    address = first.server.address
    first.server.crash()
    first.streams.clear()
    assert sorted(directory.nodes) == ["a"], "peers known stay known"
    handlers = Handlers()
    handlers.bidi(placement_rpc.REGISTER, first._register)
    first.server = await first.network.serve(address, handlers)
    await until(lambda: bool(first.streams))


async def test_whom_the_view_calls_revoked_is_cut_and_refused(region):
    directory, first, _ = region
    fabric = Fabric()
    own = fabric.network(WORKER)
    directory._network = own
    handlers = Handlers()

    async def echo(stream, caller):
        while (frames := await stream.receive()) is not None:
            await stream.send(frames)

    handlers.bidi(worker_rpc.INVOKE, echo)
    server = await own.serve("10.0.0.2:0", handlers)

    def dialled(enrolment: int) -> Any:
        caller = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h2", enrolment=enrolment)
        return fabric.network(caller).connect(server.address, service="worker").stream(worker_rpc.INVOKE)

    stream = dialled(1)
    await stream.send(worker_pb2.InvokeFrames())
    assert await stream.receive() is not None
    await first.view(term=1, version=1, revoked={"frontend-az1-1": 1})
    with pytest.raises(Fault, match="was revoked"):
        await stream.receive()
    with pytest.raises(Fault, match="was revoked"):
        await dialled(1).receive()
    await first.view(term=2, version=1)     # one that knows of no revocation takes none back
    await until(lambda: directory.term == 2)
    with pytest.raises(Fault, match="was revoked"):
        await dialled(1).receive()
    successor = dialled(2)
    await successor.send(worker_pb2.InvokeFrames())
    assert await successor.receive() is not None
    await server.close(0)


async def test_a_standby_tells_of_revocations_and_nobody_takes_them_back(region):
    directory, first, second = region
    told = []
    directory.observe(lambda seen: told.append(dict(seen.revoked)))
    await first.view(term=2, version=1, nodes=("a",))
    await directory.ready(60)
    await second.view(term=1, version=0, active=False, revoked={"a": 1, "b": 2})
    await until(lambda: directory.revoked == {"a": 1, "b": 2})
    await first.view(term=2, version=2, nodes=("a",), revoked={"a": 3, "b": 1})   # behind in one, ahead in another
    await until(lambda: directory.version == 2)
    assert directory.revoked == {"a": 3, "b": 2}
    assert told[-1] == {"a": 3, "b": 2}
    assert {"a": 1, "b": 2} in told
