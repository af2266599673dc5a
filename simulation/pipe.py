"""An in-memory connection between two asyncio protocols: what a socket pair would be, without descriptors."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any


def connect(
    client: asyncio.Protocol, server: asyncio.Protocol, context: contextvars.Context
) -> "PipeTransport":
    """Joins both and returns the client's transport. The server hears of it in a later turn of the loop, in a context
    of its own: it is another process."""
    near, far = PipeTransport(client, contextvars.copy_context()), PipeTransport(server, context)
    near.peer, far.peer = far, near
    far.soon(server.connection_made, far)
    client.connection_made(near)
    return near


class PipeTransport(asyncio.Transport):
    """One end. What is written arrives in a later turn, in order; a reader that pauses gets it when it resumes."""

    peer: "PipeTransport"

    def __init__(self, protocol: asyncio.Protocol, context: contextvars.Context) -> None:
        super().__init__()
        self._context = context
        self._protocol = protocol
        self._arrived: deque[bytes] = deque()
        self._paused = False
        self._closing = False
        self._lost = False

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """As this end's process."""
        asyncio.get_running_loop().call_soon(callback, *args, context=self._context)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            self.peer.soon(self.peer.arrive, bytes(data))

    def arrive(self, data: bytes) -> None:
        if self._lost:
            return
        if self._paused:
            self._arrived.append(data)
        else:
            self._protocol.data_received(data)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._arrived and not self._paused:
            self._protocol.data_received(self._arrived.popleft())

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.soon(self.lose)
            self.peer.soon(self.peer.lose)

    def abort(self) -> None:
        self.close()

    def lose(self) -> None:
        self._closing = True
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
