"""How busy the machine is besides what is measured, and how fast it is in the same minute.

Owns reading /proc/stat and the reference loop. Figures from a machine that others load say so beside them.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.rig.processes import spent_s

IDLE_PERCENT = 10.0     # of one core: what others may take before a figure is marked
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Others:
    """From when this is made: the CPU time that neither this process nor what it measures took."""

    def __init__(self, measured: Callable[[], Iterable[int]]) -> None:
        self._measured = measured
        self._at, self._rest_s = time.monotonic(), self._now_s()

    def percent(self) -> float:
        """Of one core."""
        return max(0.0, (self._now_s() - self._rest_s) / (time.monotonic() - self._at) * 100)

    def told(self) -> str:
        return described(self.percent(), os.cpu_count() or 1)

    def _now_s(self) -> float:
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        return busy_s(Path("/proc/stat").read_text()) - own_s - sum(map(spent_s, self._measured()))


def described(others_percent: float, cores: int) -> str:
    if others_percent <= IDLE_PERCENT:
        return f"{cores} cores, otherwise idle (others took {others_percent:.0f} % of a core)"
    return f"{cores} cores, NOT otherwise idle: others took {others_percent:.0f} % of a core meanwhile"


def busy_s(stat: str) -> float:
    """Of /proc/stat: user, nice, system, irq, softirq of all cores; not idle, not waiting for a disk, not stolen."""
    fields = stat.partition("\n")[0].split()
    assert fields[0] == "cpu", fields
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) * _TICK_S


def busy_loop(seconds: float = 0.5) -> float:
    """Millions of additions per second of one busy Python process: tells a slow machine, or a slow minute."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(10_000):
            count += 1
    return count / (time.perf_counter() - began) / 1e6
