"""The edge of admission: requests get permits here, the core beside it decides who waits and what is asked.

Owns the core's driver, its timer and the futures of requests that wait. Refuses to know streams (peers/counting.py) and
what an invocation is (invoke.py).
"""

import asyncio
from collections.abc import Callable, Sequence

from chassis.clock import Clock
from chassis.machine import Driver, Trace
from frontend import messages as m
from frontend.api.ports import Throttled, Unavailable
from frontend.core import FrontendCore
from frontend.permits import Block, PoolKind
from frontend.replay import BlocksAside

_THROTTLE_REASON = {
    PoolKind.UNRESERVED: "ConcurrentInvocationLimitExceeded",
    PoolKind.RESERVED: "ReservedFunctionConcurrentInvocationLimitExceeded",
    PoolKind.PROVISIONED: "ConcurrentInvocationLimitExceeded",
}

ToCounting = m.SayHello | m.Ask | m.AnswerRecall | m.Sequenced


class Admission:
    """One per frontend. ``send`` carries what the core says to a member of counting."""

    def __init__(
        self,
        core: FrontendCore,
        *,
        clock: Clock,
        send: Callable[[ToCounting], None],
        trace: Trace | None = None,
        check: bool = False,
        observe: Callable[[m.Event, Sequence[m.Effect]], None] | None = None,
    ) -> None:
        self.core = core
        self._clock = clock
        self._send = send
        self._driver: Driver[m.Event, m.Effect] = Driver(
            core, clock=clock, perform=self._perform, trace=trace, check=check, observe=observe,
            parameters={"timing": core.timing}, aside=BlocksAside(core),
        )
        self._waiting: dict[int, tuple[asyncio.Future[Block], str]] = {}
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False

    # ------------------------------------------------------------ requests

    def try_permit(self, account: str, function: str) -> Block | None:
        """The hot path: the block that admitted an invocation, or None when ``permit`` has to be awaited."""
        block = self.core.block_for(account, function)
        if block is None or not block.try_take(function):
            return None
        if block.in_use >= block.mark:
            self.feed(m.Low(pool=block.pool))
        return block

    async def permit(self, account: str, function: str, *, cause: str, deadline: float) -> Block:
        """Waits for a permit. Raises Throttled or Unavailable; who is cancelled takes none with him."""
        self._number += 1
        number = self._number
        future: asyncio.Future[Block] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, function)
        self.feed(m.Wanted(request=number, account=account, function=function, deadline=deadline, cause=cause))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give(future.result(), function)  # it came in the same turn as the cancellation
            else:
                self.feed(m.WaiterGone(request=number, cause=cause))
            raise
        finally:
            self._waiting.pop(number, None)
            del future  # a refusal's traceback refers to this frame: through it, to itself and to the payload

    def give(self, block: Block, function: str) -> None:
        """An invocation has ended or never started (rule 3): nothing else may call this."""
        block.give(function)
        if block.watched:
            self.feed(m.Freed(
                pool=block.pool, epoch=block.epoch, generation=block.generation, function=function
            ))

    def fenced(self, block: Block) -> None:
        """A worker refused a start of this block's session: what is left of it can't be used for a second start."""
        self.feed(m.RefusedAsFenced(epoch=block.epoch))

    # ------------------------------------------------------------ the core's driver

    def feed(self, event: m.Event) -> None:
        self._driver.feed(event)
        self._arm()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _perform(self, effect: m.Effect) -> None:
        match effect:
            case m.FlushSoon():
                asyncio.get_running_loop().call_soon(self._flush)
            case m.Admit(request=request, pool=pool):
                future, function = self._waiting[request]
                block = self.core.stocks[pool].block
                if future.done():
                    self.give(block, function)  # cancelled in this very turn
                else:
                    future.set_result(block)
            case m.Refuse(request=request):
                future, _ = self._waiting[request]
                if not future.done():
                    future.set_exception(_refusal(effect))
            case _:
                self._send(effect)

    def _flush(self) -> None:
        if not self._closed:
            self.feed(m.Flush())

    def _arm(self) -> None:
        at = self.core.wakes_at()
        if at is None or at >= self._timer_at or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay_s = max(0.0, at - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self.feed(m.Tick())


def _refusal(refuse: m.Refuse) -> Throttled | Unavailable:
    """Which limit, its value, the counter and what to do (invariant 15)."""
    pool = refuse.pool
    counter = (
        f"concurrent executions of {pool.function}" if pool.kind is PoolKind.RESERVED
        else f"concurrent executions of account {pool.account} outside reservations"
    )
    if refuse.refusal is m.Refusal.THROTTLED:
        remedy = (
            f"raise the reserved concurrency of {pool.function}, or let callers back off"
            if pool.kind is PoolKind.RESERVED
            else "lower reservations, reserve concurrency for this function, raise the account's limit, or back off"
        )
        return Throttled(_THROTTLE_REASON[pool.kind], {
            "limit": "reserved concurrency" if pool.kind is PoolKind.RESERVED else "unreserved account concurrency",
            "value": refuse.limit, "counter": counter, "in_use": refuse.in_use, "recall_round": refuse.round,
            "remedy": remedy,
        }, retry_after_s=1)
    if refuse.refusal is m.Refusal.OVERLOADED:
        return Unavailable(f"Too many requests wait: {refuse.reason}.", {
            "limit": "requests that wait for permits at one frontend", "value": refuse.limit, "counter": counter,
            "waiting": refuse.in_use, "remedy": "let callers back off; nothing was started",
        }, retry_after_s=refuse.retry_after_s)
    return Unavailable(
        f"No permit could be had and none could be refused for certain: {refuse.reason}.",
        {
            "counter": counter, "reason": refuse.reason, "silent": list(refuse.silent),
            "remedy": "try again; nothing was started",
        },
        retry_after_s=refuse.retry_after_s,
    )
