"""Requests that wait for a sandbox, oldest first per function, bounded; and how fast a function may grow.

Owns the queues and the token buckets. Refuses to know sandboxes.
"""

from collections.abc import Iterator

from worker_manager.config import PoolConfig
from worker_manager.messages import FunctionKey, Reserve


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
    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._by_key: dict[tuple[str, str], Waiter] = {}
        self._queues: dict[FunctionKey, dict[tuple[str, str], Waiter]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._by_key.values()))

    def full(self, function: FunctionKey) -> str:
        """Which bound forbids one more, or nothing."""
        config = self._config
        if len(self._queues.get(function, ())) >= config.waiting_per_function_max:
            return f"{config.waiting_per_function_max} requests wait for a sandbox of {function.function}"
        if len(self._by_key) >= config.waiting_max:
            return f"{config.waiting_max} requests wait at this manager"
        return ""

    def add(self, waiter: Waiter) -> None:
        self._by_key[waiter.key] = waiter
        self._queues.setdefault(waiter.event.function, {})[waiter.key] = waiter

    def get(self, frontend: str, cause: str) -> Waiter | None:
        return self._by_key.get((frontend, cause))

    def remove(self, waiter: Waiter) -> None:
        del self._by_key[waiter.key]
        queue = self._queues[waiter.event.function]
        del queue[waiter.key]
        if not queue:
            del self._queues[waiter.event.function]

    def count(self, function: FunctionKey) -> int:
        return len(self._queues.get(function, ()))

    def oldest(self, function: FunctionKey) -> Waiter | None:
        queue = self._queues.get(function)
        return next(iter(queue.values())) if queue else None

    def of_function(self, function: FunctionKey) -> list[Waiter]:
        return list(self._queues.get(function, {}).values())

    def functions(self) -> list[FunctionKey]:
        return list(self._queues)


class ScalingRate:
    """A token bucket per function: at most ``scaling_burst`` new sandboxes at once, ``scaling_per_s`` after that."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}   # tokens, as of when

    def try_take(self, function: FunctionKey, now: float) -> bool:
        key = (function.account, function.function)
        tokens, at = self._buckets.get(key, (float(self._config.scaling_burst), now))
        tokens = min(float(self._config.scaling_burst), tokens + (now - at) * self._config.scaling_per_s)
        taken = tokens >= 1
        self._buckets[key] = (tokens - 1 if taken else tokens, now)
        return taken

    def forget(self, account: str, function: str) -> None:
        self._buckets.pop((account, function), None)
