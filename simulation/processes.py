"""Processes of a simulated region: on which host's clock each runs, and whether it is stopped just now.

Everything that a process does runs in a context of its own (``contextvars``), by which the loop knows whose it is: its
timers follow its host's clock, and nothing of it runs while it is stopped. Refuses to know services.
"""

import asyncio
import contextvars
import math
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

START_WALL_S = 1_750_000_000.0  # any fixed instant: 2025-06-15


class Now(Protocol):
    @property
    def now(self) -> float:
        """True virtual seconds, which no process can read."""
        ...


class HostClock:
    """``Clock`` of one host: it runs at ``rate`` of true time from ``boot_s`` on, and its wall clock can be moved."""

    def __init__(self, loop: Now, *, rate: float = 1.0, boot_s: float = 0.0) -> None:
        assert rate > 0
        self._loop = loop
        self._rate = rate
        self._boot_s = boot_s
        self._true = rate == 1.0 and boot_s == 0.0
        self._jumped_s = 0.0

    def monotonic(self) -> float:
        return self.local(self._loop.now)

    def wall(self) -> float:
        return START_WALL_S + self._jumped_s + self._loop.now * self._rate

    def jump(self, seconds: float) -> None:
        """As with ``date --set``: the wall clock alone moves."""
        self._jumped_s += seconds

    def local(self, now: float) -> float:
        """What it shows at a true time."""
        return now if self._true else self._boot_s + now * self._rate

    def true(self, local: float) -> float:
        """The first true time at which it shows ``local`` at least: no timer may fire before its time."""
        if self._true:
            return local
        at = (local - self._boot_s) / self._rate
        while self.local(at) < local:
            at = math.nextafter(at, math.inf)
        return at


class Process:
    """One process, over all its lives: a name, a host's clock, and what is held back while it is stopped."""

    def __init__(self, name: str, clock: HostClock) -> None:
        self.name = name
        self.clock = clock
        self.held: list[asyncio.Handle] | None = None   # None: it runs
        self._context = contextvars.Context()
        self._context.run(CURRENT.set, self)

    @property
    def stopped(self) -> bool:
        return self.held is not None

    def context(self) -> contextvars.Context:
        """Another one for each use: a context is entered once at a time."""
        return self._context.copy()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits what the process itself does."""
        return await asyncio.get_running_loop().create_task(work, context=self.context())


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated process", default=None)
"""Whose code runs. None: the simulation's own, which true time is for."""
