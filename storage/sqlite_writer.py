"""The one thread per process that writes: it commits what waits together (group commit), one sync for many
writes.

Owns transactions, waiting for other processes, and the verdict "did it happen": an order that is withdrawn
before its transaction began certainly did not, one whose commit was not seen to end is unknown. Refuses to
know what orders do.
"""

import asyncio
import contextlib
import enum
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from storage.faults import OutcomeUnknown, StorageFault, StoreClosed, StoreFull, StoreUnavailable
from storage.sqlite_file import check_version, connect

T = TypeVar("T")

BATCH_ORDERS_MAX = 256
# One attempt to get the write lock; between attempts the thread looks for withdrawn orders.
LOCK_ATTEMPT_S = 0.25


class _State(enum.Enum):
    WAITING = enum.auto()
    BEGUN = enum.auto()
    WITHDRAWN = enum.auto()


class _Order(Generic[T]):
    """One write that somebody awaits. `work` compares first and writes after, so that a refusal wrote nothing.
    """

    def __init__(self, key: str, work: Callable[[sqlite3.Connection], T], answer: asyncio.Future[T]) -> None:
        self.key = key
        self.answer = answer
        self._work = work
        self._loop = answer.get_loop()
        self._state = _State.WAITING
        self._lock = threading.Lock()  # begin and withdraw come from two threads and exclude each other
        self._result: T
        self._fault: Exception | None = None

    def begin(self) -> bool:
        return self._turn(_State.BEGUN)

    def withdraw(self) -> bool:
        """True when the work will certainly not happen."""
        return self._turn(_State.WITHDRAWN)

    @property
    def withdrawn(self) -> bool:
        return self._state is _State.WITHDRAWN

    def run(self, connection: sqlite3.Connection) -> None:
        try:
            self._result = self._work(connection)
        except StorageFault as refusal:
            self._fault = refusal

    def fail(self, fault: Exception) -> None:
        """Replace the outcome, unless it was a refusal: that one wrote nothing, whatever became of the batch.
        """
        self._fault = self._fault or fault

    def deliver(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            # The loop is closed: nobody waits for this answer any more.
            return

    def _settle(self) -> None:
        if self.answer.done():
            return
        if self._fault is not None:
            self.answer.set_exception(self._fault)
        else:
            self.answer.set_result(self._result)

    def _turn(self, state: _State) -> bool:
        with self._lock:
            if self._state is not _State.WAITING:
                return False
            self._state = state
            return True


class Writer:
    """Takes orders from event loops, runs them in groups in transactions that exclude other processes."""

    def __init__(self, path: Path, *, answer_s: float) -> None:
        """`answer_s` is how long an order may take until its caller is told that it is unavailable or unknown.
        """
        self._path = path
        self._answer_s = answer_s
        self._orders: queue.SimpleQueue[_Order[object] | None] = queue.SimpleQueue()
        self._closed = False
        self.connection = connect(path, busy_s=LOCK_ATTEMPT_S)
        # A daemon: a process that ends without close() must not hang, and nothing acknowledged depends on it.
        self._thread = threading.Thread(target=self._work, name="storage-writer", daemon=True)
        self._thread.start()

    async def order(self, key: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction and return its result once that is durable.

        Raises what `work` refused with, StoreUnavailable, StoreClosed, OutcomeUnknown.
        """
        if self._closed:
            raise StoreClosed
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        order = _Order(key, work, answer)
        self._orders.put(order)  # type: ignore[arg-type]  # the queue holds orders of every result type
        try:
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError:
            if order.withdraw():
                raise StoreUnavailable(
                    f"{self._path} was not free for a write of {key} within {self._answer_s} s: try again"
                ) from None
            raise OutcomeUnknown(key, f"no answer within {self._answer_s} s") from None
        except asyncio.CancelledError:
            order.withdraw()
            raise

    async def close(self) -> None:
        """Finish what was ordered, then end the thread."""
        if not self._closed:
            self._closed = True
            self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        open_ = True
        while open_:
            first = self._orders.get()
            batch = [] if first is None else [first]
            open_ = first is not None
            while open_ and len(batch) < BATCH_ORDERS_MAX:
                try:
                    order = self._orders.get_nowait()
                except queue.Empty:
                    break
                open_ = order is not None
                batch += [order] if order is not None else []
            if batch:
                self._commit(batch)
        self.connection.close()

    def _commit(self, batch: list[_Order[object]]) -> None:
        begun: list[_Order[object]] = []
        try:
            if not self._lock_file(batch):
                return
            begun = [order for order in batch if order.begin()]
            check_version(self.connection, self._path)
            for order in begun:
                order.run(self.connection)
        except Exception as error:  # noqa: BLE001 -- whatever it was, the callers get it and the thread lives on
            self._abandon(begun or batch, error)
        else:
            self._finish(begun)
        for order in batch:
            order.deliver()

    def _lock_file(self, batch: list[_Order[object]]) -> bool:
        """Begin a transaction; false when all who waited for it gave up."""
        while not all(order.withdrawn for order in batch):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
            else:
                return True
        return False

    def _finish(self, begun: list[_Order[object]]) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            # A full disk cut the log short before the mark of the commit: what is there of it is no transaction.
            full = _is_full(error)
            for order in begun:
                unknown = OutcomeUnknown(order.key, f"the commit failed: {error}")
                order.fail(StoreFull(str(self._path), order.key) if full else unknown)
            self._roll_back()

    def _abandon(self, orders: list[_Order[object]], error: Exception) -> None:
        self._roll_back()
        for order in orders:
            if isinstance(error, StorageFault):
                order.fail(error)
            elif isinstance(error, sqlite3.Error):
                away = StoreUnavailable(f"{self._path} can't be written: {error}")
                order.fail(StoreFull(str(self._path), order.key) if _is_full(error) else away)
            else:
                order.fail(error)

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            # What can't be rolled back now makes the next BEGIN fail, which comes here again.
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
