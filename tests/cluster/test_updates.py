"""Updates and deletions while traffic runs on all three frontends: no request fails, and after Successful nothing old
answers; also when the frontend that made the update is killed in the middle of it."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from frontend.settling import DELETION_S_MAX
from tests.cluster.cluster import archive, call, until

REGION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:"


def source(number):
    return f"import os\ndef handler(event, context):\n    return [{number}, int(os.environ.get('NUMBER', 0))]\n"


@pytest.fixture
def frontends(cluster):
    """(pid, client of its own address) of each frontend."""
    made = [(node["pid"], cluster.client(endpoint=f"http://{node['http']}")) for node in cluster.processes("frontend")]
    yield made
    for _, client in made:
        client.close()


class Traffic:
    """One caller per client until it is stopped. ``newest`` is what is known to serve."""

    def __init__(self, name, clients):
        self.newest = 0
        self.answers: list[tuple[int, int]] = []      # (newest before the request, what answered)
        self.failures: list[Exception] = []
        self._name = name
        self._stop = threading.Event()
        self._drivers = [threading.Thread(target=self._drive, args=(client,)) for client in clients]

    @contextmanager
    def running(self):
        for driver in self._drivers:
            driver.start()
        try:
            yield self
        finally:
            self._stop.set()
            for driver in self._drivers:
                driver.join(30)

    def _drive(self, client):
        while not self._stop.is_set():
            before = self.newest
            try:
                self.answers.append((before, sum(call(client, self._name).payload)))
            except Exception as error:  # noqa: BLE001 - the test reports whatever it was
                self.failures.append(error)
                if before < 0:
                    return


def test_updates_of_code_and_configuration_during_traffic(functions, client, frontends):
    name = functions.make(source(0))
    with Traffic(name, [each for _, each in frontends]).running() as traffic:
        until(lambda: len(traffic.answers) > 3, "traffic runs")
        for number in range(1, 5):
            updating = frontends[number % 3][1]
            if number % 2:
                updating.update_function_code(FunctionName=name, ZipFile=archive({"app.py": source(number // 2 + 1)}))
            else:
                variables = {"NUMBER": str(number // 2)}
                updating.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
            functions.settle(name)
            traffic.newest = number
            assert sum(call(client, name).payload) == number
    assert not traffic.failures
    assert {answer for _, answer in traffic.answers} == {0, 1, 2, 3, 4}
    assert all(answer >= before for before, answer in traffic.answers), "after Successful an older revision answered"


def test_a_deletion_during_traffic_ends_in_clean_404s(functions, cluster, client, frontends):
    name = functions.make(source(0))
    with Traffic(name, [each for _, each in frontends]).running() as traffic:
        until(lambda: len(traffic.answers) > 20, "traffic runs")
        began = time.monotonic()
        frontends[0][1].delete_function(FunctionName=name)
        known_to_all = time.monotonic() - began < DELETION_S_MAX
        traffic.newest = -1
        until(lambda: len(traffic.failures) >= 3, "everybody hears of it")
    for failure in traffic.failures:
        assert failure.response["ResponseMetadata"]["HTTPStatusCode"] == 404
        assert failure.response["Error"]["Code"] == "ResourceNotFoundException"
        assert failure.response["Error"]["Message"] == f"Function not found: {REGION_ARN}{name}:$LATEST"
    # It is answered when all frontends know, or one of them was silent for so long.
    assert {before for before, _ in traffic.answers} == {0} or not known_to_all, "an invoke after it was answered"
    functions.make(source(7), name=name)
    assert [sum(call(each, name).payload) for _, each in frontends] == [7, 7, 7]


def test_what_runs_when_its_function_is_deleted_finishes_and_its_sandbox_goes(functions, cluster, client):
    name = functions.make("import time\ndef handler(event, context):\n    time.sleep(10)\n    return 'finished'\n")
    finished = []
    run = threading.Thread(target=lambda: finished.append(call(client, name).payload))
    run.start()
    try:
        until(lambda: running(cluster, name), "it runs")
        before = sandboxes(cluster)
        client.delete_function(FunctionName=name)
        assert not finished
    finally:
        run.join(30)
    assert finished == ["finished"]
    until(lambda: sandboxes(cluster) < before, "its sandbox is destroyed")


def test_an_update_whose_frontend_is_killed_in_the_middle_is_completed_by_another(functions, cluster, frontends):
    """A stopped frontend holds the update up, so that the kill is certainly in the middle of it."""
    name = functions.make(source(0))
    (updating_pid, updating), (held_pid, _), (_, other) = frontends
    assert sum(call(other, name).payload) == 0
    os.kill(held_pid, signal.SIGSTOP)
    try:
        changed = updating.update_function_code(FunctionName=name, ZipFile=archive({"app.py": source(1)}))
        assert changed["LastUpdateStatus"] == "InProgress"
        with pytest.raises(other.exceptions.ResourceConflictException) as conflict:
            other.update_function_configuration(FunctionName=name, Timeout=9)
        assert conflict.value.response["Error"]["Message"] == (
            f"The operation cannot be performed at this time. An update is in progress for resource: {REGION_ARN}{name}"
        )
        os.kill(updating_pid, signal.SIGKILL)
        assert other.get_function_configuration(FunctionName=name)["LastUpdateStatus"] == "InProgress"
    finally:
        os.kill(held_pid, signal.SIGCONT)
    until(lambda: successful(other, name), "another frontend completes it")
    assert sum(call(other, name).payload) == 1
    other.update_function_configuration(FunctionName=name, Timeout=9)
    until(lambda: successful(other, name), "the next update")
    cluster.await_healthy()


def test_update_of_configuration_makes_new_sandboxes(functions, client):
    name = functions.make("import os\ndef handler(event, context):\n    return os.environ.get('COLOUR')\n")
    assert functions.call(name).payload is None
    client.update_function_configuration(FunctionName=name, Environment={"Variables": {"COLOUR": "red"}})
    functions.settle(name)
    assert functions.call(name).payload == "red"


def successful(client, name):
    return client.get_function_configuration(FunctionName=name)["LastUpdateStatus"] == "Successful"


def running(cluster, name):
    return any(row["running"] for row in cluster.status()["functions"] if row["name"] == name)


def sandboxes(cluster):
    """How many there are on all workers."""
    return sum(sum(worker["sandboxes"].values()) for worker in cluster.status()["workers"])
