"""What a worker says to the ledger's members when it leaves: the edge alone, its timer in virtual time."""

import asyncio
from collections import deque
from typing import Any

import pytest

from chassis.memory_network import Fabric
from chassis.process import Tasks
from protos import counting_pb2
from simulation.loop import VirtualClock, run
from tests.walks.parts import Up
from tests.worker.region import caller
from tests.worker.test_core import HOST
from worker import messages as m
from worker.peers import CountingLinks

Answer = counting_pb2.WorkerAnswer
ANSWERS: dict[str, dict[str, Any]] = {
    "joined": {"joined": Answer.FenceTable()}, "evicted": {"evicted": Answer.Evicted()},
    "renewed": {"renewed": Answer.Renewed(number=1, authority_s=120.0)},
    "not_leader": {"not_leader": counting_pb2.NotLeader()},
}


class Edge:
    """Streams to two members, 1 and 2, that are open."""

    def __init__(self, loop) -> None:
        self.fed: list[m.Event] = []
        self.said: dict[int, deque[Any]] = {1: deque(), 2: deque()}
        self.links = CountingLinks(
            network=Fabric().network(caller("worker")), seeds={}, clock=VirtualClock(loop), incarnation=HOST,
            timeout_cap_s=900, renew_s=5.0, tasks=Tasks(), feed=self.fed.append, running=lambda: (),
        )
        self.links._outboxes = {link: Up(way) for link, way in self.said.items()}
        self.links.start()

    def hear(self, link: int, term: int, *kinds: str) -> None:
        for kind in kinds:
            self.links._hear(link, Answer(stamp=counting_pb2.Stamp(term=term), **ANSWERS[kind]))

    def kinds(self, link: int) -> list[Any]:
        """What was said there since the last look."""
        kinds = [message.WhichOneof("message") for message in self.said[link]]
        self.said[link].clear()
        return kinds


def told(tell):
    async def main(loop):
        edge = Edge(loop)
        await tell(edge)
        await edge.links._tasks.cancel()
        return edge

    return run(main)


@pytest.mark.parametrize("heard", [True, False])
def test_a_leave_that_a_leader_took_with_it_is_said_to_the_next_one(heard):
    async def tell(edge):
        edge.hear(1, 5, "joined", "renewed")
        if heard:
            edge.links.leave()
        assert ("leave" in edge.kinds(1)) == heard
        edge.hear(1, 6, "not_leader")
        if not heard:
            edge.links.leave()
        await asyncio.sleep(0.4)
        assert (edge.kinds(1), edge.kinds(2)) == (["join"], ["join"]), "whoever leads hears of it again"
        edge.hear(2, 6, "joined")
        assert edge.kinds(2) == ["leave", "renew"], "and says by its answer whether it is in the log"
        assert not edge.links.left.is_set()
        edge.hear(2, 6, "evicted")
        assert edge.links.left.is_set()
        await asyncio.sleep(10.0)
        assert (edge.kinds(1), edge.kinds(2)) == ([], []), "what is no member any more says nothing"

    edge = told(tell)
    assert not any(isinstance(event, m.Evicted) for event in edge.fed), "that is no reason to end the process"


def test_a_leave_that_was_not_in_the_log_before_the_answer_is_said_again():
    async def tell(edge):
        edge.hear(1, 5, "joined", "renewed")
        edge.kinds(1)
        edge.links.leave()
        assert edge.kinds(1) == ["leave", "renew"]
        edge.hear(1, 5, "renewed")
        await asyncio.sleep(0.4)
        assert edge.kinds(1) == ["leave", "renew"]
        edge.hear(1, 5, "evicted")
        assert edge.links.left.is_set()

    told(tell)


def test_a_leader_that_doesnt_answer_may_lead_no_more_and_others_are_asked():
    async def tell(edge):
        edge.hear(1, 5, "joined", "renewed")
        edge.kinds(1)
        edge.links.leave()
        await asyncio.sleep(2.5)
        assert edge.kinds(2) == ["join"]
        edge.hear(1, 5, "evicted")
        assert edge.links.left.is_set(), "it was only slow"

    told(tell)


def test_who_isnt_leaving_and_is_evicted_ends():
    async def tell(edge):
        edge.hear(1, 5, "joined", "evicted")
        assert not edge.links.left.is_set()

    assert any(isinstance(event, m.Evicted) for event in told(tell).fed)
