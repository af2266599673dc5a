"""Deadlines of many things, with one wake-up for all.

Owns which key is due when. A key has one deadline, the earliest that was set; whoever is woken looks what is really due
and sets the next one. So moving a deadline further away costs nothing, which is what a busy sandbox does all the time.
What is over drops its key: it takes no memory until a deadline that nobody waits for.
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
TimerKey = tuple[str, ...]      # what kind of thing, and its name

DEAD_MIN = 64       # entries of the heap that are of no use any more: fewer are left where they are


class Timers(Generic[Key]):
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []       # and entries of keys that were dropped, or set anew
        self._at: dict[Key, tuple[float, int, Key]] = {}    # a key's entry of the heap
        self._count = 0                  # keeps keys from being compared, and equal times in order

    def set(self, key: Key, at: float) -> None:
        """Wakes for ``key`` at ``at`` at the latest."""
        known = self._at.get(key)
        if known is not None and known[0] <= at:
            return
        self._count += 1
        entry = self._at[key] = (at, self._count, key)
        heapq.heappush(self._heap, entry)
        self._tidy()

    def drop(self, key: Key) -> None:
        """Doesn't wake for ``key`` any more, if it would have."""
        if self._at.pop(key, None) is not None:
            self._tidy()

    def due(self, now: float) -> Iterator[Key]:
        """Each key whose time has come, once; it has no deadline any more."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._at.get(entry[2]) is entry:
                del self._at[entry[2]]
                yield entry[2]
        self._tidy()

    def next_at(self) -> float | None:
        while self._heap and self._at.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def at(self, key: Key) -> float | None:
        """When it wakes for ``key``."""
        return self._at[key][0] if key in self._at else None

    def __iter__(self) -> Iterator[Key]:
        return iter(self._at)

    def _tidy(self) -> None:
        """Builds the heap anew when most of it is dead: every so many changes, so that each bears a constant share."""
        if len(self._heap) > 2 * len(self._at) + DEAD_MIN:
            self._heap = list(self._at.values())
            heapq.heapify(self._heap)

    def check(self) -> None:
        live = sum(self._at.get(entry[2]) is entry for entry in self._heap)
        assert live == len(self._at), f"{len(self._at)} keys have a deadline, {live} are in the heap"
        assert len(self._heap) <= 2 * live + DEAD_MIN, f"of {len(self._heap)} entries only {live} are of use"
