"""A virtual-time event loop: asyncio runs unchanged, and time jumps to the next timer instead of passing.

Owns the clock of a simulated region. Nothing in it waits for the world: no sockets, no threads, no signals; code that
tries gets an error at once. Two runs with the same seed schedule the same callbacks in the same order.
"""

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

START_WALL_S = 1_750_000_000.0  # any fixed instant: 2025-06-15


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set: every coroutine waits for another."""


class VirtualClock:
    """``Clock`` of a virtual loop."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return START_WALL_S + self._loop.time()


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own base loop, with a selector that moves time on instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _Jump(self)  # BaseEventLoop asks this for "events" with the time to the next timer

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(  # type: ignore[override]  # a future that is done at once is a future
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """Runs ``func`` at once: threads would make the order of events depend on the host."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # the caller of the future gets it, as from a thread
            future.set_exception(error)
        return future

    def _process_events(self, event_list: Any) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Called by call_soon_threadsafe: there is only this thread, nothing sleeps that needs waking."""


class _Jump(selectors.BaseSelector):
    """``select(timeout)`` is where a loop would sleep: time jumps by the timeout."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set: every coroutine waits for another")
        if timeout > 0:
            # The loop's own heap, so that time lands on the timer exactly: adding a difference would drift.
            scheduled = self._loop._scheduled  # type: ignore[attr-defined]  # noqa: SLF001  # BaseEventLoop's heap
            while scheduled and scheduled[0]._cancelled:  # noqa: SLF001
                handle = heapq.heappop(scheduled)
                handle._scheduled = False  # noqa: SLF001
                self._loop._timer_cancelled_count -= 1  # type: ignore[attr-defined]  # noqa: SLF001
            if not scheduled:
                raise Deadlock("nothing is ready and no timer is set: every coroutine waits for another")
            self._loop.advance(max(0.0, scheduled[0]._when - self._loop.time()))  # noqa: SLF001
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        raise RuntimeError(f"a simulated region has no descriptors: {fileobj!r}")

    def unregister(self, fileobj: Any) -> NoReturn:
        raise RuntimeError(f"a simulated region has no descriptors: {fileobj!r}")

    def get_map(self) -> Any:
        return {}

    def close(self) -> None:
        return None


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Runs ``main(loop)`` in virtual time, as ``asyncio.run`` does in real time."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        task = loop.create_task(main(loop))
        try:
            return loop.run_until_complete(task)
        finally:
            _cancel_all(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in sorted(tasks, key=lambda task: task.get_name()):
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
