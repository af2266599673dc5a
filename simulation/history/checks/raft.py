"""Invariant 14: one leader per term, applied logs prefix-equal, everything acknowledged is in every later leader's
log.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from simulation.history.invariant import Check, Handler
from simulation.history.records import Applied, Committed, Led, Life, Record


@dataclass(frozen=True, slots=True)
class _Leadership:
    led: Led
    applied: int    # the newest entry that it had applied when it began to lead; -1: not known


class LogsAgree(Check):
    """14."""

    number = 14

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._leaders: dict[int, _Leadership] = {}          # by term
        self._terms: dict[str, int] = {}                    # the newest that a member led in
        self._entries: dict[int, Applied | Committed] = {}  # by index
        self._links: dict[int, Applied] = {}                # by index: who said first which entry is before it
        self._position: dict[str, int] = {}
        self._promised: dict[int, Committed] = {}           # the highest, by term
        return {Led: self._led, Applied: self._applied, Committed: self._committed, Life: self._life}

    def _life(self, life: Life) -> None:
        self._position.pop(life.node, None)

    def _led(self, led: Led) -> None:
        other = self._leaders.get(led.term)
        if other is not None and other.led.node != led.node:
            self.violated(f"{other.led.node} and {led.node} led in term {led.term}", other.led, led)
        self._terms[led.node] = led.term
        leadership = self._leaders[led.term] = _Leadership(led, self._position.get(led.node, -1))
        for term, committed in self._promised.items():
            self._compare(leadership, term, committed)

    def _applied(self, applied: Applied) -> None:
        self._same(applied)
        self._position[applied.node] = applied.index
        if applied.after < 0:
            return
        first = self._links.setdefault(applied.index, applied)
        if first.after != applied.after:
            self.violated(
                f"before entry {applied.index} {first.node} applied {first.after} and {applied.node} {applied.after}",
                first, applied,
            )

    def _committed(self, committed: Committed) -> None:
        self._same(committed)
        term = self._terms.get(committed.node)
        if term is None:
            return
        before = self._promised.get(term)
        if before is None or committed.index > before.index:
            self._promised[term] = committed
            for leadership in self._leaders.values():
                self._compare(leadership, term, committed)

    def _same(self, entry: Applied | Committed) -> None:
        first = self._entries.setdefault(entry.index, entry)
        if first.digest != entry.digest:
            self.violated(f"entry {entry.index} of {first.node} and of {entry.node} differ", first, entry)

    def _compare(self, leadership: _Leadership, term: int, committed: Committed) -> None:
        led = leadership.led
        if led.term > term and 0 <= leadership.applied < committed.index:
            self.violated(
                f"entry {committed.index} was acknowledged in term {term}, {led.node} leads in term {led.term} with "
                f"entries up to {leadership.applied}", committed, led,
            )
