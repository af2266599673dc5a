"""Hands on containers: three of them that do nothing are killed, kept away, cut off and given back, for real."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labda.chaos.compose import ComposeHands
from labda.cluster import shape
from labda.cluster.engine import PROJECT_LABEL, Container, Engine, docker

PROJECT = "labda-hands"
NODES = {"frontend-az1-1": "frontend", "etcd-az1": "etcd", "worker-az2-1": "worker"}
DEADLINE_S = 60.0
# Reports its own process, as an agent does, and goes on without it.
LIFE = "trap 'exit 0' TERM; sleep 600 & echo $! > /tmp/agent; while true; do sleep 0.1; done"


@pytest.fixture(scope="module")
def engine(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    there = Engine(shape.Shape(project=PROJECT), tmp_path_factory.mktemp("hands"))
    _remove(there)
    try:
        for network in ("region", "az1", "az2"):
            _docker("network", "create", "--internal", "--label", f"{PROJECT_LABEL}={PROJECT}", f"{PROJECT}_{network}")
        for node, service in NODES.items():
            az = node.split("-")[1]
            labels = {PROJECT_LABEL: PROJECT, "labda.node": node, "labda.service": service, "labda.az": az}
            _docker(
                "run", "--detach", "--name", f"{PROJECT}-{node}", "--hostname", node, "--restart", "unless-stopped",
                "--network", f"{PROJECT}_{az}", *(f"--label={name}={value}" for name, value in labels.items()),
                "debian:trixie-slim", "sh", "-c", LIFE,
            )
            _docker("network", "connect", "--alias", node, f"{PROJECT}_region", f"{PROJECT}-{node}")
        yield there
    finally:
        _remove(there)


def _docker(*words: str) -> str:
    return docker(*words)


def _remove(there: Engine) -> None:
    for left in there.left():
        kind, _, name = left.partition(" ")
        if kind == "container":
            _docker("rm", "--force", name)
    for left in there.left():
        _docker("network", "rm", left.partition(" ")[2])


@pytest.fixture
async def hands(engine: Engine) -> AsyncIterator[ComposeHands]:
    found = await ComposeHands.open(engine, pid=_agent)
    try:
        yield found
    finally:
        await found.restore()
        await found.close()
    assert await found.missing() == []


def _agent(node: str) -> int:
    """Of the container's present life, once it has said which it is: the file of the one before is still there."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        said = subprocess.run(
            ["docker", "exec", f"{PROJECT}-{node}", "sh", "-c", "kill -0 $(cat /tmp/agent) && cat /tmp/agent"],
            capture_output=True, text=True, check=False,
        )
        if said.returncode == 0:
            return int(said.stdout)
        assert time.monotonic() < deadline, said.stderr


def now(engine: Engine) -> dict[str, Container]:
    return {container.node: container for container in engine.containers()}


async def until(condition, what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)
    assert condition(), what


def reaches(one: str, other: str) -> bool:
    """Whether a container can look another one's name up."""
    said = subprocess.run(
        ["docker", "exec", f"{PROJECT}-{one}", "getent", "hosts", other], capture_output=True, check=False
    )
    return said.returncode == 0


async def test_what_is_held_stays_away(engine, hands):
    processes = [Path(f"/proc/{now(engine)[node].pid}") for node in ("frontend-az1-1", "etcd-az1")]
    await hands.hold(["frontend-az1-1", "etcd-az1"])
    assert not any(process.exists() for process in processes), "they are gone, whatever docker still has to do"
    await until(lambda: not now(engine)["frontend-az1-1"].running, "docker knows too")
    await until(lambda: not now(engine)["etcd-az1"].running, "docker knows too")
    assert {node for node, one in now(engine).items() if not one.running} == {"frontend-az1-1", "etcd-az1"}
    assert await hands.missing() == ["etcd-az1", "frontend-az1-1"]
    await hands.release(["frontend-az1-1", "etcd-az1"])
    assert all(one.running for one in now(engine).values())


async def test_what_is_killed_or_told_to_end_comes_back(engine, hands):
    for deed in (hands.kill, hands.restart):
        before = now(engine)["worker-az2-1"]
        await deed(["worker-az2-1"])
        after = now(engine)["worker-az2-1"]
        assert after.running
        assert after.pid != before.pid


async def test_an_agent_alone(engine, hands):
    before = now(engine)["worker-az2-1"].pid
    agent = _agent("worker-az2-1")
    await hands.kill_agent("worker-az2-1")
    said = subprocess.run(["docker", "exec", f"{PROJECT}-worker-az2-1", "kill", "-0", str(agent)], check=False,
                          capture_output=True)
    assert said.returncode != 0, "it is gone"
    assert now(engine)["worker-az2-1"].pid == before, "its container isn't"


async def test_an_az_off_the_region_still_has_its_own_network(engine, hands):
    await until(lambda: reaches("worker-az2-1", "frontend-az1-1"), "its name is known")
    await hands.cut("az1")
    cut = now(engine)["frontend-az1-1"]
    assert cut.running
    assert set(cut.addresses) == {"az1"}
    assert cut.address, "this host still reaches it"
    assert not reaches("worker-az2-1", "frontend-az1-1")
    await hands.heal("az1")
    assert set(now(engine)["frontend-az1-1"].addresses) == {"az1", "region"}
    await until(lambda: reaches("worker-az2-1", "frontend-az1-1"), "its name is known again")


def test_a_container_that_goes_while_one_looks_is_no_failure(engine):
    """As those do that found a cluster's stores."""
    def pass_by() -> None:
        for _ in range(5):
            _docker("run", "--rm", f"--label={PROJECT_LABEL}={PROJECT}", "debian:trixie-slim", "true")

    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(pass_by)
        while not passing.done():
            assert set(now(engine)) == set(NODES)
        passing.result()


async def test_members_of_stores_are_known_by_their_labels(hands):
    assert [(one.node, one.service, one.az) for one in hands.stores] == [("etcd-az1", "etcd", "az1")]


COMMAND = """
import asyncio, sys
from pathlib import Path
from labda.chaos.compose import ComposeHands
from labda.cluster import shape
from labda.cluster.engine import Engine

async def main():
    hands = await ComposeHands.open(Engine(shape.Shape(project=sys.argv[1]), Path(sys.argv[2])), pid=lambda _: 0)
    await hands.hold(["frontend-az1-1"])
    await hands.cut("az2")
    print("broken", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_command_that_is_killed_leaves_a_whole_cluster(engine, tmp_path):
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, PROJECT, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert command.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            assert await command.stdout.readline() == b"broken\n"
        broken = now(engine)
        assert not broken["frontend-az1-1"].running
        assert set(broken["worker-az2-1"].addresses) == {"az2"}
    finally:
        command.kill()
        await command.wait()

    def whole() -> bool:
        there = now(engine)
        return there["frontend-az1-1"].running and set(there["worker-az2-1"].addresses) == {"az2", "region"}

    await until(whole, "everything is back")
    assert json.loads(docker("inspect", f"{PROJECT}-worker-az2-1"))[0]["State"]["Running"]
