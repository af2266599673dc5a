"""From a URL to open stores: the one place that knows which implementations there are.

Owns the URL forms `sqlite:///absolute/directory` (SQLite and files in that directory) and `memory:` (nothing
is kept). Refuses to know who uses them.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from chassis.clock import Clock
from storage.faults import StoreUnavailable
from storage.files import FileBlobs
from storage.interfaces import BlobStore, LeaseStore, MetadataStore
from storage.leases import MetadataLeases
from storage.memory import MemoryBlobs, MemoryMetadata
from storage.sqlite import SqliteMetadata, SqliteSettings

METADATA_FILE = "metadata.sqlite3"
BLOB_DIRECTORY = "blobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The three stores of one deployment."""

    metadata: MetadataStore
    blobs: BlobStore
    leases: LeaseStore

    async def close(self) -> None:
        await self.blobs.close()
        await self.metadata.close()


def open_store(url: str, clock: Clock, settings: SqliteSettings | None = None) -> Stores:
    """Open what `url` names, creating it where it is missing; blocks for milliseconds, so call it at start.

    Raises ValueError for a URL of no known form, NewerSchema, StoreUnavailable.
    """
    parts = urlsplit(url)
    if url == "memory:":
        memory = MemoryMetadata(clock)
        return Stores(metadata=memory, blobs=MemoryBlobs(), leases=MetadataLeases(memory))
    if parts.scheme != "sqlite" or parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"store URL {url!r} is not sqlite:///absolute/directory or memory:")
    directory = Path(unquote(parts.path))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the store directory {directory} can't be made: {error}") from error
    blobs = FileBlobs(directory / BLOB_DIRECTORY)
    metadata = SqliteMetadata(directory / METADATA_FILE, clock, settings)
    return Stores(metadata=metadata, blobs=blobs, leases=MetadataLeases(metadata))
