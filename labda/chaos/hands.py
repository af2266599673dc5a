"""What a scenario can do to a cluster, the same for every target: one small interface.

Owns the words. Each target has its own hands (``embedded``, ``compose``). Whatever was taken away or broken comes back
by ``restore`` at the latest, and by itself when this process dies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from labda.chaos.proxy import LinkFault, Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process: its name, what it is and where."""

    node: str
    service: str
    az: str


class Hands(Protocol):
    """Each returns when it is done: after ``kill`` and ``hold`` nothing of these nodes runs, sandboxes included."""

    @property
    def stores(self) -> Sequence[Place]:
        """Members of the stores, which don't register with placement as the services do. Empty: there are none."""
        ...

    async def missing(self) -> list[str]:
        """What doesn't run, as far as the target knows beyond the region's view."""
        ...

    async def kill(self, nodes: Sequence[str]) -> None:
        """SIGKILL to all of them at the same moment. They come back at once, as after any crash."""
        ...

    async def kill_agent(self, worker: str) -> None:
        """Only the part of a worker that speaks with others; what guards its sandboxes goes on, and starts it again."""
        ...

    async def hold(self, nodes: Sequence[str]) -> None:
        """As ``kill``, and they stay away."""
        ...

    async def release(self, nodes: Sequence[str]) -> None:
        """What was held runs again. Returns when it was started, not when it serves."""
        ...

    async def restart(self, nodes: Sequence[str]) -> None:
        """Each is told to end, may drain, and is started again."""
        ...

    async def cut(self, az: str) -> None:
        """Off the network that the AZs share; inside it they still reach each other."""
        ...

    async def heal(self, az: str) -> None: ...

    async def stop(self, nodes: Sequence[str]) -> None:
        """SIGSTOP: they are there, keep their connections, and do nothing."""
        ...

    async def go_on(self, nodes: Sequence[str]) -> None:
        """SIGCONT."""
        ...

    async def strike(self, ways: Sequence[Way], fault: LinkFault) -> None:
        """What goes these ways between processes is handled like that from now on."""
        ...

    async def mend(self, ways: Sequence[Way]) -> None: ...

    async def skew(self, nodes: Sequence[str], by_s: float) -> None:
        """Their wall clocks are off by so much."""
        ...

    async def disk(self, word: str, nodes: Sequence[str]) -> None:
        """Of counting members: "shrink", "fill", "empty", "enlarge", as `labda.control` has them."""
        ...

    async def restore(self) -> None:
        """Everything is as it was."""
        ...

    async def close(self) -> None: ...
