"""Every process of a real cluster serves its numbers, they are what was done, and `labda status` says the same."""

import json
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from botocore.exceptions import ClientError
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import call, until, until_some

APP = """
import time
def handler(event, context):
    if event == "fail":
        raise ValueError("on purpose")
    time.sleep(event or 0)
"""


@pytest.fixture(scope="module")
def targets(cluster):
    """node -> (service, url), as Prometheus is told."""
    cluster.await_healthy()
    found = json.loads(cluster.labda("metrics", "--targets").stdout)
    return {
        group["labels"]["node"]: (group["labels"]["service"], f"http://{address}/metrics")
        for group in found for address in group["targets"]
    }


def get(url, accept="text/plain"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def look(targets):
    """Every sample of the region, added up over its processes."""
    sums: Counter[tuple[str, ...]] = Counter()
    for _, url in targets.values():
        for family in text_string_to_metric_families(get(url)[1]):
            for sample in family.samples:
                sums[sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))] += sample.value  # type: ignore[assignment]  # a counter of floats counts as well
    return sums


def settled(targets):
    """Once nothing runs, waits or lingers: then the numbers of different processes fit together."""
    def quiet():
        sums = look(targets)
        names = ("labda_frontend_reservations", "labda_worker_invocations_running", "labda_frontend_permits_waiting")
        return not any(sums[name,] for name in names)

    until(quiet, "nothing runs and no reservation lingers")
    return look(targets)


MOVING = ("labda_worker_slots", "labda_manager_sandboxes", "labda_frontend_invokes_total", "labda_counting_leader",
          "labda_counting_permits_limit", "labda_frontend_invoke_duration_seconds_count")


def looked_at_twice(cluster, targets):
    """The numbers, and the report of a time in which they stood still: sandboxes of other tests may still be going."""
    def still():
        sums, report = settled(targets), cluster.status()
        after = settled(targets)
        if any(sums[key] != after[key] for key in sums | after if key[0] in MOVING) or report["numbers"]["silent"]:
            return None
        there, known = (sum(v for k, v in sums.items() if k[0] == name) for name in MOVING[:2])
        leaders = [process["node"] for process in report["processes"] if process["role"] == "leader"]
        return (sums, report) if there == known and len(leaders) == sums["labda_counting_leader",] == 1 else None

    return until_some(still, "the numbers stand still, and everybody tells the same ones")


def test_every_process_is_a_target_and_serves_both_formats(cluster, targets):
    processes = cluster.status()["processes"]
    assert {process["node"]: process["service"] for process in processes} == {
        node: service for node, (service, _) in targets.items()
    }
    assert {f"http://{process['metrics']}/metrics" for process in processes} == {url for _, url in targets.values()}
    for node, (service, url) in targets.items():
        kind, text = get(url)
        assert kind.startswith("text/plain"), node
        names = {family.name for family in text_string_to_metric_families(text)}
        assert {"process_resident_memory_bytes", "process_cpu_seconds", "labda_event_loop_lag_seconds"} <= names, node
        assert any(name.startswith(f"labda_{service.removeprefix('worker_')}_") for name in names), node
        kind, text = get(url, "application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text"), node
        assert {family.name for family in read_open_metrics(text)} >= {"labda_event_loop_lag_seconds"}, node


def test_the_numbers_moved_by_what_was_done(cluster, targets, functions, client):
    name, limited = functions.make(APP), functions.make(APP)
    client.put_function_concurrency(FunctionName=limited, ReservedConcurrentExecutions=0)
    before = settled(targets)
    for event in (0, 0, "fail", 0):     # cold, warm, an error, warm again
        assert (call(client, name, event).error is not None) == (event == "fail")
        settled(targets)
    with pytest.raises(ClientError, match="Rate Exceeded"):
        call(client, limited, 0)
    with pytest.raises(ClientError, match="Function not found"):
        call(client, "nobody-made-this", 0)
    stranger = cluster.client(key=("AKIAUNKNOWN000000000", "x" * 40))
    with pytest.raises(ClientError, match="security token"):
        call(stranger, name, 0)
    stranger.close()
    after = settled(targets)

    def moved(sample, *labels):
        return after[sample, *labels] - before[sample, *labels]

    throttle = "reason=ReservedFunctionConcurrentInvocationLimitExceeded"
    # A worker that is silent for a second is routed around: then one of the four is cold elsewhere.
    cold = moved("labda_frontend_invoke_duration_seconds_count", "start=cold")
    assert cold in {1, 2}
    assert {
        "ok": moved("labda_frontend_invokes_total", "outcome=ok", "reason="),
        "error": moved("labda_frontend_invokes_total", "outcome=function_error", "reason=error"),
        "throttled": moved("labda_frontend_invokes_total", "outcome=throttled", throttle),
        "warm": moved("labda_frontend_invoke_duration_seconds_count", "start=warm"),
        "in handlers of cold ones": moved("labda_frontend_cold_start_seconds_count", "phase=handler"),
        "HTTP 200": moved("labda_frontend_http_requests_total", "operation=Invoke", "status=200"),
        "HTTP 429": moved("labda_frontend_http_requests_total", "operation=Invoke", "status=429"),
        "HTTP 404": moved("labda_frontend_http_requests_total", "operation=Invoke", "status=404"),
        "HTTP 403": moved("labda_frontend_http_requests_total", "operation=Invoke", "status=403"),
        "not proved": sum(
            moved(*key) for key in after if key[0] == "labda_frontend_authentication_failures_total"
        ),
        "started": moved("labda_worker_starts_total",), "ended": moved("labda_worker_ends_total",),
        "made": moved("labda_worker_sandbox_phase_seconds_count", "phase=init"),
        "reserved cold": moved("labda_manager_reservations_total", "start=cold"),
        "proved by the ledger": moved("labda_counting_refusals_total", "reason=throttled"),
    } == {
        "ok": 3, "error": 1, "throttled": 1, "warm": 4 - cold, "in handlers of cold ones": cold, "HTTP 200": 4,
        "HTTP 429": 1, "HTTP 404": 1, "HTTP 403": 1, "not proved": 1, "started": 4, "ended": 4, "made": cold,
        "reserved cold": cold, "proved by the ledger": 1,
    }


def test_status_says_the_same(cluster, targets, functions, client):
    name = functions.make(APP)
    call(client, name, 0)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=7)
    sums, report = looked_at_twice(cluster, targets)
    numbers = report["numbers"]
    for outcome, count in numbers["invokes"].items():
        assert count == sum(
            value for key, value in sums.items()
            if key[:2] == ("labda_frontend_invokes_total", f"outcome={outcome}")
        ), outcome
    assert numbers["cold"] == sums["labda_frontend_invoke_duration_seconds_count", "start=cold"] > 0
    slots: Counter[str] = Counter()
    for worker in report["workers"]:
        slots.update(worker["sandboxes"])
    for state, count in slots.items():
        assert count == sums["labda_worker_slots", f"state={state}"], state
    at_managers = sum(sum(function["sandboxes"].values()) for function in report["functions"])
    assert at_managers <= sum(slots.values()) == sum(v for k, v in sums.items() if k[0] == "labda_manager_sandboxes")
    for pool in report["pools"]:
        labels = (f"account={pool['account']}", f"function={pool['function']}", f"kind={pool['kind']}")
        assert sums["labda_counting_permits_limit", *labels] == pool["limit"], labels
    assert ("labda_counting_permits_limit", "account=000000000000", f"function={name}", "kind=reserved") in sums
    [leader] = [process["node"] for process in report["processes"] if process["role"] == "leader"]
    assert numbers["ledger"]["leader"] == leader


def test_status_shows_what_runs_now(cluster, targets, functions, client):
    name = functions.make(APP, Timeout=60)
    settled(targets)
    words = ("invokes", "/s; ", "loop lag p99", "0 running", " leads in term ")
    until(lambda: not set(words) - found_in(cluster.labda("status").stdout, words), f"status shows {words}")
    with ThreadPoolExecutor(1) as pool:
        for seconds in (4.0, 10.0, 30.0):   # it is no claim that a look takes less than that
            runs = pool.submit(call, client, name, seconds)
            until(partial(runs_or_ran, targets, runs), "it runs")
            running = cluster.status()["numbers"]["running"]
            was_over = runs.done()
            assert runs.result().error is None
            if not was_over:
                break
        assert not was_over, "no look was shorter than its run"
        assert running == 1


def runs_or_ran(targets, run):
    return run.done() or look(targets)["labda_worker_invocations_running",] == 1


def found_in(text, words):
    return {word for word in words if word in text}


def test_the_command_prints_one_process_and_all(cluster, targets):
    table = until_some(lambda: answer_of(cluster, "metrics"), "everybody tells his numbers")
    assert len(table.splitlines()) == len(targets) + 1
    node = next(node for node, (service, _) in targets.items() if service == "counting")
    one = until_some(lambda: answer_of(cluster, "metrics", "--node", node), "one tells his numbers")
    assert "# TYPE labda_counting_term gauge" in one
    all_of_them = cluster.told("metrics")
    assert {entry["node"] for entry in all_of_them} == set(targets)
    assert all(entry["error"] is None and entry["samples"] for entry in all_of_them)
    nobody = cluster.labda("metrics", "--node", "nobody")
    assert nobody.returncode == 2
    assert node in nobody.stderr


def answer_of(cluster, *arguments):
    """Empty while somebody who is asked doesn't answer in time."""
    said = cluster.labda(*arguments)
    return said.stdout if said.returncode == 0 else ""
