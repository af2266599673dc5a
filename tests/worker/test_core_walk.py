"""Random walks over the worker's core: whatever order things happen in, the invariants hold after each event."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.worker.test_core import BLOCK, HELLO, HOST, SETTINGS, TICKET
from worker import messages as m
from worker.core import WorkerCore
from worker.slots import SlotState

S = SlotState
SANDBOXES = st.sampled_from(["s1", "s2", "s3", "s4"])
LEASES = st.integers(min_value=0, max_value=2)


class Walk(RuleBasedStateMachine):
    """The agent's part is played faithfully: it answers orders late and in any order, never falsely."""

    def __init__(self):
        super().__init__()
        self.core = WorkerCore(incarnation=HOST, memory_mb=384, sandboxes_max=4, runtimes=("python3.11",))
        self.now = 0.0
        self.building, self.initialising, self.destroying = set(), set(), set()
        self.started: list[str] = []
        self.running: dict[str, tuple[str, bool]] = {}
        self.refused: set[str] = set()
        self.ids = 0

    def feed(self, event):
        for effect in self.core.handle(event, self.now):
            match effect:
                case m.BuildSandbox():
                    self.building.add(effect.sandbox)
                case m.DestroySandbox():
                    assert effect.sandbox not in {s for s, _ in self.running.values()}, "12: killed by draining"
                    self.destroying.add(effect.sandbox)
                case m.StartInvocation():
                    assert effect.invocation not in self.started, "5: started twice"
                    assert effect.invocation not in self.refused, "5: started after it was refused"
                    assert self.core.slots[effect.sandbox].function == HELLO, "8"
                    self.started.append(effect.invocation)
                    self.running[effect.invocation] = (effect.sandbox, False)
                case m.RefuseStart():
                    self.refused.add(effect.invocation)
                case _:
                    pass

    @invariant()
    def holds(self):
        self.core.check()
        sandboxes = [sandbox for sandbox, _ in self.running.values()]
        assert len(sandboxes) == len(set(sandboxes)), "7: two runs on one sandbox"

    @rule(seconds=st.sampled_from([0.1, 5.0, 60.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def counting(self):
        self.feed(m.Joined(link=1, watermarks=()))
        self.feed(m.AuthorityRenewed(until=self.now + 120))

    @rule(epoch=st.integers(min_value=1, max_value=6))
    def fenced(self, epoch):
        self.feed(m.Fenced(link=1, session=m.Session(frontend="f1", epoch=epoch)))

    @rule(newer=st.integers(min_value=-1, max_value=1), lasts=st.sampled_from([20.0, 1000.0]))
    def adopted(self, newer, lasts):
        lease = max(0, self.core.lease + newer)
        self.feed(m.Adopt(link=1, manager="m1", lease=lease, lasts_s=lasts))

    @rule(sandbox=SANDBOXES, behind=LEASES)
    def created(self, sandbox, behind):
        self.feed(m.Create(
            link=1, lease=self.core.lease - behind, sandbox=sandbox, function=HELLO, settings=SETTINGS, ticket=TICKET,
            sequence=1,
        ))

    @rule(sandbox=SANDBOXES)
    def destroyed(self, sandbox):
        self.feed(m.Destroy(link=1, lease=self.core.lease, sandbox=sandbox, reason="walk"))

    @rule(sandbox=SANDBOXES, sequence=st.integers(min_value=1, max_value=4))
    def raised(self, sandbox, sequence):
        self.feed(m.Raise(link=1, lease=self.core.lease, sandbox=sandbox, sequence=sequence))

    @rule(which=st.sampled_from([m.Drain, m.Return]))
    def drained(self, which):
        self.feed(which(link=1, lease=self.core.lease))

    @rule(
        sandbox=SANDBOXES, behind=LEASES, ahead=st.integers(min_value=-1, max_value=1), again=st.booleans(),
        epoch=st.integers(min_value=1, max_value=9),
    )
    def asked(self, sandbox, behind, ahead, again, epoch):
        known = sorted(self.refused | set(self.started))
        invocation = known[self.ids % len(known)] if again and known else f"i{self.ids}"
        self.ids += 1
        slot = self.core.slots.get(sandbox)
        self.feed(m.StartAsked(
            stream=1, invocation=invocation, incarnation=HOST, lease=self.core.lease - behind, sandbox=sandbox,
            sequence=(slot.sequence if slot else 1) + ahead, function=HELLO, deadline=self.now + 10,
            block=m.Block(session=m.Session(frontend="f1", epoch=epoch), account=BLOCK.account),
        ))

    @precondition(lambda self: self.building)
    @rule(works=st.booleans())
    def built(self, works):
        sandbox = min(self.building)
        self.building.discard(sandbox)
        if sandbox in self.destroying:
            return
        if works:
            self.feed(m.SandboxBuilt(sandbox=sandbox))
            self.initialising.add(sandbox)
        else:
            self.feed(m.BuildFailed(sandbox=sandbox, error_type="E", message="m"))

    @precondition(lambda self: self.initialising)
    @rule()
    def initialised(self):
        sandbox = min(self.initialising)
        self.initialising.discard(sandbox)
        if sandbox not in self.destroying:
            self.feed(m.InitDone(sandbox=sandbox, phases=m.ColdPhases()))

    @precondition(lambda self: self.running)
    @rule(reset=st.booleans(), broken=st.booleans())
    def goes_on(self, reset, broken):
        invocation = min(self.running)
        sandbox, out = self.running[invocation]
        if not out:
            self.feed(m.ResultOut(sandbox=sandbox, invocation=invocation))
            self.running[invocation] = (sandbox, True)
            return
        if reset:
            self.feed(m.ResetBegun(sandbox=sandbox))
        if broken:
            self.feed(m.SandboxBroken(sandbox=sandbox, reason="walk"))
        del self.running[invocation]
        self.feed(m.InvocationEnded(sandbox=sandbox, invocation=invocation))

    @precondition(lambda self: self.destroying)
    @rule()
    def gone(self):
        sandbox = min(self.destroying)
        self.destroying.discard(sandbox)
        self.building.discard(sandbox)
        self.initialising.discard(sandbox)
        self.feed(m.SandboxGone(sandbox=sandbox))


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestWalk = Walk.TestCase
