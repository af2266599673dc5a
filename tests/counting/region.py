"""Three counting members in one process, over memory or gRPC: the real service, real files, real Raft."""

import asyncio
import random
from pathlib import Path
from typing import Any

from chassis.certificates import TlsFiles
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.faults import Fault, FaultCode
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Network
from counting.commands import VERSION
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService
from protos import common_pb2
from simulation.loop import VirtualClock, VirtualLoop

A = "000000000000"
REST = common_pb2.Pool(account=A, kind=common_pb2.Pool.UNRESERVED)


def pool_of(function: str) -> common_pb2.Pool:
    return common_pb2.Pool(account=A, kind=common_pb2.Pool.RESERVED, function=function)


def counting(n: int) -> Caller:
    return Caller(service="counting", node=f"counting-az{n}", az=f"az{n}", host=f"h{n}")


def frontend(n: int) -> Caller:
    return Caller(service="frontend", node=f"frontend-az{n}-1", az=f"az{n}", host=f"h{n}")


OPERATOR = Caller(service="operator", node="cli", az="az1", host="h1")
NO_TLS = TlsFiles(authority="", certificate="", key="")
SERVED, RAFT = ["c1:1", "c2:1", "c3:1"], ["c1:2", "c2:2", "c3:2"]


class Region:
    def __init__(
        self, directory: Path, network_of: Any, clock: Clock, addresses: list[str], raft: list[str], *,
        streams_of: Any = None, durable: bool = True,
        versions: dict[int, int] | None = None, **settings: Any,
    ) -> None:
        """``versions``: command languages of members of an older release, by their number."""
        self.versions = dict(versions or {})
        self.directory = directory
        self.network_of = network_of
        self.streams_of = streams_of or network_of
        self.clock = clock
        self.addresses = {counting(n).node: address for n, address in enumerate(addresses, start=1)}
        self.raft = {counting(n).node: address for n, address in enumerate(raft, start=1)}
        self.founders = dict(self.raft)
        self.durable = durable
        self.settings = settings
        self.services: dict[str, CountingService] = {}

    def config(self, n: int) -> CountingConfig:
        caller = counting(n)
        return CountingConfig(
            node=NodeConfig(
                service="counting", node=caller.node, az=caller.az, host=caller.host,
                listen=self.addresses[caller.node], placement=(), tls=NO_TLS, check=True,
            ),
            directory=str(self.directory / caller.node), **self.settings,
            members=self.founders if caller.node in self.founders else self.raft,
        )

    async def start(self, n: int) -> CountingService:
        config = self.config(n)
        if not (Path(config.directory) / "journal").exists():
            member.create(Path(config.directory), config.node.node, joins=config.node.node not in self.founders)
        service = CountingService(
            config, network=self.network_of(counting(n)), streams=self.streams_of(counting(n)), clock=self.clock,
            generator=random.Random(n), durable=self.durable, version=self.versions.get(n, VERSION),
        )
        self.services[config.node.node] = await service.start()
        return service

    async def start_all(self) -> "Region":
        for n in range(1, len(self.addresses) + 1):
            await self.start(n)
        return self

    async def join(self, n: int) -> str:
        """A member more, that votes when it is given a vote; its id."""
        node = counting(n).node
        self.addresses[node], self.raft[node] = f"c{n}:1", f"c{n}:2"
        await self.start(n)
        return node

    def leader(self) -> str | None:
        leading = [(s._raft().term, name) for name, s in self.services.items() if s._raft().leads]
        return max(leading)[1] if leading else None

    def leading(self) -> str:
        leader = self.leader()
        assert leader is not None, "nobody leads"
        return leader

    async def kill(self, name: str) -> None:
        """Gone at once: nothing is said to anybody, what isn't synced is lost."""
        await self.services.pop(name).kill()

    async def close(self) -> None:
        for service in self.services.values():
            await service.drain()

    def network(self, caller: Caller) -> Network:
        network: Network = self.network_of(caller)
        return network


async def region_in_memory(loop: VirtualLoop, directory: Path, **settings: Any) -> Region:
    fabric = Fabric()
    region = Region(
        directory, fabric.network, VirtualClock(loop), SERVED, RAFT, durable=False, **settings
    )
    return await region.start_all()


async def call(
    region: Region, method: Any, request: Any, caller: Caller = OPERATOR, timeout_s: float = 15.0
) -> Any:
    """Asks the leader, following what followers say; who can't be reached at the moment is asked again."""
    channels = {name: region.network(caller).connect(a, service="counting", node=name)
                for name, a in region.addresses.items() if name in region.services}
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        for channel in channels.values():
            try:
                answer = await channel.call(method, request, timeout_s=timeout_s)
            except Fault as fault:
                if fault.code is not FaultCode.UNAVAILABLE:
                    raise
                continue
            if not answer.HasField("not_leader"):
                return answer
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
