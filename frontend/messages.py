"""Events that the admission core is told and effects that it orders. Values without behaviour.

A ``link`` is the edge's number for one open stream to a member of counting; ``request`` its number for one request that
wants a permit. ``stamp`` is (term, index) of the answer that an event came with.
"""

import enum
from dataclasses import dataclass

from frontend.permits import Pool

Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    cause: str = ""


class Refusal(enum.Enum):
    """Why a request gets no permit."""

    THROTTLED = "throttled"          # proven: nothing was free and nothing idle (rule 4)
    UNAVAILABLE = "unavailable"      # no proof either way
    OVERLOADED = "overloaded"        # too many wait here already


# ---------------------------------------------------------------- events: requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted(Message):
    """A request found no idle permit on the fast path. It waits until ``deadline`` at most."""

    request: int
    account: str
    function: str
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiterGone(Message):
    """The client is gone: nobody wants this permit any more."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Low(Message):
    """The pool's block has reached its mark: time for a top-up."""

    pool: Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed(Message):
    """A permit came back to a block that is watched; ``function`` is whose it was."""

    pool: Pool
    epoch: int
    generation: int
    function: str


# ---------------------------------------------------------------- events: time and life


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush(Message):
    """The turn of the event loop is over: asks that it made go out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Message):
    """The time that ``wakes_at`` named has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Message):
    """This frontend drains: everything goes back, then the session is closed."""


# ---------------------------------------------------------------- events: counting


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp(Message):
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown(Message):
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLeader(Message):
    link: int
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcomed(Message):
    """The leader knows our session; the ledger has applied its messages up to ``applied``."""

    link: int
    stamp: Stamp
    epoch: int
    applied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted(Message):
    """``size`` is our block's at the ledger, with give-backs up to ``applied`` taken off."""

    link: int
    stamp: Stamp
    pool: Pool
    generation: int
    count: int
    applied: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Message):
    link: int
    stamp: Stamp
    round: int
    pool: Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled(Message):
    link: int
    stamp: Stamp
    pool: Pool
    waiting: tuple[int, ...]
    limit: int
    in_use: int
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproven(Message):
    link: int
    stamp: Stamp
    pool: Pool
    waiting: tuple[int, ...]
    reason: str
    silent: tuple[str, ...] = ()
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationChanged(Message):
    link: int
    stamp: Stamp
    pool: Pool
    generation: int
    limit: int
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced(Message):
    """Our epoch is draining or counted: its permits are no longer ours."""

    link: int
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAsFenced(Message):
    """A worker refused a start because our session's ``epoch`` is fenced: it has heard of it before we did."""

    epoch: int


Answer = Granted | Recalled | Throttled | Unproven | GenerationChanged
Event = (
    Wanted | WaiterGone | Low | Freed | Flush | Tick | Leave
    | LinkUp | LinkDown | NotLeader | Welcomed | Fenced | RefusedAsFenced | Answer
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushSoon(Message):
    """Hand in a Flush at the end of this turn of the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Message):
    """The request has a permit of the pool's block."""

    request: int
    pool: Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Message):
    """The request gets none. ``limit``, ``in_use`` and ``round`` are the proof of a throttle.

    Of OVERLOADED ``limit`` is the bound of the queue, ``in_use`` how many wait.
    """

    request: int
    pool: Pool
    refusal: Refusal
    reason: str
    limit: int = 0
    in_use: int = 0
    round: int = 0
    silent: tuple[str, ...] = ()
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    pool: Pool
    held: int
    in_use: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SayHello(Message):
    """``epoch`` 0 asks for a session."""

    link: int
    epoch: int
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Message):
    """The whole wish for one pool. ``seen``: index of the newest grant that came here."""

    link: int
    pool: Pool
    generation: int
    waiting: tuple[int, ...]
    spare: int
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack(Message):
    """``function``: whose run has ended, when it ran under an older generation."""

    link: int
    sequence: int
    pool: Pool
    generation: int
    count: int
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeGeneration(Message):
    """``moved``: how many permits of older generations still run, by function."""

    link: int
    sequence: int
    pool: Pool
    generation: int
    moved: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecall(Message):
    """What was idle went back before this."""

    link: int
    round: int
    pool: Pool
    given_back: int
    in_use: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SayGoodbye(Message):
    link: int
    sequence: int


Effect = (
    FlushSoon | Admit | Refuse | SayHello | Ask | GiveBack | AcknowledgeGeneration | AnswerRecall | SayGoodbye
)
Sequenced = GiveBack | AcknowledgeGeneration | SayGoodbye
