"""The file of a backup: a tar archive that any tar can list, with a manifest and a checksum per entry.

    labda-backup.json   what this is: format, revision, who made it of what, whose values it holds
    records.ndjson      a line per record: key, value (base64), revision
    blobs/SHA256        each blob, under its digest
    manifest.json       name, size and SHA-256 of each entry before it; its absence says that the archive was cut short

Owns reading and writing that form, with no more than a chunk of a blob in memory. Refuses to know stores.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from chassis.faults import FaultCode
from storage.faults import StorageFault
from storage.files import sync_directory

FORMAT = 1
HEAD, RECORDS, BLOBS, MANIFEST = "labda-backup.json", "records.ndjson", "blobs/", "manifest.json"
STEP_BYTES = 1024 * 1024
BLOCK = tarfile.BLOCKSIZE


class ArchiveDamaged(StorageFault):
    """The file isn't what was written: nothing of it was restored."""

    code = FaultCode.INVALID

    def __init__(self, path: Path, entry: str, why: str) -> None:
        super().__init__(f"{path} is damaged: {entry} {why}; nothing was restored, use another backup")
        self.entry = entry


class ArchiveNewer(StorageFault):
    """The file was written by a newer version of this program."""

    code = FaultCode.INVALID

    def __init__(self, path: Path, found: int) -> None:
        super().__init__(
            f"{path} has backup format {found} and this program knows formats up to {FORMAT}: use the newer program"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a backup says of itself."""

    made_at: float          # Unix seconds
    revision: int           # of the store: all records are as of this one
    records: int
    cluster: str            # fingerprint of the authority of the cluster that it is of
    data_key: str           # id of the key that its sealed values ask for; the key itself is not in the archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    size_bytes: int
    sha256: str


class ArchiveWriter:
    """Writes aside and publishes at the end: a backup that is there is whole."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._scratch = path.with_name(path.name + ".partial")
        self._scratch.unlink(missing_ok=True)
        # It holds what a store holds.
        self._file = os.fdopen(os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._entries: list[Entry] = []

    def head(self, head: Head) -> None:
        self._add(HEAD, _encode({"format": FORMAT, **asdict(head)}))

    def records(self, lines: Iterator[bytes], size_bytes: int) -> None:
        self._begin(RECORDS, size_bytes)
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line)
            self._file.write(line)
        self._end(RECORDS, size_bytes, digest.hexdigest())

    async def blob(self, sha256: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> None:
        """What `chunks` raises leaves no trace of the blob."""
        name = BLOBS + sha256
        start = self._file.tell()
        written = 0
        try:
            self._begin(name, size_bytes)
            async for chunk in chunks:
                written += len(chunk)
                self._file.write(chunk)
        except StorageFault:
            self._file.seek(start)
            self._file.truncate()
            raise
        assert written == size_bytes, f"{name} has {written} bytes and not {size_bytes}"
        self._end(name, size_bytes, sha256)

    def publish(self) -> int:
        """Ends the archive; its size in bytes. Then it is durable, and so is its name."""
        self._add(MANIFEST, _encode({"entries": [asdict(entry) for entry in self._entries]}))
        self._file.write(bytes(2 * BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._scratch.rename(self._path)
        sync_directory(self._path.parent)
        return size

    def discard(self) -> None:
        """What was begun goes, unless it was published."""
        self._file.close()
        self._scratch.unlink(missing_ok=True)

    def _add(self, name: str, content: bytes) -> None:
        self._begin(name, len(content))
        self._file.write(content)
        self._end(name, len(content), hashlib.sha256(content).hexdigest())

    def _begin(self, name: str, size_bytes: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size_bytes
        info.mode = 0o600
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))

    def _end(self, name: str, size_bytes: int, sha256: str) -> None:
        self._file.write(bytes(-size_bytes % BLOCK))
        self._entries.append(Entry(name=name, size_bytes=size_bytes, sha256=sha256))


class Archive:
    """A backup that was found whole."""

    def __init__(self, path: Path) -> None:
        """Reads all of it once. Raises ArchiveDamaged naming the entry, ArchiveNewer, OSError."""
        self._path = path
        self._places: dict[str, tuple[int, Entry]] = {}
        with path.open("rb") as file:
            self.head = self._check(file)

    @property
    def blobs(self) -> tuple[str, ...]:
        return tuple(name.removeprefix(BLOBS) for name in self._places if name.startswith(BLOBS))

    def records(self) -> Iterator[dict[str, Any]]:
        place, entry = self._places[RECORDS]
        with self._path.open("rb") as file:
            file.seek(place)
            left = entry.size_bytes
            while left > 0:
                line = file.readline()
                left -= len(line)
                yield json.loads(line)

    async def blob(self, sha256: str) -> AsyncIterator[bytes]:
        place, entry = self._places[BLOBS + sha256]
        with self._path.open("rb") as file:
            file.seek(place)
            left = entry.size_bytes
            while left > 0:
                chunk = file.read(min(STEP_BYTES, left))
                left -= len(chunk)
                yield chunk

    def _check(self, file: IO[bytes]) -> Head:
        found: dict[str, tuple[int, Entry]] = {}
        head: Head | None = None
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    found[info.name] = (info.offset_data, _read(file, info, self._path))
                    if info.name == HEAD:
                        head = self._head(file, info)
        except tarfile.TarError as error:
            last = next(reversed(found), "its first entry")
            raise ArchiveDamaged(self._path, f"what follows {last}", f"can't be read ({error})") from error
        if head is None:
            raise ArchiveDamaged(self._path, HEAD, "is missing: this is no backup of labda's")
        if MANIFEST not in found:
            raise ArchiveDamaged(self._path, MANIFEST, "is missing: the archive was cut short")
        file.seek(found[MANIFEST][0])
        self._compare(json.loads(file.read(found[MANIFEST][1].size_bytes))["entries"], found)
        return head

    def _head(self, file: IO[bytes], info: tarfile.TarInfo) -> Head:
        file.seek(info.offset_data)
        try:
            fields = json.loads(file.read(info.size))
            version = int(fields.pop("format"))
        except (ValueError, KeyError, AttributeError) as error:
            raise ArchiveDamaged(self._path, HEAD, f"can't be read ({error})") from error
        if version > FORMAT:
            raise ArchiveNewer(self._path, version)
        return Head(**fields)

    def _compare(self, manifest: list[Mapping[str, Any]], found: dict[str, tuple[int, Entry]]) -> None:
        for fields in manifest:
            meant = Entry(**fields)
            if meant.name not in found:
                raise ArchiveDamaged(self._path, meant.name, "is missing")
            if found[meant.name][1] != meant:
                raise ArchiveDamaged(self._path, meant.name, "has another content than the manifest says")
            self._places[meant.name] = found[meant.name]


def _read(file: IO[bytes], info: tarfile.TarInfo, path: Path) -> Entry:
    file.seek(info.offset_data)
    digest = hashlib.sha256()
    left = info.size
    while left > 0:
        chunk = file.read(min(STEP_BYTES, left))
        if not chunk:
            raise ArchiveDamaged(path, info.name, "was cut short")
        digest.update(chunk)
        left -= len(chunk)
    return Entry(name=info.name, size_bytes=info.size, sha256=digest.hexdigest())


def _encode(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode() + b"\n"
