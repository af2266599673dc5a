"""Reading a request's body: hashed as it arrives, kept up to a limit.

Owns the bounds on memory and time for bodies. Refuses to know what is in them.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError, unavailable

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A body over its limit is read on without being kept, so that the client gets the answer instead of a reset connection.
DRAIN_BYTES_MAX = 134_217_728
READ_S_MAX = 120.0
# Bodies that come in several pieces share this much memory of one frontend; what came in one piece is small.
HELD_BYTES_MAX = 536_870_912
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Disconnected(Exception):
    """The client is gone before its request was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """``data`` is None when the body was larger than the limit; size and hash are right all the same.

    ``held`` are the bytes of the budget that the request gives back when it is over.
    """

    data: bytes | None
    size: int
    sha256: str
    held: int = 0


class BodyBudget:
    """The memory that bodies may take in one frontend at a time. A bound that says so when it is reached."""

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._max = bytes_max
        self.held = 0

    def take(self, size: int) -> bool:
        if self.held + size > self._max:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0, "a body was given back twice"

    def refusal(self) -> ApiError:
        return unavailable(
            "This frontend holds as many large requests as it may.",
            detail={
                "limit_bytes": self._max,
                "held_bytes": self.held,
                "counter": "request bodies of this frontend",
                "remedy": "Try again: nothing was done.",
            },
        )


async def read_body(receive: Receive, limit: int, budget: BodyBudget) -> Body:
    """Read the whole body.

    Raises ApiError (408: not complete in time, 503: the budget is used up, 413: more than is read at all) and
    Disconnected. Nothing of the budget is held then.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        data = message.get("body", b"")
        digest = hashlib.sha256(data).hexdigest() if data else EMPTY_SHA256
        return Body(data=data if len(data) <= limit else None, size=len(data), sha256=digest)
    pieces = _Pieces(limit, budget)
    try:
        async with asyncio.timeout(READ_S_MAX):
            while True:
                if message["type"] == "http.disconnect":
                    raise Disconnected
                pieces.add(message.get("body", b""))
                if not message.get("more_body"):
                    return pieces.body()
                message = await receive()
    except BaseException as error:
        pieces.drop()
        if isinstance(error, TimeoutError):
            raise ApiError(
                "RequestTimeoutException", 408, f"The request's body was not complete after {READ_S_MAX:.0f} s."
            ) from None
        raise


class _Pieces:
    """A body as it arrives. Past its limit or the budget it is only hashed and counted."""

    def __init__(self, limit: int, budget: BodyBudget) -> None:
        self._limit = limit
        self._budget = budget
        self._chunks: list[bytes] = []
        self._digest = hashlib.sha256()
        self._size = 0
        self._held = 0
        self._refused = False

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._digest.update(chunk)
        if self._size > DRAIN_BYTES_MAX:
            raise ApiError(
                "RequestEntityTooLargeException",
                413,
                f"The request's body has more than {DRAIN_BYTES_MAX} bytes, the rest wasn't read.",
            )
        if self._refused or self._size > self._limit:
            self.drop()
        elif self._budget.take(len(chunk)):
            self._held += len(chunk)
            self._chunks.append(chunk)
        else:
            self._refused = True
            self.drop()

    def drop(self) -> None:
        """Keep nothing and give everything back."""
        self._chunks.clear()
        self._budget.give(self._held)
        self._held = 0

    def body(self) -> Body:
        if self._refused:
            raise self._budget.refusal()
        whole = self._size <= self._limit
        return Body(
            data=b"".join(self._chunks) if whole else None,
            size=self._size,
            sha256=self._digest.hexdigest(),
            held=self._held,
        )
