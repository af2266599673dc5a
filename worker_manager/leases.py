"""The workers that this manager leases: from the grant to the return.

Owns the states of a lease, what is known of a worker's room, and the manager's own ranking for times without placement.
Refuses to know sandboxes' states; it is told their counts.
"""

import enum
from collections.abc import Iterable, Mapping

from chassis.machine import Story, Transitions
from worker_manager.messages import (
    DrainWorker,
    Granted,
    HandOver,
    Inventory,
    Leave,
    Lost,
    ReturnWorker,
    StaleLease,
    Tick,
    WorkerAway,
    WorkerReturned,
)


class LeaseState(enum.Enum):
    JOINING = "joining"          # granted, not adopted yet
    USABLE = "usable"
    AWAY = "away"                # the stream broke; it is being dialled
    DRAINING = "draining"        # nothing new; what runs finishes
    RETURNING = "returning"      # empty; the worker was asked to confirm
    OVER = "over"


_HELD = (LeaseState.JOINING, LeaseState.USABLE, LeaseState.AWAY, LeaseState.DRAINING, LeaseState.RETURNING)
LEASES: Transitions[LeaseState] = Transitions({
    (LeaseState.JOINING, Inventory): LeaseState.USABLE,
    (LeaseState.USABLE, Inventory): LeaseState.USABLE,
    (LeaseState.AWAY, Inventory): LeaseState.USABLE,
    (LeaseState.DRAINING, Inventory): LeaseState.DRAINING,
    (LeaseState.RETURNING, Inventory): LeaseState.RETURNING,
    (LeaseState.JOINING, WorkerAway): LeaseState.JOINING,
    (LeaseState.USABLE, WorkerAway): LeaseState.AWAY,
    (LeaseState.AWAY, WorkerAway): LeaseState.AWAY,
    (LeaseState.DRAINING, WorkerAway): LeaseState.DRAINING,
    (LeaseState.RETURNING, WorkerAway): LeaseState.RETURNING,
    (LeaseState.USABLE, DrainWorker): LeaseState.DRAINING,
    (LeaseState.AWAY, DrainWorker): LeaseState.DRAINING,
    (LeaseState.DRAINING, ReturnWorker): LeaseState.RETURNING,
    (LeaseState.JOINING, WorkerReturned): LeaseState.OVER,   # never adopted: there is nothing to drain
    (LeaseState.RETURNING, WorkerReturned): LeaseState.OVER,
    **{(state, Lost): LeaseState.OVER for state in _HELD},
    **{(state, StaleLease): LeaseState.OVER for state in _HELD},
    **{(state, Granted): LeaseState.OVER for state in _HELD},  # replaced by a lease with a higher number
    **{(state, Tick): LeaseState.OVER for state in _HELD},     # the hard end
    **{(state, Leave): LeaseState.OVER for state in _HELD},
    **{(state, HandOver): LeaseState.OVER for state in _HELD},
})


class Lease:
    """A worker under one lease number. Times are monotonic seconds."""

    __slots__ = ("address", "adopted", "az", "az_reserve", "connected", "drain_at", "hard_end", "host",
                 "invoke_address", "memory_free_mb", "memory_mb", "nonce", "number", "runtimes", "soft_end", "state",
                 "story", "worker")

    def __init__(self, granted: Granted, now: float) -> None:
        self.worker = granted.worker
        self.address = granted.address
        self.host = granted.host
        self.az = granted.az
        self.number = granted.lease
        self.soft_end = now + granted.soft_end_s
        self.hard_end = now + granted.hard_end_s
        # Also when placement is away at the soft end, and gave a soft end too late for the drain.
        self.drain_at = min(self.soft_end, self.hard_end - granted.drain_s)
        self.az_reserve = granted.az_reserve
        self.state = LeaseState.JOINING
        self.connected = False
        self.adopted = False             # once at least, under this number
        self.nonce = 0
        self.invoke_address = ""         # where frontends reach it
        self.memory_mb = 0
        self.memory_free_mb = 0          # by our own count between the worker's words
        self.runtimes: frozenset[str] = frozenset()
        self.story = Story()

    @property
    def usable(self) -> bool:
        return self.state is LeaseState.USABLE and self.connected

    def move(self, event: type, now: float) -> None:
        self.story.tell(now, f"{self.worker} lease {self.number} {self.state.name} {event.__name__}")
        self.state = LEASES.next(self.state, event, self.story)


def reserve_missing_mb(leases: Iterable[Lease], going_mb: int) -> int:
    """How much more would have to be free so that any one AZ could be lost and all that is elsewhere had its room.

    What is in use and free everywhere is the sum of all workers, so that the largest AZ's worth has to be free.
    ``going_mb``: of sandboxes that are being destroyed. 0 where nothing is reserved, or there is one AZ only.
    """
    azs: dict[str, int] = {}
    free_mb = going_mb
    for lease in leases:
        if lease.az_reserve and lease.usable:
            azs[lease.az] = azs.get(lease.az, 0) + lease.memory_mb
            free_mb += lease.memory_free_mb
    return max(0, max(azs.values()) - free_mb) if len(azs) > 1 else 0


def rank(leases: Iterable[Lease], *, az: str, same: Mapping[str, int]) -> list[str]:
    """The manager's own ranking, for when placement is away: spread over AZs, then the most free memory."""
    workers = list(leases)
    in_az: dict[str, int] = {}
    for lease in workers:
        in_az[lease.az] = in_az.get(lease.az, 0) + same.get(lease.worker, 0)
    workers.sort(key=lambda lease: (in_az[lease.az], lease.az != az, -lease.memory_free_mb, lease.worker))
    return [lease.worker for lease in workers]


def respread(ranking: Iterable[str], leases: Mapping[str, Lease], same: Mapping[str, int]) -> list[str]:
    """Placement's ranking by the newest counts: of requests that came together, each was ranked without the others."""
    in_az: dict[str, int] = {}
    for lease in leases.values():
        in_az[lease.az] = in_az.get(lease.az, 0) + same.get(lease.worker, 0)
    known = [worker for worker in ranking if worker in leases]
    return sorted(known, key=lambda worker: (in_az[leases[worker].az], same.get(worker, 0)))
