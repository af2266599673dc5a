"""Hosts whose clocks differ, and processes that are stopped: what a simulated process can see of time."""

import asyncio
import json
import random

import pytest

from frontend.auth.keys import new_key
from simulation import loop as virtual
from simulation import nodes
from simulation.client import Client
from simulation.processes import HostClock, Process
from simulation.region import ConnectionLost, Region
from simulation.scenario import create


@pytest.mark.parametrize("rate", [1.004, 0.996])
def test_a_hosts_timers_follow_its_clock(rate):
    async def main(loop):
        clock = HostClock(loop, rate=rate, boot_s=100.0)
        process = Process("p", clock)

        async def sleeper():
            began = clock.monotonic()
            for _ in range(1000):
                due = asyncio.get_running_loop().time() + 0.1
                await asyncio.sleep(0.1)
                assert clock.monotonic() >= due, "a timer fired before its time"
            return clock.monotonic() - began

        return await process.do(sleeper()), loop.now

    local_s, true_s = virtual.run(main)
    assert local_s == pytest.approx(100.0)
    assert true_s == pytest.approx(100.0 / rate)


def test_a_wall_clock_that_is_moved_moves_nothing_else():
    async def main(loop):
        clock = HostClock(loop)
        before = clock.wall()
        clock.jump(-3600.0)
        return clock.wall() - before, clock.monotonic(), loop.now

    assert virtual.run(main) == (-3600.0, 0.0, 0.0)


def test_a_client_signs_again_when_the_clock_was_moved_after_it_had_signed():
    """Found by a fault plan (seed 2956): a frontend's store was slow, and its clock moved while a key was sought."""
    dates = []

    async def main(loop):
        clock = HostClock(loop)

        async def application(scope, _receive, send):
            headers = dict(scope["headers"])
            dates.append(headers[b"x-amz-date"])
            late = len(dates) == 1
            if late:
                clock.jump(3600.0)
            await send({"type": "http.response.start", "status": 403 if late else 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"message":"Signature expired"}' if late else b"1"})

        key = new_key("000000000000", random.Random(1), clock.wall())
        client = Client(application, host="frontend", key=key, region="us-east-1", clock=clock)
        return await client.send("GET", "/")

    assert virtual.run(main).body == b"1"
    assert len(dates) == 2
    assert dates[0] < dates[1]


def test_a_stopped_process_runs_nothing_and_then_everything_in_order():
    async def main(loop):
        process, told = Process("p", HostClock(loop)), []

        async def ticks():
            for number in range(4):
                await asyncio.sleep(1.0)
                told.append((number, loop.now))

        async def hears(queue):
            told.append((await queue.get(), loop.now))

        queue: asyncio.Queue[str] = asyncio.Queue()
        work = asyncio.gather(process.do(ticks()), process.do(hears(queue)))
        await asyncio.sleep(1.5)
        loop.stop_process(process)
        await asyncio.sleep(0.1)
        queue.put_nowait("message")
        await asyncio.sleep(1.9)
        assert told == [(0, 1.0)]
        loop.continue_process(process)
        await work
        return told

    assert virtual.run(main) == [(0, 1.0), ("message", 3.5), (1, 3.5), (2, 4.5), (3, 5.5)]


def test_what_a_stopped_process_cancels_later_does_not_move_time():
    async def main(loop):
        process = Process("p", HostClock(loop))

        async def waits():
            async with asyncio.timeout(50.0):
                await asyncio.Event().wait()

        task = asyncio.create_task(process.do(waits()))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        loop.stop_process(process)
        loop.continue_process(process)
        task.cancel()
        await asyncio.wait([task])
        return loop.now

    assert virtual.run(main) == 0.0


def test_a_stopped_frontend_answers_when_it_goes_on_and_a_killed_one_never():
    async def main(region):
        await create(region, "hello", "echo")
        paused = asyncio.create_task(nodes.pause(region, "frontend-az1-1", 2.0))
        await asyncio.sleep(0.1)
        asked = asyncio.create_task(region.invoke("hello", b"1"))
        await asyncio.sleep(1.8)
        assert not asked.done(), "a stopped process answered"
        answer = await asked
        at = region.clock.monotonic()
        await paused
        paused = asyncio.create_task(nodes.pause(region, "frontend-az1-1", 60.0))
        await asyncio.sleep(0.1)
        await region.kill_frontend(0)
        await paused    # a process that is killed isn't stopped any more
        return answer, at, region.clock.monotonic() - at

    async def live(_loop):
        async with Region(3) as region:
            return await main(region)

    answer, _, took_s = virtual.run(live)
    assert answer.body == b"1"
    assert took_s < 1.0


def test_a_worker_that_is_stopped_leaves_its_sandboxes_running():
    async def main(region):
        await create(region, "sleeper", "sleep")
        running = asyncio.create_task(region.invoke("sleeper", b"0.5"))
        await asyncio.sleep(0.2)
        [node] = [worker.config.node.node for worker in region.workers.values() if worker.agent.core.runs]
        await nodes.pause(region, node, 1.0)
        return await running, region.clock.monotonic()

    async def live(_loop):
        async with Region(3) as region:
            return await main(region)

    answer, _ = virtual.run(live)
    assert answer.json() == {"slept": 0.5}
    phases = dict(part.split("=") for part in answer.headers["x-labda-phases"].split(","))
    # The sandbox was done in the middle of the pause: its end was told when the agent went on.
    assert 1000.0 < float(phases["run"]) < 1200.0


def test_a_rolled_frontends_last_words_come_before_its_successors_first():
    """Found by a fault plan (seed 1210): what was still asked when its time to drain was over."""
    async def main(region):
        await create(region, "hello", "echo")
        for member in region.counting.known:
            await nodes.kill(region, member)
        asked = asyncio.create_task(region.invoke("hello", b"1"))
        await asyncio.sleep(0.5)
        await nodes.roll(region, "frontend-az1-1")
        with pytest.raises(ConnectionLost):
            await asked
        return [json.loads(line) for line in region.trace().splitlines()]

    async def live(_loop):
        async with Region(3) as region:
            return await main(region)

    own = [line for line in virtual.run(live) if line["node"] == "frontend-az1-1"]
    [_, begun] = [place for place, line in enumerate(own) if "parameters" in line]
    [over] = [place for place, line in enumerate(own) if line.get("note", {}).get("type") == "Over"]
    assert over < begun


def test_a_worker_that_ends_twice_over_has_one_successor_that_lives():
    """Found by a fault plan (seed 1771): the second end, slower than the first, took the successor's network."""
    async def main(region):
        for member in region.counting.known:    # nobody confirms that it leaves, which then takes its time
            await nodes.kill(region, member)
        async with asyncio.TaskGroup() as group:
            group.create_task(region.replace_worker("az1"))
            await asyncio.sleep(3.0)
            group.create_task(region.replace_worker("az1"))
        await region.until(region.ready, "every worker to be leased", within_s=30.0)

    async def live(_loop):
        async with Region(3) as region:
            await main(region)

    virtual.run(live)


def test_a_worker_that_is_just_being_started_obeys_nobody_yet():
    async def main(region):
        await region.lose_worker("az1")
        starting = asyncio.create_task(region.start_worker("az1"))
        while "az1" not in region.workers:
            await asyncio.sleep(0)
        held = region.held_by()
        await starting
        return held

    async def live(_loop):
        async with Region(3) as region:
            return await main(region)

    assert virtual.run(live).keys() == {"az2", "az3"}


def test_a_drained_frontend_opens_nothing_any_more():
    """Found by a fault plan: what a drained frontend told its managers late took its successor's stream's place."""
    async def main(region):
        await create(region, "hello", "echo")
        await region.invoke("hello", b"1")
        frontend = region.frontends[0]
        frontend.service.functions.vouch_for_all()      # now, and once more in a second
        frontend.killed = True
        await region.process_of(frontend).do(frontend.service.drain(nothing_runs))
        await asyncio.sleep(2.0)
        return [pipe.method for pipe in region.ground.fabric.pipes if pipe.dialler == "frontend-az1-1"]

    async def live(_loop):
        async with Region(3) as region:
            return await main(region)

    assert virtual.run(live) == []


async def nothing_runs():
    pass
