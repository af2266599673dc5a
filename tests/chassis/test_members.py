"""A service's members as others follow them: seeds for good, others while the region's view shows them."""

import asyncio
from typing import Any, cast

from chassis.directory import Directory
from chassis.members import Members
from chassis.memory_network import Fabric
from chassis.rpc import Caller
from protos import placement_pb2
from simulation.loop import run


class View:
    """Of a directory only what is asked of it here."""

    def __init__(self, **addresses: str) -> None:
        self._nodes = [placement_pb2.Node(node=node, address=address) for node, address in addresses.items()]

    def of_service(self, service: str) -> list[placement_pb2.Node]:
        return self._nodes if service == "counting" else []


def test_seeds_are_followed_for_good_and_others_while_they_are_shown():
    async def main(loop: Any) -> None:
        followed: list[str] = []

        async def follow(node: str, _channel: object) -> None:
            followed.append(node)
            try:
                await asyncio.Event().wait()
            finally:
                followed.remove(node)

        network = Fabric().network(Caller(service="worker", node="w", az="az1", host="h"))
        members = Members(network=network, service="counting", seeds={"c1": "c1:1", "c2": "c2:1"}, follow=follow)

        async def seen(**addresses: str) -> tuple[list[str], list[str]]:
            members.see(cast("Directory", View(**addresses)))
            await asyncio.sleep(0.01)
            return sorted(followed), sorted(members.channels)

        members.start()
        assert await seen() == (["c1", "c2"], ["c1", "c2"])
        assert await seen(c1="elsewhere:1", c3="c3:1") == (["c1", "c2", "c3"], ["c1", "c2", "c3"])
        before = members.channels["c3"]
        await seen(c3="c3:1")
        assert members.channels["c3"] is before
        assert await seen(c3="moved:1") == (["c1", "c2", "c3"], ["c1", "c2", "c3"])
        assert members.channels["c3"] is not before
        assert await seen(c2="c2:1") == (["c1", "c2"], ["c1", "c2"])
        await members.close()
        assert followed == []

    run(main)
