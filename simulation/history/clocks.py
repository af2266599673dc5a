"""Which of two stamps of different hosts was certainly the earlier one.

Owns the bounds of each node's clock. Refuses to guess: where the bounds leave two orders open, neither is certain.
"""

from simulation.history.records import Clock, Record

_SHARED = (0.0, 0.0)


class Clocks:
    """Bounds by node. Nodes that nobody spoke of share one clock: that of one machine, or of one simulation."""

    def __init__(self) -> None:
        self._bounds: dict[str, tuple[float, float]] = {}   # absent: (0, 0)

    def learn(self, clock: Clock) -> None:
        self._bounds[clock.node] = (clock.low_s, clock.high_s)

    def earliest(self, record: Record) -> float:
        """Seconds on the region's clock."""
        return record.at + self._bounds.get(record.node, _SHARED)[0]

    def latest(self, record: Record) -> float:
        return record.at + self._bounds.get(record.node, _SHARED)[1]

    def before(self, first: Record, second: Record) -> bool:
        """Whether ``first`` was certainly not after ``second``. One node's own stamps need no bounds."""
        return first.at <= second.at if first.node == second.node else self.latest(first) <= self.earliest(second)
