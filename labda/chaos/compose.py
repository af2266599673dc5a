"""Hands on a cluster in containers: docker kills, starts, and takes containers off the region's network.

Owns which docker command does what. Containers are found by their labels (``labda.cluster.engine``). A guard
(``labda.chaos.guard``) puts back what this process broke, should it die. docker's own restart policy leaves a container
that somebody killed alone, so that ``kill`` starts it again itself.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from labda.chaos.guard import Guard
from labda.chaos.hands import Place
from labda.chaos.proxy import LinkFault, Way
from labda.cluster import engine
from labda.cluster.engine import Container, Engine
from labda.refusal import Refusal, Status

REGION = "region"       # the network that the AZs share
STORES = ("etcd", "nats")
LOOK_S = 0.01


class ComposeHands:
    """``Hands``. ``pid``: of a worker's agent inside its container, as the region's view knows it."""

    def __init__(
        self, there: Engine, guard: Guard, containers: Mapping[str, Container], *, pid: Callable[[str], int]
    ) -> None:
        self._engine = there
        self._guard = guard
        self._pid = pid
        self._held: set[str] = set()
        self._cut: set[str] = set()
        self._killing: list[asyncio.Future[None]] = []
        self._ids = {node: container.id for node, container in containers.items()}
        self._azs = {node: container.az for node, container in containers.items()}
        self.stores = tuple(
            Place(node=one.node, service=one.service, az=one.az) for one in containers.values() if one.service in STORES
        )

    @classmethod
    async def open(cls, there: Engine, *, pid: Callable[[str], int]) -> "ComposeHands":
        """Raises Refusal without an engine."""
        containers = await asyncio.to_thread(there.containers)
        return cls(there, await Guard.open(), {one.node: one for one in containers}, pid=pid)

    async def kill(self, nodes: Sequence[str]) -> None:
        await self.hold(nodes)
        await self.release(nodes)

    async def kill_agent(self, worker: str) -> None:
        await _docker("exec", "--user", "0", self._ids[worker], "sh", "-c", f"kill -9 {self._pid(worker)}")

    async def hold(self, nodes: Sequence[str]) -> None:
        """Returns when the processes are gone; docker goes on cleaning up behind them for seconds."""
        await self._owe_start(nodes)
        there = {one.node: one for one in await asyncio.to_thread(self._engine.containers)}
        first = [Path(f"/proc/{there[node].pid}") for node in nodes if there[node].running]
        killing = asyncio.ensure_future(_docker("kill", *self._of(nodes)))
        self._killing.append(killing)
        while any(process.exists() for process in first):
            if killing.done():  # docker waits for that too: it failed
                await killing
                break
            await asyncio.sleep(LOOK_S)

    async def release(self, nodes: Sequence[str]) -> None:
        await self._killed()
        await _docker("start", *self._of(nodes))
        for node in nodes:
            self._held.discard(node)
            await self._guard.paid(f"start {node}")

    async def restart(self, nodes: Sequence[str]) -> None:
        await self._owe_start(nodes)
        await _docker("stop", *self._of(nodes))     # each for as long as its container's description allows
        await self.release(nodes)

    async def cut(self, az: str) -> None:
        self._cut.add(az)
        inside = [node for node, where in self._azs.items() if where == az]
        for node in inside:
            await self._guard.owe(f"connect {node}", ["docker", *self._connect(node)])
        await asyncio.gather(*(
            _docker("network", "disconnect", "--force", self._network, self._ids[node]) for node in inside
        ))

    async def heal(self, az: str) -> None:
        inside = [node for node, where in self._azs.items() if where == az]
        await asyncio.gather(*(_docker(*self._connect(node)) for node in inside))
        self._cut.discard(az)
        for node in inside:
            await self._guard.paid(f"connect {node}")

    async def stop(self, nodes: Sequence[str]) -> None:
        raise Refusal(f"containers are not stopped like that: {' '.join(nodes)}", Status.USAGE)

    async def go_on(self, nodes: Sequence[str]) -> None:
        raise Refusal(f"containers are not stopped like that: {' '.join(nodes)}", Status.USAGE)

    async def strike(self, ways: Sequence[Way], fault: LinkFault) -> None:
        del ways
        raise Refusal(f"links between containers don't go through a proxy: {fault}", Status.USAGE)

    async def mend(self, ways: Sequence[Way]) -> None:
        del ways
        raise Refusal("links between containers don't go through a proxy", Status.USAGE)

    async def skew(self, nodes: Sequence[str], by_s: float) -> None:
        raise Refusal(f"clocks of containers are not moved by {by_s:g} s: {' '.join(nodes)}", Status.USAGE)

    async def disk(self, word: str, nodes: Sequence[str]) -> None:
        raise Refusal(f"disks of containers don't {word}: {' '.join(nodes)}", Status.USAGE)

    async def missing(self) -> list[str]:
        """Whether a service serves says the region's view, long before docker checks again (30 s)."""
        containers = await asyncio.to_thread(self._engine.containers)
        return sorted(one.node for one in containers if not one.running or one.health == "unhealthy")

    async def restore(self) -> None:
        await self._killed()
        for az in sorted(self._cut):
            await self.heal(az)
        if self._held:
            await self.release(sorted(self._held))

    async def close(self) -> None:
        await self._guard.close()

    # ------------------------------------------------------------ docker

    async def _killed(self) -> None:
        """Nothing is started while docker still cleans up behind it."""
        await asyncio.gather(*self._killing, return_exceptions=True)    # who asked for it has been told
        self._killing.clear()

    @property
    def _network(self) -> str:
        return f"{self._engine.shape.project}_{REGION}"

    def _connect(self, node: str) -> list[str]:
        """The name under which peers reach it is given to it at each connection."""
        return ["network", "connect", "--alias", node, self._network, self._ids[node]]

    def _of(self, nodes: Sequence[str]) -> list[str]:
        unknown = [node for node in nodes if node not in self._ids]
        if unknown:
            raise Refusal(f"there is no container of {', '.join(unknown)}: `labda cluster up` makes them")
        return [self._ids[node] for node in nodes]

    async def _owe_start(self, nodes: Sequence[str]) -> None:
        self._held.update(nodes)
        for node, container in zip(nodes, self._of(nodes), strict=True):
            await self._guard.owe(f"start {node}", ["docker", "start", container])


async def _docker(*words: str) -> None:
    """Raises Refusal."""
    await asyncio.to_thread(engine.docker, *words)
