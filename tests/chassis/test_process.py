import asyncio
import contextlib
import ctypes
import gc
import resource
import weakref
from pathlib import Path

import pytest

from chassis import process


async def test_cycles_of_what_has_lived_long_are_freed():
    class Thing:
        itself: object

    gc.disable()
    try:
        thing = Thing()
        thing.itself = thing
        gone = weakref.ref(thing)
        del thing
        collecting = asyncio.ensure_future(process.collect(0.01))
        async with asyncio.timeout(60):
            while gone() is not None:
                await asyncio.sleep(0.01)
        collecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await collecting
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc's malloc_trim")
async def test_memory_that_was_let_go_goes_back_to_the_host():
    blocks = [bytes(100_000) + b"x" for _ in range(800)]    # small enough to be of the heap, not mapped each
    del blocks[::2]     # what stays lies between the holes: freeing alone can't give them back
    before = resident()
    collecting = asyncio.ensure_future(process.collect(0.01))
    async with asyncio.timeout(60):
        while resident() > before - 20_000_000:
            await asyncio.sleep(0.01)
    collecting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await collecting


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
