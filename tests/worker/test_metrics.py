"""What a worker shows: why it refused, what is left of its rights, what its sandboxes took."""

import itertools

from chassis.metrics import Metrics
from tests.worker.test_core import BLOCK, JOINED, READY, adopt, core, create, ended, result, start
from worker import messages as m
from worker.metrics import measure


class At:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def watched(events):
    """What a worker counts to which this happened."""
    made, metrics, clock = core(), Metrics(), At()
    tally = measure(metrics, made, clock)
    for clock.now, event in events:
        tally(event, made.handle(event, clock.now))
        made.check()
    return lambda name: metrics.families[f"labda_worker_{name}"].read()


def test_refusals_by_reason():
    names = (f"i{number}" for number in itertools.count(1))
    read = watched([
        (0.0, adopt()), (0.0, start(next(names))), *JOINED, (0.5, start(next(names))), *READY[3:],
        (1.3, start("first")), (1.3, start("first")), (1.3, start(next(names))), (1.3, start(next(names), lease=0)),
        (1.4, result("first")), (1.5, ended("first")), (1.6, m.Fenced(link=9, session=BLOCK.session)),
        (1.7, start(next(names))), (1.8, start(next(names), deadline=1.0)),
    ])
    refused = {reason: count for (reason,), count in read("start_refusals_total").items() if count}
    assert refused == {
        "no_authority": 1, "unknown_sandbox": 1, "barred": 1, "busy": 1, "stale_lease": 1, "fenced": 2,
    }
    assert len(read("start_refusals_total")) == len(m.Refusal), "every reason is there before it happens"
    assert (read("starts_total"), read("ends_total"), read("fences_total")) == ({(): 1}, {(): 1}, {(): 1})


def test_states_memory_and_phases():
    read = watched([*READY, (1.3, start()), (1.4, create("s2", cause="i2"))])
    slots = {state: count for (state,), count in read("slots").items() if count}
    assert slots == {"busy": 1, "starting": 1}
    assert read("memory_free_bytes") == {(): 0}
    assert read("invocations_running") == {(): 1}
    phases = {phase: (sum(found.counts), found.sum) for (phase,), found in read("sandbox_phase_seconds").items()}
    assert phases == {"code": (1, 0.003), "sandbox": (1, 0.009), "runtime": (1, 0.045), "init": (1, 0.002)}


def test_rights_run_out():
    read = watched([*READY, (100.0, m.Fenced(link=9, session=m.Session(frontend="f9", epoch=1)))])
    assert read("authority_remaining_seconds") == {(): 20.0}
    assert 890 < read("lease_remaining_seconds")[()] <= 900
    assert watched([])("authority_remaining_seconds") == {(): 0.0}, "none before the first join"
