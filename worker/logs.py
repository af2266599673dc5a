"""Function logs on this worker: kept per function in NDJSON files, bounded, read over an RPC.

Owns buffering, rotation and followers. Refuses to know who wrote a line. Delivery is asynchronous and never fails an
invocation: what doesn't fit is dropped and counted. Files are written off the loop, through ``LogFiles``.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import orjson
import structlog

from chassis.process import Tasks

FLUSH_S = 0.2     # a crash of this process loses what it has not written

# What waits for the disk. A line may be empty or have 256 KiB, so neither bound would do alone: the bytes are about
# what four invocations print at their most (16 MiB each), the objects around that many lines take 15 MB besides.
BUFFER_LINES_MAX = 100_000
BUFFER_BYTES_MAX = 64 << 20

# What waits for one reader: about one invocation at its most. Who is further behind misses lines that the files have.
FOLLOWER_LINES_MAX = 10_000
FOLLOWER_BYTES_MAX = 16 << 20

# What is encoded, written or sent at once: it doesn't hold the loop up, and is well below what one message may have.
BATCH_LINES_MAX = 500
BATCH_BYTES_MAX = 1 << 20

_log = structlog.get_logger(__name__)

Key = tuple[str, str]  # account, function


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    number: int     # grows by one per line of this worker's life
    at_ms: int      # Unix milliseconds
    stream: str
    message: str
    size: int       # bytes of memory that the message takes


class LogFiles(Protocol):
    """Blocking file work of the logs, called off the loop."""

    def append(self, key: Key, data: bytes) -> None:
        """``data`` is whole lines. Raises OSError."""
        ...

    def read(self, key: Key) -> bytes:
        """Everything kept of one function, oldest first."""
        ...


class RotatedFiles:
    """Two files per function, each at most ``file_bytes_max``: the older one goes when the newer one is full.

    A single line that is longer has a file to itself.
    """

    def __init__(self, folder: Path, *, file_bytes_max: int, functions_max: int = 10_000) -> None:
        self._folder = folder
        self._file_bytes_max = file_bytes_max
        self._functions_max = functions_max

    def append(self, key: Key, data: bytes) -> None:
        folder = self._of(key)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
        current = folder / "current.ndjson"
        size = current.stat().st_size if current.exists() else 0
        for piece in _pieces(data, self._file_bytes_max):
            if size and size + len(piece) > self._file_bytes_max:
                current.replace(folder / "previous.ndjson")
                size = 0
            try:
                with current.open("ab") as file:
                    file.write(piece)
            except OSError:
                if current.exists():
                    os.truncate(current, size)  # half a line would spoil the next one
                raise
            size += len(piece)

    def read(self, key: Key) -> bytes:
        folder = self._of(key)
        found = []
        for name in ("previous.ndjson", "current.ndjson"):
            path = folder / name
            found.append(path.read_bytes() if path.exists() else b"")
        return b"".join(found)

    def _of(self, key: Key) -> Path:
        # Quoted, and never "." or "..": a name is data, not a path.
        return self._folder / f"a-{quote(key[0], safe='')}" / f"f-{quote(key[1], safe='')}"

    def _make_room(self) -> None:
        """Forgets the functions that were silent longest when there are too many."""
        folders = [path for path in self._folder.glob("a-*/f-*") if path.is_dir()]
        excess = len(folders) - self._functions_max
        if excess <= 0:
            return
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:excess]:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def _pieces(data: bytes, bytes_max: int) -> Iterator[bytes]:
    """Whole lines, as many as ``bytes_max`` has room for; a line that is longer comes alone."""
    start = 0
    while len(data) - start > bytes_max:
        end = data.rfind(b"\n", start, start + bytes_max) + 1 or data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


class MemoryFiles:
    """``LogFiles`` without a disk: for tests and simulations."""

    def __init__(self) -> None:
        self.files: dict[Key, bytes] = {}

    def append(self, key: Key, data: bytes) -> None:
        self.files[key] = self.files.get(key, b"") + data

    def read(self, key: Key) -> bytes:
        return self.files.get(key, b"")


class Follower:
    """Lines on their way to one reader. ``put`` never waits: what doesn't fit is dropped and counted in ``missed``."""

    def __init__(self) -> None:
        self.missed = 0
        self._lines: list[LogLine] = []
        self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, line: LogLine) -> None:
        if len(self._lines) >= FOLLOWER_LINES_MAX or self._bytes + line.size > FOLLOWER_BYTES_MAX:
            self.missed += 1
            return
        self._lines.append(line)
        self._bytes += line.size
        self._filled.set()

    async def take(self) -> list[LogLine]:
        """The next batch; waits for its first line."""
        await self._filled.wait()
        batch, size = _take(self._lines)
        self._bytes -= size
        if not self._lines:
            self._filled.clear()
        return batch


class FunctionLogs:
    """``append`` never waits. ``start`` and ``close`` frame its one background task."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._buffers: dict[Key, list[LogLine]] = {}
        self._lines = 0         # in memory: in the buffers, or being written
        self._bytes = 0         # of these lines' messages
        self._dropped = 0
        self._number = 0
        self._followers: dict[Key, set[Follower]] = {}
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._tasks = Tasks()
        self._writes = Tasks()  # never cancelled: a thread would write on, and the lines after its own would be lost

    def start(self) -> None:
        self._tasks.start(self._run(), name="function logs")

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._flush()

    def append(self, key: Key, *, at_ms: int, stream: str, message: str) -> None:
        self._wake.set()
        size = sys.getsizeof(message)
        if self._lines >= BUFFER_LINES_MAX or self._bytes + size > BUFFER_BYTES_MAX:
            self._dropped += 1
            return
        self._number += 1
        line = LogLine(number=self._number, at_ms=at_ms, stream=stream, message=message, size=size)
        self._buffers.setdefault(key, []).append(line)
        self._lines += 1
        self._bytes += size
        for follower in self._followers.get(key, ()):
            follower.put(line)

    async def read(self, key: Key, *, since_ms: int, follow: bool) -> AsyncGenerator[list[LogLine], None]:
        """Lines from ``since_ms`` on in batches, then (with ``follow``) new ones for as long as it is read."""
        follower = Follower()
        self._followers.setdefault(key, set()).add(follower)
        try:
            await self._flush()
            async with self._writing:   # no file is rotated between the reading of the two
                seen = self._number - self._lines   # what isn't in the files yet comes through the follower
                lines = await asyncio.get_running_loop().run_in_executor(None, self._kept, key, since_ms)
            while lines:
                yield _take(lines)[0]
            while follow:
                batch = await follower.take()
                if follower.missed:
                    _log.warning(
                        "function logs not followed: the reader doesn't keep up", function=key[1], lines=follower.missed
                    )
                    follower.missed = 0
                fresh = [line for line in batch if line.number > seen]
                if fresh:
                    yield fresh
        finally:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key]

    def _kept(self, key: Key, since_ms: int) -> list[LogLine]:
        """Off the loop: files of 16 MiB take a while to parse."""
        return [line for line in _parse(self._files.read(key)) if line.at_ms >= since_ms]

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_S)  # lines of many invocations go in one write
            await self._flush()

    async def _flush(self) -> None:
        """Returns when all lines up to now are written or lost. Who stops waiting doesn't stop the writing."""
        await asyncio.shield(self._writes.start(self._write(), name="function logs written"))

    async def _write(self) -> None:
        async with self._writing:
            self._wake.clear()
            buffers, self._buffers = self._buffers, {}
            if self._dropped:
                _log.warning("function logs dropped: the disk doesn't keep up", lines=self._dropped)
                self._dropped = 0
            for key, lines in buffers.items():
                while lines:
                    batch, size = _take(lines)
                    await self._keep(key, batch)
                    self._lines -= len(batch)
                    self._bytes -= size

    async def _keep(self, key: Key, lines: list[LogLine]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._files.append, key, _encode(lines))
        except OSError as error:
            _log.warning("function logs lost", function=key[1], lines=len(lines), error=str(error))
        except Exception as error:  # noqa: BLE001 - a bug is told as one, and the lines after these are kept
            loop.call_exception_handler({"message": "function logs lost", "exception": error})


def _take(lines: list[LogLine]) -> tuple[list[LogLine], int]:
    """Takes the next batch off ``lines``, which has some. Returns its bytes too; its last line may exceed the bound."""
    count = size = 0
    while count < min(len(lines), BATCH_LINES_MAX) and size < BATCH_BYTES_MAX:
        size += lines[count].size
        count += 1
    batch = lines[:count]
    del lines[:count]
    return batch, size


def _encode(lines: list[LogLine]) -> bytes:
    return b"".join(
        orjson.dumps(
            {"timestamp": line.at_ms, "stream": line.stream, "message": line.message}, option=orjson.OPT_APPEND_NEWLINE
        )
        for line in lines
    )


def _parse(data: bytes) -> list[LogLine]:
    """A line cut by a crash is skipped."""
    lines: list[LogLine] = []
    for row in data.splitlines():
        try:
            value = json.loads(row)
        except ValueError:
            continue
        message = value["message"]
        lines.append(LogLine(
            number=0, at_ms=value["timestamp"], stream=value["stream"], message=message, size=sys.getsizeof(message)
        ))
    return lines
