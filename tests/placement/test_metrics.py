"""What a placement shows: who is there, who leads, and what became of leases."""

from chassis.metrics import Metrics
from placement.messages import Heartbeat, LeadershipFailed, LeadershipWritten, StreamClosed, Tick, WorkerReturned
from placement.metrics import measure
from tests.placement.fleet import feed, first_leader, joined, new_core, registered


class Watched:
    """A core as its driver's observer sees it."""

    def __init__(self, core):
        self._core = core
        self._metrics = Metrics()
        self._tally = measure(self._metrics, core)

    def handle(self, event, now):
        effects = self._core.handle(event, now)
        self._tally(event, effects)
        return effects

    def check(self):
        self._core.check()

    def read(self, name):
        found = self._metrics.families[f"labda_placement_{name}"].read()
        return {"/".join(labels): value for labels, value in found.items() if value}


def region():
    watched = Watched(new_core())
    feed(watched, [
        *first_leader(),
        (0.1, registered("worker_manager-az1", 1)), (0.1, joined("worker_manager-az1", 1)),
        (0.2, registered("worker-az1", 2)), (0.2, registered("worker-az2", 3)), (0.3, Tick()),
    ])
    return watched


def test_a_fleet_at_work():
    watched = region()
    assert watched.read("active") == {"": 1}
    assert watched.read("role_changes_total") == {"leads": 1}
    assert watched.read("nodes") == {"worker_manager/serving": 1, "worker/serving": 2}
    assert watched.read("leases") == {"leased": 2}
    assert watched.read("leases_granted_total") == {"": 2}
    assert watched.read("workers_memory_bytes") == watched.read("workers_memory_free_bytes") == {"": 2 * 4096 << 20}


def test_returns_deaths_and_a_store_that_fails():
    watched = region()
    feed(watched, [
        (1.0, WorkerReturned(manager="worker_manager-az1", worker="worker-az1", lease=1)),
        (1.1, StreamClosed(node="worker-az2", connection=3, cause="stream")),
        *((at / 2, beat) for at in range(3, 12) for beat in (
            Heartbeat(node="worker_manager-az1", connection=1, load=None, cause="heartbeat"),
            Heartbeat(node="worker-az1", connection=2, load=None, cause="heartbeat"), Tick(),
            LeadershipWritten(revision=at, cause="leadership"),
        )),
        (5.6, LeadershipFailed(fault="the store did not answer", cause="leadership")),
    ])
    assert watched.read("leases_returned_total") == {"": 1}
    assert watched.read("leases_taken_away_total") == {"the worker is dead": 1}
    assert watched.read("nodes") == {"worker_manager/serving": 1, "worker/serving": 1, "worker/dead": 1}
    assert watched.read("store_failures_total") == {"leadership": 1}
