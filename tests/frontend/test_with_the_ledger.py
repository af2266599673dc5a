"""Frontends with the real ledger: three counting members over Raft, in virtual time, small managers and workers."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from chassis.config import NodeConfig
from chassis.rpc import Caller
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService
from frontend.api.ports import Throttled, Unavailable
from protos import counting_pb2, counting_rpc
from simulation.loop import VirtualClock, run
from tests.frontend.region import ACCOUNT, NO_TLS, Region

MEMBERS = {f"counting-az{n}": f"c{n}:1" for n in range(1, 4)}
OPERATOR = Caller(service="operator", node="cli", az="az1", host="h1")


class LedgerRegion(Region):
    """A region whose ledger is the real one."""

    def __init__(self, folder: Path, loop: Any, **settings: Any) -> None:
        super().__init__(VirtualClock(loop), **settings)
        self.folder = folder
        self.members: dict[str, CountingService] = {}

    async def start_counting(self) -> dict[str, str]:
        for number, (node, address) in enumerate(MEMBERS.items(), start=1):
            caller = Caller(service="counting", node=node, az=f"az{number}", host=f"h{number}")
            config = CountingConfig(
                node=NodeConfig(
                    service="counting", node=node, az=caller.az, host=caller.host, listen=address, placement=(),
                    tls=NO_TLS, check=True,
                ),
                directory=str(self.folder / node), members={node: f"{node}:2" for node in MEMBERS},
            )
            member.create(Path(config.directory), node)
            network = self.fabric.network(caller)
            service = CountingService(
                config, network=network, streams=network, clock=self.clock, generator=random.Random(number),
                durable=False,
            )
            self.members[node] = await service.start()
        return dict(MEMBERS)

    async def set_account_limit(self, limit: int) -> None:
        network = self.fabric.network(OPERATOR)
        request = counting_pb2.SetAccountLimitRequest(account=ACCOUNT, limit=limit)
        async with asyncio.timeout(20):
            while True:
                for node, address in MEMBERS.items():
                    channel = network.connect(address, service="counting", node=node)
                    answer = await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=15)
                    if not answer.HasField("not_leader"):
                        return
                await asyncio.sleep(0.05)

    def used(self) -> int:
        return sum(s.in_use for f in self.frontends for s in f.admission.core.stocks.values())

    def granted(self) -> list[int]:
        """By member: permits that its ledger counts as out."""
        return [
            sum(s.core.ledger.granted(pool) for pool in s.core.ledger.pools()) for s in self.members.values()
        ]

    async def kill_leader(self) -> None:
        """Gone at once, as with kill -9."""
        node = max((s._raft().term, name) for name, s in self.members.items() if s._raft().leads)[1]
        service = self.members.pop(node)
        service._raft().crash()
        assert service._links is not None
        assert service._server is not None
        if service._wake is not None:
            service._wake.cancel()
        await service._links.close()
        await service._server.close(0.0)

    async def close(self) -> None:
        await super().close()
        for service in self.members.values():
            await service.drain()


async def until(true: Any, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


def told(folder: Path, tell: Any, **settings: Any) -> None:
    async def main(loop: Any) -> None:
        region = LedgerRegion(folder, loop, **settings)
        await region.start(3)
        try:
            await tell(region)
        finally:
            await region.close()

    run(main)


def test_limits_hold_over_three_frontends_and_nothing_leaks(tmp_path):
    async def tell(region: LedgerRegion) -> None:
        await region.set_account_limit(5)
        worker = region.workers[0]
        gate = worker.hold = asyncio.Event()
        running = [asyncio.create_task(region.invoke(frontend=n % 3)) for n in range(5)]
        await until(lambda: len(worker.running) == 5)
        for n in range(3):
            with pytest.raises(Throttled) as caught:
                await region.invoke(frontend=n)
            assert caught.value.detail["value"] == 5
        gate.set()
        await asyncio.gather(*running)
        assert worker.peak == 5
        await until(lambda: region.used() == 0 and region.granted() == [0, 0, 0])

    told(tmp_path, tell)


def test_a_reservation_binds_the_next_request_and_goes_again(tmp_path):
    async def tell(region: LedgerRegion) -> None:
        worker = region.workers[0]
        await region.invoke(frontend=0)
        gate = worker.hold = asyncio.Event()
        running = asyncio.create_task(region.invoke(frontend=1))
        await until(lambda: bool(worker.running))
        worker.hold = None
        limits = region.frontends[2]._limits
        assert await limits.put_reserved(ACCOUNT, "hello", 0)
        for n in range(3):
            with pytest.raises(Throttled) as caught:
                await region.invoke(frontend=n)
            assert caught.value.reason == "ReservedFunctionConcurrentInvocationLimitExceeded"
        assert (await region.invoke(b"1", frontend=0, name="other")).payload == b"1"
        assert (await limits.get(ACCOUNT)).reserved == {"hello": 0}
        gate.set()
        await running
        assert await limits.put_reserved(ACCOUNT, "hello", 2)
        assert (await region.invoke(b"2", frontend=1)).payload == b"2"
        assert await limits.put_reserved(ACCOUNT, "hello", None)
        assert (await region.invoke(b"3", frontend=2)).payload == b"3"
        await until(lambda: region.used() == 0 and region.granted() == [0, 0, 0])

    told(tmp_path, tell)


def test_load_from_three_frontends_is_served_and_never_above_the_limit(tmp_path):
    async def tell(region: LedgerRegion) -> None:
        await region.set_account_limit(7)
        outcomes = {"ok": 0, "throttled": 0, "unavailable": 0}
        rng = random.Random(5)

        async def client(frontend: int) -> None:
            for _ in range(30):
                await asyncio.sleep(rng.uniform(0, 0.2))
                try:
                    await region.invoke(frontend=frontend)
                    outcomes["ok"] += 1
                except Throttled:
                    outcomes["throttled"] += 1
                except Unavailable:
                    outcomes["unavailable"] += 1

        worker = region.workers[0]
        worker.takes_s = 0.05
        async with asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task(client(n % 3))
        assert worker.peak <= 7
        assert outcomes["ok"] > 200, outcomes
        assert outcomes["unavailable"] == 0, outcomes
        await until(lambda: region.used() == 0 and region.granted() == [0, 0, 0])

    told(tmp_path, tell)


def test_a_new_leader_is_found_and_what_is_held_goes_on_meanwhile(tmp_path):
    async def tell(region: LedgerRegion) -> None:
        await region.set_account_limit(6)
        gate = region.workers[0].hold = asyncio.Event()
        running = asyncio.create_task(region.invoke(frontend=0))
        await until(lambda: bool(region.workers[0].running))
        region.workers[0].hold = None
        await region.invoke(frontend=1)
        await region.kill_leader()
        assert (await region.invoke(b"1", frontend=1)).payload == b"1", "its permit was idle here"
        begun = region.clock.monotonic()
        while True:
            try:
                await region.invoke(b"2", frontend=2)
                break
            except Unavailable:
                assert region.clock.monotonic() < begun + 3.0
        gate.set()
        await running
        await until(lambda: region.used() == 0 and region.granted() == [0, 0])

    told(tmp_path, tell)


def test_two_runs_are_the_same(tmp_path):
    """Nothing here reads a real clock or draws from an unseeded source: the workers see the same starts."""
    seen: list[list[str]] = []

    async def tell(region: LedgerRegion) -> None:
        await asyncio.gather(*(region.invoke(str(n).encode(), frontend=n % 3) for n in range(12)))
        seen.append([*region.workers[0].starts, f"{region.clock.monotonic():.9f}"])

    for name in ("first", "second"):
        told(tmp_path / name, tell)
    assert seen[0] == seen[1]
