"""Three times the capacity in virtual time; an account at ten times its share; clients that go while they wait."""

import asyncio
import json
import statistics

import pytest

from frontend.auth.keys import new_key, store_key
from simulation import loop as virtual
from simulation import members
from simulation.client import Client, Left
from simulation.members import WORKER_MEMORY_MB
from simulation.region import FUNCTIONS, REGION, Region
from simulation.scenario import create, reserve
from storage.cipher import Cipher

RUN_S = 0.25
MEMORY_MB = WORKER_MEMORY_MB // 2       # two sandboxes on each of three workers
CAPACITY = 6 / RUN_S                    # invokes per second
OTHER = "111122223333"


class OtherAccount:
    """A region as another account's client sees it: what ``simulation.scenario`` needs of one."""

    def __init__(self, region, key):
        self.clients = [
            Client(frontend.service.application, host="other", key=key, region=REGION, clock=region.clock)
            for frontend in region.frontends
        ]

    @classmethod
    async def of(cls, region):
        generator = members.generator(region.seed, "other account")
        key = new_key(OTHER, generator, region.clock.wall())
        cipher = Cipher(region.ground.data_key(), random_bytes=generator.randbytes)
        await store_key(region.ground.metadata, cipher, key)
        await asyncio.sleep(1.0)    # every frontend has it by its watch
        return cls(region, key)

    async def request(self, method, path, body=b"", *, headers=None, frontend=0):
        return await self.clients[frontend].send(method, path, body, headers)

    async def invoke(self, function, payload=b"{}", *, frontend=0):
        return await self.request("POST", f"{FUNCTIONS}/{function}/invocations", payload, frontend=frontend)


class Load:
    """An open loop: requests are sent when they are due, to each frontend in turn."""

    def __init__(self, client):
        self.answers = []       # (due, done, answer)
        self._client = client

    async def run(self, clock, function, rate, seconds):
        begin = clock.monotonic()
        async with asyncio.TaskGroup() as group:
            for n in range(int(rate * seconds)):
                due = begin + n / rate
                await asyncio.sleep(max(0.0, due - clock.monotonic()))
                group.create_task(self._one(clock, function, due, n % 3))

    async def _one(self, clock, function, due, frontend):
        answer = await self._client.invoke(function, json.dumps(RUN_S).encode(), frontend=frontend)
        self.answers.append((due, clock.monotonic(), answer))

    def took(self, begin, end, status=200):
        return [done - due for due, done, answer in self.answers if begin <= due < end and answer.status == status]

    def share(self, begin, end):
        due = [answer.status for at, _, answer in self.answers if begin <= at < end]
        return due.count(200) / len(due)


def in_region(seed, main):
    async def live(_loop):
        async with Region(seed) as region:
            return await main(region)

    return virtual.run(live)


def test_three_times_the_capacity_for_thirty_seconds(seed):
    async def main(region):
        clock, load = region.clock, Load(region)
        await create(region, "busy", "sleep", timeout_s=3, memory_mb=MEMORY_MB)
        begin = clock.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(clock, "busy", 3 * CAPACITY, 30.0))
            await asyncio.sleep(30.0)
            group.create_task(load.run(clock, "busy", 16.8, 15.0))    # 0.7 of the capacity
        await asyncio.sleep(6.0)
        waiting = [frontend.service.admission.core.waiting for frontend in region.frontends]
        running = [frontend.service.gate.running for frontend in region.frontends]
        in_flight = [frontend.service.workers.in_flight for frontend in region.frontends]
        return load, begin, waiting, running, in_flight, await region.pools()

    load, begin, waiting, running, in_flight, pools = in_region(seed, main)
    assert len(load.answers) == int(90 * CAPACITY) + int(16.8 * 15.0), "every request was answered"
    refused = [answer for _, _, answer in load.answers if answer.status != 200]
    assert {answer.status for answer in refused} <= {429, 503}
    assert all(answer.json()["Detail"]["remedy"] for answer in refused), "every refusal explains itself"
    assert len(refused) > 30 * CAPACITY, "twice the capacity was too much"
    assert len(load.took(begin + 5, begin + 30)) > 25 * 0.95 * CAPACITY, "goodput while it is overloaded"
    assert max(load.took(begin, begin + 30)) < 8.0, "what gets in is served soon"
    assert load.share(begin + 35, begin + 45) == 1.0, "five seconds after it everything succeeds"
    assert max(load.took(begin + 40, begin + 45)) < 2 * RUN_S
    assert (waiting, running, in_flight) == ([0] * 3, [0] * 3, [0] * 3), "nothing is left"
    assert all(not pool.holders for pool in pools), "nor at the ledger (invariant 2)"


def test_an_account_at_ten_times_its_share_leaves_the_other_alone():
    async def main(region):
        clock, other = region.clock, await OtherAccount.of(region)
        greedy, modest = Load(region), Load(other)
        await create(region, "greedy", "sleep", timeout_s=3, memory_mb=MEMORY_MB)
        await create(other, "modest", "sleep", timeout_s=3, memory_mb=MEMORY_MB)
        begin = clock.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(greedy.run(clock, "greedy", 5 * CAPACITY, 18.0))
            await asyncio.sleep(5.0)
            group.create_task(modest.run(clock, "modest", CAPACITY / 4, 13.0))
        return begin, greedy, modest

    begin, greedy, modest = in_region(3, main)
    assert modest.share(begin + 5, begin + 18) == 1.0
    first, later = modest.took(begin + 5, begin + 6), modest.took(begin + 7, begin + 18)
    assert max(first) < 2.0, "room was made for it"
    assert statistics.median(later) < RUN_S + 0.1, "nearly as if it were alone"
    assert max(later) < 2 * RUN_S + 0.1
    assert len(greedy.took(begin + 7, begin + 17)) > 10 * 0.45 * CAPACITY, "the rest is the greedy one's"


def test_a_client_that_goes_while_its_request_waits_for_a_permit_takes_none():
    async def main(region):
        await create(region, "sleeper", "sleep", timeout_s=20)
        await reserve(region, "sleeper", 1)
        core = region.frontends[0].service.admission.core
        async with asyncio.TaskGroup() as group:
            running = group.create_task(region.invoke("sleeper", b"0.01"))
            await asyncio.sleep(0.5)
            assert running.done()
            # Withdrawn before the ledger's round is over: the wait is short, its client is shorter.
            region.ground.fabric.crash("counting-az1")
            region.ground.fabric.crash("counting-az2")
            await asyncio.sleep(1.5)
            with pytest.raises(Left):
                await region.frontends[0].client.send(
                    "POST", f"{FUNCTIONS}/sleeper/invocations", b"0.01", leaves_after_s=0.5
                )
        return core.waiting

    assert in_region(5, main) == 0


def test_a_client_that_goes_while_its_sandbox_starts_leaves_the_sandbox_to_others():
    async def main(region):
        await create(region, "hello", "echo")
        with pytest.raises(Left):
            await region.frontends[0].client.send(
                "POST", f"{FUNCTIONS}/hello/invocations", b"1", leaves_after_s=0.03
            )
        await asyncio.sleep(1.0)
        after = await region.invoke("hello", b"2")
        await asyncio.sleep(6.0)
        return after, await region.pools()

    after, pools = in_region(6, main)
    assert after.body == b"2"
    assert "init=" not in after.headers["x-labda-phases"], "the sandbox that was starting was kept"
    assert all(not pool.holders for pool in pools)


def test_what_was_started_goes_on_when_its_client_goes():
    ran = []

    async def main(region):
        await create(region, "sleeper", "sleep", timeout_s=20)
        begun = region.clock.monotonic()
        answer = await region.frontends[0].client.send(
            "POST", f"{FUNCTIONS}/sleeper/invocations", b"2", leaves_after_s=0.5
        )
        ran.append(region.clock.monotonic() - begun)
        return answer

    assert in_region(7, main).json() == {"slept": 2.0}, "the answer is there, and nobody takes it"
    assert ran[0] >= 2.0
