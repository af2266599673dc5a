"""Virtual time: order, exactness, deadlock."""

import asyncio
import time

import pytest

from simulation import loop as virtual


def test_time_jumps_and_lands_exactly():
    async def main(loop):
        order = []

        async def sleeper(seconds):
            await asyncio.sleep(seconds)
            order.append((seconds, loop.time()))

        async with asyncio.TaskGroup() as group:
            for seconds in (3600.0, 0.1, 0.3, 0.2):
                group.create_task(sleeper(seconds))
        return order

    began = time.monotonic()
    assert virtual.run(main) == [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (3600.0, 3600.0)]
    assert time.monotonic() - began < 60, "an hour passed for real"


def test_timeouts_work_and_cancelled_timers_do_not_move_time():
    async def main(loop):
        loop.call_later(50, lambda: None).cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.Event().wait()
        return loop.time()

    assert virtual.run(main) == 2


def test_a_deadlock_is_an_error_not_a_hang():
    async def main(loop):
        await asyncio.Event().wait()

    with pytest.raises(virtual.Deadlock):
        virtual.run(main)


def test_the_clock_follows_the_loop():
    async def main(loop):
        clock = virtual.VirtualClock(loop)
        wall = clock.wall()
        await asyncio.sleep(7)
        return clock.monotonic(), clock.wall() - wall

    assert virtual.run(main) == (7, 7)
