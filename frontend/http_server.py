"""The HTTP edge: listeners and connections around the ASGI application.

Owns sockets, the bounds of a connection, and its graceful end. uvicorn's httptools protocol does the HTTP; its server
object is left out, because it takes signals over and wakes ten times a second. Refuses to know what is served.
"""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from chassis.faults import Fault, FaultCode

BACKLOG = 2048
HEAD_S = 20.0    # a request's line and headers come whole within this, or the connection is closed


class HttpServer:
    """Serves one application at several addresses of one process."""

    def __init__(self, application: Any, *, keep_alive_s: int, header_bytes_max: int) -> None:
        self._config = uvicorn.Config(
            application, http="httptools", ws="none", lifespan="off", loop="none", interface="asgi3", access_log=False,
            log_config=None, log_level=logging.WARNING, date_header=False, server_header=False, proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
        )
        self._config.load()
        self._state = ServerState()
        self._header_bytes_max = header_bytes_max
        self._servers: list[asyncio.Server] = []

    async def listen(self, address: str, *, shared: bool = False) -> str:
        """Serves at host:port (``shared``: with other processes that say so too); the address that was bound.

        Raises Fault when it can't be had.
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
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self._protocol, sock=listener, backlog=BACKLOG))
        return f"{host}:{listener.getsockname()[1]}"

    def _protocol(self) -> "_Connection":
        return _Connection(self._config, self._state, self._header_bytes_max)

    def stop_listening(self) -> None:
        """At once, so that the kernel gives new connections to the processes that share the address."""
        for server in self._servers:
            server.close()

    async def finish(self, grace_s: float) -> None:
        """Idle connections close, running requests get their answers within ``grace_s`` seconds."""
        self.stop_listening()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=grace_s)
        for task in self._state.tasks:
            task.cancel()

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._state.tasks)


class _Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds that it lacks: how large a request's head may be, and how long it may take."""

    def __init__(self, config: uvicorn.Config, state: ServerState, header_bytes_max: int) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._header_bytes_max = header_bytes_max
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._header_bytes_max:
            raise ValueError(f"a request's head has more than {self._header_bytes_max} bytes")

    def _expect_head(self) -> None:
        self._head_came()
        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()


