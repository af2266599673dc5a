"""What the region of permits consists of: processes, streams and invocations as the walk sees them.

Owns their state only; what happens to them is permits.py's.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from chassis.rpc import Outbox
from counting.core import CountingCore
from counting.ledger import Ledger
from counting.words import Incarnation
from counting.words import Session as LedgerSession
from frontend.core import FrontendCore
from frontend.peers.counting import CountingLinks
from frontend.permits import Block, Pool


@dataclass(slots=True, kw_only=True)
class Admitted:
    """One invocation that holds a permit: on its way to a worker, or running there."""

    id: str
    home: int
    life: int
    block: Block
    epoch: int
    pool: Pool
    function: str
    worker: int
    incarnation: Incarnation

    @property
    def session(self) -> LedgerSession:
        return LedgerSession(frontend=frontend_name(self.home), epoch=self.epoch)


@dataclass(slots=True, kw_only=True)
class Link:
    """One stream. What is on its way each way, in order."""

    number: int
    member: int
    up: deque[Any] = field(default_factory=deque)
    down: deque[Any] = field(default_factory=deque)


class Up(Outbox[Any]):
    """What a frontend's edge puts is on its way at once."""

    def __init__(self, way: deque[Any]) -> None:
        self._way = way

    def put(self, message: Any) -> None:
        self._way.append(message)


@dataclass(slots=True, kw_only=True)
class Home:
    """One frontend process: its core, its edge to the ledger, its streams and its clients."""

    number: int
    core: FrontendCore
    edge: CountingLinks
    nonce: int
    life: int
    links: dict[int, Link] = field(default_factory=dict)         # by member
    requests: dict[int, str] = field(default_factory=dict)       # waiting: request -> function
    proven: set[int] = field(default_factory=set)                # the ledger had nothing free since they came
    ends: list[Admitted] = field(default_factory=list)           # END or NeverStarted on its way here
    flush: bool = False
    asked: int = 0


@dataclass(slots=True, kw_only=True)
class Member:
    """One member of counting. ``leads`` is its own belief."""

    core: CountingCore
    ledger: Ledger
    applied: int = 0
    leads: bool = False
    flush: bool = False
    wake: float | None = None
    proposed: deque[bytes] = field(default_factory=deque)
    asked: dict[tuple[int, int], int] = field(default_factory=dict)     # (nonce, request) -> when it was first heard of
    began: dict[int, int] = field(default_factory=dict)                 # round -> when it was first seen


@dataclass(slots=True, kw_only=True)
class Worker:
    """One incarnation, as honest as the rules ask: fences, authority, the watchdog, ENDs repeated until applied."""

    number: int
    incarnation: Incarnation
    links: dict[int, Link] = field(default_factory=dict)
    leader: int | None = None                                    # the member that took it in
    term: int = 0
    joined: bool = False
    evicted: bool = False
    authority_until: float = float("-inf")
    renewals: dict[int, float] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    running: dict[str, Admitted] = field(default_factory=dict)
    unapplied: dict[str, Admitted] = field(default_factory=dict)

    def fenced(self, session: LedgerSession) -> bool:
        return session.epoch <= self.fences.get(session.frontend, 0)


def frontend_name(number: int) -> str:
    return f"frontend-{number}"
