"""A member more, a member less, as an operator says it: real processes, and clients who notice nothing."""

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chassis import config
from chassis.certificates import Authority, TlsFiles, write_private
from chassis.rpc import Caller
from counting.config import CountingConfig
from labda.commands import counting
from labda.refusal import Refusal
from labda.state import State
from tests.cluster.cluster import ROOT, Cluster, Footprint, Functions, call, until
from tests.ports import free_port

NEW = "counting-az1-new"


@pytest.fixture
def small(_needs_a_host, tmp_path) -> Iterator[Cluster]:
    """One AZ, where three members of counting live."""
    running = Cluster(tmp_path / "state")
    running.start("--azs", "1")
    try:
        yield running
    finally:
        footprint = Footprint.of(running)
        running.stop()
    assert not footprint.left(running)


@contextlib.contextmanager
def another_member(cluster: Cluster, like: str, folder: Path) -> Iterator[None]:
    """A process that joins, with a certificate and a config that differ from another member's in what they must."""
    state = State(cluster.root)
    old = config.load(CountingConfig, state.config(like))
    tls = Authority.load(state.authority.parent).issue(
        Caller(service="counting", node=NEW, az=old.node.az, host=old.node.host)
    )
    files = {name: folder / f"{name}.pem" for name in ("authority", "certificate", "key")}
    for name, path in files.items():
        write_private(path, getattr(tls, name))
    made = dataclasses.replace(
        old, directory=str(folder / "raft"), members=old.members | {NEW: f"127.0.0.1:{free_port()}"},
        node=dataclasses.replace(
            old.node, node=NEW, listen=f"127.0.0.1:{free_port()}", tls=TlsFiles(**{n: str(p) for n, p in files.items()})
        ),
    )
    (folder / "config.toml").write_text(config.dump(made))
    command = [sys.executable, "-P", "-m", "counting", "--config", str(folder / "config.toml")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    refused = subprocess.run(
        [*command, "--init"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "members lists 4 founders" in refused.stderr
    subprocess.run([*command, "--init", "--join"], env=environment, timeout=60, check=True)
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def take_vote(cluster: Cluster, member: str) -> dict[str, Any]:
    """What `labda counting remove` does; said by a command it is for clusters whose members have successors."""
    return cluster.operator.run(counting.change(State(cluster.root), member, add=False))


@contextlib.contextmanager
def clients(cluster: Cluster) -> Iterator[list[str]]:
    """Three who invoke one after the other; what failed."""
    failures: list[str] = []
    counts: list[int] = []
    over = threading.Event()
    client = cluster.client()
    name = Functions(client).make("def handler(event, context):\n    return 'served'\n")
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=3)

    def one() -> None:
        while not over.is_set():
            try:
                answer = call(client, name)
                counts.append(1)
                if answer.payload != "served":
                    failures.append(str(answer))
            except Exception as error:  # noqa: BLE001 - whatever it is, a client saw it
                failures.append(repr(error))
            time.sleep(0.02)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        over.set()
        for thread in threads:
            thread.join()
        client.close()
    assert len(counts) > 20, "there was load"


def test_a_member_joins_and_the_leader_leaves_under_load(small, tmp_path):
    found = small.told("counting", "members")
    founders = sorted(one["member"] for one in found["members"])
    assert [(one["state"], one["heard"]) for one in found["members"]] == [("voter", True)] * 3
    leader = next(one["member"] for one in found["members"] if one["leads"])
    with pytest.raises(Refusal, match="counting-az9 is no member"):
        take_vote(small, "counting-az9")
    refused = small.labda("counting", "remove", leader, "--yes")
    assert (refused.returncode, "can't be removed from the embedded cluster" in refused.stderr) == (2, True)
    with clients(small) as failures:
        with another_member(small, leader, tmp_path):
            added = small.told("counting", "add", NEW)
            assert (added["changed"], added["caught_up"], added["voters"]) == (True, True, sorted([*founders, NEW]))
            removed = take_vote(small, leader)
            assert leader not in removed["voters"]
            again = small.labda("counting", "add", leader)
            assert (again.returncode, "voted once and was removed" in again.stderr) == (4, True)
            text = small.labda("counting", "members").stdout
            assert "3 voters, 0 away: 1 more may be lost" in text
            assert [line.split()[2] for line in text.splitlines() if line.startswith(f"{leader} ")] == ["removed"]
            votes = {one["node"]: one["votes"] for one in small.told("status")["processes"]}
            assert (votes[leader], votes[NEW], votes["placement-az1"]) == (False, True, None)
            assert f"{leader} (no vote)" in small.labda("status").stdout
        until(lambda: "1 away" in small.labda("counting", "members").stdout, "its loss to be seen")
        assert take_vote(small, NEW)["changed"]
    assert failures == []
