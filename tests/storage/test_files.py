"""Blob files: leftovers of crashed writers, full and unusable directories."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.faults import StoreUnavailable
from storage.files import ASIDE, INCOMING, FileBlobs
from tests.storage.contract import pieces


async def test_leftovers_are_swept_and_living_writers_spared(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path / "blobs")
    incoming = tmp_path / "blobs" / INCOMING
    (incoming / "leftover").write_bytes(b"of a crash")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first"
        begun.set()
        await go_on.wait()
        yield b"second"

    putting = asyncio.create_task(blobs.put(slow()))
    await begun.wait()
    FileBlobs(tmp_path / "blobs")
    assert [path.name for path in incoming.iterdir()] != []
    assert not (incoming / "leftover").exists()
    go_on.set()
    blob = await putting
    assert blob.sha256 == hashlib.sha256(b"firstsecond").hexdigest()
    assert b"".join([chunk async for chunk in blobs.get(blob.sha256)]) == b"firstsecond"
    assert list(incoming.iterdir()) == []


async def test_a_cancelled_put_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        begun.set()
        await asyncio.Event().wait()

    blobs = FileBlobs(tmp_path)
    putting = asyncio.create_task(blobs.put(stuck()))
    await begun.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert list((tmp_path / INCOMING).iterdir()) == []
    assert await blobs.list() == ()


async def test_blobs_lie_in_two_levels(tmp_path: Path) -> None:
    blob = await FileBlobs(tmp_path).put(pieces(b"x"))
    assert (tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256).read_bytes() == b"x"


async def test_a_directory_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="can't be used"):
        FileBlobs(tmp_path / "file" / "blobs")


async def test_a_deletion_that_a_crash_cut_short_is_undone(tmp_path: Path) -> None:
    """The file lay aside while it was looked at: it may have been a newer one."""
    blobs = FileBlobs(tmp_path)
    first, second = await blobs.put(pieces(b"1")), await blobs.put(pieces(b"2"))
    for blob in (first, second):
        path = tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
        path.rename(path.with_name(path.name + ASIDE))
    assert await blobs.list() == ()
    await blobs.put(pieces(b"2"))
    opened = FileBlobs(tmp_path)
    assert {blob.sha256 for blob in await opened.list()} == {first.sha256, second.sha256}
    assert not list(tmp_path.glob(f"*/*/*{ASIDE}"))
    assert b"".join([chunk async for chunk in opened.get(first.sha256)]) == b"1"
