"""One worker's lease as placement holds it: granted, returned, granted again, under numbers that only grow.

Owns the states of a hold and what its record in storage says. Refuses to know why a worker is granted to whom
(``placement.roles``).
"""

import enum

from chassis.machine import Story, Transitions
from placement.config import FleetConfig
from placement.messages import LeaseDrawn, RecordFailed, RecordWritten, WorkerReturned
from storage.interfaces import LeaseRecord, Stored


class HoldState(enum.Enum):
    FREE = "free"                # may be granted, under the next number
    DRAWING = "drawing"          # a manager is chosen, the length is being drawn
    GRANTING = "granting"        # the compare-and-swap is on its way
    LEASED = "leased"
    FREEING = "freeing"          # returned; the compare-and-swap that says so is on its way
    UNSURE = "unsure"            # a compare-and-swap failed or its outcome is unknown: being read again


class Chosen:
    """A manager was chosen for a free worker."""


class Dropped:
    """The choice no longer stands: the worker or the manager went away before the record was written."""


class TakenOver:
    """The lease is over without a return: another incarnation of the worker, a dead manager or worker, the hard end."""


class FoundFree:
    """Read again: nobody holds the worker."""


class FoundLeased:
    """Read again: the record names a holder."""


HOLDS: Transitions[HoldState] = Transitions({
    (HoldState.FREE, Chosen): HoldState.DRAWING,
    (HoldState.FREE, FoundLeased): HoldState.LEASED,
    (HoldState.DRAWING, Dropped): HoldState.FREE,
    (HoldState.DRAWING, LeaseDrawn): HoldState.GRANTING,
    (HoldState.GRANTING, RecordWritten): HoldState.LEASED,
    (HoldState.GRANTING, RecordFailed): HoldState.UNSURE,
    (HoldState.LEASED, WorkerReturned): HoldState.FREEING,
    (HoldState.LEASED, TakenOver): HoldState.FREE,
    (HoldState.FREEING, RecordWritten): HoldState.FREE,
    (HoldState.FREEING, RecordFailed): HoldState.UNSURE,
    (HoldState.UNSURE, FoundFree): HoldState.FREE,
    (HoldState.UNSURE, FoundLeased): HoldState.LEASED,
})


class Hold:
    """One worker. ``record`` is what is (or, in GRANTING and FREEING, is about to be) in storage."""

    __slots__ = ("hard_end", "incarnation", "manager", "manager_nonce", "number", "read_at", "record", "returned",
                 "revision", "soft_end", "state", "story", "worker")

    def __init__(self, worker: str, incarnation: str) -> None:
        self.worker = worker
        self.incarnation = incarnation      # of the worker, as it registered; empty: not seen yet
        self.state = HoldState.FREE
        self.manager = ""                   # holder, or the one chosen
        self.manager_nonce: int | None = None  # of the process that was told; None: granted before our time
        self.number = 0                     # highest number ever given
        self.revision = 0
        self.record: LeaseRecord | None = None
        self.soft_end = 0.0                 # monotonic seconds of this process
        self.hard_end = 0.0
        self.returned = 0                   # number of the lease that its manager gave back
        self.read_at = 0.0
        self.story = Story()

    def move(self, event: type, now: float) -> None:
        self.story.tell(now, event.__name__)
        self.state = HOLDS.next(self.state, event, self.story)

    def adopt(self, stored: Stored[LeaseRecord] | None, fence: int, *, wall: float, now: float) -> bool:
        """Takes over what storage says. Whether the worker is leased by that."""
        self.number = max(self.number, fence)
        self.revision = stored.revision if stored else 0
        self.record = stored.value if stored else None
        holder = stored.value.manager if stored else ""
        if stored is not None and holder and stored.value.number != self.returned:
            self.number = max(self.number, stored.value.number)
            self.soft_end = now + stored.value.soft_end - wall
            self.hard_end = now + stored.value.hard_end - wall
            if holder != self.manager:
                self.manager, self.manager_nonce = holder, None
            self.move(FoundLeased, now)
            return True
        if self.state is HoldState.UNSURE:
            self.free(FoundFree, now)
        return False

    def free(self, event: type, now: float) -> None:
        self.move(event, now)
        self.manager, self.manager_nonce = "", None

    def draw(self, fraction: float, host: str, *, wall: float, now: float, config: FleetConfig) -> LeaseRecord:
        """The record of a new lease under the next number. ``fraction`` is the random draw, in [0, 1)."""
        spread_s = config.lease_soft_s_max - config.lease_soft_s_min
        soft_s = (config.lease_soft_s_min + fraction * spread_s) * config.time_scale
        hard_s = soft_s + config.lease_hard_after_soft_s * config.time_scale
        self.number += 1
        self.soft_end, self.hard_end = now + soft_s, now + hard_s
        self.record = LeaseRecord(
            worker=self.worker, host=host, incarnation=self.incarnation, manager=self.manager, number=self.number,
            soft_end=wall + soft_s, hard_end=wall + hard_s, state="leased",
        )
        return self.record
