"""A disk that can be filled: a tmpfs of a few megabytes, and files of a running cluster moved onto it and back.

Owns the mount, and that a folder's path leads to the newest whole copy of its files: what a process left there must
neither be lost nor come back older than it was. Whoever uses the files doesn't run while they are moved.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

SIZE_MB = 16
FILLING = "filling"
MOUNT = "small-disk"        # beside the folder that is on it
_NEW = ".new"


class SmallDisk:
    """``path`` is where it is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Until not one byte more fits."""
        with (self.path / FILLING).open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1 << 6, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self) -> None:
        (self.path / FILLING).unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


def mount(path: Path, *, size_mb: int) -> SmallDisk:
    """Raises OSError or CalledProcessError (not root)."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "labda-small-disk", str(path)],
        check=True, capture_output=True,
    )
    return SmallDisk(path)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


def move_onto(folder: Path) -> SmallDisk:
    """``folder``'s files onto a small disk beside it, where its path leads from then on. Raises as ``mount``."""
    if folder.is_symlink():
        return SmallDisk(folder.parent / MOUNT)
    disk = mount(folder.parent / MOUNT, size_mb=SIZE_MB)
    shutil.copytree(folder, disk.path / folder.name)
    aside = folder.with_name(folder.name + _NEW)
    aside.unlink(missing_ok=True)
    aside.symlink_to(disk.path / folder.name)
    before = folder.with_name(folder.name + ".before")
    folder.rename(before)
    aside.rename(folder)
    shutil.rmtree(before)   # older than the copy from the first write on
    return disk


def move_back(folder: Path) -> None:
    """The reverse; nothing of the disk is left. Does nothing where it isn't on one."""
    if not folder.is_symlink():
        return
    disk = folder.parent / MOUNT
    aside = folder.with_name(folder.name + _NEW)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(disk / folder.name, aside)
    for path in (*aside.iterdir(), aside):
        _sync(path)
    folder.unlink()
    aside.rename(folder)
    _sync(folder.parent)
    unmount(disk)
    disk.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

