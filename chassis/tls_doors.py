"""TLS before a listener's protocol: a connection is known from its arrival on, not only once its handshake is over.

asyncio tells a TLS listener's protocol of a connection after the handshake, so that nobody would count those who never
complete one. Owns the time of a handshake and its end. Refuses to know how many connections there may be (``Porter``)
and what is spoken behind the door.
"""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol, cast

import structlog

from chassis.process import Tasks
from chassis.tls_contexts import SHUTDOWN_S

_TCP_INFO = struct.Struct("120xQ")      # tcpi_bytes_acked, since Linux 4.1

_log = structlog.get_logger(__name__)


class Porter(Protocol):
    """Who decides on connections whose handshake has not ended."""

    def enter(self, door: "Door") -> bool:
        """Whether there is room, which somebody else may have given."""
        ...

    def leave(self, door: "Door") -> None:
        """Called once for each that entered: its handshake is over, or it gave way."""
        ...


class Room:
    """A porter for so many handshakes at a time: the oldest gives way to a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._doors: dict[Door, None] = {}

    def enter(self, door: "Door") -> bool:
        if len(self._doors) >= self._most:
            next(iter(self._doors)).give_way()
        self._doors[door] = None
        return True

    def leave(self, door: "Door") -> None:
        del self._doors[door]


class Doors:
    """Of one listener. ``door`` is its protocol factory."""

    def __init__(
        self, context: ssl.SSLContext, behind: "Callable[[Door], asyncio.BaseProtocol]", porter: Porter, *,
        within_s: float, shutdown_s: float = SHUTDOWN_S,
    ) -> None:
        """``behind`` makes the protocol that gets the connection after its handshake.

        ``shutdown_s``: for a closed connection to take what was written and to say goodbye.
        """
        self.context = context
        self.behind = behind
        self.porter = porter
        self.within_s = within_s
        self.shutdown_s = shutdown_s
        self.tasks = Tasks()
        self.open: set[Door] = set()

    def door(self) -> "Door":
        return Door(self)

    def close(self) -> None:
        """Handshakes that have not ended do now; what is behind stays."""
        for door in list(self.open):
            door.give_way()


class Door(asyncio.Protocol):
    """One connection until its handshake is over."""

    def __init__(self, doors: Doors) -> None:
        self.peer = ""
        self._doors = doors
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = transport.get_extra_info("peername")
        self.peer = address[0] if address else ""
        if self._doors.porter.enter(self):
            # The socket changes hands here, before anything is read of it: a transport that has begun to read may have
            # the client's first message when ``start_tls`` is called.
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            self._doors.open.add(self)
            self._task = self._doors.tasks.start(self._shake_hands(self._socket), name="TLS handshake")
        cast("asyncio.Transport", transport).abort()    # uvloop's are no subclass of it

    def give_way(self) -> None:
        """To be called while it is open."""
        self.leave()
        assert self._task is not None, "it entered"
        self._task.cancel()

    def leave(self) -> None:
        """The protocol behind says so when it gets the connection, before it counts it itself."""
        if self in self._doors.open:
            self._doors.open.discard(self)
            self._doors.porter.leave(self)

    def acknowledged_bytes(self) -> int:
        """What the client's host has taken so far, handshake included; 0 once the connection is closed."""
        assert self._socket is not None, "it entered"
        if self._socket.fileno() < 0:
            return 0
        found = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        acknowledged: int = _TCP_INFO.unpack(found)[0]
        return acknowledged

    async def _shake_hands(self, accepted: socket.socket) -> None:
        doors = self._doors
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: doors.behind(self), accepted, ssl=doors.context, ssl_handshake_timeout=doors.within_s,
                ssl_shutdown_timeout=doors.shutdown_s,
            )
        except OSError as error:    # what a client gets wrong is no news
            _log.debug("TLS handshake", peer=self.peer, error=repr(error))
        finally:
            self.leave()
