"""Settings of a placement process.

Owns the numbers and the relations between them. ``FleetConfig`` is what the core decides by; it has no paths and no
addresses.
"""

from dataclasses import dataclass, field

from chassis.certificates import TlsFiles
from chassis.config import NodeConfig

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    suspect_s: float = 1.0              # silence after which a node is routed around; reversible
    dead_s: float = 3.0                 # silence after which a node counts as dead
    takeover_s: float = 0.5             # a manager whose stream broke is replaced after this, if it isn't back
    forget_s: float = 120.0             # for how long a dead node stays in the view, for people to see
    stall_s: float = 1.0                # a gap between two events that says that this process itself stood still
    renew_s: float = 1.0                # how often leadership is renewed, or looked at while standing by
    leadership_s: float = 3.0           # a leadership that isn't renewed for this long is taken over
    vacated_s: float = 1.5              # the same where the leader's own stream broke too: long enough to renew
    settle_s: float = 1.0               # since start: nodes of a running region register before the first view goes out
    retry_s: float = 1.0                # between looks at a record while storage is away
    lease_soft_s_min: float = 6 * HOUR_S
    lease_soft_s_max: float = 9 * HOUR_S
    lease_hard_after_soft_s: float = 1 * HOUR_S
    lease_drain_s: float = 900.0        # the longest function timeout: must fit between soft and hard end
    clock_drift: float = 0.001          # bound on how differently two hosts' clocks run, as a share
    time_scale: float = 1.0             # of lease lengths, the drain, and with it of how long anything may run
    az_reserve: bool = True             # room for what runs in one AZ is kept in the others: idle sandboxes give way
    managers_active_max: int = 0        # 0: as many as the workers of the AZ that has fewest

    def __post_init__(self) -> None:
        if not 0 < self.suspect_s < self.dead_s:
            raise ValueError(f"suspect_s ({self.suspect_s}) must lie between 0 and dead_s ({self.dead_s})")
        if self.renew_s * 2 > self.leadership_s:
            raise ValueError(f"leadership_s ({self.leadership_s}) must be at least twice renew_s ({self.renew_s})")
        if not self.renew_s < self.vacated_s <= self.leadership_s:
            raise ValueError(f"vacated_s ({self.vacated_s}) must lie between renew_s and leadership_s: a leader renews")
        if not 0 < self.lease_soft_s_min <= self.lease_soft_s_max:
            raise ValueError("lease_soft_s_min must be above 0 and at most lease_soft_s_max")
        if self.lease_soft_s_min < 6 * HOUR_S or self.lease_soft_s_max + self.lease_hard_after_soft_s > 10 * HOUR_S:
            raise ValueError("leases last 6 to 10 h (invariant 11): use time_scale to make them shorter for a test")
        if self.lease_drain_s * (1 + self.clock_drift) > self.lease_hard_after_soft_s:
            raise ValueError("lease_drain_s must fit between a lease's soft end and its hard end")
        if not 0 < self.time_scale <= 1:
            raise ValueError(f"time_scale is {self.time_scale}, it must be above 0 and at most 1")

    @property
    def drain_s(self) -> float:
        """Scaled: what managers and workers are told with each lease, so that nobody else has to know the scale."""
        return self.lease_drain_s * self.time_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """A placement's configuration file: [node], [fleet], and where lease records are kept."""

    node: NodeConfig
    store: str                          # as storage.open understands it
    store_tls: TlsFiles | None = None   # certificate for the stores of a cluster: the section [store_tls]
    fleet: FleetConfig = field(default_factory=FleetConfig)
    tick_s: float = 0.25                # between two looks at who is silent, and at the leadership record's age

    def __post_init__(self) -> None:
        if not self.fleet.renew_s + self.tick_s < self.fleet.vacated_s:
            raise ValueError(
                f"fleet.vacated_s ({self.fleet.vacated_s}) must be above fleet.renew_s ({self.fleet.renew_s}) and "
                f"tick_s ({self.tick_s}) together: a leader whose last renewal is older decides nothing"
            )
