"""Registration: the newest view of the highest term counts, and peers known stay known."""

import asyncio
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.directory import Directory
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers
from protos import placement_pb2, placement_rpc

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

    async def view(self, term: int, version: int, *, active: bool = True, nodes: tuple[str, ...] = ()) -> None:
        view = placement_pb2.RegionView(
            term=term, version=version, active=active, leader=self.caller.node, whole=True,
            nodes=[placement_pb2.Node(node=node, service="counting", health="serving") for node in nodes],
        )
        for stream in self.streams:
            await stream.send(view)


async def until(holds) -> None:
    async with asyncio.timeout(5):
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
    await directory.ready(5)
    await second.view(term=1, version=9, nodes=("stale",))
    await second.view(term=3, version=1, active=False, nodes=("standby",))
    await first.view(term=2, version=4, nodes=("older",))
    await first.view(term=2, version=6, nodes=("a", "c"))
    await until(lambda: directory.version == 6)
    assert sorted(directory.nodes) == ["a", "c"]
    await second.view(term=3, version=1, nodes=("d",))
    await until(lambda: directory.term == 3)
    assert sorted(directory.nodes) == ["d"]


async def test_heartbeats_changes_and_leaving_reach_every_placement(region):
    directory, first, second = region
    directory.update(role="active", runtimes="python3.11")
    directory.leave()
    for placement in (first, second):
        await until(lambda placement=placement: any(report.heartbeat for report in placement.reports))
        assert any(report.node.role == "active" for report in placement.reports)
        assert any(report.node.detail["runtimes"] == "python3.11" for report in placement.reports)
        assert any(report.leaving for report in placement.reports)


async def test_a_placement_that_comes_back_is_registered_with_again_and_the_view_stays(region):
    directory, first, _ = region
    await first.view(term=1, version=1, nodes=("a",))
    await directory.ready(5)
    address = first.server.address
    first.server.crash()
    first.streams.clear()
    assert sorted(directory.nodes) == ["a"], "peers known stay known"
    handlers = Handlers()
    handlers.bidi(placement_rpc.REGISTER, first._register)
    first.server = await first.network.serve(address, handlers)
    await until(lambda: bool(first.streams))
