"""chassis.rpc over gRPC with mutual TLS.

Owns every gRPC setting and the listeners, which show the newest certificate at each handshake; what is connected goes
on. What is dialled is ``grpc_channel.py``'s, what is served ``grpc_server.py``'s. Measured ground for the settings:
``keepalive_timeout_ms`` alone never notices a hung peer; ``ping_timeout_ms`` does, within a second after the
keepalive's time. A server must tolerate such pings, or it ends idle streams with too_many_pings.
"""

import chassis.grpc_environment  # noqa: F401  # before grpc, which reads it once

# isort: split
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from chassis.certificates import Tls, dns_names
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.grpc_channel import Dialling
from chassis.grpc_server import Callers, Dispatcher, Health
from chassis.rpc import Channel, Handlers, Network, Server
from protos.rpc import Method

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
_COMMON_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.enable_http_proxy", 0),
    # Windows of a fixed size: to fit them to the path, it is probed with a ping for nearly every message of a quiet
    # stream, which costs both ends more than the message.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024 * 1024),
]
# Rare: a process that hangs is missed by its heartbeats, of which the region's view speaks (on streams of invokes by
# ``framed_connection.PING_S``), and what is sent and not acknowledged ends a connection within the keepalive's timeout.
# Pings find the rest. Each time that one is due, sent or not, gRPC's pool of four threads looks for more work a dozen
# times: with one each second or each 5 s, a region at rest took a sixth more CPU time (docs/decisions/0034).
KEEPALIVE_MS = 20_000
_CLIENT_OPTIONS: list[tuple[str, int | str]] = [
    *_COMMON_OPTIONS,
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 500),  # 30 s, else: a container that is back has another address
    ("grpc.use_local_subchannel_pool", 1),  # channels of several networks in one process (tests) must not be shared
]
# Servers that aren't ours answer longer than our messages are, and end connections that ping without calls.
_OURS_ONLY = {
    "grpc.max_receive_message_length", "grpc.keepalive_permit_without_calls", "grpc.http2.max_pings_without_data",
}
_FOREIGN_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.keepalive_time_ms", 2000),
]
# Who serves learns of a silent client by what it no longer says; this only ends what nobody missed.
_SERVER_OPTIONS: list[tuple[str, int | str]] = [
    *_COMMON_OPTIONS,
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.so_reuseport", 0),  # or two servers silently share a port
    ("grpc.server_handshake_timeout_ms", 5000),  # two minutes, else
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
]

_log = structlog.get_logger(__name__)


class GrpcNetwork:
    """``Network`` over gRPC. One per process, on the process's one event loop."""

    def __init__(
        self, credentials: Credentials, *, resolve: Callable[[str], str] | None = None, health_socket: str = ""
    ) -> None:
        """``resolve``: from registered addresses to ones that this process reaches, where they differ.

        ``health_socket``: a Unix socket at which gRPC health, and nothing else, is asked without a certificate.
        """
        self._resolve = resolve
        self._health_socket = health_socket
        self._credentials = credentials
        self._dialling = Dialling(credentials)
        self._callers = Callers(credentials.revoked)

    def revoke(self, nodes: Mapping[str, int]) -> None:
        self._credentials.revoked.add(nodes)

    def connect(self, address: str, *, service: str, node: str = "") -> Channel:
        name = dns_names(service, node)[1 if node else 0]
        options = [
            *_CLIENT_OPTIONS, ("grpc.keepalive_time_ms", KEEPALIVE_MS), ("grpc.ssl_target_name_override", name),
        ]
        reached = self._resolve(address) if self._resolve is not None else address
        return self._dialling.channel(reached, options, node=node, peer=f"{node or service} at {address}")

    async def serve(self, address: str, handlers: Handlers) -> Server:
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        health, shown = Health(self._callers), _Shown(self._credentials)
        server.add_generic_rpc_handlers((Dispatcher(handlers, self._callers), health))
        host = address.rsplit(":", 1)[0]
        try:
            port = server.add_secure_port(address, shown.server_credentials)
        except RuntimeError as error:
            await server.stop(None)
            raise Fault(
                f"can't listen on {address} ({error}): is another process using the port?",
                code=FaultCode.CONFLICT,
                definite=True,
            ) from error
        await server.start()
        inside = await _serve_health(self._health_socket, health) if self._health_socket else None
        return _GrpcServer(server, f"{host}:{port}", health, shown, inside)


def connect_foreign(address: str, tls: Tls, *, name: str, metadata: tuple[tuple[str, str], ...] = ()) -> Channel:
    """A channel to a server that isn't one of ours; its certificate must be good for the host ``name``.

    ``metadata`` goes with every call. Pings go only while something is under way: such servers limit them.
    """
    options = [
        *(option for option in _CLIENT_OPTIONS if option[0] not in _OURS_ONLY), *_FOREIGN_OPTIONS,
        ("grpc.ssl_target_name_override", name),
    ]
    return Dialling(Credentials.fixed(tls)).channel(address, options, node="", peer=name, metadata=metadata)


async def _serve_health(path: str, health: Health) -> Any:
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    server.add_generic_rpc_handlers((health.local(),))
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        await server.stop(None)
        raise Fault(f"can't listen on the socket {path} ({error})", code=FaultCode.CONFLICT, definite=True) from error
    await server.start()
    return server


class _Shown:
    """What one listener shows: gRPC asks before each handshake, from a thread of its own."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._shown = credentials.current
        self.server_credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._shown), self._newer, require_client_authentication=True
        )

    def _newer(self) -> Any:
        """None: as before. Each configuration costs gRPC a context of its own."""
        newest = self._credentials.current
        if newest is self._shown:
            return None
        self._shown = newest
        return _configuration(newest)


def _configuration(tls: Tls) -> Any:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], root_certificates=tls.authority)


class _GrpcServer:
    def __init__(
        self, server: grpc.aio.Server, address: str, health: Health, shown: _Shown, inside: grpc.aio.Server | None
    ) -> None:
        self._server = server  # grpc.aio stops a server that nothing refers to
        self._inside = inside
        self._shown = shown
        self.address = address
        self._health = health

    async def close(self, grace_s: float) -> None:
        self._health.drain()
        await self._server.stop(grace_s)
        if self._inside is not None:
            await self._inside.stop(None)


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
