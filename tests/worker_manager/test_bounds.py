"""What a manager remembers of functions is bounded, and forgetting changes no answer that matters."""

from dataclasses import replace

from tests.worker_manager.pool import key, reserve
from worker_manager.config import PoolConfig
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
