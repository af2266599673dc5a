"""A whole region in virtual time: the first invokes, equal runs of equal seeds, a frontend that is killed."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from simulation import __main__ as command
from simulation import loop as virtual
from simulation.members import AZS, MANAGERS, PLACEMENTS, WORKER_MEMORY_MB, counting_node
from simulation.region import ConnectionLost, Region, RegionBug
from simulation.sandbox_driver import echo
from simulation.scenario import create, first_invokes, reserve
from worker.messages import Evicted

ROOT = Path(__file__).parents[2]
NODES = {
    *PLACEMENTS, *MANAGERS, *(counting_node(az) for az in AZS), *(f"worker-{az}-1" for az in AZS),
    *(f"frontend-{az}-1" for az in AZS),
}


def in_region(seed, main, **settings):
    """Runs ``main(region)``; its result and the whole trace."""

    async def live(_loop):
        async with Region(seed, **settings) as region:
            result = await main(region)
        return result, region

    return virtual.run(live)


def outcomes(told):
    return [line.outcome for line in told]


def in_process_of_its_own(seed, hash_seed, trace):
    """What the command prints: every answer, and the trace's hash."""
    done = subprocess.run(
        [sys.executable, "-m", "simulation", "story", "--seed", str(seed), "--trace", str(trace)], cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)}, capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_invokes_cold_warm_and_a_throttle():
    threads = threading.active_count()
    # In few runs (seed 3) the second request overtakes the first one's END, and a sandbox more is made than is used.
    told, region = in_region(4, first_invokes)
    assert threading.active_count() <= threads, "a simulated region runs on one thread"
    assert [line for line in told if not line.as_expected] == []
    by = {line.what: line for line in told}
    assert by["create hello"].answer.json()["State"] == "Active"
    cold, warm, elsewhere = by["cold"], by["warm"], by["warm by another frontend"]
    assert cold.answer.body == b'{"message": "hello, world"}'
    assert cold.phases.keys() == {"permit", "place", "code", "sandbox", "runtime", "init", "run"}
    assert cold.phases["runtime"] == pytest.approx(40, abs=1), "virtual time is what the memory sandbox says it takes"
    assert not warm.cold, "the second invoke got a new sandbox"
    assert not elsewhere.cold, "another frontend's invoke got a new sandbox"
    assert warm.answer.body == b'{"message": "hello again"}'
    assert by["two at once: one runs"].answer.json() == {"slept": 1.0}
    throttled = by["the other is throttled"].answer
    assert throttled.headers["x-amzn-errortype"] == "TooManyRequestsException"
    assert throttled.json()["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert throttled.json()["Detail"]["value"] == 1
    events = [line for line in map(json.loads, region.trace().splitlines()) if "event" in line]
    created = [event for event in events if event["node"].startswith("worker-") and event["event"]["type"] == "Create"]
    assert len(created) == 2, "one sandbox per function"


def test_every_service_takes_part():
    _, region = in_region(3, first_invokes)
    assert {json.loads(line)["node"] for line in region.trace().splitlines()} == NODES


def test_two_runs_of_one_seed_are_equal_whatever_the_process(tmp_path):
    """Hash seeds differ, addresses of objects differ, and this process has run other things before."""
    first = in_process_of_its_own(5, 0, tmp_path / "first")
    second = in_process_of_its_own(5, 4242, tmp_path / "second")
    told, region = in_region(5, first_invokes)
    again, region_again = in_region(5, first_invokes)
    # Line by line first: where runs part is what one wants to know.
    first_lines, second_lines = ((tmp_path / name).read_text().splitlines() for name in ("first", "second"))
    for a, b in zip(first_lines, second_lines, strict=True):
        assert a == b
    assert first == second
    assert region.trace_hash() in first
    assert region_again.trace_hash() == region.trace_hash()
    assert [line.answer for line in told] == [line.answer for line in again], "ids and dates in answers too"


def test_seeds_change_what_happens_and_not_what_clients_see():
    one, region_of_one = in_region(1, first_invokes)
    two, region_of_two = in_region(2, first_invokes)
    assert region_of_one.trace_hash() != region_of_two.trace_hash()
    assert [line.at for line in one] != [line.at for line in two]
    assert outcomes(one) == outcomes(two)


def test_the_trace_shows_a_millisecond():
    """What the hash is worth: a handler that takes 1 ms longer gives another trace and the same answer."""

    def taking(seconds):
        async def handler(event, invocation):
            await asyncio.sleep(seconds)
            return await echo(event, invocation)

        return {"echo": handler}

    async def one_invoke(region):
        await create(region, "hello", "echo")
        return (await region.invoke("hello", b"1")).body

    shorter, region_of_shorter = in_region(1, one_invoke, handlers=taking(0.001))
    longer, region_of_longer = in_region(1, one_invoke, handlers=taking(0.002))
    assert shorter == longer == b"1"
    assert region_of_shorter.trace_hash() != region_of_longer.trace_hash()


def test_a_killed_frontends_permit_counts_until_its_invoke_ends_and_then_comes_back():
    runs_s = 6.0

    async def main(region):
        await create(region, "sleeper", "sleep", timeout_s=30)
        await reserve(region, "sleeper", 1)
        seen = []
        begun = region.clock.monotonic()
        async with asyncio.TaskGroup() as group:
            lost = group.create_task(lost_connection(region))
            await asyncio.sleep(1.0)
            assert not lost.done(), "it runs"
            await region.kill_frontend(0)
            while region.clock.monotonic() < begun + runs_s + 1.0:
                seen.append((region.clock.monotonic() - begun, await granted(region)))
                other = await region.invoke("sleeper", b"0", frontend=1)
                seen.append((region.clock.monotonic() - begun, other.status))
                await asyncio.sleep(0.2)
        await asyncio.sleep(5.0)
        return seen, await granted(region)

    async def lost_connection(region):
        with pytest.raises(ConnectionLost):
            await region.invoke("sleeper", str(runs_s).encode(), frontend=0)

    (seen, at_rest), _ = in_region(7, main)
    while_it_runs = [what for at, what in seen if at < runs_s]
    afterwards = [what for at, what in seen if at > runs_s + 0.5]
    assert 200 not in while_it_runs, "the invoke of the killed frontend still runs: its permit was given twice"
    assert 429 in while_it_runs, "what the killed frontend held was never counted"
    assert 200 in afterwards, "the permit of the killed frontend never came back"
    assert {held for held in while_it_runs if isinstance(held, tuple)} <= {(("frontend-az1-1", 1),)}
    assert at_rest == (), "after quiet nothing is granted (invariant 2)"


def test_a_worker_that_must_end_is_replaced_by_another_incarnation():
    async def main(region):
        await create(region, "hello", "echo")
        cold = await region.invoke("hello", b"1")
        (az,) = [az for az, worker in region.workers.items() if worker.agent.lives]
        evicted = region.workers[az]
        evicted.agent.feed(Evicted(cause="counting"))
        await region.until(lambda: region.workers[az] is not evicted, "the other incarnation", within_s=10.0)
        assert region.workers[az].incarnation != evicted.incarnation
        again = await region.invoke("hello", b"2")
        return cold, again

    (cold, again), _ = in_region(4, main)
    assert (cold.body, again.body) == (b"1", b"2")
    assert "init=" in again.headers["x-labda-phases"], "the evicted worker's sandbox was used again"


async def granted(region):
    """(frontend, size) of every block in the ledger."""
    return tuple((holder.session.frontend, holder.size) for pool in await region.pools() for holder in pool.holders)


def test_a_region_that_can_not_run_a_function_says_so():
    async def main(region):
        created = await create(region, "large", "echo", memory_mb=WORKER_MEMORY_MB + 1)
        assert created.status == 200
        return await region.invoke("large")

    answer, _ = in_region(1, main)
    assert answer.status == 503
    assert b"large" in answer.body


def test_a_failure_that_nobody_waits_for_ends_the_run():
    async def main(_region):
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(RegionBug, match="ZeroDivisionError"):
        in_region(1, main)


def test_the_command_tells_the_story(capsys):
    assert command.main(["story", "--seed", "3"]) == 0
    story = capsys.readouterr().out
    assert "cold (permit " in story
    assert "429" in story


def test_the_command_fails_when_an_answer_is_not_the_expected_one(capsys, monkeypatch):
    async def disappointing(region):
        told = await first_invokes(region)
        told[0] = type(told[0])(at=0.0, what="create hello", expected=404, answer=told[0].answer)
        return told

    monkeypatch.setattr(command, "first_invokes", disappointing)
    assert command.main(["story", "--seed", "3"]) == 1
    assert "create hello was answered 200 instead of 404" in capsys.readouterr().err


def test_a_reservation_given_up_frees_its_function_at_once():
    """Found on a real cluster: counting forgot the pool, and told of its end under a generation that looked old."""

    async def main(region):
        statuses = [(await create(region, "flip", "echo")).status]
        for _ in range(3):
            statuses.append((await reserve(region, "flip", 0)).status)
            statuses.append((await region.invoke("flip", b"1")).status)
            statuses.append((await region.request("DELETE", "/2017-10-31/functions/flip/concurrency")).status)
            statuses += [(await region.invoke("flip", b"1", frontend=number)).status for number in range(3)]
        return statuses

    statuses, _ = in_region(7, main)
    assert statuses == [200] + 3 * [200, 429, 204, 200, 200, 200]
