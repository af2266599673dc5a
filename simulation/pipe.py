"""An in-memory connection between two asyncio protocols: what a socket pair would be, without descriptors."""

import asyncio
from collections import deque
from typing import Any


def connect(client: asyncio.Protocol, server: asyncio.Protocol) -> "PipeTransport":
    """Joins both and returns the client's transport. The server hears of it in a later turn of the loop."""
    near, far = PipeTransport(client), PipeTransport(server)
    near.peer, far.peer = far, near
    loop = asyncio.get_running_loop()
    loop.call_soon(server.connection_made, far)
    client.connection_made(near)
    return near


class PipeTransport(asyncio.Transport):
    """One end. What is written arrives in a later turn, in order; a reader that pauses gets it when it resumes."""

    peer: "PipeTransport"

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._arrived: deque[bytes] = deque()
        self._paused = False
        self._closing = False
        self._lost = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            asyncio.get_running_loop().call_soon(self.peer.arrive, bytes(data))

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
            loop = asyncio.get_running_loop()
            loop.call_soon(self.lose)
            loop.call_soon(self.peer.lose)

    def abort(self) -> None:
        self.close()

    def lose(self) -> None:
        self._closing = True
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
