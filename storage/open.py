"""From a URL to open stores: the one place that knows which implementations there are.

Owns the URL forms:

    sqlite:///absolute/directory            metadata in SQLite, blobs as files, in that directory
    memory:                                 nothing is kept
    etcd://host:2379,host:2379[/root]       metadata in etcd, the nearest member first; ``root`` is `labda`
    nats://host:4222,host:4222              blobs in NATS, beside either

Refuses to know who uses them. A client library is imported when its store is opened: embedded clusters pay for none.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from chassis.certificates import Tls, TlsFiles
from chassis.clock import Clock
from storage.faults import StoreUnavailable
from storage.files import FileBlobs
from storage.interfaces import Blob, BlobStore, LeaseStore, MetadataStore
from storage.leases import MetadataLeases
from storage.memory import MemoryBlobs, MemoryMetadata
from storage.sqlite import SqliteMetadata, SqliteSettings
from storage.sqlite_file import METADATA_FILE

BLOB_DIRECTORY = "blobs"
PORTS = {"etcd": 2379, "nats": 4222}
FORMS = "sqlite:///absolute/directory, etcd://HOST[:PORT],... or memory:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The three stores of one deployment."""

    metadata: MetadataStore
    blobs: BlobStore
    leases: LeaseStore

    async def close(self) -> None:
        await self.blobs.close()
        await self.metadata.close()


def open_store(
    url: str, clock: Clock, *, blobs: str = "", tls: TlsFiles | Tls | None = None,
    settings: SqliteSettings | None = None, resolve: Callable[[str], str] | None = None,
) -> Stores:
    """Open what `url` names, creating SQLite's where it is missing; blocks for milliseconds, so call it at start.

    ``blobs``: another place for blobs. ``tls``: what etcd and NATS ask for. ``resolve``: from the host:port in a URL to
    the one that is dialled, where names aren't known; certificates are checked against the name in the URL. Clusters
    are connected to when first needed. Raises ValueError for a URL of no known form, OSError for TLS files that can't
    be read, NewerSchema, StoreUnavailable.
    """
    parts = urlsplit(url)
    own_blobs: BlobStore = NoBlobs(url)
    metadata: MetadataStore
    if url == "memory:":
        metadata, own_blobs = MemoryMetadata(clock), MemoryBlobs()
    elif parts.scheme == "etcd" and parts.netloc:
        metadata = _etcd(parts, clock, _certificates(url, tls), resolve)
    elif parts.scheme == "sqlite" and not parts.netloc and parts.path.startswith("/"):
        directory = Path(unquote(parts.path))
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"the store directory {directory} can't be made: {error}") from error
        own_blobs = own_blobs if blobs else FileBlobs(directory / BLOB_DIRECTORY)
        metadata = SqliteMetadata(directory / METADATA_FILE, clock, settings)
    else:
        raise ValueError(f"store URL {url!r} is not {FORMS}")
    if blobs:
        own_blobs = _nats(blobs, clock, _certificates(blobs, tls), resolve)
    return Stores(metadata=metadata, blobs=own_blobs, leases=MetadataLeases(metadata))


def addresses(url: str) -> list[str]:
    """The host:port pairs of a cluster's URL, the nearest first."""
    parts = urlsplit(url)
    hosts = [host for host in parts.netloc.split(",") if host]
    return [host if ":" in host else f"{host}:{PORTS[parts.scheme]}" for host in hosts]


def _etcd(parts: SplitResult, clock: Clock, tls: Tls, resolve: Callable[[str], str] | None) -> MetadataStore:
    from storage.etcd import EtcdMetadata, EtcdSettings  # noqa: PLC0415

    root = parts.path.strip("/")
    settings = EtcdSettings(root=f"{root}/") if root else EtcdSettings()
    return EtcdMetadata(addresses(parts.geturl()), tls, clock, settings, resolve=resolve)


def _nats(url: str, clock: Clock, tls: Tls, resolve: Callable[[str], str] | None) -> BlobStore:
    from storage.nats import NatsBlobs  # noqa: PLC0415

    parts = urlsplit(url)
    if parts.scheme != "nats" or not parts.netloc or parts.path:
        raise ValueError(f"blob URL {url!r} is not nats://HOST[:PORT],...")
    return NatsBlobs(addresses(url), tls, clock, resolve=resolve)


def _certificates(url: str, tls: TlsFiles | Tls | None) -> Tls:
    if tls is None:
        raise ValueError(f"{url} asks for a certificate: set store_tls")
    return Tls.read(tls) if isinstance(tls, TlsFiles) else tls


class NoBlobs:
    """Of a process that was given no place for blobs, because it needs none."""

    def __init__(self, url: str) -> None:
        self._text = f"there are no blobs beside {url}: this process was given no `blobs` URL"

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        raise StoreUnavailable(self._text)

    def get(self, sha256: str) -> AsyncIterator[bytes]:
        raise StoreUnavailable(self._text)

    async def has(self, sha256: str) -> bool:
        raise StoreUnavailable(self._text)

    async def delete(self, blob: Blob) -> bool:
        raise StoreUnavailable(self._text)

    async def list(self) -> tuple[Blob, ...]:
        raise StoreUnavailable(self._text)

    async def sweep(self) -> None:
        raise StoreUnavailable(self._text)

    async def close(self) -> None:
        """There is nothing to close."""
