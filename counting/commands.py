"""Commands of the ledger, what they result in, and the bytes that they travel and rest in.

A command is one thing that happens to the ledger; a `Batch` is what one Raft entry carries. The encoding is JSON with
type names, because entries outlive processes and must be readable years later; a batch carries the version of the
command language (rule 11), and a member that doesn't know it refuses to go on rather than to diverge. A field that came
with a later version is left out of a batch of an earlier one.
Refuses to know: what a command does (ledger.py), when it is proposed (core.py).
"""

import json
from dataclasses import dataclass, fields
from typing import Any

from counting.words import Incarnation, Pool, PoolKind, Session

VERSION = 5
"""The command language that this build speaks. Proposed only when every member knows it.

2: changes of limits carry their request's id and are applied once per id; a long count comes in parts.
3: operators declare worker incarnations dead.
4: versions of functions have provisioned concurrency.
"""

OLDEST = 1
"""What every member knows that says nothing of itself."""

BATCH_BYTES_MAX = 512 * 1024
"""Most bytes of one batch, by `weight`, unless one command alone weighs more; an entry of the log holds twice as much
(COMMAND_BYTES_MAX of raft/guards.py).

Only an AckGeneration can weigh more, from 1,365 moved functions on (in version 1 a CountBlocks too, which has no parts
there). In truth it takes 75 bytes for each at most (a name of 64 characters, a count): 225 KiB for the 3,000 requests
that a frontend has under way (its requests_max), each of another function. An entry has room for 13,000."""

PART_RUNS = 1000
"""Most runs of one CountBlocks: about 300 KiB."""

_PLAIN_BYTES, _ITEM_BYTES = 512, 384


class UnknownVersionError(Exception):
    """A batch is written in a command language that this build doesn't know: upgrade this member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """A frontend process wants a session. The same nonce gets the same live session; another nonce fences the old
    one."""

    frontend: str
    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """A drained frontend: nothing held, nothing runs."""

    session: Session
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """`waiting` requests that wait now and `spare` permits for the next ones."""

    session: Session
    pool: Pool
    generation: int
    waiting: int
    spare: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """Grants, oldest wish first; top-ups come after every request that waits (rule 1)."""

    wishes: tuple[Wish, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """Permits that come back from a live session. `function` names the runs whose function has moved to another
    pool."""

    session: Session
    sequence: int
    pool: Pool
    count: int
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AckGeneration:
    """A holder has seen the pool's generation; `moved` says how many runs of moved functions its block still has."""

    session: Session
    sequence: int
    pool: Pool
    generation: int
    moved: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReserved:
    """Sets a function's reservation, or gives it up (`value` None). Equal to what is: nothing changes.

    `request`: an id that was applied before changes nothing either, whatever happened since.
    """

    account: str
    function: str
    value: int | None
    request: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProvisioned:
    """Sets what is provisioned of a function's version, or gives it up (`value` None); `request` as of SetReserved."""

    account: str
    function: str
    qualifier: str
    value: int | None
    request: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAccountLimit:
    account: str
    limit: int
    request: str = ""


ChangeOfLimit = SetReserved | SetProvisioned | SetAccountLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWorker:
    """An incarnation becomes a member. An older one of its host is evicted: it is gone by the new one's word (rule
    7)."""

    incarnation: Incarnation
    timeout_cap_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveWorker:
    """It refuses starts and runs nothing."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictWorker:
    """Proof of death, or its authority and every timeout are over."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclareDead:
    """An operator's word that this incarnation is dead, which is proof (rule 7). One that never joined never will."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkDraining:
    """A silent or replaced frontend: its blocks are fenced from here on and charged whole until they are counted."""

    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One invocation that a worker reported: running, or accepted and not yet begun."""

    pool: Pool
    function: str
    invocation: str
    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class CountBlocks:
    """Every member reported (or is gone): the session's blocks shrink to what runs of them.

    A long report comes in parts: the `first` forgets what an earlier leader had begun, the `last` counts.
    """

    session: Session
    runs: tuple[Run, ...]
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfInvocation:
    """An END of a counted block. It names its invocation, so that one too many does nothing."""

    session: Session
    pool: Pool
    invocation: str
    incarnation: Incarnation


Command = (
    OpenSession | CloseSession | Acquire | GiveBack | AckGeneration | ChangeOfLimit | JoinWorker | LeaveWorker
    | EvictWorker | DeclareDead | MarkDraining | CountBlocks | EndOfInvocation
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one Raft entry carries. `stamp`: the leader's wall clock in Unix seconds; `number`: the proposer's own
    count."""

    stamp: float
    number: int
    commands: tuple[Command, ...]
    version: int = VERSION


# ---------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    session: Session
    replaced: Session | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """`waiting` + `spare` permits were added; `size` is the block's, with give-backs up to `applied` taken off."""

    session: Session
    pool: Pool
    generation: int
    waiting: int
    spare: int
    size: int
    applied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireDone:
    grants: tuple[Granted, ...]
    stale: tuple[Wish, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Applied, or applied before (then it changed nothing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The session is draining, counted or gone: its commands are refused (rule 6)."""

    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceGap:
    """A command before this one is missing: the frontend sends again from `applied` + 1."""

    session: Session
    applied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSet:
    """`pools`: those whose holders have to see the generation before the change binds."""

    pools: tuple[Pool, ...]
    generation: int
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BelowFloor:
    """Refused: the account's unreserved rest would fall below its floor."""

    account_limit: int
    reserved_elsewhere: int
    floor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AboveReservation:
    """Refused: more would be provisioned of a function than it has reserved."""

    reserved: int
    provisioned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberGone:
    """Refused: this incarnation was evicted or has left; only a new one may join."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """It is a member. `replaced`: the older incarnation of its host, which is gone by its word."""

    replaced: Incarnation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """It is a member no more; `changed` False: it wasn't one any longer."""

    incarnation: Incarnation
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """It is a member no more, and never will be one; `changed` False: that was so before."""

    incarnation: Incarnation
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """The session is draining now (or was already: `changed` False)."""

    session: Session
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    session: Session
    sizes: tuple[tuple[Pool, int], ...]


Result = (
    Opened | AcquireDone | Done | Fenced | SequenceGap | LimitSet | BelowFloor | AboveReservation | MemberGone
    | Joined | Evicted | Declared | Drained | Counted
)

# ---------------------------------------------------------------- bytes


def weight(command: Command) -> int:
    """About how many bytes a command takes in a batch, names of usual length taken for granted."""
    match command:
        case Acquire(wishes=items) | CountBlocks(runs=items) | AckGeneration(moved=items):
            return _PLAIN_BYTES + _ITEM_BYTES * len(items)
        case _:
            return _PLAIN_BYTES


_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        OpenSession, CloseSession, Wish, Acquire, GiveBack, AckGeneration, SetReserved, SetProvisioned,
        SetAccountLimit, JoinWorker, LeaveWorker, EvictWorker, DeclareDead, MarkDraining, Run, CountBlocks,
        EndOfInvocation, Pool, Session, Incarnation,
    )
}
DECLARING, PROVISIONING, REGROUPING = 3, 4, 5
"""The first command languages with DeclareDead and SetProvisioned: a batch of an earlier one must not hold them. And
the first whose members read in their logs who votes."""

_SINCE = {
    (SetReserved, "request"): 2, (SetAccountLimit, "request"): 2, (CountBlocks, "first"): 2, (CountBlocks, "last"): 2,
}
_FIELDS: dict[int, dict[type, tuple[str, ...]]] = {
    version: {
        kind: tuple(field.name for field in fields(kind) if _SINCE.get((kind, field.name), OLDEST) <= version)
        for kind in _KINDS.values()
    }
    for version in range(OLDEST, VERSION + 1)
}


_AS_IT_IS = {int, str, float, bool, type(None)}   # most of what there is: every entry goes through here


def _plain(value: Any, known: dict[type, tuple[str, ...]]) -> Any:
    names = known.get(type(value))
    if names is not None:
        plain: dict[str, Any] = {"": type(value).__name__}
        for name in names:
            item = getattr(value, name)
            plain[name] = item if type(item) in _AS_IT_IS else _plain(item, known)
        return plain
    if isinstance(value, tuple):
        return [_plain(item, known) for item in value]
    return int(value) if isinstance(value, PoolKind) else value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return tuple([_rich(item) if isinstance(item, (dict, list)) else item for item in value])
    kind = _KINDS[value.pop("")]
    for name, item in value.items():
        if isinstance(item, (dict, list)):
            value[name] = _rich(item)
    if kind is Pool:
        value["kind"] = PoolKind(value["kind"])
    return kind(**value)


def encode(batch: Batch) -> bytes:
    """One batch as bytes; the same batch gives the same bytes."""
    known = _FIELDS[batch.version]
    plain = [batch.version, batch.stamp, batch.number, [_plain(command, known) for command in batch.commands]]
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(data: bytes, knows: int = VERSION) -> Batch:
    """The batch that `encode` wrote.

    Raises UnknownVersionError for a version above `knows`, ValueError, KeyError, TypeError or AttributeError for bytes
    that `encode` never wrote.
    """
    version, stamp, number, commands = json.loads(data)
    if version > knows:
        raise UnknownVersionError(
            f"a ledger entry is written in command version {version}, this member knows up to {knows}: upgrade it"
        )
    return Batch(version=version, stamp=stamp, number=number, commands=tuple(_rich(item) for item in commands))
