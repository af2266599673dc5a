"""Random walks of a manager against workers that arbitrate as the protocol says.

The model worker knows which sequences it has seen and what runs: the walk asserts that no two runs overlap on a sandbox
(7), that a sandbox serves one function and revision (8), that nothing is created on a worker that drains (12), that
nothing busy is destroyed, and that nobody is left waiting.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.walking import walk
from tests.worker_manager.pool import ME, granted, inventory, key, reserve
from worker_manager.config import PoolConfig
from worker_manager.core import ManagerCore
from worker_manager.messages import (
    AskPlacement,
    Busy,
    Cancel,
    Connect,
    Create,
    CreateFailed,
    Destroy,
    Disconnect,
    DrainWorker,
    FrontendLeft,
    Going,
    Gone,
    Idle,
    Lost,
    NoCapacity,
    Placed,
    Raise,
    Raised,
    Ready,
    Recall,
    Refused,
    RegionSeen,
    Release,
    Reserved,
    Retired,
    ReturnWorker,
    Revised,
    RoleGiven,
    SandboxFacts,
    TellReturned,
    Tick,
    WorkerAway,
    WorkerReturned,
)

WORKERS = ["worker-az1", "worker-az2"]
FRONTENDS = ["frontend-az1", "frontend-az2"]
FUNCTIONS = ["f", "g"]
MEMORY_MB = 256


class Slot:
    """The worker's view of a sandbox."""

    def __init__(self, name, function, memory_mb, sequence):
        self.name, self.function, self.memory_mb, self.sequence = name, function, memory_mb, sequence
        self.ready = False
        self.runs = None            # sequence of the run
        self.doomed = False


class Walk(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.core = ManagerCore(node=ME, config=PoolConfig(
            idle_s=20.0, unstarted_s=2.0, placing_max=2, starting_max=2, starting_s=0.5, room_s=1.0
        ))
        self.now = 0.0
        self.count = 0
        self.slots: dict[str, dict[str, Slot]] = {worker: {} for worker in WORKERS}
        self.connected = {}         # worker -> lease number of the open stream
        self.dialled = {}           # worker -> Connect
        self.highest = dict.fromkeys(WORKERS, 0)
        self.draining = set()
        self.asks = []
        self.orders = []            # (worker, order) on their way
        self.waiting = {}           # invocation -> Reserve event
        self.retiring = {}          # cause -> Revised that isn't answered yet
        self.held = {}              # (frontend, sandbox) -> Reserved
        self.revision = dict.fromkeys(FUNCTIONS, 1)
        self.served = {}            # sandbox -> function key
        self.given: dict[tuple[str, int], int] = {}
        self.feed(RoleGiven(active=True, term=1))
        self.feed(RegionSeen(owners_version=1, owners=(ME,)))

    def feed(self, event):
        effects = self.core.handle(event, self.now)
        self.core.check()
        for effect in effects:
            self.take(effect)

    def take(self, effect):
        match effect:
            case Reserved():
                event = self.waiting.pop(effect.cause)
                assert event.frontend == effect.frontend
                assert self.served.setdefault(effect.sandbox, event.function) == event.function, "invariant 8"
                before = self.given.get((effect.sandbox, effect.lease), 0)
                assert effect.sequence > before, "invariant 7: one sequence was given to two holders"
                self.given[effect.sandbox, effect.lease] = effect.sequence
                self.held[effect.frontend, effect.sandbox] = effect
            case Refused() | Retired():
                self.answered(effect)
            case Recall():
                known = self.held.get((effect.frontend, effect.sandbox))
                if known is not None and known.sequence == effect.sequence:
                    del self.held[effect.frontend, effect.sandbox]
            case AskPlacement():
                self.asks.append(effect)
            case Connect():
                self.dialled[effect.worker] = effect
            case Disconnect():
                self.dialled.pop(effect.worker, None)
                self.connected.pop(effect.worker, None)
                self.orders = [item for item in self.orders if item[0] != effect.worker]
                self.draining.discard(effect.worker)
            case Create():
                assert effect.worker not in self.draining, "invariant 12: created on a draining worker"
                self.served[effect.sandbox] = effect.function
                self.orders.append((effect.worker, effect))
            case DrainWorker():
                self.draining.add(effect.worker)
            case Destroy() | Raise() | ReturnWorker():
                self.orders.append((effect.worker, effect))
            case TellReturned():
                pass

    def answered(self, effect):
        """With Retired, whoever still has a right to start on an older sandbox is refused by its worker."""
        if isinstance(effect, Refused):
            del self.waiting[effect.cause]
            return
        revised = self.retiring.pop(effect.cause)
        last = revised.function.revision if revised.deleted else revised.function.revision - 1
        for reserved in self.held.values():
            function = self.served[reserved.sandbox]
            slot = self.slots[reserved.worker].get(reserved.sandbox)
            if function.function != revised.function.function or function.revision > last:
                continue
            if slot is None or slot.doomed:
                continue
            stale = reserved.lease < self.highest[reserved.worker] or reserved.worker not in self.connected
            assert stale or reserved.sequence < slot.sequence, f"{reserved.sandbox} of {function} can still start"

    # -------------------------------------------------------- workers

    @rule(worker=st.sampled_from(WORKERS), soon=st.booleans())
    def placement_grants(self, worker, soon):
        self.highest[worker] += 1
        ends = (30.0, 100.0) if soon else (27000.0, 30600.0)
        self.feed(granted(worker, self.highest[worker], soft_end_s=ends[0], hard_end_s=ends[1], drain_s=50.0))

    @rule(worker=st.sampled_from(WORKERS))
    def placement_takes_away(self, worker):
        if worker in self.dialled:
            self.feed(Lost(worker=worker, lease=self.dialled[worker].lease, reason="dead"))

    @precondition(lambda self: bool(set(self.dialled) - set(self.connected)))
    @rule()
    def worker_is_adopted(self):
        worker = min(set(self.dialled) - set(self.connected))
        lease = self.dialled[worker].lease
        self.connected[worker] = lease
        rows = [
            SandboxFacts(
                sandbox=slot.name, function=slot.function, sequence=slot.sequence, memory_mb=slot.memory_mb,
                state=("draining" if slot.doomed else "starting" if not slot.ready
                       else "busy" if slot.runs is not None else "idle"),
            )
            for slot in self.slots[worker].values()
        ]
        self.feed(inventory(worker, lease, memory_mb=MEMORY_MB, sandboxes=rows))

    @rule(worker=st.sampled_from(WORKERS))
    def stream_breaks(self, worker):
        if worker in self.connected:
            lease = self.connected.pop(worker)
            self.orders = [item for item in self.orders if item[0] != worker]
            self.feed(WorkerAway(worker=worker, lease=lease))

    @precondition(lambda self: self.asks)
    @rule(away=st.booleans(), data=st.data())
    def placement_answers(self, away, data):
        ask = self.asks.pop(0)
        ranking = tuple(data.draw(st.permutations(ask.workers)))
        self.feed(Placed(sandbox=ask.sandbox, workers=None if away else ranking, cause=ask.cause))

    @precondition(lambda self: self.orders)
    @rule()
    def worker_obeys(self):
        worker, order = self.orders.pop(0)
        slots = self.slots[worker]
        match order:
            case Create():
                used = sum(slot.memory_mb for slot in slots.values())
                if used + 128 > MEMORY_MB:
                    self.feed(NoCapacity(worker=worker, sandbox=order.sandbox, reason="full",
                                         memory_free_mb=MEMORY_MB - used))
                else:
                    slots[order.sandbox] = Slot(order.sandbox, order.function, 128, order.sequence)
            case Destroy():
                slot = slots.get(order.sandbox)
                if slot is None:
                    return                                         # it ended by itself meanwhile
                assert slot.runs is None, "invariant 12: something that runs was ordered to end"
                slot.doomed = True
            case Raise():
                slot = slots.get(order.sandbox)
                if slot is not None:
                    slot.sequence = max(slot.sequence, order.sequence)
                    self.feed(Raised(worker=worker, sandbox=order.sandbox, sequence=order.sequence,
                                     busy=slot.runs is not None))
            case ReturnWorker():
                assert not slots, "returned with sandboxes left"
                self.feed(WorkerReturned(worker=worker, lease=self.connected[worker]))

    @rule(worker=st.sampled_from(WORKERS), fails=st.booleans(), data=st.data())
    def sandbox_moves(self, worker, fails, data):
        slots = self.slots[worker]
        if not slots:
            return
        slot = slots[data.draw(st.sampled_from(sorted(slots)))]
        event: Going | Gone | CreateFailed | Ready | Idle
        if not slot.doomed and fails and slot.ready and slot.runs is None:
            slot.doomed = True
            event = Going(worker=worker, sandbox=slot.name, reason="broken")
        elif slot.doomed:
            del slots[slot.name]
            event = Gone(worker=worker, sandbox=slot.name, reason="ended")
        elif not slot.ready and fails:
            del slots[slot.name]
            event = CreateFailed(worker=worker, sandbox=slot.name, error_type="E", message="m")
        elif not slot.ready:
            slot.ready = True
            event = Ready(worker=worker, sandbox=slot.name, sequence=slot.sequence)
        elif slot.runs is not None:
            event = Idle(worker=worker, sandbox=slot.name, sequence=slot.runs)
            slot.runs = None
        else:
            return
        if worker in self.connected:
            self.feed(event)

    # -------------------------------------------------------- frontends

    @rule(frontend=st.sampled_from(FRONTENDS), name=st.sampled_from(FUNCTIONS), old=st.booleans())
    def frontend_asks(self, frontend, name, old):
        self.count += 1
        revision = max(1, self.revision[name] - old)
        event = reserve(str(self.count), name=name, revision=revision, frontend=frontend, deadline_s=5.0)
        self.waiting[event.cause] = event
        self.feed(event)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def frontend_starts(self, data):
        reserved = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        slot = self.slots[reserved.worker].get(reserved.sandbox)
        stale = reserved.lease < self.highest[reserved.worker]
        if slot is None or slot.doomed or slot.runs is not None or reserved.sequence < slot.sequence or stale:
            del self.held[reserved.frontend, reserved.sandbox]     # NeverStarted
            return
        slot.sequence = slot.runs = reserved.sequence
        if reserved.worker in self.connected:
            self.feed(Busy(worker=reserved.worker, sandbox=slot.name, sequence=slot.runs, cause="run"))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def frontend_releases(self, data):
        reserved = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        slot = self.slots[reserved.worker].get(reserved.sandbox)
        if slot is None or slot.runs != reserved.sequence:         # a frontend releases after the END
            self.feed(Release(frontend=reserved.frontend, sandbox=reserved.sandbox, sequence=reserved.sequence))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def frontend_cancels(self, data):
        event = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
        self.feed(Cancel(frontend=event.frontend, cause=event.cause))

    @rule(frontend=st.sampled_from(FRONTENDS))
    def frontend_leaves(self, frontend):
        self.waiting = {cause: event for cause, event in self.waiting.items() if event.frontend != frontend}
        self.held = {item: reserved for item, reserved in self.held.items() if item[0] != frontend}
        if frontend == FRONTENDS[0]:
            self.retiring.clear()
        self.feed(FrontendLeft(frontend=frontend))

    @rule(name=st.sampled_from(FUNCTIONS), deleted=st.booleans())
    def function_changes(self, name, deleted):
        self.revision[name] += not deleted
        self.count += 1
        event = Revised(
            function=key(name, self.revision[name]), deleted=deleted, frontend=FRONTENDS[0], cause=f"r{self.count}"
        )
        self.retiring[event.cause] = event
        self.feed(event)
        self.revision[name] += deleted

    @rule(step=st.sampled_from([0.01, 0.3, 2.0, 25.0]))
    def time_passes(self, step):
        self.now += step
        self.feed(Tick())
        wakes = self.core.wakes_at()
        assert wakes is None or wakes > self.now, "a deadline that passed is still due: the driver would spin"
        assert all(event.deadline_s > 0 for event in self.waiting.values())


Walk.TestCase.settings = walk(examples=200, steps=60)
TestWalk = Walk.TestCase
