"""Capacity for the loss of an AZ: the arithmetic, and what it says against what would really happen."""

from hypothesis import given
from hypothesis import strategies as st

from placement.ranking import Candidate
from placement.reserve import Margin, margins, tightest

AZS = ("az1", "az2", "az3")
SANDBOX_MB = 128


def worker(az, number=1, *, memory_mb=1024, running=0, idle=0, usable=True):
    used_mb = (running + idle) * SANDBOX_MB
    return Candidate(
        worker=f"worker-{az}-{number}", az=az, host=f"host-{az}-{number}", usable=usable,
        memory_free_mb=memory_mb - used_mb, runtimes=("python3.12",), memory_mb=memory_mb,
        memory_idle_mb=idle * SANDBOX_MB,
    )


def test_two_thirds_of_three_equal_azs_may_run():
    assert margins([worker(az, running=4) for az in AZS]) == dict.fromkeys(AZS, 512)
    assert margins([worker("az1", running=8), worker("az2", running=8), worker("az3")]) == dict.fromkeys(AZS, 0)
    assert margins([worker(az, running=6) for az in AZS]) == dict.fromkeys(AZS, -256)


def test_idle_sandboxes_are_room_and_silent_workers_are_none():
    assert margins([worker(az, running=4, idle=4) for az in AZS]) == dict.fromkeys(AZS, 512)
    assert margins([worker("az1", running=4), worker("az2"), worker("az3", usable=False)]) == {"az1": 512, "az2": 512}


def test_a_larger_az_is_the_harder_loss_and_one_alone_has_no_reserve():
    assert margins([worker("az1", memory_mb=4096), worker("az2")]) == {"az1": 1024, "az2": 4096}
    assert margins([worker("az1"), worker("az1", 2)]) == {}
    assert margins([]) == {}


def test_each_manager_has_to_make_its_own_functions_sandboxes_again():
    """Together they would have room enough: but the first one's functions can't go to the second one's workers."""
    full = [worker(az, running=7) for az in AZS]
    empty = [worker(az, 2) for az in AZS]
    assert tightest([("m1", full), ("m2", empty)]) == [Margin(az=az, margin_mb=-640, manager="m1") for az in AZS]
    assert all(margin > 0 for margin in margins([*full, *empty]).values())


@st.composite
def fleets(draw):
    workers = []
    for az in AZS[:draw(st.integers(2, 3))]:
        for number in range(1, draw(st.integers(1, 3)) + 1):
            places = draw(st.integers(1, 8))
            running = draw(st.integers(0, places))
            idle = draw(st.integers(0, places - running))
            workers.append(worker(az, number, memory_mb=places * SANDBOX_MB, running=running, idle=idle))
    return workers


@given(fleets())
def test_a_margin_is_what_is_left_when_all_that_ran_there_has_been_made_again(fleet):
    """Sandboxes of one size, so that none is left over: each goes where something is free or idle, one by one."""
    for az, margin_mb in margins(fleet).items():
        homeless = sum(w.memory_mb - w.memory_free_mb - w.memory_idle_mb for w in fleet if w.az == az) // SANDBOX_MB
        room = {w.worker: (w.memory_free_mb + w.memory_idle_mb) // SANDBOX_MB for w in fleet if w.az != az}
        while homeless and any(room.values()):
            place = max(room, key=lambda name: room[name])
            room[place] -= 1
            homeless -= 1
        assert margin_mb == (sum(room.values()) - homeless) * SANDBOX_MB
