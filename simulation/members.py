"""Who a simulated region consists of, and each member made by the constructor that its own ``__main__`` uses.

Owns names, addresses and configurations. Everything that a real process takes from its host is passed in here: virtual
time, a generator seeded by (seed, node), the fabric, stores and sandboxes in memory. Refuses to know when members start
and what is done with them (``region.py``).
"""

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chassis.certificates import TlsFiles
from chassis.config import NodeConfig, changed
from chassis.machine import Trace
from chassis.memory_network import Fabric
from chassis.rpc import Caller
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService
from frontend.api.model import load
from frontend.config import FrontendConfig
from frontend.service import FrontendService, World
from placement.config import FleetConfig, PlacementConfig
from placement.service import PlacementService
from simulation.loop import VirtualClock, VirtualLoop
from simulation.processes import HostClock, Process
from simulation.record import Lines
from simulation.sandbox_driver import Handler, MemoryDriver
from simulation.store_link import BlobLink, StoreLink
from storage.cipher import KEY_BYTES, Cipher
from storage.leases import MetadataLeases
from storage.memory import MemoryBlobs, MemoryMetadata
from worker.config import WorkerConfig
from worker.logs import MemoryFiles
from worker.service import WorkerService
from worker_manager.config import ManagerConfig
from worker_manager.service import ManagerService

AZS = ("az1", "az2", "az3")
WORKER_MEMORY_MB = 2048
_NO_TLS = TlsFiles(authority="", certificate="", key="")   # the fabric carries identities itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which processes there are besides one member of counting and one frontend per AZ."""

    placements: Mapping[str, str]       # AZ by node: one leads, the others stand by
    managers: Mapping[str, str]
    workers_per_az: int = 1
    worker_memory_mb: int = WORKER_MEMORY_MB

    @property
    def places(self) -> tuple[str, ...]:
        """Of workers: "az1" is the first host of its AZ, "az1-2" the second."""
        numbers = range(1, self.workers_per_az + 1)
        return tuple(az if number == 1 else f"{az}-{number}" for az in AZS for number in numbers)

    def nodes_of(self, az: str) -> tuple[str, ...]:
        """Every process of an AZ."""
        controls = (COUNTING, SUCCESSORS, self.placements, self.managers)
        control = [node for nodes in controls for node in nodes if nodes[node] == az]
        workers = [worker_node(place) for place in self.places if az_of(place) == az]
        return (*control, frontend_node(az), *workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What members of one region share: the only things that connect them."""

    seed: int
    loop: VirtualLoop
    clock: VirtualClock                 # true time: the region's own and its clients'
    hosts: dict[str, HostClock]
    processes: dict[str, Process]       # by node, each over all its lives
    fabric: Fabric
    metadata: MemoryMetadata
    blobs: MemoryBlobs
    journals: Path                      # counting's files: it writes them itself, and reads nothing but them
    trace: Lines                        # every driver's lines, in the order in which they happened
    fleet: FleetConfig                  # placement's: the time scale of leases among other things
    shape: "Shape"
    handlers: Mapping[str, Handler]     # what functions do, by the last part of their handler's name
    check: bool = True                  # every core's invariants after every event
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by service, else the defaults

    def host(self, name: str) -> HostClock:
        return self.hosts.setdefault(name, HostClock(self.loop))

    def process(self, node: str, host: str = "") -> Process:
        """``host`` is where it runs, if that isn't where nodes of its kind do."""
        if node not in self.processes:
            self.processes[node] = Process(node, self.host(host or host_of(node)))
        return self.processes[node]

    def generator(self, name: str) -> random.Random:
        return generator(self.seed, name)

    def data_key(self) -> bytes:
        return self.generator("data key").randbytes(KEY_BYTES)


def generator(seed: int, name: str) -> random.Random:
    """Seeded by text, so that one member's draws don't hang on how many others there are."""
    return random.Random(f"{seed}/{name}")


class NodeTrace(Trace):
    """One node's lines in the region's trace. A killed process writes none, whatever its remains still do."""

    def __init__(self, lines: Lines, node: str) -> None:
        super().__init__(_Nowhere(), node)
        self._lines = lines
        self.alive = True

    def _put(self, line: dict[str, Any]) -> None:
        if self.alive:
            self._lines.put(line)


class _Nowhere:
    """No file: lines are kept as they are."""

    def write(self, text: str, /) -> int:
        raise AssertionError(f"a simulated process wrote {text!r}")

    def close(self) -> None: ...


def counting_node(az: str) -> str:
    return f"counting-{az}"


def frontend_node(az: str) -> str:
    return f"frontend-{az}-1"


COUNTING = {counting_node(az): az for az in AZS}
# Of members whose files are lost: an empty one that an operator gives the lost one's place, under another id.
SUCCESSORS = {f"{node}-2": az for node, az in COUNTING.items()}
# As in the embedded cluster: one of each stands by, in another AZ.
PLACEMENTS = {f"placement-{az}": az for az in AZS[:2]}
MANAGERS = {f"manager-{az}": az for az in AZS[1:]}


def az_of(place: str) -> str:
    return place.partition("-")[0]


def worker_node(place: str) -> str:
    az, _, number = place.partition("-")
    return f"worker-{az}-{number or 1}"


def host_of(node: str) -> str:
    """Workers have hosts of their own; everything else of an AZ shares one."""
    kind, az, *_ = node.split("-")
    return node.replace("worker", "host", 1) if kind == "worker" else f"control-{az}"


OPERATOR = Caller(service="operator", node="operator", az=AZS[0], host="operator")


def address(node: str) -> str:
    """Where a seed listens. Everybody else takes any port and is found by registration."""
    return f"{node}:9000"


def counting_addresses() -> dict[str, str]:
    return {counting_node(az): address(counting_node(az)) for az in AZS}


def raft_addresses() -> dict[str, str]:
    return {counting_node(az): f"{counting_node(az)}:9001" for az in AZS}


# As the embedded cluster is, and as the one of containers is.
EMBEDDED = Shape(placements=PLACEMENTS, managers=MANAGERS)
THREE_AZS = Shape(
    placements={f"placement-{az}": az for az in AZS}, managers={f"manager-{az}": az for az in AZS}, workers_per_az=2,
    worker_memory_mb=2 * WORKER_MEMORY_MB,
)


def _node(ground: Ground, service: str, node: str, az: str, *, seed: bool = False) -> NodeConfig:
    return NodeConfig(
        service=service, node=node, az=az, host=host_of(node), listen=address(node) if seed else f"{node}:0",
        placement=tuple(map(address, ground.shape.placements)), tls=_NO_TLS, check=ground.check,
    )


def make_counting(ground: Ground, name: str, *, life: int) -> tuple[CountingService, NodeTrace]:
    """A later life of a member goes on from its files. A successor joins, and votes when the others' log says so."""
    joins = name in SUCCESSORS
    az = SUCCESSORS[name] if joins else COUNTING[name]
    node = _node(ground, "counting", name, az, seed=True)
    directory = ground.journals / node.node
    if not directory.exists():
        member.create(directory, node.node, joins=joins)
    trace = NodeTrace(ground.trace, name)
    network = ground.fabric.network(node.identity)
    others = {one: f"{one}:9001" for one in SUCCESSORS} if joins else {}    # who of them there is, it finds out
    config = CountingConfig(node=node, directory=str(directory), members=raft_addresses() | others)
    service = CountingService(
        changed(config, ground.changes.get("counting", {})), network=network, streams=network,
        clock=ground.process(name).clock, durable=False, trace=trace,
        generator=ground.generator(name if life == 1 else f"{name} life {life}"),
    )
    return service, trace


def make_placement(
    ground: Ground, name: str, *, life: int, store: StoreLink,
) -> tuple[PlacementService, NodeTrace]:
    az = ground.shape.placements[name]
    node = _node(ground, "placement", name, az, seed=True)
    trace = NodeTrace(ground.trace, name)
    service = PlacementService(
        PlacementConfig(node=node, store="memory:", fleet=ground.fleet), network=ground.fabric.network(node.identity),
        clock=ground.process(name).clock, rng=ground.generator(f"{name} life {life}"), leases=MetadataLeases(store),
        trace=trace,
    )
    return service, trace


def make_manager(ground: Ground, name: str, *, life: int) -> tuple[ManagerService, NodeTrace]:
    az = ground.shape.managers[name]
    node = _node(ground, "worker_manager", name, az)
    trace = NodeTrace(ground.trace, name)
    service = ManagerService(
        ManagerConfig(node=node), network=ground.fabric.network(node.identity), clock=ground.process(name).clock,
        rng=ground.generator(f"{name} life {life}"), trace=trace,
    )
    return service, trace


def make_worker(
    ground: Ground, place: str, *, life: int, end_process: Callable[[], None], on_expired: Callable[[], None],
) -> tuple[WorkerService, NodeTrace]:
    """``life`` counts the processes of this worker: each draws a nonce of its own. ``on_expired``: by its watchdog."""
    name = worker_node(place)
    node = _node(ground, "worker", name, az_of(place))
    spawner = ground.process(f"{name} spawner", node.host)
    config = WorkerConfig(
        node=node, counting=counting_addresses(), memory_mb=ground.shape.worker_memory_mb,
        state_dir="/simulated", runtimes_dir="/simulated",
    )
    config = changed(config, ground.changes.get("worker", {}))
    network = ground.fabric.network(node.identity)
    driver = MemoryDriver(
        handlers=ground.handlers, timeout_cap_s=config.timeout_cap_s, on_expired=on_expired, context=spawner.context,
    )
    trace = NodeTrace(ground.trace, node.node)
    return WorkerService(
        config, network=network, streams=network, driver=driver, clock=ground.process(name).clock,
        rng=ground.generator(f"{node.node} life {life}"), log_files=MemoryFiles(), scratch=io.BytesIO,
        end_process=end_process, trace=trace,
    ), trace


def make_frontend(
    ground: Ground, az: str, *, life: int = 1, store: StoreLink,
) -> tuple[FrontendService, NodeTrace]:
    """``life`` counts the processes of this name: each draws a nonce of its own."""
    node = _node(ground, "frontend", frontend_node(az), az)
    rng = ground.generator(node.node if life == 1 else f"{node.node} life {life}")
    key = ground.data_key()
    trace = NodeTrace(ground.trace, node.node)
    network = ground.fabric.network(node.identity)
    world = World(
        network=network, streams=network, clock=ground.process(node.node).clock, rng=rng, metadata=store,
        blobs=BlobLink(ground.blobs, store), cipher=Cipher(key, random_bytes=rng.randbytes), data_key=key, model=load(),
        nonce=rng.getrandbits(63), trace=trace,
    )
    config = FrontendConfig(
        node=node, counting=counting_addresses(), store="memory:", key_file="",
    )
    return FrontendService(changed(config, ground.changes.get("frontend", {})), world), trace
