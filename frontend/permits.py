"""Permits as a frontend holds them: pools, and the block from which an invocation is admitted without asking anybody.

Owns the counters of the hot path. Refuses to know who waits, what the ledger says and why a size changes (core.py).
"""

import enum
import math
from dataclasses import dataclass


class PoolKind(enum.IntEnum):
    """Which of an account's disjoint pools (architecture: counting, rule 1). Numbers are those of common.proto."""

    UNRESERVED = 1
    RESERVED = 2
    PROVISIONED = 3


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pool:
    """One pool of concurrency permits. ``function`` is empty for the account's unreserved rest."""

    account: str
    kind: PoolKind
    function: str = ""
    qualifier: str = ""

    def __str__(self) -> str:
        tail = f":{self.qualifier}" if self.qualifier else ""
        return f"{self.account}/{self.function or '*'}{tail}"


def unreserved(account: str) -> Pool:
    return Pool(account=account, kind=PoolKind.UNRESERVED)


def reserved(account: str, function: str) -> Pool:
    return Pool(account=account, kind=PoolKind.RESERVED, function=function)


class Block:
    """Permits of one pool, of one session and one generation. Plain counters: no RPC, no event (rule 2).

    A change of the session or of the generation makes a new block; who took a permit gives it back to the block that it
    came from, and that one knows what becomes of it. ``watched`` says that the core wants to hear of each one.
    """

    __slots__ = ("epoch", "generation", "in_use", "mark", "peak", "pool", "runs", "size", "watched", "wire")

    def __init__(self, pool: Pool, *, epoch: int, generation: int) -> None:
        self.pool = pool
        self.epoch = epoch            # of the session; 0: none was had yet
        self.generation = generation
        self.size = 0                 # permits held, taken or not
        self.in_use = 0
        self.peak = 0                 # highest in_use since the last look: what is above it was idle all the time
        self.mark: float = math.inf   # in_use from which on it is time to ask for more
        self.runs: dict[str, int] = {}  # in_use by function: a change of limits moves functions between pools
        self.watched = False
        self.wire: object = None        # its id as messages carry it, made once by the edge

    def try_take(self, function: str) -> bool:
        """Admits one invocation of ``function`` (rule 2: this is its start), or says no."""
        if self.in_use >= self.size:
            return False
        in_use = self.in_use = self.in_use + 1
        if in_use > self.peak:
            self.peak = in_use
        runs = self.runs
        runs[function] = runs.get(function, 0) + 1
        return True

    def give(self, function: str) -> None:
        """One invocation of ``function`` has ended, or never started: only that frees its permit (rule 3)."""
        assert self.in_use > 0, f"a permit of {self.pool} came back twice"
        self.in_use -= 1
        left = self.runs[function] - 1
        if left:
            self.runs[function] = left
        else:
            del self.runs[function]

    @property
    def idle(self) -> int:
        return max(0, self.size - self.in_use)
