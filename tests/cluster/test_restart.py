"""Starts and ends of clusters: what stays, what goes, what is refused. Small clusters of their own."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cluster.cluster import ROOT, Cluster, Footprint, Functions, call, until

SMALL = ("--azs", "1")


@pytest.fixture
def small(_needs_a_host, tmp_path):
    """A cluster of one AZ, not started yet; whatever is left of it fails the test."""
    running = Cluster(tmp_path / "state")
    yield running
    footprint = Footprint.of(running)
    running.labda("down")
    assert not footprint.left(running)


def test_a_second_start_keeps_the_functions(small):
    small.start(*SMALL)
    client = small.client()
    name = Functions(client).make("def handler(event, context):\n    return 'kept'\n")
    assert call(client, name).payload == "kept"
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=3)
    client.close()
    assert small.stop(signal.SIGINT) == 0
    small.start(*SMALL)
    client = small.client()
    assert call(client, name).payload == "kept"
    assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 3
    client.close()
    assert small.stop() == 0


def test_a_backup_brings_back_what_was_and_moves_to_another_directory(small, tmp_path):
    """Taken while the cluster runs; what a function keeps secret opens with the data key that moves beside it."""
    file = str(tmp_path / "backup")
    small.start(*SMALL)
    client = small.client()
    secret = "import os\ndef handler(event, context):\n    return os.environ['WORD']\n"
    name = Functions(client).make(secret, Environment={"Variables": {"WORD": "before"}})
    assert small.labda("backup", file).returncode == 0
    client.update_function_configuration(FunctionName=name, Environment={"Variables": {"WORD": "after"}})
    Functions(client).settle(name)
    assert call(client, name).payload == "after"
    client.close()
    refused = small.labda("restore", file, "--yes")
    assert refused.returncode == 1
    assert "labda down" in refused.stderr
    assert small.stop() == 0

    other = Cluster(tmp_path / "other")
    other.root.mkdir()
    shutil.copy(small.root / "data.key", other.root / "data.key")
    assert small.labda("restore", file, "--yes").returncode == 0
    assert other.labda("restore", file).returncode == 0
    for restored in (small, other):
        restored.start(*SMALL)
        client = restored.client()
        assert call(client, name).payload == "before"
        client.close()
        assert restored.stop() == 0


def test_kill_9_of_the_supervisor_ends_everything(small):
    small.start(*SMALL)
    client = small.client()
    name = Functions(client).make("def handler(event, context):\n    return 'kept'\n")
    assert call(client, name).payload == "kept"
    client.close()
    footprint = Footprint.of(small)
    assert small.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not small.family(), "its processes end by themselves")
    until(lambda: not footprint.left(small), "nothing is left of it")
    small.start(*SMALL)
    client = small.client()
    assert call(client, name).payload == "kept"
    client.close()
    assert small.stop() == 0


def test_detached(small):
    said = small.labda("up", "--listen", "127.0.0.1:0", "--detach", *SMALL, "--deploy", str(ROOT / "examples/hello"))
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith("labda 0.1  1 AZ, 1 worker, ")
    assert "ready in" in lines[0]
    assert lines[1].startswith("deployed   hello (python3.")
    assert lines[2].startswith('invoked    hello -> {"message": "hello, world"}   cold ')
    # The second invoke comes at once: where the first one's sandbox isn't idle yet, it may get one of its own.
    assert re.match(r'invoked    hello -> {"message": "hello, world"}   (warm|cold) \d', lines[3])
    assert lines[4].startswith('use it     eval "$(')
    assert f"labda env --state {small.root}" in lines[4]
    again = small.labda("up", "--listen", "127.0.0.1:0", "--detach")
    assert again.returncode != 0
    assert "already runs" in again.stderr
    down = small.labda("down")
    assert down.returncode == 0
    assert not small.family()
    assert "no cluster runs" in small.labda("down").stdout


def test_a_port_in_use_is_refused_before_anything_starts(small):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = small.labda("up", "--listen", f"127.0.0.1:{port}", *SMALL)
    assert said.returncode == 1
    assert f"127.0.0.1:{port}" in said.stderr
    assert f"(pid {os.getpid()})" in said.stderr
    assert said.stderr.count("\n") == 1


def test_where_others_can_reach_the_endpoint_it_is_https(small):
    small.start(*SMALL, "--listen", "0.0.0.0:0", "--deploy", str(ROOT / "examples/hello"))
    assert any(line.startswith("invoked    hello") for line in small.output), "by the command's own client"
    found = small.environment()
    endpoint, authority = found["AWS_ENDPOINT_URL"], found["AWS_CA_BUNDLE"]
    assert endpoint.startswith("https://127.0.0.1:")
    assert Path(authority) == small.root / "ca" / "ca.pem"
    listing = "import boto3; print([f['FunctionName'] for f in boto3.client('lambda').list_functions()['Functions']])"
    program = f'eval "$({sys.executable} -m labda env --state {small.root})"; {{}}{sys.executable} -c "{listing}"'
    for extra, status in (("", 0), ("unset AWS_CA_BUNDLE; ", 1)):
        said = subprocess.run(
            ["sh", "-c", program.format(extra)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert said.returncode == status, said.stderr
        assert said.stdout.strip() == "['hello']" or "CERTIFICATE_VERIFY_FAILED" in said.stderr
    with urllib.request.urlopen(
        f"{endpoint}/health", timeout=30, context=ssl.create_default_context(cafile=authority)
    ) as answer:
        assert answer.read() == b"serving\n"
    with pytest.raises(OSError, match=r"reset|closed|Remote end"):
        urllib.request.urlopen(f"{endpoint.replace('https', 'http')}/health", timeout=30)
    assert small.stop() == 0


def test_env_makes_a_shell_ready(small):
    small.start(*SMALL)
    program = (
        f'eval "$({sys.executable} -m labda env --state {small.root})"; '
        f"{sys.executable} -c \"import boto3; print(boto3.client('lambda').list_functions()['Functions'])\""
    )
    said = subprocess.run(["sh", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout.strip() == "[]", said.stderr
    endpoint = small.environment()["AWS_ENDPOINT_URL"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{endpoint}/2015-03-31/functions/", timeout=30)
    with refused.value as answer:
        assert answer.code == 403
        assert json.loads(answer.read())
    assert small.stop() == 0
