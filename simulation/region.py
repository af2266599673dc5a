"""One region in one process, in virtual time: all five services' real cores, drivers and request coroutines.

Owns the members' lives, the client's side of the API, and the trace of everything that every driver did. What members
are made of is ``members.py``'s; what is asked of the region is the scenario's. Must run on ``simulation.loop``.
"""

import asyncio
import hashlib
import io
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chassis.memory_network import Fabric
from chassis.process import Tasks
from counting.service import CountingService
from frontend.auth.keys import new_key, store_key
from frontend.service import FrontendService
from placement.service import PlacementService
from protos import counting_pb2, counting_rpc
from simulation import members
from simulation.client import Answer, Client
from simulation.loop import VirtualClock, VirtualLoop
from simulation.members import Ground, NodeTrace
from simulation.network import SeededLink, SeededWrites
from simulation.sandbox_driver import Handler
from storage.cipher import Cipher
from storage.memory import MemoryBlobs, MemoryMetadata
from worker.service import WorkerService
from worker_manager.service import ManagerService

REGION = "us-east-1"
ACCOUNT = "000000000000"
RESTART_S = 1.0     # the supervisor starts a process that ended again within this
READY_S = 30.0      # virtual: a region that isn't ready by then never will be
FUNCTIONS = "/2015-03-31/functions"


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
    requests: dict[asyncio.Task[Answer], None] = field(default_factory=dict)
    killed: bool = False


class Region:
    """``async with Region(seed) as region``: ready to serve inside, drained and judged on the way out."""

    def __init__(self, seed: int, *, handlers: Mapping[str, Handler] | None = None) -> None:
        self.seed = seed
        self.frontends: list[Frontend] = []
        self.workers: dict[str, WorkerService] = {}     # by AZ
        self.counting: list[CountingService] = []
        self.placement: PlacementService
        self.manager: ManagerService
        self._handlers = dict(handlers or {})
        self._trace = io.StringIO()
        self._bugs: list[str] = []
        self._lives: Counter[str] = Counter()
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a region runs in virtual time: simulation.loop.run"
        loop.set_exception_handler(self._on_bug)
        self.clock = VirtualClock(loop)
        self._journals = tempfile.TemporaryDirectory(prefix="labda-simulation-")
        writes = SeededWrites(self._generator("store"))
        self.ground = Ground(
            seed=self.seed, clock=self.clock, fabric=Fabric(SeededLink(self._generator("network"))),
            metadata=MemoryMetadata(self.clock, before_write=writes), blobs=MemoryBlobs(),
            journals=Path(self._journals.name), trace=self._trace, handlers=self._handlers,
        )
        try:
            await self._start()
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
        if self._bugs and error is None:
            raise RegionBug("\n".join(self._bugs))

    # ------------------------------------------------------------ what happened

    def trace(self) -> str:
        """NDJSON: every event of every driver with its effects, in the order in which they happened."""
        return self._trace.getvalue()

    def trace_hash(self) -> str:
        return hashlib.sha256(self.trace().encode()).hexdigest()

    # ------------------------------------------------------------ the client's side

    async def request(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, frontend: int = 0
    ) -> Answer:
        """One signed request to one frontend. Raises ConnectionLost when that frontend is killed meanwhile."""
        served_by = self.frontends[frontend]
        if served_by.killed:
            raise ConnectionLost(f"frontend {frontend} is gone")
        task = asyncio.get_running_loop().create_task(served_by.client.send(method, path, body, headers))
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
        """The ledger's pools as its leader knows them. Raises Fault while nobody leads."""
        network = self.ground.fabric.network(members.OPERATOR)
        for address in members.counting_addresses().values():
            answer = await network.connect(address, service="counting").call(
                counting_rpc.LIST_POOLS, counting_pb2.ListPoolsRequest(), timeout_s=2.0
            )
            if not answer.HasField("not_leader"):
                return list(answer.pools)
        raise RegionBug("no member of counting leads")

    # ------------------------------------------------------------ faults

    async def kill_frontend(self, number: int) -> None:
        """As with kill -9: its connections break, it says nothing more, its clients see theirs break."""
        frontend = self.frontends[number]
        frontend.killed = True
        frontend.trace.alive = False
        self.ground.fabric.crash(frontend.service.directory.node.node)
        for task in list(frontend.requests):
            task.cancel()
        await frontend.service.close()

    # ------------------------------------------------------------ lives

    async def _start(self) -> None:
        ground = self.ground
        key = new_key(ACCOUNT, self._generator("root key"), self.clock.wall())
        sealed = Cipher(ground.data_key(), random_bytes=self._generator("root key's nonce").randbytes)
        await store_key(ground.metadata, sealed, key)
        for az in members.AZS:
            self.counting.append(await members.make_counting(ground, az).start())
        self.placement = members.make_placement(ground)
        await self.placement.start()
        self.manager = members.make_manager(ground)
        await self.manager.start()
        for az in members.AZS:
            await self._start_worker(az)
        for az in members.AZS:
            service, trace = members.make_frontend(ground, az)
            await service.start()
            host = f"{service.directory.node.node}.simulated"
            await service.register(http=f"{host}:80", pid=0, version="simulated")
            client = Client(service.application, host=host, key=key, region=REGION, clock=self.clock)
            self.frontends.append(Frontend(service=service, trace=trace, client=client))
        await self.until(self._ready, "the region to be ready", within_s=READY_S)

    def _ready(self) -> bool:
        """Every worker is leased, and every frontend knows them all and who manages them."""
        leased = len(self.manager.core.supply.leases) == len(self.workers)
        return leased and all(
            frontend.service.directory.owners
            and len(frontend.service.directory.of_service("worker")) == len(self.workers)
            for frontend in self.frontends
        )

    async def _start_worker(self, az: str) -> None:
        self._lives[az] += 1
        self.workers[az] = worker = members.make_worker(
            self.ground, az, life=self._lives[az], end_process=lambda: self._worker_ends(az)
        )
        await worker.start()

    def _worker_ends(self, az: str) -> None:
        self._tasks.start(self._replace_worker(az), name=f"another worker for {az}")

    async def _replace_worker(self, az: str) -> None:
        """What a worker's process does that must end, and then its supervisor."""
        await self.workers[az].drain()
        await asyncio.sleep(RESTART_S)
        await self._start_worker(az)

    async def _drain(self) -> None:
        """First what lets requests in, last what everything else leans on."""
        for frontend in self.frontends:
            if not frontend.killed:
                await frontend.service.drain(_nothing_runs)
        await self.manager.drain()
        await self._tasks.cancel()
        for worker in self.workers.values():
            await worker.drain()
        await self.placement.drain()
        for counting in self.counting:
            await counting.drain()

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
        self._bugs.append(f"{context.get('message')}: {context.get('exception')!r}")


async def _nothing_runs() -> None:
    """For a drain whose HTTP edge has no connections of its own."""
