"""Checks of a code archive when it is uploaded, so that its sender hears then what no worker would unpack.

Owns the limits and AWS's texts for what is wrong with an archive. The rules themselves are ``chassis.archive``'s, which
the worker applies once more, confined, before it writes a byte. What only unpacking shows (data that is corrupt, an
entry that is larger than it says) is told when a sandbox is made. Refuses to know functions.
"""

import io
import struct
import zipfile

from chassis.archive import Refused, plan
from frontend.api.errors import ApiError, invalid_parameter

ZIPPED_BYTES_MAX = 52_428_800
UNZIPPED_BYTES_MAX = 262_144_000
ENTRIES_MAX = 100_000
# The whole directory is read in one turn of the event loop, some 9 us per entry of 47 bytes at least and 100 usually.
DIRECTORY_BYTES_MAX = 4 * 1024 * 1024

_TASK = "/var/task"     # where functions see their code: links may not lead out of it
_FIELD = "ZipFile"
_END = b"PK\x05\x06"
_END_BYTES = 22
_COMMENT_BYTES_MAX = 65_535


def check_archive(data: bytes) -> None:
    """Raise ApiError unless ``data`` is an archive that a worker can be asked to unpack."""
    if len(data) > ZIPPED_BYTES_MAX:
        raise ApiError(
            "RequestEntityTooLargeException", 413, f"Zipped size must be smaller than {ZIPPED_BYTES_MAX} bytes",
            detail={"field": _FIELD, "value_bytes": len(data), "limit_bytes": ZIPPED_BYTES_MAX},
        )
    if (size := _directory_bytes(data)) > DIRECTORY_BYTES_MAX:
        raise _bad(f"its directory has {size} bytes, at most {DIRECTORY_BYTES_MAX} are read: package fewer files")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        _check_content(archive)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise _bad(f"it is no readable zip archive: {error}") from None
    except Refused as refused:
        raise _bad(refused.message, refused.entry) from None


def _check_content(archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    if not entries:
        raise invalid_parameter("Uploaded file must be a non-empty zip", detail={"field": _FIELD, "entries": 0})
    unzipped_bytes = sum(entry.file_size for entry in entries)
    if unzipped_bytes >= UNZIPPED_BYTES_MAX:
        raise invalid_parameter(
            f"Unzipped size must be smaller than {UNZIPPED_BYTES_MAX} bytes",
            detail={"field": _FIELD, "value_bytes": unzipped_bytes, "limit_bytes": UNZIPPED_BYTES_MAX},
        )
    for entry in entries:
        # Made where "\" separates directories. A worker would make one file of this name: not what its packer meant.
        if ".." in entry.filename.replace("\\", "/").split("/"):
            raise Refused("its name leads out of the archive ('..')", entry.filename)
    plan(archive, root=_TASK, size_bytes_max=UNZIPPED_BYTES_MAX, entries_max=ENTRIES_MAX)


def _directory_bytes(data: bytes) -> int:
    """The central directory's size by its end record; 0 when there is none, an upper bound in the 64-bit form."""
    at = data.rfind(_END, max(0, len(data) - _END_BYTES - _COMMENT_BYTES_MAX))
    if at < 0 or len(data) < at + _END_BYTES:
        return 0
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    # 0xFFFFFFFF points to the 64-bit record. No archive within our size limit needs it; the directory fits in before.
    return at if size == 0xFFFFFFFF else size


def _bad(reason: str, entry: str = "") -> ApiError:
    """``entry`` is the offender's name, "" if it is the archive as a whole."""
    about = {"entry": entry} if entry else {}
    return invalid_parameter(
        "Could not unzip uploaded file. Please check your file, then try to upload again.",
        detail={"field": _FIELD, **about, "reason": reason},
    )
