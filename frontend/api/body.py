"""Reading a request's body: hashed as it arrives, kept up to a limit.

Owns the bounds on memory and time for bodies. Refuses to know what is in them.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A body over its limit is read on without being kept, so that the client gets the answer instead of a reset connection.
DRAIN_BYTES_MAX = 134_217_728
READ_S_MAX = 120.0
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Disconnected(Exception):
    """The client is gone before its request was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """``data`` is None when the body was larger than the limit; size and hash are right all the same."""

    data: bytes | None
    size: int
    sha256: str


async def read_body(receive: Receive, limit: int) -> Body:
    """Read the whole body. Raises ApiError (408) when it doesn't end in time, Disconnected."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        data = message.get("body", b"")
        digest = hashlib.sha256(data).hexdigest() if data else EMPTY_SHA256
        return Body(data=data if len(data) <= limit else None, size=len(data), sha256=digest)
    try:
        async with asyncio.timeout(READ_S_MAX):
            return await _read_on(message, receive, limit)
    except TimeoutError:
        raise ApiError(
            "RequestTimeoutException", 408, f"The request's body was not complete after {READ_S_MAX:.0f} s."
        ) from None


async def _read_on(message: MutableMapping[str, Any], receive: Receive, limit: int) -> Body:
    chunks: list[bytes] = []
    size = 0
    digest = hashlib.sha256()
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        digest.update(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
        if not message.get("more_body"):
            break
        if size > DRAIN_BYTES_MAX:
            raise ApiError(
                "RequestEntityTooLargeException",
                413,
                f"The request's body has more than {DRAIN_BYTES_MAX} bytes, the rest wasn't read.",
            )
        message = await receive()
    return Body(data=b"".join(chunks) if size <= limit else None, size=size, sha256=digest.hexdigest())
