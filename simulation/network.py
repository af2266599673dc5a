"""The simulated network and the way to the store: seeded delays, faults by hand, and troubles that come and go.

Owns how long a message or a write takes and whether it arrives. Delivery itself is ``chassis.memory_network``'s.
"""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

from chassis.memory_network import Link
from simulation.processes import Now
from storage.faults import OutcomeUnknown

# Who is cut off is noticed by what a transport sends by itself: gRPC's pings and an invoke stream's (chassis). A
# method that isn't named has the rare pings, and its ends mostly notice sooner by what their peers no longer say.
NOTICED_S = {"Worker/Invoke": 3.5, "Worker/Manage": 1.5, "WorkerManager/Reserve": 1.5}
RARELY_NOTICED_S = 5.5
RAFT = "Raft/Exchange"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trouble:
    """What ails messages from ``senders`` to ``receivers`` for a while; several add up.

    ``share`` of the messages are late by up to ``late_s``; with ``lost`` of them the stream breaks and what was on its
    way is gone, or the call fails. ``silent``: nothing arrives any more and nobody is told, as with a cable that is
    pulled. Of Raft's messages ``repeated`` come twice, the second time after what was sent behind them: gRPC never does
    that to anybody.
    """

    senders: frozenset[str]
    receivers: frozenset[str]
    share: float = 1.0
    late_s: float = 0.0
    lost: float = 0.0
    silent: bool = False
    repeated: float = 0.0

    def ails(self, sender: str, receiver: str) -> bool:
        return sender in self.senders and receiver in self.receivers


class SeededLink(Link):
    """Delays drawn from one seed: ``floor_s`` plus an exponential tail of mean ``tail_s``; cuts by pair of nodes.

    A pair that is cut breaks at once; who is parted from others hears nothing of them, which takes a while to notice.
    """

    def __init__(self, rng: random.Random, loop: Now, *, floor_s: float = 0.0002, tail_s: float = 0.0003) -> None:
        self._rng = rng
        self._loop = loop
        self._floor_s = floor_s
        self._tail_s = tail_s
        self._cuts: set[tuple[str, str]] = set()
        self._parted: frozenset[str] = frozenset()
        self._stalled: dict[str, float] = {}    # until when, by node
        self._troubles: dict[Trouble, None] = {}

    def delay_s(self, sender: str, receiver: str) -> float | None:
        if (sender, receiver) in self._cuts or self._is_silent(sender, receiver):
            return None
        late_s = 0.0
        for trouble in self._troubles:
            if not trouble.ails(sender, receiver):
                continue
            if trouble.lost and self._rng.random() < trouble.lost:
                return None
            if trouble.late_s and self._rng.random() < trouble.share:
                late_s += self._rng.uniform(0.0, trouble.late_s)
        until = max(self._stalled.get(sender, 0.0), self._stalled.get(receiver, 0.0))
        held_s = max(0.0, until - self._loop.now)
        return held_s + late_s + self._floor_s + self._rng.expovariate(1 / self._tail_s)

    def cut(self, sender: str, receiver: str) -> None:
        """One way: what ``sender`` sends breaks the connection instead of arriving."""
        self._cuts.add((sender, receiver))

    def part(self, nodes: Iterable[str]) -> None:
        """Between these and all others nothing arrives any more, and nobody is told; among themselves all is well."""
        self._parted = frozenset(nodes)

    def noticed_s(self, sender: str, receiver: str, method: str) -> float:
        return silence_s(method) if self._is_silent(sender, receiver) else 0.0

    def repeated_s(self, sender: str, receiver: str, method: str) -> float | None:
        if method != RAFT:
            return None
        for trouble in self._troubles:
            if trouble.repeated and trouble.ails(sender, receiver) and self._rng.random() < trouble.repeated:
                return self._rng.uniform(0.0, trouble.late_s)
        return None

    def begin(self, trouble: Trouble) -> None:
        self._troubles[trouble] = None

    def end(self, trouble: Trouble) -> None:
        self._troubles.pop(trouble, None)

    def _is_silent(self, sender: str, receiver: str) -> bool:
        return (sender in self._parted) != (receiver in self._parted) or any(
            trouble.silent and trouble.ails(sender, receiver) for trouble in self._troubles
        )

    def stall(self, node: str, for_s: float) -> None:
        """As with SIGSTOP and SIGCONT, seen from outside: nothing breaks, and nothing comes or goes before the end."""
        self._stalled[node] = self._loop.now + for_s

    def heal(self) -> None:
        self._cuts.clear()
        self._parted = frozenset()
        self._troubles.clear()


def silence_s(method: str) -> float:
    """For how long both ends of a stream bear that nothing arrives, pings included."""
    return NOTICED_S.get(method, RARELY_NOTICED_S)


class LostAnswers:
    """A hook of a memory store: of some writes below ``prefixes`` the writer never learns that they were done."""

    def __init__(self, rng: random.Random, *, share: float, prefixes: tuple[str, ...]) -> None:
        self.lost = 0
        self._rng = rng
        self._share = share
        self._prefixes = prefixes

    async def __call__(self, key: str) -> None:
        if key.startswith(self._prefixes) and self._rng.random() < self._share:
            self.lost += 1
            raise OutcomeUnknown(key, "its answer was lost")


class SeededWrites:
    """A hook of a memory store: a write takes ``floor_s`` plus an exponential tail of mean ``tail_s``, like a sync."""

    def __init__(self, rng: random.Random, *, floor_s: float = 0.001, tail_s: float = 0.002) -> None:
        self._rng = rng
        self._floor_s = floor_s
        self._tail_s = tail_s

    async def __call__(self, _key: str) -> None:
        await asyncio.sleep(self._floor_s + self._rng.expovariate(1 / self._tail_s))
