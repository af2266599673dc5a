"""What a worker manager counts: sandboxes, who waits for them, reservations, and its leases.

Owns names and help texts. The numbers are the core's, read when somebody asks, and what passes its driver.
"""

from chassis.metrics import Metrics, Tally, tallied
from worker_manager.core import ManagerCore
from worker_manager.leases import LeaseState
from worker_manager.messages import (
    AskPlacement,
    Create,
    CreateFailed,
    Destroy,
    Granted,
    Lost,
    NoCapacity,
    Placed,
    Raise,
    Ready,
    Refused,
    Reserved,
    RoleGiven,
    TellReturned,
)
from worker_manager.sandboxes import State

_REFUSALS = (
    "NOT_ACTIVE", "NOT_MINE", "NO_CAPACITY", "UNKNOWN_RUNTIME", "SCALING_RATE", "SHED", "CREATE_FAILED", "REVISED",
)


def measure(metrics: Metrics, core: ManagerCore) -> Tally:
    """Names what the core knows; what it returns has to see all that passes the core's driver."""
    tally = Tally()
    metrics.gauge("labda_manager_active", "1: this manager serves functions.", lambda: float(core.active))
    metrics.counter("labda_manager_roles_given_total", "Words of placement on this manager's role.",
                    tally.by(RoleGiven, lambda role: "active" if role.active else "standby", ("active", "standby")),
                    ("role",))
    _sandboxes(metrics, core, tally)
    _requests(metrics, core, tally)
    _leases(metrics, core, tally)
    return tally


def _sandboxes(metrics: Metrics, core: ManagerCore, tally: Tally) -> None:
    sandboxes = core.supply.sandboxes
    states = [state.value for state in State if state is not State.GONE]
    metrics.gauge("labda_manager_sandboxes",
                  "Sandboxes by state; those being placed and starting are the creates in progress.",
                  lambda: tallied((s.state.value for s in sandboxes.by_name.values()), states), ("state",))
    metrics.counter("labda_manager_creates_total", "Orders to workers to make a sandbox, retries included.",
                    tally.of(Create))
    metrics.counter("labda_manager_create_refusals_total", "Creates that a worker had no room for: tried elsewhere.",
                    tally.of(NoCapacity))
    metrics.counter("labda_manager_create_failures_total", "Sandboxes that could not be made.", tally.of(CreateFailed))
    metrics.counter("labda_manager_sandboxes_ready_total", "Sandboxes that got ready.", tally.of(Ready))
    metrics.counter("labda_manager_destroys_total", "Orders to workers to destroy an idle sandbox.", tally.of(Destroy))
    metrics.counter("labda_manager_placements_total", "Questions to placement.", tally.of(AskPlacement))
    metrics.counter("labda_manager_placements_answered_total",
                    "Their answers; \"own\": placement was away or too slow, and the manager ranked by itself.",
                    tally.by(Placed, lambda answer: "own" if answer.workers is None else "placement",
                             ("own", "placement")),
                    ("by",))


def _requests(metrics: Metrics, core: ManagerCore, tally: Tally) -> None:
    metrics.gauge("labda_manager_requests_waiting", "Requests that wait for a sandbox.",
                  lambda: len(core.supply.waiting))
    metrics.gauge("labda_manager_sandboxes_waiting_for_room", "New sandboxes that no worker has room for yet.",
                  lambda: core.supply.room.waiting)
    metrics.counter("labda_manager_reservations_total", "Reservations given, of warm sandboxes and of new ones.",
                    tally.by(Reserved, lambda given: "cold" if given.cold else "warm", ("cold", "warm")), ("start",))
    metrics.counter("labda_manager_refusals_total", "Requests for a reservation that were refused, by why.",
                    tally.by(Refused, lambda refusal: refusal.reason.lower(), map(str.lower, _REFUSALS)), ("reason",))
    metrics.counter("labda_manager_takebacks_total", "Reservations taken back at the worker, by a higher sequence.",
                    tally.of(Raise))


def _leases(metrics: Metrics, core: ManagerCore, tally: Tally) -> None:
    metrics.gauge("labda_manager_leases", "Workers that this manager holds, by state.",
                  lambda: tallied((lease.state.value for lease in core.supply.leases.values()),
                                  (state.value for state in LeaseState)),
                  ("state",))
    metrics.counter("labda_manager_leases_granted_total", "Workers that placement gave.", tally.of(Granted))
    metrics.counter("labda_manager_leases_lost_total", "Workers that placement took away.", tally.of(Lost))
    metrics.counter("labda_manager_leases_returned_total", "Workers given back, empty.", tally.of(TellReturned))
