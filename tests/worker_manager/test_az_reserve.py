"""Room for the loss of an AZ: what only waits to be used never has it, what runs may."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.walking import walk
from tests.worker_manager.pool import busy, feed, gone_of, idle, new_core, placed, ready, release_of, reserve
from worker_manager.leases import reserve_missing_mb
from worker_manager.messages import Destroy, Refused
from worker_manager.sandboxes import State

AZS = ("worker-az1", "worker-az2", "worker-az3")


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def used(core, cause, now, worker, **settings):
    """A sandbox that was made, used and let go: it waits for the next request."""
    effects = feed(core, [
        (now, reserve(cause, **settings)), (now, placed(cause, worker)), (now, ready(cause, worker)),
        (now, busy(cause, worker=worker)),
    ])
    return effects + feed(core, [(now, idle(cause, worker=worker)), (now, release_of(cause))])


@pytest.mark.parametrize(("az_reserve", "workers", "destroyed"), [
    (True, AZS, ["s-0"]), (False, AZS, []), (True, ("worker-az1", "worker-az1-2", "worker-az1-3"), []),
])
def test_the_longest_idle_gives_way_when_two_thirds_are_used(az_reserve, workers, destroyed):
    core = new_core(*workers, memory_mb=256, az_reserve=az_reserve)
    effects = []
    for number in range(5):      # two fit on each of three workers, so that four may be kept
        effects += used(core, str(number), 1.0 + number, workers[number % 3], name=f"f{number}")
    assert [effect.sandbox for effect in of(effects, Destroy)] == destroyed
    assert of(effects, Refused) == []


def test_what_runs_is_not_touched_and_nobody_is_refused():
    core = new_core(*AZS, memory_mb=256, az_reserve=True)
    effects = []
    for number in range(6):
        worker = AZS[number % 3]
        effects += feed(core, [
            (1.0, reserve(str(number))), (1.0, placed(str(number), worker)), (1.0, ready(str(number), worker)),
            (1.0, busy(str(number), worker=worker)),
        ])
    assert of(effects, Destroy) == of(effects, Refused) == []
    assert reserve_missing_mb(core.supply.leases.values(), 0) == 256


class Idlers(RuleBasedStateMachine):
    """Functions come and go at random. After each new sandbox: either the reserve is whole, or nothing is idle."""

    def __init__(self):
        super().__init__()
        self.core = new_core(*AZS, memory_mb=512, az_reserve=True)
        self.now, self.count = 0.0, 0
        self.running, self.idle = {}, {}

    def feed(self, *events):
        self.now += 0.1
        for effect in feed(self.core, [(self.now, event) for event in events]):
            if isinstance(effect, Destroy):
                assert effect.sandbox in self.idle, "something was destroyed that isn't idle"
                worker = self.idle.pop(effect.sandbox)
                if "loss of an AZ" in effect.reason:
                    self.feed(gone_of(effect.sandbox, worker))

    @precondition(lambda self: len(self.running) + len(self.idle) < 12)
    @rule(az=st.integers(0, 2), size=st.sampled_from((128, 256)))
    def makes(self, az, size):
        worker, lease = AZS[az], self.core.supply.leases[AZS[az]]
        if lease.memory_free_mb < size:
            return
        self.count += 1
        cause = str(self.count)
        self.feed(reserve(cause, name=f"f{cause}", memory_mb=size), placed(cause, worker))
        going = sum(s.memory_mb for s in self.core.supply.sandboxes.by_name.values() if s.state is State.DRAINING)
        missing = reserve_missing_mb(self.core.supply.leases.values(), going)
        assert not missing or not self.core.supply.sandboxes.idle_count, f"{missing} MB of the reserve are idle"
        self.feed(ready(cause, worker), busy(cause, worker=worker))
        self.running[cause] = worker

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data):
        cause = data.draw(st.sampled_from(sorted(self.running)))
        worker = self.running.pop(cause)
        self.idle[f"s-{cause}"] = worker
        self.feed(idle(cause, worker=worker), release_of(cause))


Idlers.TestCase.settings = walk(examples=60, steps=40)
TestIdlers = Idlers.TestCase
