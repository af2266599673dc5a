"""What a cluster's processes traced becomes one file; what can't be written or read says so."""

import json

import pytest

from labda.__main__ import main
from labda.recording import Recording
from labda.refusal import Refusal, Status
from labda.state import State
from simulation.history import check_file
from simulation.history.records import Closed, Header, line
from tests.simulation.history.honest import HONEST
from tests.simulation.history.test_traces import HONEST as TRACED
from tests.simulation.history.test_traces import W, start

NODES = (W, "manager-az2", "placement-az1")


@pytest.fixture
def state(tmp_path):
    made = State(tmp_path / "state")
    made.prepare()
    for node in NODES:
        made.node(node).mkdir(parents=True)
    return made


def trace(state, lines):
    for one in lines:
        with (state.node(one["node"]) / "trace.ndjson").open("a") as file:
            file.write(json.dumps(one) + "\n")


def recording(state, tmp_path, **fields):
    made = Recording(tmp_path / "history.ndjson", state, NODES, time_scale=1.0, **fields)
    made.begin()
    return made


def test_only_what_this_start_traced_is_recorded(state, tmp_path):
    trace(state, [start(60, 9, "of an earlier start")])
    with (state.node(W) / "trace.ndjson").open("a") as file:
        file.write('{"at": 61.0, "node": "worke')      # a kill tore it
    made = recording(state, tmp_path)
    with (state.node(W) / "trace.ndjson").open("a") as file:
        file.write("\n")                                # the next process ends the line
    trace(state, TRACED)
    count = made.write(lost=[])
    verdict = check_file(tmp_path / "history.ndjson")
    assert verdict.violations == []
    assert verdict.starts == 2
    assert sum(verdict.counts.values()) == count + 1, "and that it is closed"


def test_who_was_killed_runs_nothing_more(state, tmp_path):
    for lost, invariants in (([], [2]), ([W], [])):
        made = recording(state, tmp_path)
        (state.node(W) / "trace.ndjson").unlink(missing_ok=True)
        (state.node("placement-az1") / "trace.ndjson").unlink(missing_ok=True)
        made.begin()
        trace(state, [*TRACED, start(12, 2, "k")])
        made.write(lost)
        assert [one.invariant for one in check_file(tmp_path / "history.ndjson").violations] == invariants


@pytest.mark.parametrize("path", ["nowhere/history.ndjson", "state"])
def test_a_file_that_cannot_be_written_is_refused_at_once(state, tmp_path, path):
    with pytest.raises(Refusal, match=r"--record \S+: ") as refused:
        Recording(tmp_path / path, state, NODES, time_scale=1.0).begin()
    assert refused.value.status == Status.USAGE


def judged(capsys, *arguments):
    status = main(["chaos", "check", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_the_command_judges_it(tmp_path, capsys):
    path = tmp_path / "history.ndjson"
    lines = [line(record) for record in sorted(HONEST, key=lambda record: record.at)]
    whole = "\n".join([line(Header(at=0)), *lines, line(Closed(at=90))]) + "\n"
    path.write_text(whole)
    status, out = judged(capsys, path)
    assert (status, out.splitlines()[-1]) == (Status.OK, "verdict    pass")
    assert "runs       6 started, 0 not ended" in out
    path.write_text(whole.replace('"hard_end_s":28800.0', '"hard_end_s":99999.0', 1))
    status, out = judged(capsys, path)
    assert status == Status.FAILED
    assert "violated   11: lease 1 of worker-1 lasts 99999 s" in out
    status, out = judged(capsys, path, "--json")
    [violation] = json.loads(out)["violations"]
    assert violation["invariant"] == 11
    assert violation["records"] == [json.loads(one) for one in path.read_text().splitlines() if "99999.0" in one]
    path.write_text(whole[:-20])
    assert "violated   history: what everybody did" in judged(capsys, path)[1]
    status, out = judged(capsys, path, "--json")
    assert [one["invariant"] for one in json.loads(out)["violations"]] == [0]


def test_a_history_of_another_format_is_refused(tmp_path, capsys):
    path = tmp_path / "history.ndjson"
    path.write_text(line(Header(at=0)).replace('"format":1', '"format":2') + "\n")
    assert main(["chaos", "check", str(path)]) != Status.OK
    assert "format 2, this labda reads 1" in capsys.readouterr().err
    path.write_text(line(Header(at=0)) + "\n" + '{"record":"Nothing"}\n')
    assert main(["chaos", "check", str(path)]) != Status.OK


def test_a_recording_has_the_time_scale_of_its_leases(state, tmp_path):
    made = Recording(tmp_path / "history.ndjson", state, NODES, time_scale=1 / 3600)
    made.begin()
    made.write([])
    assert json.loads((tmp_path / "history.ndjson").read_text().splitlines()[0])["time_scale"] == 1 / 3600
