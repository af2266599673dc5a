"""How long sandboxes may outlive their worker's start authority. Pure: times come in, on the boot-time clock.

An invocation starts only under authority and runs at most for the worker's cap on timeouts. Counting gives permits of a
silent worker away after authority + cap + grace (and a bound on clock drift), so that by then nothing may be left that
could run: not an idle sandbox either, for which an agent that was stopped may have accepted a start. The dog is let
loose half a grace earlier: what is left of the grace is the time for destroying. Authority and grace are counting's
settings and come with each renewal; the cap is the worker's and was declared to counting.

Owns two instants. Refuses to know sandboxes, sockets and clocks.
"""

AHEAD_S_MAX = 3600.0
"""An authority that ends later than this from now is none that counting gives."""

GRACE_S_MAX = 120.0
"""Nor is a longer grace."""


class Watchdog:
    """One worker's. ``timeout_cap_s``: the longest timeout that is enforced there."""

    def __init__(self, *, timeout_cap_s: float) -> None:
        self._timeout_cap_s = timeout_cap_s
        self.until: float = float("-inf")       # nothing may be created from here on
        self.due: float | None = None           # everything begins to go then; None: there was no authority yet

    def renew(self, until: float, grace_s: float, now: float) -> None:
        """Authority lasts until then. It is never taken back, and none of an impossible length is believed."""
        if until <= self.until:
            return
        self.until = min(until, now + AHEAD_S_MAX)
        self.due = self.until + self._timeout_cap_s + min(grace_s, GRACE_S_MAX) / 2

    def missing(self, now: float) -> str:
        """Why no sandbox may be created; empty when one may."""
        if now < self.until:
            return ""
        if self.due is None:
            return "this worker has had no start authority yet"
        return f"this worker's start authority ended {now - self.until:.1f} s ago"

    def expired(self, now: float) -> bool:
        return self.due is not None and now >= self.due
