"""`labda hosts`: what placement, managers and the ledger know of each host, and what an operator may swear."""

import io
import json

import pytest

from labda import __main__ as command
from labda.commands import hosts
from labda.refusal import Refusal
from protos import common_pb2, counting_pb2, placement_pb2, worker_manager_pb2

Host = counting_pb2.ListHostsAnswer.Host
NOON = 1_800_000_000.0


def worker(az, health="serving"):
    return placement_pb2.Node(
        node=f"worker-{az}-1", service="worker", az=az, host=f"host-{az}-1", health=health,
        capacity=placement_pb2.WorkerCapacity(memory_mb=4096, memory_free_mb=3840, sandboxes=2),
    )


def member(host, nonce, **fields):
    incarnation = common_pb2.Incarnation(host=host, nonce=nonce)
    return Host(incarnation=incarnation, member=True, authority_until=NOON + 100, evicted_by=NOON + 1150, **fields)


def dead(host, nonce):
    return Host(incarnation=common_pb2.Incarnation(host=host, nonce=nonce), declared_dead_at=NOON - 60)


MANAGERS = {"manager-az2": worker_manager_pb2.DescribeAnswer(workers=[
    worker_manager_pb2.DescribeAnswer.WorkerLease(worker="worker-az1-1", lease=7, hard_end=NOON + 9000),
])}
FOUND = hosts.describe(
    [worker("az2", "dead"), worker("az1"), worker("az3", "dead")],
    [
        member("host-az1-1", 0xa1, heard=True), dead("host-az1-1", 0xa0),
        member("host-az2-1", 0xb1, owes=["frontend-az2-1"]), dead("host-az3-1", 0xc0), dead("host-gone", 0xd0),
    ],
    MANAGERS,
)


def test_a_program_gets_everything_of_a_host():
    first = next(host for host in FOUND if host["host"] == "host-az1-1")
    assert first == {
        "host": "host-az1-1", "az": "az1", "worker": "worker-az1-1", "incarnation": "00000000000000a1",
        "health": "serving", "manager": "manager-az2", "lease": 7, "lease_ends": NOON + 9000, "sandboxes": 2,
        "memory_mb": 4096, "memory_free_mb": 3840, "heard": True, "authority_until": NOON + 100,
        "evicted_by": NOON + 1150, "owes": [], "declared_dead": {"incarnation": "00000000000000a0", "at": NOON - 60},
    }
    json.dumps(FOUND)


def test_a_person_sees_who_is_silent_and_until_when_it_counts():
    lines = hosts.render(FOUND, NOON).splitlines()
    rows = {line.split()[0]: line for line in lines[1:] if not line.startswith(" ")}
    assert list(rows) == ["host-gone", "host-az1-1", "host-az2-1", "host-az3-1"]
    assert "7 manager-az2 " in rows["host-az1-1"]
    assert "may start until" in rows["host-az1-1"]
    assert "SILENT, may start until" in rows["host-az2-1"]
    assert "evicted by" in rows["host-az2-1"]
    assert lines[lines.index(rows["host-az2-1"]) + 1].strip() == "has not said yet what it runs of frontend-az2-1"
    assert rows["host-az3-1"].split()[2:5] == ["-", "dead", "2"]
    assert "00000000000000c0 was declared dead at" in rows["host-az3-1"]
    assert "SILENT, may start nothing, evicted by" in hosts.render(FOUND, NOON + 101)


def test_a_host_is_found_by_its_name_or_its_workers():
    assert hosts.find(FOUND, "worker-az2-1")["host"] == "host-az2-1"
    with pytest.raises(Refusal, match="there is no host nothing"):
        hosts.find(FOUND, "nothing")
    with pytest.raises(Refusal, match="has left, or is gone already"):
        hosts.find(FOUND, "host-az3-1")


@pytest.mark.parametrize("typed", ["", "y\n", "host-az1-1\n"])
def test_nothing_is_declared_unless_the_hosts_own_name_was_typed(monkeypatch, capsys, typed):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with pytest.raises(Refusal, match="host-az2-1 was not declared dead"):
        hosts._confirm(hosts.find(FOUND, "host-az2-1"))
    said = capsys.readouterr().err
    assert "nothing runs there any more" in said
    assert "never starts anything again" in said
    assert "kill what it runs" not in said


def test_whoever_types_it_is_told_what_becomes_of_one_that_lives(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("host-az1-1\n"))
    hosts._confirm(hosts.find(FOUND, "host-az1-1"))
    assert "kill what it runs" in capsys.readouterr().err


def test_without_a_cluster_it_is_one_sentence(tmp_path, capsys):
    assert command.main(["hosts", "declare-dead", "host-az1-1", "--yes", "--state", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1
