"""The life of one service process: event loop, signals, drain.

Owns start and end. What a service is made of is its own ``__main__``: it hands over a coroutine that starts it and
returns something that can be drained.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, Protocol

import structlog
import uvloop

from chassis import logs
from chassis.config import NodeConfig
from chassis.faults import Fault

COLLECT_S = 60.0

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)     # glibc's alone
_log = structlog.get_logger(__name__)


class Service(Protocol):
    async def drain(self) -> None:
        """Takes no new work, lets what runs finish, gives everything back. Called once."""
        ...


def run(config: NodeConfig, start: Callable[[], Awaitable[Service]]) -> NoReturn:
    """Runs a service until SIGTERM or SIGINT and ends the process: 0 drained, 1 could not start, 2 a bug."""
    logs.configure(service=config.service, node=config.node, level=config.log_level)
    factory = uvloop.new_event_loop if config.event_loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        status = runner.run(_live(config, start))
    leave(status)


def leave(status: int) -> NoReturn:
    """Ends the process at once. gRPC's own exit handler would wait 2 s for threads that have nothing left to do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk, or nobody who reads: no reason to stay
            stream.flush()
    os._exit(status)


async def _live(config: NodeConfig, start: Callable[[], Awaitable[Service]]) -> int:
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _settle, stop, 0)
    loop.set_exception_handler(lambda _loop, context: _on_bug(stop, context))
    starting = asyncio.ensure_future(start())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await asyncio.wait((starting,), timeout=config.drain_s)
    if not starting.done():     # it waits for its certificate, perhaps, and that can take long: nothing to drain
        starting.cancel()
        await asyncio.wait((starting,))
        return stop.result()
    try:
        service = await starting
    except Fault as fault:
        _log.error("can't start", fault=fault.message)
        return 1
    # What was made up to here stays: a full collection must not walk it again and again while requests wait. Those come
    # and go by reference counts. The collector is for the few cycles besides: every 700 objects is too often for them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    collecting = asyncio.ensure_future(collect(COLLECT_S))
    _log.info("serving")
    status = await stop
    collecting.cancel()
    with contextlib.suppress(TimeoutError):  # what didn't finish in time is cut off by our exit
        async with asyncio.timeout(config.drain_s + 1.0):
            await service.drain()
    _log.info("drained", status=status)
    return status


async def collect(every_s: float) -> None:
    """Frees cycles of what has lived long, such as a sandbox's: by its own counts the collector would come for them
    after hours, or never. It takes a millisecond or less: nothing that was made before serving is looked at.

    Then what the allocator keeps goes back to the host: after eight bodies of 6 MB at once that was 50 MB, for good. It
    takes 6 ms for 40 MB, less than one where there is nothing.
    """
    while True:
        await asyncio.sleep(every_s)
        gc.collect()
        if _trim is not None:
            _trim(0)


def _settle(stop: "asyncio.Future[int]", status: int) -> None:
    if not stop.done():
        stop.set_result(status)


def _on_bug(stop: "asyncio.Future[int]", context: dict[str, Any]) -> None:
    """An exception that nobody waits for. Assertions end the process: it is restarted in a known state."""
    error = context.get("exception")
    _log.error("unhandled", message=context.get("message"), exc_info=error)
    if isinstance(error, AssertionError):
        _settle(stop, 2)


class Tasks:
    """References to a process's background tasks: asyncio itself keeps weak ones only.

    A task that ends with a Fault is logged; one that ends with anything else is a bug and goes to the loop's exception
    handler at once instead of when it is collected. So does one that ends cancelled though nobody cancelled it: what it
    awaited was, and it would be missing without a word.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order of starting: a simulation ends them in that order

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        if task.cancelled():
            if not task.cancelling():
                task.get_loop().call_exception_handler(
                    {"message": f"task {task.get_name()} ended by a cancellation that nobody asked for", "task": task}
                )
            return
        error = task.exception()
        if isinstance(error, Fault):
            _log.warning("task ended", task=task.get_name(), fault=error.message)
        elif error is not None:
            task.get_loop().call_exception_handler(
                {"message": f"task {task.get_name()} failed", "exception": error, "task": task}
            )

    async def settle(self, timeout_s: float) -> None:
        """Waits until they have ended by themselves, at most so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def cancel(self) -> None:
        """Cancels all and waits until they are gone."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def config_path(argv: list[str], usage: str) -> str:
    """The FILE of ``--config FILE``. Ends the process with status 2 and the usage when it isn't there."""
    if len(argv) == 3 and argv[1] == "--config":
        return argv[2]
    sys.stderr.write(f"usage: {usage} --config FILE\n")
    raise SystemExit(2)
