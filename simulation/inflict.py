"""A fault plan done to a region, entry by entry, and undone at its end.

Owns how each kind of fault is made at the simulation's edges: network, processes, files, clocks, stores. Refuses to
know what is asked meanwhile and whether what came of it is right.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from chassis.faults import Fault
from counting.raft.framing import frame
from simulation import azs, nodes
from simulation.members import SUCCESSORS
from simulation.network import Trouble
from simulation.plan import LEADERS, NODES, Entry, Kind
from simulation.record import Bug, Record
from simulation.region import Region

_ALL = frozenset((*NODES, *SUCCESSORS))
_ON_PROCESSES = frozenset({Kind.PAUSE, Kind.CRASH, Kind.TEAR, Kind.CORRUPT})
_BETWEEN = frozenset({Kind.ONE_WAY, Kind.DEAF})
_SPIKE_S = 0.8
_REPEATED_LATE_S = 0.2
_NOTICED_S = 1.0        # until an operator does something
REPLACED_S = 60.0       # and is done, whatever befalls the others meanwhile


class Inflict:
    def __init__(self, region: Region, record: Record, dice: random.Random) -> None:
        self._region, self._record, self._dice = region, record, dice
        self._busy: set[str] = set()

    async def do(self, entry: Entry) -> None:
        """Returns when it is over."""
        target, other = self._node(entry.target), self._node(entry.other)
        if entry.kind in _ON_PROCESSES:
            if target:      # else it is a role that nobody has just now
                await self._on_process(entry, target)
        elif entry.kind in _BETWEEN:
            if target and target != other and (other or entry.kind is Kind.DEAF):
                await self._between(entry, target, other)
        else:
            await self._on_all(entry, target)

    async def _on_process(self, entry: Entry, node: str) -> None:
        match entry.kind:
            case Kind.PAUSE:
                await self._alone(node, nodes.pause(self._region, node, entry.for_s))
            case Kind.CRASH:
                await self._alone(node, self._crash(node, entry.for_s))
            case Kind.TEAR:
                await self._alone(node, self._crash(node, entry.for_s, self._tear))
            case Kind.CORRUPT:
                await self._alone(node, self._corrupt(node, entry.for_s))

    async def _between(self, entry: Entry, target: str, other: str) -> None:
        if entry.kind is Kind.DEAF:
            await nodes.trouble(self._region, _silent(_ALL - {target}, {target}), entry.for_s)
        else:
            await nodes.trouble(self._region, _silent({target}, {other}), entry.for_s)

    async def _on_all(self, entry: Entry, target: str) -> None:
        match entry.kind:
            case Kind.DELAY:
                await self._around(target, entry.for_s, late_s=entry.amount)
            case Kind.SPIKES:
                await self._around("", entry.for_s, share=entry.amount, late_s=_SPIKE_S)
            case Kind.LOSS:
                await self._around("", entry.for_s, lost=entry.amount)
            case Kind.REPEAT:
                await self._around("", entry.for_s, repeated=entry.amount, share=0.0, late_s=_REPEATED_LATE_S)
            case Kind.PARTITION:
                await self._partition(target, entry.for_s)
            case Kind.WALL:
                self._region.ground.host(target).jump(entry.amount)
            case Kind.ROLL:
                for node in [node for node in NODES if node.startswith(f"{target}-")]:
                    await self._alone(node, nodes.roll(self._region, node))
            case Kind.STORE:
                self._region.stores[target].cut(azs.STORE_GIVES_UP_S)
                await asyncio.sleep(entry.for_s)
                self._region.stores[target].heal()
            case Kind.SLOW:
                self._region.stores[target].slow(entry.amount)
                await asyncio.sleep(entry.for_s)
                self._region.stores[target].slow(0.0)
            case Kind.DRIFT:
                pass    # a property of the region from its start: ``clocks``

    def _node(self, name: str) -> str:
        """Roles are whoever has them now; "" where nobody does."""
        if name not in LEADERS:
            return name
        region = self._region
        roles = (region.counting_leader, region.active_placement, region.active_manager)
        return roles[LEADERS.index(name)]()

    async def _alone(self, node: str, fault: Coroutine[Any, Any, None]) -> None:
        """One life and death of a process at a time."""
        if node in self._busy:
            fault.close()
            return
        self._busy.add(node)
        try:
            await fault
        finally:
            self._busy.discard(node)

    # ------------------------------------------------------------ the network

    async def _around(
        self, node: str, for_s: float, *, share: float = 1.0, late_s: float = 0.0, lost: float = 0.0,
        repeated: float = 0.0,
    ) -> None:
        """Of all messages, or of those from and to a node."""
        ends = ((_ALL, frozenset({node})), (frozenset({node}), _ALL)) if node else ((_ALL, _ALL),)
        async with asyncio.TaskGroup() as group:
            for senders, receivers in ends:
                trouble = Trouble(
                    senders=senders, receivers=receivers, share=share, late_s=late_s, lost=lost, repeated=repeated
                )
                group.create_task(nodes.trouble(self._region, trouble, for_s))

    async def _partition(self, az: str, for_s: float) -> None:
        region = self._region
        inside = frozenset(region.ground.shape.nodes_of(az))
        ways = [region.stores[node] for node in region.stores if node in inside]
        for way in ways:
            way.cut(azs.STORE_GIVES_UP_S)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(nodes.trouble(region, _silent(inside, _ALL - inside), for_s))
                group.create_task(nodes.trouble(region, _silent(_ALL - inside, inside), for_s))
        finally:
            for way in ways:
                way.heal()

    # ------------------------------------------------------------ processes and their files

    async def _crash(self, node: str, away_s: float, meanwhile: Callable[[Path], None] | None = None) -> None:
        region = self._region
        if not nodes.lives(region, node):
            return
        await nodes.kill(region, node)
        if meanwhile is not None:
            meanwhile(region.ground.journals / node)
        await asyncio.sleep(away_s)
        await nodes.start(region, node)

    def _tear(self, directory: Path) -> None:
        """The write that was under way when it died got this far; nobody was told that it is done."""
        record = frame(self._dice.randbytes(self._dice.randint(1, 400)))
        with (directory / "journal").open("ab") as journal:
            journal.write(record[: self._dice.randint(1, len(record) - 1)])

    async def _corrupt(self, node: str, away_s: float) -> None:
        def change(directory: Path) -> None:
            path = self._dice.choice(sorted(directory.iterdir()))
            data = bytearray(path.read_bytes())
            data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
            path.write_bytes(data)

        try:
            await self._crash(node, away_s, change)
        except Fault as fault:
            self._tell(f"{node} refuses to start: {fault.message}")
            await asyncio.sleep(_NOTICED_S)
            await self._region.replace_counting(node, within_s=REPLACED_S)
            self._tell(f"another member has the place of {node}")
        else:
            if nodes.lives(self._region, node):
                self._record.bugs.append(Bug(what=f"{node} started from files that were changed under it"))


    def _tell(self, what: str) -> None:
        self._record.told.append((self._region.clock.monotonic(), what))


def _silent(senders: "frozenset[str] | set[str]", receivers: "frozenset[str] | set[str]") -> Trouble:
    return Trouble(senders=frozenset(senders), receivers=frozenset(receivers), silent=True)


def clocks(entries: tuple[Entry, ...]) -> dict[str, float]:
    """Rates by host."""
    return {entry.target: 1.0 + entry.amount for entry in entries if entry.kind is Kind.DRIFT}

