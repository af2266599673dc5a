"""Deadlines of many things, with one wake-up for all.

Owns which key is due when. A key has one deadline, the earliest that was set; whoever is woken looks what is really due
and sets the next one. So moving a deadline further away costs nothing, which is what a busy sandbox does all the time.
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._at: dict[Key, float] = {}
        self._count = 0                  # keeps keys from being compared, and equal times in order

    def set(self, key: Key, at: float) -> None:
        """Wakes for ``key`` at ``at`` at the latest."""
        if self._at.get(key, float("inf")) <= at:
            return
        self._at[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))

    def due(self, now: float) -> Iterator[Key]:
        """Each key whose time has come, once; it has no deadline any more."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                yield key

    def next_at(self) -> float | None:
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)    # set again for an earlier time, which has passed
        return self._heap[0][0] if self._heap else None
