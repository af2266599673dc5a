"""An availability zone of a simulated region is lost or cut off, a store is away, the power fails: who is served.

Requests come at a steady rate whether the ones before were answered or not, through a stand-in for the regional
endpoint: it tries another frontend where nobody listens, and notices after 200 ms who doesn't answer any more.
"""

import asyncio
import itertools
import json
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

from placement.config import FleetConfig
from protos import counting_pb2, counting_rpc
from simulation import azs
from simulation import loop as virtual
from simulation.history import judge
from simulation.members import AZS, THREE_AZS
from simulation.region import ConnectionLost, Region
from simulation.scenario import create, reserve
from tests.simulation.test_permits import History, holders, quiet

pytestmark = pytest.mark.timeout(900)   # up to 20 s of CPU each, on cores that may have more to do
LIMIT, RATE, RUNS_S = 50, 55.0, 0.5      # 27.5 of 50 in use: 55 %
TIMEOUT_S = 3
NOTICED_S = 0.2
BACK_S, NOTICED_BACK_S = 3.0, 5.0   # service is back within this; where silence has to be noticed first


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request: when it was sent and answered, by whom, and how. Status 0: the connection broke."""

    name: str
    at: float
    frontend: int
    status: int = 0
    answered: float = float("inf")
    why: str = ""

    @property
    def ok(self):
        return self.status == 200 and not self.why


class OpenLoad:
    """Requests at a steady rate over all frontends that the endpoint knows to answer."""

    def __init__(self, region, history, dice, function="f", rate=RATE):
        self.region, self.history, self.dice, self.function, self.rate = region, history, dice, function, rate
        self.asked = []
        self.shunned = {}       # frontend -> since when the endpoint tries it no more
        self._turns = itertools.cycle(range(len(AZS)))
        self._open = set()
        self._arrivals = asyncio.create_task(self._arrive())

    async def _arrive(self):
        for number in itertools.count():
            await asyncio.sleep(self.dice.expovariate(self.rate))
            task = asyncio.create_task(self._one(f"{self.function}-{number}"))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    def _frontend(self):
        now = self.region.clock.monotonic()
        for _ in AZS:
            number = next(self._turns)
            if not self.region.frontends[number].killed and now < self.shunned.get(number, float("inf")):
                return number
        return None

    async def _one(self, name):
        number = self._frontend()
        if number is None:
            return  # nobody listens anywhere: no frontend was asked
        asked = Asked(name=name, at=self.region.clock.monotonic(), frontend=number)
        self.asked.append(asked)
        event = json.dumps({"id": name, "seconds": RUNS_S}).encode()
        try:
            answer = await self.region.invoke(self.function, event, frontend=number)
        except ConnectionLost:
            asked.why = "connection lost"
        else:
            asked.status = answer.status
            if answer.status != 200 or "x-amz-function-error" in answer.headers:
                asked.why = answer.body.decode()[:300]
        asked.answered = self.region.clock.monotonic()

    async def end(self, within_s=40.0):
        self._arrivals.cancel()
        async with asyncio.timeout(within_s):
            while self._open:
                await asyncio.sleep(0.05)

    def failed(self, frontends=range(3), since=0.0, until=float("inf")):
        return [one for one in self.asked if not one.ok and one.frontend in frontends and since <= one.at < until]

    def tell(self, what, at):
        late = [one for one in self.asked if one.ok and one.at > at - RUNS_S]
        worst = max((one.answered - one.at for one in late), default=0.0)
        served = sorted(one.answered for one in self.asked if one.ok and one.answered > at)
        gap = max((b - a for a, b in itertools.pairwise([at, *served])), default=0.0)
        sys.stdout.write(
            f"{what}: {len(self.asked)} asked, {sum(bool(one.why) for one in self.asked)} failed, nobody served for "
            f"{gap:.2f} s at most, slowest {worst:.2f} s\n"
        )
        return gap


def in_region(seed, main, *, time_scale=1.0, rate=RATE, **settings):
    """``main(region, history, load)`` with the load going; judged when it has ended."""
    history = History()

    async def live(_loop):
        async with Region(
            seed, handlers={"work": history.handler("f")}, shape=THREE_AZS, fleet=FleetConfig(time_scale=time_scale),
            **settings,
        ) as region:
            assert (await create(region, "f", "work", timeout_s=TIMEOUT_S)).status == 200
            assert (await reserve(region, "f", LIMIT)).status == 200
            await region.until(region.balanced, "managers to have their parts", within_s=10.0)
            load = OpenLoad(region, history, region._generator("load"), rate=rate)
            await asyncio.sleep(4.0)
            assert [one for one in load.failed() if one.why] == []
            result = await main(region, history, load)
            await at_rest(region, history, load)
            return result, load, region

    result, load, region = virtual.run(live)
    assert judge(region.trace().splitlines(), time_scale=time_scale).violations == []
    return result, load


def az_of(node):
    return node.rpartition("-")[2]


async def az_with(region, *, leaders):
    """An AZ where counting's leader, the active placement and an active manager are, or none of these. By kills."""
    active = {az_of(node) for node in region.managers.nodes if region.managers[node].core.active}
    assert len(active) == 2, "as many as there are workers per AZ"
    wanted = active if leaders else set(AZS) - active
    while az_of(region.active_placement()) not in wanted if leaders else az_of(region.active_placement()) in wanted:
        await region.kill_placement(region.active_placement())
        await region.until(lambda: len(region.placements.nodes) == 3 and region.active_placement(), "one to lead",
                           within_s=10.0)
    az = az_of(region.active_placement()) if leaders else min(wanted)
    while (az_of(region.counting_leader()) == az) != leaders:
        await region.kill_counting(region.counting_leader())
        await region.until(lambda: len(region.counting.nodes) == 3 and region.counting_leader(), "one to lead",
                           within_s=10.0)
    await asyncio.sleep(5.0)
    return az


def runs_in(region, az):
    """Requests that run on the AZ's workers, or are about to, as everybody knows now."""
    return {
        invocation.partition("#")[0] for place, worker in region.workers.items() if place.startswith(az)
        for invocation in worker.agent.core.runs
    }


async def bury_dead_workers(region):
    """Of itself the ledger takes what ran there for running, for 17 minutes: an operator knows better."""
    hosts = (await region.ask_counting(counting_rpc.LIST_HOSTS, counting_pb2.ListHostsRequest())).hosts
    dead = [host for host in hosts if not host.heard]
    assert [host.incarnation.host for host in dead] == sorted(
        f"host-{az}-{number}" for az in AZS for number in (1, 2) if region.frontends[AZS.index(az)].killed
    )
    for host in dead:
        request = counting_pb2.DeclareDeadRequest(incarnation=host.incarnation)
        assert (await region.ask_counting(counting_rpc.DECLARE_DEAD, request)).declared.changed


async def at_rest(region, history, load):
    await load.end()
    await quiet(region)
    assert history.peak["f"] <= LIMIT, "invariant 1"
    assert history.twice == [], "invariant 5"
    assert await holders(region) == {}, "invariant 2"


@pytest.mark.parametrize("leaders", [True, False], ids=["leaders", "no-leader"])
def test_an_az_is_lost(seed, leaders):
    async def main(region, history, load):
        az = await az_with(region, leaders=leaders)
        margins = region.placements[region.active_placement()].core.margins()
        assert [margin.az for margin in margins] == list(AZS)
        assert min(margin.margin_mb for margin in margins) > 0, "the others have room for what runs in any of them"
        at = region.clock.monotonic()
        await azs.lose(region, az)
        await asyncio.sleep(8.0)
        gap = load.tell(f"seed {seed}: {az} lost", at)
        await load.end()
        await bury_dead_workers(region)
        await quiet(region)
        await azs.start(region, az)
        await region.until(lambda: region.ready() and region.balanced(), "the AZ to be part of the region again",
                           within_s=15.0)
        for number in range(3):
            event = b'{"id": "again-%d", "seconds": 0}' % number
            assert (await region.invoke("f", event, frontend=number)).status == 200
        return AZS.index(az), at, gap

    (lost, at, gap), load = in_region(seed, main)
    there = [one for one in load.failed(since=at - RUNS_S) if one.frontend == lost]
    assert all(one.status == 0 and one.at <= at for one in there), "in flight at the frontend that went"
    elsewhere = load.failed(set(range(3)) - {lost}, since=at - 2)
    shown(elsewhere)
    assert [one for one in elsewhere if one.at > at] == []
    assert all("may have run" in one.why for one in elsewhere), "in flight on a worker that went"
    assert gap < BACK_S


def shown(failures):
    kinds = Counter((one.status, one.why[:60], one.why[140:260]) for one in failures)
    sys.stdout.write("".join(f"  {count} {kind}\n" for kind, count in kinds.items()))
    return failures


def test_an_az_is_cut_off_for_a_minute_and_healed(seed):
    """Its inside goes on with what it holds; outside, what was sent there is lost, then it is as with a lost one."""
    cut_s = 60.0
    # Of the 50 permits its frontend's whole block can't be counted while it is away, nor what runs on its workers:
    # together up to 23 with 55 % in use. What is left has to be more than what is asked for, for a minute.
    rate = 45.0

    async def main(region, history, load):
        az = await az_with(region, leaders=True)
        number = AZS.index(az)
        at = region.clock.monotonic()
        azs.cut_off(region, az)
        load.shunned[number] = at + NOTICED_S      # by the endpoint: nothing of it answers any more
        await asyncio.sleep(15.0)
        inside = await region.invoke("f", b'{"id": "inside", "seconds": 0}', frontend=number)
        await asyncio.sleep(cut_s - 15.0)
        gap = load.tell(f"seed {seed}: {az} cut off", at)
        azs.heal(region)
        healed = region.clock.monotonic()
        del load.shunned[number]                    # it answers the endpoint's question, before it has found anybody
        await region.until(lambda: region.ready() and region.balanced(), "the region to be whole", within_s=20.0)
        await asyncio.sleep(5.0)
        load.tell(f"seed {seed}: {az} healed", healed)
        slow = max(one.answered - one.at - RUNS_S for one in load.asked if one.at > healed and one.ok)
        gone = [host for host in (await region.ask_counting(
            counting_rpc.LIST_HOSTS, counting_pb2.ListHostsRequest())).hosts if not host.heard]
        return number, at, gap, slow, inside, gone

    (number, at, gap, slow, inside, gone), load = in_region(seed, main, rate=rate)
    elsewhere = shown(load.failed(set(range(3)) - {number}))
    assert all("may have run" in one.why for one in elsewhere), "in flight on a worker there, or sent into the silence"
    assert max((one.answered for one in elsewhere), default=at) < at + 5.0
    there = load.failed({number})
    assert all(one.at < at + NOTICED_S for one in there), "it serves again when it is healed"
    assert gap < NOTICED_BACK_S
    assert slow < 1.0, "who is back is dialled at once: a start waits for no attempt of before"
    assert inside.status == 503
    assert inside.headers["retry-after"] == "1"
    assert "no leader of the ledger" in inside.json()["message"]
    assert gone == [], "its workers are members as before: 60 s is less than their authority"


def test_without_any_placement_for_ten_minutes_nothing_fails(seed):
    """10 min of leases that last 6 to 10 h, on a scale where one lasts 6 to 10 min: 10 s."""
    scale = 1 / 60

    async def main(region, history, load):
        for node in list(region.placements.nodes):
            await region.kill_placement(node, again=False)
        at = region.clock.monotonic()
        await asyncio.sleep(600.0 * scale)
        cold = await create_and_invoke(region, "g")
        gap = load.tell(f"seed {seed}: no placement for {600 * scale:g} s", at)
        for node in region.placements.known:
            await region.placements.start(node)
        await region.until(lambda: region.active_placement() != "", "one to lead", within_s=6.0)
        await asyncio.sleep(3.0)
        return gap, cold

    (gap, cold), load = in_region(seed, main, time_scale=scale)
    assert shown(load.failed()) == []
    assert cold.status == 200, "a function that has no sandbox yet"
    assert gap < 0.5


async def create_and_invoke(region, name):
    assert (await create(region, name, "work", timeout_s=TIMEOUT_S)).status == 200
    return await region.invoke(name, json.dumps({"id": name, "seconds": 0.01}).encode())


def test_the_stores_are_away_for_a_minute(seed):
    """Warm and cold invokes of known functions go on; writes get a clear 503; all is well after."""
    async def main(region, history, load):
        assert (await create_and_invoke(region, "g")).status == 200
        assert (await create(region, "h", "work", timeout_s=TIMEOUT_S)).status == 200   # known, and never invoked
        await region.kill_manager(region.active_manager())  # functions have other managers now
        await asyncio.sleep(6.0)
        at = region.clock.monotonic()
        azs.stores_away(region)
        await asyncio.sleep(20.0)
        cold = await asyncio.gather(*(
            region.invoke("g", json.dumps({"id": f"g-{number}", "seconds": 0.1}).encode(), frontend=number % 3)
            for number in range(6)
        ))
        first = await region.invoke("h", b'{"id": "h", "seconds": 0}')
        writes = []
        for number in range(3):
            began = region.clock.monotonic()
            writes.append(await create(region, f"new-{number}", "work", frontend=number))
            writes.append(await region.request(
                "PUT", "/2017-10-31/functions/g/concurrency", b'{"ReservedConcurrentExecutions": 2}', frontend=number,
            ))
            assert region.clock.monotonic() - began < 2 * azs.STORE_GIVES_UP_S + 0.5
        await asyncio.sleep(at + 60.0 - region.clock.monotonic())
        gap = load.tell(f"seed {seed}: stores away", at)
        azs.heal(region)
        await region.until(lambda: region.active_placement() != "", "one to lead", within_s=10.0)
        await asyncio.sleep(5.0)
        after = await create_and_invoke(region, "after")
        return gap, [*cold, first], writes, after

    (gap, cold, writes, after), load = in_region(seed, main)
    assert shown(load.failed()) == []
    assert {answer.status for answer in cold} == {200}
    assert any("init=" in answer.headers["x-labda-phases"] for answer in cold)
    for answer in writes:
        assert answer.status == 503, answer
        assert "store" in answer.json()["message"]
        assert "again" in answer.json()["Detail"]["remedy"]
    assert gap < 0.5
    assert after.status == 200


def test_the_power_fails_and_everything_starts_from_its_files(seed):
    async def main(region, history, load):
        assert (await reserve(region, "f", LIMIT - 10)).status == 200
        at = region.clock.monotonic()
        await azs.lose(region, *AZS)
        await asyncio.sleep(3.0)
        await azs.start(region, *AZS)
        started = region.clock.monotonic()
        await region.until(region.ready, "the region to be ready", within_s=20.0)
        ready = region.clock.monotonic()
        await asyncio.sleep(8.0)
        load.tell(f"seed {seed}: power back, everything started {started - at:.1f} s after it failed, ready "
                  f"{ready - started:.1f} s after that", started)
        found = (await region.request("GET", "/2019-09-30/functions/f/concurrency")).json()
        return at, ready, found

    (at, ready, found), load = in_region(seed, main)
    assert found == {"ReservedConcurrentExecutions": LIMIT - 10}, "acknowledged, and kept"
    broken = [one for one in load.failed() if one.at <= at]
    assert all(one.status == 0 for one in broken)
    # Until then a whole second's requests wait for their first sandboxes, with all permits in hand: 429 is the truth.
    assert shown(load.failed(since=ready + 5.0)) == []
