"""The serving side of the gRPC network: who calls, whether they may, and what they are answered.

Owns the way of each call from its certificate to its handler, the streams that are open, and gRPC health. Refuses to
know listeners and gRPC's settings (``chassis.grpc_network``).
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2

from chassis.certificates import common_name
from chassis.credentials import Revocations
from chassis.faults import Fault, FaultCode
from chassis.grpc_status import abort
from chassis.identity import authorise, caller_of
from chassis.rpc import LAST_SEND_S, Caller, Handler, Handlers


class Callers:
    """Who calls one network's servers. Calls that go on for long are open here, and end when their node is revoked."""

    def __init__(self, revoked: Revocations) -> None:
        self._revoked = revoked
        self._open: dict[_Running, tuple[Caller, bytes]] = {}   # with its certificate, PEM
        revoked.observe(self._cut)

    def admitted(self, context: Any, path: str, running: "_Running | None" = None) -> Caller:
        """By its certificate. ``running``: a call that goes on for long, until ``over``.

        Raises Fault (denied) for nobody's certificate, a revoked one, and one that doesn't open ``path``.
        """
        shown = context.auth_context()
        names = shown.get("x509_subject_alternative_name", ())
        caller = caller_of(next((name.decode() for name in names if name.startswith(b"labda://")), ""))
        pem = shown["x509_pem_cert"][0]
        self._admit(caller, pem)
        authorise(path, caller)
        if running is not None:
            self._open[running] = caller, pem
        return caller

    def over(self, running: "_Running") -> None:
        self._open.pop(running, None)

    def _admit(self, caller: Caller, pem: bytes) -> None:
        if self._revoked.numbers or caller.service == "operator":   # else there is nothing to look at
            self._revoked.admit(caller, _issuer(pem))

    def _cut(self, _news: Mapping[str, int]) -> None:
        for running, (caller, pem) in list(self._open.items()):
            try:
                self._admit(caller, pem)
            except Fault as fault:
                running.cut(fault)


@functools.lru_cache(maxsize=1024)      # a region's certificates, and those before them
def _issuer(pem: bytes) -> str:
    return common_name(x509.load_pem_x509_certificate(pem).issuer)


class _Running:
    """A call that this side may end: a servicer's context can't be cancelled, its task is, and ends the call.

    gRPC takes no status while a message is on its way: that one gets its time, or the peer isn't told why.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task of its own"
        self.task = task
        self.fault: Fault | None = None     # why it was cut
        self._sending = 0
        self._ended = False

    def cut(self, fault: Fault) -> None:
        if self.fault is None:
            self.fault = fault
            if self._sending:
                self.task.get_loop().call_later(LAST_SEND_S, self._end)
            else:
                self._end()

    def begin_send(self) -> None:
        self._sending += 1

    def end_send(self) -> None:
        self._sending -= 1
        if self.fault is not None and not self._sending:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.task.cancel()


class Dispatcher(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds a path's handler and wraps it: caller's identity, the table of who may call what, faults as statuses."""

    def __init__(self, handlers: Handlers, callers: Callers) -> None:
        self._rpc: dict[str, Any] = {
            path: _rpc_handler(handler, callers) for path, handler in handlers.by_path.items()
        }

    def service(self, details: Any) -> Any:
        return self._rpc.get(details.method)


def _rpc_handler(handler: Handler, callers: Callers) -> Any:
    method, served = handler.method, _Served(handler, callers)
    codecs = {
        "request_deserializer": method.request.FromString,
        "response_serializer": method.response.SerializeToString,
    }
    if method.client_streams:
        return grpc.stream_stream_rpc_method_handler(served.bidi, **codecs)
    if method.server_streams:
        return grpc.unary_stream_rpc_method_handler(served.fetch, **codecs)
    return grpc.unary_unary_rpc_method_handler(served.unary, **codecs)


class _Served:
    """One method as gRPC calls it."""

    def __init__(self, handler: Handler, callers: Callers) -> None:
        self._path = handler.method.path
        self._handle: Any = handler.handle
        self._callers = callers

    async def unary(self, request: Any, context: Any) -> Any:
        try:
            return await self._handle(request, self._callers.admitted(context, self._path))
        except Fault as fault:
            await abort(context, fault)

    async def fetch(self, request: Any, context: Any) -> None:
        async def send_all(stream: _ServerStream, caller: Caller) -> None:
            async for response in self._handle(request, caller):
                await stream.send(response)

        await self._serve(send_all, context)

    async def bidi(self, _requests: Any, context: Any) -> None:
        await self._serve(self._handle, context)

    async def _serve(self, handle: Any, context: Any) -> None:
        running = _Running()
        try:
            caller = self._callers.admitted(context, self._path, running)
            await handle(_ServerStream(context, running), caller)
        except Fault as fault:
            await abort(context, fault)
        except asyncio.CancelledError:
            if running.fault is None:
                raise  # the peer or the server ended the call
            running.task.uncancel()
            await abort(context, running.fault)
        finally:
            self._callers.over(running)


class _ServerStream:
    def __init__(self, context: Any, running: _Running) -> None:
        self._context = context
        self._running = running

    async def send(self, message: Any) -> None:
        self._running.begin_send()
        try:
            await self._context.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise Fault(f"the peer's stream broke while sending ({type(error).__name__})") from error
        finally:
            self._running.end_send()

    async def receive(self) -> Any:
        try:
            message = await self._context.read()
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise Fault(f"the peer's stream broke while receiving ({type(error).__name__})") from error
        return None if message is grpc.aio.EOF else message

    async def finish(self) -> None:
        """The stream ends when its handler returns: nothing to do before."""

    def cancel(self) -> None:
        self._running.cut(Fault("the stream was cut by the serving side", code=FaultCode.CANCELLED))


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """gRPC health (grpc.health.v1): serving until the server drains."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
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

    def local(self) -> grpc.GenericRpcHandler:
        """The same answer without a certificate: who reaches the socket in question is the file system's to say."""

        async def check(_request: Any, _context: Any) -> Any:
            return health_pb2.HealthCheckResponse(status=self.status)

        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
            "Check": grpc.unary_unary_rpc_method_handler(
                check, request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            )
        })

    async def _check(self, _request: Any, context: Any) -> Any:
        try:
            self._callers.admitted(context, "/grpc.health.v1.Health/Check")
        except Fault as fault:
            await abort(context, fault)
        return health_pb2.HealthCheckResponse(status=self.status)

    async def _watch(self, _request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            self._callers.admitted(context, "/grpc.health.v1.Health/Watch")
        except Fault as fault:
            await abort(context, fault)
        yield health_pb2.HealthCheckResponse(status=self.status)
        await self._changed.wait()
        yield health_pb2.HealthCheckResponse(status=self.status)


