"""``/metrics`` of one process, in the formats of Prometheus and OpenMetrics.

Owns the listener and the translation of families into prometheus_client's, which writes the formats. It answers from
the process's own event loop: nothing changes while the numbers are read. Refuses to know what is counted. Where others
than this host can reach the address (``node.metrics_listen``), it is HTTPS, and who asks needs a certificate that the
region's root vouches for, whosever it is; on loopback it is plain HTTP.
"""

import asyncio
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from chassis import tls_contexts
from chassis.addresses import is_loopback
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.credentials import Credentials, measure
from chassis.faults import Fault, FaultCode
from chassis.metrics import Family, Kind, LoopLag, Metrics
from chassis.process import Tasks
from chassis.tls_doors import Doors, Room

PATH = "/metrics"
REQUEST_S = 5.0             # a scraper that takes longer to ask, or to read, is cut off
HEAD_BYTES_MAX = 16_384
CONNECTIONS_MAX = 16

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
_log = structlog.get_logger(__name__)


async def serve(node: NodeConfig, clock: Clock, credentials: Credentials) -> Metrics:
    """This process's metrics, served at ``node.metrics_listen`` until the process ends; empty: served nowhere.

    Which process a number is of comes from the scrape's target, not from labels. Raises Fault when the address can't
    be had.
    """
    metrics = Metrics()
    LoopLag(metrics, clock).start()
    measure(metrics, credentials)
    if node.metrics_listen:
        metrics.address = node.reached(await MetricsServer(metrics, credentials).listen(node.metrics_listen))
    return metrics


class MetricsServer:
    """One listener. Each answer ends its connection: a scrape every few seconds needs no pool."""

    def __init__(self, metrics: Metrics, credentials: Credentials) -> None:
        self._metrics = metrics
        self._credentials = credentials
        self._doors: Doors | None = None
        self._registry: Any = None
        self._tasks = Tasks()
        self._open = 0
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> str:
        """Serves at host:port (port 0: any free one) and returns what was bound. Raises Fault."""
        host, _, port = address.rpartition(":")
        factory: Callable[[], asyncio.BaseProtocol] = self._protocol
        if not is_loopback(address):
            self._doors = Doors(
                tls_contexts.listening(self._credentials), lambda _: self._protocol(), Room(CONNECTIONS_MAX),
                within_s=REQUEST_S,
            )
            factory = self._doors.door
        try:
            self._server = await asyncio.get_running_loop().create_server(
                factory, host.strip("[]"), int(port), backlog=CONNECTIONS_MAX
            )
        except (OSError, ValueError) as error:
            raise Fault(
                f"can't serve metrics at {address!r}: {error}; choose another address, or none, as "
                "node.metrics_listen", code=FaultCode.CONFLICT, definite=True,
            ) from error
        self._metrics.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"
        return self._metrics.address

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._doors is not None:
            self._doors.close()
        await self._tasks.cancel()

    def _protocol(self) -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=HEAD_BYTES_MAX), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= CONNECTIONS_MAX or not self._may_ask(writer.transport):
            writer.transport.abort()    # where somebody holds them all, they are cut off within REQUEST_S
            return
        self._open += 1
        self._tasks.start(self._serve(reader, writer), name="scrape")

    def _may_ask(self, transport: asyncio.BaseTransport) -> bool:
        try:
            caller, issuer = tls_contexts.peer(transport)
        except Fault:
            return True     # by loopback, or with a certificate that the operator made for a scraper
        try:
            self._credentials.revoked.admit(caller, issuer)
        except Fault as fault:
            _log.warning("scrape refused", fault=fault.message)
            return False
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                await self._answer(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
            _log.debug("scrape broke off", error=repr(error))
        finally:
            self._open -= 1
            writer.transport.abort()    # what was flushed has left; nothing else is worth waiting for

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if not rest.endswith(("HTTP/1.1", "HTTP/1.0")):
            status, kind, body = 400, "text/plain", b"This is HTTP/1.1.\n"
        elif path != PATH:
            status, kind, body = 404, "text/plain", f"Only {PATH} is served here.\n".encode()
        elif method not in {"GET", "HEAD"}:
            status, kind, body = 405, "text/plain", b"GET it.\n"
        else:
            if self._registry is None:
                self._registry = await asyncio.to_thread(_registry, self._metrics)
            status = 200
            kind, body = _exposed(self._registry, _accept(lines))
        writer.write(
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(body)
        if writer.can_write_eof():  # TLS can't say that alone: the scraper goes by the length
            writer.write_eof()
        await writer.drain()
        while await reader.read(HEAD_BYTES_MAX):
            pass    # until the scraper has closed its side: everything has arrived then


def _accept(lines: list[str]) -> str:
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


# prometheus_client brings 2 MB of modules (an HTTP server, a client, WSGI): they are imported, in a thread, when the
# first scrape comes. A cluster that nobody scrapes doesn't pay for them.


def _registry(metrics: Metrics) -> Any:
    library = importlib.import_module("prometheus_client")
    registry = library.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    library.ProcessCollector(registry=registry)
    library.PlatformCollector(registry=registry)
    library.GCCollector(registry=registry)
    return registry


def _exposed(registry: Any, accept: str) -> tuple[str, bytes]:
    """(content type, body) in the format that the scraper likes best."""
    encode, kind = importlib.import_module("prometheus_client.exposition").choose_encoder(accept)
    return str(kind), encode(registry)


class _Collector:
    """``prometheus_client.registry.Collector``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        core = importlib.import_module("prometheus_client.core")
        for family in self._metrics.families.values():
            yield _translated(core, family)


def _translated(core: Any, family: Family) -> Any:
    match family.kind:
        case Kind.COUNTER:
            found = core.CounterMetricFamily(family.name, family.help, labels=family.labels)
        case Kind.GAUGE:
            found = core.GaugeMetricFamily(family.name, family.help, labels=family.labels)
        case Kind.HISTOGRAM:
            found = core.HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, histogram in family.read().items():
                found.add_metric(labels, histogram.buckets(), histogram.sum)
            return found
    for labels, value in family.read().items():
        found.add_metric(labels, value)
    return found
