"""Reservations that this frontend keeps for a moment after an invocation, for the next one of the same function.

Owns which reservation is taken next, by whom, and when one is let go. A reservation that lingers holds no permit; the
manager may recall it at any time, and the worker has the last word on it anyway (architecture: the worker arbitrates).
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from protos import common_pb2

FunctionKey = tuple[str, str, str, int]   # account, function, version, revision: what a sandbox serves for life


class Lender(Protocol):
    """Who gave a reservation, and is told when it isn't needed any more."""

    def release(self, sandbox: str, sequence: int) -> None: ...


# An END follows its result within a fraction of a millisecond, as a rule; asking the manager takes longer than that.
SOON_S = 0.005


class Held:
    """One reservation in this frontend's hands: in use, or lingering until its timer ends."""

    __slots__ = ("key", "lender", "linger_s", "pass_on_until", "recalled", "reservation", "timer")

    def __init__(
        self, key: FunctionKey, reservation: common_pb2.Reservation, lender: Lender, linger_s: float,
        pass_on_s: float = 0.0,
    ) -> None:
        self.key = key
        self.reservation = reservation
        self.lender = lender
        self.linger_s = linger_s
        # Until then to requests that wait here, whoever else waits.
        self.pass_on_until = asyncio.get_running_loop().time() + pass_on_s
        self.recalled = False
        self.timer: asyncio.TimerHandle | None = None


class Lingering:
    """All reservations in this frontend's hands."""

    def __init__(self) -> None:
        self._idle: dict[FunctionKey, list[Held]] = {}
        self._held: dict[str, Held] = {}    # by sandbox
        self._ending: dict[FunctionKey, dict[Held, None]] = {}     # in the order of their answers
        self._hoping: dict[FunctionKey, deque[asyncio.Future[Held | None]]] = {}    # for one that ends
        self._asking: dict[FunctionKey, deque[asyncio.Future[Any]]] = {}    # a manager: for its reply, or one from here

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: FunctionKey) -> Held | None:
        """The most recently used one that lingers: its sandbox is the warmest."""
        idle = self._idle.get(key)
        if not idle:
            return None
        held = idle.pop()
        if not idle:
            del self._idle[key]
        assert held.timer is not None
        held.timer.cancel()
        held.timer = None
        return held

    def ends(self, held: Held) -> None:
        """Its invocation has answered, and will be over in a moment."""
        if not held.recalled and held.linger_s > 0:
            self._ending.setdefault(held.key, {})[held] = None

    async def soon(self, key: FunctionKey) -> Held | None:
        """One that is about to be over and that nobody else hopes for; None where there is none, or not soon enough."""
        hoping = self._hoping.get(key)
        ending = self._ending.get(key)
        if not ending or len(ending) <= (len(hoping) if hoping else 0) or key in self._asking:
            return None     # who asks the manager already was here before
        future: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
        self._hoping.setdefault(key, deque()).append(future)
        try:
            async with asyncio.timeout(SOON_S):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()
            late = next(iter(self._ending.get(key, ())), None)
            if late is not None:
                self._no_longer_ending(late)    # its stream broke, perhaps: nobody else waits for it
            return None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                held = future.result()
                if held is not None:
                    self.keep(held)     # it came in the very turn of the cancellation
            raise
        finally:
            self._forget(key, future)

    @contextmanager
    def asking(self, key: FunctionKey) -> Iterator["asyncio.Future[Any]"]:
        """For one request's ask at a manager: a future for the reply, or for a reservation in these hands that is
        passed on meanwhile, to the oldest request first."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asking = self._asking.setdefault(key, deque())
        asking.append(future)
        try:
            yield future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                got = future.result()
                if isinstance(got, Held):
                    self.keep(got)  # it came in the very turn of the cancellation
            raise
        finally:
            asking.remove(future)
            del future      # a fault's traceback refers to this frame: through it, to itself
            if not asking:
                del self._asking[key]

    def hold(self, held: Held) -> None:
        """A new reservation, to be used at once."""
        self._held[held.reservation.sandbox] = held

    def keep(self, held: Held) -> None:
        """Its invocation has ended: it is passed on, or lingers, unless it was recalled meanwhile."""
        if not held.recalled and self._pass_on(held):
            return
        if held.recalled or held.linger_s <= 0:
            self.let_go(held)
            return
        if self._over(held, held):
            return
        held.timer = asyncio.get_running_loop().call_later(held.linger_s, self._expire, held)
        self._idle.setdefault(held.key, []).append(held)

    def let_go(self, held: Held) -> None:
        """Not needed any more: the manager is told."""
        self._over(held, None)
        if self._held.get(held.reservation.sandbox) is held:
            del self._held[held.reservation.sandbox]
        held.lender.release(held.reservation.sandbox, held.reservation.sequence)

    def recall(self, sandbox: str, sequence: int) -> None:
        """The manager wants it back: at once if it lingers, else when its invocation has ended."""
        held = self._held.get(sandbox)
        if held is None or held.reservation.sequence > sequence:
            return
        held.recalled = True
        if held.timer is not None:
            self._remove(held)
            self.let_go(held)

    def drop(self, lender: Lender) -> None:
        """The stream to a manager broke: what it lent may have been given to others."""
        for held in [held for held in self._held.values() if held.lender is lender]:
            held.recalled = True
            if held.timer is not None:
                self._remove(held)
                self.let_go(held)

    def close(self) -> None:
        """This frontend drains: everything that lingers goes back."""
        for held in [held for idle in self._idle.values() for held in idle]:
            self._remove(held)
            self.let_go(held)

    def _pass_on(self, held: Held) -> bool:
        if asyncio.get_running_loop().time() < held.pass_on_until:
            for future in self._asking.get(held.key, ()):
                if not future.done():
                    future.set_result(held)
                    return True
        return False

    def _expire(self, held: Held) -> None:
        self._remove(held)
        self.let_go(held)

    def _remove(self, held: Held) -> None:
        assert held.timer is not None
        held.timer.cancel()
        held.timer = None
        idle = self._idle[held.key]
        idle.remove(held)
        if not idle:
            del self._idle[held.key]

    def _over(self, held: Held, found: Held | None) -> bool:
        """What was about to end has ended. Whoever hopes longest gets ``found``; whether somebody did."""
        if not self._no_longer_ending(held):
            return False
        for future in self._hoping.get(held.key, ()):
            if not future.done():
                future.set_result(found)
                return found is not None
        return False

    def _no_longer_ending(self, held: Held) -> bool:
        ending = self._ending.get(held.key, {})
        if held not in ending:
            return False
        del ending[held]
        if not ending:
            del self._ending[held.key]
        return True

    def _forget(self, key: FunctionKey, future: "asyncio.Future[Held | None]") -> None:
        hoping = self._hoping[key]
        hoping.remove(future)
        if not hoping:
            del self._hoping[key]
