"""Checks of a code archive that need no unpacking (the worker unpacks, confined).

Owns reading the zip's central directory and AWS's texts for what is wrong with it. Refuses to know functions.
"""

import io
import struct
import zipfile
from pathlib import PurePosixPath

from frontend.api.errors import ApiError, invalid_parameter

ZIPPED_BYTES_MAX = 52_428_800
UNZIPPED_BYTES_MAX = 262_144_000
# Reading a directory takes about 5 us per entry of the event loop's time. The smallest entry has 47 bytes.
DIRECTORY_BYTES_MAX = 8 * 1024 * 1024

_END = b"PK\x05\x06"
_END_BYTES = 22
_COMMENT_BYTES_MAX = 65_535
_ENCRYPTED = 0x1
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def check_archive(data: bytes) -> None:
    """Raise ApiError unless ``data`` is an archive that a worker can be asked to unpack."""
    if len(data) > ZIPPED_BYTES_MAX:
        raise ApiError(
            "RequestEntityTooLargeException", 413, f"Zipped size must be smaller than {ZIPPED_BYTES_MAX} bytes"
        )
    if _directory_bytes(data) > DIRECTORY_BYTES_MAX:
        raise _bad(f"Its central directory is larger than {DIRECTORY_BYTES_MAX} bytes: package fewer files.")
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise _bad(str(error)) from None
    if not entries:
        raise invalid_parameter("Uploaded file must be a non-empty zip")
    for entry in entries:
        _check_entry(entry)
    if sum(entry.file_size for entry in entries) >= UNZIPPED_BYTES_MAX:
        raise invalid_parameter(f"Unzipped size must be smaller than {UNZIPPED_BYTES_MAX} bytes")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if entry.flag_bits & _ENCRYPTED:
        raise _bad(f"{name} is encrypted: package it without a password.")
    if entry.compress_type not in _METHODS:
        raise _bad(f"{name} is compressed by method {entry.compress_type}: only stored and deflated files are read.")
    if path.is_absolute() or ".." in path.parts or not name or "\x00" in name:
        raise _bad(f"{name!r} would leave the function's directory.")


def _directory_bytes(data: bytes) -> int:
    """The central directory's size by its end record; 0 when there is none, an upper bound in the 64-bit form."""
    at = data.rfind(_END, max(0, len(data) - _END_BYTES - _COMMENT_BYTES_MAX))
    if at < 0 or len(data) < at + _END_BYTES:
        return 0
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    # 0xFFFFFFFF points to the 64-bit record. No archive within our size limit needs it; the directory fits in before.
    return at if size == 0xFFFFFFFF else size


def _bad(why: str) -> ApiError:
    return invalid_parameter(
        "Could not unzip uploaded file. Please check your file, then try to upload again.", detail=why
    )
