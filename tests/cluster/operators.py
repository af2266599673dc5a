"""What an operator asks of a running cluster, asked from this process: as `labda status` does, without a process each.

Owns one event loop in a thread of its own, so that all gRPC of the tests' process lives on one.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")
ANSWER_S = 30.0


async def _bounded(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    task = asyncio.ensure_future(coroutine)
    done, _ = await asyncio.wait((task,), timeout=ANSWER_S)
    if not done:
        told = "\n".join(f"{one.get_name()}: {_awaited(one.get_coro())}" for one in asyncio.all_tasks())
        task.cancel()
        raise AssertionError(f"no answer within {ANSWER_S:g} s:\n{told}")
    return task.result()


def _awaited(coroutine: Any) -> str:
    """Where a task stands, from the outside in."""
    places = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame is not None else str(coroutine)[:80])
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return " > ".join(places)


class Operator:
    """Runs coroutines one after the other for threads that wait. Nothing runs before the first one is given."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Waits for the result, with a deadline; what runs then is told, and cancelled."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="operator", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(_bounded(coroutine), self._loop).result(2 * ANSWER_S)

    def close(self) -> None:
        """It may be used again afterwards."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None
