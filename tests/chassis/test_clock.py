"""The wall clock that an experiment moves."""

import time

import pytest

from chassis.clock import OffsetClock, SystemClock, write_offset

HOUR_S = 3600.0
SLACK_S = 60.0


def test_the_wall_clock_follows_the_file_while_the_process_runs(tmp_path):
    path = tmp_path / "offset"
    write_offset(path, 0.0)
    clock = OffsetClock(path)
    assert abs(clock.wall() - time.time()) < SLACK_S
    for offset in (HOUR_S, -HOUR_S, 0.0):
        write_offset(path, offset)
        assert abs(clock.wall() - time.time() - offset) < SLACK_S
        assert abs(clock.monotonic() - SystemClock().monotonic()) < SLACK_S, "it does not jump"


def test_a_clock_without_an_offset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        OffsetClock(tmp_path / "nowhere")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="mmap length"):
        OffsetClock(tmp_path / "empty")
