"""Background tasks: none of them ends without a word."""

import asyncio

import pytest

from chassis.faults import Fault
from chassis.process import Tasks


async def told_of(coroutine, *, cancel=False):
    """What the loop's exception handler was told of a task."""
    loop, told = asyncio.get_running_loop(), []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
    try:
        tasks = Tasks()
        task = tasks.start(coroutine, name="one")
        await asyncio.sleep(0)
        if cancel:
            await tasks.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    return told


async def awaits_what_is_cancelled():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def fails(error):
    raise error


@pytest.mark.parametrize(("coroutine", "cancel", "told"), [
    (lambda: asyncio.sleep(0), False, []),
    (lambda: asyncio.sleep(60), True, []),
    (lambda: fails(Fault("away")), False, []),
    (lambda: fails(ValueError("a bug")), False, ["task one failed"]),
    (awaits_what_is_cancelled, False, ["task one ended by a cancellation that nobody asked for"]),
])
async def test_an_end_that_nobody_asked_for_is_told(coroutine, cancel, told):
    assert await told_of(coroutine(), cancel=cancel) == told
