"""The places in which the contract suite runs: one class per implementation, with the faults it can suffer.

A new implementation joins by a world of its own and a test module that inherits the contract's classes.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

from storage.faults import OutcomeUnknown, StoreUnavailable
from storage.files import FileBlobs
from storage.interfaces import BlobStore, MetadataStore
from storage.memory import MemoryBlobs, MemoryMetadata, calm
from storage.sqlite import SqliteMetadata, SqliteSettings

LOG_CHANGES_MAX = 16
PATIENT_S = 30.0
IMPATIENT_S = 0.5


class ManualClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class MetadataWorld(Protocol):
    clock: ManualClock

    def metadata(self, *, short_log: bool = False) -> MetadataStore:
        """One more client of the world's metadata. A short log keeps LOG_CHANGES_MAX changes."""
        ...

    def lost_answers(self, store: MetadataStore) -> contextlib.AbstractAsyncContextManager[None]:
        """While it lasts, writes of this client begin and their answers are lost."""
        ...

    def out_of_reach(self, store: MetadataStore) -> contextlib.AbstractAsyncContextManager[None]:
        """While it lasts, writes of this client don't begin."""
        ...

    async def close(self) -> None: ...


class BlobWorld(Protocol):
    def blobs(self) -> BlobStore: ...

    async def damage(self, sha256: str) -> None:
        """Flip a bit of a blob at rest."""
        ...

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self._metadata: MemoryMetadata | None = None
        self._blobs = MemoryBlobs()

    def metadata(self, *, short_log: bool = False) -> MemoryMetadata:
        # Clients share the memory, so that there is one store for all of them.
        if self._metadata is None:
            self._metadata = MemoryMetadata(self.clock, log_changes_max=LOG_CHANGES_MAX if short_log else 4096)
        return self._metadata

    @contextlib.asynccontextmanager
    async def lost_answers(self, store: MetadataStore) -> AsyncIterator[None]:
        async def lose(key: str) -> None:
            raise OutcomeUnknown(key, "its answer was lost")

        assert isinstance(store, MemoryMetadata)
        store.after_write = lose
        yield
        store.after_write = calm

    @contextlib.asynccontextmanager
    async def out_of_reach(self, store: MetadataStore) -> AsyncIterator[None]:
        async def refuse(key: str) -> None:
            raise StoreUnavailable(f"{key} is out of reach")

        assert isinstance(store, MemoryMetadata)
        store.before_write = refuse
        yield
        store.before_write = calm

    def blobs(self) -> MemoryBlobs:
        return self._blobs

    async def damage(self, sha256: str) -> None:
        self._blobs.damage(sha256)

    async def close(self) -> None:
        if self._metadata is not None:
            await self._metadata.close()


class SqliteWorld:
    """Each client is a store object with threads and connections of its own, as each process has one."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.path = directory / "metadata.sqlite3"
        self.blob_directory = directory / "blobs"
        self._stores: list[SqliteMetadata] = []

    def metadata(self, *, short_log: bool = False) -> SqliteMetadata:
        settings = SqliteSettings(answer_s=PATIENT_S, log_changes_max=LOG_CHANGES_MAX if short_log else 4096)
        store = SqliteMetadata(self.path, self.clock, settings)
        self._stores.append(store)
        return store

    @contextlib.contextmanager
    def impatient(self, store: MetadataStore) -> Iterator[None]:
        """While nothing can be written, that is found out soon. Otherwise a busy disk has its time."""
        assert isinstance(store, SqliteMetadata)
        store._writer._answer_s = IMPATIENT_S
        try:
            yield
        finally:
            store._writer._answer_s = PATIENT_S

    @contextlib.asynccontextmanager
    async def lost_answers(self, store: MetadataStore) -> AsyncIterator[None]:
        """The commit hangs, as it does on a disk that hangs, and goes on in the end."""
        assert isinstance(store, SqliteMetadata)
        disk = threading.Event()

        def hang(statement: str) -> None:
            if statement == "COMMIT":
                disk.wait(timeout=30)

        store._writer.connection.set_trace_callback(hang)
        try:
            with self.impatient(store):
                yield
        finally:
            disk.set()  # the callback stays: to take it off would wait for the statement that waits in it

    @contextlib.asynccontextmanager
    async def out_of_reach(self, store: MetadataStore) -> AsyncIterator[None]:
        """Another process holds the write lock."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with self.impatient(store):
                yield
            other.execute("ROLLBACK")

    def blobs(self) -> FileBlobs:
        return FileBlobs(self.blob_directory)

    async def damage(self, sha256: str) -> None:
        path = self.blob_directory / sha256[:2] / sha256[2:4] / sha256
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


async def eventually(condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Wait until `condition` holds; fail when it doesn't in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
