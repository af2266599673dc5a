"""``labda chaos`` on the shared cluster: a verdict, its history, and a whole cluster afterwards, also after ^C."""

import json
import re
import signal
import subprocess
import sys

import pytest

from labda.refusal import Status
from tests.cluster.cluster import ROOT, Cluster, Footprint

RUN_S = 180.0       # a run may wait half a minute each for answers, for the ledger and for everything to serve again
OVER_S = 30.0       # what a fault costs is over by then; that it is within 5 s is no claim about a busy machine
LATE = re.compile(r"promise: request \S+ of \S+ failed (\S+) s after the last fault .*")
RESTLESS = re.compile(r"promise: counting's leader changed \d+ times .*")     # the same machine loses one by itself
MORE_OF_IT = re.compile(r"promise: and \d+ more of this kind")
SERVED = 0.3        # of all requests at least, on a machine that is late for everything
# Small pools, little used: the survivors' share of them has to do while the rest is stranded.
LOAD = ("--functions", "2", "--pool", "20", "--use", "0.35", "--rate", "10", "--ramp", "2", "--seed", "5")


def names(cluster):
    return {function["FunctionName"] for function in cluster.client().list_functions()["Functions"]}


def is_only_late(violation):
    """A machine that has more to do is later to notice who was lost: no invariant is broken by that."""
    late = LATE.fullmatch(violation)
    return float(late[1]) < OVER_S if late else MORE_OF_IT.fullmatch(violation) is not None


@pytest.fixture
def whole(cluster):
    """Everything serves, also afterwards, and no function under load is left."""
    cluster.await_healthy()
    yield cluster
    cluster.await_healthy()
    assert not {name for name in names(cluster) if name.startswith("chaos-")}


def test_the_loss_of_an_az_is_survived(whole):
    found = whole.labda("chaos", "run", "az-loss", "--yes", "--json", "--duration", "5", *LOAD, timeout_s=RUN_S)
    assert found.returncode in {Status.OK, Status.FAILED}, found.stdout + found.stderr
    verdict = json.loads(found.stdout)
    word = {Status.OK: "pass", Status.FAILED: "fail"}[Status(found.returncode)]
    assert verdict["verdict"] == word
    assert all(map(is_only_late, verdict["violations"])), verdict["violations"]
    assert verdict["load"]["ok"] > SERVED * verdict["load"]["requests"], "there was load"
    assert verdict["limits"]["runs"] >= verdict["load"]["ok"]
    [hold, release] = verdict["faults"]
    assert (hold["action"], release["action"]) == ("hold", "release")
    assert "the active manager" in hold["held"]
    assert len({node.split("-")[1] for node in hold["nodes"]}) == 1, "of one AZ"
    assert verdict["permits"]["quiet"]["stranded"] > 0, "what ran there is taken until the ledger knows better"
    assert verdict["permits"]["end"]["granted"] == 0
    assert verdict["cold"]["new_workers"] == []
    again = whole.labda("chaos", "check", verdict["history"], "--json")
    assert again.returncode == found.returncode
    assert json.loads(again.stdout) == verdict, "a file is all that a verdict is made from"
    shown = whole.labda("chaos", "check", verdict["history"])
    assert shown.stdout.splitlines()[-1].startswith(f"verdict    {word}")


@pytest.fixture(scope="module")
def breakable(_needs_a_host, tmp_path_factory):
    """A cluster of its own, whose links go through a proxy."""
    running = Cluster(tmp_path_factory.mktemp("breakable") / "state")
    running.start("--breakable")
    try:
        yield running
    finally:
        footprint = Footprint.of(running)
        status = running.stop()
    assert status == 0, "".join(running.output)
    assert not footprint.left(running)


@pytest.mark.parametrize(("name", "actions", "victims", "leaders"), [
    ("counting-stop", ["stop", "continue"], 1, 1),
    ("counting-deaf", ["strike", "mend"], 1, 1),
    ("counting-all-kill", ["kill"], 3, 1),
    ("frontends-kill", ["hold", "release"], 2, 0),
])
def test_counting_under_faults(breakable, name, actions, victims, leaders):
    found = breakable.labda("chaos", "run", name, "--yes", "--json", "--duration", "3", *LOAD, timeout_s=RUN_S)
    assert found.returncode in {Status.OK, Status.FAILED}, found.stdout + found.stderr
    verdict = json.loads(found.stdout)
    assert all(is_only_late(one) or RESTLESS.fullmatch(one) for one in verdict["violations"]), verdict["violations"]
    assert [fault["action"] for fault in verdict["faults"]] == actions
    assert len(verdict["faults"][0]["nodes"]) == victims
    assert verdict["load"]["ok"] > SERVED * verdict["load"]["requests"], "there was load"
    assert verdict["gap"]["lasted"] > 0
    assert len(verdict["leaders"]["changes"]) >= leaders
    assert ("the leader of counting" in verdict["faults"][0]["held"]) == bool(leaders)
    assert [one["node"] for one in verdict["leaders"]["stepped_down"]] == (
        verdict["faults"][0]["nodes"] if name == "counting-deaf" else []
    ), "it knows by itself that nobody answers"
    assert (verdict["stranded"]["most"] > 0) == (name == "frontends-kill")
    assert verdict["permits"]["end"]["granted"] == 0
    breakable.await_healthy()


def test_ctrl_c_gives_everything_back(whole):
    process = subprocess.Popen(
        # As from a shell that put it in the background: SIGINT is ignored at first.
        ["env", "--ignore-signal=INT", sys.executable, "-m", "labda", "chaos", "run", "host-kill", "--yes",
         "--duration", "60", *LOAD, "--state", str(whole.root)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "killed, stays away" in line:
                break
        victim = line.split()[2]
        assert victim not in whole.pids()
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=RUN_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == Status.INTERRUPTED, complaints
    assert victim in whole.pids()
    histories = sorted((whole.root / "chaos").glob("*/history.ndjson"))
    cut = whole.labda("chaos", "check", str(histories[-1]))
    assert cut.returncode == Status.FAILED
    assert "cut short" in cut.stdout


def test_traces_of_real_processes_are_judged_as_those_of_the_simulation(cluster):
    traces = sorted(map(str, (cluster.root / "nodes").glob("*/trace.ndjson")))
    found = cluster.labda("chaos", "check", *traces, "--json")
    assert found.returncode == Status.OK, found.stdout + found.stderr
    verdict = json.loads(found.stdout)
    assert (verdict["verdict"], verdict["violations"]) == ("pass", [])
    assert verdict["records"]["LeaseGranted"] >= 3


@pytest.mark.parametrize(("arguments", "status", "words"), [
    (("run", "az-loss"), Status.USAGE, "say --yes"),
    (("run", "nothing", "--yes"), Status.USAGE, "there is no scenario nothing: worker-kill, "),
    (("run", "az-cut", "--yes"), Status.USAGE, "needs --target compose"),
    (("run", "counting-deaf", "--yes"), Status.USAGE, "needs a cluster that was started with `labda up --breakable`"),
    (("run", "az-loss", "--yes", "--pool", "0"), Status.USAGE, "pool is 0"),
    (("run", "az-loss", "--yes", "--duration", "0.5"), Status.USAGE, "1 s at least"),
    (("check", "/dev/null"), Status.USAGE, "/dev/null is no file: name a history"),
    (("check", "/nowhere"), Status.USAGE, "/nowhere does not exist: name a history"),
])
def test_what_cannot_be_is_refused_before_anything_is_done(cluster, arguments, status, words):
    before = cluster.pids()
    found = cluster.labda("chaos", *arguments)
    assert found.returncode == status
    assert words in found.stderr
    assert cluster.pids() == before


def test_the_list_says_what_each_does_and_promises(cluster):
    shown = cluster.labda("chaos", "list")
    rows = json.loads(cluster.labda("chaos", "list", "--json").stdout)
    assert {"worker-kill", "az-loss", "power-cut", "counting-deaf", "overload"} <= {row["name"] for row in rows}
    assert all(row["does"] and row["promises"] and row["does"] in shown.stdout for row in rows)
