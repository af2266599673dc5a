"""The active manager or placement of a real cluster is killed or stopped under load; leases end in scaled time."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from frontend import reserving
from simulation.history import judge_files
from tests.cluster.cluster import Cluster, Functions, call, until, until_some

SOURCE = """
import os, time
sandbox, calls = os.urandom(4).hex(), 0
def handler(event, context):
    global calls
    calls += 1
    time.sleep(event["seconds"])
    return {"sandbox": sandbox, "calls": calls}
"""
CLIENTS = 4
TIME_SCALE = 1 / 3600       # leases of 6 to 10 s, drained within 0.25 s
LEASES = 12


def told(line):
    sys.stdout.write(f"{line}\n")


class Load:
    """Clients that invoke one after the other while inside. Every answer counts, with when it was asked for."""

    def __init__(self, client, name, *, seconds=0.02):
        self._client, self._name, self._seconds = client, name, seconds
        self.answers, self.failures = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._invoke) for _ in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _invoke(self):
        while not self._stop.wait(0.02):
            began = time.monotonic()
            try:
                answer = call(self._client, self._name, {"seconds": self._seconds})
            except (ClientError, BotoCoreError) as error:
                self.failures.append((began, f"{time.monotonic() - began:.2f} s", str(error)))
                continue
            if answer.error:
                self.failures.append((began, answer.error, answer.payload))
            else:
                self.answers.append((began, answer.payload))

    def unexcused(self, took_s):
        """What failed though the manager was replaced within the frontends' patience; later they refuse for now."""
        return [
            failure for failure in self.failures
            if took_s < reserving.SETTLE_S or "ServiceUnavailableException" not in failure[-1]
        ]

    def await_answers(self, count=20):
        """So many more than there were."""
        until(partial(self._more_than, len(self.answers) + count), f"{count} more answers")

    def _more_than(self, count):
        return len(self.answers) >= count

    def warm_rate(self, since, until=float("inf")):
        """The share of invokes that got a sandbox which had served before."""
        calls = [payload["calls"] for began, payload in self.answers if since <= began < until]
        return sum(number > 1 for number in calls) / len(calls)


def active(cluster, service):
    """By name. Who is stopped still has the role that it told last."""
    processes = cluster.processes(service)
    return [node["node"] for node in processes if node["role"] == "active" and node["health"] == "serving"]


def await_active(cluster, service, *, apart_from=""):
    """Until one process, another than ``apart_from``, is the one that is active; its name."""
    def the_one():
        found = active(cluster, service)
        return found if len(found) == 1 and found != [apart_from] else []

    (other,) = until_some(the_one, f"one {service} is active, and not {apart_from or 'several'}")
    return other


def kill_until_replaced(cluster, service, node):
    """Its supervisor may start it again before anybody missed it, and it would keep its part: then it is killed again.
    Who is active then."""
    def replaced():
        found = active(cluster, service)
        if len(found) == 1 and found != [node]:
            return found
        pid = cluster.pids().get(node)      # none while its supervisor waits before it starts it again
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return []
    (other,) = until_some(replaced, f"another {service} than {node} takes over")
    return other


def await_held(cluster, manager):
    def held():
        return {worker["manager"] for worker in cluster.status()["workers"]} == {manager}
    until(held, f"{manager} holds every worker")


class Stopped:
    """Processes that stand still, by pid."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._pids = []

    def __call__(self, *names):
        for name in names:
            self._pids.append(self._cluster.pids()[name])
            os.kill(self._pids[-1], signal.SIGSTOP)

    def go_on(self):
        while self._pids:
            os.kill(self._pids.pop(), signal.SIGCONT)


@pytest.fixture
def stopped(cluster):
    """Stops processes; they go on when the test ends, whatever it said."""
    stop = Stopped(cluster)
    yield stop
    stop.go_on()


def test_a_killed_managers_sandboxes_stay_warm(cluster, functions, client):
    name = functions.make(SOURCE)
    killed = await_active(cluster, "worker_manager")
    with Load(client, name) as load:
        load.await_answers()                    # sandboxes are made
        warm_at = time.monotonic()
        load.await_answers(100)
        at = time.monotonic()
        other = kill_until_replaced(cluster, "worker_manager", killed)
        await_held(cluster, other)
        took_s = time.monotonic() - at
        load.await_answers()
    before, after = load.warm_rate(warm_at, at), load.warm_rate(at)
    waited = max(b[0] - a[0] for a, b in zip(load.answers, load.answers[1:], strict=False))
    told(f"warm {before:.1%} before the kill, {after:.1%} after; {len(load.answers)} answers, "
         f"the longest time without a new request {waited:.2f} s")
    assert load.unexcused(took_s) == []
    assert after >= before - 0.05
    cluster.await_healthy()


def test_a_stopped_manager_is_replaced_and_does_no_harm_when_it_goes_on(cluster, functions, client, stopped):
    name = functions.make(SOURCE)
    first = await_active(cluster, "worker_manager")
    with Load(client, name) as load:
        load.await_answers()
        at = time.monotonic()
        stopped(first)
        other = await_active(cluster, "worker_manager", apart_from=first)
        await_held(cluster, other)
        took_s = time.monotonic() - at
        stopped.go_on()
        time.sleep(1.5)     # what it believed when it was stopped, it would act on by now
    assert load.unexcused(took_s) == []
    await_held(cluster, other)
    assert await_active(cluster, "worker_manager") == other
    cluster.await_healthy()


def test_a_killed_placement_is_replaced_under_a_higher_term(cluster, functions, client):
    name = functions.make(SOURCE)
    killed = await_active(cluster, "placement")
    with Load(client, name) as load:
        term = led(cluster, killed)[-1]
        began = time.monotonic()
        other = kill_until_replaced(cluster, "placement", killed)
        told(f"{other} leads after {time.monotonic() - began:.1f} s")
    assert led(cluster, other)[-1] > term
    assert load.failures == []
    cluster.await_healthy()


def test_managers_follow_another_placement_while_the_first_one_stands_still(cluster, functions, client, stopped):
    """Nothing breaks the streams to it. A worker that starts anew then is leased by who leads now."""
    name = functions.make(SOURCE)
    first = await_active(cluster, "placement")
    with Load(client, name) as load:
        load.await_answers()
        stopped(first)
        other = await_active(cluster, "placement", apart_from=first)
        load.await_answers()
    assert load.failures == []
    before = until_some(lambda: leases(cluster).get("worker-az1-1"), "the worker is leased")
    os.kill(cluster.pids()["worker-az1-1"], signal.SIGKILL)
    until(lambda: leases(cluster).get("worker-az1-1", 0) > before, "the worker is leased anew")
    stopped.go_on()
    cluster.await_healthy()
    assert await_active(cluster, "placement") == other


def leases(cluster):
    """Number of each worker's lease, as its manager has it."""
    return {worker["node"]: worker["lease"] for worker in cluster.status()["workers"] if worker["lease"]}


def test_without_placement_warm_and_cold_invokes_go_on(cluster, functions, client, stopped):
    name = functions.make(SOURCE)
    placements = [process["node"] for process in cluster.processes("placement")]
    with Load(client, name) as load:
        load.await_answers()
        seen = {payload["sandbox"] for _, payload in load.answers}
        stopped(*placements)
        time.sleep(4.0)     # longer than anybody's patience with a silent process
        with ThreadPoolExecutor(12) as pool:
            cold = list(pool.map(lambda _: call(client, name, {"seconds": 1.0}), range(12)))
        stopped.go_on()
        load.await_answers()
    assert load.failures == []
    assert [answer.error for answer in cold] == [None] * 12
    assert {answer.payload["sandbox"] for answer in cold} - seen, "none was cold"
    cluster.await_healthy()
    await_active(cluster, "placement")


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_needs_a_host")
def test_leases_end_by_the_dozen_under_load(tmp_path):
    cluster = Cluster(tmp_path / "state")
    cluster.start("--time-scale", str(TIME_SCALE), "--workers-per-az", "2", "--trace")
    try:
        client = cluster.client()
        functions = Functions(client)
        name = functions.make(SOURCE, MemorySize=512)
        with Load(client, name) as load:
            until(lambda: len(active(cluster, "worker_manager")) == 2, "two workers per AZ make two active managers")
            until(lambda: returned(cluster) >= LEASES, f"{LEASES} leases ended", timeout_s=240.0)
        functions.close()
        client.close()
    finally:
        cluster.stop()
    verdict = judge_files(cluster.root.glob("nodes/*/trace.ndjson"), time_scale=TIME_SCALE)
    told(f"{verdict.ends} leases ended, {verdict.starts} runs, {verdict.creates} sandboxes")
    # No run may take longer than 0.25 s, which is scaled too: one that gets no processor for so long is cut off.
    assert [kind for _, kind, told in load.failures if "Sandbox.Timedout" not in str(told)] == [], load.failures
    assert verdict.violations == []
    assert verdict.unfinished == 0
    assert verdict.ends >= LEASES
    assert verdict.starts >= len(load.answers)


def returned(cluster):
    """How many leases ended by a return, by the workers' traces."""
    return sum(path.read_text().count('"type":"Returned"') for path in cluster.root.glob("nodes/worker-*/trace.ndjson"))


def led(cluster, node):
    """Terms under which a placement led, by its log."""
    lines = [json.loads(line) for line in (cluster.root / "logs" / f"{node}.log").read_text().splitlines()
             if line.startswith("{")]
    return [line["term"] for line in lines if line["event"] == "role" and line["role"] == "active"]
