"""Writing a function's archive: what ``chassis.archive`` let pass, into the current directory.

Owns the writing, bounded whatever the archive says of its sizes. Refuses to know about confinement and caches.
"""

import os
import zipfile
import zlib

from chassis.archive import Plan, Refused

TASK = "/var/task"      # where the function sees it
_CHUNK = 256 * 1024


def write(archive: zipfile.ZipFile, wanted: Plan, *, size_bytes_max: int) -> int:
    """Writes the plan into the current directory; returns the bytes written. Raises Refused, OSError."""
    for path in sorted(wanted.directories):
        os.mkdir(path, 0o755)
    written = 0
    for path, entry in wanted.files.items():
        mode = (entry.external_attr >> 16) & 0o777 if entry.create_system == 3 else 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with archive.open(entry) as source:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > size_bytes_max:
                        raise Refused(f"unzipped it is over the limit of {size_bytes_max} bytes", entry.filename)
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(fd, view):]
            os.fchmod(fd, mode or 0o644)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise Refused(f"its data can't be read: {error}", entry.filename) from None
        finally:
            os.close(fd)
    for path, target in wanted.links.items():
        os.symlink(target, path)
    for path in sorted(wanted.directories, reverse=True):   # last, and from below: a mode may forbid writing
        os.chmod(path, wanted.directories[path])
    return written
