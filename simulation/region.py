"""One region in one process, in virtual time: all five services' real cores, drivers and request coroutines.

Owns the members' lives, the client's side of the API, and the trace of everything that every driver did. What members
are made of is ``members.py``'s; what befalls whole AZs is ``azs.py``'s; what is asked is the scenario's. Must run on
``simulation.loop``.
"""

import asyncio
import contextvars
import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from chassis.faults import Fault
from chassis.memory_network import Fabric
from chassis.process import Tasks
from counting.raft.member import LogCounts
from counting.service import CountingService
from frontend.auth.keys import new_key, store_key
from frontend.service import FrontendService
from placement.config import FleetConfig
from placement.service import PlacementService
from protos import counting_pb2, counting_rpc
from protos.rpc import Method
from simulation import members
from simulation.client import Answer, Client
from simulation.control import Control
from simulation.loop import VirtualClock, VirtualLoop
from simulation.members import Ground, NodeTrace, Shape
from simulation.network import SeededLink, SeededWrites
from simulation.processes import CURRENT, HostClock, Process
from simulation.record import Bug, Lines
from simulation.sandbox_driver import Handler
from simulation.store_link import StoreLink
from storage.cipher import Cipher
from storage.memory import MemoryBlobs, MemoryMetadata
from worker.service import WorkerService
from worker_manager.service import ManagerService

REGION = "us-east-1"
ACCOUNT = "000000000000"
RESTART_S = 1.0     # the supervisor starts a process that ended again within this
BOOTED_S = 1_000.0  # hosts whose clocks are off have been up for less than this
READY_S = 30.0      # virtual: a region that isn't ready by then never will be
OPERATOR_S = 0.5    # between two attempts of an operator
FUNCTIONS = "/2015-03-31/functions"
Response = TypeVar("Response", bound=Message)


class ConnectionLost(Exception):
    """The frontend that served a request was killed: its client sees the connection break."""


class RegionBug(AssertionError):
    """Something in a service failed and nobody waited for it."""


@dataclass(slots=True, kw_only=True)
class Frontend:
    """A frontend and what its clients have under way there."""

    service: FrontendService
    trace: NodeTrace
    client: Client
    store: StoreLink
    requests: dict[asyncio.Task[Answer], None] = field(default_factory=dict)
    killed: bool = False


class Region:
    """``async with Region(seed) as region``: ready to serve inside, drained and judged on the way out."""

    def __init__(
        self, seed: int, *, handlers: Mapping[str, Handler] | None = None, fleet: FleetConfig | None = None,
        changes: Mapping[str, Mapping[str, Any]] | None = None, shape: Shape = members.EMBEDDED, check: bool = True,
        rates: Mapping[str, float] | None = None, lines: Lines | None = None,
    ) -> None:
        """``check``: every core's invariants after every event, which takes most of a long run's time. ``rates``: by
        host, how fast its clocks run; they begin at different times then."""
        self.lines = lines or Lines()   # every event of every driver with its effects
        self.seed = seed
        self.frontends: list[Frontend] = []
        self.workers: dict[str, WorkerService] = {}     # by place (``Shape.places``), those that live
        self.stores: dict[str, StoreLink] = {}          # each frontend's and each placement's way to the store
        self.logs: list[LogCounts] = []                 # of counting's members, of each life that is over
        self.counting: Control[CountingService]
        self.placements: Control[PlacementService]
        self.managers: Control[ManagerService]
        self._fleet = fleet or FleetConfig()
        self._handlers = dict(handlers or {})
        self._changes = dict(changes or {})
        self._shape = shape
        self._check = check
        self._worker_traces: dict[str, NodeTrace] = {}
        self._rates = dict(rates or {})
        self.bugs: list[Bug] = []
        self._lives: Counter[str] = Counter()
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a region runs in virtual time: simulation.loop.run"
        loop.set_exception_handler(self._on_bug)
        self.clock = VirtualClock(loop)
        self.lines.now = self.clock.monotonic
        boots = self._generator("boots")
        hosts = {
            host: HostClock(loop, rate=rate, boot_s=boots.uniform(0.0, BOOTED_S)) for host, rate in self._rates.items()
        }
        self._journals = tempfile.TemporaryDirectory(prefix="labda-simulation-")
        writes = SeededWrites(self._generator("store"))
        self.link = SeededLink(self._generator("network"), loop)
        self.ground = Ground(
            seed=self.seed, loop=loop, clock=self.clock, hosts=hosts, processes={}, fabric=Fabric(self.link),
            fleet=self._fleet,
            metadata=MemoryMetadata(self.clock, before_write=writes), blobs=MemoryBlobs(),
            journals=Path(self._journals.name), trace=self.lines, handlers=self._handlers,
            changes=self._changes, shape=self._shape, check=self._check,
        )
        try:
            await self._begin()
        except BaseException:
            self._journals.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            await self._drain()
        finally:
            self._journals.cleanup()
        if self.bugs and error is None:
            raise RegionBug("\n".join(bug.what for bug in self.bugs))

    # ------------------------------------------------------------ what happened

    def trace(self) -> str:
        """NDJSON: every event of every driver with its effects, in the order in which they happened."""
        return "".join(self.lines.text)

    def trace_hash(self) -> str:
        return hashlib.sha256(self.trace().encode()).hexdigest()

    def counting_leader(self) -> str:
        """Which member of counting leads; empty while none does."""
        leading = [node for node in self.counting.nodes if self.counting[node].leads]
        return leading[0] if len(leading) == 1 else ""

    def active_manager(self) -> str:
        """The node that manages and holds most workers; empty while none does."""
        held = Counter(self.held_by().values())
        return held.most_common(1)[0][0] if held else ""

    def active_placement(self) -> str:
        """The node that leads by its own word; of several the one with the highest term."""
        leading = [service for service in self.placements if service.core.is_active]
        return max(leading, key=lambda service: service.core.leadership.term).node.node if leading else ""

    def held_by(self) -> dict[str, str]:
        """Which manager every usable worker obeys, by place: the worker's own word counts."""
        cores = {     # one that is just being started has none yet
            place: worker.agent.core for place, worker in self.workers.items() if hasattr(worker, "agent")
        }
        return {
            place: core.manager for place, core in cores.items()
            if core.manager in self.managers.nodes
            and (lease := self.managers[core.manager].core.supply.leases.get(members.worker_node(place)))
            and lease.usable and lease.number == core.lease
        }

    # ------------------------------------------------------------ the client's side

    async def request(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, frontend: int = 0
    ) -> Answer:
        """One signed request to one frontend. Raises ConnectionLost when that frontend is killed meanwhile."""
        served_by = self.frontends[frontend]
        if served_by.killed:
            raise ConnectionLost(f"frontend {frontend} is gone")
        task = asyncio.get_running_loop().create_task(
            served_by.client.send(method, path, body, headers), context=self.process_of(served_by).context()
        )
        served_by.requests[task] = None
        try:
            return await task
        except asyncio.CancelledError:
            if served_by.killed:
                raise ConnectionLost(f"frontend {frontend} went while it served {method} {path}") from None
            task.cancel()
            raise
        finally:
            served_by.requests.pop(task, None)

    async def invoke(self, function: str, payload: bytes = b"{}", *, frontend: int = 0) -> Answer:
        """A synchronous Invoke that asks where its time went (header x-labda-phases)."""
        return await self.request(
            "POST", f"{FUNCTIONS}/{function}/invocations", payload, headers={"x-labda-explain": "1"}, frontend=frontend
        )

    async def pools(self) -> list[counting_pb2.ListPoolsAnswer.PoolStatus]:
        """The ledger's pools as its leader knows them. Raises RegionBug while nobody leads."""
        answer = await self.ask_counting(counting_rpc.LIST_POOLS, counting_pb2.ListPoolsRequest())
        return list(answer.pools)

    async def ask_counting(self, method: Method[Any, Response], request: Any) -> Response:
        """As an operator. Raises RegionBug while nobody leads."""
        network = self.ground.fabric.network(members.OPERATOR)
        for address in map(members.address, self.counting.known):
            try:
                answer = await network.connect(address, service="counting").call(method, request, timeout_s=2.0)
            except Fault:
                continue    # this member is away
            if not answer.HasField("not_leader"):
                return answer
        raise RegionBug("no member of counting leads")

    # ------------------------------------------------------------ faults

    async def kill_frontend(self, number: int) -> None:
        """As with kill -9: its connections break, it says nothing more, its clients see theirs break."""
        frontend = self.frontends[number]
        frontend.killed = True
        frontend.trace.alive = False
        self.ground.fabric.crash(frontend.service.directory.node.node)
        self.resume(frontend.service.directory.node.node)      # to its end
        self.cut_off_clients(frontend)
        await self.process_of(frontend).do(frontend.service.close())

    def cut_off_clients(self, frontend: Frontend) -> "list[asyncio.Task[Any]]":
        """What is being ended: the process's last words come from there."""
        ending = list(frontend.requests)
        for task in ending:
            task.cancel()
        return ending

    async def restart_frontend(self, number: int) -> None:
        """Another process under the name of one that was killed."""
        node = self.frontends[number].service.directory.node.node
        self._lives[node] += 1
        self.frontends[number] = await self._make_frontend(members.AZS[number], life=1 + self._lives[node])

    def stop_frontend(self, number: int, for_s: float) -> None:
        self.stall(self.frontends[number].service.directory.node.node, for_s)

    async def kill_manager(self, node: str) -> None:
        """kill -9; its supervisor starts it again."""
        await self.managers.kill(node)
        self._start(self._restart(self.managers, node), name=f"another {node}")

    async def kill_counting(self, node: str) -> None:
        """kill -9; its supervisor starts it again, from its files."""
        await self.counting.kill(node)
        self._start(self._restart(self.counting, node), name=f"another {node}")

    async def replace_counting(self, lost: str, within_s: float) -> None:
        """A member's files are lost for good: an operator gives its place to an empty one, as the runbook says. Raises
        RegionBug when that can't be had in time."""
        successor = f"{lost}-2"
        assert successor in members.SUCCESSORS, f"{lost} has no successor here"
        await self.counting.start(successor)
        end = self.clock.monotonic() + within_s
        for method, member in ((counting_rpc.REMOVE_MEMBER, lost), (counting_rpc.ADD_MEMBER, successor)):
            said = ""
            while said != "changed":
                if self.clock.monotonic() > end:
                    raise RegionBug(f"{lost} is not replaced within {within_s:g} s: {said}")
                try:
                    answer = await self.ask_counting(method, counting_pb2.ChangeMembersRequest(member=member))
                    said = answer.refused.message if answer.HasField("refused") else "changed"
                except RegionBug as bug:    # nobody leads: asked again
                    said = str(bug)
                await asyncio.sleep(OPERATOR_S)

    async def kill_placement(self, node: str, *, again: bool = True) -> None:
        """kill -9; its supervisor starts it ``again``, or doesn't get to."""
        await self.placements.kill(node)
        if again:
            self._start(self._restart(self.placements, node), name=f"another {node}")

    def part(self, nodes: Iterable[str]) -> None:
        """As with a cable that is pulled: between these and the others silence begins, which pings notice in time."""
        parted = frozenset(nodes)
        self.link.part(parted)
        for pipe in list(self.ground.fabric.pipes):
            if (pipe.dialler in parted) != (pipe.peer in parted):
                pipe.lose(pipe.dialler, pipe.peer)
                pipe.lose(pipe.peer, pipe.dialler)

    def resume(self, node: str) -> None:
        """Lets it go on if it is stopped (``nodes.pause``)."""
        process = self.ground.process(node)
        if process.stopped:
            self.ground.loop.continue_process(process)

    def stall(self, node: str, for_s: float) -> None:
        """SIGSTOP and later SIGCONT, as the others see it: nothing reaches it or leaves it for so long, its connections
        stay, and what was held arrives then. Worse than that, since what it decides meanwhile arrives late."""
        self.link.stall(node, for_s)

    async def kill_worker(self, place: str) -> None:
        """As with kill -9 of agent and spawner: its connections break, its sandboxes go, another life begins soon."""
        worker = self.workers[place]
        await self._crash(place, worker)
        await asyncio.sleep(RESTART_S)
        if self.workers.get(place) is worker:
            await self.start_worker(place)

    async def lose_worker(self, place: str) -> None:
        """The same, and nobody starts it again."""
        await self._crash(place, self.workers.pop(place))

    async def retire_worker(self, place: str) -> None:
        """Told to end, and nobody starts it again."""
        await self._end_worker(place, self.workers[place])
        del self.workers[place]

    async def _crash(self, place: str, worker: WorkerService) -> None:
        node = worker.config.node.node
        self._worker_traces[place].alive = False
        self.ground.fabric.crash(node)
        self.resume(node)
        await self.ground.process(node).do(worker.close())

    # ------------------------------------------------------------ lives

    async def _begin(self) -> None:
        ground = self.ground
        self._key = key = new_key(ACCOUNT, self._generator("root key"), self.clock.wall())
        sealed = Cipher(ground.data_key(), random_bytes=self._generator("root key's nonce").randbytes)
        await store_key(ground.metadata, sealed, key)
        self.counting = Control(
            ground, members.COUNTING, lambda node, life: members.make_counting(ground, node, life=life),
            lambda service: self.logs.append(service.log),
        )
        await self.counting.start()
        self.placements = Control(
            ground, ground.shape.placements,
            lambda node, life: members.make_placement(ground, node, life=life, store=self._way_to_store(node)),
        )
        await self.placements.start()
        self.managers = Control(
            ground, ground.shape.managers, lambda node, life: members.make_manager(ground, node, life=life)
        )
        await self.managers.start()
        for place in ground.shape.places:
            await self.start_worker(place)
        for az in members.AZS:
            self.frontends.append(await self._make_frontend(az))
        await self.until(self.ready, "the region to be ready", within_s=READY_S)

    async def _make_frontend(self, az: str, life: int = 1) -> Frontend:
        store = self._way_to_store(members.frontend_node(az))
        process = self.ground.process(members.frontend_node(az))
        service, trace = process.context().run(
            lambda: members.make_frontend(self.ground, az, life=life, store=store)
        )
        await process.do(service.start())
        host = f"{service.directory.node.node}.simulated"
        await process.do(service.register(http=f"{host}:80", pid=0, version="simulated"))
        # Signed at the frontend's own time: a real client learns how far off its clock is from the first refusal.
        client = Client(service.application, host=host, key=self._key, region=REGION, clock=process.clock)
        return Frontend(service=service, trace=trace, client=client, store=store)

    def _start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Of the region's own, whichever process is the cause."""
        contextvars.Context().run(lambda: self._tasks.start(work, name=name))

    def process_of(self, frontend: Frontend) -> Process:
        return self.ground.process(frontend.service.directory.node.node)

    def _worker_process(self, place: str) -> Process:
        return self.ground.process(members.worker_node(place))

    def _way_to_store(self, node: str) -> StoreLink:
        """The node's own, whichever life it has."""
        return self.stores.setdefault(node, StoreLink(self.ground.metadata))

    def balanced(self) -> bool:
        """Active managers have their fair parts of the workers."""
        parts = Counter(self.held_by().values())
        active = [node for node in self.managers.nodes if self.managers[node].core.active]
        return parts.keys() == set(active) and max(parts.values()) - min(parts.values()) <= 1

    def ready(self) -> bool:
        """Every worker is leased, and every frontend knows them all and who manages them."""
        return self.held_by().keys() == self.workers.keys() and all(
            frontend.service.directory.owners
            and len(frontend.service.directory.of_service("worker")) == len(self.workers)
            for frontend in self.frontends if not frontend.killed
        )

    async def start_worker(self, place: str) -> None:
        """Another process, and another incarnation if there was one before."""
        process = self.ground.process(members.worker_node(place))
        self._lives[place] += 1
        self.workers[place], self._worker_traces[place] = process.context().run(lambda: members.make_worker(
            self.ground, place, life=self._lives[place], end_process=lambda: self._worker_ends(place),
            on_expired=lambda: self._worker_expired(place),
        ))
        await process.do(self.workers[place].start())

    async def _restart(self, control: "Control[Any]", node: str) -> None:
        await asyncio.sleep(RESTART_S)
        await control.start(node)

    def _worker_ends(self, place: str) -> None:
        self._start(self.replace_worker(place), name=f"another worker for {place}")

    def _worker_expired(self, place: str) -> None:
        if place in self.workers:
            self._start(self.kill_worker(place), name=f"the watchdog of {place}")

    async def replace_worker(self, place: str) -> None:
        """What a worker's process does that must end or is told to, and then its supervisor."""
        ending = self.workers.get(place)
        if ending is None:
            return
        await self._end_worker(place, ending)
        await asyncio.sleep(RESTART_S)
        if self.workers.get(place) is ending:
            await self.start_worker(place)

    async def _end_worker(self, place: str, ending: WorkerService) -> None:
        self.resume(members.worker_node(place))
        await self._worker_process(place).do(ending.drain())
        if self.workers.get(place) is ending:   # by itself and told to: who is told last must not end its successor
            self.ground.fabric.crash(members.worker_node(place))    # its process ends

    async def _drain(self) -> None:
        """First what lets requests in, last what everything else leans on."""
        for frontend in self.frontends:
            if not frontend.killed:
                await self.process_of(frontend).do(frontend.service.drain(_nothing_runs))
        await self.managers.drain()
        await self._tasks.cancel()
        for place, worker in self.workers.items():
            await self._worker_process(place).do(worker.drain())
        await self.placements.drain()
        await self.counting.drain()

    async def until(self, true: Callable[[], bool], what: str, *, within_s: float) -> None:
        """Waits in virtual time. Raises RegionBug when it takes longer."""
        end = self.clock.monotonic() + within_s
        while not true():
            if self.clock.monotonic() > end:
                raise RegionBug(f"waited {within_s} s for {what}")
            await asyncio.sleep(0.01)

    def _generator(self, name: str) -> random.Random:
        return members.generator(self.seed, name)

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        process = CURRENT.get()
        what = f"{context.get('message')}: {context.get('exception')!r}"
        self.bugs.append(Bug(what=what, node=process.name if process else "", at=self.clock.monotonic()))


async def _nothing_runs() -> None:
    """For a drain whose HTTP edge has no connections of its own."""
