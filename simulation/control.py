"""Services of which one process is active and others stand by: their lives in a simulated region.

Owns which of them live, kills and the starting again. Refuses to know which of them is active: that is what the
services' own cores say.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from chassis.faults import Fault
from simulation.members import Ground, NodeTrace


class Process(Protocol):
    """What a placement, a manager and a member of counting have in common."""

    def start(self) -> Coroutine[Any, Any, object]: ...

    def drain(self) -> Coroutine[Any, Any, None]: ...

    def kill(self) -> Coroutine[Any, Any, None]: ...


Service = TypeVar("Service", bound=Process)
Make = Callable[[str, int], tuple[Service, NodeTrace]]


class Control(Generic[Service]):
    """All processes of one service, by node. ``make(node, life)`` gives each life a generator of its own."""

    def __init__(
        self, ground: Ground, nodes: Iterable[str], make: Make[Service],
        ends: Callable[[Service], None] = lambda _service: None,
    ) -> None:
        """``ends`` sees each process before it ends."""
        self._ends = ends
        self._ground = ground
        self._nodes = tuple(nodes)
        self._make = make
        self._living: dict[str, tuple[Service, NodeTrace]] = {}
        self._lives: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Service]:
        return (service for service, _ in self._living.values())

    def __getitem__(self, node: str) -> Service:
        return self._living[node][0]

    @property
    def known(self) -> tuple[str, ...]:
        """All, whether they live or not."""
        return self._nodes

    @property
    def nodes(self) -> tuple[str, ...]:
        """Of those that live."""
        return tuple(self._living)

    async def start(self, node: str = "") -> None:
        """All that don't live, or one, which needn't be known yet. Raises Fault for one that refuses."""
        if node and node not in self._nodes:
            self._nodes += (node,)
        for name in (node,) if node else self._nodes:
            if name not in self._living:
                process = self._ground.process(name)
                self._lives[name] += 1
                made = process.context().run(self._make, name, self._lives[name])
                self._living[name] = made
                try:
                    await process.do(made[0].start())
                except Fault:
                    del self._living[name]
                    self._ground.fabric.crash(name)
                    raise

    async def kill(self, node: str) -> None:
        """As with kill -9: its connections break and it says nothing more."""
        service, trace = self._living.pop(node)
        self._ends(service)
        trace.alive = False
        self._ground.fabric.crash(node)
        process = self._ground.process(node)
        if process.stopped:
            self._ground.loop.continue_process(process)     # to its end
        await self._ground.process(node).do(service.kill())

    async def drain(self, node: str = "") -> None:
        """All, or one, which may be started again then."""
        for name in (node,) if node else self.nodes:
            self._ends(self._living[name][0])
            await self._ground.process(name).do(self._living[name][0].drain())
            self._ground.fabric.crash(name)     # its process ends
            if node:
                del self._living[name]
