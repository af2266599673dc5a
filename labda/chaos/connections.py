"""HTTP connections to one address, made as they are needed and kept: bytes go out, a status and bytes come back.

Owns sockets and the cutting of what comes into answers. Refuses to know what is asked, when, and what an answer means.
Its caller never waits: an open loop sends when a request is due, whatever became of those before.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

BROKEN = 0      # the status of a request whose connection broke, or was refused
_LENGTH = b"\r\ncontent-length: "
_CLOSES = b"\r\nconnection: close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back. ``head`` in lower case; with status ``BROKEN``, ``body`` says in words what happened."""

    status: int
    head: bytes = b""
    body: bytes = b""

    def header(self, name: str) -> str:
        """Empty where there is none of that name (in lower case)."""
        mark = b"\r\n" + name.encode() + b": "
        at = self.head.find(mark)
        return self.head[at + len(mark):].split(b"\r\n", 1)[0].decode("latin-1") if at >= 0 else ""


Over = Callable[[Reply], None]


class Connections:
    """``send`` never waits; ``over`` is called once for each request that it took. ``finish`` waits for the last."""

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, connections_max: int = 4000
    ) -> None:
        self._tls = tls
        self._host = host
        self._port = port
        self._connections_max = connections_max
        self._idle: deque[_Connection] = deque()
        self._open = 0
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._dials: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        return self._under_way

    def send(self, request: bytes, over: Over) -> bool:
        """False, and nothing is sent, when every connection is taken."""
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                self._begin()
                connection.send(request, over)
                return True
        if self._open >= self._connections_max:
            return False
        self._begin()
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._dial(request, over))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        return True

    async def finish(self, timeout_s: float) -> bool:
        """Whether everything was answered in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Connections on which nothing is under way. Later requests make new ones."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _dial(self, request: bytes, over: Over) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            self._open -= 1
            self.ended(over, Reply(status=BROKEN, body=type(error).__name__.encode()))
            return
        connection.send(request, over)

    def _begin(self) -> None:
        self._under_way += 1
        self._quiet.clear()

    # ------------------------------------------------------------ told by connections

    def free(self, connection: "_Connection") -> None:
        self._idle.append(connection)

    def lost(self) -> None:
        self._open -= 1

    def ended(self, over: Over, reply: Reply) -> None:
        over(reply)
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._over: Over | None = None
        self._received = b""
        self._head_size = 0     # bytes, once the head is there
        self._whole = 0         # bytes of the answer, likewise

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def send(self, request: bytes, over: Over) -> None:
        assert self._transport is not None
        self._over, self._received, self._whole = over, b"", 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head_size = end + 2
            head = self._received[:self._head_size].lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH):].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._whole = end + 4 + length
        if len(self._received) < self._whole or self._over is None:
            return
        over, self._over = self._over, None
        head = self._received[:self._head_size].lower()
        reply = Reply(status=int(head[9:12]), head=head, body=self._received[self._head_size + 2:self._whole])
        if _CLOSES in head:
            self.close()
        else:
            self._owner.free(self)
        self._owner.ended(over, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost()
        if self._over is not None:
            over, self._over = self._over, None
            self._owner.ended(over, Reply(status=BROKEN, body=b"the connection broke"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
