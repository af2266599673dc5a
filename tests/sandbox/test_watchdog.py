"""The watchdog alone, and what a spawner makes of it while its agent goes on asking."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.sandbox.conftest import DEADLINE_S, left_behind, missing, start_ground
from worker.sandbox.driver import SandboxFault
from worker.sandbox.linux import Alarm, boottime
from worker.sandbox.watchdog import AHEAD_S_MAX, GRACE_S_MAX, Watchdog


def dog() -> Watchdog:
    return Watchdog(timeout_cap_s=900.0)


def test_nothing_is_created_before_the_first_authority_and_nothing_is_due_either() -> None:
    fresh = dog()
    assert "no start authority yet" in fresh.missing(5.0)
    assert fresh.due is None
    assert not fresh.expired(10_000.0)


def test_authority_ends_and_half_a_grace_after_the_longest_timeout_everything_goes() -> None:
    one = dog()
    one.renew(120.0, 30.0, 0.0)
    assert one.missing(119.9) == ""
    assert "ended 0.5 s ago" in one.missing(120.5)
    assert one.due == 120.0 + 900.0 + 15.0
    assert not one.expired(1034.9)
    assert one.expired(1035.0)


def test_a_renewal_that_comes_late_or_out_of_order_takes_nothing_away() -> None:
    one = dog()
    one.renew(200.0, 30.0, 100.0)
    one.renew(150.0, 30.0, 101.0)
    assert one.until == 200.0


def test_an_authority_of_an_impossible_length_is_not_believed() -> None:
    one = dog()
    one.renew(1e9, 30.0, 100.0)
    assert one.until == 100.0 + AHEAD_S_MAX
    one.renew(one.until + 1.0, 1e9, 200.0)
    assert one.due == one.until + 900.0 + GRACE_S_MAX / 2


def test_the_alarm_rings_when_it_was_set_to_last() -> None:
    alarm = Alarm()
    try:
        begun = boottime()
        alarm.set(begun + 100.0)
        alarm.set(begun + 0.05)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                rang = os.read(alarm.fd, 8)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        assert rang
        assert boottime() >= begun + 0.05
        alarm.clear()
    finally:
        alarm.close()


async def test_a_spawner_creates_nothing_without_authority(tmp_path: Path) -> None:
    """And an agent that goes on asking, without pause, doesn't keep it from destroying what there is."""
    if missing():
        pytest.skip(f"sandboxes need {missing()}")
    name = f"test-authority-{os.getpid()}"
    # Time enough on a busy machine: for a sandbox while there is authority, for a question to it until all are gone.
    ground = await start_ground(tmp_path / "state", name, authority_s=4.0, timeout_cap_s=6.0)
    try:
        made = await ground.running()
        assert await made.probe("out = 1") == 1
        begun = time.monotonic()
        with pytest.raises(SandboxFault, match="start authority ended") as refused:
            await create_until(ground, begun + DEADLINE_S)
        assert refused.value.definite
        ended = ground.driver.ended
        assert not ended, "what is there stays as long as an invocation may run"
        assert await made.probe("out = 2") == 2
        while not ground.driver.ended:
            assert time.monotonic() < begun + DEADLINE_S
            await asyncio.gather(*(asked(ground) for _ in range(200)))
        assert await asyncio.to_thread(ground.process.wait, DEADLINE_S) == 0
        assert left_behind(name) == []
    finally:
        await ground.driver.close()
        ground.process.kill()
        ground.process.wait()


async def create_until(ground, deadline: float) -> None:
    while time.monotonic() < deadline:
        made = await ground.create()
        await made.sandbox.destroy()


async def asked(ground) -> None:
    try:
        await ground.driver.has_code("0" * 64)
    except SandboxFault:
        return
