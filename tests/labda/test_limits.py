"""`labda limits`: what the ledger reports, as a person and as a program see it."""

import json

import pytest

from labda import __main__ as command
from labda.commands import limits
from labda.state import State
from protos import common_pb2, counting_pb2

Answer = counting_pb2.ListPoolsAnswer
A = "000000000000"
NOON = 1_800_000_000.0


def pool(function="", **fields):
    kind = common_pb2.Pool.RESERVED if function else common_pb2.Pool.UNRESERVED
    return Answer.PoolStatus(pool=common_pb2.Pool(account=A, function=function, kind=kind), **fields)


def holder(frontend, state="live", **fields):
    return Answer.Holder(session=common_pb2.Session(frontend=frontend, epoch=1), state=state, **fields)


def report(*pools, proofs=None):
    said = limits.proofs(proofs or Answer.Proofs())
    return {"refusals_since": NOON, **said, "pools": [limits.describe(status) for status in pools]}


BUSY = pool(
    "thumbnails", limit=5, granted=7, waiting=2, charged=1, refusals={"limit": 1204, "not yet counted": 3},
    holders=[
        holder("frontend-az1-1", size=3, in_use=2),
        holder("frontend-az2-1", "draining", size=3, waits_for=["host-az3-1"], until=NOON + 60),
        holder("frontend-az3-1", "counted", size=1, in_use=1, until=NOON + 61),
    ],
    outstanding=[counting_pb2.SetReservedAnswer.Outstanding(node="frontend-az2-1", until=NOON + 62)],
    rounds=1207, round_waits_for=["frontend-az1-1"],
)
PROOFS = Answer.Proofs(
    rounds=1301, rounds_open=1, fenced={"silent": 2, "replaced": 1, "left": 0}, uncounted=1,
    evicted={"silent": 1, "replaced": 0, "declared dead": 0},
)


def test_a_program_gets_every_part_of_a_pool():
    [found] = report(BUSY)["pools"]
    assert found == {
        "account": A, "function": "thumbnails", "kind": "reserved", "limit": 5, "granted": 7, "running": 3,
        "waiting": 2,
        "frontends": {"frontend-az1-1": {"running": 2, "idle": 1}},
        "draining": [
            {"frontend": "frontend-az2-1", "epoch": 1, "permits": 3, "counted": False, "waits_for": ["host-az3-1"],
             "until": NOON + 60},
            {"frontend": "frontend-az3-1", "epoch": 1, "permits": 1, "counted": True, "waits_for": [],
             "until": NOON + 61},
        ],
        "pending_change": {"charged": 1, "outstanding": [{"frontend": "frontend-az2-1", "until": NOON + 62}]},
        "refusals": {"limit": 1204, "not yet counted": 3},
        "rounds": {"begun": 1207, "waits_for": ["frontend-az1-1"]},
    }
    json.dumps(found)


def test_a_person_sees_who_holds_what_and_who_is_waited_for():
    lines = limits.render(report(pool(limit=995, granted=0), BUSY)).splitlines()
    assert lines[0].startswith("pool")
    assert lines[1].split()[:2] == [A, "unreserved"]
    assert lines[1].endswith("-"), "nothing was refused"
    text = "\n".join(lines[2:])
    for said in (
        "1,204 limit, 3 not yet counted", "2 running, 1 idle", "gone: 3 not yet counted, waits for host-az3-1",
        "gone: 1 still running there", "1 permits of other pools count here", "frontend-az2-1 is to acknowledge it",
        "waits for frontend-az1-1",
    ):
        assert said in text
    assert max(map(len, lines)) <= 120
    assert not any(line.endswith(" ") for line in lines)


def test_rounds_fences_and_evictions_are_told_since_the_leader_leads():
    found = report(BUSY, proofs=PROOFS)
    assert found["recall_rounds"] == {"begun": 1301, "under_way": 1}
    assert found["fenced_frontends"] == {"by_reason": {"left": 0, "replaced": 1, "silent": 2}, "not_yet_counted": 1}
    assert found["evicted_workers"] == {"declared dead": 0, "replaced": 0, "silent": 1}
    lines = limits.render(found).splitlines()
    assert lines[-1].partition("   ")[2] == (
        "recall rounds 1,301, 1 under way; frontends fenced 3 (1 replaced, 2 silent), 1 not yet counted; "
        "workers evicted 1 (1 silent)"
    )
    quiet = limits.render(report()).splitlines()[-1]
    assert quiet.endswith("recall rounds 0; frontends fenced 0; workers evicted 0")


def test_many_pools_at_rest_give_way_to_those_where_something_happens():
    quiet = [pool(f"quiet-{n:03}", limit=1) for n in range(100)]
    text = limits.render(report(*quiet, BUSY))
    assert "thumbnails" in text
    assert f"{101 - limits.POOLS_MAX} more pools, at rest" in text
    assert len(text.splitlines()) < 40
    assert "none yet" in limits.render(report())


def test_without_a_cluster_it_says_so(tmp_path, capsys):
    assert command.main(["limits", "--state", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        command.main(["limits", "--state", str(State(tmp_path).root), "--no-such-option"])
