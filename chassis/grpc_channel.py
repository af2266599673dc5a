"""The dialling side of the gRPC network: channels that follow a rotated certificate, their calls and streams.

Owns which connection a call goes by. One that was made with an older certificate carries what goes over it to its end
and is closed then; whatever begins goes by a new one, so that no handshake shows the older certificate. Refuses to know
gRPC's settings (``chassis.grpc_network``).
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from chassis.certificates import Tls
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.grpc_status import fault_from, fault_of_call, is_definite
from chassis.process import Tasks
from chassis.rpc import Stream
from protos.rpc import Method

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Options = list[tuple[str, int | str]]
Metadata = tuple[tuple[str, str], ...]


class Dialling:
    """What a network's channels have in common: the newest certificate, and word of revoked nodes."""

    def __init__(self, credentials: Credentials) -> None:
        self._adopt(credentials.current)
        self._channels: weakref.WeakSet[GrpcChannel] = weakref.WeakSet()
        credentials.observe(self._adopt)
        credentials.revoked.observe(self._cut)

    def channel(
        self, address: str, options: Options, *, node: str, peer: str, metadata: Metadata | None = None
    ) -> "GrpcChannel":
        """``node``: the peer that is meant; empty: any. ``peer``: what faults call it. ``metadata``: of every call."""
        channel = GrpcChannel(self, address, options, node=node, peer=peer, metadata=metadata)
        self._channels.add(channel)
        return channel

    def _adopt(self, tls: Tls) -> None:
        self.newest = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)

    def _cut(self, news: Mapping[str, int]) -> None:
        for channel in list(self._channels):
            if channel.node in news:
                channel.cut()


class _Connection:
    """One channel of gRPC's, made with one certificate, and how many calls and streams go over it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials, options: Options) -> None:
        self.credentials = credentials
        self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        self.running = 0
        self._calls: dict[str, Any] = {}

    def callable(self, method: Method[Any, Any], make: Any) -> Any:
        call = self._calls.get(method.path)
        if call is None:
            call = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._calls[method.path] = call
        return call


class GrpcChannel:
    """``Channel``."""

    def __init__(
        self, dialling: Dialling, address: str, options: Options, *, node: str, peer: str, metadata: Metadata | None
    ) -> None:
        self.node = node
        self._metadata = metadata
        self._dialling = dialling
        self._address = address
        self._options = options
        self._peer = peer
        self._newest = _Connection(address, dialling.newest, options)
        self._older: set[_Connection] = set()
        self._streams: set[_ClientStream[Any, Any]] = set()
        self._tasks = Tasks()

    async def call(self, method: Method[Request, Response], request: Request, *, timeout_s: float) -> Response:
        connection = self._begin()
        call = connection.callable(method, connection.channel.unary_unary)
        try:
            with _told_as_faults(method, self._peer):
                response: Response = await call(request, timeout=timeout_s, metadata=self._metadata)
        finally:
            self._end(connection)
        return response

    def stream(self, method: Method[Request, Response]) -> Stream[Request, Response]:
        connection = self._begin()
        call = connection.callable(method, connection.channel.stream_stream)(metadata=self._metadata)

        def over(stream: _ClientStream[Request, Response]) -> None:
            self._streams.discard(stream)
            self._end(connection)

        # Not as the call's callback: the two would hold each other, and the call its connection, until collected.
        stream: _ClientStream[Request, Response] = _ClientStream(call, method, self._peer, over)
        self._streams.add(stream)
        return stream

    async def fetch(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> AsyncIterator[Response]:
        connection = self._begin()
        call = connection.callable(method, connection.channel.unary_stream)(
            request, timeout=timeout_s, metadata=self._metadata
        )
        try:
            with _told_as_faults(method, self._peer):
                async for response in call:
                    yield response
        finally:
            call.cancel()
            self._end(connection)

    def cut(self) -> None:
        """The peer was revoked: its streams end. A successor of the same name may be dialled."""
        for stream in list(self._streams):
            stream.cancel()

    async def close(self) -> None:
        await self._tasks.cancel()
        connections = (self._newest, *self._older)
        self._older.clear()
        for connection in connections:
            await connection.channel.close()

    def _begin(self) -> _Connection:
        connection = self._newest
        if connection.credentials is not self._dialling.newest:
            self._older.add(connection)
            self._leave(connection)
            connection = self._newest = _Connection(self._address, self._dialling.newest, self._options)
        connection.running += 1
        return connection

    def _end(self, connection: _Connection) -> None:
        connection.running -= 1
        if connection is not self._newest:
            self._leave(connection)

    def _leave(self, older: _Connection) -> None:
        if not older.running and older in self._older:
            self._tasks.start(self._close(older), name=f"close a connection to {self._peer}")

    async def _close(self, older: _Connection) -> None:
        await older.channel.close()
        self._older.discard(older)


class _ClientStream(Generic[Request, Response]):
    """Is to be received from to its end, or cancelled: ``over`` is called then, once."""

    def __init__(
        self, call: Any, method: Method[Request, Response], peer: str,
        over: "Callable[[_ClientStream[Request, Response]], None]",
    ) -> None:
        self._call = call
        self._method = method
        self._peer = peer
        self._on_over = over
        self._is_over = False

    async def send(self, message: Request) -> None:
        try:
            with _told_as_faults(self._method, self._peer):
                await self._call.write(message)
        except asyncio.InvalidStateError as error:  # the call is over: its status says why
            raise await self._fault() from error

    async def receive(self) -> Response | None:
        try:
            message = await self._read()
        except Fault:
            self._over()
            raise
        if message is None:
            self._over()
        return message

    async def _read(self) -> Response | None:
        try:
            with _told_as_faults(self._method, self._peer):
                message = await self._call.read()
        except asyncio.InvalidStateError as error:
            raise await self._fault() from error
        if message is grpc.aio.EOF:
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await self._fault()
            return None
        received: Response = message
        return received

    async def finish(self) -> None:
        try:
            with _told_as_faults(self._method, self._peer):
                await self._call.done_writing()
        except asyncio.InvalidStateError as error:
            raise await self._fault() from error

    def cancel(self) -> None:
        self._call.cancel()
        self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._on_over(self)

    async def _fault(self) -> Fault:
        status = await self._call.code()
        text = await self._call.details()
        definite = is_definite(await self._call.trailing_metadata())
        return fault_from(status, text, definite, self._method, self._peer)


@contextlib.contextmanager
def _told_as_faults(method: Method[Any, Any], peer: str) -> Iterator[None]:
    """grpc.aio raises CancelledError also to who uses a call that this side cut: taken for a cancellation, it would end
    the task that is to dial again, and nobody would hear of it. And it keeps for itself a cancellation that comes while
    a call begins: the task would go on, and whoever waits for its end would wait for ever."""
    before = _cancellations()
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if _cancellations() > before:
            raise asyncio.CancelledError from error
        raise fault_of_call(error, method, peer) from error
    except asyncio.CancelledError as error:
        if _cancellations():
            raise   # this very task is to end
        raise Fault(f"{method.name} at {peer}: cut by this side", code=FaultCode.CANCELLED) from error
    if _cancellations() > before:
        raise asyncio.CancelledError


def _cancellations() -> int:
    """How often this task was asked to end."""
    task = asyncio.current_task()
    assert task is not None, "a call is made by a coroutine"
    return task.cancelling()
