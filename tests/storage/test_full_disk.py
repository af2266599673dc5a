"""A full disk: writes are refused by name, nothing is half-written, reads go on, and with room everything does."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.clock import SystemClock
from chassis.faults import FaultCode
from storage.faults import StoreFull
from storage.files import INCOMING, FileBlobs
from storage.sqlite import SqliteMetadata
from tests.small_disk import SmallDisk, small_disk
from tests.storage.contract import pieces


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_mb=4) as made:
        yield made


async def test_blobs(disk: SmallDisk) -> None:
    blobs = FileBlobs(disk.path / "blobs")
    kept = await blobs.put(pieces(b"kept"))
    disk.fill()
    with pytest.raises(StoreFull, match=r"disk of .* is full, a blob was not written: free some space") as caught:
        await blobs.put(pieces(os.urandom(300_000)))
    assert caught.value.definite
    assert caught.value.code is FaultCode.EXHAUSTED
    assert await blobs.list() == (kept,)
    assert list((disk.path / "blobs" / INCOMING).iterdir()) == []
    assert b"".join([chunk async for chunk in blobs.get(kept.sha256)]) == b"kept"
    disk.empty()
    assert await blobs.has((await blobs.put(pieces(b"later"))).sha256)


async def test_a_blob_larger_than_the_rest_of_the_disk(disk: SmallDisk) -> None:
    blobs = FileBlobs(disk.path / "blobs")
    with pytest.raises(StoreFull):
        await blobs.put(pieces(os.urandom(6_000_000)))
    assert disk.free_bytes > 3_000_000, "what had been written was given back"


async def test_metadata(disk: SmallDisk) -> None:
    store = SqliteMetadata(disk.path / "metadata.sqlite3", SystemClock())
    try:
        before = await store.put("kept", b"1", expected=0)
        disk.fill()
        # What is left of the log's pages may still take a few.
        refused: list[StoreFull] = []
        for number in range(200):
            try:
                before = await store.put(f"k/{number}", bytes(20_000), expected=0)
            except StoreFull as full:
                refused.append(full)
        assert len(refused) > 100
        assert all(full.definite and "metadata.sqlite3 is full" in full.message for full in refused)
        written = await store.list("k/")
        assert len(written.records) == 200 - len(refused), "what was refused isn't there, what was acknowledged is"
        assert written.revision == before, "a refused write takes no revision"
        record = await store.get("kept")
        assert record is not None
        with pytest.raises(StoreFull):
            await store.acknowledge("frontend-1", before, 10.0)
        disk.empty()
        assert await store.put("kept", b"2", expected=record.revision) == before + 1
        await store.acknowledge("frontend-1", before, 10.0)
    finally:
        await store.close()
    again = SqliteMetadata(disk.path / "metadata.sqlite3", SystemClock())
    try:
        found = await again.get("kept")
        assert found is not None
        assert found.value == b"2"
        assert (await again.list("k/")).records == written.records, "also for who opens it anew"
    finally:
        await again.close()


async def test_watches_go_on_over_a_full_disk(disk: SmallDisk) -> None:
    store = SqliteMetadata(disk.path / "metadata.sqlite3", SystemClock())
    try:
        watch = aiter(store.watch("", after=0))
        await store.put("a", b"1", expected=0)
        assert (await anext(watch)).key == "a"
        disk.fill()
        following = asyncio.ensure_future(anext(watch))
        with contextlib.suppress(StoreFull):
            await store.put("b", bytes(500_000), expected=0)
        disk.empty()
        await store.put("c", b"1", expected=0)
        async with asyncio.timeout(30):
            assert (await following).key == "c"
            await watch.aclose()  # type: ignore[attr-defined]
    finally:
        await store.close()
