"""What a zip may contain that is to be unpacked into one directory: decided from the archive's own directory alone.

Owns the rules of refusal, each naming the entry. Two ask: who takes an upload, so that its sender hears at once, and
who unpacks it, because what was checked elsewhere isn't trusted there. Refuses to know what the archive is for and how
it is written. Modes and links inside the archive are kept; of two entries with one name the last wins.
"""

import os
import posixpath
import stat
import zipfile
import zlib
from dataclasses import dataclass

NAME_BYTES_MAX, PART_BYTES_MAX, LINK_BYTES_MAX = 4095, 255, 4095


class Refused(Exception):
    """The archive breaks a rule; `entry` is the offender's name, "" if it is the archive as a whole."""

    def __init__(self, message: str, entry: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.entry = entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be written, by path relative to the target; links come last, so that no write follows one."""

    directories: dict[str, int]             # path -> mode
    files: dict[str, zipfile.ZipInfo]
    links: dict[str, str]                   # path -> target
    size_bytes: int


def plan(archive: zipfile.ZipFile, *, root: str, size_bytes_max: int, entries_max: int) -> Plan:
    """Checks every entry. ``root`` is the absolute path at which the content will be seen. Raises Refused."""
    entries = archive.infolist()
    if len(entries) > entries_max:
        raise Refused(f"it has {len(entries)} entries, more than the {entries_max} allowed")
    _refuse_overlaps(archive, entries)
    total = 0
    directories: dict[str, int] = {}
    files: dict[str, zipfile.ZipInfo] = {}
    links: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        path = _checked_path(entry)
        kind, mode = _checked_kind(entry)
        total += entry.file_size
        if total > size_bytes_max:
            raise Refused(f"unzipped it is over the limit of {size_bytes_max} bytes", entry.filename)
        files.pop(path, None)
        links.pop(path, None)
        if kind == stat.S_IFDIR:
            if path:
                directories[path] = mode
            continue
        if not path:
            raise Refused("a file needs a name", entry.filename)
        directories.pop(path, None)
        (links if kind == stat.S_IFLNK else files)[path] = entry
    _refuse_nesting(files, links)
    targets = {path: _checked_link(archive, path, entry, root) for path, entry in links.items()}
    for path in (*directories, *files, *links):
        parent = posixpath.dirname(path)
        while parent and parent not in directories:
            directories[parent] = 0o755
            parent = posixpath.dirname(parent)
    return Plan(directories=directories, files=files, links=targets, size_bytes=total)


def _checked_path(entry: zipfile.ZipInfo) -> str:
    # The name before zipfile's own tidying, which would hide a NUL.
    name = entry.orig_filename
    if "\0" in name:
        raise Refused("its name holds a NUL", entry.filename)
    if name.startswith("/"):
        raise Refused("its name is absolute", name)
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise Refused("its name leads out of the archive ('..')", name)
    try:
        encoded = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise Refused("its name is no text", ascii(name)) from None
    if sum(encoded) + len(encoded) > NAME_BYTES_MAX or any(size > PART_BYTES_MAX for size in encoded):
        raise Refused("its name is too long", name[:80])
    return "/".join(parts)


def _checked_kind(entry: zipfile.ZipInfo) -> tuple[int, int]:
    """(file type, mode); type is one of S_IFREG, S_IFDIR, S_IFLNK."""
    if entry.flag_bits & 0x1:
        raise Refused("it is encrypted", entry.filename)
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Refused(f"its compression method {entry.compress_type} is neither stored nor deflated", entry.filename)
    unix = entry.external_attr >> 16 if entry.create_system == 3 else 0
    directory = entry.filename.endswith("/")
    kind = stat.S_IFMT(unix) or (stat.S_IFDIR if directory else stat.S_IFREG)
    if kind not in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
        raise Refused("it is no file, directory or link (a device, pipe or socket)", entry.filename)
    if directory != (kind == stat.S_IFDIR):
        raise Refused("its name and its type disagree on whether it is a directory", entry.filename)
    if unix & (stat.S_ISUID | stat.S_ISGID):
        raise Refused("it is setuid or setgid", entry.filename)
    return kind, (unix & 0o777) or (0o755 if directory else 0o644)


def _checked_link(archive: zipfile.ZipFile, path: str, entry: zipfile.ZipInfo, root: str) -> str:
    if entry.file_size > LINK_BYTES_MAX:
        raise Refused("it is a link with a target that is too long", entry.filename)
    try:
        target = os.fsdecode(archive.read(entry))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Refused(f"its data can't be read: {error}", entry.filename) from None
    if not target or "\0" in target:
        raise Refused("it is a link without a target", entry.filename)
    where = posixpath.normpath(posixpath.join(root, posixpath.dirname(path), target))
    if where != root and not where.startswith(root + "/"):
        raise Refused(f"it is a link that leads out of the archive ({target[:80]!r})", entry.filename)
    return target


def _refuse_nesting(files: dict[str, zipfile.ZipInfo], links: dict[str, zipfile.ZipInfo]) -> None:
    """Nothing may lie below a file or a link: that would write through the link."""
    for path in (*files, *links):
        parent = posixpath.dirname(path)
        while parent:
            if parent in files or parent in links:
                raise Refused(f"it lies below {parent!r}, which is no directory", path)
            parent = posixpath.dirname(parent)


def _refuse_overlaps(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Two entries that share bytes are how small archives claim petabytes."""
    end = archive.start_dir
    for entry in sorted(entries, key=lambda item: item.header_offset, reverse=True):
        smallest = 30 + len(entry.orig_filename.encode("utf-8", "surrogateescape")) if entry.flag_bits & 0x800 else 30
        if entry.header_offset < 0 or entry.header_offset + smallest + entry.compress_size > end:
            raise Refused("its data overlaps another entry's or the directory", entry.filename)
        end = entry.header_offset
