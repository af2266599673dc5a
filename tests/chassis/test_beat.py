"""When periodic work is done: at the same moments everywhere, and once each time."""

import pytest

from chassis.beat import until_beat

PERIOD_S = 0.5


@pytest.mark.parametrize(("now", "beat"), [(100.0, 100.5), (100.2, 100.5), (100.374, 100.5)])
def test_the_next_multiple_of_the_period(now: float, beat: float) -> None:
    assert now + until_beat(now, PERIOD_S) == pytest.approx(beat)


def test_a_timer_that_fired_early_makes_no_two_beats() -> None:
    assert 99.998 + until_beat(99.998, PERIOD_S) == pytest.approx(100.5)


def test_a_late_timer_finds_the_next_beat_where_the_others_are() -> None:
    assert 100.31 + until_beat(100.31, PERIOD_S) == pytest.approx(100.5)
    assert 101.49 + until_beat(101.49, PERIOD_S) == pytest.approx(102.0)
