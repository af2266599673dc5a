"""chassis.rpc over gRPC with mutual TLS.

Owns every gRPC setting and the one table between faults and gRPC's status codes. Measured ground for the settings:
``keepalive_timeout_ms`` alone never notices a hung peer; ``ping_timeout_ms`` does, within 0.5 to 1.5 s. A server must
tolerate such pings, or it ends idle streams with too_many_pings.
"""

import chassis.grpc_environment  # noqa: F401  # before grpc, which reads it once

# isort: split
import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from chassis.certificates import Tls, dns_names
from chassis.faults import Fault, FaultCode
from chassis.identity import authorise, caller_of
from chassis.rpc import Caller, Channel, Handler, Handlers, Network, Server, Stream
from protos.rpc import Method

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
_COMMON_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 500),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.enable_http_proxy", 0),
]
_CLIENT_OPTIONS: list[tuple[str, int | str]] = [
    *_COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # channels of several networks in one process (tests) must not be shared
]
_SERVER_OPTIONS: list[tuple[str, int | str]] = [
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # or two servers silently share a port
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
]

_STATUS: dict[FaultCode, grpc.StatusCode] = {
    FaultCode.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    FaultCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    FaultCode.CONFLICT: grpc.StatusCode.ABORTED,
    FaultCode.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    FaultCode.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FaultCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    FaultCode.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    FaultCode.INTERNAL: grpc.StatusCode.INTERNAL,
    FaultCode.CANCELLED: grpc.StatusCode.CANCELLED,
}
_CODE: dict[grpc.StatusCode, FaultCode] = {status: code for code, status in _STATUS.items()} | {
    grpc.StatusCode.UNIMPLEMENTED: FaultCode.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: FaultCode.DENIED,
    grpc.StatusCode.UNKNOWN: FaultCode.INTERNAL,
}
_DEFINITE = "labda-definite"  # trailing metadata: the peer says that the work certainly did not happen

_log = structlog.get_logger(__name__)


class GrpcNetwork:
    """``Network`` over gRPC. One per process, on the process's one event loop."""

    def __init__(self, tls: Tls) -> None:
        self._client_credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
        self._server_credentials = grpc.ssl_server_credentials(
            [(tls.key, tls.certificate)], root_certificates=tls.authority, require_client_auth=True
        )

    def connect(self, address: str, *, service: str, node: str = "") -> Channel:
        name = dns_names(service, node)[1 if node else 0]
        options = [*_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", name)]
        channel = grpc.aio.secure_channel(address, self._client_credentials, options=options)
        return _GrpcChannel(channel, f"{node or service} at {address}")

    async def serve(self, address: str, handlers: Handlers) -> Server:
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        health = _Health()
        server.add_generic_rpc_handlers((_Dispatcher(handlers), health))
        host = address.rsplit(":", 1)[0]
        try:
            port = server.add_secure_port(address, self._server_credentials)
        except RuntimeError as error:
            await server.stop(None)
            raise Fault(
                f"can't listen on {address} ({error}): is another process using the port?",
                code=FaultCode.CONFLICT,
                definite=True,
            ) from error
        await server.start()
        return _GrpcServer(server, f"{host}:{port}", health)


# ---------------------------------------------------------------- dialling side


class _GrpcChannel:
    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self._channel = channel
        self._peer = peer
        self._calls: dict[str, Any] = {}

    async def call(self, method: Method[Request, Response], request: Request, *, timeout_s: float) -> Response:
        call = self._callable(method, self._channel.unary_unary)
        try:
            response: Response = await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _fault(error, method, self._peer) from error
        return response

    def stream(self, method: Method[Request, Response]) -> Stream[Request, Response]:
        return _ClientStream(self._callable(method, self._channel.stream_stream)(), method, self._peer)

    async def fetch(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> AsyncIterator[Response]:
        call = self._callable(method, self._channel.unary_stream)(request, timeout=timeout_s)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _fault(error, method, self._peer) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    def _callable(self, method: Method[Any, Any], make: Any) -> Any:
        call = self._calls.get(method.path)
        if call is None:
            call = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._calls[method.path] = call
        return call


class _ClientStream(Generic[Request, Response]):
    def __init__(self, call: Any, method: Method[Request, Response], peer: str) -> None:
        self._call = call
        self._method = method
        self._peer = peer

    async def send(self, message: Request) -> None:
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise _fault(error, self._method, self._peer) from error
        except asyncio.InvalidStateError as error:  # the call is over: its status says why
            raise await self._over() from error

    async def receive(self) -> Response | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _fault(error, self._method, self._peer) from error
        except asyncio.InvalidStateError as error:
            raise await self._over() from error
        if message is grpc.aio.EOF:
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await self._over()
            return None
        received: Response = message
        return received

    async def finish(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._over() from error

    def cancel(self) -> None:
        self._call.cancel()

    async def _over(self) -> Fault:
        status = await self._call.code()
        text = await self._call.details()
        definite = _is_definite(await self._call.trailing_metadata())
        return _fault_of(status, text, definite, self._method, self._peer)


def _fault(error: grpc.aio.AioRpcError, method: Method[Any, Any], peer: str) -> Fault:
    return _fault_of(error.code(), error.details(), _is_definite(error.trailing_metadata()), method, peer)


def _fault_of(
    status: grpc.StatusCode, text: str | None, definite: bool, method: Method[Any, Any], peer: str
) -> Fault:
    code = _CODE.get(status, FaultCode.UNAVAILABLE)
    return Fault(f"{method.name} at {peer}: {text or status.name.lower()}", code=code, definite=definite)


def _is_definite(metadata: Any) -> bool:
    return any(key == _DEFINITE for key, _ in metadata or ())


# ---------------------------------------------------------------- serving side


class _Dispatcher(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds a path's handler and wraps it: caller's identity, the table of who may call what, faults as statuses."""

    def __init__(self, handlers: Handlers) -> None:
        self._rpc: dict[str, Any] = {path: _rpc_handler(handler) for path, handler in handlers.by_path.items()}

    def service(self, details: Any) -> Any:
        return self._rpc.get(details.method)


def _rpc_handler(handler: Handler) -> Any:
    method = handler.method
    handle: Any = handler.handle

    async def unary(request: Any, context: Any) -> Any:
        try:
            return await handle(request, _caller(context, method.path))
        except Fault as fault:
            await _abort(context, fault)

    async def fetch(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in handle(request, _caller(context, method.path)):
                yield response
        except Fault as fault:
            await _abort(context, fault)

    async def bidi(_requests: Any, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        stream = _ServerStream(context, task)
        try:
            await handle(stream, _caller(context, method.path))
        except Fault as fault:
            await _abort(context, fault)
        except asyncio.CancelledError:
            if not stream.cut:
                raise  # the peer or the server ended the call
            task.uncancel()
            await _abort(context, Fault("the stream was cut by the serving side", code=FaultCode.CANCELLED))

    codecs = {
        "request_deserializer": method.request.FromString,
        "response_serializer": method.response.SerializeToString,
    }
    if method.client_streams:
        return grpc.stream_stream_rpc_method_handler(bidi, **codecs)
    if method.server_streams:
        return grpc.unary_stream_rpc_method_handler(fetch, **codecs)
    return grpc.unary_unary_rpc_method_handler(unary, **codecs)


def _caller(context: Any, path: str) -> Caller:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    uri = next((name.decode() for name in names if name.startswith(b"labda://")), "")
    caller = caller_of(uri)
    authorise(path, caller)
    return caller


async def _abort(context: Any, fault: Fault) -> None:
    if context.done():
        return
    trailing = ((_DEFINITE, "1"),) if fault.definite else ()
    await context.abort(_STATUS[fault.code], fault.message, trailing)


class _ServerStream:
    def __init__(self, context: Any, task: "asyncio.Task[Any]") -> None:
        self._context = context
        self._task = task
        self.cut = False

    async def send(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise Fault(f"the peer's stream broke while sending ({type(error).__name__})") from error

    async def receive(self) -> Any:
        try:
            message = await self._context.read()
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise Fault(f"the peer's stream broke while receiving ({type(error).__name__})") from error
        return None if message is grpc.aio.EOF else message

    async def finish(self) -> None:
        """The stream ends when its handler returns: nothing to do before."""

    def cancel(self) -> None:
        if not self.cut:
            self.cut = True
            self._task.cancel()  # a servicer's context can't be cancelled: the handler's task is, and ends the call


class _Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """gRPC health (grpc.health.v1): serving until the server drains."""

    def __init__(self) -> None:
        self.status = health_pb2.HealthCheckResponse.SERVING
        self._changed = asyncio.Event()
        codecs = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        self._rpc = {
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(self._check, **codecs),
            "/grpc.health.v1.Health/Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codecs),
        }

    def service(self, details: Any) -> Any:
        return self._rpc.get(details.method)

    def drain(self) -> None:
        self.status = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed.set()

    async def _check(self, _request: Any, context: Any) -> Any:
        try:
            _caller(context, "/grpc.health.v1.Health/Check")
        except Fault as fault:
            await _abort(context, fault)
        return health_pb2.HealthCheckResponse(status=self.status)

    async def _watch(self, _request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            _caller(context, "/grpc.health.v1.Health/Watch")
        except Fault as fault:
            await _abort(context, fault)
        yield health_pb2.HealthCheckResponse(status=self.status)
        await self._changed.wait()
        yield health_pb2.HealthCheckResponse(status=self.status)


class _GrpcServer:
    def __init__(self, server: grpc.aio.Server, address: str, health: _Health) -> None:
        self._server = server  # grpc.aio stops a server that nothing refers to
        self.address = address
        self._health = health

    async def close(self, grace_s: float) -> None:
        self._health.drain()
        await self._server.stop(grace_s)


async def is_serving(network: Network, address: str, *, service: str, node: str, timeout_s: float) -> bool:
    """Asks a process's gRPC health. False when it drains or can't be reached in time."""
    channel = network.connect(address, service=service, node=node)
    try:
        response = await channel.call(HEALTH_CHECK, health_pb2.HealthCheckRequest(), timeout_s=timeout_s)
    except Fault as fault:
        _log.debug("health", node=node, address=address, fault=fault.message)
        return False
    finally:
        await channel.close()
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


HEALTH_CHECK: Method[Any, Any] = Method(
    path="/grpc.health.v1.Health/Check",
    request=health_pb2.HealthCheckRequest,
    response=health_pb2.HealthCheckResponse,
    client_streams=False,
    server_streams=False,
)
