"""Hands on an embedded cluster: its supervisor ends, stops and starts processes and breaks links (``labda.control``).

Owns the seeing that a worker's sandboxes are gone with it. Cutting a network needs AZs that have one: containers.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from labda.chaos.hands import Place
from labda.chaos.history import now
from labda.chaos.proxy import LinkFault, Way
from labda.control import Asker
from labda.launch import cluster_id
from labda.refusal import Refusal, Status
from labda.state import State

GONE_S = 10.0       # how long the kernel may take to end what was killed
LOOK_S = 0.005


class EmbeddedHands:
    """``Hands``. ``pid``: of a worker's agent, as the region's view knows it."""

    def __init__(self, state: State, asker: Asker, *, pid: Callable[[str], int]) -> None:
        self._asker = asker
        self._pid = pid
        self._groups = f"labda-{cluster_id(state)}-"
        self._held: set[str] = set()
        self._stopped: set[str] = set()
        self._struck: set[Way] = set()
        self._skewed: set[str] = set()
        self._small: set[str] = set()

    @classmethod
    async def open(cls, state: State, *, pid: Callable[[str], int]) -> "EmbeddedHands":
        return cls(state, await Asker.open(state), pid=pid)

    @property
    def stores(self) -> Sequence[Place]:
        return ()   # files

    async def missing(self) -> list[str]:
        return []

    async def kill(self, nodes: Sequence[str]) -> None:
        inside = self._inside(nodes)
        await self._asker.ask("kill", nodes)
        await self._gone(inside)

    async def kill_agent(self, worker: str) -> None:
        inside = self._inside([worker])
        os.kill(self._pid(worker), signal.SIGKILL)
        await self._gone(inside)

    async def hold(self, nodes: Sequence[str]) -> None:
        self._held.update(nodes)
        inside = self._inside(nodes)
        await self._asker.ask("hold", nodes)
        await self._gone(inside)

    async def release(self, nodes: Sequence[str]) -> None:
        await self._asker.ask("release", nodes)
        self._held.difference_update(nodes)

    async def restart(self, nodes: Sequence[str]) -> None:
        await self._asker.ask("restart", nodes)

    async def cut(self, az: str) -> None:
        raise Refusal(f"{az} of an embedded cluster has no network to be cut off from: --target compose", Status.USAGE)

    async def heal(self, az: str) -> None:
        raise Refusal(f"{az} of an embedded cluster has no network to be healed: --target compose", Status.USAGE)

    async def stop(self, nodes: Sequence[str]) -> None:
        self._stopped.update(nodes)
        await self._asker.ask("stop", nodes)

    async def go_on(self, nodes: Sequence[str]) -> None:
        await self._asker.ask("continue", nodes)
        self._stopped.difference_update(nodes)

    async def strike(self, ways: Sequence[Way], fault: LinkFault) -> None:
        self._struck.update(ways)
        await self._asker.strike(ways, fault)

    async def mend(self, ways: Sequence[Way]) -> None:
        await self._asker.mend(ways)
        self._struck.difference_update(ways)

    async def skew(self, nodes: Sequence[str], by_s: float) -> None:
        self._skewed.update(nodes)
        await self._asker.skew(nodes, by_s)

    async def disk(self, word: str, nodes: Sequence[str]) -> None:
        self._small.update(nodes)
        await self._asker.ask(word, nodes)
        if word == "enlarge":
            self._small.difference_update(nodes)

    async def restore(self) -> None:
        if self._skewed:
            await self.skew(sorted(self._skewed), 0.0)
            self._skewed.clear()
        if self._small:
            await self.disk("enlarge", sorted(self._small))
        if self._struck:
            await self.mend(sorted(self._struck))
        if self._stopped:
            await self.go_on(sorted(self._stopped))
        if self._held:
            await self.release(sorted(self._held))

    async def close(self) -> None:
        await self._asker.close()

    # ------------------------------------------------------------ sandboxes

    def _inside(self, nodes: Sequence[str]) -> list[Path]:
        """Control groups of these workers' sandboxes in which a process is."""
        found: list[Path] = []
        for node in nodes:
            if node.startswith("worker-"):
                for place in ("", "*/"):
                    found += Path("/sys/fs/cgroup").glob(f"{place}{self._groups}{node}/**/cgroup.procs")
        return [path for path in found if _occupied(path)]

    async def _gone(self, inside: Sequence[Path]) -> None:
        deadline = now() + GONE_S
        while left := [path for path in inside if _occupied(path)]:
            if now() > deadline:
                raise Refusal(f"processes of killed sandboxes still run after {GONE_S:.0f} s: {left[0].parent}")
            await asyncio.sleep(LOOK_S)


def _occupied(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False    # the group went while it was looked at: its processes had gone before
