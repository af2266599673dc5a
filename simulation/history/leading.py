"""Which member of counting leads, and since when it has been at work without a pause.

Owns the reasons for which nothing can be asked of a leader: it began to lead a moment ago, it was stopped, or its
quorum is slow to answer, without which it can neither grant nor take back (rule 8).
"""

from collections.abc import Callable
from typing import Any

from simulation.history.records import Beat, Committed, Deposed, Led, Proposed, Record

PAUSE_S = 0.75      # without a sign for that long it was stopped, or had no processor
SLOW_S = 0.25       # for an entry: a request may wait for the one that is under way, and for its own


class Leading:
    def __init__(self) -> None:
        self._node = ""
        self._term = 0
        self._since = 0.0
        self._seen = 0.0
        self._proposed: float | None = None     # what is under way

    def only(self, handler: Callable[[Any], None]) -> Callable[[Any], None]:
        """For what the leader alone may say: one that was left behind and doesn't know it is passed over."""
        def of_leader(record: Record) -> None:
            if record.node == self._node:
                handler(record)

        return of_leader

    def led(self, led: Led) -> bool:
        """False: a later term has begun already, this is old news."""
        if led.term < self._term:
            return False
        self._node, self._term, self._since, self._seen = led.node, led.term, led.at, led.at
        self._proposed = None
        return True

    def deposed(self, deposed: Deposed) -> bool:
        """Whether nobody leads now."""
        if deposed.node != self._node:
            return False
        self._node = ""
        return True

    def proposed(self, proposed: Proposed) -> None:
        if proposed.node == self._node:
            self._proposed = proposed.at

    def committed(self, committed: Committed) -> None:
        if committed.node != self._node or self._proposed is None:
            return
        if committed.at - self._proposed > SLOW_S:
            self._since = committed.at
        self._proposed = None

    def beat(self, beat: Beat) -> float | None:
        """Since when this leader has been at work, on its own clock. None: it isn't, or isn't the one."""
        if beat.node != self._node:
            return None
        if beat.at - self._seen > PAUSE_S:
            self._since = beat.at
        self._seen = beat.at
        return self.at_work(beat)

    def at_work(self, record: Record) -> float | None:
        """As of its newest sign. ``record``: something else that the leader says."""
        return None if self._proposed is not None and record.at - self._proposed > SLOW_S else self._since
