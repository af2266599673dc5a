"""One pool as this frontend sees it: the block that admits, what still runs of older ones, and who waits.

Owns the arithmetic of a pool's sizes. Refuses to know sessions, links and other pools (core.py).
"""

import math
from dataclasses import dataclass, field

from frontend.permits import Block, Pool

SPARE_MIN, SPARE_MAX = 4, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A request that wants a permit."""

    request: int
    account: str
    function: str
    deadline: float
    cause: str


@dataclass(slots=True, kw_only=True)
class Stock:
    """``told`` and ``told_spare`` are the newest wish that the leader heard of; ``seen`` the newest grant's index."""

    pool: Pool
    block: Block
    older: list[Block] = field(default_factory=list)    # of older generations, oldest first: each END goes back
    waiting: dict[int, Waiter] = field(default_factory=dict)
    told: tuple[int, ...] = ()
    told_spare: int = 0
    low: bool = False
    seen: int = 0
    limit: int = 0
    gone: bool = False
    pressed_until: float = -math.inf    # after a recall others need what is free: no top-ups until then

    @property
    def running_older(self) -> int:
        return sum(block.in_use for block in self.older)

    @property
    def held(self) -> int:
        """Permits here that the ledger counts as ours, give-backs on their way taken off."""
        return self.block.size + self.running_older

    @property
    def in_use(self) -> int:
        return self.block.in_use + self.running_older

    @property
    def over(self) -> bool:
        """Nothing of it is here: no permit, no run and nobody who waits."""
        return not (self.block.size or self.older or self.waiting)

    def moved(self) -> tuple[tuple[str, int], ...]:
        """Runs under older generations, by function."""
        counts: dict[str, int] = {}
        for block in self.older:
            for function, runs in block.runs.items():
                counts[function] = counts.get(function, 0) + runs
        return tuple(sorted(counts.items()))

    def spare(self, now: float) -> int:
        """How many permits beyond those that requests wait for: a quarter of what was in use lately."""
        if now < self.pressed_until or not (self.waiting or self.low):
            return 0
        wanted = min(SPARE_MAX, max(SPARE_MIN, self.block.peak // 4))
        return max(0, wanted - self.block.idle)

    def set_mark(self) -> None:
        """From three quarters in use on it is time for more; a wish that stands is not repeated."""
        size = self.block.size
        self.block.mark = math.inf if self.told_spare else size - size // 4

    def check(self) -> None:
        block = self.block
        assert 0 <= block.in_use <= block.size, f"{self.pool}: {block.in_use} in use of {block.size}"
        assert sum(block.runs.values()) == block.in_use, (str(self.pool), block.runs, block.in_use)
        assert not (self.waiting and block.idle), f"{self.pool}: {len(self.waiting)} wait, {block.idle} idle"
        assert not self.waiting or block.watched, f"{self.pool}: requests wait for a block that nobody watches"
        for older in self.older:
            assert older.generation < block.generation or self.gone, (str(self.pool), older.generation)
            assert older.watched, f"{self.pool}: an older block that nobody watches"
