"""What happened in one run, as records: a file of them (NDJSON) is all that a verdict is made from.

Owns the records and their form in the file. Refuses to know who writes them and what they prove (``judge``). Every time
is in seconds of CLOCK_BOOTTIME, which all processes and containers of one machine share, sandboxes too; ``Opened.wall``
says when that was for people.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from labda.refusal import Refusal, Status

FORMAT = 1

Kind = TypeVar("Kind")


def now() -> float:
    """The clock of every record."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a scenario says beforehand about requests. Seconds.

    A request may fail when a process that it was at was hit: in flight there, or sent up to ``notice_s`` after the deed
    (until the endpoint has noticed). Its failure is answered at most ``over_s`` after the hit. ``fails``: False where
    no request may fail at all. ``warm_share``: of the runs that begin more than ``over_s`` after the hit, so many are
    warm at least. ``writes_refused``: while the fault lasts, a write gets a 503 that says why. ``refuses``: statuses
    that a request may get while the fault lasts and ``healed_s`` longer, with a reason; a 503 also says when to come
    again.
    ``leaders_per_min``: counting's leader changes so often at most, and once in any case; None promises nothing.
    """

    fails: bool = True
    notice_s: float = 0.0
    over_s: float = 5.0
    warm_share: float = 0.0
    writes_refused: bool = False
    refuses: tuple[int, ...] = ()
    healed_s: float = 0.0
    leaders_per_min: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """First in every file."""

    format: int = FORMAT
    at: float
    wall: str
    scenario: str
    target: str
    seed: int
    rate: float                     # requests per second
    run_s: float                    # how long a run of each takes
    use: float                      # share of each pool that is in use on average
    steady_at: float                # the load is at its rate from then on: promises are about requests from then on
    promise: Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A pool's limit, in force from then on (its Put had returned)."""

    at: float
    function: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request's whole life at the client. ``status`` 0: no answer came. From ``echo`` on, the answer's words."""

    at: float                       # when it was due
    sent: float
    done: float
    nonce: str
    function: str
    status: int
    error: str = ""                 # the refusal's type, the function's error, or why no answer came
    reason: str = ""                # of a refusal, from its Detail
    explained: bool = False         # whether it has a type and a Detail
    retry_after: str = ""           # of a refusal
    echo: str = ""                  # the nonce in the answer
    sandbox: str = ""
    calls: int = 0                  # of this sandbox, this one included
    begun: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A handler began, by the function's log on that worker."""

    at: float
    nonce: str
    function: str
    sandbox: str
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    at: float
    nonce: str
    function: str
    sandbox: str
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something was done to these nodes. ``done``: when it was seen to be done; what was killed doesn't run then."""

    at: float
    done: float
    action: str                     # one of ``faults``
    nodes: tuple[str, ...]
    held: tuple[str, ...] = ()      # roles that these had, for people: "the leader of counting"
    how: str = ""                   # where the action doesn't say it, for people: "it hears nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as the region's view shows it, whenever that changed."""

    at: float
    node: str
    service: str
    health: str
    role: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Which manager holds a worker, by the manager's own word, whenever that changed."""

    at: float
    worker: str
    lease: int
    manager: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One of this run's pools in the ledger. ``stranded``: of frontends that are gone; ``running``: of live ones."""

    function: str
    limit: int
    granted: int
    running: int
    stranded: int = 0

    def out(self, *, away: bool) -> int:
        """Permits that nothing accounts for when nothing runs.

        ``away``: a worker is. What ran there may run on for all that its frontends know: its permits are taken until
        the ledger evicts it.
        """
        return self.granted - (self.stranded + self.running if away else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A worker's host that the ledger doesn't hear from. What it ran counts no longer than ``until``."""

    host: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The ledger's word. ``moment``: "quiet" (after the last answer, what is away still is), "end" (all serves)."""

    at: float
    since: float                    # when it began to be asked: how long it took to be at rest
    moment: str
    pools: tuple[Pool, ...]
    hosts: tuple[Host, ...] = ()    # not heard from


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranded:
    """Permits of frontends that are gone, until the ledger has them back, whenever their number changed."""

    at: float
    permits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A write to the public API while the stores may be away."""

    at: float
    done: float
    status: int
    error: str = ""
    explained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Last in every file that is whole. ``missing``: what was there before the run and isn't now."""

    at: float
    unsent: int = 0                 # requests that were due when the generator had no connection left
    unheard: tuple[str, ...] = ()   # workers whose logs could not be followed to the end
    missing: tuple[str, ...] = ()


Record = (
    Opened | Limit | Request | Start | End | Fault | Process | Lease | Ledger | Stranded | Write | Closed
)
_TYPES: dict[str, type[Any]] = {
    one.__name__.lower(): one
    for one in (Opened, Limit, Request, Start, End, Fault, Process, Lease, Ledger, Stranded, Write, Closed)
}


class Writer:
    """Appends records to a file. ``close`` it, whatever happened: what is there then can be judged."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._file.write(line(record) + "\n")

    def close(self) -> None:
        self._file.close()


def line(record: Record) -> str:
    return json.dumps({"type": type(record).__name__.lower(), **dataclasses.asdict(record)}, separators=(",", ":"))


def parse(text: str) -> Record:
    """Raises ValueError, KeyError or TypeError for what isn't a record of this format."""
    fields = json.loads(text)
    kind = _TYPES[fields.pop("type")]
    if kind is Opened:
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']}, this labda reads {FORMAT}")
        promise = fields["promise"]
        fields["promise"] = Promise(**promise | {"refuses": tuple(promise.get("refuses", ()))})
    elif kind is Ledger:
        fields["pools"] = tuple(Pool(**pool) for pool in fields["pools"])
        fields["hosts"] = tuple(Host(**host) for host in fields["hosts"])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    record: Record = kind(**values)
    return record


def read(path: Path) -> list[Record]:
    """Raises Refusal. The last line of a run that was killed may be torn: it is left out."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"can't read {path}: {why(error)}", Status.USAGE) from error
    return list(_records(path, text.splitlines(), torn=not text.endswith("\n")))


def is_trace(path: Path) -> bool:
    """Whether the file is a process's record of events (``chassis.machine.Trace``) instead."""
    try:
        with path.open() as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "node" in first and "type" not in first


def is_recorded(path: Path) -> bool:
    """Whether the file is what a cluster recorded of itself (``labda up --record``)."""
    try:
        with path.open() as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "record" in first


def _records(path: Path, lines: list[str], *, torn: bool) -> Iterator[Record]:
    for number, text in enumerate(lines[:-1] if torn else lines, start=1):
        try:
            yield parse(text)
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{path}, line {number} is no record of a run ({why(error)}): a history.ndjson of "
                          "`labda chaos run` is needed") from error


def why(error: Exception) -> str:
    """What was wrong with a line, or a file, in words."""
    match error:
        case KeyError():
            return f"it has no {error}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


def of_type(records: Iterable[Record], kind: type[Kind]) -> list[Kind]:
    return [record for record in records if isinstance(record, kind)]
