"""What every implementation of the storage interfaces has to keep. Test modules inherit these classes and give `world`.

Owns the promises of storage/interfaces.py as tests. Refuses to know implementations (worlds.py does).
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest

from storage.faults import (
    BlobCorrupt,
    BlobMissing,
    Conflict,
    OutcomeUnknown,
    StaleLease,
    StoreClosed,
    StoreUnavailable,
    WatchGap,
)
from storage.interfaces import Blob, Change, Leadership, LeaseRecord, MetadataStore
from storage.leases import MetadataLeases
from tests.storage.worlds import LOG_CHANGES_MAX, BlobWorld, MetadataWorld

T = TypeVar("T")

WATCH_S = 60.0


async def first_changes(store: MetadataStore, prefix: str, *, after: int, count: int) -> list[Change]:
    found: list[Change] = []
    async with asyncio.timeout(WATCH_S):
        async with contextlib.aclosing(store.watch(prefix, after=after)) as changes:  # type: ignore[type-var]
            async for change in changes:
                found.append(change)
                if len(found) == count:
                    return found
    raise AssertionError("the watch ended")


async def exhaust(items: AsyncIterator[T], into: list[T] | None = None) -> None:
    async for item in items:
        if into is not None:
            into.append(item)


async def increment(store: MetadataStore, key: str, times: int) -> None:
    for _ in range(times):
        while True:
            record = await store.get(key)
            number = int(record.value) if record else 0
            try:
                await store.put(key, b"%d" % (number + 1), expected=record.revision if record else 0)
            except Conflict:
                continue
            break


class CompareAndSwapContract:
    async def test_a_record_is_read_back_with_its_revision(self, world: MetadataWorld) -> None:
        store = world.metadata()
        revision = await store.put("a/1", b"one", expected=0)
        record = await store.get("a/1")
        assert record is not None
        assert (record.key, record.value, record.revision) == ("a/1", b"one", revision)
        assert await store.get("a/2") is None

    async def test_revisions_grow_over_the_whole_store(self, world: MetadataWorld) -> None:
        store = world.metadata()
        revisions = [await store.put(key, b"", expected=None) for key in ("a", "b", "a", "c")]
        revisions.append(await store.delete("b", expected=None))
        assert revisions == sorted(set(revisions))
        record = await store.get("a")
        assert record is not None
        assert record.revision == revisions[2]
        assert (await store.list("")).revision == revisions[-1]

    async def test_a_wrong_expectation_changes_nothing_and_tells_what_is_there(self, world: MetadataWorld) -> None:
        store = world.metadata()
        revision = await store.put("a", b"one", expected=0)
        for expected in (0, revision + 1):
            with pytest.raises(Conflict) as conflict:
                await store.put("a", b"two", expected=expected)
            assert (conflict.value.expected, conflict.value.found) == (expected, revision)
            assert conflict.value.definite
        with pytest.raises(Conflict):
            await store.delete("a", expected=revision + 1)
        with pytest.raises(Conflict):
            await store.put("b", b"", expected=revision)
        record = await store.get("a")
        assert record is not None
        assert record.value == b"one"
        assert (await store.list("")).revision == revision

    async def test_a_key_made_again_is_not_mistaken_for_the_old_one(self, world: MetadataWorld) -> None:
        store = world.metadata()
        old = await store.put("a", b"same", expected=0)
        await store.delete("a", expected=old)
        await store.put("a", b"same", expected=0)
        with pytest.raises(Conflict):
            await store.put("a", b"late", expected=old)

    async def test_deleting_what_is_not_there(self, world: MetadataWorld) -> None:
        store = world.metadata()
        revision = await store.put("a", b"", expected=0)
        assert await store.delete("b", expected=None) == revision
        with pytest.raises(Conflict):
            await store.delete("b", expected=revision)

    async def test_racing_tasks_lose_no_update(self, world: MetadataWorld) -> None:
        clients = [world.metadata() for _ in range(3)]
        await asyncio.gather(*(increment(clients[number % 3], "n", 10) for number in range(9)))
        record = await clients[0].get("n")
        assert record is not None
        assert record.value == b"90"

    async def test_one_of_many_creators_wins(self, world: MetadataWorld) -> None:
        store = world.metadata()
        outcomes = await asyncio.gather(
            *(store.put("a", b"%d" % number, expected=0) for number in range(20)), return_exceptions=True
        )
        winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
        assert len(winners) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
        record = await store.get("a")
        assert record is not None
        assert record.value == b"%d" % winners[0]

    async def test_a_listing_holds_the_prefix_by_key(self, world: MetadataWorld) -> None:
        store = world.metadata()
        for key in ("b/2", "b/10", "b", "b/~", "b0", "a/1", "c"):
            await store.put(key, key.encode(), expected=0)
        assert [record.key for record in (await store.list("b/")).records] == ["b/10", "b/2", "b/~"]
        assert len((await store.list("")).records) == 7

    @pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 1025])
    async def test_a_key_that_not_all_stores_can_hold_is_refused(self, world: MetadataWorld, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            await world.metadata().put(key, b"", expected=None)

    async def test_a_value_too_large_is_refused(self, world: MetadataWorld) -> None:
        store = world.metadata()
        await store.put("a", bytes(1024 * 1024), expected=0)
        with pytest.raises(ValueError, match="at most"):
            await store.put("b", bytes(1024 * 1024 + 1), expected=0)

    async def test_a_lost_answer_is_unknown_and_the_store_goes_on(self, world: MetadataWorld) -> None:
        store = world.metadata()
        async with world.lost_answers(store):
            with pytest.raises(OutcomeUnknown) as unknown:
                await store.put("a", b"one", expected=0)
            assert not unknown.value.definite
        # Read again before acting: in these worlds the write happens in the end.
        async with asyncio.timeout(WATCH_S):
            while (record := await store.get("a")) is None:
                await asyncio.sleep(0.005)
        await store.put("a", b"two", expected=record.revision)

    async def test_a_write_that_did_not_begin_certainly_did_not_happen(self, world: MetadataWorld) -> None:
        store, other = world.metadata(), world.metadata()
        async with world.out_of_reach(store):
            with pytest.raises(StoreUnavailable) as unavailable:
                await store.put("a", b"one", expected=0)
            assert unavailable.value.definite
            assert await other.get("a") is None
        await store.put("b", b"", expected=0)
        assert [record.key for record in (await store.list("")).records] == ["b"]

    async def test_a_closed_store_refuses(self, world: MetadataWorld) -> None:
        store = world.metadata()
        await store.close()
        await store.close()
        with pytest.raises(StoreClosed):
            await store.get("a")
        with pytest.raises(StoreClosed):
            await store.put("a", b"", expected=None)


class WatchContract:
    async def test_changes_come_in_order_with_deletions(self, world: MetadataWorld) -> None:
        store, other = world.metadata(), world.metadata()
        start = (await store.list("w/")).revision
        watching = asyncio.create_task(first_changes(store, "w/", after=start, count=4))
        revisions = [
            await other.put("w/1", b"a", expected=0),
            await other.put("x/1", b"-", expected=0),
            await other.put("w/2", b"b", expected=0),
            await other.delete("w/1", expected=None),
            await other.put("w/1", b"c", expected=0),
        ]
        assert await watching == [
            Change(key="w/1", value=b"a", revision=revisions[0]),
            Change(key="w/2", value=b"b", revision=revisions[2]),
            Change(key="w/1", value=None, revision=revisions[3]),
            Change(key="w/1", value=b"c", revision=revisions[4]),
        ]

    async def test_list_then_watch_misses_and_repeats_nothing(self, world: MetadataWorld) -> None:
        writer, reader = world.metadata(), world.metadata()
        half = asyncio.Event()
        written: list[int] = []

        async def write() -> None:
            for number in range(300):
                written.append(await writer.put(f"k/{number % 7}", b"%d" % number, expected=None))
                if number == 100:
                    half.set()
                await asyncio.sleep(0)  # a store in memory never suspends by itself

        writing = asyncio.create_task(write())
        await half.wait()
        listing = await reader.list("k/")
        state = {record.key: record.value for record in listing.records}
        await writing
        missing = [revision for revision in written if revision > listing.revision]
        changes = await first_changes(reader, "k/", after=listing.revision, count=len(missing))
        assert [change.revision for change in changes] == missing
        for change in changes:
            assert change.value is not None
            state[change.key] = change.value
        assert state == {record.key: record.value for record in (await reader.list("k/")).records}

    async def test_a_trimmed_log_is_a_gap(self, world: MetadataWorld) -> None:
        store = world.metadata(short_log=True)
        first = await store.put("k", b"", expected=0)
        for number in range(3 * LOG_CHANGES_MAX):
            await store.put("k", b"%d" % number, expected=None)
        with pytest.raises(WatchGap) as gap:
            await first_changes(store, "k", after=first, count=1)
        assert gap.value.definite
        newest = (await store.list("k")).revision
        found = await first_changes(store, "k", after=newest - LOG_CHANGES_MAX, count=LOG_CHANGES_MAX)
        assert found[-1].revision == newest

    async def test_a_consumer_that_falls_behind_finds_the_gap(self, world: MetadataWorld) -> None:
        store = world.metadata(short_log=True)
        start = (await store.list("")).revision
        await store.put("k", b"first", expected=0)
        async with contextlib.aclosing(store.watch("k", after=start)) as changes:  # type: ignore[type-var]
            assert (await anext(changes)).value == b"first"
            for number in range(3 * LOG_CHANGES_MAX):
                await store.put("k", b"%d" % number, expected=None)
            with pytest.raises(WatchGap):
                await asyncio.wait_for(exhaust(changes), WATCH_S)

    async def test_changes_elsewhere_make_no_gap(self, world: MetadataWorld) -> None:
        store = world.metadata(short_log=True)
        before = (await store.list("")).revision
        watching = asyncio.create_task(first_changes(store, "quiet/", after=before, count=1))
        for number in range(6 * LOG_CHANGES_MAX):
            revision = await store.put("busy", b"%d" % number, expected=None)
            await asyncio.sleep(0)  # a store in memory never suspends by itself
            if number % 4 == 0:
                await first_changes(store, "busy", after=before, count=1)  # lets the other watch keep up
            before = revision
        await store.put("quiet/1", b"", expected=0)
        assert (await watching)[0].key == "quiet/1"

    async def test_a_revision_of_the_future_is_a_gap(self, world: MetadataWorld) -> None:
        store = world.metadata()
        revision = await store.put("k", b"", expected=0)
        with pytest.raises(WatchGap):
            await first_changes(store, "k", after=revision + 1, count=1)

    async def test_closing_ends_watches(self, world: MetadataWorld) -> None:
        store = world.metadata()
        start = (await store.list("")).revision
        watching = asyncio.create_task(first_changes(store, "k", after=start, count=1))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosed):
            await watching


class AcknowledgementContract:
    async def test_acknowledgements_are_seen_by_others_until_they_lapse(self, world: MetadataWorld) -> None:
        store, other = world.metadata(), world.metadata()
        await store.acknowledge("frontend-1", 5, 10.0)
        await other.acknowledge("frontend-2", 7, 20.0)
        found = await other.acknowledgements()
        assert [(item.watcher, item.revision) for item in found] == [("frontend-1", 5), ("frontend-2", 7)]
        assert found[0].expires_at == world.clock.now + 10.0
        world.clock.now += 10.0
        assert [item.watcher for item in await store.acknowledgements()] == ["frontend-2"]

    async def test_a_renewal_never_lowers_the_revision(self, world: MetadataWorld) -> None:
        store = world.metadata()
        await store.acknowledge("frontend-1", 5, 10.0)
        await store.acknowledge("frontend-1", 3, 30.0)
        (found,) = await store.acknowledgements()
        assert (found.revision, found.expires_at) == (5, world.clock.now + 30.0)

    async def test_a_promise_is_given_back(self, world: MetadataWorld) -> None:
        store = world.metadata()
        await store.acknowledge("frontend-1", 5, 10.0)
        await store.acknowledge("frontend-1", 5, 0.0)
        assert await store.acknowledgements() == ()

    async def test_a_watcher_that_lapsed_begins_anew(self, world: MetadataWorld) -> None:
        store = world.metadata()
        await store.acknowledge("frontend-1", 5, 10.0)
        world.clock.now += 10.0
        await store.acknowledge("frontend-1", 0, 10.0)
        assert [item.revision for item in await store.acknowledgements()] == [0]

    async def test_acknowledging_is_no_change(self, world: MetadataWorld) -> None:
        """It is neither listed nor watched."""
        store = world.metadata()
        before = (await store.list("")).revision
        await store.acknowledge("frontend-1", 5, 10.0)
        assert (await store.list("")).records == ()
        revision = await store.put("k", b"", expected=0)
        assert await first_changes(store, "", after=before, count=1) == [Change(key="k", value=b"", revision=revision)]


def lease(number: int, manager: str, worker: str = "w1") -> LeaseRecord:
    return LeaseRecord(
        worker=worker, host="h1", incarnation="i1", manager=manager, number=number, soft_end=10.5, hard_end=20.0,
        state="held" if manager else "free",
    )


class LeaseContract:
    async def test_a_lease_is_read_back(self, world: MetadataWorld) -> None:
        leases = MetadataLeases(world.metadata())
        revision = await leases.put(lease(1, "m1"), expected=0)
        stored = await leases.get("w1")
        assert stored is not None
        assert (stored.value, stored.revision) == (lease(1, "m1"), revision)
        assert await leases.get("w2") is None
        await leases.put(lease(1, "m1", worker="w0"), expected=0)
        assert [item.value.worker for item in await leases.list()] == ["w0", "w1"]

    async def test_a_number_never_falls(self, world: MetadataWorld) -> None:
        leases = MetadataLeases(world.metadata())
        revision = await leases.put(lease(5, "m1"), expected=0)
        with pytest.raises(StaleLease) as stale:
            await leases.put(lease(4, "m2"), expected=revision)
        assert (stale.value.offered, stale.value.highest) == (4, 5)
        assert await leases.fence("w1") == 5

    async def test_under_one_number_there_is_one_manager(self, world: MetadataWorld) -> None:
        leases = MetadataLeases(world.metadata())
        revision = await leases.put(lease(1, "m1"), expected=0)
        with pytest.raises(StaleLease):
            await leases.put(lease(1, "m2"), expected=revision)
        revision = await leases.put(lease(1, ""), expected=revision)
        for manager in ("m1", "m2"):
            with pytest.raises(StaleLease):
                await leases.put(lease(1, manager), expected=revision)
        await leases.put(lease(2, "m2"), expected=revision)

    async def test_a_deletion_keeps_the_fence(self, world: MetadataWorld) -> None:
        leases = MetadataLeases(world.metadata())
        revision = await leases.put(lease(5, "m1"), expected=0)
        await leases.delete("w1", expected=revision)
        assert await leases.get("w1") is None
        assert await leases.list() == ()
        assert await leases.fence("w1") == 5
        for number in (4, 5):
            with pytest.raises(StaleLease):
                await leases.put(lease(number, ""), expected=0)
        await leases.put(lease(6, "m2"), expected=0)
        with pytest.raises(Conflict):
            await leases.delete("w1", expected=revision)

    async def test_racing_placements_give_each_number_once(self, world: MetadataWorld) -> None:
        given: list[tuple[int, str]] = []

        async def take(manager: str, leases: MetadataLeases) -> None:
            taken = 0
            while taken < 5:
                found = await leases.get("w1")
                number = found.value.number + 1 if found else 1
                try:
                    await leases.put(lease(number, manager), expected=found.revision if found else 0)
                except Conflict:
                    continue
                given.append((number, manager))
                taken += 1

        await asyncio.gather(*(take(f"m{number}", MetadataLeases(world.metadata())) for number in range(4)))
        assert sorted(number for number, _ in given) == list(range(1, 21))

    async def test_a_lease_whose_answer_was_lost_is_unknown(self, world: MetadataWorld) -> None:
        store = world.metadata()
        leases = MetadataLeases(store)
        async with world.lost_answers(store):
            with pytest.raises(OutcomeUnknown) as unknown:
                await leases.put(lease(1, "m1"), expected=0)
            assert not unknown.value.definite

    async def test_leadership_is_taken_by_a_higher_term_only(self, world: MetadataWorld) -> None:
        leases = MetadataLeases(world.metadata())
        assert await leases.leadership() is None
        first = await leases.lead(Leadership(holder="p1", term=1, renewed_until=5.0), expected=0)
        renewed = await leases.lead(Leadership(holder="p1", term=1, renewed_until=6.0), expected=first)
        with pytest.raises(StaleLease):
            await leases.lead(Leadership(holder="p2", term=1, renewed_until=9.0), expected=renewed)
        with pytest.raises(Conflict):
            await leases.lead(Leadership(holder="p2", term=2, renewed_until=9.0), expected=first)
        await leases.lead(Leadership(holder="p2", term=2, renewed_until=9.0), expected=renewed)
        stored = await leases.leadership()
        assert stored is not None
        assert stored.value.holder == "p2"
        with pytest.raises(StaleLease):
            await leases.lead(Leadership(holder="p1", term=1, renewed_until=9.0), expected=stored.revision)


async def pieces(content: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


CONTENTS = [b"", b"x", bytes(range(256)) * 4096, bytes(range(251)) * 13_000]


class BlobContract:
    @pytest.mark.parametrize("content", CONTENTS, ids=len)
    async def test_a_blob_is_read_back(self, world: BlobWorld, content: bytes) -> None:
        blobs = world.blobs()
        blob = await blobs.put(pieces(content))
        assert (blob.sha256, blob.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
        assert b"".join([chunk async for chunk in blobs.get(blob.sha256)]) == content
        assert await blobs.has(blob.sha256)
        assert await blobs.list() == (blob,)

    async def test_a_missing_blob_is_told_before_the_first_chunk(self, world: BlobWorld) -> None:
        blobs = world.blobs()
        missing = hashlib.sha256(b"missing").hexdigest()
        assert not await blobs.has(missing)
        with pytest.raises(BlobMissing):
            await anext(blobs.get(missing))
        assert not await blobs.delete(Blob(sha256=missing, size_bytes=1))

    @pytest.mark.parametrize("content", CONTENTS[1:], ids=len)
    async def test_a_corrupt_blob_never_arrives_whole_and_is_mended_by_putting(
        self, world: BlobWorld, content: bytes
    ) -> None:
        blobs = world.blobs()
        blob = await blobs.put(pieces(content))
        await world.damage(blob.sha256)
        received: list[bytes] = []
        with pytest.raises(BlobCorrupt):
            await exhaust(blobs.get(blob.sha256), received)
        assert len(b"".join(received)) < len(content)
        await blobs.put(pieces(content))
        assert b"".join([chunk async for chunk in blobs.get(blob.sha256)]) == content

    async def test_a_source_that_fails_leaves_nothing(self, world: BlobWorld) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield bytes(3_000_000)
            raise ConnectionResetError

        blobs = world.blobs()
        with pytest.raises(ConnectionResetError):
            await blobs.put(broken())
        assert await blobs.list() == ()

    async def test_a_deleted_blob_is_gone(self, world: BlobWorld) -> None:
        blobs = world.blobs()
        blob = await blobs.put(pieces(b"x"))
        assert await blobs.delete(blob)
        assert not await blobs.has(blob.sha256)
        assert await blobs.list() == ()

    async def test_a_blob_that_was_put_again_is_not_deleted_by_who_saw_it_before(self, world: BlobWorld) -> None:
        blobs = world.blobs()
        await blobs.put(pieces(b"x"))
        (listed,) = await blobs.list()
        again = await blobs.put(pieces(b"x"))
        assert again == listed
        assert not await blobs.delete(listed)
        assert b"".join([chunk async for chunk in blobs.get(listed.sha256)]) == b"x"
        (listed,) = await blobs.list()
        assert listed.put_id == again.put_id
        assert await blobs.delete(listed)
        assert not await blobs.delete(listed)

    async def test_sweeping_leaves_what_is_there(self, world: BlobWorld) -> None:
        blobs = world.blobs()
        blob = await blobs.put(pieces(b"x"))
        await blobs.sweep()
        assert await blobs.list() == (blob,)

    @pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
    async def test_a_malformed_digest_is_refused(self, world: BlobWorld, digest: str) -> None:
        with pytest.raises(ValueError, match="SHA-256"):
            await world.blobs().has(digest)

    async def test_concurrent_puts_of_the_same_bytes(self, world: BlobWorld) -> None:
        blobs = world.blobs()
        put = await asyncio.gather(*(blobs.put(pieces(CONTENTS[2])) for _ in range(8)))
        assert len(set(put)) == 1
        assert await blobs.list() == (put[0],)
