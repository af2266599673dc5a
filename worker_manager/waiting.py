"""Requests that wait for a sandbox, oldest first per function, bounded and shared; and how fast a function may grow.

Owns the queues, how fast they move, which account gives way when they are full, that each is woken at its deadline and
not after it has gone, and the token buckets. Refuses to know sandboxes.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from worker_manager.config import PoolConfig
from worker_manager.messages import FunctionKey, Reserve
from worker_manager.timers import TimerKey, Timers

Key = TypeVar("Key")

WAIT_ANYWAY = 16    # requests that may wait however slowly it goes: a count of so few says nothing


class Waiter:
    __slots__ = ("attempts", "deadline_at", "event", "sandbox")

    def __init__(self, event: Reserve, now: float) -> None:
        self.event = event
        self.deadline_at = now + event.deadline_s
        self.sandbox = ""                # the one that is being made for it
        self.attempts = 0                # how many were

    @property
    def key(self) -> tuple[str, str]:
        return self.event.frontend, self.event.cause


class Waiting:
    """All that wait. One account can't keep the others out: when it is full, the one with the most there gives way."""

    def __init__(self, config: PoolConfig, timers: Timers[TimerKey]) -> None:
        self._config = config
        self._timers = timers
        self._by_key: dict[tuple[str, str], Waiter] = {}
        self._queues: dict[FunctionKey, dict[tuple[str, str], Waiter]] = {}
        self._accounts: dict[str, dict[tuple[str, str], Waiter]] = {}
        self._frontends: Counter[tuple[FunctionKey, str]] = Counter()
        self.pace = Pace()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._by_key.values()))

    def full(self, function: FunctionKey) -> str:
        """Which bound forbids one more, or nothing. Where ``gives_way`` names one, its going makes room."""
        config = self._config
        waiting = len(self._queues.get(function, ()))
        if waiting >= config.waiting_per_function_max:
            return (
                f"{waiting} requests wait for a sandbox of {function.function} "
                f"(waiting_per_function_max {config.waiting_per_function_max})"
            )
        if len(self._by_key) >= config.waiting_max and self.gives_way(function) is None:
            own = len(self._accounts.get(function.account, ()))
            return (
                f"{len(self._by_key)} requests wait at this manager (waiting_max {config.waiting_max}), "
                f"{own} of them of account {function.account}"
            )
        return ""

    def too_long(self, function: FunctionKey, now: float, *, growing: bool) -> str:
        """Why nobody more should wait, where all wait for sandboxes that come free; or nothing.

        While its sandboxes still grow in number (``growing``) the pace will rise: twice as many may wait, and as many
        as come in its first second here, which begins anew when another manager has gone.
        """
        waiting, per_s, patience_s = self.count(function), self.pace.per_s(function, now), self._config.patience_s
        enough = waiting < WAIT_ANYWAY or waiting <= per_s * patience_s
        begins = per_s == 0 or not self.pace.known(function, now)
        if enough or (growing and (begins or waiting <= 2 * per_s * patience_s)):
            return ""
        return (
            f"{waiting} requests wait for a sandbox of {function.function} and {per_s:.0f} per second get one: its "
            f"turn would come after more than patience_s ({patience_s:g} s)"
        )

    def gives_way(self, function: FunctionKey) -> Waiter | None:
        """At a full manager the newest request of the account that has the most there, if that isn't the asker's."""
        if len(self._by_key) < self._config.waiting_max:
            return None
        most = max(self._accounts.values(), key=len)
        if len(most) <= len(self._accounts.get(function.account, ())) + 1:
            return None
        return next(reversed(most.values()))

    def add(self, waiter: Waiter) -> None:
        self._by_key[waiter.key] = waiter
        self._queues.setdefault(waiter.event.function, {})[waiter.key] = waiter
        self._accounts.setdefault(waiter.event.function.account, {})[waiter.key] = waiter
        self._frontends[waiter.event.function, waiter.event.frontend] += 1
        self._timers.set(("waiter", *waiter.key), waiter.deadline_at)

    def get(self, frontend: str, cause: str) -> Waiter | None:
        return self._by_key.get((frontend, cause))

    def remove(self, waiter: Waiter) -> None:
        del self._by_key[waiter.key]
        self._timers.drop(("waiter", *waiter.key))
        function = waiter.event.function
        _drop(self._queues, function, waiter.key)
        _drop(self._accounts, function.account, waiter.key)
        self._frontends[function, waiter.event.frontend] -= 1
        if not self._frontends[function, waiter.event.frontend]:
            del self._frontends[function, waiter.event.frontend]

    def waits_at(self, frontend: str, function: FunctionKey) -> bool:
        return self._frontends[function, frontend] > 0

    def count(self, function: FunctionKey) -> int:
        return len(self._queues.get(function, ()))

    def oldest(self, function: FunctionKey) -> Waiter | None:
        queue = self._queues.get(function)
        return next(iter(queue.values())) if queue else None

    def of_function(self, function: FunctionKey) -> list[Waiter]:
        return list(self._queues.get(function, {}).values())

    def functions(self) -> list[FunctionKey]:
        return list(self._queues)

    def in_turns(self, step: Callable[[FunctionKey], bool]) -> None:
        """Takes ``step`` for one function after the other, account by account, until it says False for each."""
        turns: dict[str, deque[FunctionKey]] = {}
        for function in self._queues:
            turns.setdefault(function.account, deque()).append(function)
        while turns:
            for account, functions in list(turns.items()):
                function = functions.popleft()
                if step(function):
                    functions.append(function)
                elif not functions:
                    del turns[account]

    def check(self) -> None:
        for index in (self._queues, self._accounts):
            assert sum(map(len, index.values())) == len(self._by_key), "a waiter is indexed wrongly"
            assert all(index.values()), "an empty queue is kept"
        counted = Counter((waiter.event.function, waiter.event.frontend) for waiter in self._by_key.values())
        assert counted == self._frontends, "waiters are counted wrongly"
        assert len(self._by_key) <= self._config.waiting_max, f"{len(self._by_key)} wait"
        for waiter in self._by_key.values():
            at = self._timers.at(("waiter", *waiter.key))
            assert at == waiter.deadline_at, f"{waiter.key} is woken at {at}, not at {waiter.deadline_at}"


def _drop(index: dict[Key, dict[tuple[str, str], Waiter]], key: Key, waiter: tuple[str, str]) -> None:
    queue = index[key]
    del queue[waiter]
    if not queue:
        del index[key]


class Pace:
    """How many requests of each function got a sandbox per second, lately."""

    SPAN_S = 1.0
    FUNCTIONS_MAX = 4096    # beyond, those that were quiet are forgotten

    def __init__(self) -> None:
        self._counts: dict[FunctionKey, tuple[float, int, float]] = {}   # since when, how many, per second before

    def count(self, function: FunctionKey, now: float) -> None:
        since, served, before = self._counts.get(function, (now, 0, 0.0))
        if now - since >= 2 * self.SPAN_S:
            since, served, before = now, 0, 0.0     # it was quiet: what it did then says nothing of what it does now
        elif now - since >= self.SPAN_S:
            since, served, before = now, 0, served / (now - since)
        self._counts[function] = (since, served + 1, before)
        if len(self._counts) > self.FUNCTIONS_MAX:
            recent = {key: counts for key, counts in self._counts.items() if now - counts[0] < 2 * self.SPAN_S}
            self._counts = recent if len(recent) <= self.FUNCTIONS_MAX else {}

    def known(self, function: FunctionKey, now: float) -> bool:
        """Whether it has been counted for long enough to say anything: a function that begins here has no pace yet."""
        since, _, before = self._counts.get(function, (now, 0, 0.0))
        return before > 0 or now - since >= self.SPAN_S

    def per_s(self, function: FunctionKey, now: float) -> float:
        since, served, before = self._counts.get(function, (now, 0, 0.0))
        return max(before if now - since < 2 * self.SPAN_S else 0.0, served / max(self.SPAN_S, now - since))


_BUCKETS_MIN = 1000     # from so many on, full ones are thrown away


class ScalingRate:
    """A token bucket per function: at most ``scaling_burst`` new sandboxes at once, ``scaling_per_s`` after that."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}   # tokens, as of when
        self._sweep_at = _BUCKETS_MIN

    def try_take(self, function: FunctionKey, now: float) -> bool:
        key = (function.account, function.function)
        tokens, at = self._buckets.get(key, (float(self._config.scaling_burst), now))
        tokens = min(float(self._config.scaling_burst), tokens + (now - at) * self._config.scaling_per_s)
        taken = tokens >= 1
        self._buckets[key] = (tokens - 1 if taken else tokens, now)
        if len(self._buckets) >= self._sweep_at:
            self._sweep(now)
        return taken

    def _sweep(self, now: float) -> None:
        """A full bucket says nothing that no bucket doesn't: what is left made sandboxes a moment ago."""
        burst, per_s = self._config.scaling_burst, self._config.scaling_per_s
        self._buckets = {key: (tokens, at) for key, (tokens, at) in self._buckets.items()
                         if tokens + (now - at) * per_s < burst}
        self._sweep_at = max(_BUCKETS_MIN, 2 * len(self._buckets))

    def forget(self, account: str, function: str) -> None:
        self._buckets.pop((account, function), None)
