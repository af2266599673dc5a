"""What happens to a worker manager and what it orders: the events and effects of ``worker_manager.core``.

Owns the vocabulary only. ``order`` in ``Reserve`` and ``Create`` is carried through untouched: what a worker needs to
build a sandbox is none of the manager's business.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FunctionKey:
    """What a sandbox serves for life (invariant 8)."""

    account: str
    function: str
    version: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Configuration and code ticket, serialised: for the worker alone."""

    config: bytes = b""
    ticket: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Milliseconds of a cold start by phase; permit and run are metered elsewhere."""

    place_ms: float = 0.0
    code_ms: float = 0.0
    sandbox_ms: float = 0.0
    runtime_ms: float = 0.0
    init_ms: float = 0.0


# ---------------------------------------------------------------- events: frontends


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """A request needs a sandbox. ``sandbox`` is a drawn name, for the case that one has to be made."""

    frontend: str
    cause: str             # invocation id
    function: FunctionKey
    memory_mb: int
    runtime: str
    deadline_s: float      # from now
    az: str
    sandbox: str
    order: Order = Order()
    unsure: bool = False   # the frontend's copy of the metadata may be old


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The waiter is gone; a sandbox that starts for it is kept. ``served``: under a reservation that its
    frontend passed on."""

    frontend: str
    cause: str
    served: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The frontend will not start under this reservation again. A hint: only the worker says that it is idle."""

    frontend: str
    sandbox: str
    sequence: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """Older revisions of the version, or all of the function, may go. With a ``cause``, who says so is told when
    nothing of theirs can start any more. ``vouched``: its copy of the metadata is certainly current."""

    function: FunctionKey
    deleted: bool
    vouched: bool = False
    frontend: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendLeft:
    frontend: str
    cause: str = ""


# ---------------------------------------------------------------- events: workers


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFacts:
    """One sandbox of an inventory."""

    sandbox: str
    function: FunctionKey
    sequence: int
    state: str             # starting, idle, busy, draining
    memory_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The answer to Adopt: the worker is ours under this lease number."""

    worker: str
    lease: int
    nonce: int             # of the worker's incarnation
    sandboxes: tuple[SandboxFacts, ...]
    memory_mb: int
    memory_free_mb: int
    runtimes: tuple[str, ...]
    invoke_address: str    # where frontends reach it
    cause: str = "adopt"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAway:
    """The stream broke; it is dialled again."""

    worker: str
    lease: int
    cause: str = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleLease:
    """The worker knows a higher number than ours."""

    worker: str
    lease: int
    highest: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCapacity:
    worker: str
    sandbox: str
    reason: str
    memory_free_mb: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateFailed:
    worker: str
    sandbox: str
    error_type: str
    message: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    worker: str
    sandbox: str
    sequence: int
    phases: Phases = Phases()
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    worker: str
    sandbox: str
    sequence: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    worker: str
    sandbox: str
    sequence: int
    cause: str = ""        # the invocation that runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Going:
    """Nothing starts on it any more. Its memory is in use until it is Gone."""

    worker: str
    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    worker: str
    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    worker: str
    sandbox: str
    sequence: int
    busy: bool             # something runs on it under an older sequence: it finishes
    kept: bool = False     # nothing was raised: it runs, or has yet to
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReturned:
    """The worker has nothing left of this lease."""

    worker: str
    lease: int
    cause: str = ""


# ---------------------------------------------------------------- events: placement, time


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    worker: str
    address: str
    host: str
    az: str
    lease: int
    soft_end_s: float      # from now
    hard_end_s: float
    drain_s: float         # the longest run that there may be: fits between the drain's beginning and the hard end
    az_reserve: bool = False    # idle sandboxes don't get what the loss of an AZ would need
    cause: str = "lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    worker: str
    lease: int
    reason: str
    cause: str = "lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Another active manager is to have the worker."""

    worker: str
    lease: int
    cause: str = "hand over"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleGiven:
    active: bool
    term: int
    cause: str = "role"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSeen:
    """What the newest view says: who owns functions, which workers take nothing new."""

    owners_version: int
    owners: tuple[str, ...]
    unusable: frozenset[str] = frozenset()
    cause: str = "view"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Placement's ranking, best first; None: it is away or too slow, rank yourself."""

    sandbox: str
    workers: tuple[str, ...] | None
    refusal: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    cause: str = "timer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """This manager ends: another one takes the workers over as they are."""

    cause: str = "drain"


FrontendEvent = Reserve | Cancel | Release | Revised | FrontendLeft
SandboxEvent = NoCapacity | CreateFailed | Ready | Idle | Busy | Going | Gone | Raised
WorkerEvent = Inventory | WorkerAway | StaleLease | WorkerReturned | Granted | Lost | HandOver
Event = FrontendEvent | SandboxEvent | WorkerEvent | RoleGiven | RegionSeen | Placed | Tick | Leave

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    frontend: str
    cause: str
    worker: str
    address: str
    host: str
    nonce: int
    lease: int
    sandbox: str
    sequence: int
    linger_s: float
    pass_on_s: float = 0.0
    cold: bool = False
    phases: Phases = Phases()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    frontend: str
    cause: str
    reason: str            # name of a ManagerReply.Refused.Reason
    message: str
    version: int = 0
    owner: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """The answer to a Revised: on sandboxes older than that nothing starts any more, whoever has a right on them."""

    frontend: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    frontend: str
    sandbox: str
    sequence: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPlacement:
    sandbox: str
    function: FunctionKey
    memory_mb: int
    runtime: str
    az: str
    workers: tuple[str, ...]
    same: tuple[tuple[str, int], ...]   # sandboxes of the function by worker
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """Dial the worker and adopt it; dial again whenever the stream breaks, until Disconnect."""

    worker: str
    address: str
    lease: int
    lasts_until: float     # monotonic: the lease's hard end
    timeout_cap_s: float   # of runs under this lease
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    worker: str
    lease: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    worker: str
    sandbox: str
    function: FunctionKey
    sequence: int
    deadline_s: float
    order: Order = Order()
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    worker: str
    sandbox: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    """``used``: only if nothing runs and something ran under this sequence; 0: in any case."""

    worker: str
    sandbox: str
    sequence: int
    used: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWorker:
    worker: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnWorker:
    worker: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellReturned:
    worker: str
    lease: int
    cause: str = ""


Effect = (
    Reserved | Refused | Retired | Recall | AskPlacement | Connect | Disconnect | Create | Destroy | Raise | DrainWorker
    | ReturnWorker | TellReturned
)
