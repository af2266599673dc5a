"""One connection to a NATS cluster, and requests over it that end in an answer or in a fault of storage.

Owns connecting, trying again, and turning a refused subject into a fault at once: to its publisher it looks like
silence. Refuses to know streams and blobs.
"""

import asyncio
import json
import logging
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from chassis.certificates import Tls
from storage.faults import StorageFault, StoreClosed, StoreDenied, StoreUnavailable

PAUSE_S = 0.05
LATE_S = 0.1    # the library's own limit comes first where nothing holds it up
UNAUTHORISED = "authorization violation"
DENIED = "permissions violation for publish to"
INBOX = "_INBOX"     # followed by the user: nobody reads what others are answered

_log = structlog.get_logger(__name__)
# The library upgrades its connection in a way about which asyncio's own loop complains at each end of one.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received() has no effect" not in record.getMessage())


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings:
    answer_s: float = 20.0        # an operation that takes longer is unavailable; electing a leader takes up to 9 s
    attempt_s: float = 2.0        # then it is tried again

    def __post_init__(self) -> None:
        if not 0 < self.attempt_s <= self.answer_s:
            raise ValueError(f"attempt_s {self.attempt_s} has to be above 0 and at most answer_s {self.answer_s}")


class NatsClient:
    """Connects when first needed, and again after a break. Belongs to the process's event loop."""

    def __init__(
        self, addresses: Sequence[str], tls: Tls, settings: NatsSettings | None = None, *,
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        """The nearest server first; certificates name these hosts, wherever ``resolve`` says they are dialled."""
        self.settings = settings or NatsSettings()
        self.names = ", ".join(addresses)
        self._servers = {
            f"nats://{resolve(address) if resolve else address}": address.rsplit(":", 1)[0] for address in addresses
        }
        self._context = _context(tls)
        self._inbox = f"{INBOX}.{user_of(tls)}"
        self._client: _Client | None = None
        self._connecting = asyncio.Lock()
        self._asking: dict[str, set[asyncio.Future[Msg]]] = {}
        self._last_error = ""
        self._refused = asyncio.Event()
        self._closed = False

    def until(self) -> float:
        """The end of a piece of work that begins now, by the loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.answer_s

    async def api(self, subject: str, request: Mapping[str, Any], *, until: float) -> dict[str, Any]:
        """A call of JetStream's API; its answer may be an "error". May be carried out twice."""
        while True:
            message = await self.ask(f"$JS.API.{subject}", json.dumps(request).encode(), until=until)
            answer: dict[str, Any] = json.loads(message.data)
            if answer.get("error", {}).get("code") != 503:  # no leader at the moment
                return answer
            await self._pause(until, str(answer["error"].get("description", "no leader")))

    async def ask(
        self, subject: str, payload: bytes, *, until: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """The first answer to a request that may be carried out twice. Raises StoreUnavailable, StoreDenied."""
        while True:
            try:
                return await self.ask_once(subject, payload, until=until, headers=headers)
            except Silent as silent:
                await self._pause(until, str(silent))

    async def ask_once(
        self, subject: str, payload: bytes, *, until: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """One try. Raises Silent when it may have been carried out, or not."""
        client = await self.connected(until)
        before = (client.stats["in_msgs"], client.stats["reconnects"])
        attempt_s = max(0.001, min(self.settings.attempt_s, until - asyncio.get_running_loop().time()))
        answer: asyncio.Future[Msg] = asyncio.ensure_future(
            client.request(subject, payload, timeout=attempt_s, headers=dict(headers or {}) or None)
        )
        self._asking.setdefault(subject, set()).add(answer)
        try:
            # The library's own limit begins when the request is sent, which a server that stands still holds up.
            await asyncio.wait({answer}, timeout=attempt_s + LATE_S)
            if not answer.done():
                raise nats.errors.TimeoutError
            if answer.cancelled():
                raise StoreDenied(subject, self._last_error)
            return answer.result()
        except (nats.errors.Error, OSError) as error:
            if isinstance(error, nats.errors.TimeoutError) and before == (
                client.stats["in_msgs"], client.stats["reconnects"]
            ):
                # Not a word of this server: another one may do. The library's own pings wait behind what can't be sent.
                await client.force_reconnect()
            raise Silent(f"{type(error).__name__} {self._last_error}".strip()) from error
        finally:
            answer.cancel()
            self._asking[subject].discard(answer)
            if not self._asking[subject]:
                del self._asking[subject]

    async def connected(self, until: float) -> "_Client":
        """Raises StoreUnavailable, StoreDenied, StoreClosed."""
        async with self._connecting:
            if self._closed:
                raise StoreClosed
            if self._client is not None and not self._client.is_closed:
                return self._client
            client = _Client(self._servers)
            self._refused.clear()
            connecting = asyncio.ensure_future(client.connect(
                list(self._servers), dont_randomize=True, tls=self._context, tls_handshake_first=True,
                connect_timeout=1, reconnect_time_wait=0.1, max_reconnect_attempts=-1,  # type: ignore[arg-type]
                ping_interval=1, max_outstanding_pings=2, inbox_prefix=self._inbox, error_cb=self._on_error,
            ))
            # Left alone it would try for ever, also where it was told that it isn't wanted.
            refused = asyncio.ensure_future(self._refused.wait())
            try:
                await asyncio.wait(
                    {connecting, refused}, timeout=max(0.0, until - asyncio.get_running_loop().time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if connecting.done() and connecting.exception() is None:
                    self._client = client
                    return client
            finally:
                refused.cancel()
                if self._client is not client:
                    connecting.cancel()
                    await asyncio.gather(connecting, refused, return_exceptions=True)
                    await client.close()
            if self._refused.is_set():
                raise StoreDenied("a connection", self._last_error)
            raise self.unavailable(self._last_error or "no connection in time")

    async def close(self) -> None:
        self._closed = True
        if self._client is not None:
            await self._client.close()

    def unavailable(self, why: str) -> StorageFault:
        return StoreUnavailable(f"NATS ({self.names}) doesn't answer: {why}")

    async def _pause(self, until: float, why: str) -> None:
        if asyncio.get_running_loop().time() + PAUSE_S >= until:
            raise self.unavailable(why)
        await asyncio.sleep(PAUSE_S)

    async def _on_error(self, error: Exception) -> None:
        if str(error) != self._last_error:
            _log.debug("nats", error=str(error))
        self._last_error = str(error)
        if UNAUTHORISED in self._last_error.lower():
            self._refused.set()
        if DENIED in self._last_error.lower():
            for subject, answers in self._asking.items():
                if f'"{subject.lower()}"' in self._last_error.lower():
                    for answer in answers:
                        answer.cancel()


class Silent(Exception):
    """A request got no answer: whether it was carried out is not known."""


class _Transport(TcpTransport):
    """Ends connections at once: a server that stands still would hold up the step to the next one for 30 s."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        return True  # or the client takes one of its own instead

    def close(self) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()


class _Client(Client):
    """Checks the certificate of each server against the name that it was configured by."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self._names = names
        self._transport = _Transport()

    def _setup_server_pool(self, connect_url: str | list[str]) -> None:
        super()._setup_server_pool(connect_url)  # type: ignore[arg-type]
        for server in self._server_pool:
            server.tls_name = self._names[f"nats://{server.uri.netloc}"]


def user_of(tls: Tls) -> str:
    """The common name of the certificate, which is the user as the stores know him."""
    names = x509.load_pem_x509_certificate(tls.certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=tls.authority.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory() as scratch:  # Python's ssl reads certificates from files only
        pair = Path(scratch) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(tls.key + tls.certificate)
        context.load_cert_chain(pair)
    return context
