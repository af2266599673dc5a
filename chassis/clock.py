"""Time, passed in wherever it is read.

Owns the two clocks that a service may read. Logic never reads a clock itself: it gets ``now`` with each event, so that
a replay or a simulation needs no other clock than the recorded one.
"""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since boot, going on while the host sleeps. Only differences mean something."""
        ...

    def wall(self) -> float:
        """Unix seconds. May jump."""
        ...


class SystemClock:
    """The host's clocks. CLOCK_BOOTTIME, because an authority or a lease must not stand still in a suspended host."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()
