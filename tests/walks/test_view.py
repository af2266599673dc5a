"""Random walks of a process's view of the region: views of several placements, in any order, and never an older one."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chassis.directory import Directory
from chassis.memory_network import Fabric
from chassis.rpc import Caller
from protos import placement_pb2
from simulation.loop import VirtualClock, VirtualLoop
from tests.walking import walk

WORKER = Caller(service="worker", node="w", az="az1", host="h1")


class Walk(RuleBasedStateMachine):
    """What counts is the newest whole view of the highest term, by an active placement."""

    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        node = placement_pb2.Node(node="w", service="worker")
        self.directory = Directory(
            network=Fabric().network(WORKER), clock=VirtualClock(self.loop), seeds=(), node=node
        )
        self.newest = (0, 0)
        self.nodes: set[str] = set()
        self.observed = self.expected = 0
        self.directory.observe(self.seen)

    def seen(self, directory):
        self.observed += 1
        assert directory is self.directory

    @rule(
        term=st.integers(1, 4), version=st.integers(1, 6), active=st.booleans(), whole=st.booleans(),
        nodes=st.sets(st.sampled_from(["a", "b", "c"])),
    )
    def view_arrives(self, term, version, active, whole, nodes):
        self.directory._see(placement_pb2.RegionView(
            term=term, version=version, active=active, whole=whole, leader=f"p{term}",
            nodes=[placement_pb2.Node(node=name, service="counting", health="serving") for name in sorted(nodes)],
        ))
        if active and whole and (term, version) > self.newest and term >= self.newest[0]:
            self.newest, self.nodes = (term, version), nodes
            self.expected += 1

    @invariant()
    def newest_counts(self):
        assert (self.directory.term, self.directory.version) == self.newest
        assert set(self.directory.nodes) == self.nodes
        assert self.observed == self.expected, "an observer missed a view, or was told of none"

    def teardown(self):
        self.loop.close()


TestView = Walk.TestCase
TestView.settings = walk(examples=60, steps=30)
