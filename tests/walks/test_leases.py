"""Random walks of lease records and of leadership: whatever writers try, numbers only grow and each has one holder."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from simulation.loop import VirtualClock, VirtualLoop
from storage.faults import Conflict, StaleLease
from storage.interfaces import Leadership, LeaseRecord
from storage.leases import MetadataLeases
from storage.memory import MemoryMetadata
from tests.walking import walk

WORKERS = st.sampled_from(["w1", "w2"])
HOLDERS = st.sampled_from(["p1", "p2"])


class Walk(RuleBasedStateMachine):
    """Two placements write from what each read last; a write may come long after its reading."""

    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        metadata = MemoryMetadata(VirtualClock(self.loop))
        self.stores = {"p1": MetadataLeases(metadata), "p2": MetadataLeases(metadata)}
        self.read = {}          # (placement, worker) -> what it read: (revision, number, manager)
        self.fences = {}        # worker -> the highest number ever written
        self.holders = {}       # (worker, number) -> the manager that had it
        self.records = {}       # worker -> (revision, number, manager) now
        self.led = {}           # term -> holder
        self.leadership = (0, 0, "")

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 5))

    @rule(placement=HOLDERS, worker=WORKERS)
    def looks(self, placement, worker):
        stored = self.run(self.stores[placement].get(worker))
        found = (stored.revision, stored.value.number, stored.value.manager) if stored else (0, 0, "")
        assert found == self.records.get(worker, (0, 0, ""))
        self.read[placement, worker] = found

    @rule(placement=HOLDERS, worker=WORKERS, more=st.integers(-1, 2), manager=st.sampled_from(["", "m1", "m2"]),
          knows=st.booleans())
    def writes(self, placement, worker, more, manager, knows):
        if knows:
            self.looks(placement, worker)
        revision, number, _ = self.read.get((placement, worker), (0, 0, ""))
        number = max(number, self.fences.get(worker, 0) if knows else 0) + more
        record = LeaseRecord(
            worker=worker, host="h", incarnation="1", manager=manager, number=number, soft_end=1.0, hard_end=2.0,
            state="leased" if manager else "free",
        )
        now, fence = self.records.get(worker, (0, 0, "")), self.fences.get(worker, 0)
        same = worker in self.records and number == fence and manager in {now[2], ""}
        unheld = fence == 0 and worker not in self.records and number == 0 and not manager
        allowed = revision == now[0] and (number > fence or same or unheld)
        try:
            written = self.run(self.stores[placement].put(record, expected=revision))
        except (Conflict, StaleLease):
            assert not allowed, (record, now, fence)
            return
        assert allowed, (record, now, fence)
        self.records[worker] = (written, number, manager)
        self.fences[worker] = number
        if manager:
            assert self.holders.setdefault((worker, number), manager) == manager, "9: two managers, one number"

    @rule(placement=HOLDERS, worker=WORKERS)
    def deletes(self, placement, worker):
        revision = self.read.get((placement, worker), (0, 0, ""))[0]
        try:
            self.run(self.stores[placement].delete(worker, expected=revision))
        except Conflict:
            assert revision == 0 or revision != self.records.get(worker, (0, 0, ""))[0]
            return
        assert self.records.pop(worker)[0] == revision

    @rule(placement=HOLDERS, more=st.integers(-1, 2), known=st.booleans())
    def leads(self, placement, more, known):
        revision, term, holder = self.leadership if known else (self.leadership[0] - 1, *self.leadership[1:])
        leadership = Leadership(holder=placement, term=term + more, renewed_until=1.0)
        try:
            written = self.run(self.stores[placement].lead(leadership, expected=max(0, revision)))
        except (Conflict, StaleLease):
            assert not (known and term + more >= 1 and (more > 0 or (more == 0 and holder == placement)))
            return
        assert max(0, revision) == self.leadership[0]
        assert leadership.term >= max(1, self.leadership[1])
        assert self.led.setdefault(leadership.term, placement) == placement, "two leaders of one term"
        self.leadership = (written, leadership.term, placement)

    @invariant()
    def fences_stand(self):
        for worker, number in self.fences.items():
            assert self.run(self.stores["p1"].fence(worker)) == number, "a number was forgotten"

    def teardown(self):
        self.loop.close()


TestLeases = Walk.TestCase
TestLeases.settings = walk(examples=60, steps=40)
