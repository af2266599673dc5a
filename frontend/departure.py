"""A client that goes while its request waits: the wait is withdrawn, so that what it waited for serves others.

Owns noticing it, by ASGI's ``http.disconnect``. Only waits end so: what has been started goes on, and only its END
frees anything (rule 3).
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from frontend.api.body import Disconnected

# Most waits are over sooner, and pay for a timer instead of a task.
WATCH_AFTER_S = 0.02


class WhileThere:
    """``async with``: a wait inside is cancelled when ``gone`` returns, and Disconnected is raised.

    When the wait ended in the very turn in which the client went, it has its result, and ``left`` says so.
    """

    __slots__ = ("_cancelling", "_gone", "_task", "_timer", "_watch", "left")

    def __init__(self, gone: Callable[[], Awaitable[None]] | None) -> None:
        self._gone = gone
        self.left = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._gone is None:
            return
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # it keeps its cancellation, whose traceback refers to this object
        if not self.left:
            return
        assert self._task is not None
        if error is None:
            try:
                await asyncio.sleep(0)  # our own cancellation is delivered here instead of at some later await
            except asyncio.CancelledError:
                if self._task.cancelling() > self._cancelling + 1:
                    raise  # and somebody else's
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise Disconnected from error

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._follow(), name="client")

    async def _follow(self) -> None:
        assert self._gone is not None
        assert self._task is not None
        await self._gone()
        self.left = True
        self._task.cancel()
