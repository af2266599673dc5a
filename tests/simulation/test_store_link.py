"""A node's way to the store, cut: what its watches see of that."""

import asyncio

import pytest

from simulation import loop as virtual
from simulation.store_link import StoreLink
from storage.faults import StoreUnavailable
from storage.memory import MemoryMetadata


@pytest.mark.parametrize("healed_first", [False, True])
def test_a_watch_breaks_also_for_a_process_that_stood_still_until_the_way_was_there_again(healed_first):
    async def main(loop):
        link = StoreLink(MemoryMetadata(virtual.VirtualClock(loop)))
        watching = asyncio.ensure_future(anext(aiter(link.watch("k", after=0))))
        await asyncio.sleep(1.0)
        link.cut()
        if healed_first:
            link.heal()     # in the same turn of the loop: the watcher had none between
        with pytest.raises(StoreUnavailable):
            await watching
        link.heal()
        await link.put("k", b"", expected=0)
        assert (await anext(aiter(link.watch("k", after=0)))).key == "k"

    virtual.run(main)


def test_a_slow_store_does_everything_and_later():
    async def main(loop):
        link = StoreLink(MemoryMetadata(virtual.VirtualClock(loop)))
        link.slow(1.5)
        await link.put("k", b"v", expected=0)
        found = await link.get("k")
        assert found is not None
        assert found.value == b"v"
        assert loop.now == 3.0
        link.slow(0.0)
        await link.get("k")
        assert loop.now == 3.0

    virtual.run(main)
