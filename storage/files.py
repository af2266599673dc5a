"""Blobs as files named by their digest, in two levels of directories of 256 each.

Owns durability (written aside, synced, renamed, directories synced) and verification on reading. Refuses to
know what a blob holds and who refers to it.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import IO, TypeVar

from chassis.faults import FaultCode
from storage.faults import BlobCorrupt, BlobMissing, StoreClosed, StoreUnavailable
from storage.interfaces import Blob, check_digest

T = TypeVar("T")

# What is written or read in one hop to a thread: large enough that hops don't count, small enough to stay fair.
STEP_BYTES = 1024 * 1024
INCOMING = "incoming"


class FileBlobs:
    """A BlobStore in a directory, which processes of one host may share."""

    def __init__(self, directory: Path) -> None:
        """Open or create, and sweep what crashed writers left behind. Raises StoreUnavailable."""
        self._directory = directory
        self._incoming = directory / INCOMING
        self._closed = False
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_directory(directory)
            _sync_directory(directory.parent)
            _sweep(self._incoming)
        except OSError as error:
            raise _unavailable(directory, error) from error

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        self._check_open()
        file = await self._in_thread(lambda: _open_incoming(self._incoming))
        digest = hashlib.sha256()
        size_bytes = 0
        waiting = bytearray()

        def write(content: bytes) -> None:
            digest.update(content)
            file.write(content)

        try:
            async for chunk in chunks:
                waiting += chunk
                size_bytes += len(chunk)
                if len(waiting) >= STEP_BYTES:
                    step, waiting = bytes(waiting), bytearray()
                    await self._in_thread(lambda: write(step))  # noqa: B023 -- it has run when the loop goes on
            rest = bytes(waiting)
            await self._in_thread(lambda: write(rest))
            sha256 = digest.hexdigest()
            await self._in_thread(lambda: self._publish(file, sha256))
        finally:
            await self._in_thread(lambda: _discard(file))
        return Blob(sha256=sha256, size_bytes=size_bytes)

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        check_digest(sha256)
        self._check_open()
        try:
            file = await self._in_thread(lambda: self._path(sha256).open("rb"))
        except FileNotFoundError:
            raise BlobMissing(sha256) from None
        digest = hashlib.sha256()

        def read() -> bytes:
            content = file.read(STEP_BYTES)
            digest.update(content)
            return content

        try:
            withheld = await self._in_thread(read)
            while following := await self._in_thread(read):
                yield withheld
                withheld = following
            if digest.hexdigest() != sha256:
                raise BlobCorrupt(sha256, digest.hexdigest())
            if withheld:
                yield withheld
        finally:
            file.close()

    async def has(self, sha256: str) -> bool:
        check_digest(sha256)
        self._check_open()
        return await self._in_thread(self._path(sha256).exists)

    async def delete(self, sha256: str) -> None:
        check_digest(sha256)
        self._check_open()
        path = self._path(sha256)

        def unlink() -> None:
            path.unlink(missing_ok=True)
            if path.parent.exists():
                _sync_directory(path.parent)

        await self._in_thread(unlink)

    async def list(self) -> tuple[Blob, ...]:
        self._check_open()
        return await self._in_thread(lambda: _list(self._directory))

    async def close(self) -> None:
        self._closed = True

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256[2:4] / sha256

    def _publish(self, file: IO[bytes], sha256: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        path = self._path(sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(file.name).rename(path)
        # All three levels, always: another process may have made the directories and not synced them yet.
        for directory in (path.parent, path.parent.parent, self._directory):
            _sync_directory(directory)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run one step of file work. A cancelled caller waits for the step's end, so that no file is closed under it.
        """
        job = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait({job})
            if not job.cancelled():
                job.exception()  # looked at: the caller hears of its cancellation instead
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unavailable(self._directory, error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed


def _unavailable(directory: Path, error: OSError) -> StoreUnavailable:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    code = FaultCode.EXHAUSTED if full else FaultCode.UNAVAILABLE
    return StoreUnavailable(f"the blob directory {directory} can't be used: {error}", code=code)


def _open_incoming(incoming: Path) -> IO[bytes]:
    """A file aside that is locked while its writer lives, which is how a sweep tells it from a leftover."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=incoming, delete=False)  # noqa: SIM115 -- it outlives this step
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # a sweep took it for a leftover before it was locked


def _discard(file: IO[bytes]) -> None:
    """Remove the file where it still lies aside (it was not published)."""
    Path(file.name).unlink(missing_ok=True)
    file.close()


def _sweep(incoming: Path) -> None:
    for path in incoming.iterdir():
        try:
            file = path.open("rb")
        except FileNotFoundError:
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its writer lives
            path.unlink(missing_ok=True)


def _list(directory: Path) -> tuple[Blob, ...]:
    found = []
    for path in directory.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
        try:
            found.append(Blob(sha256=path.name, size_bytes=path.stat().st_size))
        except FileNotFoundError:
            continue  # deleted meanwhile
    return tuple(sorted(found, key=lambda blob: blob.sha256))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
