"""Which processes an embedded cluster is made of: names, AZs, pretend hosts.

Owns the numbers and the names. Refuses to know files, ports and how a process is started.
"""

from dataclasses import dataclass

AZS_MAX = 9
COUNTING_MIN = 3
COUNTING_MAX = 5

# The order in which a cluster is taken down: first what lets requests in, last what everything else leans on.
DRAIN_ORDER = ("frontend", "worker_manager", "worker", "placement", "counting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process: what its certificate says."""

    service: str
    node: str
    az: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """An embedded cluster's shape."""

    azs: int = 3
    workers_per_az: int = 1
    frontends_per_az: int = 1
    managers: int = 2           # one more than are active: it stands by and takes over
    placements: int = 2         # one leads, the others stand by

    def __post_init__(self) -> None:
        for name, low, high in (
            ("azs", 1, AZS_MAX), ("workers_per_az", 1, 20), ("frontends_per_az", 1, 9),
            ("managers", 1, 9), ("placements", 1, 9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name.replace('_', '-')} is {value}, it must be between {low} and {high}")

    @property
    def counting_members(self) -> int:
        """An odd number, one per AZ where there are enough AZs.

        Never below three: with fewer AZs some share one, so that a killed member stops nobody in a small cluster
        either. Never above five: every grant waits for a majority.
        """
        odd = self.azs if self.azs % 2 else self.azs - 1
        return min(COUNTING_MAX, max(COUNTING_MIN, odd))

    def az(self, index: int) -> str:
        return f"az{index % self.azs + 1}"

    def members(self) -> tuple[Member, ...]:
        """Every process, seeds (counting, placement) first."""
        members = [self._control("counting", "counting", i) for i in range(self.counting_members)]
        members += [self._control("placement", "placement", i) for i in range(self.placements)]
        # From the second AZ on, where there is one: one host's death should not take both actives.
        members += [self._control("worker_manager", "manager", i, first=1) for i in range(self.managers)]
        for az in (self.az(i) for i in range(self.azs)):
            members += [
                Member(service="frontend", node=f"frontend-{az}-{i}", az=az, host=f"control-{az}")
                for i in range(1, self.frontends_per_az + 1)
            ]
            members += [
                Member(service="worker", node=f"worker-{az}-{i}", az=az, host=f"host-{az}-{i}")
                for i in range(1, self.workers_per_az + 1)
            ]
        return tuple(members)

    def _control(self, service: str, prefix: str, index: int, *, first: int = 0) -> Member:
        az = self.az(index + first)
        again = index // self.azs
        name = f"{prefix}-{az}" if again == 0 else f"{prefix}-{az}-{again + 1}"
        return Member(service=service, node=name, az=az, host=f"control-{az}")
