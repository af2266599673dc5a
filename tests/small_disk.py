"""A small disk for one test, of what happens when there is no room."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from labda.chaos.small_disk import FILLING, SmallDisk, mount, unmount

__all__ = ["FILLING", "SmallDisk", "small_disk"]


@contextlib.contextmanager
def small_disk(path: Path, *, size_mb: int) -> Iterator[SmallDisk]:
    """Mounts it; whatever happens, nothing is left of it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a tmpfs")
    disk = mount(path, size_mb=size_mb)
    try:
        yield disk
    finally:
        unmount(path)
