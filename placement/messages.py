"""What happens to the active placement and what it orders: the events and effects of ``placement.core``.

Owns the vocabulary only. Times in events are monotonic seconds of this process unless a name says ``wall`` (Unix
seconds); random draws arrive as numbers in [0, 1).
"""

from dataclasses import dataclass

from storage.interfaces import Leadership, LeaseRecord, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker has for sandboxes, by its own word."""

    memory_mb: int
    memory_free_mb: int
    sandboxes: int = 0
    runtimes: tuple[str, ...] = ()
    memory_idle_mb: int = 0     # of sandboxes that nothing runs on


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One process as it describes itself."""

    node: str
    service: str
    az: str
    host: str
    address: str
    nonce: int
    http: str = ""
    pid: int = 0
    version: str = ""
    role: str = ""
    detail: tuple[tuple[str, str], ...] = ()
    capacity: Capacity | None = None
    metrics: str = ""


# ---------------------------------------------------------------- events: registration


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A process opened its stream, or described itself anew on it."""

    facts: NodeFacts
    connection: int
    leaving: bool = False
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    node: str
    connection: int
    load: Capacity | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamClosed:
    node: str
    connection: int
    cause: str = ""


# ---------------------------------------------------------------- events: managers


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerJoined:
    """A manager's lease stream: ``held`` are the (worker, lease number) that it holds."""

    manager: str
    nonce: int
    connection: int
    held: frozenset[tuple[str, int]] = frozenset()
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerLeft:
    manager: str
    connection: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReturned:
    """The manager gives the worker back: empty, or for another manager to take over as it is."""

    manager: str
    worker: str
    lease: int
    cause: str = ""


# ---------------------------------------------------------------- events: time, draws, storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    cause: str = "tick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """This placement ends: it gives up its leadership, so that another takes over at once."""

    cause: str = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDrawn:
    worker: str
    fraction: float        # where in 6 to 9 h the soft end lies
    wall: float
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadershipRead:
    stored: Stored[Leadership] | None
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadershipWritten:
    revision: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadershipFailed:
    """Reading or writing went wrong: refused, away, or unknown. In each case: read again before acting."""

    fault: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsRead:
    records: tuple[Stored[LeaseRecord], ...]
    wall: float
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsFailed:
    fault: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordWritten:
    worker: str
    revision: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFailed:
    """A compare-and-swap was refused or its outcome is unknown. In each case: read again before acting."""

    worker: str
    fault: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    worker: str
    stored: Stored[LeaseRecord] | None
    fence: int
    wall: float
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUnread:
    """The store did not answer the second look either."""

    worker: str
    fault: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRevoked:
    """Whose certificates are refused, each up to the number of an enrolment: all of them, every time."""

    revoked: tuple[tuple[str, int], ...]
    cause: str = ""


Event = (
    Registered | Heartbeat | StreamClosed | ManagerJoined | ManagerLeft | WorkerReturned | Tick | Drain | LeaseDrawn
    | LeadershipRead | LeadershipWritten | LeadershipFailed | RecordsRead | RecordsFailed | RecordWritten | RecordFailed
    | RecordRead | RecordUnread | NodesRevoked
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Nodes or owners changed: send the whole view to everybody who registered."""

    version: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """This placement's own role."""

    active: bool
    term: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveRole:
    manager: str
    active: bool
    term: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    manager: str
    worker: str
    address: str
    host: str
    az: str
    lease: int
    soft_end_s: float      # from now
    hard_end_s: float
    drain_s: float         # before the hard end: no run takes longer
    az_reserve: bool = False    # idle sandboxes don't get what the loss of an AZ would need
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """The manager is to give the worker back as it is: another active one has too few."""

    manager: str
    worker: str
    lease: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeAway:
    """The manager no longer holds the worker under this number."""

    manager: str
    worker: str
    lease: int
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawLease:
    worker: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLeadership:
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLeadership:
    term: int
    expected: int
    lasts_s: float         # 0: given up
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRecords:
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRecord:
    record: LeaseRecord
    expected: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRecord:
    worker: str
    cause: str = ""


Effect = (
    Publish | RoleChanged | GiveRole | Grant | HandOver | TakeAway | DrawLease | ReadLeadership | WriteLeadership
    | ReadRecords | WriteRecord | ReadRecord
)
