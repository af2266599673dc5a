"""A frontend put together: its parts, their order of starting, and how it drains.

Owns wiring and the gRPC edge. Everything outside comes in by ``World``, so that the simulation runs this very class.
Refuses to know sockets and HTTP servers (``http_server.py``, which mounts ``application``).
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.machine import Trace
from chassis.metrics import Metrics
from chassis.process import Tasks
from chassis.rpc import Handlers, Network, Server, StreamNetwork
from frontend import messages as m
from frontend.accounts_service import AccountsService
from frontend.admission import Admission, ToCounting
from frontend.api.app import Application
from frontend.api.context import Services
from frontend.api.model import Model
from frontend.auth.accounts import AccountBook
from frontend.auth.authenticator import Authenticator
from frontend.auth.issuing import KeyIssuer
from frontend.auth.keys import Cipher, KeyRing
from frontend.auth.links import CodeLinks
from frontend.code_blobs import CodeBlobs
from frontend.collecting import Collector
from frontend.config import FrontendConfig
from frontend.core import FrontendCore, Timing
from frontend.functions import FunctionRecord
from frontend.gate import Gate, GateBounds
from frontend.health import Health
from frontend.ids import RandomIds
from frontend.invoke import FunctionInvoker, Patience
from frontend.linger import Lingering
from frontend.metadata import Follower
from frontend.metrics import measure, measure_api, measure_invokes, measure_peers
from frontend.peers.counting import CountingLinks, Limits
from frontend.peers.managers import Managers
from frontend.peers.workers import Workers
from frontend.recording import RecordedApplication, RecordedInvoker
from frontend.reserving import Place, Reserving, function_id
from frontend.retries import RetryBudget
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
    streams: StreamNetwork      # to workers: every invocation goes over it
    clock: Clock
    rng: random.Random
    metadata: MetadataStore
    blobs: BlobStore
    cipher: Cipher
    data_key: bytes
    model: Model
    nonce: int
    trace: Trace | None = None
    metrics: Metrics = field(default_factory=Metrics)


class FrontendService:
    """``start`` it, mount ``application``, ``drain`` it."""

    def __init__(self, config: FrontendConfig, world: World) -> None:
        self._config = config
        self._world = world
        self.metrics = world.metrics
        self._tasks = Tasks()
        self._server: Server | None = None
        node = config.node
        self.directory = Directory(
            network=world.network, clock=world.clock, seeds=node.placement,
            node=placement_pb2.Node(
                node=node.node, service=node.service, az=node.az, host=node.host, nonce=world.nonce,
                metrics=world.metrics.address,
            ),
        )
        self._build_metadata()
        self._build_data_path()
        self.application = self._build_api()

    def _build_metadata(self) -> None:
        world, node = self._world, self._config.node
        self.functions = RevisingFunctions(world.metadata, world.cipher, world.clock)
        self.ring = KeyRing(world.metadata, world.cipher)
        accounts = AccountBook(world.metadata)
        issuer = KeyIssuer(world.metadata, world.cipher, accounts, world.rng)
        self._accounts = AccountsService(accounts, issuer, self.ring, clock=world.clock, rng=world.rng)
        self._ids = RandomIds(world.rng)
        self._settler = Settler(world.metadata, self.functions, self._ids, self._retire)
        self.functions.on_unsettled = self._settler.adopt
        self._collector = Collector(
            world.blobs, self.functions, clock=world.clock, rng=world.rng, grace_s=self._config.code_grace_s
        )
        self._follower = Follower(
            world.metadata, self.functions, self.ring, node=node.node, clock=world.clock
        )

    def _build_data_path(self) -> None:
        config, world = self._config, self._world
        node = config.node
        core = FrontendCore(Timing(
            waiting_max=config.waiting_max, waiting_per_account_max=config.waiting_per_account_max,
            adrift_s=config.adrift_s,
        ))
        self.admission = Admission(
            core, clock=world.clock, send=self._to_counting, trace=world.trace, check=node.check,
            observe=measure(world.metrics, core),
        )
        self.workers = Workers(network=world.streams, clock=world.clock, node=node.node)
        self._counting = CountingLinks(
            network=world.network, seeds=config.counting, node=node.node, nonce=world.nonce,
            feed=self.admission.feed, leader=lambda: core.link, usage=core.usage, on_gone=self.workers.gone,
        )
        self.workers.ask_gone = self._counting.ask_gone
        self._limits = Limits(links=self._counting, clock=world.clock, rng=world.rng)
        self.lingering = Lingering()
        self._managers = Managers(
            network=world.network, node=node.node, directory=self.directory, on_recall=self.lingering.recall,
            on_break=self.lingering.drop,
        )
        self.functions.on_revised = self._managers.revised
        self.functions.on_current = self.functions.vouch_for_all
        self._managers.on_owners = self.functions.vouch_for_all
        self._tickets = Tickets(derive_key(world.data_key, "code tickets"), world.clock, self._code_addresses)
        budget = RetryBudget()
        reserving = Reserving(
            clock=world.clock, place=Place(region=node.region, az=node.az), managers=self._managers,
            lingering=self.lingering, tickets=self._tickets, copy=self.functions, budget=budget,
        )
        self.invoker = FunctionInvoker(
            clock=world.clock, node=node.node, admission=self.admission, reserving=reserving, workers=self.workers,
            lingering=self.lingering, newest=self.functions.newest, budget=budget,
            patience=Patience(permit_s=config.permit_s),
        )
        measure_invokes(world.metrics, self.invoker.counts, self.invoker.budget)
        measure_peers(world.metrics, self._managers, self.workers, self.lingering)

    def _build_api(self) -> Application:
        world, region = self._world, self._config.node.region
        self._blobs = CodeBlobs(world.blobs)
        services = Services(
            region=region, model=world.model, clock=world.clock, ids=self._ids,
            links=CodeLinks(derive_key(world.data_key, "code links")), functions=self.functions,
            settling=self._settler, blobs=self._blobs, limits=self._limits,
            invoker=RecordedInvoker(self.invoker, world.trace, world.clock) if world.trace else self.invoker,
            runtimes=self._runtimes,
        )
        bounds = GateBounds(requests_max=self._config.requests_max, lag_s=self._config.lag_s)
        self.gate = Gate(bounds, world.clock, self._account_of)
        self.health = Health(self._lacking)
        parts = (services, Authenticator(self.ring, region, world.clock, keys_s=self._config.keys_s), self.gate,
                 self.health)
        bodies = self._config.http_limits.bodies_bytes_max
        application = RecordedApplication(*parts, bodies_bytes_max=bodies, trace=world.trace) if world.trace else (
            Application(*parts, bodies_bytes_max=bodies)
        )
        measure_api(world.metrics, application.counts, self.gate, application.bodies)
        return application

    async def start(self) -> None:
        """Ready when it can answer: records listed, a session with the ledger had or given time for, registered."""
        self._tasks.start(self._follower.run(), name="follow metadata")
        self._tasks.start(self._collector.run(), name="collect unused code")
        self._counting.start()
        await self._follower.ready.wait()
        if not await self._counting.welcomed(self._config.session_s):
            _log.warning("no session with the ledger yet", members=list(self._config.counting))
        handlers = Handlers()
        handlers.fetch(frontend_rpc.FETCH, CodeService(self._tickets, self._blobs).fetch)
        self._accounts.serve(handlers)
        self._server = await self._world.network.serve(self._config.node.listen, handlers)
        self.directory.node.address = self._config.node.reached(self._server.address)
        self.directory.observe(self.workers.see)
        self.directory.observe(self._counting.see)

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
        self.gate.close()
        self.admission.close()
        await self._settler.close()
        for part in (self.workers, self._managers, self._counting, self.directory):
            await part.close()
        await self._tasks.cancel()
        if self._server is not None:
            await self._server.close(0)

    async def _retire(self, record: FunctionRecord, deleted: bool) -> None:
        await self._managers.retire(function_id(record), deleted=deleted)

    def _to_counting(self, message: ToCounting) -> None:
        self._counting.send(message)

    def _code_addresses(self) -> list[str]:
        own = self.directory.node.address
        others = [node.address for node in self.directory.of_service("frontend") if node.address != own]
        return [own, *others]

    def _lacking(self) -> str:
        """What this frontend needs before it can serve, and later goes on without for a while."""
        if not self._follower.ready.is_set():
            return "it has no copy of the metadata yet"
        if not self._counting.has_session:
            return "it has had no session with the ledger yet"
        return ""

    def _account_of(self, key_id: str) -> str:
        key = self.ring.known(key_id)
        return key.account if key is not None else ""

    def _runtimes(self) -> frozenset[str]:
        workers = self.directory.of_service("worker")
        return frozenset(runtime for worker in workers for runtime in worker.capacity.runtimes)
