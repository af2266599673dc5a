"""Invariants 7, 8 and 12: what one sandbox serves, and what draining may not do to it."""

from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.records import (
    Adopted,
    Connected,
    Destroyed,
    Draining,
    End,
    Life,
    Lost,
    Made,
    Placed,
    Record,
    Start,
)


class RunsDontOverlap(Check):
    """7: never two runs at once in one sandbox."""

    number = 7

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._running: dict[str, Start] = {}    # by sandbox
        self._newest: dict[str, Start] = {}
        return {Start: self._start, End: self._end, Life: self._gone, Lost: self._gone}

    def _start(self, start: Start) -> None:
        before = self._running.get(start.sandbox)
        if before is not None:
            self.violated(
                f"{before.invocation} and {start.invocation} ran at once in {start.sandbox} (at {start.at:.3f})",
                before, start,
            )
        newest = self._newest.get(start.sandbox)
        if before is None and newest is not None and 0 < start.call <= newest.call:
            self.violated(f"call {start.call} of {start.sandbox} came after its call {newest.call}", newest, start)
        self._running[start.sandbox] = self._newest[start.sandbox] = start

    def _end(self, end: End) -> None:
        running = self._running.get(end.sandbox)
        if running is not None and running.invocation == end.invocation:
            del self._running[end.sandbox]

    def _gone(self, record: Life | Lost) -> None:
        for sandbox, start in list(self._running.items()):
            if start.node == record.node:
                del self._running[sandbox]


class SandboxesServeOne(Check):
    """8: a sandbox serves one (account, function, version, revision) for life."""

    number = 8

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._first: dict[str, Made | Start] = {}
        return {Made: self._serves, Start: self._serves}

    def _serves(self, record: Made | Start) -> None:
        first = self._first.setdefault(record.sandbox, record)
        if _identity(first) != _identity(record):
            self.violated(f"{record.sandbox} served {_told(first)} and {_told(record)}", first, record)


def _identity(record: Made | Start) -> tuple[str, str, str, int]:
    return record.account, record.function, record.version, record.revision


def _told(record: Made | Start) -> str:
    return f"{record.function} at revision {record.revision}" if record.revision else record.function


class DrainingIsGentle(Check):
    """12: nothing is placed on a draining worker and nothing is killed by draining."""

    number = 12

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._lease: dict[str, int] = {}
        self._drains: dict[tuple[str, str], Draining] = {}      # by who says so, and worker
        self._running: dict[str, Start] = {}                    # by sandbox
        return {
            Draining: self._drain, Connected: self._connect, Placed: self._placed, Adopted: self._adopt,
            Made: self._made, Start: self._start, End: self._end, Destroyed: self._destroyed, Life: self._gone,
            Lost: self._gone,
        }

    def _drain(self, record: Draining) -> None:
        self._drains[record.node, record.worker] = record

    def _connect(self, record: Connected) -> None:
        self._drains.pop((record.node, record.worker), None)

    def _placed(self, record: Placed) -> None:
        drain = self._drains.get((record.node, record.worker))
        if drain is not None:
            self.violated(
                f"{record.node} places {record.sandbox} on {record.worker}, which it drains", drain, record
            )

    def _adopt(self, record: Adopted) -> None:
        if record.lease > self._lease.get(record.node, 0):
            self._lease[record.node] = record.lease
            self._drains.pop((record.node, record.node), None)

    def _made(self, record: Made) -> None:
        drain = self._drains.get((record.node, record.node))
        if drain is not None:
            self.violated(f"{record.node} makes {record.sandbox} while it drains", drain, record)

    def _start(self, start: Start) -> None:
        self._running[start.sandbox] = start

    def _end(self, end: End) -> None:
        self._running.pop(end.sandbox, None)

    def _destroyed(self, record: Destroyed) -> None:
        start = self._running.get(record.sandbox)
        if start is not None:
            self.violated(
                f"{record.node} destroys {record.sandbox} while {start.invocation} runs on it", start, record
            )

    def _gone(self, record: Life | Lost) -> None:
        for sandbox, start in list(self._running.items()):
            if start.node == record.node:
                del self._running[sandbox]
        self._drains = {key: drain for key, drain in self._drains.items() if key[0] != record.node}
