"""What the ledger remembers of a frontend's session and of a worker: the records, and their encoding in a snapshot.

Refuses to know which commands change them (ledger.py).
"""

from dataclasses import dataclass, field
from enum import IntEnum

from counting.commands import Run
from counting.words import Incarnation, Pool


class SessionState(IntEnum):
    """LIVE holds and asks; DRAINING is fenced and not yet counted; COUNTED keeps what was reported to run."""

    LIVE = 1
    DRAINING = 2
    COUNTED = 3


@dataclass(slots=True, kw_only=True)
class Block:
    """Permits of one pool in one session's hands; `generation` is the newest that the holder acknowledged."""

    size: int = 0
    generation: int = 0


@dataclass(slots=True, kw_only=True)
class SessionRecord:
    """`applied`: the highest sequence applied. `need`: members that must report before the session is counted."""

    nonce: int
    state: SessionState = SessionState.LIVE
    applied: int = 0
    blocks: dict[Pool, Block] = field(default_factory=dict)
    need: set[Incarnation] = field(default_factory=set)
    runs: set[Run] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An operator's word that an incarnation is dead; `at` by ledger time (Unix seconds)."""

    nonce: int
    at: float


@dataclass(slots=True, kw_only=True)
class Member:
    """A worker incarnation that may start functions; `timeout_cap_s` is the longest timeout that it enforces."""

    nonce: int
    timeout_cap_s: float
