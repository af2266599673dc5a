"""Fault plans over whole regions: the batch that every run of the tests has, and what makes its verdict count.

``pytest tests/simulation/test_plans.py --plans=20`` runs fewer; ``python -m simulation run`` runs as many as one likes.
"""

import json
import sys

import pytest

from simulation import __main__ as command
from simulation import batches, coverage, plan, shrink, verdict
from simulation.campaign import INVOKES_MIN, run
from simulation.plan import LENGTH_S, Entry, Kind, Plan, draw
from simulation.record import Bug, LimitChange, Record, Request, Run

JOBS = 2
pytestmark = pytest.mark.timeout(900)   # seconds of CPU, on cores that may have more to do


# Minutes on two cores; several times that where others use them too.
@pytest.mark.timeout(3600)
def test_no_seed_violates_an_invariant(request, tmp_path):
    """Half of the seeds as swarms. A failure is made small, and its story is what pytest shows."""
    count = request.config.getoption("--plans")
    batch = batches.Batch()
    for swarm in (False, True):
        seeds = range(1, count // 2 + 1)
        for outcome in batches.outcomes(seeds, swarm=swarm, jobs=JOBS):
            batch.add(outcome)
            assert not outcome.violations, batches.explain(outcome, tmp_path, runs_max=40)
    sys.stdout.write(f"{batch}\n")
    assert batch.virtual_s_min >= LENGTH_S
    assert batch.invokes_min >= INVOKES_MIN
    missing = coverage.missing(batch.coverage)
    assert not missing or count < 100, f"never happened in {count} seeds: {missing}"


@pytest.mark.parametrize("swarm", [False, True])
def test_the_same_seed_gives_the_same_trace(swarm):
    batches.quiet()
    drawn = draw(7, swarm=swarm)
    assert draw(7, swarm=swarm) == drawn
    first, again = batches.run_alone(drawn, hashed=True), batches.run_alone(drawn, hashed=True)
    assert first.trace_hash == again.trace_hash != ""
    assert first.coverage == again.coverage
    others = batches.outcomes([7, 8], swarm=swarm, jobs=JOBS, hashed=True)
    [elsewhere] = [outcome for outcome in others if outcome.plan.seed == 7]
    assert elsewhere.trace_hash == first.trace_hash, "another process runs the seed differently"


def test_a_plan_is_data_and_says_everything():
    drawn = draw(11)
    again = Plan.from_json(drawn.to_json())
    assert again == drawn
    assert {entry.kind for seed in range(200) for entry in draw(seed).entries} == set(Kind)
    with pytest.raises(ValueError, match="no fault plan"):
        Plan.from_json("{}")


def test_a_frontend_that_ends_takes_its_last_requests_with_it():
    """It is rolled while it can't reach the ledger: what waits for a permit there then is told that it has gone.

    Found by seed 128: the client waited for the answer of a process that had ended.
    """
    batches.quiet()
    outcome = batches.run_alone(Plan(seed=128, lease_scale=0.001, entries=(
        Entry(kind=Kind.CLOSED, at=0.0, for_s=30.0, target="f", amount=4),
        Entry(kind=Kind.PARTITION, at=13.535264324416413, for_s=14.421217423704702, target="az3"),
        Entry(kind=Kind.ROLL, at=16.981471520056388, target="frontend"),
    ), compact_entries=40))
    assert not outcome.violations


def test_every_kind_of_fault_can_be_drawn_and_swarms_leave_some_out():
    assert set(plan._DRAWS) | plan.ALWAYS | {Kind.ACCOUNT} == set(Kind)
    kinds = [{entry.kind for entry in draw(seed, swarm=True).entries} for seed in range(50)]
    assert all(len(of_one) < len(Kind) for of_one in kinds)


# ------------------------------------------------------------ a failure is made small


def test_a_failing_plan_is_made_small():
    entries = tuple(Entry(kind=Kind.CRASH, at=float(number)) for number in range(40))
    guilty = {entries[3], entries[29]}
    ran = []

    def fails(small):
        ran.append(small)
        return guilty <= set(small.entries)

    small = shrink.shrink(Plan(seed=1, entries=entries), fails)
    assert set(small.entries) == guilty
    assert len(ran) < 60
    assert set(shrink.shrink(Plan(seed=1, entries=entries), fails, runs_max=1).entries) >= guilty


def test_a_failure_prints_seed_plan_command_and_story(tmp_path, capsys, monkeypatch):
    """A member of counting that is started from changed files is the fault here, and its refusal the failure."""
    judge = verdict.judge

    def strict(record):
        refusals = [what for _, what in record.told if "refuses to start" in what]
        return judge(record) + [verdict.Violation(invariant=14, what=what) for what in refusals]

    monkeypatch.setattr(batches, "run", lambda drawn, *, hashed: run(drawn, judge=strict, hashed=hashed))
    load = Entry(kind=Kind.OPEN, at=0.0, for_s=3.0, target="h", amount=5.0)
    corrupt = Entry(kind=Kind.CORRUPT, at=1.0, for_s=0.5, target="counting-az2")
    drawn = Plan(seed=5, entries=(load, corrupt, Entry(kind=Kind.UPDATE, at=1.5, target="h")), length_s=4.0)
    told = batches.explain(batches.run_alone(drawn), tmp_path)
    path = tmp_path / "seed-5.json"
    assert told.startswith("seed 5: invariant 14: counting-az2 refuses to start")
    assert f"python -m simulation run --plan {path}" in told
    assert "plan:   1.00 to 1.50 s  corrupt counting-az2" in told
    assert Plan.from_json(path.read_text()).entries == (corrupt,)
    assert command.main(["run", "--plan", str(path)]) == 0, "by the real judgement a refusal is right"
    assert "trace " in capsys.readouterr().out


def test_the_command_runs_batches_and_tells_what_they_gave(capsys, tmp_path):
    assert command.main(["run", "--seeds", "1..2", "--swarm", "--failures", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 seeds, 0 failed" in out
    assert "elections" in out
    assert command.main(["run", "--plan", str(tmp_path / "missing.json")]) == 2


# ------------------------------------------------------------ what the judgement finds


def record_of(*runs, changes=(), **settings):
    record = Record(seed=1, **settings)
    for one in runs:
        record.runs.append(one)
        record.requests.setdefault(one.name, asked(one.name, at=one.began - 0.1))
    record.limits += changes
    return record


def asked(name, *, at=1.0, status=200, body=None, revision=0, error_type="", answered=9.0):
    return Request(
        name=name, function="f", frontend=0, asked=at, revision=revision, answered=answered, status=status,
        body=json.dumps({"name": name}).encode() if body is None else body, error_type=error_type,
    )


def ran(name, began=1.0, ended=2.0, *, sandbox=None, with_it=1, in_all=1, revision=0, named="f"):
    return Run(
        name=name, function="f", named=named, sandbox=hash(name) if sandbox is None else sandbox, revision=revision,
        began=began, ended=ended, with_it=with_it, in_all=in_all,
    )


def put(value, sent, binds_at=float("inf"), function="f"):
    return LimitChange(function=function, value=value, sent=sent, binds_at=binds_at)


def found(record):
    return [violation.invariant for violation in verdict.judge(record)]


START = put(None, 0.0, 0.0)


def test_limits_are_judged_by_what_may_have_been_in_force():
    low = [START, put(1, 1.0, 1.5)]
    assert found(record_of(ran("a", 3.0, with_it=2), changes=low)) == [1]
    assert found(record_of(ran("a", 1.4, with_it=2), changes=low)) == [], "asked for before the change bound"
    assert found(record_of(ran("a", 3.0, with_it=2), changes=[START, put(1, 1.0)])) == [], "it never bound"
    raised = [*low, put(2, 2.0)]
    assert found(record_of(ran("a", 3.0, with_it=2), changes=raised)) == [], "it may bind already"
    assert found(record_of(ran("a", 3.0, with_it=3), changes=raised)) == [1]
    lowered = [START, put(3, 0.1, 0.2), put(1, 1.0), put(2, 2.0, 2.5)]
    assert found(record_of(ran("a", 3.0, with_it=3), changes=lowered)) == [1]
    account = [put(None, 0.0, 0.0, function=""), put(4, 0.1, 0.2, function="")]
    assert found(record_of(ran("a", 3.0, with_it=1, in_all=5), changes=account)) == [1]


def test_second_runs_and_runs_of_what_was_refused_are_found():
    assert found(record_of(ran("a"), ran("a", 3.0))) == [5]
    for status in (429, 503):
        record = record_of(ran("a"))
        record.requests["a"] = asked("a", status=status, body=b'{"Detail": {"remedy": "wait"}}', error_type="Refused")
        assert found(record) == [5]
        record.runs.clear()
        assert found(record) == []


def test_wrong_answers_are_found():
    record = record_of(ran("a"))
    record.requests["a"] = asked("a", body=b'{"name": "b"}')
    assert found(record) == [6]
    record = record_of()
    record.requests["a"] = asked("a")
    assert found(record) == [6], "an answer of what never ran"
    record = record_of()
    record.requests["a"] = asked("a", status=None)
    assert found(record) == [15]
    for status, body in ((429, b"{}"), (503, b"no JSON"), (418, b"{}")):
        record.requests["a"] = asked("a", status=status, body=body)
        assert found(record) == [15]


def test_shared_sandboxes_and_older_revisions_are_found():
    assert found(record_of(ran("a", 1.0, 2.0, sandbox=1), ran("b", 1.5, 2.5, sandbox=1))) == [7]
    assert found(record_of(ran("a", 1.0, 2.0, sandbox=1), ran("b", 2.0, 2.5, sandbox=1))) == []
    assert found(record_of(ran("a", sandbox=1), ran("b", 3.0, 4.0, sandbox=1, revision=1))) == [8]
    assert found(record_of(ran("a", named="g"))) == [8]
    record = record_of(ran("a", revision=1))
    record.requests["a"].revision = 2
    assert found(record) == [8]


def line(node, at, event, **effects):
    cores = {"counting": "CountingCore", "placement": "PlacementCore", "worker": "WorkerCore"}
    core = cores[node.split("-")[0]]
    told = {"at": at, "node": node, "core": core, "cause": "", "event": event, "effects": list(effects.values())}
    return json.dumps(told)


def traced(*lines):
    record = Record(seed=1)
    record.lines.at = [float(number) for number in range(len(lines))]
    record.lines.values = [json.loads(text) for text in lines]
    return record


def test_two_leaders_of_a_term_and_two_entries_of_an_index_are_found():
    def led(node, term):
        return line(node, 1.0, {"type": "Led", "term": term})

    def committed(node, index, number):
        batch = {"number": number, "commands": []}
        return line(node, 2.0, {"type": "Committed", "index": index, "batch": batch, "results": []})

    assert found(traced(led("counting-az1", 1), led("counting-az2", 2), led("counting-az1", 1))) == []
    assert found(traced(led("counting-az1", 1), led("counting-az2", 1))) == [14]
    first = [led("counting-az1", 1), committed("counting-az1", 3, 1), led("counting-az2", 2)]
    assert found(traced(*first, committed("counting-az2", 3, 1))) == []
    assert found(traced(*first, committed("counting-az2", 3, 2))) == [14]


def test_what_runs_when_all_is_over_is_found():
    worker = "worker-az1-1"
    block = {"session": {"frontend": "frontend-az1-1", "epoch": 1}, "account": "a", "kind": 2, "function": "f",
             "qualifier": ""}
    function = {"account": "a", "function": "f", "version": "$LATEST", "revision": 1}
    begins = line(worker, 1.0, {"type": "StartAsked", "lease": 1, "function": function, "block": block},
                  start={"type": "StartInvocation", "sandbox": "s", "invocation": "i"})
    ends = line(worker, 2.0, {"type": "InvocationEnded", "sandbox": "s", "invocation": "i"})
    record = traced(begins, ends)
    record.over_at = 0.5
    assert found(record) == [2]
    record.over_at = 1.0
    assert found(record) == []
    record = traced(begins)
    assert found(record) == [], "its region failed before all was over"
    record.over_at = 9.0
    assert found(record) == [2]


def test_leases_and_bugs_are_judged_too():
    grant = {"type": "Grant", "worker": "worker-az1-1", "lease": 1, "manager": "m1", "hard_end_s": 7 * 3600.0}
    other = {**grant, "manager": "m2"}
    event = {"type": "Tick"}
    record = traced(line("placement-az1", 1.0, event, grant=grant), line("placement-az1", 0.5, event, grant=other))
    assert 9 in found(record)
    record = Record(seed=1, bugs=[Bug(what="a service failed", node="manager-az1", at=1.0)])
    [violation] = verdict.judge(record)
    assert violation.invariant == 0
