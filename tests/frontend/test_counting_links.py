"""What the streams to the ledger's members say, and to whom: the edge beside its core, without streams."""

from collections import deque
from typing import Any

from chassis.memory_network import Fabric
from chassis.rpc import Caller
from frontend import messages as m
from frontend.core import FrontendCore, Timing
from frontend.peers.counting import CountingLinks
from protos import common_pb2, counting_pb2
from tests.walks.parts import Up

Answer = counting_pb2.FrontendAnswer
SESSION = common_pb2.Session(frontend="frontend-1", epoch=1)


class Edge:
    """Streams to two members, 1 and 2, that are open."""

    def __init__(self) -> None:
        self.core = FrontendCore(Timing())
        self.said: dict[int, deque[Any]] = {1: deque(), 2: deque()}
        self.links = CountingLinks(
            network=Fabric().network(Caller(service="frontend", node="frontend-1", az="az1", host="h1")), seeds={},
            node="frontend-1", nonce=1, feed=self.feed, leader=lambda: self.core.link, usage=self.core.usage,
            on_gone=lambda _: None,
        )
        for link, way in self.said.items():
            self.links.opened(link, f"counting-{link}", Up(way))

    def feed(self, event) -> None:
        for effect in self.core.handle(event, 0.0):
            if isinstance(effect, m.SayHello):
                self.links.send(effect)

    def hear(self, link: int, term: int, index: int, **what) -> None:
        self.links.hear(link, Answer(stamp=counting_pb2.Stamp(term=term, index=index), **what))

    def kinds(self, link: int) -> list[Any]:
        """What was said there since the last look."""
        kinds = [message.WhichOneof("message") for message in self.said[link]]
        self.said[link].clear()
        return kinds


WELCOME = {"welcome": Answer.Welcome(session=SESSION)}


def test_a_former_leaders_late_welcome_doesnt_take_the_heartbeats_from_its_successor():
    edge = Edge()
    assert (edge.kinds(1), edge.kinds(2)) == (["hello"], ["hello"])
    edge.links.beat()
    assert (edge.kinds(1), edge.kinds(2)) == ([], []), "nobody leads yet"
    edge.hear(2, 6, 0, **WELCOME)
    edge.hear(1, 5, 40, **WELCOME)     # to a stream that was opened just before it handed over
    edge.hear(1, 6, 0, not_leader=counting_pb2.NotLeader(term=6, hint="counting-2"))
    edge.links.beat()
    edge.links.ask_gone([("h1", 1)])
    assert (edge.kinds(1), edge.kinds(2)) == ([], ["heartbeat", "ask_gone"])


def test_without_a_leader_nobody_is_told_anything():
    edge = Edge()
    edge.hear(1, 5, 40, **WELCOME)
    edge.hear(1, 6, 0, not_leader=counting_pb2.NotLeader(term=6, hint="counting-2"))
    edge.kinds(1), edge.kinds(2)
    edge.links.beat()
    edge.links.ask_gone([("h1", 1)])
    assert (edge.kinds(1), edge.kinds(2)) == ([], [])
    edge.hear(2, 6, 0, **WELCOME)
    edge.links.closed(1)
    edge.links.beat()
    assert edge.kinds(2) == ["heartbeat"]
