"""What the worker's core hears and orders: values, events, effects.

Owns the words. Events are things that happened, effects are orders to the agent; both carry ``cause`` (an invocation id
or a timer's name), which joins logs, traces and stories. Links and streams are numbers that the edges give: the core
never sees a connection.
"""

import enum
from dataclasses import dataclass, field

# ---------------------------------------------------------------- values


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One life of this worker: a start that names another one is refused."""

    host: str
    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionId:
    """What a sandbox serves for life (invariant 8)."""

    account: str
    function: str
    version: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Session:
    """A frontend's session with the ledger."""

    frontend: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Block:
    """The block of permits that an invocation was admitted from."""

    session: Session
    account: str
    function: str = ""
    kind: int = 1
    qualifier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Invocations that run, by the block that they were admitted from and their function (rule 6): a block of the rest
    may be of several, and one that gets a reservation is charged for its own (rule 9)."""

    block: Block
    function: str
    invocations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSettings:
    """A function's configuration, as the manager hands it over."""

    arn: str
    runtime: str
    handler: str
    memory_mb: int
    timeout_s: int
    tmp_mb: int
    code_sha256: str
    code_size: int
    region: str
    log_format: str = "Text"
    log_group: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right to fetch one archive from a frontend."""

    sha256: str
    size: int
    expires: float
    signature: bytes
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdPhases:
    """Milliseconds of a cold start, as far as this worker sees them."""

    code_ms: float = 0.0
    sandbox_ms: float = 0.0
    runtime_ms: float = 0.0
    init_ms: float = 0.0


class Refusal(enum.Enum):
    """Why a start was refused for certain: the values are ``NeverStarted.Reason``'s numbers."""

    STALE_LEASE = 1
    STALE_SEQUENCE = 2
    BUSY = 3
    UNKNOWN_SANDBOX = 4
    WRONG_INCARNATION = 5
    FENCED = 6
    NO_AUTHORITY = 7
    BARRED = 8
    SHED = 9
    CANCELLED = 10
    WRONG_FUNCTION = 11
    DRAINING = 12


# ---------------------------------------------------------------- events: the manager's orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """A manager takes this worker over. ``lasts_s``: the lease's hard end, from the order's sending.

    ``timeout_cap_s``: how long a run under this lease may take, so that draining never has to kill one.
    """

    link: int
    manager: str
    lease: int
    lasts_s: float
    timeout_cap_s: float = float("inf")
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    link: int
    lease: int
    sandbox: str
    function: FunctionId
    settings: FunctionSettings
    ticket: Ticket
    sequence: int
    on_demand: bool = True
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    link: int
    lease: int
    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    """``used``: only if nothing runs and something ran under this sequence; 0: in any case."""

    link: int
    lease: int
    sandbox: str
    sequence: int
    used: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    link: int
    lease: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    link: int
    lease: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerGone:
    """A manager's stream ended. Its lease stands; it adopts again, or another takes over."""

    link: int
    cause: str = ""


# ---------------------------------------------------------------- events: frontends


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAsked:
    """A frontend wants an invocation started; its payload is here. ``deadline``: monotonic, past it nobody waits."""

    stream: int
    invocation: str
    incarnation: Incarnation
    lease: int
    sandbox: str
    sequence: int
    block: Block
    function: FunctionId
    deadline: float
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWithdrawn:
    """The invocation didn't begin and won't: cancelled, or given up by the edge. Its id is barred."""

    stream: int
    invocation: str
    reason: Refusal
    detail: str = ""
    cause: str = ""


# ---------------------------------------------------------------- events: sandboxes


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxBuilt:
    """Namespaces, root and listener are there; the runtime is about to start."""

    sandbox: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFailed:
    """No sandbox came of it, and nothing is left."""

    sandbox: str
    error_type: str
    message: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitDone:
    """Init is over; how it went is the first invocation's business."""

    sandbox: str
    phases: ColdPhases
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOut:
    """The invocation's result is known. The sandbox still works for it."""

    sandbox: str
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetBegun:
    """The sandbox's processes are being killed; sandbox and /tmp stay."""

    sandbox: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationEnded:
    """Nothing of the invocation runs any more."""

    sandbox: str
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxBroken:
    """The driver failed on it: it serves nothing more and goes."""

    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxGone:
    """The driver saw processes, mounts and cgroups gone."""

    sandbox: str
    cause: str = ""


# ---------------------------------------------------------------- events: counting, and the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A member of the ledger took this incarnation in; ``watermarks`` is the whole fence table."""

    link: int
    watermarks: tuple[Session, ...]
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """Starts of this session, and of older ones of its frontend, are refused from here on."""

    link: int
    session: Session
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRenewed:
    """``until``: monotonic, counted from when this worker sent the renewal. ``grace_s``: for the watchdog."""

    until: float
    grace_s: float = 30.0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndApplied:
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """The ledger counts this incarnation as dead: it must not start anything more."""

    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSelf:
    """The process was told to end."""

    cause: str = "SIGTERM"


Event = (
    Adopt | Create | Destroy | Raise | Drain | Return | ManagerGone | StartAsked | StartWithdrawn | SandboxBuilt
    | BuildFailed | InitDone | ResultOut | ResetBegun | InvocationEnded | SandboxBroken | SandboxGone | Joined | Fenced
    | AuthorityRenewed | EndApplied | Evicted | DrainSelf
)

# ---------------------------------------------------------------- what a manager is told


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    sandbox: str
    function: FunctionId
    sequence: int
    state: str  # starting, idle, busy, draining: a manager's words, not the slot's
    invocation: str
    memory_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    sandboxes: tuple[SandboxStatus, ...]
    memory_mb: int
    memory_free_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleLease:
    highest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCapacity:
    sandbox: str
    reason: str
    memory_free_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateFailed:
    sandbox: str
    error_type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    sandbox: str
    sequence: int
    phases: ColdPhases


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    sandbox: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    sandbox: str
    sequence: int
    invocation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Going:
    """Nothing starts on it any more, without the manager's order. Gone, or CreateFailed, follows when its memory is
    free."""

    sandbox: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    sandbox: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    sandbox: str
    sequence: int
    busy: bool
    kept: bool = False      # nothing was raised: it runs, or has yet to


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    pass


ManagerNews = (
    Inventory | StaleLease | NoCapacity | CreateFailed | Ready | Idle | Busy | Going | Gone | Raised | Returned
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class TellManager:
    link: int
    lease: int
    news: ManagerNews
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSandbox:
    """Fetch the code, build the sandbox, run init."""

    sandbox: str
    function: FunctionId
    settings: FunctionSettings
    ticket: Ticket
    on_demand: bool
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroySandbox:
    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartInvocation:
    stream: int
    sandbox: str
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseStart:
    """Definite: it never ran and never will under this id."""

    stream: int
    invocation: str
    reason: Refusal
    detail: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellEnd:
    stream: int
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeFence:
    """The report of the same step that fenced: what runs of the session's blocks."""

    link: int
    session: Session
    running: tuple[Running, ...]
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEnd:
    """An invocation of a fenced block ended: its frontend can't say so. ``link`` 0: to whoever leads."""

    link: int
    block: Block
    invocation: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorise:
    """Who watches over the sandboxes hears of every renewal: when none comes, it destroys them without being asked."""

    until: float
    grace_s: float
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadChanged:
    memory_free_mb: int
    sandboxes: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveCounting:
    """Starts are refused and nothing runs: the incarnation may leave the ledger."""

    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """No sandbox is left: the process may end."""

    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndProcess:
    """This incarnation may do nothing more: another one must take its place."""

    reason: str
    cause: str = ""


Effect = (
    TellManager | BuildSandbox | DestroySandbox | StartInvocation | RefuseStart | TellEnd | AcknowledgeFence | ReportEnd
    | Authorise | LoadChanged | LeaveCounting | Drained | EndProcess
)
