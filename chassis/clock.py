"""Time, passed in wherever it is read.

Owns the two clocks that a service may read. Logic never reads a clock itself: it gets ``now`` with each event, so that
a replay or a simulation needs no other clock than the recorded one.
"""

import mmap
import struct
import time
from pathlib import Path
from typing import Protocol

_OFFSET = struct.Struct("<d")


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


class OffsetClock(SystemClock):
    """The host's clocks, but the wall clock is off by the seconds that a file holds: it moves when the file changes.

    For experiments with a host whose clock is wrong. What isn't read through ``Clock`` doesn't move: the time in log
    lines, and the one that TLS looks at in certificates.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError for a file that isn't there, ValueError for one without an offset."""
        with path.open("rb") as file:
            self._file = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)

    def wall(self) -> float:
        return time.time() + float(_OFFSET.unpack(self._file[:])[0])


def write_offset(path: Path, seconds: float) -> None:
    """In place, for who has the file open. An aligned word: a reader sees the old one or the new one."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_OFFSET.pack(seconds))
