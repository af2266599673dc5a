"""What a manager remembers of functions is bounded, and forgetting changes no answer that matters."""

from dataclasses import replace

from tests.worker_manager.pool import busy, feed, gone_of, idle, key, new_core, release_of, reserve, warm
from worker_manager.config import PoolConfig
from worker_manager.messages import Cancel, Lost, Tick
from worker_manager.revisions import Revisions
from worker_manager.waiting import ScalingRate


def test_the_function_that_nobody_named_for_longest_is_forgotten_as_a_whole():
    revisions = Revisions(functions_max=2)
    for name in "abac":     # b is the one not named for longest
        revisions.learn(key(name, 5))
        assert revisions.objection(reserve("x", name=name, revision=5)) == ""
    assert revisions.outdated(key("a", 4))
    assert not revisions.outdated(key("b", 4)), "forgotten"
    unsure = revisions.objection(replace(reserve("x", name="b", revision=4), unsure=True))
    assert "nobody who knows" in unsure, "an old copy of the metadata is still not believed"


def test_a_deletion_is_remembered_with_its_function():
    revisions = Revisions(functions_max=2)
    revisions.learn(key("a", 3))
    revisions.forget(key("a", 0))
    assert revisions.outdated(key("a", 3))
    assert not revisions.outdated(key("a", 4)), "made anew"


def test_buckets_that_are_full_again_are_thrown_away():
    rate = ScalingRate(PoolConfig(scaling_burst=10, scaling_per_s=1.0))
    for number in range(5000):
        assert rate.try_take(key(f"f{number}"), now=float(number))
    assert len(rate._buckets) <= 1000
    for _ in range(9):
        assert rate.try_take(key("f4999"), now=4999.0)
    assert not rate.try_take(key("f4999"), now=4999.0), "what is not full was kept"


def test_who_is_served_at_once_leaves_nothing_until_its_deadline():
    """A function may run for 15 minutes: its requests' deadlines are as far away, whenever they are served."""
    core = new_core("worker-az1", memory_mb=128)
    warm(core)
    feed(core, [(0.1, busy("a"))])
    for number in range(2000):
        at, cause = 1.0 + number / 1000, str(number)
        feed(core, [(at, reserve(cause, deadline_s=930.0)), (at, Cancel(
            frontend="frontend-az1", cause=cause, served=True))])
    assert len(core.supply.timers._at) < 10
    assert len(core.supply.timers._heap) < 100


def test_what_a_sandbox_was_to_be_woken_for_is_forgotten_with_it():
    core = new_core("worker-az1", memory_mb=128)
    for number in range(300):
        cause = str(number)
        warm(core, cause, float(number), name=f"f{number}")
        feed(core, [(number + 0.5, release_of(cause)), (number + 0.6, gone_of(f"s-{cause}", "worker-az1"))])
    assert len(core.supply.timers._at) < 10
    feed(core, [(400.0, Lost(worker="worker-az1", lease=1, reason="the worker is dead"))])
    assert [key for key in core.supply.timers._at if key[0] == "lease"] == []


def test_a_busy_sandbox_leaves_no_deadlines_of_the_times_when_it_was_idle():
    """Each time it is woken for the idle_s that it may be kept, and is used again before that."""
    core = new_core("worker-az1", memory_mb=128)
    warm(core)
    feed(core, [(0.5, release_of("a"))])
    for number in range(1, 300):
        at = 5.5 * number
        feed(core, [(at, Tick()), (at, reserve(f"b{number}")), (at, busy("a", number + 1)),
                    (at + 0.3, idle("a", number + 1)), (at + 0.3, release_of("a", number + 1))])
    assert len(core.supply.timers._heap) < 80
