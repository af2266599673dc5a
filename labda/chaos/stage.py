"""What a scenario sees and does while the load runs: the cluster's roles, and hands whose every deed is recorded.

Owns the records of faults. Refuses to know which deeds make a scenario (``scenarios``), and how they are done
(``hands``).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing

from labda.api import Api
from labda.chaos.faults import GIVES, GIVES_BACK
from labda.chaos.hands import Hands
from labda.chaos.history import Fault, Record, Write, now
from labda.chaos.load import Load
from labda.chaos.proxy import LinkFault, Way
from labda.refusal import Refusal
from labda.region import Node, Region

LOOK_S = 0.05
SERVES_S = 60.0         # how long it may take until everything serves again
WRITE_S = 20.0          # for an answer to a write
SEAT_TRIES = 8
ENDPOINT = "the endpoint"
STALLED = LinkFault(stalled=True)
ROLES = {"counting": "leader", "placement": "active", "worker_manager": "active"}
_WORDS = {"counting": "the leader of counting", "placement": "the active placement",
          "worker_manager": "the active manager"}


class Stage:
    """One run's. ``lasts_s``: how long the scenario's fault lasts, or is looked at; ``rng`` is the seed's."""

    def __init__(
        self, *, region: Region, hands: Hands, load: Load, rng: random.Random, lasts_s: float, time_scale: float,
        tell: Callable[[Record], None], say: Callable[[Fault], None], open_api: Callable[[], closing[Api]],
    ) -> None:
        self.hands = hands
        self.load = load
        self.rng = rng
        self.lasts_s = lasts_s
        self.time_scale = time_scale
        self._region = region
        self._tell = tell
        self._say = say
        self._open_api = open_api
        self.small: list[str] = []      # members whose files are on a small disk
        self._writes = 0
        self._expected = {node.node for node in region.nodes}
        self._owed: dict[str, set[str]] = {}    # nodes, by the deed that gives them back
        self._past: dict[str, int] = {}     # nonces of processes that were ended: the view may still show them

    # ------------------------------------------------------------ what is there

    def nodes(self, service: str = "", *, az: str = "") -> list[Node]:
        """Processes of the services, as the region's view has them."""
        return [node for node in self._region.nodes if service in {"", node.service} and az in {"", node.az}]

    def everything(self, *, az: str = "") -> list[str]:
        """Names of all processes, the stores' members too."""
        stores = [place.node for place in self.hands.stores if az in {"", place.az}]
        return stores + [node.node for node in self.nodes(az=az)]

    def members(self, store: str) -> list[str]:
        """Of "etcd" or "nats"."""
        return [place.node for place in self.hands.stores if place.service == store]

    @property
    def azs(self) -> list[str]:
        return sorted({node.az for node in self._region.nodes})

    def leading(self, service: str) -> Node:
        """Who leads this service. Raises Refusal while nobody does."""
        for node in self.nodes(service):
            if node.role == ROLES[service] and node.health == "serving":
                return node
        raise Refusal(f"no {service} is {ROLES[service]} now: `labda status` shows what is away")

    async def leader(self, service: str) -> Node:
        """Waits for one. Raises Refusal."""
        deadline = now() + SERVES_S
        while True:
            try:
                return self.leading(service)
            except Refusal:
                if now() > deadline:
                    raise
            await asyncio.sleep(LOOK_S)

    def roles(self, nodes: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            _WORDS[node.service] for node in self._region.nodes
            if node.node in nodes and node.role == ROLES.get(node.service, " ")
        )

    def missing(self) -> list[str]:
        """What was there at the begin and doesn't serve, or leads nowhere, now."""
        alive = [
            node for node in self._region.nodes
            if node.health == "serving" and self._past.get(node.node) != node.nonce
        ]
        missing = sorted(self._expected - {node.node for node in alive})
        return missing or [
            f"a {service} that is {role}" for service, role in ROLES.items()
            if not any(node.service == service and node.role == role for node in alive)
        ]

    # ------------------------------------------------------------ what is done

    async def kill(self, nodes: Sequence[str]) -> None:
        await self._do("kill", nodes, lambda: self.hands.kill(nodes))

    async def kill_agent(self, worker: str) -> None:
        await self._do("kill", [worker], lambda: self.hands.kill_agent(worker))

    async def hold(self, nodes: Sequence[str]) -> None:
        await self._do("hold", nodes, lambda: self.hands.hold(nodes))

    async def release(self, nodes: Sequence[str]) -> None:
        await self._do("release", nodes, lambda: self.hands.release(nodes))

    async def restart(self, nodes: Sequence[str]) -> None:
        await self._do("restart", nodes, lambda: self.hands.restart(nodes))

    async def cut(self, az: str) -> None:
        await self._do("cut", self.everything(az=az), lambda: self.hands.cut(az))

    async def heal(self, az: str) -> None:
        await self._do("heal", self.everything(az=az), lambda: self.hands.heal(az))

    async def stop(self, nodes: Sequence[str]) -> None:
        await self._do("stop", nodes, lambda: self.hands.stop(nodes))

    async def go_on(self, nodes: Sequence[str]) -> None:
        await self._do("continue", nodes, lambda: self.hands.go_on(nodes))

    async def deafen(self, node: str) -> None:
        """Nothing that others say on counting's links reaches it; what it says arrives."""
        ways = [(other, node) for other in self._linked(node)]
        await self.strike([node], STALLED, how="it hears nobody", ways=ways)

    async def isolate(self, node: str) -> None:
        """On counting's links it hears nobody and nobody hears it."""
        await self.strike([node], STALLED, how="cut off from counting's links")

    async def strike(
        self, nodes: Sequence[str], fault: LinkFault, *, how: str, ways: Sequence[Way] | None = None
    ) -> None:
        """``ways``: all that counting's links have from and to these nodes, if none are named."""
        struck = self.ways(nodes) if ways is None else ways
        await self._do("strike", nodes, lambda: self.hands.strike(struck, fault), how=how)

    async def mend(self, nodes: Sequence[str]) -> None:
        await self._do("mend", nodes, lambda: self.hands.mend(self.ways(nodes)))

    def ways(self, nodes: Sequence[str]) -> list[Way]:
        """Of counting's links from and to these nodes."""
        return sorted({
            way for node in nodes for other in self._linked(node) for way in ((other, node), (node, other))
        })

    async def skew(self, node: str, by_s: float) -> None:
        await self._do("skew", [node], lambda: self.hands.skew([node], by_s), how=f"{by_s:+g} s")

    async def reset_clock(self, node: str) -> None:
        await self._do("reset", [node], lambda: self.hands.skew([node], 0.0))

    async def shrink(self, node: str) -> None:
        """Before the load: its files are on a disk that can be filled, and it serves again."""
        self._end([node])
        self.small.append(node)
        await self.hands.disk("shrink", [node])
        await self.all_serve()

    async def fill(self, node: str) -> None:
        await self._do("fill", [node], lambda: self.hands.disk("fill", [node]))

    async def empty(self, node: str) -> None:
        await self._do("empty", [node], lambda: self.hands.disk("empty", [node]))

    async def surge(self, times: float) -> None:
        """So many times the capacity of the pools is asked for, while the scenario lasts."""
        rate = self.load.capacity * times
        how = f"{times:g} times what the pools allow: {rate:.0f} requests/s"
        await self._do("surge", [ENDPOINT], lambda: self.load.surge(rate, self.lasts_s), how=how)
        await self.wait(self.lasts_s)
        await self._do("ease", [ENDPOINT], lambda: self.wait(0.0))

    def _linked(self, node: str) -> list[str]:
        """Who has a link of counting with it: a member with everybody that counts, everybody else with the members."""
        members = {one.node for one in self.nodes("counting")}
        counts = members | {one.node for one in self.nodes() if one.service in {"frontend", "worker"}}
        return sorted((counts if node in members else members) - {node})

    async def seat(self, service: str, wanted: Callable[[Node], bool]) -> None:
        """Before the load: leaders that aren't wanted give way, as often as it may take by chance."""
        for _ in range(SEAT_TRIES):
            leader = self.leading(service)
            if wanted(leader):
                return
            await self._unseat(leader)

    async def _unseat(self, leader: Node) -> None:
        """Another one leads afterwards, and this one serves again."""
        self._end([leader.node])
        await self.hands.kill([leader.node])
        await self.all_serve()

    async def restore(self) -> None:
        """What is still away or broken is given back."""
        if self.small:
            self._end(self.small)
            self.small.clear()
            await self.hands.restore()
        for action in [action for action, nodes in self._owed.items() if nodes]:
            await self._do(action, sorted(self._owed[action]), self.hands.restore)

    async def write(self, function: str) -> Write:
        """A change of this function's configuration by the public API, and what came of it."""
        at = now()
        try:
            async with asyncio.timeout(WRITE_S):
                status, error, explained = await asyncio.to_thread(self._change, function)
        except TimeoutError:
            status, error, explained = 0, f"no answer in {WRITE_S:.0f} s", False
        written = Write(at=at, done=now(), status=status, error=error, explained=explained)
        self._tell(written)
        return written

    def _change(self, function: str) -> tuple[int, str, bool]:
        self._writes += 1
        with self._open_api() as api:
            try:
                answer = api.configure(function, {"Timeout": 10 + self._writes % 20})
            except Refusal as refusal:
                return 0, refusal.message, False
        try:
            told = answer.json()
        except ValueError:
            told = {}
        return answer.status, answer.headers.get("x-amzn-errortype", ""), bool(told.get("Detail"))

    async def wait(self, seconds: float) -> None:
        """The load goes on meanwhile."""
        await asyncio.sleep(seconds)

    async def all_serve(self) -> None:
        """Raises Refusal, naming what doesn't."""
        deadline = now() + SERVES_S
        while missing := self.missing() or await self.hands.missing():
            if now() > deadline:
                raise Refusal(f"{', '.join(missing)} did not serve again within {SERVES_S:.0f} s")
            await asyncio.sleep(LOOK_S)

    def _end(self, nodes: Sequence[str]) -> None:
        self._past.update({node.node: node.nonce for node in self._region.nodes if node.node in nodes})

    async def _do(
        self, action: str, nodes: Sequence[str], deed: Callable[[], Awaitable[None]], *, how: str = ""
    ) -> None:
        roles = self.roles(nodes)
        if action in {"kill", "hold", "restart"}:
            self._end(nodes)
        if action in GIVES_BACK:
            self._owed.setdefault(GIVES_BACK[action], set()).update(nodes)
        elif action in GIVES:
            self._owed.get(action, set()).difference_update(nodes)
        at = now()
        await deed()
        fault = Fault(at=at, done=now(), action=action, nodes=tuple(nodes), held=roles, how=how)
        self._tell(fault)
        self._say(fault)
