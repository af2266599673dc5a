"""What other commands may ask of the supervisor: over a real socket, about real processes."""

import asyncio
import os
import signal
import struct
import sys
from pathlib import Path

import pytest

from chassis.clock import write_offset
from labda import leftovers
from labda.chaos.proxy import LinkFault, Proxy, Route
from labda.children import BACKOFF_FIRST_S, Children
from labda.control import SOCKET, Asker, Control
from labda.refusal import Refusal
from labda.state import State

DEADLINE_S = 60.0
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
POLITE = [
    sys.executable, "-S", "-c",
    """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)))
print('here', flush=True); time.sleep(600)""",
]


async def until(condition, what):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


@pytest.fixture
def state(tmp_path) -> State:
    """Far down, so that the socket's path alone is longer than a socket's name may be."""
    found = State(tmp_path / ("deep" * 20) / ("deeper" * 10))
    found.prepare()
    return found


@pytest.fixture
async def children(state, tmp_path):
    found = Children(environment={"PATH": os.environ["PATH"]}, observe=lambda _: None)
    for name in "abc":
        found.start(name, SLEEPER, tmp_path / f"{name}.log")
    control = Control(state, found, drain_s=DEADLINE_S)
    await control.start()
    yield found
    await control.close()
    await found.stop(list(found.by_name), grace_s=0.0)
    await found.stop_orphans()
    assert not (state.root / SOCKET).exists()


@pytest.fixture
async def asker(state, children):
    found = await Asker.open(state)
    yield found
    await found.close()


async def test_what_is_killed_comes_back(asker, children):
    before = children.pids()
    await asker.ask("kill", ["a", "b"])
    assert children.pids().get("a") != before["a"]
    await until(lambda: len(children.pids()) == 3, "all run again")
    after = children.pids()
    assert after["c"] == before["c"]
    assert {after["a"], after["b"]}.isdisjoint(before.values())


async def test_who_is_killed_time_and_again_comes_back_at_once_each_time(asker, children):
    for _ in range(4):
        before = children.pids()["a"]
        await asker.ask("kill", ["a"])
        await until(lambda: children.pids().get("a") not in {None, before}, "it runs again")    # noqa: B023
        assert children.by_name["a"].backoff.next_s == BACKOFF_FIRST_S, "it has waited for nothing so far"


async def test_what_is_held_stays_away_until_it_is_released(asker, children):
    await asker.ask("hold", ["a", "b"])
    assert set(children.pids()) == {"c"}
    await asyncio.sleep(0.1)    # a restart would come at once
    assert set(children.pids()) == {"c"}
    await asker.ask("release", ["a"])
    assert set(children.pids()) == {"a", "c"}
    await asker.ask("release", ["a", "b", "c"])
    assert len(children.pids()) == 3


async def test_what_was_about_to_be_started_again_is_held_too(asker, children):
    first = children.pids()["a"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: children.pids().get("a") not in {None, first}, "it is back at once")

    def is_to_come_back():
        if children.by_name["a"].restart is None and (pid := children.pids().get("a")) is not None:
            os.kill(pid, signal.SIGKILL)    # after this end it waits for longer than after the one before
        return children.by_name["a"].restart is not None

    await until(is_to_come_back, "it is to come back in a second")
    await asker.ask("hold", ["a"])
    assert children.by_name["a"].restart is None
    await asker.ask("release", ["a"])
    assert "a" in children.pids()


async def test_who_goes_away_leaves_a_whole_cluster(state, children):
    asker = await Asker.open(state)
    other = await Asker.open(state)
    await asker.ask("hold", ["a"])
    await other.ask("hold", ["b"])
    await asker.close()
    await until(lambda: set(children.pids()) == {"a", "c"}, "only what the one who went away held is back")
    await other.ask("release", ["a"])   # not its own: nothing happens
    assert set(children.pids()) == {"a", "c"}
    await other.close()
    await until(lambda: len(children.pids()) == 3, "all run again")


async def test_a_restart_lets_it_end_by_itself(asker, children, tmp_path):
    log = tmp_path / "polite.log"
    child = children.start("polite", POLITE, log)
    await until(lambda: log.exists() and "here" in log.read_text(), "it began")
    before = child.pid
    await asker.ask("restart", ["polite"])
    assert child.pid not in {None, before}
    assert "bye" in log.read_text()


async def test_what_cannot_be_is_refused(asker, children):
    with pytest.raises(Refusal, match="there is no process x, y"):
        await asker.ask("hold", ["a", "y", "x"])
    with pytest.raises(Refusal, match="one of kill, hold, release, restart, stop, continue, strike, mend, skew, "):
        await asker.ask("melt", ["a"])
    assert len(children.pids()) == 3


async def test_nonsense_is_answered(state, children):
    asker = await Asker.open(state)
    for line in (b"\n", b"[]\n", b'{"do": "hold"}\n', b"\xff\n"):
        asker._writer.write(line)
        assert b"not a request" in await asyncio.wait_for(asker._reader.readline(), DEADLINE_S)
    await asker.close()
    assert len(children.pids()) == 3


async def test_the_socket_is_for_its_owner_alone(state, children):
    assert (state.root / SOCKET).stat().st_mode & 0o777 == 0o600


async def test_no_supervisor_listens(tmp_path):
    with pytest.raises(Refusal, match="can't be asked"):
        await Asker.open(State(tmp_path))


async def test_a_cluster_that_ends_starts_nothing_again(state, tmp_path):
    children = Children(environment={"PATH": os.environ["PATH"]}, observe=lambda _: None)
    children.start("a", SLEEPER, tmp_path / "a.log")
    control = Control(state, children, drain_s=DEADLINE_S)
    await control.start()
    asker = await Asker.open(state)
    await asker.ask("hold", ["a"])
    await control.close()
    await children.stop(["a"], grace_s=0.0)
    assert children.pids() == {}
    with pytest.raises(Refusal, match=r"went away|doesn't answer"):
        await asker.ask("release", ["a"])
    assert children.pids() == {}
    await asker.close()


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


async def test_what_is_stopped_is_there_and_continues(asker, children):
    before = children.pids()
    await asker.ask("stop", ["a"])
    await until(lambda: is_stopped(before["a"]), "a is stopped")
    assert not is_stopped(before["b"])
    await asker.ask("continue", ["a"])
    await until(lambda: not is_stopped(before["a"]), "a goes on")
    assert children.pids() == before


async def test_who_goes_away_leaves_nothing_stopped(state, children):
    asker = await Asker.open(state)
    await asker.ask("stop", ["a", "b"])
    await asker.ask("continue", ["b"])
    await asker.close()
    await until(lambda: not is_stopped(children.pids()["a"]), "a goes on")


async def test_a_stopped_process_hears_that_it_is_to_end(asker, children, tmp_path):
    log = tmp_path / "polite.log"
    children.start("polite", POLITE, log)
    await until(lambda: log.exists() and "here" in log.read_text(), "it began")
    await asker.ask("stop", ["polite"])
    await until(lambda: is_stopped(children.pids()["polite"]), "it is stopped")
    assert await children.stop(["polite"], grace_s=DEADLINE_S) == []
    assert "bye" in log.read_text()


# ---------------------------------------------------------------- links


async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


@pytest.fixture
async def linked(state):
    """A supervisor's control with a proxy between "a" and "b", and a connection through it."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    children = Children(environment={"PATH": os.environ["PATH"]}, observe=lambda _: None)
    control = Control(state, children, drain_s=5.0)
    control.proxy = Proxy([Route(dialler="a", server="b", address=f"{host}:{port}")])
    await control.proxy.start()
    await control.start()
    reader, writer = await asyncio.open_connection(*control.proxy.addresses["a", "b"].rsplit(":", 1))
    yield reader, writer
    writer.close()
    await control.close()
    await control.proxy.close()
    server.close()


async def said_again(linked, timeout_s=DEADLINE_S):
    reader, writer = linked
    writer.write(b"hello")
    async with asyncio.timeout(timeout_s):
        return await reader.readexactly(5) == b"hello"


async def test_links_are_struck_until_they_are_mended_or_who_asked_goes(state, linked):
    assert await said_again(linked)
    asker = await Asker.open(state)
    for give_back in (lambda: asker.mend([("a", "b")]), asker.close):
        await asker.strike([("a", "b")], LinkFault(stalled=True))
        with pytest.raises(TimeoutError):
            await said_again(linked, 0.2)
        await give_back()
        async with asyncio.timeout(DEADLINE_S):
            assert await linked[0].readexactly(5) == b"hello"
        assert await said_again(linked)


async def test_a_fault_that_cannot_be_is_refused(state, linked):
    asker = await Asker.open(state)
    with pytest.raises(Refusal, match="no link goes through the proxy from b to c"):
        await asker.strike([("b", "c")], LinkFault(stalled=True))
    asker._writer.write(b'{"do": "strike", "ways": [["a", "b"]], "fault": {"delay_s": -1}}\n')
    assert b"delay_s is -1, allowed are 0 to 60" in await asyncio.wait_for(asker._reader.readline(), DEADLINE_S)
    asker._writer.write(b'{"do": "strike", "ways": [["a", "b"]], "fault": {"colour": 1}}\n')
    assert b"not a request" in await asyncio.wait_for(asker._reader.readline(), DEADLINE_S)
    assert await said_again(linked)
    await asker.close()


async def test_without_a_proxy_links_cannot_be_struck(asker):
    with pytest.raises(Refusal, match="labda up --breakable"):
        await asker.strike([("a", "b")], LinkFault(stalled=True))


# ---------------------------------------------------------------- clocks and disks


def offset(state, node):
    return struct.unpack("<d", state.clock_offset(node).read_bytes())[0]


async def test_a_clock_is_wrong_until_it_is_set_or_who_asked_goes(state, children):
    state.node("a").mkdir()
    write_offset(state.clock_offset("a"), 0.0)
    asker = await Asker.open(state)
    await asker.skew(["a"], 3600.0)
    assert offset(state, "a") == 3600.0
    await asker.skew(["a"], 0.0)
    assert offset(state, "a") == 0.0
    await asker.skew(["a"], -3600.0)
    await asker.close()
    await until(lambda: offset(state, "a") == 0.0, "it is right again")


async def test_a_clock_that_cannot_be_moved(state, asker):
    with pytest.raises(Refusal, match="labda up --breakable"):
        await asker.skew(["a"], 1.0)
    with pytest.raises(Refusal, match=r"by_s is 1e\+300, a number of seconds is needed"):
        await asker.skew(["a"], 1e300)


@pytest.fixture
def member(state, children):
    """"a" has the files of a member of counting."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a tmpfs")
    state.raft("a").mkdir(parents=True)
    (state.raft("a") / "journal").write_text("kept")
    yield state.raft("a")
    leftovers.move_back(state)


async def test_a_small_disk_is_filled_and_given_back(asker, children, member):
    before = children.pids()
    await asker.ask("shrink", ["a"])
    assert member.is_symlink()
    assert children.pids()["a"] != before["a"], "it didn't run while its files were moved"
    await asker.ask("fill", ["a"])
    with pytest.raises(OSError, match="No space"):
        (member / "more").write_bytes(bytes(100_000))
    await asker.ask("empty", ["a"])
    (member / "more").write_bytes(bytes(100_000))
    await asker.ask("enlarge", ["a"])
    assert not member.is_symlink()
    assert (member / "journal").read_text() == "kept"
    assert len(children.pids()) == 3


async def test_who_goes_away_leaves_no_small_disk(state, children, member):
    asker = await Asker.open(state)
    await asker.ask("shrink", ["a"])
    await asker.ask("fill", ["a"])
    await asker.close()
    await until(lambda: not member.is_symlink() and len(children.pids()) == 3, "its files are back and it runs")


async def test_disks_that_are_not_there(asker, member):
    with pytest.raises(Refusal, match="b is no member of counting"):
        await asker.ask("shrink", ["a", "b"])
    with pytest.raises(Refusal, match="who asked didn't shrink a"):
        await asker.ask("fill", ["a"])
    assert not member.is_symlink()
