"""The cluster in containers from nothing to nothing: built, started, used, an AZ lost, ended, and nothing left."""

import io
import json
import re
import subprocess
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from labda.cluster import engine
from labda.refusal import Status
from tests.cluster.cluster import served
from tests.cluster.test_chaos import is_only_late
from tests.compose.conftest import PORT, PROJECT, ROOT, labda

CODE = """
def handler(event, context):
    return {"got": event["n"], "left_ms": context.get_remaining_time_in_millis()}
"""

pytestmark = pytest.mark.timeout(900)
WHOLE_S = 120.0


@pytest.fixture(scope="module")
def up(state: Path) -> str:
    assert labda("cluster", "build", state=state, timeout_s=900).returncode == 0
    made = labda("cluster", "up", "--no-build", "--deploy", str(ROOT / "examples" / "hello"), state=state)
    assert made.returncode == 0, made.stderr + made.stdout
    return made.stdout


@pytest.fixture(scope="module")
def client(up: str, state: Path) -> object:
    root = json.loads((state / "root.json").read_text())
    return boto3.client(
        "lambda", endpoint_url=f"http://127.0.0.1:{PORT}", region_name="us-east-1",
        aws_access_key_id=root["access_key_id"], aws_secret_access_key=root["secret_access_key"],
        config=Config(retries={"max_attempts": 0}, read_timeout=30),
    )


def test_it_gets_ready_and_the_example_answers(up: str) -> None:
    assert re.search(r"ready in [\d.]+ s", up) is not None, up
    assert up.count('{"message": "hello, world"}') == 2
    assert "labda env --target compose" in up


def test_boto3_creates_and_invokes_through_the_endpoint(client) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        entry = zipfile.ZipInfo("app.py")
        entry.external_attr = 0o100644 << 16    # the default is for its owner alone, who is nobody in a sandbox
        archive.writestr(entry, CODE)
    client.create_function(
        FunctionName="echo", Runtime="python3.13", Handler="app.handler", Role="arn:aws:iam::000000000000:role/any",
        Code={"ZipFile": data.getvalue()},
    )
    client.get_waiter("function_active_v2").wait(FunctionName="echo", WaiterConfig={"Delay": 1, "MaxAttempts": 30})

    def ask(n: int) -> int:
        answer = served(client, "echo", {"n": n})
        assert answer.error is None, answer.payload
        return int(answer.payload["got"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(60))) == list(range(60))


def test_the_command_sees_everything(up: str, state: Path) -> None:
    report = whole(state)
    assert "echo" in {function["name"] for function in report["functions"]}
    env = labda("env", "--target", "compose", state=state)
    assert f"AWS_ENDPOINT_URL=http://127.0.0.1:{PORT}" in env.stdout
    deadline = time.monotonic() + WHOLE_S
    while "START RequestId" not in (logs := labda("logs", "echo", "--target", "compose", state=state)).stdout:
        assert time.monotonic() < deadline, logs.stderr


def whole(state: Path) -> dict[str, Any]:
    """What status tells, once everything serves and tells its numbers: one that is silent for a second does neither."""
    deadline = time.monotonic() + WHOLE_S
    while True:
        said = labda("status", "--target", "compose", "--json", state=state)
        if said.returncode == 0:
            report: dict[str, Any] = json.loads(said.stdout)
            if len(report["processes"]) == 18 and report["numbers"]["silent"] == []:
                return report
        assert time.monotonic() < deadline, said.stdout + said.stderr


def test_doctor_in_a_workers_container_finds_nothing_missing(up: str) -> None:
    said = subprocess.run(
        ["docker", "exec", f"{PROJECT}-worker-az1-1", "labda", "doctor", "--runtimes", "/opt/labda/runtimes", "--json"],
        capture_output=True, text=True, check=False,
    )
    assert said.returncode == 0, said.stdout
    assert [check["name"] for check in json.loads(said.stdout) if not check["ok"] and check["fatal"]] == []


def test_a_containers_health_is_what_grpc_says(up: str) -> None:
    for node in ("counting-az1", "frontend-az1-1"):
        assert engine.docker("exec", f"{PROJECT}-{node}", "labda", "health", "/run/labda/health.sock") == "serving\n"
    assert engine.docker(
        "exec", f"{PROJECT}-worker-az1-1", "labda", "health", "/var/lib/labda/agent/health.sock"
    ) == "serving\n"


def test_a_killed_worker_leaves_nothing_on_the_host_and_comes_back(up: str, state: Path, client) -> None:
    assert served(client, "echo", {"n": 1}).payload["got"] == 1
    cluster = engine.of(state)
    for worker in [one for one in cluster.containers() if one.service == "worker"]:
        engine.docker("kill", worker.id)
        assert [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/docker/{worker.id}")] == []
        assert [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/labda-{worker.node}")] == []
        engine.docker("start", worker.id)
    assert served(client, "echo", {"n": 2}).payload["got"] == 2


def test_frontends_that_are_all_slow_to_answer_checks_are_asked_anyway(up: str, state: Path, client) -> None:
    """A busy host looks to the endpoint as the loss of every frontend does: nobody is refused for that alone."""
    frontends = [one.id for one in engine.of(state).containers() if one.service == "frontend"]
    began = datetime.now(UTC).isoformat()
    with ThreadPoolExecutor(4) as pool:
        engine.docker("pause", *frontends)
        try:
            deadline = time.monotonic() + 30
            while "no server available" not in endpoint_log(since=began):
                assert time.monotonic() < deadline
            asked = [pool.submit(said_by_whom, client) for _ in range(4)]
        finally:
            engine.docker("unpause", *frontends)
        assert {one.result() for one in asked} <= {"function", "frontend"}


def said_by_whom(client) -> str:
    """A frontend that was away for a while may have its reasons to refuse."""
    try:
        assert json.loads(client.invoke(FunctionName="echo", Payload=b'{"n": 4}')["Payload"].read())["got"] == 4
    except client.exceptions.ClientError as refusal:
        return "endpoint" if "No frontend takes requests now" in str(refusal) else "frontend"
    return "function"


def endpoint_log(*, since: str) -> str:
    said = subprocess.run(
        ["docker", "logs", "--since", since, f"{PROJECT}-endpoint"], capture_output=True, text=True, check=True
    )
    return said.stdout + said.stderr


def test_the_loss_of_an_az_under_load_keeps_its_promise(up: str, state: Path) -> None:
    whole(state)
    said = labda(
        "chaos", "run", "az-loss", "--target", "compose", "--yes", "--json", "--duration", "15", "--seed", "5",
        state=state, timeout_s=300,
    )
    assert said.returncode in {Status.OK, Status.FAILED}, said.stdout + said.stderr
    assert all(map(is_only_late, json.loads(said.stdout or "{}").get("violations", [said.stderr]))), said.stdout


def test_a_lost_member_of_counting_is_replaced_while_invokes_go_on(up: str, state: Path, client) -> None:
    """The runbook of docs/operations.md, word for word."""
    whole(state)
    client.put_function_concurrency(FunctionName="echo", ReservedConcurrentExecutions=7)
    refused = labda("cluster", "replace", "counting-az1", state=state)
    assert (refused.returncode, "would vote twice in a term" in refused.stderr) == (Status.USAGE, True)
    over = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask_until, client, over) for _ in range(2)]
        try:
            engine.docker("rm", "--force", f"{PROJECT}-counting-az1")
            engine.docker("volume", "rm", f"{PROJECT}_counting-az1")
            topology = state / "topology.toml"
            topology.write_text(topology.read_text() + "\n[replaced]\ncounting-az1 = 2\n")
            for words in (
                ("cluster", "up", "--no-build"),
                ("counting", "remove", "counting-az1", "--yes", "--target", "compose"),
                ("counting", "add", "counting-az1-2", "--target", "compose"),
            ):
                done = labda(*words, state=state)
                assert done.returncode == 0, done.stdout + done.stderr
        finally:
            over.set()
        outcomes = [outcome for one in asked for outcome in one.result()]
    assert outcomes == [None] * len(outcomes), "no invoke failed"
    assert len(outcomes) > 20
    found = json.loads(labda("counting", "members", "--target", "compose", "--json", state=state).stdout)
    assert [(one["member"], one["state"], one["heard"]) for one in found["members"]] == [
        (name, "voter", True) for name in ("counting-az1-2", "counting-az2", "counting-az3")
    ]
    kept = client.get_function_concurrency(FunctionName="echo")
    assert kept["ReservedConcurrentExecutions"] == 7


def ask_until(client, over: threading.Event) -> list[str | None]:
    """What became of invokes, one after the other: None, or what a client saw."""
    seen: list[str | None] = []
    while not over.is_set():
        try:
            answer = client.invoke(FunctionName="echo", Payload=b'{"n": 5}')
            seen.append(None if json.loads(answer["Payload"].read()).get("got") == 5 else str(answer))
        except Exception as error:  # noqa: BLE001 - whatever it is, a client saw it
            seen.append(repr(error))
        time.sleep(0.1)
    return seen


def test_stopped_and_started_it_knows_its_functions(up: str, state: Path, client) -> None:
    assert labda("cluster", "stop", state=state).returncode == 0
    again = labda("cluster", "up", "--no-build", state=state)
    assert again.returncode == 0, again.stderr + again.stdout
    assert served(client, "echo", {"n": 3}).payload["got"] == 3


def test_at_the_end_nothing_is_left(up: str, state: Path) -> None:
    cluster = engine.of(state)
    ids = [container.id for container in cluster.containers()]
    # A member of counting that was replaced leaves one that compose.yaml doesn't name any more.
    engine.docker("volume", "create", "--label", f"{engine.PROJECT_LABEL}={PROJECT}", f"{PROJECT}_counting-az1-9")
    ended = labda("cluster", "down", "--yes", state=state)
    assert ended.returncode == 0, ended.stderr
    assert cluster.left() == []
    assert engine.docker("image", "ls", "--quiet", "--filter", f"label={engine.PROJECT_LABEL}={PROJECT}") == ""
    assert not state.exists()
    assert [str(path) for one in ids for path in Path("/sys/fs/cgroup").glob(f"*/docker/{one}")] == []
