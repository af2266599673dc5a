"""What a manager shows: sandboxes by state, who waits, why it refused."""

from chassis.metrics import Metrics
from tests.worker_manager.pool import busy, idle, new_core, placed, ready, reserve
from worker_manager.messages import NoCapacity, Raised, RoleGiven, Tick
from worker_manager.metrics import measure


def watched(made, events):
    metrics = Metrics()
    tally = measure(metrics, made)
    for now, event in events:
        tally(event, made.handle(event, now))
        made.check()

    def read(name):
        found = metrics.families[f"labda_manager_{name}"].read()
        return {"/".join(labels): value for labels, value in found.items() if value}
    return read


def test_a_sandbox_from_the_request_to_idle():
    made = new_core("worker-az1")
    read = watched(made, [(0.0, reserve("a"))])
    assert (read("sandboxes"), read("requests_waiting")) == ({"placing": 1}, {"": 1})
    read = watched(made, [(0.1, placed("a", "worker-az1"))])
    assert (read("sandboxes"), read("creates_total")) == ({"starting": 1}, {"": 1})
    assert read("placements_answered_total") == {"placement": 1}
    read = watched(made, [(0.2, ready("a")), (0.2, busy("a"))])
    assert (read("sandboxes"), read("requests_waiting")) == ({"reserved": 1}, {})
    assert read("reservations_total") == {"cold": 1}
    read = watched(made, [(0.3, idle("a")), (2.0, Tick())])
    assert (read("sandboxes"), read("takebacks_total")) == ({"recalled": 1}, {"": 1})
    raised = Raised(worker="worker-az1", sandbox="s-a", sequence=2, busy=False)
    read = watched(made, [(2.1, raised), (3.0, reserve("b"))])
    assert (read("sandboxes"), read("reservations_total")) == ({"reserved": 1}, {"warm": 1})
    assert read("leases") == {"usable": 1}


def test_refusals_and_retries_by_why():
    made = new_core("worker-az1", memory_mb=256)
    read = watched(made, [
        (0.0, reserve("a", runtime="cobol")),
        (2.5, reserve("b", runtime="cobol")),
        (2.6, reserve("c", deadline_s=0.0)),
        (2.7, reserve("d", memory_mb=512)),
        (2.7, placed("d", "worker-az1")),
        (2.8, reserve("e")),
        (2.8, placed("e", "worker-az1")),
        (2.9, NoCapacity(worker="worker-az1", sandbox="s-e", reason="full", memory_free_mb=0, cause="e")),
        (3.0, RoleGiven(active=False, term=2)),
        (3.1, reserve("f")),
    ])
    refused = read("refusals_total")
    assert refused["unknown_runtime"] >= 1
    assert refused["shed"] == 1
    assert refused["no_capacity"] == 2
    assert refused["not_active"] == 1
    assert read("create_refusals_total") == {"": 1}
    assert read("active") == {}
    assert read("roles_given_total") == {"standby": 1}
