"""What `labda up` says and with which status it ends, over processes that only sleep: the region never serves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
PROGRAM = """
import sys
from labda import launch
launch.command = lambda member, state: [sys.executable, "-S", "-c", sys.argv[1]]
from labda.__main__ import main
sys.exit(main(["up", "--listen", "127.0.0.1:0", "--azs", "1", "--state", sys.argv[2]]))
"""
SLEEPER = "import time; time.sleep(600)"
STUBBORN = f"""
import signal
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("there", flush=True)
{SLEEPER}
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without root the host is refused first")


def until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def started(state, life):
    """Once all of its processes run."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, life, str(state)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )
    file = state / "processes.json"
    until(lambda: process.poll() is not None or (file.exists() and len(json.loads(file.read_text())) == 9), "it starts")
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_end_before_the_cluster_serves_is_an_interruption(tmp_path, number):
    process = started(tmp_path / "s", SLEEPER)
    process.send_signal(number)
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, "")
    assert [line.split()[0] for line in said.splitlines()] == ["ended"]


def test_who_asks_twice_is_told_who_was_not_waited_for(tmp_path):
    process = started(tmp_path / "s", STUBBORN)
    logs = tmp_path / "s" / "logs"

    def words():
        return [log.read_text().split() for log in logs.glob("*.log")]

    until(lambda: sum("there" in said for said in words()) == 9, "all don't end on SIGTERM")
    process.send_signal(signal.SIGINT)
    until(lambda: any("asked" in said for said in words()), "the first signal has been obeyed")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, "")
    killed = [line for line in said.splitlines() if line.startswith("killed")]
    assert len(killed) == 1, said
    assert killed[0].endswith(": the end was asked for twice")
    assert "did not end within" not in said
