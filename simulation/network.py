"""The simulated network and the way to the store: seeded delays, and faults by hand.

Owns how long a message or a write takes and whether it arrives. Delivery itself is ``chassis.memory_network``'s.
"""

import asyncio
import random

from chassis.memory_network import Link


class SeededLink(Link):
    """Delays drawn from one seed: ``floor_s`` plus an exponential tail of mean ``tail_s``; cuts by pair of nodes."""

    def __init__(self, rng: random.Random, *, floor_s: float = 0.0002, tail_s: float = 0.0003) -> None:
        self._rng = rng
        self._floor_s = floor_s
        self._tail_s = tail_s
        self._cuts: set[tuple[str, str]] = set()

    def delay_s(self, sender: str, receiver: str) -> float | None:
        if (sender, receiver) in self._cuts:
            return None
        return self._floor_s + self._rng.expovariate(1 / self._tail_s)

    def cut(self, sender: str, receiver: str) -> None:
        """One way: what ``sender`` sends breaks the connection instead of arriving."""
        self._cuts.add((sender, receiver))

    def heal(self) -> None:
        self._cuts.clear()


class SeededWrites:
    """A hook of a memory store: a write takes ``floor_s`` plus an exponential tail of mean ``tail_s``, like a sync."""

    def __init__(self, rng: random.Random, *, floor_s: float = 0.001, tail_s: float = 0.002) -> None:
        self._rng = rng
        self._floor_s = floor_s
        self._tail_s = tail_s

    async def __call__(self, _key: str) -> None:
        await asyncio.sleep(self._floor_s + self._rng.expovariate(1 / self._tail_s))
