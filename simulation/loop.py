"""A virtual-time event loop: asyncio runs unchanged, and time jumps to the next timer instead of passing.

Owns the clock of a simulated region, and whose turn it is: a process's timers follow its host's clock, and a stopped
process gets no turn. Nothing in it waits for the world: no sockets, no threads, no signals; code that tries gets an
error at once. Two runs with the same seed schedule the same callbacks in the same order.
"""

import asyncio
import contextvars
import heapq
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar

from simulation.processes import CURRENT, START_WALL_S, Process

T = TypeVar("T")


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set: every coroutine waits for another."""


class VirtualClock:
    """``Clock`` of a virtual loop: true time, whoever reads it."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.now

    def wall(self) -> float:
        return START_WALL_S + self._loop.now


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own base loop, with a selector that moves time on instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0      # true seconds
        self._selector = _Jump(self)  # BaseEventLoop asks this for "events" with the time to the next timer
        self._stopped: dict[Process, None] = {}

    def time(self) -> float:
        """As the host of whoever asks shows it."""
        process = CURRENT.get()
        return self.now if process is None else process.clock.local(self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def call_at(  # type: ignore[override]  # typeshed's arguments are a TypeVarTuple
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = CURRENT.get()
        return super().call_at(
            when if process is None else process.clock.true(when), callback, *args, context=context
        )

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._stopped:
            process = CURRENT.get() if context is None else context.get(CURRENT)
            if process is not None and process.held is not None:
                handle = asyncio.Handle(callback, args, self, context)
                process.held.append(handle)
                return handle
        return super().call_soon(callback, *args, context=context)

    def stop_process(self, process: Process) -> None:
        """As with SIGSTOP: nothing of it runs. What its timers and peers would have started waits."""
        assert process.held is None, f"{process.name} is stopped already"
        process.held = []
        self._stopped[process] = None
        ready = self._ready  # type: ignore[attr-defined]  # BaseEventLoop's queue, whose length it has counted
        for place, handle in enumerate(ready):
            if _is_of(handle, process):
                process.held.append(handle)
                ready[place] = _nothing(self)
        timers = self._scheduled  # type: ignore[attr-defined]  # and its heap
        for place, timer in enumerate(timers):
            if _is_of(timer, process) and not timer.cancelled():
                process.held.append(timer)
                timer._scheduled = False    # noqa: SLF001  # it is in no heap: cancelled, it isn't counted there
                timers[place] = _never(timer, self)

    def continue_process(self, process: Process) -> None:
        """As with SIGCONT: first what came meanwhile, then the timers that are due, as a loop that slept would do."""
        held, process.held = process.held or [], None
        del self._stopped[process]
        timers = [handle for handle in held if isinstance(handle, asyncio.TimerHandle) and not handle.cancelled()]
        self._ready.extend(  # type: ignore[attr-defined]
            handle for handle in held if not isinstance(handle, asyncio.TimerHandle) and not handle.cancelled()
        )
        for timer in sorted(timers, key=asyncio.TimerHandle.when):
            if timer.when() > self.now:
                heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
                timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
            else:
                self._ready.append(timer)  # type: ignore[attr-defined]

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


def _is_of(handle: asyncio.Handle, process: Process) -> bool:
    return handle._context.get(CURRENT) is process  # type: ignore[attr-defined]  # noqa: SLF001


def _nothing(loop: VirtualLoop) -> asyncio.Handle:
    """Takes the place of a handle in a queue that must keep its length."""
    handle = asyncio.Handle(lambda: None, (), loop)
    handle.cancel()
    return handle


def _never(timer: asyncio.TimerHandle, loop: VirtualLoop) -> asyncio.TimerHandle:
    """Takes the place of a timer in a heap that must keep its order."""
    stand_in = asyncio.TimerHandle(timer.when(), lambda: None, (), loop)
    stand_in._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
    stand_in.cancel()
    return stand_in


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
            self._loop.now = max(self._loop.now, scheduled[0]._when)  # noqa: SLF001
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
