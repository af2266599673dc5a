"""A real cluster, recorded: its history is clean, whatever was killed, and a history that was tampered with is not."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from labda.commands import limits
from labda.refusal import Status
from labda.state import State
from simulation.history import check, check_file
from simulation.history.records import End, Responded, Start, parse
from tests.cluster.cluster import Cluster, Functions, call, served, until

HANDLER = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"
KILLED = ("worker-az1-1", "frontend-az1-1")
RUN_S = 6       # longer than it takes to see it and to kill
SERVES_S = 150


@pytest.fixture(scope="module")
def recorded(_needs_a_host, tmp_path_factory):
    """One AZ: invokes, throttles, limits that change, a worker and a frontend killed with runs on them."""
    folder = tmp_path_factory.mktemp("recorded")
    cluster = Cluster(folder / "state")
    cluster.start("--azs", "1", "--frontends-per-az", "2", "--record", str(folder / "history.ndjson"))
    try:
        client = cluster.client()
        functions = Functions(client)
        name = functions.make(HANDLER)
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)
        outcomes: set[int] = set()
        until(lambda: _is_throttled(client, name, outcomes), "two run, others are throttled")
        before = cluster.pids()
        for node in KILLED:
            with _two_run(cluster, client, name):
                os.kill(before[node], signal.SIGKILL)
            until(partial(_is_back, cluster, node, before[node]), "it comes back")
            cluster.await_healthy()
            assert served(client, name, 0).payload == 0
        until(lambda: _is_settled(cluster), "no permit waits for a run of a frontend that has gone", timeout_s=SERVES_S)
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
        assert served(client, name, 0).payload == 0
        functions.close()
        client.close()
    finally:
        assert cluster.stop() == 0, "".join(cluster.output)
    return folder / "history.ndjson", "".join(cluster.output), cluster


def _is_throttled(client, name, outcomes):
    """Six at once; a refusal is a 503 where a frontend was silent when it was asked for what it holds."""
    with ThreadPoolExecutor(6) as pool:
        outcomes.update(pool.map(lambda _: _status(client, name, 0.5), range(6)))
    return {200, 429} <= outcomes


@contextlib.contextmanager
def _two_run(cluster, client, name):
    """Inside, two runs are there as long as it takes to see it."""
    seen = threading.Event()

    def again():
        while not seen.is_set():
            _status(client, name, RUN_S)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(again) for _ in range(2)]
        try:
            until(lambda: _running(cluster) == 2, "both run")
            yield
        finally:
            seen.set()
        for one in running:
            one.result()


def _status(client, name, seconds):
    try:
        return call(client, name, seconds).response["StatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    except BotoCoreError:
        return 0


def _is_back(cluster, node, before):
    return cluster.pids().get(node) not in {None, before}


def _running(cluster):
    return sum(pool["running"] for pool in _pools(cluster))


def _is_settled(cluster):
    """With a permit of the two still draining, a limit of one would rightly refuse the next call."""
    return not any(pool["running"] or pool["draining"] for pool in _pools(cluster))


def _pools(cluster):
    return cluster.operator.run(limits.collect(State(cluster.root)))["pools"]


def test_the_history_of_a_real_cluster_is_clean(recorded):
    path, output, cluster = recorded
    found = cluster.labda("chaos", "check", str(path), "--json")
    verdict = json.loads(found.stdout)
    assert (found.returncode, verdict["verdict"], verdict["violations"]) == (Status.OK, "pass", [])
    assert f"labda chaos check {path}" in output
    there = {"Start", "End", "Asked", "Answered", "Responded", "Block", "Level", "Bound", "Throttled", "FenceAcked",
             "Member", "Led", "Applied", "Committed", "LeaseGranted", "Adopted", "Made", "Served", "Closed"}
    assert there <= verdict["records"].keys()


def test_no_secret_is_in_it(recorded):
    text = recorded[0].read_text()
    assert "signature" not in text
    assert "environment" not in text


def test_what_was_tampered_with_is_found(recorded):
    """The very records of real processes: a request that runs once more, an answer that is another's."""
    lines = recorded[0].read_text().splitlines()
    whole = [parse(line) for line in lines]
    began = next(record for record in whole if isinstance(record, Start))
    over = next(
        n for n, record in enumerate(whole) if isinstance(record, End) and record.invocation == began.invocation
    )
    again = dataclasses.replace(began, at=whole[over].at, invocation=f"{began.invocation}#2")
    ended = End(at=again.at, node=again.node, invocation=again.invocation, sandbox=again.sandbox)
    twice = [*whole[:over + 1], again, ended, *whole[over + 1:]]
    assert {violation.invariant for violation in check(twice).violations} == {5}
    answers = [record for record in whole if isinstance(record, Responded)]
    other = next(record.digest for record in answers if record.digest != answers[0].digest)
    first = whole.index(answers[0])
    swapped = [*whole[:first], parse(lines[first].replace(answers[0].digest, other)), *whole[first + 1:]]
    assert {violation.invariant for violation in check(swapped).violations} == {6}
    assert check_file(recorded[0]).violations == []
