"""Calls whose caller has no certificate (yet): gRPC over TLS that authenticates the serving side only.

Owns the listener's bounds, which are narrow: anybody who reaches it may knock. A handler gets the peer's address
instead of a caller. Everything else between processes goes over ``chassis.grpc_network``.
"""

import chassis.grpc_environment  # noqa: F401  # before grpc, which reads it once

# isort: split
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from chassis.certificates import Tls, dns_names
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.grpc_status import abort, fault_of_call
from protos.rpc import Method

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

MESSAGE_BYTES_MAX = 64 * 1024
CALLS_MAX = 64              # at a time, of all peers
_IDLE_MS = 10_000
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS: list[tuple[str, int | str]] = [
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_concurrent_streams", 4),
]

OpenHandler = Callable[[Any, str], Awaitable[Any]]


class OpenServer:
    """``serve``, then ``close``."""

    def __init__(self, credentials: Credentials) -> None:
        """``credentials``: what the listener shows; the newest at each handshake."""
        self._credentials = credentials
        self._shown = credentials.current
        self._rpc: dict[str, Any] = {}
        self._server: Any = None

    def unary(
        self, method: Method[Request, Response], handle: Callable[[Request, str], Awaitable[Response]]
    ) -> None:
        """``handle`` gets the request and the peer's address as gRPC writes it, such as ``ipv4:10.0.0.1:4711``."""
        self._rpc[method.path] = _rpc_handler(method, handle)

    def service(self, details: Any) -> Any:
        """``grpc.GenericRpcHandler``."""
        return self._rpc.get(details.method)

    async def serve(self, address: str) -> str:
        """At host:port (port 0: any free one); returns what was bound. Raises Fault."""
        # Nobody's certificate is asked for: one that has expired would end the handshake.
        secrets = grpc.dynamic_ssl_server_credentials(
            _configuration(self._shown), self._newer, require_client_authentication=False
        )
        server = grpc.aio.server(options=_SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        server.add_generic_rpc_handlers((self,))
        try:
            port = server.add_secure_port(address, secrets)
        except RuntimeError as error:
            await server.stop(None)
            raise Fault(
                f"can't listen on {address} ({error}): is another process using the port?",
                code=FaultCode.CONFLICT, definite=True,
            ) from error
        await server.start()
        self._server = server
        return f"{address.rsplit(':', 1)[0]}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(0.5)

    def _newer(self) -> Any:
        """gRPC asks before each handshake. None: as before."""
        if self._credentials.current is self._shown:
            return None
        self._shown = self._credentials.current
        return _configuration(self._shown)


def _configuration(tls: Tls) -> Any:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)])


async def call(
    address: str, service: str, method: Method[Request, Response], request: Request, *, roots: bytes, timeout_s: float
) -> Response:
    """One question to a process of ``service`` that one of ``roots`` (PEM) vouches for. Raises Fault."""
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", dns_names(service, "")[0]),
               ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options) as channel:
        ask = channel.unary_unary(
            method.path, request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            response: Response = await ask(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise fault_of_call(error, method, f"{service} at {address}") from error
    return response


def _rpc_handler(method: Method[Any, Any], handle: OpenHandler) -> Any:
    async def unary(request: Any, context: Any) -> Any:
        try:
            return await handle(request, context.peer())
        except Fault as fault:
            await abort(context, fault)

    return grpc.unary_unary_rpc_method_handler(
        unary, request_deserializer=method.request.FromString, response_serializer=method.response.SerializeToString
    )
