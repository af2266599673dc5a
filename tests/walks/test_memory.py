"""Random walks of a worker's memory: what its manager believes is true whenever nothing is on its way.

Real are both cores and both ends' translation to and from the wire. Modelled are the stream (in order, cut at any
moment, what was under way is lost), sandboxes (built, broken, destroyed late), frontends, and who has the lease.
"""

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protos import worker_pb2
from tests.walking import walk
from worker import messages as wm
from worker.core import WorkerCore
from worker.slots import SlotState
from worker.translation import news_out, order
from worker_manager import messages as mm
from worker_manager import wire
from worker_manager.config import PoolConfig
from worker_manager.core import ManagerCore

WORKER, RUNTIME, MEMORY_MB, SANDBOXES_MAX = "worker-az1", "python3.12", 512, 3
HOST = wm.Incarnation(host="h1", nonce=7)
BLOCK = wm.Block(session=wm.Session(frontend="f", epoch=1), account="a")
PICK = st.integers(0, 7)


class Walk(RuleBasedStateMachine):
    """Two managers have the worker by turns; ``link`` is the stream of the one that has it, 0 while there is none."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.worker = WorkerCore(
            incarnation=HOST, memory_mb=MEMORY_MB, sandboxes_max=SANDBOXES_MAX, runtimes=(RUNTIME,)
        )
        self.managers = [
            ManagerCore(node=name, config=PoolConfig(
                idle_s=20.0, unstarted_s=2.0, starting_max=3, starting_s=0.5, room_s=1.0, settle_s=0.1
            ))
            for name in ("m0", "m1")
        ]
        self.holder, self.lease, self.link, self.links, self.count = 0, 0, 0, 0, 0
        self.down: deque[worker_pb2.ManagerOrder] = deque()
        self.up: deque[worker_pb2.WorkerEvent] = deque()
        self.dialled: mm.Connect | None = None
        self.reserved: list[mm.Reserved] = []
        self.built: set[str] = set()

    @initialize()
    def region_begins(self):
        self.tell_worker(wm.Joined(link=9, watermarks=()))
        self.tell_worker(wm.AuthorityRenewed(until=100.0))
        for number, manager in enumerate(self.managers):
            name = f"m{number}"
            manager.handle(mm.RoleGiven(active=True, term=1), self.now)
            manager.handle(mm.RegionSeen(owners_version=1, owners=(name,)), self.now)
        self.is_granted()
        self.is_adopted()
        self.all_is_heard()

    # ------------------------------------------------------------ the two cores and the stream between them

    def tell_worker(self, event):
        for effect in self.worker.handle(event, self.now):
            if isinstance(effect, wm.TellManager) and effect.link == self.link:
                self.up.append(news_out(effect, HOST, (RUNTIME,), "w:2"))
        self.worker.check()

    def tell_manager(self, event, number=None):
        manager = self.managers[self.holder if number is None else number]
        effects = manager.handle(event, self.now)
        manager.check()
        for effect in effects:
            match effect:
                case mm.Create() | mm.Destroy() | mm.Raise() | mm.DrainWorker() | mm.ReturnWorker() if self.link:
                    self.down.append(wire.order_of(effect, self.lease))
                case mm.Connect():
                    self.dialled = effect
                case mm.Disconnect() if self.dialled is not None and self.dialled.lease == effect.lease:
                    self.dialled = None
                    self.cut()
                case mm.Reserved():
                    self.reserved.append(effect)
                case mm.AskPlacement():
                    self.tell_manager(mm.Placed(sandbox=effect.sandbox, workers=None), number)
                case _:
                    pass

    def cut(self):
        self.link = 0
        self.down.clear()
        self.up.clear()

    @precondition(lambda self: self.down)
    @rule()
    def worker_hears(self):
        self.tell_worker(order(self.down.popleft(), self.link))

    @precondition(lambda self: self.up)
    @rule()
    def manager_hears(self):
        event = self.up.popleft()
        assert "MB wanted" not in event.no_capacity.reason, "a sandbox was ordered that its worker has no memory for"
        for word in wire.worker_events(event, WORKER):
            self.tell_manager(word)

    @rule()
    def all_is_heard(self):
        while self.down or self.up:
            if self.down:
                self.worker_hears()
            if self.up:
                self.manager_hears()

    @invariant()
    def what_is_believed_is_true(self):
        if self.link and not self.down and not self.up:
            lease = self.managers[self.holder].supply.leases[WORKER]
            assert lease.memory_free_mb == self.worker.memory_free_mb

    # ------------------------------------------------------------ leases and streams

    @rule()
    def is_granted(self):
        """To the manager that hasn't got it, under the next number."""
        if self.lease:
            self.tell_manager(mm.Lost(worker=WORKER, lease=self.lease, reason="walk"))
        self.holder, self.lease = 1 - self.holder, self.lease + 1
        self.tell_manager(mm.Granted(
            worker=WORKER, address="w:1", host="h1", az="az1", lease=self.lease, soft_end_s=9000.0, hard_end_s=10000.0,
            drain_s=900.0,
        ))

    @precondition(lambda self: self.dialled is not None and not self.link)
    @rule()
    def is_adopted(self):
        self.links += 1
        self.link = self.links
        self.down.append(worker_pb2.ManagerOrder(lease=self.lease, adopt=worker_pb2.ManagerOrder.Adopt(
            manager=f"m{self.holder}", lease=self.lease, lasts_s=10000.0
        )))

    @precondition(lambda self: self.link)
    @rule(noticed=st.booleans())
    def stream_breaks(self, noticed):
        link, lease = self.link, self.lease
        self.cut()
        if noticed:
            self.tell_worker(wm.ManagerGone(link=link))
        self.tell_manager(mm.WorkerAway(worker=WORKER, lease=lease))

    # ------------------------------------------------------------ requests

    @rule(size=st.sampled_from([128, 128, 256]))
    def is_asked_for(self, size):
        self.count += 1
        config = worker_pb2.FunctionConfig(memory_mb=size, runtime=RUNTIME, timeout_s=3)
        self.tell_manager(mm.Reserve(
            frontend="f", cause=f"i{self.count}", deadline_s=5.0, memory_mb=size, runtime=RUNTIME, az="az1",
            function=mm.FunctionKey(account="a", function=f"f{size}", version="$LATEST", revision=1),
            sandbox=f"s{self.count}", order=mm.Order(config=config.SerializeToString()),
        ))

    @precondition(lambda self: self.reserved)
    @rule()
    def is_started(self):
        reserved = self.reserved.pop()
        slot = self.worker.slots.get(reserved.sandbox)
        self.count += 1
        if slot is not None:
            self.tell_worker(wm.StartAsked(
                stream=1, invocation=f"r{self.count}", incarnation=HOST, lease=reserved.lease, block=BLOCK,
                sandbox=reserved.sandbox, sequence=reserved.sequence, function=slot.function, deadline=self.now + 5.0,
            ))

    @precondition(lambda self: self.worker.runs)
    @rule()
    def run_ends(self):
        invocation, slot = next(iter(self.worker.runs.items()))
        self.tell_worker(wm.ResultOut(sandbox=slot.sandbox, invocation=invocation))
        self.tell_worker(wm.InvocationEnded(sandbox=slot.sandbox, invocation=invocation))

    # ------------------------------------------------------------ sandboxes

    def pick(self, pick, chosen):
        slots = [slot for slot in self.worker.slots.values() if chosen(slot)]
        return slots[pick % len(slots)] if slots else None

    @rule(pick=PICK, works=st.sampled_from([True, True, True, False]))
    def sandbox_comes_on(self, pick, works):
        slot = self.pick(pick, lambda slot: slot.state in (SlotState.STARTING, SlotState.INIT))
        if slot is None:
            return
        if slot.state is SlotState.INIT:
            self.tell_worker(wm.InitDone(sandbox=slot.sandbox, phases=wm.ColdPhases()))
        elif works:
            self.built.add(slot.sandbox)
            self.tell_worker(wm.SandboxBuilt(sandbox=slot.sandbox))
        else:
            self.tell_worker(wm.BuildFailed(sandbox=slot.sandbox, error_type="E", message="m"))

    @rule(pick=PICK)
    def sandbox_breaks(self, pick):
        slot = self.pick(pick, lambda slot: slot.state is not SlotState.DRAINING)
        if slot is not None:
            self.tell_worker(wm.SandboxBroken(sandbox=slot.sandbox, reason="walk"))

    @rule(pick=PICK, fails=st.booleans())
    def sandbox_is_gone(self, pick, fails):
        """One that was still being built may say so instead."""
        slot = self.pick(pick, lambda slot: slot.destroying)
        if slot is None:
            return
        if fails and slot.sandbox not in self.built:
            self.tell_worker(wm.BuildFailed(sandbox=slot.sandbox, error_type="E", message="m"))
        else:
            self.tell_worker(wm.SandboxGone(sandbox=slot.sandbox))

    @precondition(lambda self: self.count > 15)
    @rule()
    def worker_is_told_to_end(self):
        self.tell_worker(wm.DrainSelf())

    # ------------------------------------------------------------ time

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.5, 25.0]), renews=st.booleans())
    def time_passes(self, seconds, renews):
        """Without authority a worker refuses creates, with its memory free."""
        self.now += seconds
        if renews:
            self.tell_worker(wm.AuthorityRenewed(until=self.now + 20.0))
        for number in range(2):
            self.tell_manager(mm.Tick(), number)


Walk.TestCase.settings = walk(examples=120, steps=60)
TestMemory = Walk.TestCase
