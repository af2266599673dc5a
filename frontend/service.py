"""A frontend put together: its parts, their order of starting, and how it drains.

Owns wiring and the gRPC edge. Everything outside comes in by ``World``, so that the simulation runs this very class.
Refuses to know sockets and HTTP servers (``http_server.py``, which mounts ``application``).
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.machine import Trace
from chassis.process import Tasks
from chassis.rpc import Handlers, Network, Server
from frontend import messages as m
from frontend.admission import Admission, ToCounting
from frontend.api.app import Application
from frontend.api.context import Services
from frontend.api.model import Model
from frontend.auth.authenticator import Authenticator
from frontend.auth.keys import Cipher, KeyRing
from frontend.auth.links import CodeLinks
from frontend.code_blobs import CodeBlobs
from frontend.config import FrontendConfig
from frontend.core import FrontendCore, Timing
from frontend.ids import RandomIds
from frontend.invoke import FunctionInvoker, Patience
from frontend.linger import Lingering
from frontend.metadata import Follower
from frontend.peers.counting import CountingLinks, Limits
from frontend.peers.managers import Managers
from frontend.peers.workers import Workers
from frontend.reserving import Place, Reserving
from frontend.revising import RevisingFunctions
from frontend.settling import Settler
from frontend.tickets import CodeService, Tickets, derive_key
from protos import frontend_rpc, placement_pb2
from storage.interfaces import BlobStore, MetadataStore

_log = structlog.get_logger(__name__)

VIEW_S = 1.0    # how long the start waits for the region's first view

GOODBYE_S = 1.0  # how long a drained frontend waits for the ledger to close its session


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside of a frontend. ``nonce`` names this process; ``data_key`` is the region's."""

    network: Network
    clock: Clock
    rng: random.Random
    metadata: MetadataStore
    blobs: BlobStore
    cipher: Cipher
    data_key: bytes
    model: Model
    nonce: int
    trace: Trace | None = None


class FrontendService:
    """``start`` it, mount ``application``, ``drain`` it."""

    def __init__(self, config: FrontendConfig, world: World) -> None:
        self._config = config
        self._world = world
        self._tasks = Tasks()
        self._server: Server | None = None
        node = config.node
        self.directory = Directory(
            network=world.network, clock=world.clock, seeds=node.placement,
            node=placement_pb2.Node(
                node=node.node, service=node.service, az=node.az, host=node.host, nonce=world.nonce
            ),
        )
        self._build_metadata()
        self._build_data_path()
        self.application = self._build_api()

    def _build_metadata(self) -> None:
        world, node = self._world, self._config.node
        self.functions = RevisingFunctions(world.metadata, world.cipher, world.clock)
        self.ring = KeyRing(world.metadata, world.cipher)
        self._ids = RandomIds(world.rng)
        self._settler = Settler(world.metadata, self.functions, self._ids)
        self.functions.on_unsettled = self._settler.adopt
        self._follower = Follower(
            world.metadata, self.functions, self.ring, node=node.node, clock=world.clock
        )

    def _build_data_path(self) -> None:
        config, world = self._config, self._world
        node = config.node
        core = FrontendCore(Timing(
            waiting_max=config.waiting_max, waiting_per_account_max=config.waiting_per_account_max
        ))
        self.admission = Admission(
            core, clock=world.clock, send=self._to_counting, trace=world.trace, check=node.check
        )
        self._counting = CountingLinks(
            network=world.network, members=config.counting, node=node.node, nonce=world.nonce,
            feed=self.admission.feed,
        )
        self._limits = Limits(
            network=world.network, members=config.counting, links=self._counting, clock=world.clock, rng=world.rng
        )
        self.lingering = Lingering()
        self._managers = Managers(
            network=world.network, node=node.node, directory=self.directory, on_recall=self.lingering.recall,
            on_break=self.lingering.drop,
        )
        self.functions.on_revised = self._managers.revised
        self.workers = Workers(network=world.network, clock=world.clock, node=node.node)
        self._tickets = Tickets(derive_key(world.data_key, "code tickets"), world.clock, self._code_addresses)
        reserving = Reserving(
            clock=world.clock, place=Place(region=node.region, az=node.az), managers=self._managers,
            lingering=self.lingering, tickets=self._tickets,
        )
        self.invoker = FunctionInvoker(
            clock=world.clock, node=node.node, admission=self.admission, reserving=reserving, workers=self.workers,
            lingering=self.lingering, patience=Patience(permit_s=config.permit_s),
        )

    def _build_api(self) -> Application:
        world, region = self._world, self._config.node.region
        self._blobs = CodeBlobs(world.blobs)
        services = Services(
            region=region, model=world.model, clock=world.clock, ids=self._ids,
            links=CodeLinks(derive_key(world.data_key, "code links")), functions=self.functions,
            settling=self._settler, blobs=self._blobs, limits=self._limits, invoker=self.invoker,
            runtimes=self._runtimes,
        )
        return Application(services, Authenticator(self.ring, region, world.clock))

    async def start(self) -> None:
        """Ready when it can answer: records listed, a session with the ledger had or given time for, registered."""
        self._tasks.start(self._follower.run(), name="follow metadata")
        self._counting.start()
        await self._follower.ready.wait()
        if not await self._counting.welcomed(self._config.session_s):
            _log.warning("no session with the ledger yet", members=self._config.counting)
        handlers = Handlers()
        handlers.fetch(frontend_rpc.FETCH, CodeService(self._tickets, self._blobs).fetch)
        self._server = await self._world.network.serve(self._config.node.listen, handlers)
        self.directory.node.address = self._server.address
        self.directory.observe(self.workers.see)

    async def register(self, http: str, pid: int, version: str) -> None:
        """Joins the region under its HTTP address. Without a placement it goes on: peers are found when one comes."""
        node = self.directory.node
        node.http, node.pid, node.version = http, pid, version
        self.directory.start()
        try:
            await self.directory.ready(VIEW_S)
        except TimeoutError:
            _log.warning("no placement answers yet", seeds=self._config.node.placement)

    async def drain(self, running: Callable[[], Awaitable[None]]) -> None:
        """No new work: ``running`` waits for what runs. Then everything goes back."""
        self.directory.leave()
        await running()
        self.lingering.close()
        self.admission.feed(m.Leave())
        if not await self._counting.goodbye(GOODBYE_S):
            _log.warning("no goodbye from the ledger: it counts what is held here by the workers' word")
        await self._settler.close()
        try:
            await self._follower.withdraw()
        except Fault as fault:
            _log.warning("metadata lease not given back", fault=fault.message)
        await self.close()

    async def close(self) -> None:
        """Ends everything at once; what is held goes back by the workers' word."""
        self.admission.close()
        await self._settler.close()
        for part in (self.workers, self._managers, self._counting, self._limits, self.directory):
            await part.close()
        await self._tasks.cancel()
        if self._server is not None:
            await self._server.close(0)

    def _to_counting(self, message: ToCounting) -> None:
        self._counting.send(message)

    def _code_addresses(self) -> list[str]:
        own = self.directory.node.address
        others = [node.address for node in self.directory.of_service("frontend") if node.address != own]
        return [own, *others]

    def _runtimes(self) -> frozenset[str]:
        workers = self.directory.of_service("worker")
        return frozenset(runtime for worker in workers for runtime in worker.capacity.runtimes)
