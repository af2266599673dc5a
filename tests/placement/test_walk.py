"""Random walks of the fleet: whatever happens, check() holds, and no manager is told of a lease that isn't written."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from placement.leadership import Stage
from placement.leases import HoldState
from placement.messages import (
    DrawLease,
    Grant,
    Heartbeat,
    LeadershipFailed,
    LeadershipRead,
    LeadershipWritten,
    LeaseDrawn,
    ManagerLeft,
    ReadLeadership,
    ReadRecord,
    ReadRecords,
    RecordFailed,
    RecordRead,
    RecordsRead,
    RecordWritten,
    StreamClosed,
    TakeAway,
    Tick,
    WorkerReturned,
    WriteLeadership,
    WriteRecord,
)
from storage.interfaces import Leadership, Stored
from tests.placement.fleet import WALL, joined, new_core, registered
from tests.walking import walk

MANAGERS = ["worker_manager-az1", "worker_manager-az2"]
WORKERS = ["worker-az1-1", "worker-az1-2", "worker-az2-1"]


class Fleet(RuleBasedStateMachine):
    """The store is a dict here; each write may be lost before or after it happened."""

    def __init__(self):
        super().__init__()
        self.core = new_core(settle_s=0.5)
        self.now = 0.0
        self.connections = 0
        self.open = {}
        self.links = {}
        self.nonces = {}
        self.leadership = None
        self.records = {}
        self.revision = 0
        self.pending = []
        self.written = set()
        self.highest = {}
        self.believes: dict[str, dict[str, int]] = {manager: {} for manager in MANAGERS}

    def feed(self, event):
        effects = self.core.handle(event, self.now)
        self.core.check()
        for effect in effects:
            match effect:
                case DrawLease():
                    self.feed(LeaseDrawn(worker=effect.worker, fraction=0.3, wall=WALL + self.now))
                case Grant():
                    key = (effect.worker, effect.lease, effect.manager)
                    assert key in self.written, f"{key} was granted without a record"
                    assert effect.lease >= self.highest.get(effect.worker, 0), "invariant 9: numbers grow"
                    self.highest[effect.worker] = effect.lease
                    assert 6 * 3600 - 60 <= effect.hard_end_s <= 10 * 3600, "invariant 11"
                    self.believes[effect.manager][effect.worker] = effect.lease
                case TakeAway():
                    if self.believes[effect.manager].get(effect.worker) == effect.lease:
                        del self.believes[effect.manager][effect.worker]
                case ReadLeadership() | WriteLeadership() | ReadRecords() | WriteRecord() | ReadRecord():
                    self.pending.append(effect)
                case _:
                    pass

    def bump(self):
        self.revision += 1
        return self.revision

    @rule(fate=st.sampled_from(["done", "done", "done", "refused", "unknown"]))
    def store_answers(self, fate):
        if not self.pending:
            return
        effect = self.pending.pop(0)
        match effect:
            case ReadLeadership():
                self.feed(LeadershipRead(stored=self.leadership))
            case ReadRecords():
                self.feed(RecordsRead(records=tuple(self.records.values()), wall=WALL + self.now))
            case ReadRecord():
                stored = self.records.get(effect.worker)
                self.feed(RecordRead(
                    worker=effect.worker, stored=stored, fence=stored.value.number if stored else 0,
                    wall=WALL + self.now,
                ))
            case WriteLeadership():
                self.write_leadership(effect, fate)
            case WriteRecord():
                self.write_record(effect, fate)

    def write_leadership(self, effect, fate):
        known = self.leadership.revision if self.leadership else 0
        if fate == "refused" or known != effect.expected:
            self.feed(LeadershipFailed(fault="refused"))
            return
        value = Leadership(holder="placement-az1", term=effect.term, renewed_until=WALL)
        self.leadership = Stored(value=value, revision=self.bump())
        lost = fate == "unknown"
        self.feed(LeadershipFailed(fault="unknown") if lost else LeadershipWritten(revision=self.revision))

    def write_record(self, effect, fate):
        record = effect.record
        stored = self.records.get(record.worker)
        if fate == "refused" or (stored.revision if stored else 0) != effect.expected:
            self.feed(RecordFailed(worker=record.worker, fault="refused"))
            return
        if stored is not None:
            assert record.number >= stored.value.number, "invariant 9: a number fell in storage"
            if record.number == stored.value.number:
                assert record.manager in ("", stored.value.manager), "invariant 9: one manager per number"
        self.records[record.worker] = Stored(value=record, revision=self.bump())
        if record.manager:
            self.written.add((record.worker, record.number, record.manager))
        lost = fate == "unknown"
        self.feed(
            RecordFailed(worker=record.worker, fault="unknown") if lost
            else RecordWritten(worker=record.worker, revision=self.revision)
        )

    @rule()
    def another_placement_leads(self):
        term = self.leadership.value.term + 1 if self.leadership else 1
        value = Leadership(holder="placement-az2", term=term, renewed_until=0.0)
        self.leadership = Stored(value=value, revision=self.bump())

    @rule()
    def it_leads_anew(self):
        """Up to the reading of the records: single steps rarely come there, and hardly ever with leases."""
        if self.core.leadership.leads:
            self.another_placement_leads()
        for _ in range(40):
            self.now += 0.25
            self.feed(Tick())
            while self.pending and self.core.leadership.stage is not Stage.LOADING:
                self.store_answers("done")
            if self.core.leadership.stage is Stage.LOADING:
                return

    @rule(step=st.sampled_from([0.05, 0.25, 0.25, 0.25, 0.9, 40.0]))
    def time_passes(self, step):
        self.now += step
        self.feed(Tick())

    @rule(node=st.sampled_from(MANAGERS + WORKERS), anew=st.booleans(), leaving=st.booleans())
    def node_registers(self, node, anew, leaving):
        self.connections += 1
        if anew:
            self.nonces[node] = self.nonces.get(node, 1) + 1
            self.believes.get(node, {}).clear()
            self.links.pop(node, None)
        self.open[node] = self.connections
        self.feed(registered(node, self.connections, nonce=self.nonces.get(node, 1), leaving=leaving and anew))

    @rule(node=st.sampled_from(MANAGERS + WORKERS))
    def node_beats(self, node):
        if node in self.open:
            self.feed(Heartbeat(node=node, connection=self.open[node]))

    @rule(node=st.sampled_from(MANAGERS + WORKERS))
    def stream_breaks(self, node):
        if node in self.open:
            self.feed(StreamClosed(node=node, connection=self.open.pop(node)))

    @rule(manager=st.sampled_from(MANAGERS))
    def manager_joins(self, manager):
        if manager in self.open:
            self.connections += 1
            self.links[manager] = self.connections
            held = self.believes[manager].items()
            self.feed(joined(manager, self.connections, nonce=self.nonces.get(manager, 1), held=held))

    @rule(manager=st.sampled_from(MANAGERS))
    def manager_leaves(self, manager):
        if manager in self.links:
            self.feed(ManagerLeft(manager=manager, connection=self.links.pop(manager)))

    @rule(manager=st.sampled_from(MANAGERS), worker=st.sampled_from(WORKERS))
    def manager_returns(self, manager, worker):
        lease = self.believes[manager].get(worker)
        if lease is not None and manager in self.links:
            del self.believes[manager][worker]
            self.feed(WorkerReturned(manager=manager, worker=worker, lease=lease))

    @invariant()
    def a_manager_has_what_is_leased_to_it(self):
        """Or nobody serves on the worker until the lease is over."""
        if self.core.leadership.knows_leases:
            for hold in self.core.holds.values():
                if hold.state is HoldState.LEASED and hold.manager in self.links:
                    assert self.believes[hold.manager].get(hold.worker) == hold.record.number, hold.worker

    @invariant()
    def owners_are_active(self):
        assert set(self.core.owners) <= self.core.active or not self.core.is_active


Fleet.TestCase.settings = walk(examples=150, steps=60)
TestFleet = Fleet.TestCase
