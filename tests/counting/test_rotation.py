"""Three members over gRPC whose certificates live for seconds: Raft's streams and the frontends' go on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from chassis.certificates import Authority, Tls
from chassis.clock import SystemClock
from chassis.credentials import Credentials
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller, Network
from tests.counting.region import REST, Region
from tests.counting.test_service import client_of, set_limit, until
from tests.ports import free_ports

LIFETIME_S = 5.0
RENEWED_S = 1.0


class Renewed:
    """Everybody's certificates, renewed all the time by one placement after the other."""

    def __init__(self) -> None:
        self._root = Authority.create()
        self._placements = [self._root.intermediate(f"placement-az{number}") for number in (1, 2, 3)]
        self._credentials: dict[Caller, Credentials] = {}
        self._turn = 0

    def network(self, caller: Caller) -> Network:
        if caller not in self._credentials:
            self._credentials[caller] = Credentials(self._issue(caller))
        return GrpcNetwork(self._credentials[caller])

    def streams(self, caller: Caller) -> FramedNetwork:
        self.network(caller)
        return FramedNetwork(self._credentials[caller])

    def _issue(self, caller: Caller) -> Tls:
        self._turn += 1
        issuer = self._root if caller.service == "operator" else self._placements[self._turn % 3]
        return issuer.issue(caller, lifetime_s=LIFETIME_S)

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWED_S)
            for caller, credentials in self._credentials.items():
                credentials.replace(self._issue(caller))


class Stalls:
    """How long the event loop stood still at most, from here to ``end``. Seconds."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            at = time.monotonic()
            await asyncio.sleep(0.01)
            self._longest_s = max(self._longest_s, time.monotonic() - at)

    def end(self) -> float:
        self._watching.cancel()
        return self._longest_s


@contextlib.asynccontextmanager
async def renewed_region(directory: Path) -> AsyncIterator[Region]:
    renewed = Renewed()
    renewing = asyncio.create_task(renewed.renew())
    addresses = [f"127.0.0.1:{port}" for port in free_ports(6)]
    region = await Region(
        directory, renewed.network, SystemClock(), addresses[:3], addresses[3:], streams_of=renewed.streams,
        durable=False,
    ).start_all()
    try:
        yield region
    finally:
        await region.close()
        renewing.cancel()


async def test_the_leader_stays_and_a_member_joins_again_while_certificates_are_renewed_and_expire(tmp_path):
    async with renewed_region(tmp_path) as region:
        client = await client_of(region, 1)
        await set_limit(region, 10, timeout_s=60.0)
        await until(region.leader, 60.0)
        leader = region.leading()
        term = region.services[leader]._raft().term
        until_s = time.monotonic() + LIFETIME_S + 2 * RENEWED_S
        taken, stalls = 0, Stalls()
        while time.monotonic() < until_s or taken <= 20:
            await client.take(REST, within_s=60.0)
            client.hand_back(REST)
            taken += 1
            await asyncio.sleep(0.01)
        other = next(name for name in region.services if name != leader)
        await region.kill(other)
        restarted = await region.start(int(other.removeprefix("counting-az")))
        await until(lambda: restarted._raft().committed >= region.services[leader]._raft().committed, 60.0)
        # Where this event loop got no processor for as long as a follower is patient, another may lead, rightly.
        if stalls.end() < region.config(1).election_min_s / 2:
            assert (region.leading(), region.services[leader]._raft().term) == (leader, term)
        await client.stop()
