"""Metadata and blobs in memory, for the simulation and for tests: deterministic, no threads, no time of its
own.

Owns the smallest complete implementation of the interfaces. Refuses to know faults' causes: the simulation
passes in what happens before and after a write.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from chassis.clock import Clock
from storage.faults import BlobCorrupt, BlobMissing, Conflict, StoreClosed, WatchGap
from storage.interfaces import (
    Acknowledgement,
    Blob,
    Change,
    Listing,
    Record,
    check_delete,
    check_digest,
    check_key,
    check_prefix,
    check_value,
)

WriteHook = Callable[[str], Awaitable[None]]


async def calm(_key: str) -> None:
    """The hook of a store to which nothing happens."""


class MemoryMetadata:
    """A MetadataStore in memory.

    `before_write` and `after_write` are awaited with the key around every put and delete; they may wait, and
    raise: StoreUnavailable before, OutcomeUnknown after (the write happened and its answer was lost).
    """

    def __init__(
        self,
        clock: Clock,
        *,
        log_changes_max: int = 4096,
        before_write: WriteHook = calm,
        after_write: WriteHook = calm,
    ) -> None:
        self._clock = clock
        self._log_changes_max = log_changes_max
        self.before_write = before_write
        self.after_write = after_write
        self._records: dict[str, Record] = {}
        self._log: list[Change] = []  # gapless: the change of revision r is at r - 1 - trimmed
        self._trimmed = 0  # changes up to and including this revision are gone from the log
        self._acknowledgements: dict[str, Acknowledgement] = {}
        self._news = asyncio.Event()  # replaced at every change, so that each watcher waits for the next one
        self._closed = False

    async def get(self, key: str) -> Record | None:
        check_key(key)
        self._check_open()
        return self._records.get(key)

    async def list(self, prefix: str) -> Listing:
        check_prefix(prefix)
        self._check_open()
        keys = sorted(key for key in self._records if key.startswith(prefix))
        return Listing(records=tuple(self._records[key] for key in keys), revision=self._revision)

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        check_key(key)
        check_value(key, value)
        await self.before_write(key)
        self._check_open()
        self._compare(key, expected)
        revision = self._append(key, value)
        self._records[key] = Record(key=key, value=value, revision=revision)
        await self.after_write(key)
        return revision

    async def delete(self, key: str, *, expected: int | None) -> int:
        check_key(key)
        check_delete(expected)
        await self.before_write(key)
        self._check_open()
        self._compare(key, expected)
        if self._records.pop(key, None) is not None:
            self._append(key, None)
        revision = self._revision
        await self.after_write(key)
        return revision

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Change]:
        check_prefix(prefix)
        position = after
        while True:
            self._check_open()
            if not self._trimmed <= position <= self._revision:
                raise WatchGap(position, self._trimmed, self._revision)
            if position == self._revision:
                await self._news.wait()
                continue
            change = self._log[position - self._trimmed]
            position = change.revision
            if change.key.startswith(prefix):
                yield change

    async def acknowledge(self, watcher: str, revision: int, lease_s: float) -> None:
        check_key(watcher)
        self._check_open()
        now = self._clock.wall()
        self._forget_lapsed(now)
        known = self._acknowledgements.get(watcher)
        self._acknowledgements[watcher] = Acknowledgement(
            watcher=watcher,
            revision=max(revision, known.revision if known else 0),
            expires_at=now + lease_s,
        )

    async def acknowledgements(self) -> tuple[Acknowledgement, ...]:
        self._check_open()
        self._forget_lapsed(self._clock.wall())
        return tuple(self._acknowledgements[watcher] for watcher in sorted(self._acknowledgements))

    async def close(self) -> None:
        self._closed = True
        self._news.set()

    @property
    def _revision(self) -> int:
        return self._trimmed + len(self._log)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed

    def _forget_lapsed(self, now: float) -> None:
        live = {watcher: item for watcher, item in self._acknowledgements.items() if item.expires_at > now}
        self._acknowledgements = live

    def _compare(self, key: str, expected: int | None) -> None:
        record = self._records.get(key)
        found = record.revision if record else 0
        if expected is not None and found != expected:
            raise Conflict(key, expected, found)

    def _append(self, key: str, value: bytes | None) -> int:
        revision = self._revision + 1
        self._log.append(Change(key=key, value=value, revision=revision))
        excess = len(self._log) - self._log_changes_max
        if excess > 0:
            del self._log[:excess]
            self._trimmed += excess
        self._news.set()
        self._news = asyncio.Event()
        return revision


class MemoryBlobs:
    """A BlobStore in memory."""

    def __init__(self, *, chunk_bytes: int = 256 * 1024) -> None:
        self._chunk_bytes = chunk_bytes
        self._blobs: dict[str, bytes] = {}
        self._puts: dict[str, int] = {}     # the number of each blob's last put
        self._count = 0
        self._closed = False

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        self._check_open()
        content = b"".join([chunk async for chunk in chunks])
        sha256 = hashlib.sha256(content).hexdigest()
        self._blobs[sha256] = content
        self._count += 1
        self._puts[sha256] = self._count
        return self._blob(sha256)

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        check_digest(sha256)
        self._check_open()
        if sha256 not in self._blobs:
            raise BlobMissing(sha256)
        content = self._blobs[sha256]
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise BlobCorrupt(sha256, found)
        for start in range(0, len(content), self._chunk_bytes):
            yield content[start : start + self._chunk_bytes]

    async def has(self, sha256: str) -> bool:
        check_digest(sha256)
        self._check_open()
        return sha256 in self._blobs

    async def delete(self, blob: Blob) -> bool:
        check_digest(blob.sha256)
        self._check_open()
        if blob.sha256 not in self._blobs or self._blob(blob.sha256).put_id != blob.put_id:
            return False
        del self._blobs[blob.sha256], self._puts[blob.sha256]
        return True

    async def list(self) -> tuple[Blob, ...]:
        self._check_open()
        return tuple(self._blob(name) for name in sorted(self._blobs))

    async def sweep(self) -> None:
        """Nothing outlives a process here."""

    async def close(self) -> None:
        self._closed = True

    def _blob(self, sha256: str) -> Blob:
        return Blob(sha256=sha256, size_bytes=len(self._blobs[sha256]), put_id=str(self._puts[sha256]))

    def damage(self, sha256: str) -> None:
        """Flip a bit of a stored blob, as a bad disk does; the blob must not be empty."""
        content = self._blobs[sha256]
        self._blobs[sha256] = bytes([content[0] ^ 1]) + content[1:]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed
