"""The supervisor's child processes: real ones, ended, restarted and stopped."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from labda import children as module
from labda.children import Backoff, Child, Children, descendants, end_leftovers, identify, start_ticks

DEADLINE_S = 60.0
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]
PARENT = [
    sys.executable, "-S", "-c",
    """import os, time
pid = os.posix_spawn('/bin/sleep', ['sleep', '600'], {}, setsid=True)
print(pid, flush=True); time.sleep(600)""",
]


async def until(condition, what):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


@pytest.fixture
def seen() -> list[tuple[str, bool]]:
    """What the observer was told: a child's name and whether it runs."""
    return []


@pytest.fixture
async def children(seen):
    found = Children(
        environment={"PATH": os.environ["PATH"]}, observe=lambda child: seen.append((child.name, child.pid is not None))
    )
    yield found
    await found.stop(list(found.by_name), grace_s=0.0)
    await found.stop_orphans()


async def test_a_process_that_dies_is_back_at_once(children, seen, tmp_path):
    child = children.start("a", SLEEPER, tmp_path / "a.log")
    first = child.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in {None, first}, "started again")
    assert child.starts == 2
    assert child.ended == "killed by SIGKILL"
    assert seen == [("a", True), ("a", False), ("a", True)]


def test_backoff_doubles_to_thirty_seconds_and_starts_afresh_after_a_minute_of_life():
    backoff = Backoff()
    assert [backoff.delay(0.5) for _ in range(8)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.delay(61.0) == 0.0
    assert backoff.delay(0.5) == 1.0


async def test_a_stopped_process_stays_ended(children, tmp_path):
    child = children.start("a", SLEEPER, tmp_path / "a.log")
    pid = child.pid
    assert await children.stop(["a"], grace_s=DEADLINE_S) == []
    assert child.pid is None
    assert start_ticks(pid) is None
    assert child.starts == 1


async def test_a_process_that_ignores_sigterm_is_killed_and_named(children, tmp_path):
    log = tmp_path / "a.log"
    child = children.start("a", STUBBORN, log)
    await until(lambda: log.exists() and "deaf" in log.read_text(), "it ignores SIGTERM by now")
    pid = child.pid
    assert await children.stop(["a"], grace_s=0.2) == ["a"]
    assert start_ticks(pid) is None


async def test_what_a_killed_process_leaves_is_adopted_and_ended(children, tmp_path):
    children.adopt()
    log = tmp_path / "a.log"
    child = children.start("a", PARENT, log)
    await until(lambda: log.exists() and log.read_text().strip(), "it has a child by now")
    orphan = int(log.read_text())
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: child.starts == 2, "started again")
    assert start_ticks(orphan) is not None
    assert orphan in descendants(os.getpid())
    await children.stop(["a"], grace_s=0.0)
    await children.stop_orphans()
    assert start_ticks(orphan) is None


async def test_what_lived_before_is_not_ended(tmp_path):
    """Nor what it starts later: these tests once ended a cluster that other tests of the same process had started."""
    script = "read go; sleep 600 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE, text=True) as elder:
        late = 0
        try:
            children = Children(environment={"PATH": os.environ["PATH"]}, observe=lambda child: None)
            assert elder.stdin is not None
            assert elder.stdout is not None
            print(file=elder.stdin, flush=True)
            late = int(elder.stdout.readline())
            children.start("a", SLEEPER, tmp_path / "a.log")
            await children.stop(["a"], grace_s=0.0)
            await children.stop_orphans()
            assert elder.poll() is None
            assert start_ticks(late) is not None
        finally:
            if late:
                os.kill(late, signal.SIGKILL)
            elder.kill()


async def test_processes_end_when_their_supervisor_is_killed(tmp_path):
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom labda.children import Children\n"
        "async def main():\n"
        "    children = Children(environment={'PATH': '/usr/bin:/bin'}, observe=lambda child: None)\n"
        f"    child = children.start('a', {SLEEPER!r}, Path({str(tmp_path / 'a.log')!r}))\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        # setpriv has become the program by then, so that the kernel was told before the supervisor dies
        await until(lambda: b"time.sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
                    and b"setpriv" not in Path(f"/proc/{pid}/cmdline").read_bytes(), "exec'd")
        supervisor.kill()
    await until(lambda: start_ticks(pid) is None, "ended by the kernel")


async def test_leftovers_are_ended_only_if_the_pid_is_still_theirs(tmp_path):
    process = subprocess.Popen(SLEEPER)
    try:
        [record] = identify({"a": process.pid})
        assert end_leftovers([{**record, "ticks": record["ticks"] - 1}], grace_s=0.0) == []
        assert process.poll() is None
        assert end_leftovers([record], grace_s=0.0) == ["a"]
        assert process.wait(DEADLINE_S) == -signal.SIGTERM or process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_a_child_that_never_started_has_no_pid(tmp_path):
    assert Child("a", SLEEPER, tmp_path / "a.log").pid is None


async def test_a_long_log_is_put_aside_while_its_process_writes_on(children, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOG_BYTES_MAX", 10_000)
    monkeypatch.setattr(module, "REAP_S", 0.02)
    log = tmp_path / "a.log"
    source = "import itertools, time\nfor n in itertools.count():\n    print(n, flush=True); time.sleep(0.001)\n"
    children.adopt()
    children.start("a", [sys.executable, "-S", "-c", source], log)
    await until((tmp_path / "a.log.1").exists, "put aside")
    await until(lambda: 0 < log.stat().st_size < 10_000, "cut, and written to from its beginning")
    first, *_ = log.read_text().split()
    assert int(first) > 1000, "it goes on where what was put aside ends"
    assert (tmp_path / "a.log.1").read_text().startswith("0\n1\n")
