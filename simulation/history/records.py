"""What happened in a region, as records: the only words that invariants are judged by.

Owns the records and their form in a file (NDJSON). Refuses to know who recorded them (``traces`` reads them out of the
services' traces, ``labda.chaos`` makes them from what clients and functions say) and what they prove (``checks``).

``at`` is in seconds on the boot-time clock of the host that ``node`` runs on. Empty fields are what the source can't
tell; no check takes them for a fact. A pool is "ACCOUNT/FUNCTION", or "ACCOUNT/*" for the account's unreserved rest.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """``node``: who says so."""

    at: float
    node: str = ""


FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header(Record):
    """First in every file. ``time_scale``: of leases, as given to ``labda up``."""

    format: int = FORMAT
    time_scale: float = 1.0


# ---------------------------------------------------------------- clocks and lives


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock(Record):
    """What this node's clock says is between ``low_s`` and ``high_s`` behind the region's: seconds to add to it.

    Nodes that no Clock speaks of share one.
    """

    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Life(Record):
    """A process of this name begins. Nothing of the one before it goes on. ``incarnation``: of a worker, HOST@NONCE."""

    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Record):
    """This node was killed, and nothing of it has run since then."""


# ---------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Record):
    """A client's synchronous invoke. ``digest``: of its payload."""

    request: str
    account: str = ""
    function: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Record):
    """The answer to any request. ``status`` is HTTP's; ``error`` the type of a refusal or of a function's error.

    ``explained``: whether a refusal has a Detail; ``detail``: its names. ``digest``: of the body. ``echoes``: whether
    every result repeats something of its request's; ``echo``: what this one repeats.
    """

    request: str
    function: str = ""
    status: int
    error: str = ""
    explained: bool = False
    detail: tuple[str, ...] = ()
    digest: str = ""
    echoes: bool = False
    echo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Over(Record):
    """The request waits for nothing any more at this frontend. Its answer follows, if it gets one."""

    request: str


# ---------------------------------------------------------------- runs and sandboxes, by their worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Record):
    """``invocation`` is the request's id, with "#n" for its n-th start. ``pool`` and ``session``: of the block that it
    was admitted from. ``digest``: of the payload that came. ``call``: the sandbox's own count of its runs."""

    invocation: str
    account: str = ""
    function: str
    version: str = ""
    revision: int = 0
    sandbox: str
    lease: int = 0
    pool: str = ""
    session: str = ""
    digest: str = ""
    call: int = 0

    @property
    def request(self) -> str:
        return self.invocation.partition("#")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Responded(Record):
    """What the function answered, before it goes to the frontend."""

    invocation: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Record):
    """Nothing of the invocation runs any more."""

    invocation: str
    sandbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Record):
    """A start was refused for certain."""

    invocation: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Record):
    """A worker begins to make a sandbox."""

    sandbox: str
    lease: int
    account: str = ""
    function: str = ""
    version: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroyed(Record):
    """A worker begins to destroy a sandbox."""

    sandbox: str


# ---------------------------------------------------------------- asynchronous events


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAccepted(Record):
    """The event is durable and its client was told so. ``retries``: how many it may have."""

    event: str
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRan(Record):
    """One try. ``outcome``: "success", "error" (the function's), "throttle" or "system" (the platform's)."""

    event: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettered(Record):
    event: str


# ---------------------------------------------------------------- leases


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted(Record):
    """By a placement. ``hard_end_s``: from then."""

    worker: str
    lease: int
    manager: str
    hard_end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHeld(Record):
    """By the manager's own word."""

    worker: str
    lease: int
    manager: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(Record):
    """By the worker: it obeys this manager from now on. ``lasts_s``: until the hard end."""

    lease: int
    manager: str
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Record):
    """By the worker: it has nothing left of this lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining(Record):
    """The worker takes nothing new: by its own word, or by the manager's that ordered it."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected(Record):
    """The manager begins with a lease of this worker."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Record):
    """The manager orders a sandbox there."""

    worker: str
    sandbox: str


# ---------------------------------------------------------------- the ledger, by its leader


@dataclass(frozen=True, slots=True, kw_only=True)
class Level(Record):
    """A pool as the ledger has it after an entry. ``crossing``: permits of other pools that are charged to it too;
    ``room``: what its function has left of its reservation, None without one."""

    pool: str
    limit: int
    granted: int
    crossing: int = 0
    room: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room(Record):
    """What an account's limit leaves over all of its pools, after an entry."""

    account: str
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Record):
    """What a session holds of a pool after an entry. ``why``: the commands of that entry."""

    session: str
    pool: str
    size: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Record):
    """A frontend's session: "live", "draining", "counted" or "gone"."""

    session: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Record):
    """A worker's incarnation in the ledger: "joined", "left", "replaced", "evicted", "declared dead", or "gone" where
    nobody who still lives saw how."""

    incarnation: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound(Record):
    """The limit binds everywhere: its Put has returned. ``since``: when it was written."""

    pool: str
    limit: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted(Record):
    """The whole wish of a frontend for a pool as it arrived: the numbers of the requests that wait."""

    frontend: str
    pool: str
    waiting: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted(Record):
    """The leader sends so many permits to a frontend: first for those of its requests that wait, oldest first."""

    frontend: str
    pool: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(Record):
    """By a frontend: this request of its own waits no longer. ``how``: "admitted", "refused", "gone"."""

    number: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Record):
    """A round asks a holder for what is idle."""

    pool: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallAnswered(Record):
    pool: str
    round: int
    frontend: str
    given_back: int
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled(Record):
    """The leader's proof that nothing was free, to these requests of a frontend."""

    frontend: str
    pool: str
    waiting: tuple[int, ...]
    round: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproven(Record):
    """The leader has neither a permit nor a proof for these requests of a frontend."""

    frontend: str
    pool: str
    waiting: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat(Record):
    """The leader did something: it isn't stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest(Record):
    """The ledger was asked after everything had been answered ``after_s`` ago. ``out``: permits that nothing accounts
    for. ``whole``: nothing is away."""

    pool: str
    out: int
    after_s: float
    whole: bool


# ---------------------------------------------------------------- fences and authority, by their worker


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAcked(Record):
    """From here on the worker starts nothing of this session or of an older one of its frontend. ``reports``: it says
    in the same step what runs of it; else it came with the fences of others, when it joined."""

    session: str
    running: tuple[str, ...] = ()
    reports: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority(Record):
    """The worker may start functions until then, by its own clock."""

    until: float


# ---------------------------------------------------------------- Raft


@dataclass(frozen=True, slots=True, kw_only=True)
class Led(Record):
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposed(Record):
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(Record):
    """An entry. ``after``: the index of the one before it; -1 where that isn't known (a start, a snapshot)."""

    index: int
    digest: str
    after: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed(Record):
    """The leader asks a quorum to take its next entry; one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Record):
    """The leader tells whoever asked for it that this entry is in the log for good."""

    index: int
    digest: str


# ---------------------------------------------------------------- the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Record):
    """What this node did from here on is not in the history."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Record):
    """Nothing runs and nothing waits any more: what has not happened by now never will."""


KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in (
    Header, Clock, Life, Lost, Asked, Answered, Over, Start, Responded, End, Refused, Made, Destroyed, EventAccepted,
    EventRan, DeadLettered, LeaseGranted, LeaseHeld, Adopted, Returned, Draining, Connected, Placed, Level, Room, Block,
    Session, Member, Bound, Wanted, Granted, Served, Recalled, RecallAnswered, Throttled, Unproven, Beat, Rest,
    FenceAcked, Authority, Led, Deposed, Applied, Proposed, Committed, Cut, Closed,
)}
"""``record`` in a line is the type's name; the rest are its fields, those with their default left out."""


def line(record: Record) -> str:
    fields: dict[str, Any] = {"record": type(record).__name__}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value != field.default or field.name == "format":
            fields[field.name] = value
    return json.dumps(fields, separators=(",", ":"))


def parse(text: str) -> Record:
    """Raises ValueError, KeyError or TypeError for what is no record of this format."""
    fields: dict[str, Any] = json.loads(text)
    kind = KINDS[fields.pop("record")]
    if kind is Header and fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, this labda reads {FORMAT}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return kind(**values)
