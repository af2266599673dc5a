"""One slot: the worker's view of one sandbox, its states and the one table that changes them.

Owns the state of a slot. Refuses to know leases, fences and who asks: ``worker.core`` decides, then tells the slot what
happened.
"""

import enum

from chassis.machine import Story, Transitions
from worker import messages as m


class SlotState(enum.Enum):
    STARTING = "starting"      # its code comes, the sandbox is built
    INIT = "init"              # the runtime starts and loads the function
    IDLE = "idle"              # waits, frozen
    BUSY = "busy"              # an invocation runs on it
    RESPONDED = "responded"    # its result is out, it has not ended
    RESETTING = "resetting"    # its processes are being killed; sandbox and /tmp stay
    DRAINING = "draining"      # serves nothing more: what runs finishes, then it is destroyed
    GONE = "gone"


S = SlotState
RUNNING = frozenset({S.BUSY, S.RESPONDED, S.RESETTING})

TRANSITIONS: Transitions[SlotState] = Transitions(
    {
        (S.STARTING, m.SandboxBuilt): S.INIT,
        (S.STARTING, m.BuildFailed): S.GONE,
        (S.STARTING, m.Destroy): S.DRAINING,
        (S.STARTING, m.SandboxBroken): S.DRAINING,
        (S.INIT, m.InitDone): S.IDLE,
        (S.INIT, m.Destroy): S.DRAINING,
        (S.INIT, m.SandboxBroken): S.DRAINING,
        (S.IDLE, m.StartAsked): S.BUSY,
        (S.IDLE, m.Destroy): S.DRAINING,
        (S.IDLE, m.SandboxBroken): S.DRAINING,
        (S.BUSY, m.ResultOut): S.RESPONDED,
        (S.BUSY, m.Destroy): S.DRAINING,
        (S.BUSY, m.SandboxBroken): S.DRAINING,
        (S.RESPONDED, m.InvocationEnded): S.IDLE,
        (S.RESPONDED, m.ResetBegun): S.RESETTING,
        (S.RESPONDED, m.Destroy): S.DRAINING,
        (S.RESPONDED, m.SandboxBroken): S.DRAINING,
        (S.RESETTING, m.InvocationEnded): S.IDLE,
        (S.RESETTING, m.Destroy): S.DRAINING,
        (S.RESETTING, m.SandboxBroken): S.DRAINING,
        (S.DRAINING, m.SandboxBuilt): S.DRAINING,
        (S.DRAINING, m.BuildFailed): S.GONE,
        (S.DRAINING, m.InitDone): S.DRAINING,
        (S.DRAINING, m.ResultOut): S.DRAINING,
        (S.DRAINING, m.ResetBegun): S.DRAINING,
        (S.DRAINING, m.InvocationEnded): S.DRAINING,
        (S.DRAINING, m.Destroy): S.DRAINING,
        (S.DRAINING, m.SandboxBroken): S.DRAINING,
        (S.DRAINING, m.SandboxGone): S.GONE,
    }
)

_WORDS = {
    S.STARTING: "starting", S.INIT: "starting", S.IDLE: "idle", S.BUSY: "busy", S.RESPONDED: "busy",
    S.RESETTING: "busy", S.DRAINING: "draining", S.GONE: "draining",
}


class Slot:
    """``sequence`` is the highest seen; ``invocation`` what runs on it, empty when nothing does.

    ``started`` is the sequence of its newest start: the first holder's sequence comes with the sandbox itself, so that
    having seen it doesn't tell that it was used.
    """

    __slots__ = (
        "block", "destroying", "function", "invocation", "memory_mb", "reason", "sandbox", "sequence", "served",
        "started", "state", "story", "stream",
    )

    def __init__(self, *, sandbox: str, function: m.FunctionId, memory_mb: int, sequence: int) -> None:
        self.sandbox = sandbox
        self.function = function
        self.memory_mb = memory_mb
        self.sequence = sequence
        self.started = 0
        self.state = SlotState.STARTING
        self.invocation = ""
        self.block: m.Block | None = None
        self.stream = 0
        self.served: set[m.FunctionId] = set()  # what ever ran on it: one function (invariant 8)
        self.reason = ""            # why it drains
        self.destroying = False     # the order to destroy it is out
        self.story = Story()

    def step(self, event: object, now: float) -> None:
        """Raises IllegalTransition for what can't happen in this state."""
        self.story.tell(now, event)
        self.state = TRANSITIONS.next(self.state, type(event), self.story)

    @property
    def running(self) -> bool:
        return self.invocation != ""

    def status(self) -> m.SandboxStatus:
        return m.SandboxStatus(
            sandbox=self.sandbox, function=self.function, sequence=self.sequence, state=_WORDS[self.state],
            invocation=self.invocation, memory_mb=self.memory_mb,
        )
