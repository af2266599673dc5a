import asyncio
import contextlib
import gc
import weakref

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
