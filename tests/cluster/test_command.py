"""The command ``labda`` against a running cluster."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from labda.children import parent
from tests.cluster.cluster import ROOT, until, until_some


@pytest.fixture
def hello(cluster):
    said = cluster.labda("deploy", str(ROOT / "examples" / "hello"))
    assert said.returncode == 0, said.stderr
    yield said.stdout
    client = cluster.client()
    client.delete_function(FunctionName="hello")
    client.close()


def test_deploy_invoke_and_deploy_again(cluster, hello):
    assert hello.startswith("deployed   hello (python3.")
    ran = cluster.labda("invoke", "hello")
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"message": "hello, world"})
    ran = cluster.labda("invoke", "hello", "--payload", "-", "--explain", stdin='{"name": "Ada"}')
    assert json.loads(ran.stdout) == {"message": "hello, Ada"}
    assert ran.stderr.startswith(("warm ", "cold "))
    again = cluster.labda("deploy", str(ROOT / "examples" / "hello"), "--memory", "256", "--timeout", "9")
    assert "hello (python3." in again.stdout
    assert "256 MB" in again.stdout


def test_logs(cluster, hello):
    del hello
    cluster.labda("invoke", "hello")
    until(lambda: "REPORT RequestId" in cluster.labda("logs", "hello").stdout, "its log is there")


def test_a_function_error_is_exit_status_1(cluster, tmp_path, client):
    (tmp_path / "app.py").write_text("def handler(event, context):\n    raise KeyError('k')\n")
    assert cluster.labda("deploy", str(tmp_path), "--name", "failing").returncode == 0
    ran = cluster.labda("invoke", "failing", "--log")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["errorType"] == "KeyError"
    assert "REPORT RequestId" in ran.stderr
    client.delete_function(FunctionName="failing")


def test_an_unknown_function_is_one_sentence(cluster):
    ran = cluster.labda("invoke", "nothing")
    assert ran.returncode == 4
    assert ran.stderr.count("\n") == 1
    assert "Function not found" in ran.stderr


def test_status(cluster, functions, client):
    name = functions.make("def handler(event, context):\n    return 1\n")
    functions.call(name)
    # Everything serves and a member leads, at the moment of one look: a process that is silent for a second doesn't.
    report = until_some(lambda: whole(cluster.told("status")), "status tells of a whole cluster")
    services = [process["service"] for process in report["processes"]]
    assert {service: services.count(service) for service in set(services)} == {
        "counting": 3, "frontend": 3, "worker": 3, "worker_manager": 2, "placement": 2,
    }
    assert {"node", "az", "host", "pid", "address", "http", "health", "role"} <= set(report["processes"][0])
    assert {process["health"] for process in report["processes"]} == {"serving"}
    assert roles(report) == ["follower", "follower", "leader"]
    for process in report["processes"]:  # a worker registers its agent, the child of the privileged process
        assert cluster.pids()[process["node"]] in {process["pid"], parent(process["pid"])}
    assert name in [function["name"] for function in report["functions"]]
    until(lambda: cluster.function(name)["limit"] == 1000, "what functions of other tests had reserved has come back")
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=5)
    # By the managers' word: a reservation lingers for a moment after its invocation.
    until(lambda: cluster.function(name)["running"] == 0, "nothing runs")
    assert cluster.function(name)["limit"] == 5
    shown = cluster.labda("status").stdout
    assert len(shown.splitlines()) <= 50
    for word in ("az1", "az2", "az3", "host-az1-1", "leader", name):
        assert word in shown


def whole(report: dict[str, Any]) -> dict[str, Any]:
    """The report, if nothing is missing in it."""
    well = all(process["health"] == "serving" for process in report["processes"])
    return report if well and roles(report) == ["follower", "follower", "leader"] and report["pools"] else {}


def roles(report: dict[str, Any]) -> list[str]:
    """Of counting's members."""
    return sorted(process["role"] for process in report["processes"] if process["service"] == "counting")


def test_up_on_a_state_in_use_names_who_has_it(cluster):
    said = cluster.labda("up", "--listen", "127.0.0.1:0")
    assert said.returncode == 1
    assert f"already runs in {cluster.root} (pid {cluster.pid})" in said.stderr


def test_secrets_are_for_their_owner(cluster):
    for name in ("root.json", "data.key", "ca/ca.key"):
        assert (cluster.root / name).stat().st_mode & 0o077 == 0, name
    assert all(key.stat().st_mode & 0o077 == 0 for key in (cluster.root / "tls").glob("*.key"))


def test_status_tells_what_runs_and_logs_follow(cluster, functions, client):
    name = functions.make("import time\ndef handler(event, context):\n    print('begun')\n    time.sleep(event)\n")
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)

    def running() -> int:
        return int(cluster.function(name)["running"])

    assert running() == 0
    follower = subprocess.Popen(
        [sys.executable, "-m", "labda", "logs", name, "--follow", "--state", str(cluster.root)], cwd=ROOT,
        stdout=subprocess.PIPE, text=True,
    )
    try:
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(functions.call, name, 5.0)
            until(lambda: running() == 1, "the invocation is told as running")
            assert ran.result().error is None
        until(lambda: running() == 0, "and as over")
        assert follower.stdout is not None
        told = []
        for line in follower.stdout:
            told.append(line)
            if "REPORT" in line:
                break
        assert any(line.endswith("begun\n") for line in told), told
    finally:
        follower.terminate()
        follower.communicate(timeout=30)


def test_a_host_is_shown_and_declared_dead_only_by_who_insists(cluster):
    def host() -> dict[str, Any]:
        hosts = cluster.told("hosts")
        assert [one["host"] for one in hosts] == ["host-az1-1", "host-az2-1", "host-az3-1"]
        return next(one for one in hosts if one["host"] == "host-az2-1")

    until(lambda: host()["heard"] and host()["manager"], "its worker has joined and is leased")
    before = host()
    assert before["authority_until"] > time.time() + 60
    shown = cluster.labda("hosts").stdout
    assert before["incarnation"] in shown
    refused = cluster.labda("hosts", "declare-dead", "host-az2-1", "--yes")
    assert refused.returncode == 4
    assert "connected to counting right now" in refused.stderr
    asked = cluster.labda("hosts", "declare-dead", "host-az2-1", "--force", stdin="yes\n")
    assert (asked.returncode, "Type host-az2-1" in asked.stderr) == (4, True)
    assert host()["incarnation"] == before["incarnation"]
    done = cluster.labda("hosts", "declare-dead", "host-az2-1", "--force", "--yes")
    assert done.returncode == 0, done.stderr
    until(lambda: host()["heard"] and host()["incarnation"] not in ("", before["incarnation"]),
          "its worker was told, and is back as another incarnation")
    assert host()["declared_dead"]["incarnation"] == before["incarnation"]
