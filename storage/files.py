"""Blobs as files named by their digest, in two levels of directories of 256 each.

Owns durability (written aside, synced, renamed, directories synced) and verification on reading. Refuses to
know what a blob holds and who refers to it.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from storage.faults import BlobCorrupt, BlobMissing, StoreClosed, StoreFull, StoreUnavailable
from storage.interfaces import Blob, check_digest

T = TypeVar("T")

# What is written or read in one hop to a thread: large enough that hops don't count, small enough to stay fair.
STEP_BYTES = 1024 * 1024
INCOMING = "incoming"
ASIDE = ".aside"       # how the name of a blob ends whose deletion was begun; it begins with the digest


class FileBlobs:
    """A BlobStore in a directory, which processes of one host may share."""

    def __init__(self, directory: Path) -> None:
        """Open or create, and sweep what crashed writers left behind. Raises StoreUnavailable."""
        self._directory = directory
        self._incoming = directory / INCOMING
        self._closed = False
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(directory)
            sync_directory(directory.parent)
            _sweep(self._incoming)
            for aside in _files(directory, f"*{ASIDE}"):
                _restore(aside)
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
            put_id = await self._in_thread(lambda: self._publish(file, sha256))
        finally:
            await self._in_thread(lambda: _discard(file))
        return Blob(sha256=sha256, size_bytes=size_bytes, put_id=put_id)

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

    async def delete(self, blob: Blob) -> bool:
        check_digest(blob.sha256)
        self._check_open()
        path = self._path(blob.sha256)
        return await self._in_thread(lambda: _delete(path, blob.put_id))

    async def list(self) -> tuple[Blob, ...]:
        self._check_open()
        return await self._in_thread(lambda: _list(self._directory))

    async def sweep(self) -> None:
        self._check_open()
        await self._in_thread(lambda: _sweep(self._incoming))

    async def close(self) -> None:
        self._closed = True

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256[2:4] / sha256

    def _publish(self, file: IO[bytes], sha256: str) -> str:
        file.flush()
        os.fsync(file.fileno())
        path = self._path(sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(file.name).rename(path)
        # All three levels, always: another process may have made the directories and not synced them yet.
        for directory in (path.parent, path.parent.parent, self._directory):
            sync_directory(directory)
        return _put_id(os.fstat(file.fileno()))

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
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(str(directory), "a blob")
    return StoreUnavailable(f"the blob directory {directory} can't be used: {error}")


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
    with contextlib.suppress(OSError):  # what closing would still write is of a file that has gone, or was synced
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


def _files(directory: Path, pattern: str) -> Iterator[Path]:
    return directory.glob(f"[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/{pattern}")


def _list(directory: Path) -> tuple[Blob, ...]:
    found = []
    for path in _files(directory, "[0-9a-f]" * 64):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # deleted meanwhile
        found.append(Blob(sha256=path.name, size_bytes=status.st_size, put_id=_put_id(status)))
    return tuple(sorted(found, key=lambda blob: blob.sha256))


def _put_id(status: os.stat_result) -> str:
    """Every put makes a file of its own."""
    return f"{status.st_ino}-{status.st_mtime_ns}"


def _delete(path: Path, put_id: str) -> bool:
    """Moves the file aside before looking at it: another process may put the same bytes between a look and an unlink.

    Under a name of its own, or another deletion could put a newer file there between the look and the unlink.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}{ASIDE}")
    try:
        path.rename(aside)
        old = _put_id(aside.stat()) == put_id
        if old:
            aside.unlink()
    except FileNotFoundError:
        return False
    if not old:
        _restore(aside)
    sync_directory(path.parent)
    return old


def _restore(aside: Path) -> None:
    """Gives a file that was moved aside its name back, unless the bytes were put again."""
    try:
        os.link(aside, aside.with_name(aside.name.split(".", 1)[0]))
    except FileExistsError:
        pass  # the same bytes, newer
    except FileNotFoundError:
        return  # another process was faster
    aside.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
