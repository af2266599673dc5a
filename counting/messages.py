"""Events that the leader's core is told and effects that it orders. Values without behaviour.

A `link` is the edge's number for one open stream, a `call` its number for one unary call. Times are seconds of the
driver's monotonic clock, unless a name says otherwise. Every message carries `cause`: what set it off.
"""

from dataclasses import dataclass

from counting.commands import VERSION, Batch, Result, Run
from counting.words import Incarnation, Pool, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    cause: str = ""


# ---------------------------------------------------------------- events: Raft and time


@dataclass(frozen=True, slots=True, kw_only=True)
class Led(Message):
    """This member leads in `term`, and its ledger holds everything that was acknowledged before."""

    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposed(Message):
    """It doesn't lead; `hint` is the leader's node id as far as it is known. Also said when the hint changes."""

    term: int
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Message):
    """Our batch is in the log for good and applied to the ledger."""

    index: int
    batch: Batch
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush(Message):
    """What has gathered is to be proposed. `wall`: Unix seconds, the batch's stamp. `version`: the command language
    that every member knows."""

    wall: float
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Message):
    """The time asked for by `WakeAt` has come."""


# ---------------------------------------------------------------- events: frontends


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    pool: Pool
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """`epoch` 0 asks for a session; another one names the session that this process had."""

    link: int
    frontend: str
    nonce: int
    epoch: int
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Message):
    """The whole wish for a pool: ids that wait, oldest first, and a top-up. `seen`: index of the newest grant it
    had."""

    link: int
    pool: Pool
    generation: int
    waiting: tuple[int, ...]
    spare: int = 0
    seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveBack(Message):
    link: int
    sequence: int
    pool: Pool
    count: int
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallAnswered(Message):
    """What was idle was given back before this, on this very stream."""

    link: int
    round: int
    pool: Pool
    given_back: int
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationAcked(Message):
    link: int
    sequence: int
    pool: Pool
    generation: int
    moved: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """`holdings`: pools whose use has changed since the newest heartbeat."""

    link: int
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneAsked(Message):
    """A frontend has lost its stream to these and waits for the ledger's word (rule 3)."""

    link: int
    incarnations: tuple[Incarnation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Message):
    link: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost(Message):
    """A stream of a frontend or worker is gone. That frees nothing (rule 3)."""

    link: int


# ---------------------------------------------------------------- events: workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Message):
    link: int
    incarnation: Incarnation
    timeout_cap_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew(Message):
    link: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAcked(Message):
    """Fenced and reported in one step: the runs of that session here, by `Run.incarnation` of this very worker."""

    link: int
    session: Session
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Message):
    link: int
    session: Session
    pool: Pool
    invocation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Message):
    link: int


# ---------------------------------------------------------------- events: calls


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReservedCall(Message):
    """`request`: the caller's id, the same when it asks again because no answer came."""

    call: int
    account: str
    function: str
    value: int | None
    request: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProvisionedCall(Message):
    """`version`: the command language that every member knows."""

    call: int
    account: str
    function: str
    qualifier: str
    value: int | None
    request: str = ""
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAccountLimitCall(Message):
    call: int
    account: str
    limit: int
    request: str = ""


LimitCall = SetReservedCall | SetProvisionedCall | SetAccountLimitCall


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclareDeadCall(Message):
    """An operator's word. `force`: also of one that is heard from. `version`: the command language that every member
    knows."""

    call: int
    incarnation: Incarnation
    force: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCall(Message):
    """Wants the ledger as it is now: answered after a quorum confirmed the leader."""

    call: int


Event = (
    Led | Deposed | Committed | Flush | Tick
    | Hello | Ask | GaveBack | RecallAnswered | GenerationAcked | Heartbeat | GoneAsked | Goodbye | LinkLost
    | Join | Renew | FenceAcked | Ended | Leave
    | LimitCall | DeclareDeadCall | ReadCall
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushSoon(Message):
    """Hand in a `Flush` at the end of this turn of the event loop: what arrives until then goes along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt(Message):
    """Hand in a `Tick` at this time; the newest order counts."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose(Message):
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SendWelcome(Message):
    link: int
    session: Session
    applied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendGrant(Message):
    link: int
    pool: Pool
    generation: int
    count: int
    applied: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRecall(Message):
    link: int
    round: int
    pool: Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendThrottled(Message):
    link: int
    pool: Pool
    waiting: tuple[int, ...]
    limit: int
    in_use: int
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendUnavailable(Message):
    link: int
    pool: Pool
    waiting: tuple[int, ...]
    reason: str
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendGeneration(Message):
    link: int
    pool: Pool
    generation: int
    limit: int
    gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendGone(Message):
    link: int
    incarnations: tuple[Incarnation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFenced(Message):
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendNotLeader(Message):
    link: int
    term: int
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendJoined(Message):
    link: int
    watermarks: tuple[Session, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFence(Message):
    link: int
    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRenewed(Message):
    link: int
    number: int
    authority_s: float
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEvicted(Message):
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEndApplied(Message):
    link: int
    invocation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """Who holds up a change of limits; `wait_s` until it binds at the latest."""

    node: str
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimit(Message):
    """To each change of a limit."""

    call: int
    generation: int
    changed: bool
    outstanding: tuple[Outstanding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBelowFloor(Message):
    call: int
    account_limit: int
    reserved_elsewhere: int
    floor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerAboveReservation(Message):
    call: int
    reserved: int
    provisioned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDeclared(Message):
    """`changed` False: it was out of the ledger for good before."""

    call: int
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHeard(Message):
    """Not declared dead: this incarnation has a stream here right now."""

    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTooOld(Message):
    """Refused: not every member knows that command yet. `version`: what all know."""

    call: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRead(Message):
    """The edge reads the ledger now, in this very turn."""

    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerNotLeader(Message):
    call: int
    term: int
    hint: str


Effect = (
    FlushSoon | WakeAt | Propose
    | SendWelcome | SendGrant | SendRecall | SendThrottled | SendUnavailable | SendGeneration | SendFenced
    | SendGone
    | SendNotLeader | SendJoined | SendFence | SendRenewed | SendEvicted | SendEndApplied
    | AnswerLimit | AnswerBelowFloor | AnswerAboveReservation | AnswerDeclared | AnswerHeard | AnswerTooOld | AnswerRead
    | AnswerNotLeader
)
