"""What a child of the spawner holds, and that none of them holds it up: real spawners with children taken over."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import DEADLINE_S, PROBE, Ground, left_behind, loops_of, missing, start_ground, zipped
from worker.sandbox.driver import BadArchive, SandboxFault, SandboxGone
from worker.sandbox.predecessor import _started

# What an archive may make of the child that reads it, in place of unpack._unpack. There is no file system any more.
LISTS = """
def taken_over(order):
    held = {}
    for fd in range(1024):
        try:
            held[fd] = stat.S_IFMT(os.fstat(fd).st_mode)
        except OSError:
            pass
    for fd in (0, 1, 2, order.source, order.report):
        del held[fd]
    raise Refused(json.dumps(held))
"""
PAUSES = """
def taken_over(order):
    os.write(order.report, b"{")
    while True:
        signal.pause()
"""
NEVER_ENDS = """
def waits(*_, **__):
    while True:
        signal.pause()
real, never = unpack.run, os.path.abspath(os.path.dirname(sys.argv[2])) + "/never"
unpack.run = lambda order: waits() if os.path.exists(never) else real(order)
spawner.shutil = types.SimpleNamespace(rmtree=waits)
"""
# The spawner is killed while the child is about to ask for its signal.
UNTIED = """
spawner_pid, real = os.getpid(), linux.prctl
def prctl(option, argument=0):
    if option == linux.PR_SET_PDEATHSIG and os.path.exists("{mark}"):
        os.unlink("{mark}")
        while predecessor._started(spawner_pid) is not None:
            time.sleep(0.005)
    real(option, argument)
linux.prctl = prctl
"""
# The nth call of a kind fails, as where descriptors or processes run out, once the file "fails" is there.
FAILS = """
armed = os.path.dirname(sys.argv[2]) + "/fails"
def failing(real, when=lambda *_: True):
    def call(*arguments, **options):
        if os.path.exists(armed) and when(*arguments):
            os.unlink(armed)
            raise OSError(24, "Too many open files")
        return real(*arguments, **options)
    return call
"""
FAILURES = {
    "no socket for process 1": "socket.socketpair = failing(socket.socketpair)",
    "no child": "linux.fork_into = failing(linux.fork_into)",
    "no watch on its socket": """
selectors.DefaultSelector.register = failing(
    selectors.DefaultSelector.register, lambda _self, what, *_: isinstance(what, socket.socket))
""",
    "no watch on its end": """
selectors.DefaultSelector.register = failing(
    selectors.DefaultSelector.register, lambda _self, what, *_: isinstance(what, int))
""",
    "no descriptor of its freezer": "os.open = failing(os.open, lambda path, *_: path.endswith('/cgroup.freeze') "
                                    "or path.endswith('/freezer.state'))",
    "its first words are cut": """
def cut(channel, real=wire.receive):
    if channel is not agents and os.path.exists(armed):
        os.unlink(armed)
        for fd in real(channel)[1]:
            os.close(fd)
        raise wire.BadMessage("a packet was cut")
    return real(channel)
wire.receive = cut
agents, made = None, spawner.Spawner.__init__
def init(self, host, channel, end):
    global agents
    agents = channel
    made(self, host, channel, end)
spawner.Spawner.__init__ = init
""",
}
NO_REMOVAL = """
def refused(*_):
    raise OSError(11, "Resource temporarily unavailable")
def remove(self, directory, real=spawner.Spawner._remove_tree):
    forks, linux.fork_into = linux.fork_into, refused
    try:
        real(self, directory)
    finally:
        linux.fork_into = forks
spawner.Spawner._remove_tree = remove
"""
PROGRAM = """
import json, os, selectors, signal, socket, stat, sys, time, types
from chassis.archive import Refused
from worker.sandbox import linux, predecessor, spawner, spawner_process, unpack, wire
{change}
sys.exit(spawner_process.main())
"""


@asynccontextmanager
async def ground_of(state: Path, change: str, **changes: Any) -> AsyncIterator[Ground]:
    if missing():
        pytest.skip(f"sandboxes need {missing()}")
    program = ("-c", PROGRAM.format(change=change))
    ground = await start_ground(state, f"test-children-{os.getpid()}", program=program, **changes)
    try:
        yield ground
        async with asyncio.timeout(DEADLINE_S):
            await ground.driver.close()
        await asyncio.to_thread(ground.process.wait, DEADLINE_S)
    finally:
        ground.process.kill()
        ground.process.wait()
    assert left_behind(ground.config.name) == []
    assert loops_of(ground.config) == []


async def test_a_taken_over_unpacking_child_holds_its_archive_and_its_report_only(tmp_path: Path) -> None:
    async with ground_of(tmp_path / "state", LISTS + "unpack._unpack = taken_over") as ground:
        with pytest.raises(BadArchive) as caught:
            await ground.unpack(zipped({"a": "b"}))
        assert json.loads(caught.value.message.removeprefix("entry '': ")) == {}


async def test_a_taken_over_unpacking_child_that_says_something_and_pauses_holds_nobody_up(tmp_path: Path) -> None:
    async with ground_of(tmp_path / "state", PAUSES + "unpack._unpack = taken_over") as ground:
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(SandboxFault, match="without an answer"):
                await ground.unpack(zipped({"a": "b"}))
            assert not await ground.driver.has_code("0" * 64), "the spawner serves"


async def test_children_that_never_end_are_killed_when_the_spawner_leaves(tmp_path: Path) -> None:
    async with ground_of(tmp_path / "state", NEVER_ENDS, code_cache_bytes_max=1) as ground:
        unpacking, pids = await begun(ground, tmp_path)
        async with asyncio.timeout(DEADLINE_S):
            await ground.driver.close()
            with pytest.raises(SandboxGone):
                await unpacking
        assert await asyncio.to_thread(ground.process.wait, DEADLINE_S) == 0
        assert [pid for pid in pids if _started(pid) is not None] == []


async def test_children_that_never_end_keep_no_successor_out(tmp_path: Path) -> None:
    async with ground_of(tmp_path / "state", NEVER_ENDS, code_cache_bytes_max=1) as first:
        unpacking, pids = await begun(first, tmp_path)
        first.process.kill()
        with pytest.raises(SandboxGone):
            await unpacking
        await first.driver.close()
        second = await start_ground(tmp_path / "state", first.config.name)
        await second.driver.close()
        assert await asyncio.to_thread(second.process.wait, DEADLINE_S) == 0
        await until(lambda: not [pid for pid in pids if _started(pid) is not None])


async def test_a_child_whose_spawner_died_before_it_could_tie_itself_to_it_keeps_no_successor_out(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "wait"
    async with ground_of(tmp_path / "state", UNTIED.format(mark=str(mark))) as first:
        await first.unpack(zipped({"app.py": PROBE}))
        mark.touch()
        creating = asyncio.create_task(first.create())
        await until(lambda: not mark.exists())
        first.process.kill()
        with pytest.raises(SandboxGone):
            await creating
        await first.driver.close()
        second = await start_ground(tmp_path / "state", first.config.name)
        await second.driver.close()
        assert await asyncio.to_thread(second.process.wait, DEADLINE_S) == 0


async def test_nobody_changes_the_filter_that_every_sandbox_reads(ground: Ground) -> None:
    links = Path(f"/proc/{ground.process.pid}/fd")
    name = next(path for path in links.iterdir() if "memfd:filter" in str(path.readlink()))
    with name.open("r+b") as file:
        for change in (lambda: os.pwrite(file.fileno(), b"x", 0), lambda: os.ftruncate(file.fileno(), 0)):
            with pytest.raises(PermissionError):
                change()


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_sandbox_that_can_not_be_made_leaves_nothing_and_hurts_no_other(tmp_path: Path, failure: str) -> None:
    async with ground_of(tmp_path / "state", FAILS + FAILURES[failure]) as ground:
        other = await ground.running()
        assert await other.probe("out = 1") == 1
        held = descriptors_of(ground)
        (tmp_path / "state" / "fails").touch()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(SandboxFault) as caught:
                await ground.create()
        assert caught.value.definite
        assert not (tmp_path / "state" / "fails").exists()
        assert [path for path in left_behind(ground.config.name) if path.endswith("/s-2")] == []
        assert len(loops_of(ground.config)) <= 1
        await until(lambda: descriptors_of(ground) == held)
        assert len(children_of(ground.process.pid)) == 1
        for _ in range(ground.config.sandboxes_max - 1):    # no slot is lost
            await ground.create(memory_mb=128)
        assert await other.probe("out = 2") == 2


async def test_what_was_evicted_stays_where_no_child_can_be_made_to_remove_it(tmp_path: Path) -> None:
    async with ground_of(tmp_path / "state", NO_REMOVAL, code_cache_bytes_max=1) as ground:
        await ground.unpack(zipped({"a": b"a"}))
        last = await ground.unpack(zipped({"b": b"b"}))
        assert await ground.driver.has_code(last)
        assert [path.name for path in (tmp_path / "state" / "code").glob("evicted-*")] != []


def descriptors_of(ground: Ground) -> int:
    return len(list(Path(f"/proc/{ground.process.pid}/fd").iterdir()))


async def begun(ground: Ground, folder: Path) -> tuple["asyncio.Task[str]", list[int]]:
    """A child that removes and one that unpacks: the latter's task, and the pids of both."""
    await ground.unpack(zipped({"a": b"a"}))
    await ground.unpack(zipped({"b": b"b"}))
    await until(lambda: len(children_of(ground.process.pid)) == 1)
    (folder / "state" / "never").touch()
    unpacking = asyncio.create_task(ground.unpack(zipped({"c": b"c"})))
    await until(lambda: len(children_of(ground.process.pid)) == 2)
    return unpacking, children_of(ground.process.pid)


def children_of(pid: int) -> list[int]:
    names = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(name) for name in names if _started(int(name)) is not None]


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not reached():
            await asyncio.sleep(0.01)
