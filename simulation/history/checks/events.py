"""Invariants 3 and 4: an accepted event is run or dead-lettered, and isn't tried more often than it may be."""

from collections import Counter
from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.records import Closed, DeadLettered, EventAccepted, EventRan, Record

_COUNTED = frozenset({"success", "error"})      # throttles and system errors use up no retry


class EventsAreHandled(Check):
    """3: at least one completed run, or exactly one dead-letter record. Never neither."""

    number = 3

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._accepted: dict[str, EventAccepted] = {}
        self._done: set[str] = set()
        self._letters: dict[str, DeadLettered] = {}
        return {EventAccepted: self._accept, EventRan: self._ran, DeadLettered: self._letter, Closed: self._closed}

    def _accept(self, record: EventAccepted) -> None:
        self._accepted.setdefault(record.event, record)

    def _ran(self, record: EventRan) -> None:
        if record.outcome == "success":
            self._done.add(record.event)

    def _letter(self, record: DeadLettered) -> None:
        before = self._letters.setdefault(record.event, record)
        if before is not record:
            self.violated(f"event {record.event} was dead-lettered twice", before, record)

    def _closed(self, closed: Closed) -> None:
        for event, accepted in self._accepted.items():
            if event not in self._done and event not in self._letters:
                self.violated(f"event {event} was accepted, and neither run nor dead-lettered", accepted, closed)


class RetriesAreBounded(Check):
    """4: retries of an event <= configured, throttles and system errors aside."""

    number = 4

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._accepted: dict[str, EventAccepted] = {}
        self._tries: Counter[str] = Counter()
        return {EventAccepted: self._accept, EventRan: self._ran}

    def _accept(self, record: EventAccepted) -> None:
        self._accepted.setdefault(record.event, record)

    def _ran(self, record: EventRan) -> None:
        accepted = self._accepted.get(record.event)
        if record.outcome not in _COUNTED or accepted is None:
            return
        self._tries[record.event] += 1
        retries = self._tries[record.event] - 1
        if retries > accepted.retries:
            self.violated(
                f"event {record.event} was retried {retries} times, {accepted.retries} are allowed", accepted, record
            )
