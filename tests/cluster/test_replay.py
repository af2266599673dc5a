"""The traces of real processes, replayed through every core: whatever this cluster did, every effect is equal.

The session's cluster is traced from its start, so that everything which the tests of this folder did before is in it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from simulation.replay import RECIPES
from tests.cluster.cluster import ROOT, Functions, call, served, until

HANDLER = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'ran'\n"
KILLED = ("frontend-az1-1", "worker-az2-1", "counting-az3")


def replay(folder):
    return subprocess.run(
        [sys.executable, "-m", "simulation", "replay", str(folder)], cwd=ROOT, capture_output=True, text=True,
        timeout=240, check=False, env={**os.environ, "PYTHONHASHSEED": "7"},  # no core may hang on the order of a set
    )


@pytest.fixture(scope="module")
def traces(cluster, client):
    """A run with invokes, throttles, a change of a limit and kills; then where its traces are."""
    functions = Functions(client)
    try:
        name = functions.make(HANDLER)
        assert call(client, name, 0).payload == "ran"
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
        outcomes: set[int] = set()
        until(lambda: _is_throttled(client, name, outcomes), "one runs, others are throttled")
        client.delete_function_concurrency(FunctionName=name)
        before = cluster.pids()
        for node in KILLED:
            os.kill(before[node], signal.SIGKILL)
        until(lambda: all(cluster.pids().get(node) not in {None, before[node]} for node in KILLED), "they come back")
        cluster.await_healthy()
        assert served(client, name, 0).payload == "ran"
        yield cluster.root / "nodes"
    finally:
        functions.close()


def _is_throttled(client, name, outcomes):
    """Four at once; a refusal is a 503 where a frontend was silent when it was asked for what it holds."""
    with ThreadPoolExecutor(4) as pool:
        outcomes.update(pool.map(lambda _: _status(client, name), range(4)))
    return {200, 429} <= outcomes


def _status(client, name):
    try:
        return call(client, name, 0.5).response["StatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    except BotoCoreError:
        return 0


def test_every_effect_of_every_process_is_equal(traces, cluster):
    found = replay(traces)
    assert found.returncode == 0, found.stdout + found.stderr
    replayed = dict(re.findall(r"nodes/([^/]+)/trace\.ndjson: (\d+) events, all effects equal", found.stdout))
    assert set(replayed) == set(cluster.pids()), "every process's trace was replayed"
    assert all(int(events) > 0 for events in replayed.values()), replayed
    assert all(name in found.stdout for name in RECIPES)
    for node in KILLED:
        [lives] = re.findall(rf"nodes/{node}/trace\.ndjson.* (\d+) lives", found.stdout)
        assert int(lives) > 1, f"{node} was killed: its trace begins anew"


def test_one_changed_effect_is_found(traces, tmp_path):
    path = next(p for p in sorted(traces.glob("frontend-*/trace.ndjson")) if '"type":"Admit"' in p.read_text())
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if '"type":"Admit"' in line)
    line = json.loads(lines[number])
    line["effects"] = [effect for effect in line["effects"] if effect["type"] != "Admit"]
    (tmp_path / "trace.ndjson").write_text("\n".join([*lines[:number], json.dumps(line)]) + "\n")
    found = replay(tmp_path)
    assert found.returncode == 1
    assert f"line {number + 1}: FrontendCore of {path.parent.name} differs" in found.stderr
    assert "-> Admit(" in found.stderr
