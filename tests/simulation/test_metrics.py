"""What every service counts in a region of which we know what happened; and that docs/metrics.md says all of it."""

import asyncio
import functools
import importlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from chassis.certificates import Tls
from chassis.clock import SystemClock
from chassis.credentials import Credentials, measure
from chassis.metrics import Counts, Kind, LoopLag, Metrics
from frontend.config import HttpLimits
from frontend.http_server import HttpServer
from frontend.metrics import measure_http
from labda.commands.metrics import JOB, targets
from placement.metrics import measure_enrolment
from protos import placement_pb2
from simulation import loop as virtual
from simulation.client import Client
from simulation.region import Region
from simulation.scenario import create, reserve

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "metrics.md"
PROMETHEUS = ROOT / "deploy" / "prometheus"
LIBRARY = {"up", "process_open_fds", "process_max_fds"}     # names that aren't ours
TARGET = {"job", "instance", "service", "node", "az", "host", "le"}


def in_region(main, seed=11):
    async def live(_loop):
        async with Region(seed) as region:
            return await main(region)

    return virtual.run(live)


def services(region):
    """Metrics of every process, by service."""
    return {
        "frontend": [frontend.service.metrics for frontend in region.frontends],
        "counting": [member.metrics for member in region.counting],
        "worker_manager": [manager.metrics for manager in region.managers],
        "placement": [placement.metrics for placement in region.placements],
        "worker": [worker.metrics for worker in region.workers.values()],
    }


def total(found, name, *labels):
    """The sum over some processes; ``labels``: only of what carries these, in this order."""
    return sum(
        value for metrics in found for key, value in metrics.families[name].read().items()
        if key[: len(labels)] == labels
    )


def samples(found, name, *labels):
    return sum(sum(metrics.families[name].read()[labels].counts) for metrics in found)


async def some_invokes(region):
    """One cold, two warm, an error, a throttle, an unknown function, a wrong signature; and what was counted of it."""
    await create(region, "hello", "echo")
    statuses = []
    for _ in range(3):
        statuses.append((await region.invoke("hello", b'"a"')).status)
        await asyncio.sleep(0.5)    # the sandbox is idle, by its worker's word, before the next comes
    await create(region, "wrong", "error")
    statuses.append((await region.invoke("wrong")).status)
    await create(region, "never", "echo")
    await reserve(region, "never", 0)
    statuses.append((await region.invoke("never", frontend=1)).status)
    statuses.append((await region.invoke("nobody")).status)
    statuses.append((await stranger(region).send("POST", "/2015-03-31/functions/hello/invocations", b"{}")).status)
    assert statuses == [200, 200, 200, 200, 429, 404, 403]
    await asyncio.sleep(3)      # blocks that are idle go back
    return services(region), region


def stranger(region):
    """A client of the first frontend whose key nobody knows."""
    known = region.frontends[0].client
    signer = type(known._signer)(
        key=type("Key", (), {"key_id": "AKIAUNKNOWN000000000", "secret": "x" * 40})(), region="us-east-1",
        clock=region.clock,
    )
    client = Client.__new__(Client)
    client._application, client._host, client._signer = known._application, known._host, signer
    return client


def test_every_service_counts_what_was_done():
    async def story(region):
        found, region = await some_invokes(region)
        check_frontends(found["frontend"])
        check_counting(found["counting"], region)
        check_managers(found["worker_manager"], region)
        check_workers(found["worker"])
        check_placement([metrics for metrics in found["placement"] if total([metrics], "labda_placement_active")])

    in_region(story)


def check_frontends(found):
    invokes = "labda_frontend_invokes_total"
    assert total(found, invokes, "ok") == 3
    assert total(found, invokes, "function_error", "error") == 1
    assert total(found, invokes, "throttled", "ReservedFunctionConcurrentInvocationLimitExceeded") == 1
    assert total(found, invokes) == 5, "who is not authenticated, or asks for nothing there is, invokes nothing"
    assert samples(found, "labda_frontend_invoke_duration_seconds", "cold") == 2
    assert samples(found, "labda_frontend_invoke_duration_seconds", "warm") == 2
    for phase in ("permit", "place", "code", "sandbox", "runtime", "init", "handler"):
        assert samples(found, "labda_frontend_cold_start_seconds", phase) == 2, phase
    requests = "labda_frontend_http_requests_total"
    assert total(found, requests, "Invoke", "200") == 4
    assert {status: total(found, requests, "Invoke", status) for status in ("429", "404", "403")} == {
        "429": 1, "404": 1, "403": 1,
    }
    assert total(found, requests, "CreateFunction", "201") == 3
    assert total(found, requests, "PutFunctionConcurrency", "200") == 1
    assert total(found, "labda_frontend_authentication_failures_total") == 1
    assert total(found, "labda_frontend_permit_refusals_total", "throttled") == 1
    assert total(found, "labda_frontend_session_live") == 3
    for quiet in ("permits_in_use", "permits_waiting", "sandboxes_waiting", "invocations_in_flight", "reservations"):
        assert total(found, f"labda_frontend_{quiet}") == 0, quiet


def check_counting(found, region):
    [leader] = [metrics for metrics in found if total([metrics], "labda_counting_leader")]
    account = next(iter(leader.families["labda_counting_permits_limit"].read()))[0]
    limit = leader.families["labda_counting_permits_limit"].read()
    assert limit == {(account, "", "unreserved"): 1000, (account, "never", "reserved"): 0}
    assert total([leader], "labda_counting_permits_granted") == 0, "everything idle has gone back"
    granted = total([leader], "labda_counting_grants_total")
    assert granted == total([leader], "labda_counting_give_backs_total") >= 2
    assert total([leader], "labda_counting_refusals_total", "throttled") == 1
    assert total([leader], "labda_counting_recall_rounds_total") == 1
    assert total([leader], "labda_counting_sessions", "live") == 3
    assert total([leader], "labda_counting_workers") == 3
    assert total(found, "labda_counting_leader_changes_total") == 1
    committed = [total([metrics], "labda_counting_commit_index") for metrics in found]
    assert max(committed) - min(committed) <= 1
    assert max(committed) > 5
    assert total(found, "labda_counting_log_entries_unapplied") == 0
    for follower in (metrics for metrics in found if metrics is not leader):
        assert follower.families["labda_counting_permits_limit"].read() == {}, "of permits only the leader speaks"


def check_managers(found, region):
    assert total(found, "labda_manager_active") == 1
    states = Counter(
        sandbox.state.value for manager in region.managers for sandbox in manager.core.supply.sandboxes.by_name.values()
    )
    assert sum(states.values()) == 2
    for state in ("placing", "starting", "idle", "reserved", "recalled", "draining", "leaving"):
        assert total(found, "labda_manager_sandboxes", state) == states[state], state
    assert total(found, "labda_manager_creates_total") == total(found, "labda_manager_sandboxes_ready_total") == 2
    assert total(found, "labda_manager_reservations_total", "cold") == 2
    assert total(found, "labda_manager_leases", "usable") == 3
    assert total(found, "labda_manager_leases_granted_total") == 3
    assert total(found, "labda_manager_requests_waiting") == 0


def check_workers(found):
    assert total(found, "labda_worker_starts_total") == total(found, "labda_worker_ends_total") == 4
    assert total(found, "labda_worker_slots", "idle") == total(found, "labda_worker_slots") == 2
    assert total(found, "labda_worker_sandboxes_begun_total") == 2
    taken = total(found, "labda_worker_memory_bytes") - total(found, "labda_worker_memory_free_bytes")
    assert taken == 2 * 128 << 20
    for phase in ("code", "sandbox", "runtime", "init"):
        assert samples(found, "labda_worker_sandbox_phase_seconds", phase) == 2
    assert total(found, "labda_worker_code_requests_total", "fetched") == 2
    assert total(found, "labda_worker_start_refusals_total") == 0
    for worker in found:
        assert 100 < total([worker], "labda_worker_authority_remaining_seconds") <= 120
        assert total([worker], "labda_worker_lease_remaining_seconds") > 5 * 3600


def check_placement(found):
    assert total(found, "labda_placement_active") == 1
    assert total(found, "labda_placement_nodes", "worker", "serving") == 3
    assert total(found, "labda_placement_nodes", "frontend", "serving") == 3
    assert total(found, "labda_placement_leases", "leased") == 3
    assert total(found, "labda_placement_leases_granted_total") == 3
    assert total(found, "labda_placement_role_changes_total", "leads") == 1


def test_queues_and_what_runs_are_seen_while_it_lasts():
    async def story(region):
        await create(region, "sleeper", "sleep")
        asks = [asyncio.ensure_future(region.invoke("sleeper", b"1.0")) for _ in range(4)]
        found, seen = services(region), Counter[str]()
        while not all(ask.done() for ask in asks):
            for name, service in (
                ("labda_frontend_permits_waiting", "frontend"), ("labda_frontend_sandboxes_waiting", "frontend"),
                ("labda_frontend_permits_in_use", "frontend"), ("labda_manager_requests_waiting", "worker_manager"),
                ("labda_worker_invocations_running", "worker"),
            ):
                seen[name] = max(seen[name], total(found[service], name))
            await asyncio.sleep(0.0005)
        assert [ask.result().status for ask in asks] == [200] * 4
        assert seen == dict.fromkeys(seen, 4)
        assert json.loads(asks[0].result().body) == {"slept": 1.0}

    in_region(story)


def test_a_frontend_that_is_killed_is_fenced_and_counted():
    async def story(region):
        found = services(region)
        await create(region, "hello", "echo")
        await region.invoke("hello")
        await region.kill_frontend(0)
        await asyncio.sleep(5)
        assert total(found["counting"], "labda_counting_sessions", "live") == 3 * 2
        assert total(found["worker"], "labda_worker_fences_total") == 3
        assert total(found["counting"], "labda_counting_fences_acknowledged_total") == 3
        for placement in found["placement"]:    # the one that stands by hears them too
            assert total([placement], "labda_placement_nodes", "frontend", "dead") == 1

    in_region(story)


# ---------------------------------------------------------------- docs


@functools.cache
def families():
    """Every family of every service, as docs/metrics.md has to list them."""
    async def collect(region):
        return {service: found[0] for service, found in services(region).items()}

    def http() -> Metrics:
        metrics = Metrics()
        measure_http(metrics, HttpServer(None, HttpLimits()))
        return metrics

    def everywhere() -> Metrics:
        metrics = Metrics()
        LoopLag(metrics, SystemClock())
        measure(metrics, Credentials.fixed(Tls(authority=b"", certificate=b"", key=b"")))
        return metrics

    def enrolment() -> Metrics:
        metrics = Metrics()
        measure_enrolment(metrics, Counts())
        return metrics

    by_service = {service: dict(metrics.families) for service, metrics in in_region(collect).items()}
    by_service["frontend"] |= http().families
    by_service["placement"] |= enrolment().families
    return {"every process": everywhere().families, **by_service}


def rows(found):
    kinds = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
    return [
        f"| `{family.name}` | {kinds[family.kind]} | {', '.join(family.labels) or '-'} | {family.help} |"
        for family in found.values()
    ]


def test_the_docs_list_exactly_what_there_is(request):
    text = DOCS.read_text()
    printed = {
        service: "\n".join(["| name | type | labels | what it says |", "|---|---|---|---|", *rows(found)])
        for service, found in families().items()
    }
    if request.config.getoption("--rewrite"):
        for service, table in printed.items():
            before, title, rest = text.partition(f"## {service}\n\n")
            text = before + title + table + "\n" + re.sub(r"\A(\|.*\n)*", "", rest)
        DOCS.write_text(text)
    for service, table in printed.items():
        assert f"## {service}\n\n{table}\n" in text, f"{service}: pytest {__file__} --rewrite, and read the diff"
    listed = re.findall(r"^\| `(labda_\w+)`", text, re.MULTILINE)
    assert len(listed) == sum(len(found) for found in families().values())


@pytest.mark.parametrize("word", ["account", "function"])
def test_functions_and_accounts_are_labels_of_pools_only(word):
    """They have no bound of their own: pools are shown up to one (``chassis.metrics.bounded``)."""
    for found in families().values():
        for family in found.values():
            assert word not in family.labels or "_permits_" in family.name, family.name


# ---------------------------------------------------------------- deploy/prometheus


def read_yaml(name):
    return importlib.import_module("yaml").safe_load((PROMETHEUS / name).read_text())


def test_rules_speak_of_metrics_and_labels_that_there_are():
    known = {family.name: family for found in families().values() for family in found.values()}
    groups = read_yaml("rules.yml")["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 10
    for rule in (rule for group in groups for rule in group["rules"]):
        names = set(re.findall(r"\b(?:labda_|process_|python_)\w+|\bup\b|labda:[\w:]+", rule["expr"]))
        assert names, rule
        for name in names - LIBRARY - recorded:
            family = known[name.removesuffix("_bucket")]
            assert name.endswith("_bucket") == (family.kind is Kind.HISTOGRAM), name
        labels = {
            label.strip() for found in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]) for label in found.split(",")
        }
        labels |= set(re.findall(r"[{,]\s*(\w+)(?:=|!)", rule["expr"]))
        there = TARGET | {label for name in names & known.keys() for label in known[name].labels}
        there |= {label for name in names if name.endswith("_bucket") for label in known[name[:-7]].labels}
        assert labels <= there, f"{rule}: {labels - there}"
    for rule in alerts:
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "action"}, "an alert says what to do"


def test_the_scrape_config_reads_what_the_command_prints():
    config = read_yaml("prometheus.yml")
    [job] = config["scrape_configs"]
    assert job["job_name"] == JOB
    assert job["file_sd_configs"] == [{"files": ["targets.json"]}]
    assert config["rule_files"] == ["rules.yml"]
    node = placement_pb2.Node(
        node="worker-az1-1", service="worker", az="az1", host="host-az1-1", metrics="127.0.0.1:1234"
    )
    silent = placement_pb2.Node(node="worker-az2-1", service="worker", az="az2", host="host-az2-1")
    assert targets([node, silent]) == [{
        "targets": ["127.0.0.1:1234"],
        "labels": {"job": JOB, "service": "worker", "node": "worker-az1-1", "az": "az1", "host": "host-az1-1"},
    }]
    sources = {source for rule in job["relabel_configs"] for source in rule["source_labels"]}
    assert sources <= {"node"}
