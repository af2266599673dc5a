"""What a worker counts: slots, memory, starts and why some were refused, what its sandboxes took to make.

Owns names and help texts. The numbers are the core's, read when somebody asks, and what passes its driver. The spawner
is another process: what it takes is not in these.
"""

from chassis.clock import Clock
from chassis.metrics import Metrics, Tally, histograms, tallied
from worker import messages as m
from worker.code_cache import CodeCache
from worker.core import WorkerCore
from worker.slots import SlotState

PHASES = ("code", "sandbox", "runtime", "init")
_PHASE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def measure(metrics: Metrics, core: WorkerCore, clock: Clock) -> Tally:
    """Names what the core knows; what it returns has to see all that passes the core's driver."""
    tally = Tally()
    _slots(metrics, core, tally)
    _starts(metrics, core, tally)
    _rights(metrics, core, tally, clock)
    return tally


def _slots(metrics: Metrics, core: WorkerCore, tally: Tally) -> None:
    states = [state.value for state in SlotState if state is not SlotState.GONE]
    metrics.gauge("labda_worker_slots", "Sandboxes on this host, by state.",
                  lambda: tallied((slot.state.value for slot in core.slots.values()), states), ("state",))
    metrics.gauge("labda_worker_memory_bytes", "For all sandboxes of this host.", lambda: core.memory_mb << 20)
    metrics.gauge("labda_worker_memory_free_bytes", "Of that, what no sandbox has.",
                  lambda: core.memory_free_mb << 20)
    metrics.counter("labda_worker_sandboxes_begun_total", "Sandboxes that this worker began to make.",
                    tally.of(m.BuildSandbox))
    metrics.counter("labda_worker_sandboxes_failed_total", "Sandboxes that could not be made.",
                    tally.by(m.BuildFailed, lambda event: event.error_type), ("error",))
    metrics.counter("labda_worker_sandboxes_broken_total", "Sandboxes that failed after they were made.",
                    tally.of(m.SandboxBroken))
    metrics.counter("labda_worker_sandboxes_gone_total", "Sandboxes that were destroyed.", tally.of(m.SandboxGone))
    phases = histograms(_PHASE_BOUNDS_S, PHASES)

    def ready(event: m.InitDone) -> None:
        for phase in PHASES:
            phases[phase,].observe(getattr(event.phases, f"{phase}_ms") / 1000)

    tally.on(m.InitDone, ready)
    metrics.histogram("labda_worker_sandbox_phase_seconds", "What each sandbox that got ready took, by phase.", phases,
                      ("phase",))


def _starts(metrics: Metrics, core: WorkerCore, tally: Tally) -> None:
    metrics.gauge("labda_worker_invocations_running", "Invocations that began and have not ended.",
                  lambda: len(core.runs))
    metrics.counter("labda_worker_starts_total", "Invocations that began here.", tally.of(m.StartInvocation))
    metrics.counter("labda_worker_ends_total", "Invocations that ended here.", tally.of(m.InvocationEnded))
    metrics.counter("labda_worker_start_refusals_total", "Starts refused for certain, by why.",
                    tally.by(m.RefuseStart, lambda effect: effect.reason.name.lower(),
                             (reason.name.lower() for reason in m.Refusal)),
                    ("reason",))


def _rights(metrics: Metrics, core: WorkerCore, tally: Tally, clock: Clock) -> None:
    metrics.gauge("labda_worker_authority_remaining_seconds", "For how long this worker may start without a renewal.",
                  lambda: max(0.0, core.authority.until - clock.monotonic()))
    metrics.gauge("labda_worker_lease_remaining_seconds", "Until the end of the lease that this worker is held under.",
                  lambda: max(0.0, core.lease_deadline - clock.monotonic()))
    metrics.gauge("labda_worker_lease", "Number of that lease.", lambda: core.lease)
    metrics.counter("labda_worker_fences_total", "Fences that counting sent.", tally.of(m.Fenced))
    metrics.counter("labda_worker_renewals_total", "Renewals of the authority that counting acknowledged.",
                    tally.of(m.AuthorityRenewed))


def measure_code(metrics: Metrics, code: CodeCache) -> None:
    metrics.counter("labda_worker_code_requests_total", "Code that a new sandbox needed: it was here (cached), came "
                    "from a frontend (fetched), was coming already (joined) or could not be had (failed).",
                    code.counts, ("outcome",))
