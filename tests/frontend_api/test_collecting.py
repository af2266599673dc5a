"""Unused code goes; what anybody may still name stays: uploads under way, the same bytes again, unread records."""

import asyncio
import json
import random
from dataclasses import replace

import pytest

from frontend import functions as pure
from frontend.collecting import Collector
from frontend.function_records import FunctionStore, key_of
from frontend.functions import Code
from simulation import loop as virtual
from simulation.loop import VirtualClock
from storage.faults import StoreUnavailable
from storage.memory import MemoryBlobs, MemoryMetadata
from tests.frontend_api.test_functions import NOW, new
from tests.frontend_api.world import ACCOUNT, StreamCipher

GRACE_S = 3600.0


class Place:
    """Two frontends' collectors on one store."""

    def __init__(self, loop):
        self.clock = VirtualClock(loop)
        self.metadata = MemoryMetadata(self.clock)
        self.functions = FunctionStore(self.metadata, StreamCipher())
        self.blobs = MemoryBlobs()
        self.collectors = [
            Collector(self.blobs, self.functions, clock=self.clock, rng=random.Random(n), grace_s=GRACE_S)
            for n in range(2)
        ]

    async def put(self, data):
        async def chunks():
            yield data

        return (await self.blobs.put(chunks())).sha256

    async def create(self, name, data):
        code = Code(sha256=await self.put(data), size_bytes=len(data))
        await self.functions.create(ACCOUNT, name, lambda revision: replace(
            new(revision=revision), name=name, code=code))
        return code.sha256

    async def kept(self):
        return {blob.sha256 for blob in await self.blobs.list()}


def in_virtual_time(main):
    async def live(loop):
        place = Place(loop)
        running = [asyncio.create_task(collector.run()) for collector in place.collectors]
        try:
            return await main(place)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    return virtual.run(live)


def test_code_of_updates_and_deletions_goes_after_the_grace():
    async def main(place):
        kept, gone = await place.create("kept", b"1"), await place.create("gone", b"2")
        older, newer = await place.create("updated", b"3"), await place.put(b"4")
        await place.functions.change(ACCOUNT, "updated", lambda record: pure.settle(record, revision_id="s"))
        await place.functions.change(ACCOUNT, "updated", lambda record: pure.change_code(
            record, Code(sha256=newer, size_bytes=1), now=NOW, revision_id="c"))
        await place.functions.delete(ACCOUNT, "gone")
        await asyncio.sleep(0.9 * GRACE_S)
        assert await place.kept() == {kept, gone, older, newer}, "not before the grace is over"
        await asyncio.sleep(1.0 * GRACE_S)
        assert await place.kept() == {kept, newer}
        await asyncio.sleep(10 * GRACE_S)
        assert await place.kept() == {kept, newer}

    in_virtual_time(main)


def test_bytes_that_are_uploaded_again_start_anew():
    async def main(place):
        await place.put(b"1")
        for _ in range(10):     # each time by a request that fails before it writes its record
            await asyncio.sleep(0.7 * GRACE_S)
            assert await place.put(b"1") in await place.kept()
        await asyncio.sleep(2 * GRACE_S)
        assert not await place.kept()

    in_virtual_time(main)


def test_the_same_bytes_put_between_the_look_and_the_deletion_stay():
    async def main(place):
        sha256 = await place.put(b"1")
        (collector, _) = place.collectors
        await collector.look()
        await asyncio.sleep(0.2 * GRACE_S)
        codes = place.functions.codes

        async def meanwhile():
            found = await codes()
            await place.create("new", b"1")     # its record is written after this look has read them all
            return found

        place.functions.codes = meanwhile
        collector._grace_s = 0.0
        assert await collector.look() == []
        assert await place.kept() == {sha256}

    in_virtual_time(main)


@pytest.mark.parametrize("record", [b"no json", json.dumps({"format": 2}).encode()])
def test_a_record_that_can_not_be_read_keeps_everything(record):
    """A newer release may have written it: what it names isn't known here."""

    async def main(place):
        sha256 = await place.put(b"1")
        await place.metadata.put(key_of(ACCOUNT, "newer"), record, expected=0)
        await asyncio.sleep(5 * GRACE_S)
        assert await place.kept() == {sha256}
        await place.metadata.delete(key_of(ACCOUNT, "newer"), expected=None)
        await asyncio.sleep(2 * GRACE_S)
        assert not await place.kept()

    in_virtual_time(main)


def test_a_store_that_is_away_ends_no_collector():
    async def main(place):
        await place.put(b"1")
        listed = place.metadata.list

        async def away(_prefix):
            raise StoreUnavailable("away")

        place.metadata.list = away
        await asyncio.sleep(3 * GRACE_S)
        assert await place.kept()
        place.metadata.list = listed
        await asyncio.sleep(2 * GRACE_S)
        assert not await place.kept()

    in_virtual_time(main)
