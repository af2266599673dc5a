"""chassis.rpc's streams as length-prefixed protobuf over mutual TLS: for the hop of every invocation, and for Raft.

A message costs a fraction of what it costs through gRPC in Python (docs/decisions/0018). What nobody waits for stays
with gRPC. Owns dialling, serving and the handshake's names. Refuses to know what messages mean, and unary calls.

A connection carries one stream (``chassis.framed_connection``). The dialling side begins with OPEN, the method's path;
the serving side may say REFUSED, with what a Fault has.
"""

import asyncio
import contextlib
import json
import socket
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from chassis import tls_contexts
from chassis.certificates import Tls, dns_names
from chassis.credentials import Credentials, Revocations
from chassis.faults import Fault, FaultCode
from chassis.framed_connection import Connection, Kind, head
from chassis.identity import authorise
from chassis.process import Tasks
from chassis.rpc import Caller, Handlers, Server, Stream, StreamChannel
from protos.rpc import Method

OPEN_S = 1.5            # for TCP, TLS and the first frame

_log = structlog.get_logger(__name__)


class FramedNetwork:
    """``StreamNetwork`` over TLS sockets. One per process."""

    def __init__(self, credentials: Credentials) -> None:
        self.revoked = credentials.revoked
        self.dialling = tls_contexts.dialling(credentials.current)
        self._listening = tls_contexts.listening(credentials)
        self._channels: weakref.WeakSet[_Channel] = weakref.WeakSet()
        credentials.observe(self._replace)
        credentials.revoked.observe(self._cut)

    def connect(self, address: str, *, service: str, node: str = "") -> StreamChannel:
        channel = _Channel(self, address, service, node)
        self._channels.add(channel)
        return channel

    async def serve(self, address: str, handlers: Handlers) -> Server:
        """Raises Fault when the address can't be had."""
        server = _Server(handlers, self.revoked)
        host, port = address.rsplit(":", 1)
        try:
            listener = await asyncio.get_running_loop().create_server(
                server.connection, host.strip("[]"), int(port), ssl=self._listening,
                ssl_handshake_timeout=OPEN_S, ssl_shutdown_timeout=tls_contexts.SHUTDOWN_S,
            )
        except OSError as error:
            raise Fault(
                f"can't listen on {address} ({error}): is another process using the port?",
                code=FaultCode.CONFLICT, definite=True,
            ) from error
        server.listening(listener, f"{host}:{listener.sockets[0].getsockname()[1]}")
        return server

    def _replace(self, tls: Tls) -> None:
        self.dialling = tls_contexts.dialling(tls)

    def _cut(self, news: Mapping[str, int]) -> None:
        for channel in list(self._channels):
            if channel.node in news:
                channel.cut()


def _shown_by(connection: Connection) -> tuple[Caller, str]:
    """Who is at the other end, and the common name of who vouched for it. Raises Fault."""
    assert connection.transport is not None, "its handshake is over"
    return tls_contexts.peer(connection.transport)


# ---------------------------------------------------------------- dialling side


class _Channel:
    """Each stream has a connection of its own."""

    def __init__(self, network: FramedNetwork, address: str, service: str, node: str) -> None:
        self.node = node
        self._network = network
        self._address = address
        self._name = dns_names(service, node)[1 if node else 0]
        self._peer = f"{node or service} at {address}"
        self._tasks = Tasks()
        self._streams: set[_ClientStream] = set()

    def stream(self, method: Method[Any, Any]) -> Stream[Any, Any]:
        stream = _ClientStream(method, self._peer, self._streams.discard)
        self._streams.add(stream)
        self._tasks.start(self._open(stream, method), name=f"open a stream to {self._peer}")
        return stream

    async def _open(self, stream: "_ClientStream", method: Method[Any, Any]) -> None:
        host, port = self._address.rsplit(":", 1)
        try:
            async with asyncio.timeout(OPEN_S):
                await self._dial(stream, host.strip("[]"), int(port))
            self._network.revoked.admit(*_shown_by(stream.connection))
        except (OSError, TimeoutError) as error:
            stream.connection.fail(Fault(f"{self._peer} can't be reached ({str(error) or 'no answer in time'})"))
            stream.opened.set()
            return
        except Fault as fault:
            stream.connection.fail(fault)
            stream.opened.set()
            return
        path = method.path.encode()
        stream.connection.write(head(Kind.OPEN, len(path)) + path)
        stream.opened.set()

    async def _dial(self, stream: "_ClientStream", host: str, port: int) -> None:
        """Raises OSError. Names are looked up here: a look-up that is given up inside of uvloop's ``create_connection``
        and fails later has nobody to tell, and is logged as an error."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        for address in addresses[:-1]:
            with contextlib.suppress(OSError):
                await self._connect(stream, address, port)
                return
        await self._connect(stream, addresses[-1], port)

    async def _connect(self, stream: "_ClientStream", address: str, port: int) -> None:
        await asyncio.get_running_loop().create_connection(
            stream.connection_for, address, port, ssl=self._network.dialling, server_hostname=self._name,
        )

    def cut(self) -> None:
        """The peer was revoked. Its successor of the same name is dialled again, and looked at then."""
        for stream in list(self._streams):
            stream.cancel()

    async def close(self) -> None:
        await self._tasks.cancel()
        self.cut()


class _ClientConnection(Connection):
    def frame(self, kind: int, body: bytes) -> None:
        if kind == Kind.REFUSED:
            said = json.loads(body)
            self.fail(Fault(said["message"], code=FaultCode(said["code"]), definite=said["definite"]))
        else:
            super().frame(kind, body)


class _ClientStream:
    def __init__(self, method: Method[Any, Any], peer: str, over: Callable[["_ClientStream"], None]) -> None:
        self.connection = _ClientConnection()
        self.opened = asyncio.Event()
        self._method = method
        self._peer = peer
        self._over = over

    def connection_for(self) -> Connection:
        """The protocol factory."""
        return self.connection

    async def send(self, message: Any) -> None:
        await self._ready()
        try:
            await self.connection.send(message.SerializeToString())
        except Fault as fault:
            raise self._named(fault) from fault

    @property
    def free(self) -> bool:
        return self.opened.is_set() and self.connection.free

    def send_now(self, message: Any) -> None:
        self.connection.send_now(message.SerializeToString())

    async def receive(self) -> Any:
        await self._ready()
        try:
            body = await self.connection.receive()
        except Fault as fault:
            self._over(self)
            raise self._named(fault) from fault
        if body is None:
            self._over(self)
            return None
        return self._method.response.FromString(body)

    async def listen(self, on_message: Callable[[Any], None]) -> None:
        await self._ready()
        parse = self._method.response.FromString
        try:
            await self.connection.listen(lambda body: on_message(parse(body)))
        except Fault as fault:
            raise self._named(fault) from fault
        finally:
            self._over(self)

    async def finish(self) -> None:
        await self._ready()
        self.connection.finish()

    def cancel(self) -> None:
        self.connection.fail(Fault("the stream was cut by this side", code=FaultCode.CANCELLED))
        self.opened.set()
        self._over(self)

    async def _ready(self) -> None:
        if self.connection.fault is None and not self.opened.is_set():
            await self.opened.wait()

    def _named(self, fault: Fault) -> Fault:
        return Fault(f"{self._method.name} at {self._peer}: {fault.message}", code=fault.code, definite=fault.definite)


# ---------------------------------------------------------------- serving side


class _Server:
    def __init__(self, handlers: Handlers, revoked: Revocations) -> None:
        self.address = ""
        self._handlers = handlers
        self._revoked = revoked
        revoked.observe(self._cut)
        self._tasks = Tasks()
        self._connections: set[_ServerConnection] = set()
        self._listener: asyncio.Server | None = None

    def listening(self, listener: asyncio.Server, address: str) -> None:
        self._listener, self.address = listener, address

    def connection(self) -> "_ServerConnection":
        return _ServerConnection(self)

    def made(self, connection: "_ServerConnection") -> None:
        self._connections.add(connection)

    def lost(self, connection: "_ServerConnection") -> None:
        self._connections.discard(connection)

    def open(self, connection: "_ServerConnection", path: str) -> None:
        self._tasks.start(self._serve(connection, path), name=path)

    async def _serve(self, connection: "_ServerConnection", path: str) -> None:
        try:
            caller, issuer = connection.shown = _shown_by(connection)
            self._revoked.admit(caller, issuer)
            handler = self._handlers.by_path.get(path)
            if handler is None:
                raise Fault(f"nothing is served at {path}", code=FaultCode.INVALID, definite=True)
            authorise(path, caller)
            handle: Any = handler.handle
            await handle(_ServerStream(connection, handler.method), caller)
        except Fault as fault:
            connection.refuse(fault)
        else:
            connection.finish()
        finally:
            connection.close()

    def _cut(self, _news: Mapping[str, int]) -> None:
        for connection in list(self._connections):
            try:
                if connection.shown is not None:
                    self._revoked.admit(*connection.shown)
            except Fault as fault:
                connection.cut(fault)

    async def close(self, grace_s: float) -> None:
        assert self._listener is not None
        self._listener.close()
        await self._tasks.settle(grace_s)
        await self._tasks.cancel()
        for connection in list(self._connections):
            connection.fail(Fault("the server closed"))


class _ServerConnection(Connection):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self.shown: tuple[Caller, str] | None = None    # once its stream is open: who dialled, and who vouched
        self._server = server
        self._opened = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.lost(self)

    def frame(self, kind: int, body: bytes) -> None:
        if kind == Kind.OPEN and not self._opened:
            self._opened = True
            self._server.open(self, body.decode("latin-1"))
        elif self._opened:
            super().frame(kind, body)
        elif kind != Kind.PING:
            self.fail(Fault("the peer did not begin with OPEN"))

    def refuse(self, fault: Fault) -> None:
        said = {"code": fault.code.value, "definite": fault.definite, "message": fault.message}
        body = json.dumps(said).encode()
        self.write(head(Kind.REFUSED, len(body)) + body)

    def cut(self, fault: Fault) -> None:
        """Breaks the stream for both sides; what this side wrote goes out."""
        self.refuse(fault)
        self.close()
        self.over(fault)


class _ServerStream:
    def __init__(self, connection: _ServerConnection, method: Method[Any, Any]) -> None:
        self._connection = connection
        self._parse = method.request.FromString

    async def send(self, message: Any) -> None:
        await self._connection.send(message.SerializeToString())

    @property
    def free(self) -> bool:
        return self._connection.free

    def send_now(self, message: Any) -> None:
        self._connection.send_now(message.SerializeToString())

    async def receive(self) -> Any:
        body = await self._connection.receive()
        return None if body is None else self._parse(body)

    async def listen(self, on_message: Callable[[Any], None]) -> None:
        parse = self._parse
        await self._connection.listen(lambda body: on_message(parse(body)))

    async def finish(self) -> None:
        """The stream ends when its handler returns: nothing to do before."""

    def cancel(self) -> None:
        self._connection.cut(Fault("the stream was cut by the serving side", code=FaultCode.CANCELLED))
