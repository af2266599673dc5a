"""What one manager is told on its stream: everything at once, except what sandboxes are used for, which can wait.

Owns that order and that delay. While a frontend runs one invocation after the other on a sandbox, the manager needs to
know none of them: it hears of a run that lasts, and of the last of many short ones. What it was told of goes on to be
told at once: it counts on a sandbox that it believes busy to be reported idle. Refuses to know what a word means.
"""

import asyncio
from collections.abc import Callable

from protos import worker_pb2
from worker import messages as m
from worker.translation import uses_out

USES_S = 0.05       # a run that is shorter is not told


class News:
    """``put`` sends; ``translate`` makes a message of whatever isn't a use."""

    def __init__(
        self, put: Callable[[worker_pb2.WorkerEvent], None],
        translate: Callable[[m.TellManager], worker_pb2.WorkerEvent],
    ) -> None:
        self._put = put
        self._translate = translate
        self._lease = 0
        self._uses: dict[str, m.Idle | m.Busy] = {}     # by sandbox, untold
        self._told_busy: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, effect: m.TellManager) -> None:
        news = effect.news
        if not isinstance(news, m.Idle | m.Busy):
            self.flush()
            self._note(news)
            self._put(self._translate(effect))
            return
        self._lease = effect.lease
        self._uses[news.sandbox] = news
        if isinstance(news, m.Idle) and news.sandbox in self._told_busy:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(USES_S, self.flush)

    def _note(self, news: m.ManagerNews) -> None:
        match news:
            case m.Going() | m.Gone():
                self._told_busy.discard(news.sandbox)
            case m.Raised() if news.busy:
                self._told_busy.add(news.sandbox)
            case m.Inventory():
                self._told_busy = {status.sandbox for status in news.sandboxes if status.invocation}
            case _:
                pass

    def flush(self) -> None:
        """Tells what was kept back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._uses:
            return
        uses, self._uses = self._uses, {}
        for sandbox, use in uses.items():
            if isinstance(use, m.Busy):
                self._told_busy.add(sandbox)
            else:
                self._told_busy.discard(sandbox)
        self._put(uses_out(self._lease, uses.values()))

    def close(self) -> None:
        """The stream is over: the next one begins with the whole inventory."""
        self._uses.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
