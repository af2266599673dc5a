"""Which placement is the active one: one record, changed by compare-and-swap, with a term that only grows.

Owns the record's life as one process sees it. A standby takes over when the holder gave the record up, or when it
stayed unchanged by the standby's own clock: for ``leadership_s``, or only ``vacated_s`` where the holder seems to be
gone (its stream here broke, or it is this process's own former self: who knows the region already comes first). Two
that believe to be active for a moment do no harm: every lease is a compare-and-swap too, and views carry the term.
"""

import enum
from typing import assert_never

from chassis.machine import Story, Transitions
from placement.config import FleetConfig
from placement.messages import (
    Drain,
    Effect,
    LeadershipFailed,
    LeadershipRead,
    LeadershipWritten,
    ReadLeadership,
    ReadRecords,
    RecordsFailed,
    RecordsRead,
    WriteLeadership,
)


class Stage(enum.Enum):
    STANDBY = "standby"
    CLAIMING = "claiming"        # the compare-and-swap is on its way
    LOADING = "loading"          # leader; reads the lease records
    SETTLING = "settling"        # leader; waits for the region's nodes to register
    ACTIVE = "active"
    ENDED = "ended"              # drained


class Claimed:
    """The record may be taken over."""


class Settled:
    """The region's nodes have had their time to register."""


class Deposed:
    """The record carries another term or another holder."""


_LED = (Stage.LOADING, Stage.SETTLING, Stage.ACTIVE)
STAGES: Transitions[Stage] = Transitions({
    (Stage.STANDBY, Claimed): Stage.CLAIMING,
    (Stage.CLAIMING, LeadershipWritten): Stage.LOADING,
    (Stage.CLAIMING, LeadershipFailed): Stage.STANDBY,
    (Stage.LOADING, RecordsRead): Stage.SETTLING,
    (Stage.LOADING, RecordsFailed): Stage.LOADING,
    (Stage.SETTLING, Settled): Stage.ACTIVE,
    **{(stage, LeadershipWritten): stage for stage in _LED},
    **{(stage, LeadershipFailed): stage for stage in _LED},
    **{(stage, Deposed): Stage.STANDBY for stage in _LED},
    **{(stage, Drain): Stage.ENDED for stage in Stage},
    (Stage.ENDED, LeadershipWritten): Stage.ENDED,
    (Stage.ENDED, LeadershipFailed): Stage.ENDED,
})


class Leadership:
    """``stage`` and ``term`` of this process. The caller starts the clock by the first ``tick``."""

    def __init__(self, *, node: str, config: FleetConfig) -> None:
        self.stage = Stage.STANDBY
        self.term = 0
        self.holder = ""                # by the last look at the record
        self._node = node
        self._config = config
        self._story = Story()
        self._revision = 0
        self._seen_at = 0.0             # when the record was first seen at _revision
        self._asked_at = float("-inf")
        self._asking: type[Effect] | None = None  # one look or write at a time
        self._started_at: float | None = None
        self._holder_gone = False
        self._confirmed_at = float("-inf")  # when the last question was asked whose answer was: it leads
        self._claimed = 0               # the highest term that this process wrote, or tried to
        self._settled_at = 0.0          # when the first view may go out

    @property
    def leads(self) -> bool:
        return self.stage in _LED

    @property
    def knows_leases(self) -> bool:
        """Whether it leads and has read the records."""
        return self.leads and self.stage is not Stage.LOADING

    def is_sure(self, now: float) -> bool:
        """Whether it certainly leads: nobody claims a record that was renewed so lately."""
        return self.leads and now - self._confirmed_at < self._config.vacated_s

    def move(self, event: type, now: float) -> None:
        self._story.tell(now, event.__name__)
        self.stage = STAGES.next(self.stage, event, self._story)

    def tick(self, now: float, *, holder_gone: bool) -> list[Effect]:
        """``holder_gone``: who leads by the record is dead as far as this process sees, or was started anew."""
        self._holder_gone = holder_gone
        if self._started_at is None:
            self._started_at = now
        if self.stage is Stage.SETTLING and now >= self._settled_at:
            self.move(Settled, now)
        if self._asking or self.stage in (Stage.CLAIMING, Stage.ENDED):
            return []
        impatient = self.stage is Stage.STANDBY and (holder_gone or self.holder == self._node)
        if now - self._asked_at < self._config.renew_s and not impatient:
            return []
        effects = [self._write(now)] if self.leads else self._look(now)
        if self.stage is Stage.LOADING:
            effects.append(ReadRecords(cause="loading"))
        return effects

    def handle(self, event: LeadershipRead | LeadershipWritten | LeadershipFailed, now: float) -> list[Effect]:
        asked, self._asking = self._asking, None
        match event:
            case LeadershipRead():
                return self._read(event, now)
            case LeadershipWritten():
                return self._written(event, now)
            case LeadershipFailed():
                return self._failed(asked, now)
            case _:
                assert_never(event)

    def drain(self, now: float) -> list[Effect]:
        led = self.leads
        self.move(Drain, now)
        return [WriteLeadership(term=self.term, expected=self._revision, lasts_s=0.0, cause="drain")] if led else []

    def _read(self, event: LeadershipRead, now: float) -> list[Effect]:
        stored = event.stored
        if self.stage is Stage.ENDED:
            return []
        if self.leads:
            return self._judge(event, now)
        if stored is None:
            self._settled_at = now      # nobody ever led: there is no region that would have to register first
            return self._claim(now)
        self._settled_at = (now if self._started_at is None else self._started_at) + self._config.settle_s
        if stored.revision != self._revision:
            self._revision, self._seen_at = stored.revision, now
        self.holder, self.term = stored.value.holder, stored.value.term
        gone = self._holder_gone or self.holder == self._node
        lapsed_s = self._config.vacated_s if gone else self._config.leadership_s
        mine = self.holder == self._node and self.term == self._claimed     # our claim did go through
        if mine or stored.value.renewed_until == 0 or now - self._seen_at >= lapsed_s * (1 + self._config.clock_drift):
            return self._claim(now)
        return []

    def _written(self, event: LeadershipWritten, now: float) -> list[Effect]:
        began = self.stage is Stage.CLAIMING
        self.move(LeadershipWritten, now)
        self._revision, self.holder = event.revision, self._node
        self._confirmed_at = self._asked_at
        return [ReadRecords(cause="leadership")] if began else []

    def _failed(self, asked: type[Effect] | None, now: float) -> list[Effect]:
        """Whatever went wrong with a write, the record says who leads. A failed look waits for its next time."""
        if self.stage is Stage.STANDBY:
            return []
        self.move(LeadershipFailed, now)
        ended = self.stage is Stage.ENDED
        return self._look(now) if asked is WriteLeadership and not ended else []

    def _judge(self, event: LeadershipRead, now: float) -> list[Effect]:
        """A leader looked because a write failed or its outcome is unknown."""
        stored = event.stored
        if stored is not None and stored.value.holder == self._node and stored.value.term == self.term:
            self._revision = stored.revision
            return []   # whether it stands still for others too long by now, only the next write says
        self.move(Deposed, now)
        self._revision, self._seen_at = (stored.revision if stored else 0), now
        self.holder = stored.value.holder if stored else ""
        return []

    def _claim(self, now: float) -> list[Effect]:
        self.move(Claimed, now)
        self.term += 1
        self._claimed = self.term
        return [self._write(now)]

    def _write(self, now: float) -> Effect:
        self._asking, self._asked_at = WriteLeadership, now
        return WriteLeadership(
            term=self.term, expected=self._revision, lasts_s=self._config.leadership_s, cause="leadership"
        )

    def _look(self, now: float) -> list[Effect]:
        self._asking, self._asked_at = ReadLeadership, now
        return [ReadLeadership(cause="leadership")]
