"""Which outcome an invoke is counted under: a person who looks at the numbers has to know whose fault it was."""

import asyncio

import pytest

from chassis.faults import Fault, FaultCode
from frontend.api.body import Disconnected
from frontend.api.ports import Deleted, Throttled, Unavailable
from frontend.counts import OUTCOMES, InvokeCounts
from frontend.phases import Phases
from protos import worker_pb2


class At:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.mark.parametrize(("error", "labels"), [
    (Throttled("ConcurrentInvocationLimitExceeded", {}), ("throttled", "ConcurrentInvocationLimitExceeded")),
    (Unavailable("No permit.", {"reason": "NO_CAPACITY"}), ("refused", "no_capacity")),
    (Unavailable("No permit."), ("refused", "unavailable")),
    (Fault("the stream broke", code=FaultCode.UNAVAILABLE), ("failed", "unavailable")),
    (RuntimeError("a bug"), ("failed", "bug")),
    (Deleted(), ("refused", "deleted")),
    (Disconnected(), ("cancelled", "")),
    (asyncio.CancelledError(), ("cancelled", "")),
])
def test_what_is_no_answer_of_the_function(error, labels):
    counts = InvokeCounts()
    counts.failed(error)
    assert {key: count for key, count in counts.outcomes.items() if count} == {labels: 1}
    assert labels[0] in OUTCOMES


@pytest.mark.parametrize(("status", "labels"), [
    ("success", ("ok", "")), ("", ("ok", "")), ("error", ("function_error", "error")),
    ("timeout", ("function_error", "timeout")),
])
def test_what_is_an_answer(status, labels):
    counts = InvokeCounts()
    counts.answered(status)
    assert counts.outcomes[labels] == 1


def test_a_cold_start_is_told_by_phase_a_warm_one_as_a_whole():
    counts, clock = InvokeCounts(), At()
    warm = Phases(clock)
    clock.now = 0.004
    counts.took(warm)
    cold = Phases(clock)
    cold.made(worker_pb2.ColdPhases(place_ms=1, code_ms=3, sandbox_ms=9, runtime_ms=45, init_ms=2))
    clock.now = 0.104
    cold.answered(worker_pb2.InvokeFrame.Result(duration_ms=30))
    counts.took(cold)
    assert (sum(counts.seconds["warm",].counts), sum(counts.seconds["cold",].counts)) == (1, 1)
    assert counts.seconds["cold",].sum == pytest.approx(0.1)
    assert {phase: round(found.sum * 1000, 3) for (phase,), found in counts.cold.items()} == {
        "permit": 0, "place": 1, "code": 3, "sandbox": 9, "runtime": 45, "init": 2, "handler": 30,
    }
