"""What a placement process counts: the fleet, leases, and who leads.

Owns names and help texts. The numbers are the core's, read when somebody asks, and what passes its driver.
"""

from chassis.metrics import Counts, Metrics, Numbers, Tally, tallied
from placement.core import PlacementCore
from placement.leases import HoldState
from placement.messages import (
    Grant,
    LeadershipFailed,
    Publish,
    RecordFailed,
    RecordsFailed,
    RecordUnread,
    RoleChanged,
    TakeAway,
    WorkerReturned,
)


def measure(metrics: Metrics, core: PlacementCore) -> Tally:
    """Names what the core knows; what it returns has to see all that passes the core's driver."""
    tally = Tally()
    _leadership(metrics, core, tally)
    _fleet(metrics, core, tally)
    metrics.gauge("labda_placement_leases", "Workers by the state of their lease, at the active placement.",
                  lambda: tallied((h.state.value for h in core.holds.values()), (s.value for s in HoldState)),
                  ("state",))
    metrics.counter("labda_placement_leases_granted_total", "Leases granted, orders that were sent again included.",
                    tally.of(Grant))
    metrics.counter("labda_placement_leases_returned_total", "Workers that managers gave back.",
                    tally.of(WorkerReturned))
    metrics.counter("labda_placement_leases_taken_away_total",
                    "Leases that were ended without a return while their manager listened, by why.",
                    tally.by(TakeAway, lambda order: order.reason), ("reason",))
    return tally


def _leadership(metrics: Metrics, core: PlacementCore, tally: Tally) -> None:
    metrics.gauge("labda_placement_active", "1: this placement rules the region.", lambda: float(core.is_active))
    metrics.gauge("labda_placement_term", "Term of the leadership record, as last read.",
                  lambda: core.leadership.term)
    metrics.counter("labda_placement_role_changes_total", "How often this process came to lead, and how often it fell.",
                    tally.by(RoleChanged, lambda change: "leads" if change.active else "deposed",
                             ("leads", "deposed")),
                    ("role",))
    failures = tally.by(LeadershipFailed, lambda _: "leadership", ("leadership", "lease"))
    for kind in (RecordFailed, RecordsFailed, RecordUnread):
        tally.on(kind, lambda _: failures.add("lease"))
    metrics.counter("labda_placement_store_failures_total",
                    "Reads and compare-and-swaps of records that failed, or whose outcome is unknown.", failures,
                    ("record",))


def _fleet(metrics: Metrics, core: PlacementCore, tally: Tally) -> None:
    def nodes() -> Numbers:
        counts: dict[tuple[str, ...], float] = {}
        for node in core.nodes:
            key = (node.facts.service, node.condition)
            counts[key] = counts.get(key, 0.0) + 1
        return counts

    def memory(*, free: bool) -> float:
        capacities = [node.capacity for node in core.nodes.of_service("worker") if node.usable and node.capacity]
        return float(sum(c.memory_free_mb if free else c.memory_mb for c in capacities) << 20)

    metrics.gauge("labda_placement_nodes", "Processes that registered here, by service and health.", nodes,
                  ("service", "health"))
    metrics.gauge("labda_placement_workers_memory_bytes", "For sandboxes, on workers that may be placed on.",
                  lambda: memory(free=False))
    metrics.gauge("labda_placement_workers_memory_free_bytes", "Of that, what no sandbox has.",
                  lambda: memory(free=True))
    metrics.gauge("labda_placement_az_margin_bytes", "What the loss of an AZ leaves in the others once all that ran "
                  "there is made again, at the manager that it leaves least; below 0: so much is missing.",
                  lambda: {(margin.az,): float(margin.margin_mb << 20) for margin in core.margins()}, ("az",))
    metrics.counter("labda_placement_views_published_total", "Changes of the region's view.", tally.of(Publish))


def measure_enrolment(metrics: Metrics, outcomes: Counts) -> None:
    """For a placement that issues certificates; it counts by itself."""
    metrics.counter("labda_placement_certificates_total", "Certificates that were asked for here, by how it ended.",
                    outcomes, ("asked", "outcome"))
