"""The contract on SQLite and files, and what only they have: several processes, kill -9, schema versions."""

import asyncio
import contextlib
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.faults import NewerSchema, OutcomeUnknown, StoreUnavailable
from storage.sqlite_file import SCHEMA_VERSION
from tests.storage import contract
from tests.storage.worlds import LOG_CHANGES_MAX, SqliteWorld, eventually

WRITER = [sys.executable, "-m", "tests.storage.other_process"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    world = SqliteWorld(tmp_path)
    yield world
    await world.close()


class TestCompareAndSwap(contract.CompareAndSwapContract): ...


class TestWatch(contract.WatchContract): ...


class TestAcknowledgement(contract.AcknowledgementContract): ...


class TestLease(contract.LeaseContract): ...


class TestBlob(contract.BlobContract): ...


async def test_racing_processes_lose_no_update(world: SqliteWorld) -> None:
    # They also race for creating the file.
    processes = [await asyncio.create_subprocess_exec(*WRITER, "increment", str(world.path), "40") for _ in range(3)]
    try:
        async with asyncio.timeout(120):
            assert [await process.wait() for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    record = await world.metadata().get("n")
    assert record is not None
    assert record.value == b"120"


async def test_a_watch_sees_another_process(world: SqliteWorld) -> None:
    store = world.metadata()
    watching = asyncio.create_task(contract.first_changes(store, "n", after=0, count=5))
    process = await asyncio.create_subprocess_exec(*WRITER, "increment", str(world.path), "5")
    assert await process.wait() == 0
    assert [change.value for change in await watching] == [b"1", b"2", b"3", b"4", b"5"]


async def test_what_was_acknowledged_outlives_kill_9(world: SqliteWorld) -> None:
    process = subprocess.Popen([*WRITER, "write", str(world.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, contextlib.closing(process.stdout):
        acknowledged = [process.stdout.readline() for _ in range(50)]
        process.kill()
        acknowledged += [line for line in process.stdout if line.endswith("\n")]
    listing = await world.metadata().list("k/")
    kept = {record.key: record.revision for record in listing.records}
    assert len(acknowledged) >= 50
    for line in acknowledged:
        key, revision = line.split()
        assert kept[key] == int(revision)
    # At most what was under way comes on top, and the store goes on from there.
    assert listing.revision == max(kept.values())
    assert await world.metadata().put("after", b"", expected=0) == listing.revision + 1


async def test_every_commit_is_synced(world: SqliteWorld) -> None:
    # kill -9 leaves the page cache alone, so that only the settings speak for a power loss.
    connection = world.metadata()._writer.connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_write_cancelled_before_it_began_never_happens(world: SqliteWorld) -> None:
    store = world.metadata()
    async with world.out_of_reach(store):
        writing = asyncio.create_task(store.put("a", b"", expected=0))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await store.put("b", b"", expected=0)
    assert [record.key for record in (await store.list("")).records] == ["b"]


async def test_a_refusal_in_a_batch_leaves_its_neighbours_alone(world: SqliteWorld) -> None:
    store = world.metadata()
    outcomes = await asyncio.gather(
        *(store.put(f"k/{number}", b"", expected=number % 2) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 10
    assert len((await store.list("k/")).records) == 10


async def test_a_commit_that_fails_is_unknown_and_the_writer_lives_on(world: SqliteWorld) -> None:
    store = world.metadata()
    connection = store._writer.connection
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY)")
    connection.execute("CREATE TEMP TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(OutcomeUnknown):
        # A deferred constraint is an honest way to make COMMIT itself fail.
        await store._writer.order("a", lambda db: db.execute("INSERT INTO temp.child VALUES (1)").rowcount)
    await store.put("b", b"", expected=0)


async def test_a_file_of_a_newer_version_is_refused(world: SqliteWorld) -> None:
    store = world.metadata()
    await store.put("a", b"", expected=0)
    with contextlib.closing(sqlite3.connect(world.path)) as newer, newer:
        newer.execute("UPDATE store SET schema_version = ?", (SCHEMA_VERSION + 1,))
    with pytest.raises(NewerSchema, match=f"schema version {SCHEMA_VERSION + 1}.*use the newer program"):
        world.metadata()
    # A process that had it open before notices at its next write.
    with pytest.raises(NewerSchema):
        await store.put("b", b"", expected=0)


async def test_a_file_that_is_no_database_is_refused(world: SqliteWorld) -> None:
    world.path.write_bytes(b"something else" * 1000)
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        world.metadata()


async def test_only_the_owner_reads_the_file(world: SqliteWorld) -> None:
    await world.metadata().put("a", b"", expected=0)
    for path in world.path.parent.glob("metadata.sqlite3*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_an_idle_watch_slows_down_and_a_finished_one_stops_polling(world: SqliteWorld) -> None:
    store = world.metadata()
    watching = asyncio.create_task(contract.first_changes(store, "k", after=0, count=1))
    quiet_polls = store._settings.quiet_polls
    await eventually(lambda: store._news._unchanged >= quiet_polls)
    await world.metadata().put("k", b"", expected=0)
    await watching
    assert store._news._timer is None


async def test_a_watch_is_not_woken_for_what_it_does_not_watch(world: SqliteWorld) -> None:
    store, other = world.metadata(), world.metadata()
    watching = asyncio.create_task(contract.first_changes(store, "k", after=0, count=1))
    await eventually(lambda: store._news._unchanged > 0)
    waited_for = store._news.next
    for number in range(3):     # placement's leadership is renewed once a second
        await other.put("leadership", bytes([number]), expected=None)
    seen = (await other.list("")).revision
    await eventually(lambda: store._news._looked == seen)
    assert store._news.next is waited_for
    await other.put("k", b"", expected=0)
    assert [change.key for change in await watching] == ["k"]


async def test_a_watch_that_nothing_concerned_does_not_fall_behind_the_log(world: SqliteWorld) -> None:
    store, other = world.metadata(short_log=True), world.metadata(short_log=True)
    watching = asyncio.create_task(contract.first_changes(store, "k", after=0, count=1))
    await eventually(lambda: store._news._unchanged > 0)
    for _ in range(4 * LOG_CHANGES_MAX):
        revision = await other.put("leadership", b"", expected=None)
        await eventually(lambda: store._news._looked == revision)  # noqa: B023 -- looked at before the next one
    await other.put("k", b"", expected=0)
    assert [change.key for change in await watching] == ["k"]
