"""Every process of a real cluster serves its numbers, they are what was done, and `labda status` says the same."""

import json
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import call, until

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
    with urllib.request.urlopen(request, timeout=5) as answer:
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
    assert {
        "ok": moved("labda_frontend_invokes_total", "outcome=ok", "reason="),
        "error": moved("labda_frontend_invokes_total", "outcome=function_error", "reason=error"),
        "throttled": moved("labda_frontend_invokes_total", "outcome=throttled", throttle),
        "cold": moved("labda_frontend_invoke_duration_seconds_count", "start=cold"),
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
        "ok": 3, "error": 1, "throttled": 1, "cold": 1, "warm": 3, "in handlers of cold ones": 1, "HTTP 200": 4,
        "HTTP 429": 1, "HTTP 404": 1, "HTTP 403": 1, "not proved": 1, "started": 4, "ended": 4, "made": 1,
        "reserved cold": 1, "proved by the ledger": 1,
    }


def test_status_says_the_same(cluster, targets, functions, client):
    name = functions.make(APP)
    call(client, name, 0)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=7)
    sums, report = settled(targets), cluster.status()
    numbers = report["numbers"]
    assert numbers["silent"] == []
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
    assert sums["labda_counting_leader",] == 1


def test_status_shows_what_runs_now(cluster, targets, functions, client):
    name = functions.make(APP)
    settled(targets)
    shown = cluster.labda("status").stdout
    for word in ("invokes", "/s; ", "loop lag p99", "0 running", " leads in term "):
        assert word in shown, shown
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(call, client, name, 6.0)
        until(lambda: look(targets)["labda_worker_invocations_running",] == 1, "it runs", timeout_s=4)
        running = cluster.status()["numbers"]["running"]
        assert not runs.done(), "the look took longer than the run"
        assert running == 1
        assert runs.result().error is None


def test_the_command_prints_one_process_and_all(cluster, targets):
    table = cluster.labda("metrics")
    assert table.returncode == 0, table.stdout
    assert len(table.stdout.splitlines()) == len(targets) + 1
    node = next(node for node, (service, _) in targets.items() if service == "counting")
    one = cluster.labda("metrics", "--node", node)
    assert "# TYPE labda_counting_term gauge" in one.stdout
    all_of_them = json.loads(cluster.labda("metrics", "--json").stdout)
    assert {entry["node"] for entry in all_of_them} == set(targets)
    assert all(entry["error"] is None and entry["samples"] for entry in all_of_them)
    nobody = cluster.labda("metrics", "--node", "nobody")
    assert nobody.returncode == 2
    assert node in nobody.stderr
