"""Requests that wait for a permit, of all pools: how many there may be, whose time has come, and who gives way.

Owns their bounds and deadlines, and in which pool each waits. Refuses to know permits (``stock.py``) and what a wait's
end means (``core.py``).
"""

import heapq
import math
from collections.abc import Iterator

from frontend.stock import Stock, Waiter


class Waiting:
    """All that wait. One account can't keep the others out: when it is full, the one with the most there gives way."""

    def __init__(self, *, waiting_max: int, per_account_max: int) -> None:
        self._waiting_max = waiting_max
        self._per_account_max = per_account_max
        self._stocks: dict[int, Stock] = {}     # by request, in the order in which they came
        self._accounts: dict[str, int] = {}     # how many are whose
        self._looks: list[tuple[float, int]] = []   # a heap; of requests that have gone as well

    def __len__(self) -> int:
        return len(self._stocks)

    def stock(self, request: int) -> Stock | None:
        """The pool in which it waits; None when it doesn't any more."""
        return self._stocks.get(request)

    def add(self, waiter: Waiter, stock: Stock, *, look_at: float) -> None:
        """``look_at``: when ``due`` names it, its deadline at the latest."""
        stock.waiting[waiter.request] = waiter
        self._stocks[waiter.request] = stock
        self._accounts[waiter.account] = self._accounts.get(waiter.account, 0) + 1
        self.look_again(waiter.request, look_at)

    def remove(self, request: int) -> Waiter:
        waiter = self._stocks.pop(request).waiting.pop(request)
        self._accounts[waiter.account] -= 1
        if not self._accounts[waiter.account]:
            del self._accounts[waiter.account]
        return waiter

    def move(self, waiter: Waiter, target: Stock) -> None:
        """To the end of another pool's line. Among all it stays as old as it is."""
        del self._stocks[waiter.request].waiting[waiter.request]
        target.waiting[waiter.request] = waiter
        self._stocks[waiter.request] = target

    # ------------------------------------------------------------ bounds

    def full(self, account: str) -> bool:
        """Whether no more of the account may wait. Where ``gives_way`` names a request, its going makes room."""
        if self._accounts.get(account, 0) >= self._per_account_max:
            return True
        return len(self) >= self._waiting_max and self.gives_way(account) is None

    def gives_way(self, account: str) -> int | None:
        """The newest request of who has the most here, when all places are taken and that isn't ``account``."""
        if len(self) < self._waiting_max:
            return None
        most, count = max(self._accounts.items(), key=lambda item: item[1])
        if count <= self._accounts.get(account, 0) + 1:
            return None
        return next(request for request in reversed(self._stocks) if self._stocks[request].pool.account == most)

    def bound(self, account: str) -> tuple[str, int, int]:
        """Why one more is refused: the sentence, the limit and how many there are."""
        own = self._accounts.get(account, 0)
        reason = (
            f"{len(self)} requests wait for permits at this frontend already (waiting_max {self._waiting_max}), "
            f"{own} of them of account {account} (waiting_per_account_max {self._per_account_max})"
        )
        if own >= self._per_account_max:
            return reason, self._per_account_max, own
        return reason, self._waiting_max, len(self)

    # ------------------------------------------------------------ time

    def wakes_at(self) -> float:
        """When ``due`` has something to say; infinite: never."""
        while self._looks and self._looks[0][1] not in self._stocks:
            heapq.heappop(self._looks)
        return self._looks[0][0] if self._looks else math.inf

    def due(self, now: float) -> Iterator[tuple[int, Stock]]:
        """Requests whose time to be looked at has come, each once, and where they wait."""
        while self._looks and self._looks[0][0] <= now:
            _, request = heapq.heappop(self._looks)
            stock = self._stocks.get(request)
            if stock is not None:
                yield request, stock

    def look_again(self, request: int, at: float) -> None:
        heapq.heappush(self._looks, (at, request))

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        assert sum(self._accounts.values()) == len(self), self._accounts
        for request, stock in self._stocks.items():
            assert request in stock.waiting, f"request {request} doesn't wait in {stock.pool}"
