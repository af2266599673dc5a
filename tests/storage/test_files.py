"""Blob files: leftovers of crashed writers, full and unusable directories."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage import files
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


async def test_two_deletions_at_once_spare_what_is_put_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two collectors go by the same listing. One has looked at what it moved aside; the bytes are put again; the other
    one moves these aside; the first one removes what it looked at.
    """
    blobs = FileBlobs(tmp_path)
    old = await blobs.put(pieces(b"code"))
    looked, overtaken, removed = threading.Event(), threading.Event(), threading.Event()
    steps = iter([(looked, overtaken), None, (overtaken, removed)])     # the second look is the put's

    def look(status: os.stat_result) -> str:
        step = next(steps)
        if step is not None:
            step[0].set()
            assert step[1].wait(60)
        return put_id(status)

    put_id = files._put_id
    monkeypatch.setattr(files, "_put_id", look)
    first = asyncio.create_task(blobs.delete(old))
    assert await asyncio.to_thread(looked.wait, 60)
    await blobs.put(pieces(b"code"))
    second = asyncio.create_task(blobs.delete(old))
    assert await first
    removed.set()
    assert not await second
    assert b"".join([chunk async for chunk in blobs.get(old.sha256)]) == b"code"
    assert not list(tmp_path.glob(f"*/*/*{ASIDE}"))


async def test_a_deletion_that_a_crash_cut_short_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file lay aside while it was looked at: it may have been a newer one."""
    blobs = FileBlobs(tmp_path)
    first, second = await blobs.put(pieces(b"1")), await blobs.put(pieces(b"2"))
    with monkeypatch.context() as crash:
        crash.setattr(Path, "unlink", _crashes)
        for blob in (first, second):
            with pytest.raises(RuntimeError):
                await blobs.delete(blob)
    assert len(list(tmp_path.glob(f"*/*/*{ASIDE}"))) == 2
    assert await blobs.list() == ()
    await blobs.put(pieces(b"2"))
    opened = FileBlobs(tmp_path)
    assert {blob.sha256 for blob in await opened.list()} == {first.sha256, second.sha256}
    assert not list(tmp_path.glob(f"*/*/*{ASIDE}"))
    assert b"".join([chunk async for chunk in opened.get(first.sha256)]) == b"1"


def _crashes(_path: Path, missing_ok: bool = False) -> None:
    raise RuntimeError("a crash")
