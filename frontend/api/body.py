"""Reading a request's body: judged by its declared length, hashed as it arrives, kept up to a limit.

Owns the bounds on memory for bodies. Refuses to know what is in them.
"""

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ApiError, unavailable

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
RawHeaders = Sequence[tuple[bytes, bytes]]

# A body over its limit is read on without being kept, so that the client gets the answer instead of a reset connection.
DRAIN_BYTES_MAX = 134_217_728
# The bodies of one frontend share this much memory, until their requests are answered.
HELD_BYTES_MAX = 536_870_912
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Disconnected(Exception):
    """The client is gone before its request was complete, or before anything was started for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """``held`` are the bytes of the budget that the request gives back when it is over."""

    data: bytes
    sha256: str
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimit:
    """How large a body may be, and what is said of one that is larger."""

    bytes_max: int
    refuse: Callable[[int], ApiError]


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
            "This frontend holds as much of requests as it may.",
            detail={
                "limit_bytes": self._max,
                "held_bytes": self.held,
                "counter": "request bodies of this frontend",
                "remedy": "Try again: nothing was done.",
            },
        )


def check_declared(headers: RawHeaders, limit: BodyLimit) -> None:
    """Judge the length that a request declares, before anything of it is read. Raises ApiError (413)."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > limit.bytes_max:
            raise limit.refuse(int(value))


async def until_gone(receive: Receive) -> None:
    """Returns when the client has gone. For a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive, limit: BodyLimit, budget: BodyBudget) -> Body:
    """Read the whole body.

    Raises ApiError (413: larger than the limit; 503: the budget is used up) and Disconnected. Nothing of the budget is
    held then, and what came of the body was read, so that the client gets the answer. How long a body may take is the
    connection's to judge (``http_connection.py``).
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        data = message.get("body", b"")
        if len(data) > limit.bytes_max:
            raise limit.refuse(len(data))
        if not budget.take(len(data)):
            raise budget.refusal()
        return Body(data=data, sha256=hashlib.sha256(data).hexdigest() if data else EMPTY_SHA256, held=len(data))
    chunks: list[bytes] = []
    digest = hashlib.sha256()
    held = 0
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk = message.get("body", b"")
            if held + len(chunk) > limit.bytes_max:
                chunks.clear()
                raise limit.refuse(held + len(chunk) + await _discard_rest(receive, message))
            if not budget.take(len(chunk)):
                chunks.clear()
                refusal = budget.refusal()
                await _discard_rest(receive, message)
                raise refusal
            held += len(chunk)
            digest.update(chunk)
            chunks.append(chunk)
            if not message.get("more_body"):
                return Body(data=b"".join(chunks), sha256=digest.hexdigest(), held=held)
            message = await receive()
    except BaseException:
        budget.give(held)
        raise


async def discard(receive: Receive, headers: RawHeaders) -> None:
    """Read a body that nobody wants, unless its client waits to be told to go on. Raises Disconnected."""
    if any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers):
        return
    await _discard_rest(receive, {"more_body": True})


async def _discard_rest(receive: Receive, message: MutableMapping[str, Any]) -> int:
    """What comes after ``message``: how many bytes. Raises Disconnected."""
    size = 0
    while message.get("more_body") and size <= DRAIN_BYTES_MAX:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        size += len(message.get("body", b""))
    return size
