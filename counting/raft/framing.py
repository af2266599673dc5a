"""Checksummed records in a file: length, CRC-32, bytes. Shared by the journal and the dump.

Tells a torn tail (a write that a crash cut short: nothing of it was acknowledged) from damage (bytes that changed after
they were written: something acknowledged may be gone). Refuses to know what the records mean.
"""

import os
import struct
import zlib
from pathlib import Path

_HEAD = struct.Struct("<II")
SECTOR = 512


class DamagedFileError(Exception):
    """Acknowledged bytes are gone or changed. The member must not vote under its old id again: make a new member."""


def frame(payload: bytes) -> bytes:
    """A record: length and checksum, then the payload. The checksum covers the length, so zeroes are never a record."""
    length = len(payload)
    return _HEAD.pack(length, _crc(length, payload)) + payload


def _crc(length: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(length.to_bytes(4, "little")))


def read_frame(data: bytes, at: int) -> bytes | None:
    """The payload of the record at `at`, or None when there is no whole and sound one."""
    if at + _HEAD.size > len(data):
        return None
    length, crc = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if end > len(data):
        return None
    payload = data[at + _HEAD.size : end]
    return payload if _crc(length, payload) == crc else None


def frames(data: bytes, name: str) -> tuple[list[bytes], int]:
    """All records, and where the sound part ends (below `len(data)`: a torn tail follows).

    Raises DamagedFileError when what follows the sound part isn't a torn write.
    """
    records: list[bytes] = []
    at = 0
    while at < len(data):
        payload = read_frame(data, at)
        if payload is None:
            _require_torn(data, at, name)
            break
        records.append(payload)
        at += _HEAD.size + len(payload)
    return records, at


def _require_torn(data: bytes, at: int, name: str) -> None:
    """A torn write ends the file: no sound record follows it, and it is short or has sectors that were never
    written."""
    rest = data[at:]
    if any(read_frame(data, later) is not None for later in range(at + 1, len(data) - _HEAD.size + 1)):
        raise DamagedFileError(
            f"{name}: the record at byte {at} is damaged and sound ones follow it. This member's log can't be trusted: "
            f"move its directory away and add a new member under a new id"
        )
    if len(rest) >= _HEAD.size and _crc(len(rest) - _HEAD.size, rest[_HEAD.size:]) == _HEAD.unpack_from(rest)[1]:
        raise DamagedFileError(
            f"{name}: the length of the last record (byte {at}) was changed after it was written: it is whole. This "
            f"member's log can't be trusted: move its directory away and add a new member under a new id"
        )
    short = len(rest) < _HEAD.size or at + _HEAD.size + _HEAD.unpack_from(rest)[0] > len(data)
    if not short and not _has_empty_sector(data, at):
        raise DamagedFileError(
            f"{name}: the last record (byte {at}) is whole but fails its checksum, so it isn't a torn write. This "
            f"member's log can't be trusted: move its directory away and add a new member under a new id"
        )


def _has_empty_sector(data: bytes, at: int) -> bool:
    """Whether some sector of the last record reads as zeroes, up to the file's end: its write never reached the
    disk."""
    start = at
    while start < len(data):
        end = min((start // SECTOR + 1) * SECTOR, len(data))
        if end - start >= _HEAD.size and not any(data[start:end]):
            return True
        start = end
    return False


def replace_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Puts `data` in the place of `path`, whole or not at all, also across a power cut."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
