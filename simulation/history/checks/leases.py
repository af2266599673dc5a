"""Invariants 9, 10 and 11: who holds a worker, and until when."""

from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.records import Adopted, LeaseGranted, LeaseHeld, Made, Record, Returned, Start

LEASE_S_MIN, LEASE_S_MAX = 6 * 3600.0, 10 * 3600.0
_ROUNDING_S = 0.01      # a lease's length was computed from the time of another event
_ON_ITS_WAY_S = 2.0     # an order to adopt says what is left when it is sent: the worker's own margin (lease_margin_s)


class LeasesHold(Check):
    """9: at most one manager holds a worker per lease number; lease numbers strictly increase."""

    number = 9

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._holders: dict[tuple[str, int], LeaseGranted | LeaseHeld | Adopted] = {}
        self._granted: dict[str, LeaseGranted] = {}                 # the highest, by worker
        self._gave: dict[tuple[str, str], LeaseGranted] = {}        # the newest, by placement and worker
        self._adopted: dict[str, Adopted] = {}
        self._said: dict[tuple[str, str], LeaseHeld] = {}           # the newest, by worker and manager
        return {LeaseGranted: self._grant, LeaseHeld: self._said_held, Adopted: self._adopt}

    def _grant(self, grant: LeaseGranted) -> None:
        highest, own = self._granted.get(grant.worker), self._gave.get((grant.node, grant.worker))
        if own is not None and (grant.lease, grant.manager) == (own.lease, own.manager):
            # Said again: the order was lost with its stream. Also by one who doesn't know yet that it was replaced: a
            # worker that has heard of a newer lease refuses it (10).
            return
        self._gave[grant.node, grant.worker] = grant
        if highest is not None and (grant.lease, grant.manager) == (highest.lease, highest.manager):
            return  # its successor's word
        if highest is not None and grant.lease <= highest.lease and self.ground.clocks.before(highest, grant):
            self.violated(
                f"{grant.worker} was granted under {grant.lease} to {grant.manager} after {highest.lease} had been "
                "given", highest, grant,
            )
        if highest is None or grant.lease > highest.lease:
            self._granted[grant.worker] = grant
        self._held(grant.worker, grant)

    def _said_held(self, held: LeaseHeld) -> None:
        """By manager: one that was taken over from says its old number for a while."""
        before = self._said.get((held.worker, held.manager))
        if before is not None and held.lease < before.lease:
            self.violated(
                f"{held.manager} held {held.worker} under lease {held.lease} after {before.lease}", before, held
            )
        self._said[held.worker, held.manager] = held
        self._held(held.worker, held)

    def _adopt(self, adopted: Adopted) -> None:
        before = self._adopted.get(adopted.node)
        if before is not None and adopted.lease < before.lease:
            self.violated(
                f"{adopted.node} was adopted under {adopted.lease} after {before.lease}", before, adopted
            )
            return
        self._adopted[adopted.node] = adopted
        self._held(adopted.node, adopted)

    def _held(self, worker: str, record: LeaseGranted | LeaseHeld | Adopted) -> None:
        holder = self._holders.setdefault((worker, record.lease), record)
        if holder.manager != record.manager:
            self.violated(
                f"{worker} is {holder.manager}'s and {record.manager}'s under lease {record.lease}", holder, record
            )


class LeasesRule(Check):
    """10: a worker starts nothing for a lease number below the highest it has seen."""

    number = 10

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._adopted: dict[str, Adopted] = {}      # the highest, by worker
        return {Adopted: self._adopt, Start: self._start, Made: self._made}

    def _adopt(self, adopted: Adopted) -> None:
        before = self._adopted.get(adopted.node)
        if before is None or adopted.lease > before.lease:
            self._adopted[adopted.node] = adopted

    def _start(self, start: Start) -> None:
        self._may(start, f"starts {start.invocation}")

    def _made(self, made: Made) -> None:
        self._may(made, f"makes {made.sandbox}")

    def _may(self, record: Start | Made, what: str) -> None:
        held = self._adopted.get(record.node)
        if held is not None and record.lease != held.lease:
            self.violated(
                f"{record.node} {what} under lease {record.lease} and is held under {held.lease}", held, record
            )


class LeasesEnd(Check):
    """11: nothing starts after the worker's own lease deadline; 6 h <= lease <= 10 h; returned before its end."""

    number = 11

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._adopted: dict[str, Adopted] = {}
        self._first: dict[tuple[str, int, str], LeaseGranted | Adopted] = {}    # by worker, lease and manager
        return {
            LeaseGranted: self._grant, Adopted: self._adopt, Returned: self._returned, Start: self._start,
            Made: self._made,
        }

    def _grant(self, grant: LeaseGranted) -> None:
        scale = self.ground.time_scale
        shortest, longest = LEASE_S_MIN * scale, LEASE_S_MAX * scale
        if self._is_told_again(grant, grant.worker, _ROUNDING_S):
            shortest = 0.0      # to a manager whose stream broke: what is left of it
        if not shortest - _ROUNDING_S <= grant.hard_end_s <= longest + _ROUNDING_S:
            self.violated(
                f"lease {grant.lease} of {grant.worker} lasts {grant.hard_end_s:g} s, not {shortest:g} to "
                f"{longest:g} s", grant,
            )

    def _adopt(self, adopted: Adopted) -> None:
        before = self._adopted.get(adopted.node)
        if before is None or adopted.lease >= before.lease:
            self._adopted[adopted.node] = adopted
            self._is_told_again(adopted, adopted.node, _ON_ITS_WAY_S)

    def _is_told_again(self, record: LeaseGranted | Adopted, worker: str, spare_s: float) -> bool:
        """A lease ends when it was first said to: who is told again is told what is left."""
        key = worker, record.lease, record.manager
        first = self._first.setdefault(key, record)
        if isinstance(record, LeaseGranted) and isinstance(first, Adopted):     # its clock put it before its grant
            self._first[key] = record
            self._ends_by(record, first, worker, _ON_ITS_WAY_S)
            return False
        self._ends_by(first, record, worker, spare_s)
        return first is not record

    def _ends_by(
        self, first: LeaseGranted | Adopted, again: LeaseGranted | Adopted, worker: str, spare_s: float
    ) -> None:
        clocks = self.ground.clocks
        late_s = clocks.earliest(again) + _length_s(again) - clocks.latest(first) - _length_s(first)
        if late_s > spare_s:
            self.violated(
                f"lease {again.lease} of {worker} ends {late_s:.1f} s later than it was given for", first, again
            )

    def _returned(self, returned: Returned) -> None:
        self._before_the_end(returned, "was returned")

    def _start(self, start: Start) -> None:
        self._before_the_end(start, f"starts {start.invocation}")

    def _made(self, made: Made) -> None:
        self._before_the_end(made, f"makes {made.sandbox}")

    def _before_the_end(self, record: Record, what: str) -> None:
        adopted = self._adopted.get(record.node)
        if adopted is not None and record.at >= adopted.at + adopted.lasts_s:
            self.violated(
                f"{record.node} {what} at {record.at:.3f}, lease {adopted.lease} had ended at "
                f"{adopted.at + adopted.lasts_s:.3f}", adopted, record,
            )


def _length_s(record: LeaseGranted | Adopted) -> float:
    return record.hard_end_s if isinstance(record, LeaseGranted) else record.lasts_s
