"""Calls between services, without a transport.

Owns the shapes that inbound edges (``service.py``) and outbound ones (``peers.py``) are written against:
``chassis.grpc_network`` carries them between processes, ``chassis.memory_network`` within one (tests, simulation).
Every failure of a call is a ``Fault``.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from google.protobuf.message import Message

from chassis.faults import Fault
from protos.rpc import Method

LAST_SEND_S = 1.0  # a peer that doesn't read never lets a send end
BATCH_BYTES = 1024 * 1024   # of messages that are sent as one: well below the 8 MiB that one may have

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Send_contra = TypeVar("Send_contra", contravariant=True)
Receive_co = TypeVar("Receive_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, as its certificate says."""

    service: str
    node: str
    az: str
    host: str
    enrolment: int = 0      # the how manieth of this node: a token each; 0: it never needed one


class Stream(Protocol[Send_contra, Receive_co]):
    """One side of a bidirectional stream. One task sends, one task receives."""

    async def send(self, message: Send_contra) -> None:
        """Waits for flow control. Raises Fault when the stream is broken or the peer has gone."""
        ...

    async def receive(self) -> Receive_co | None:
        """The next message, or None when the peer finished. Raises Fault when the stream broke."""
        ...

    async def finish(self) -> None:
        """This side sends nothing more."""
        ...

    def cancel(self) -> None:
        """Breaks the stream for both sides at once."""
        ...


@runtime_checkable
class Pushing(Protocol[Receive_co]):
    """A stream that can hand over what arrives in the very turn of the event loop in which it does."""

    async def listen(self, on_message: Callable[[Receive_co], None]) -> None:
        """Instead of ``receive``: returns when the peer finished. Raises Fault, and whatever ``on_message`` raises."""
        ...


@runtime_checkable
class Prompt(Protocol[Send_contra]):
    """A stream that can take a message without waiting."""

    @property
    def free(self) -> bool:
        """Whether ``send`` would not wait and not fail now."""
        ...

    def send_now(self, message: Send_contra) -> None:
        """``send`` while the stream is ``free``."""
        ...


class StreamChannel(Protocol):
    """A connection to one peer, made when first needed and made again after a break."""

    def stream(self, method: Method[Request, Response]) -> Stream[Request, Response]:
        """Opens a bidirectional stream. It lives until either side ends it; keepalive finds a dead peer."""
        ...

    async def close(self) -> None: ...


class Channel(StreamChannel, Protocol):
    """A channel that carries calls as well."""

    async def call(self, method: Method[Request, Response], request: Request, *, timeout_s: float) -> Response: ...

    def fetch(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> AsyncIterator[Response]:
        """One request, many responses. ``timeout_s`` is for the whole."""
        ...


class Server(Protocol):
    address: str  # host:port that it is bound to

    async def close(self, grace_s: float) -> None:
        """No new calls; those that run may finish within ``grace_s`` seconds, then they are cancelled."""
        ...


class StreamNetwork(Protocol):
    """One process's way to its peers, for streams. Every ``Network`` is one."""

    def connect(self, address: str, *, service: str, node: str = "") -> StreamChannel:
        """A channel to a peer whose certificate must be of ``service`` (and of ``node``, where one is given)."""
        ...

    async def serve(self, address: str, handlers: "Handlers") -> Server:
        """Serves at host:port (port 0: any free one). Raises Fault when the address can't be had."""
        ...


class Network(StreamNetwork, Protocol):
    """One process's way to its peers."""

    def connect(self, address: str, *, service: str, node: str = "") -> Channel: ...

    def revoke(self, nodes: Mapping[str, int]) -> None:
        """Refuses these nodes (up to the number of an enrolment) as callers from now on and cuts their streams."""
        ...


UnaryHandler = Callable[[Any, Caller], Awaitable[Any]]
StreamHandler = Callable[[Any, Caller], Awaitable[None]]
FetchHandler = Callable[[Any, Caller], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Handler:
    method: Method[Any, Any]
    handle: UnaryHandler | StreamHandler | FetchHandler


class Handlers:
    """What one process serves. A handler raises Fault to refuse; anything else it raises is a bug and is logged."""

    def __init__(self) -> None:
        self.by_path: dict[str, Handler] = {}

    def unary(
        self, method: Method[Request, Response], handle: Callable[[Request, Caller], Awaitable[Response]]
    ) -> None:
        assert not method.client_streams and not method.server_streams, method.path
        self._add(method, handle)

    def bidi(
        self,
        method: Method[Request, Response],
        handle: Callable[[Stream[Response, Request], Caller], Awaitable[None]],
    ) -> None:
        """The stream ends when ``handle`` returns."""
        assert method.client_streams and method.server_streams, method.path
        self._add(method, handle)

    def fetch(
        self, method: Method[Request, Response], handle: Callable[[Request, Caller], AsyncIterator[Response]]
    ) -> None:
        assert method.server_streams and not method.client_streams, method.path
        self._add(method, handle)

    def _add(self, method: Method[Any, Any], handle: Any) -> None:
        assert method.path not in self.by_path, f"{method.path} is handled twice"
        self.by_path[method.path] = Handler(method, handle)


class Outbox(Generic[Request]):
    """The sending half of a stream that many tasks write to without waiting.

    ``put`` never blocks. One writer task sends; what is put while a send is on its way goes into the next one, so that
    a busy stream writes once per turn of the event loop. What somebody waits for is flushed: sent in this very turn.
    ``combine`` makes one message of many, of about ``BATCH_BYTES`` (None: one by one). Past ``limit`` waiting messages
    the stream is cut: a peer that doesn't read must not grow this process.
    """

    def __init__(
        self,
        stream: Stream[Request, Any],
        *,
        combine: Callable[[list[Any]], Request] | None = None,
        limit: int = 10_000,
    ) -> None:
        self._stream = stream
        self._combine = combine
        self._limit = limit
        self._waiting: deque[Any] = deque()
        self._prompt = stream if isinstance(stream, Prompt) else None
        self._wake = asyncio.Event()
        self._sending = False
        self._closing = False

    def put(self, message: Any) -> None:
        self.hold(message)
        self._wake.set()

    def hold(self, message: Any) -> None:
        """``put`` by somebody who flushes in this very turn."""
        if len(self._waiting) >= self._limit:
            self._closing = True
            self._stream.cancel()
            return
        self._waiting.append(message)

    def flush(self) -> None:
        """Sends what was put, as far as the stream takes it now; the writer task sends the rest."""
        prompt = self._prompt
        if prompt is not None and not self._sending:
            while prompt.free:
                message = self._next()
                if message is None:
                    return
                prompt.send_now(message)
        self._wake.set()

    def close(self) -> None:
        """Lets ``run`` end once what waits is sent."""
        self._closing = True
        self._wake.set()

    def abandon(self) -> None:
        """Drops what waits; ``run`` ends after the send that is on its way."""
        self._waiting.clear()
        self.close()

    async def run(self) -> None:
        """Sends until closed. Raises Fault when the stream breaks."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (message := self._next()) is not None:
                self._sending = True
                await self._stream.send(message)
                self._sending = False
            if self._closing:
                return

    def _next(self) -> Request | None:
        """The next message, taken out of what waits."""
        if not self._waiting:
            return None
        if self._combine is None:
            message: Request = self._waiting.popleft()
            return message
        return self._combine(self._batch())

    def _batch(self) -> list[Any]:
        batch = []
        size = 0
        while self._waiting and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += batch[-1].ByteSize()
        return batch


async def converse(
    stream: Stream[Request, Response], outbox: Outbox[Request], on_message: Callable[[Response], None]
) -> None:
    """Runs both halves of a stream: ``outbox`` sends, ``on_message`` gets what arrives, in order.

    Returns when the peer finished. Raises Fault when the stream broke in either direction.
    """
    writer = asyncio.get_running_loop().create_task(_write(stream, outbox))
    try:
        await listen(stream, on_message)
    finally:
        # gRPC can't send a call's status while a message of it is stuck midway: the last send gets its time.
        outbox.abandon()
        try:
            await asyncio.wait([writer], timeout=LAST_SEND_S)
        finally:
            writer.cancel()
            await asyncio.wait([writer])
        if not writer.cancelled():
            writer.result()     # a bug of the sending half is one, whatever the reading half makes of its end


async def listen(stream: Stream[Any, Response], on_message: Callable[[Response], None]) -> None:
    """Calls ``on_message`` with what arrives, in order. Returns when the peer finished. Raises Fault."""
    if isinstance(stream, Pushing):
        await stream.listen(on_message)
    else:
        while (message := await stream.receive()) is not None:
            on_message(message)


async def _write(stream: Stream[Request, Any], outbox: Outbox[Request]) -> None:
    try:
        await outbox.run()
    except Exception as error:
        stream.cancel()  # the reading half ends, and reports the fault that it gets
        if not isinstance(error, Fault):
            raise
