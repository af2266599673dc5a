"""Deadlines beside the plainest model of them: a table of keys."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.walking import walk
from worker_manager.timers import DEAD_MIN, Timers

KEYS = st.integers(0, 4)
TIMES = st.sampled_from([1.0, 2.0, 3.0, 5.0])   # few, so that some are the same


class Walk(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.timers: Timers[int] = Timers()
        self.now = 0.0
        self.set_at: dict[int, tuple[float, int]] = {}      # and which setting of all it was
        self.count = 0

    @rule(key=KEYS, ahead=TIMES, times=st.sampled_from([1, 1, 1, DEAD_MIN]))
    def is_set(self, key, ahead, times):
        """Also earlier and earlier, many times: each leaves an entry that is of no use."""
        for step in range(times):
            at = self.now + ahead - step * ahead / 100
            self.count += 1
            if key not in self.set_at or at < self.set_at[key][0]:
                self.set_at[key] = (at, self.count)
            self.timers.set(key, at)
            self.timers.check()

    @rule(ahead=TIMES)
    def many_come_and_go(self, ahead):
        for key in range(100, 100 + 3 * DEAD_MIN):
            self.count += 1
            self.timers.set(key, self.now + ahead)
        for key in range(100, 100 + 3 * DEAD_MIN):
            self.timers.drop(key)
            self.timers.check()

    @rule(key=KEYS, times=st.sampled_from([1, 2, 2, DEAD_MIN]))
    def is_dropped(self, key, times):
        """Also set to the same time again: no entry comes to life."""
        at = self.timers.at(key)
        for _ in range(times):
            self.timers.drop(key)
            if times > 1 and at is not None:
                self.count += 1
                self.set_at[key] = (at, self.count)
                self.timers.set(key, at)
            else:
                self.set_at.pop(key, None)
            self.timers.check()

    @rule(seconds=TIMES)
    def time_passes(self, seconds):
        self.now += seconds
        due = sorted((key for key in self.set_at if self.set_at[key][0] <= self.now), key=lambda k: self.set_at[k])
        assert list(self.timers.due(self.now)) == due
        for key in due:
            del self.set_at[key]

    @invariant()
    def it_says_what_was_set(self):
        self.timers.check()
        assert {key: self.timers.at(key) for key in self.timers} == {key: at for key, (at, _) in self.set_at.items()}

    @rule()
    def it_says_what_comes_next(self):
        assert self.timers.next_at() == min((at for at, _ in self.set_at.values()), default=None)


Walk.TestCase.settings = walk(examples=60, steps=30)
TestWalk = Walk.TestCase


def test_a_key_that_is_set_anew_comes_in_its_new_turn():
    timers: Timers[int] = Timers()
    timers.set(1, 5.0)
    timers.set(2, 5.0)
    timers.drop(1)
    timers.set(1, 5.0)
    assert list(timers.due(5.0)) == [2, 1]


def test_what_is_dead_goes_with_what_was_due():
    timers: Timers[int] = Timers()
    for key in range(3 * DEAD_MIN):
        timers.set(key, 9.0 if key < 2 * DEAD_MIN else 1.0)
    for key in range(2 * DEAD_MIN):
        timers.drop(key)
        timers.check()
    assert len(list(timers.due(1.0))) == DEAD_MIN
    timers.check()
