"""A cluster on a disk that fills up: refusals say so, nothing is lost, and with room again everything goes on."""

import signal
import time

import pytest
from botocore.exceptions import ClientError

from tests.cluster.cluster import Cluster, Footprint, Functions, archive, call, served, until
from tests.small_disk import small_disk


@pytest.fixture
def on_a_small_disk(_needs_a_host, tmp_path):
    """A cluster of one AZ, not started yet, and its disk."""
    with small_disk(tmp_path / "disk", size_mb=160) as disk:
        running = Cluster(disk.path / "state")
        yield running, disk
        footprint = Footprint.of(running)
        running.labda("down")
        assert not footprint.left(running)


def test_a_full_disk_is_told_before_anything_starts(on_a_small_disk):
    cluster, disk = on_a_small_disk
    disk.fill()
    refused = cluster.labda("up")
    assert refused.returncode == 5
    assert refused.stderr.count("\n") == 1
    assert "0 MB are free in" in refused.stderr
    assert "free some space, or name a state directory on another disk with --state" in refused.stderr
    assert not cluster.root.exists()


def test_a_disk_that_fills_up_and_gets_room_again(on_a_small_disk):
    cluster, disk = on_a_small_disk
    cluster.start("--azs", "1")
    client = cluster.client()
    functions = Functions(client)
    name = functions.make("def handler(event, context):\n    print('x' * 1000)\n    return 'kept'\n")
    assert call(client, name).payload == "kept"
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=3)
    disk.fill()

    error = refused(client.update_function_configuration, FunctionName=name, Description="x" * 200)
    assert (error["status"], error["code"]) == (503, "ServiceUnavailableException")
    assert "is full" in error["message"]
    error = refused(client.update_function_code, FunctionName=name, ZipFile=archive({"app.py": "#" * 50_000}))
    assert error["status"] == 503
    seen = [outcome(client, name) for _ in range(20)]
    assert set(seen) <= {200, 429, 503}, "an invoke is answered or refused by name"
    assert client.get_function_configuration(FunctionName=name)["Description"] == ""

    disk.empty()
    assert served(client, name).payload == "kept"
    assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 3
    until(lambda: refused(client.update_function_configuration, FunctionName=name, Description="y") is None, "updated")
    functions.settle(name)
    client.update_function_code(FunctionName=name, ZipFile=archive({
        "app.py": "def handler(event, context):\n    return 'newer'\n"}))
    functions.settle(name)
    assert served(client, name).payload == "newer"
    client.close()
    assert cluster.stop(signal.SIGTERM) == 0


def refused(operation, **parameters):
    """The refusal, None when it was done."""
    try:
        operation(**parameters)
    except ClientError as error:
        said = error.response
        return {
            "status": said["ResponseMetadata"]["HTTPStatusCode"], "code": said["Error"]["Code"],
            "message": said["Error"]["Message"],
        }
    return None


def outcome(client, name):
    error = refused(client.invoke, FunctionName=name)
    time.sleep(0.05)
    return error["status"] if error else 200
