"""What bars a start besides the sandbox itself: fences, authority, and ids that were refused or ran before.

Owns three small tables. Refuses to know sandboxes and managers. Times are monotonic seconds that come with each event.
"""

from collections import deque

from worker import messages as m


class Fences:
    """One watermark per frontend: every epoch up to it is fenced. Never forgotten (counting, rule 5)."""

    def __init__(self) -> None:
        self._watermarks: dict[str, int] = {}

    def raise_to(self, session: m.Session) -> None:
        known = self._watermarks.get(session.frontend, -1)
        self._watermarks[session.frontend] = max(known, session.epoch)

    def cover(self, session: m.Session) -> bool:
        return session.epoch <= self._watermarks.get(session.frontend, -1)


class Barred:
    """Invocation ids that must never start here: refused ones, and those that started once.

    "For good" needs no endless table: a Start can reach this worker only while the stream that carries it lives, and a
    stream whose peer is silent for about 3.5 s is cut, so that what was sent arrives within seconds or never. Ids are
    kept ``keep_s`` (far above that), and at most ``limit`` of them: past it the oldest go first.
    """

    def __init__(self, *, keep_s: float, limit: int) -> None:
        self._keep_s = keep_s
        self._limit = limit
        self._ids: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def add(self, invocation: str, now: float) -> None:
        if invocation not in self._ids:
            self._ids.add(invocation)
            self._order.append((now, invocation))
        while self._order and (self._order[0][0] + self._keep_s < now or len(self._order) > self._limit):
            self._ids.discard(self._order.popleft()[1])

    def __contains__(self, invocation: str) -> bool:
        return invocation in self._ids

    def __len__(self) -> int:
        return len(self._ids)


class Authority:
    """The right to start anything, from the ledger's renewals (rule 7). None before the first join."""

    def __init__(self) -> None:
        self.joined = False
        self.evicted = False
        self.until = float("-inf")

    def renew(self, until: float) -> None:
        self.until = max(self.until, until)

    def missing(self, now: float) -> str:
        """Why nothing may start; empty when it may."""
        if self.evicted:
            return "counting evicted this incarnation of the worker"
        if not self.joined:
            return "this worker has not joined counting yet: it doesn't know the fences"
        if now >= self.until:
            return "no member of counting renewed this worker's authority in time"
        return ""
