"""The HTTP edge: listeners, plain and TLS, and connections around the ASGI application.

Owns sockets and their graceful end; what one connection may take is ``http_connection.py``'s. uvicorn's httptools
protocol does the HTTP; its server object is left out, because it takes signals over and wakes ten times a second.
Refuses to know what is served.
"""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from chassis import tls_contexts
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.tls_doors import Door, Doors
from frontend.config import HttpLimits
from frontend.http_connection import UNSENT_BYTES, Connection, Crowd, CrowdAtTheDoor

BACKLOG = 2048
# A client whose host vanished sends no FIN: the kernel asks after it, and gives up on what it doesn't acknowledge.
PROBE_IDLE_S, PROBE_S, PROBES = 30, 10, 3
UNACKNOWLEDGED_MS = 60_000
TOLD_S = 0.5    # for the last word to requests that were cancelled


class HttpServer:
    """Serves one application at several addresses of one process."""

    def __init__(self, application: Any, limits: HttpLimits) -> None:
        self._plain = _configuration(application)
        self._secured = _configuration(_InPieces(application))
        self._limits = limits
        self._state = ServerState()
        self._crowd = Crowd(limits)
        self._servers: list[asyncio.Server] = []
        self._doors: list[Doors] = []

    async def listen(self, address: str, *, shared: bool = False, credentials: Credentials | None = None) -> str:
        """Serves at host:port (``shared``: with other processes that say so too); the address that was bound.

        HTTPS with ``credentials``, the newest at each handshake; HTTP without. Raises Fault when it can't be had.
        """
        host, port = address.rsplit(":", 1)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host.strip("[]"), int(port)))
        except OSError as error:
            listener.close()
            raise Fault(
                f"can't listen on {address}: {error.strerror}; stop what uses it or choose another with --listen",
                code=FaultCode.CONFLICT, definite=True,
            ) from error
        listener.setblocking(False)
        _watch_peers(listener)
        loop = asyncio.get_running_loop()
        factory = self._protocol if credentials is None else self._doors_for(credentials).door
        self._servers.append(await loop.create_server(factory, sock=listener, backlog=BACKLOG))
        return f"{host}:{listener.getsockname()[1]}"

    def _protocol(self) -> Connection:
        return Connection(self._plain, self._state, self._crowd)

    def _doors_for(self, credentials: Credentials) -> Doors:
        doors = Doors(
            tls_contexts.public(credentials, speaks="http/1.1"), self._behind, CrowdAtTheDoor(self._crowd),
            within_s=self._limits.handshake_s,
            # What TLS and the transport below hold of an answer goes out at the slowest pace that is allowed.
            shutdown_s=self._limits.pace_s + 4 * UNSENT_BYTES / self._limits.bytes_per_s_min,
        )
        self._doors.append(doors)
        return doors

    def _behind(self, door: Door) -> Connection:
        return Connection(self._secured, self._state, self._crowd, door)

    def stop_listening(self) -> None:
        """At once, so that the kernel gives new connections to the processes that share the address."""
        for server in self._servers:
            server.close()

    async def finish(self, grace_s: float) -> None:
        """Idle connections close, running requests get their answers within ``grace_s`` seconds, or are cancelled."""
        self.stop_listening()
        for doors in self._doors:
            doors.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=grace_s)
        for task in self._state.tasks:
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=TOLD_S)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._state.tasks)

    @property
    def connections(self) -> int:
        """Open connections, those too whose TLS handshake has not ended, or that are still being told of a refusal."""
        return len(self._state.connections) + sum(len(doors.open) for doors in self._doors)

    @property
    def refused(self) -> int:
        """Connections that were told why they end."""
        return self._crowd.refused


class _InPieces:
    """The application, with large bodies sent in pieces, each when there is room.

    TLS takes a whole write into a buffer below itself, of which the connection isn't told: a client that doesn't read
    would be noticed by nobody, and one that reads slowly be cut off by the end of the connection.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_in_pieces(message: Any) -> None:
            body = message.get("body", b"")
            if len(body) <= UNSENT_BYTES:
                await send(message)
                return
            ends = range(UNSENT_BYTES, len(body) + UNSENT_BYTES, UNSENT_BYTES)
            for end in ends:
                more = end < len(body) or message.get("more_body", False)
                await send({**message, "body": body[end - UNSENT_BYTES:end], "more_body": more})

        await self._application(scope, receive, send_in_pieces)


def _configuration(application: Any) -> uvicorn.Config:
    made = uvicorn.Config(
        application, http="httptools", ws="none", lifespan="off", loop="none", interface="asgi3", access_log=False,
        log_config=None, log_level=logging.WARNING, date_header=False, server_header=False, proxy_headers=False,
    )
    made.load()
    return made


def _watch_peers(listener: socket.socket) -> None:
    """Connections inherit these from their listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
