"""How often somebody may fail at enrolling before nobody looks at what he sends.

Owns one bucket per address. A secret of 256 bits isn't found by trying: this spares the store and the log.
"""

from collections import OrderedDict

from chassis.faults import Fault, FaultCode

FAILURES_MAX = 10           # at once; after that one in RECOVER_S
RECOVER_S = 6.0
ADDRESSES_MAX = 1000        # the longest untouched is forgotten


class Attempts:
    """Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()   # address -> level, at

    def admit(self, peer: str, now: float) -> None:
        """Raises Fault (exhausted, definite) for a peer that failed too often lately."""
        level = self._level(_address(peer), now)
        if level > FAILURES_MAX - 1:
            wait_s = (level - (FAILURES_MAX - 1)) * RECOVER_S
            raise Fault(
                f"too many failed attempts from this address: the next one is looked at in {wait_s:.0f} s",
                code=FaultCode.EXHAUSTED, definite=True,
            )

    def fail(self, peer: str, now: float) -> None:
        address = _address(peer)
        self._failures[address] = (self._level(address, now) + 1, now)
        self._failures.move_to_end(address)
        if len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def _level(self, address: str, now: float) -> float:
        level, at = self._failures.get(address, (0.0, now))
        return max(0.0, level - (now - at) / RECOVER_S)


def _address(peer: str) -> str:
    """Without the port: ``ipv4:10.0.0.1:4711`` as gRPC writes it."""
    return peer.rsplit(":", 1)[0]
