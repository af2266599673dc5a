"""Who a simulated region consists of, and each member made by the constructor that its own ``__main__`` uses.

Owns names, addresses and configurations. Everything that a real process takes from its host is passed in here: virtual
time, a generator seeded by (seed, node), the fabric, stores and sandboxes in memory. Refuses to know when members start
and what is done with them (``region.py``).
"""

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from chassis.certificates import TlsFiles
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.machine import Trace
from chassis.memory_network import Fabric
from chassis.rpc import Caller
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService
from frontend.api.model import load
from frontend.config import FrontendConfig
from frontend.service import FrontendService, World
from placement.config import PlacementConfig
from placement.service import PlacementService
from simulation.sandbox_driver import Handler, MemoryDriver
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
class Ground:
    """What members of one region share: the only things that connect them."""

    seed: int
    clock: Clock
    fabric: Fabric
    metadata: MemoryMetadata
    blobs: MemoryBlobs
    journals: Path                      # counting's files: it writes them itself, and reads nothing but them
    trace: TextIO                       # every driver's lines, in the order in which they happened
    handlers: Mapping[str, Handler]     # what functions do, by the last part of their handler's name

    def generator(self, name: str) -> random.Random:
        return generator(self.seed, name)

    def data_key(self) -> bytes:
        return self.generator("data key").randbytes(KEY_BYTES)


def generator(seed: int, name: str) -> random.Random:
    """Seeded by text, so that one member's draws don't hang on how many others there are."""
    return random.Random(f"{seed}/{name}")


class NodeTrace(Trace):
    """One node's lines in the region's trace. A killed process writes none, whatever its remains still do."""

    def __init__(self, file: TextIO, node: str) -> None:
        super().__init__(file, node)
        self.alive = True

    def write(self, at: float, event: object, effects: list[object]) -> None:
        if self.alive:
            super().write(at, event, effects)


def counting_node(az: str) -> str:
    return f"counting-{az}"


PLACEMENT = f"placement-{AZS[0]}"
MANAGER = f"manager-{AZS[1]}"
OPERATOR = Caller(service="operator", node="operator", az=AZS[0], host="operator")


def address(node: str) -> str:
    """Where a seed listens. Everybody else takes any port and is found by registration."""
    return f"{node}:9000"


def counting_addresses() -> dict[str, str]:
    return {counting_node(az): address(counting_node(az)) for az in AZS}


def _node(service: str, node: str, az: str, host: str, *, seed: bool = False) -> NodeConfig:
    return NodeConfig(
        service=service, node=node, az=az, host=host, listen=address(node) if seed else f"{node}:0",
        placement=(address(PLACEMENT),), tls=_NO_TLS, check=True,
    )


def make_counting(ground: Ground, az: str) -> CountingService:
    node = _node("counting", counting_node(az), az, f"control-{az}", seed=True)
    directory = ground.journals / node.node
    if not directory.exists():
        member.create(directory, node.node)
    return CountingService(
        CountingConfig(node=node, directory=str(directory), members=counting_addresses()),
        network=ground.fabric.network(node.identity), clock=ground.clock, generator=ground.generator(node.node),
        durable=False, trace=NodeTrace(ground.trace, node.node),
    )


def make_placement(ground: Ground) -> PlacementService:
    node = _node("placement", PLACEMENT, AZS[0], f"control-{AZS[0]}", seed=True)
    return PlacementService(
        PlacementConfig(node=node, store="memory:"), network=ground.fabric.network(node.identity), clock=ground.clock,
        rng=ground.generator(node.node), leases=MetadataLeases(ground.metadata),
        trace=NodeTrace(ground.trace, node.node),
    )


def make_manager(ground: Ground) -> ManagerService:
    node = _node("worker_manager", MANAGER, AZS[1], f"control-{AZS[1]}")
    return ManagerService(
        ManagerConfig(node=node), network=ground.fabric.network(node.identity), clock=ground.clock,
        rng=ground.generator(node.node), trace=NodeTrace(ground.trace, node.node),
    )


def make_worker(ground: Ground, az: str, *, life: int, end_process: Callable[[], None]) -> WorkerService:
    """``life`` counts the processes of this worker: each draws a nonce of its own."""
    node = _node("worker", f"worker-{az}-1", az, f"host-{az}-1")
    config = WorkerConfig(
        node=node, counting=tuple(counting_addresses().values()), memory_mb=WORKER_MEMORY_MB, state_dir="/simulated",
        runtimes_dir="/simulated",
    )
    return WorkerService(
        config, network=ground.fabric.network(node.identity), driver=MemoryDriver(handlers=ground.handlers),
        clock=ground.clock, rng=ground.generator(f"{node.node} life {life}"), log_files=MemoryFiles(),
        scratch=io.BytesIO, end_process=end_process, trace=NodeTrace(ground.trace, node.node),
    )


def make_frontend(ground: Ground, az: str) -> tuple[FrontendService, NodeTrace]:
    node = _node("frontend", f"frontend-{az}-1", az, f"control-{az}")
    rng = ground.generator(node.node)
    key = ground.data_key()
    trace = NodeTrace(ground.trace, node.node)
    world = World(
        network=ground.fabric.network(node.identity), clock=ground.clock, rng=rng, metadata=ground.metadata,
        blobs=ground.blobs, cipher=Cipher(key, random_bytes=rng.randbytes), data_key=key, model=load(),
        nonce=rng.getrandbits(63), trace=trace,
    )
    config = FrontendConfig(
        node=node, counting=tuple(counting_addresses().values()), store="memory:", key_file="",
    )
    return FrontendService(config, world), trace
