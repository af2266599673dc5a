"""Permits under load in a whole simulated region: frontends that die or are stopped, limits that change.

What ran when is told by the functions themselves, in virtual time, so that a run whose client lost its answer counts
too (invariants 1 and 2).
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from protos import counting_pb2, counting_rpc
from simulation import loop as virtual
from simulation import members
from simulation.region import ACCOUNT, ConnectionLost, Region
from simulation.scenario import create, reserve

SUSPECT_S = 3.0
FREE_S = 2.0        # after suspicion, everything of a dead frontend is free (what runs ends within its timeout)
TIMEOUT_S = 3
QUIET_S = 5.0


@dataclass
class History:
    """What ran, by function: how many now, at most, and each start with how many ran then, itself included."""

    running: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    started: dict[str, tuple[float, str, int]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def handler(self, function):
        async def work(event, invocation):
            asked = json.loads(event)
            if asked["id"] in self.started:
                self.twice.append(asked["id"])
            self.running[function] += 1
            self.peak[function] = max(self.peak[function], self.running[function])
            self.peak["*"] = max(self.peak["*"], sum(self.running.values()))
            now = asyncio.get_running_loop().time()
            self.started[asked["id"]] = (now, function, self.running[function])
            try:
                await asyncio.sleep(asked["seconds"])
            finally:
                self.running[function] -= 1
            return b"null"

        return work


class Load:
    """Clients that invoke over all frontends until they are told to stop."""

    def __init__(self, region, history, dice):
        self.region, self.history, self.dice = region, history, dice
        self.statuses: Counter[int | str] = Counter()
        self.asked: dict[str, float] = {}       # id -> when its request was sent
        self.on = True
        self._ids = 0

    async def client(self, function, longest_s, frontends=(0, 1, 2)):
        while self.on:
            await asyncio.sleep(self.dice.expovariate(4))
            self._ids += 1
            name = f"{function}-{self._ids}"
            event = json.dumps({"id": name, "seconds": self.dice.uniform(0.05, longest_s)}).encode()
            self.asked[name] = self.region.clock.monotonic()
            try:
                answer = await self.region.invoke(function, event, frontend=self.dice.choice(frontends))
            except ConnectionLost:
                self.statuses["lost"] += 1
            else:
                self.statuses[answer.status] += 1
                assert answer.status in {200, 429, 500, 503}, answer


def in_region(seed, main, functions=("f",), **settings):
    history = History()
    handlers = {f"work_{name}": history.handler(name) for name in functions}

    async def live(_loop):
        async with Region(seed, handlers=handlers, **settings) as region:
            for name in functions:
                assert (await create(region, name, f"work_{name}", timeout_s=TIMEOUT_S)).status == 200
            return await main(region, history, random.Random(seed))

    return virtual.run(live)


async def holders(region, function="f"):
    """(frontend, epoch) -> size, of the function's own pool."""
    return {
        (holder.session.frontend, holder.session.epoch): holder.size
        for pool in await region.pools() if pool.pool.function == function for holder in pool.holders
    }


async def quiet(region):
    """Invariant 2: nothing runs, so nothing is granted, and nobody believes otherwise."""
    async with asyncio.timeout(QUIET_S):
        while any(pool.granted for pool in await region.pools()):
            await asyncio.sleep(0.1)
    for frontend in region.frontends:
        core = frontend.service.admission.core
        assert frontend.killed or all(stock.in_use == 0 for stock in core.stocks.values())


def test_what_a_dead_frontend_left_running_counts_against_a_reservation_that_comes_then(seed):
    """Workers say which functions run from its block of the rest (rule 6): nobody else can."""

    async def main(region, history, _dice):
        lost = asyncio.create_task(region.invoke("f", b'{"id": "left", "seconds": 2.5}', frontend=1))
        async with asyncio.timeout(5.0):
            while not history.running["f"]:
                await asyncio.sleep(0.02)
        await region.kill_frontend(1)
        await region.restart_frontend(1)    # which fences the one before: workers tell what it left
        async with asyncio.timeout(1.0):
            while not any(holder.state == "counted" for pool in await region.pools() for holder in pool.holders):
                await asyncio.sleep(0.02)
        assert (await reserve(region, "f", 1)).status == 200
        assert history.running["f"] == 1, "it still runs"
        answers = [await region.invoke("f", b'{"id": "%d", "seconds": 0.05}' % n) for n in range(3)]
        await asyncio.gather(lost, return_exceptions=True)
        assert history.peak["f"] == 1, "one was allowed from the reservation on"
        assert {answer.status for answer in answers} <= {200, 429, 503}
        await quiet(region)

    in_region(seed, main)


@pytest.mark.parametrize(("seed", "restarts_after_s"), [(1, 1.0), (3, 0.1), (4, None)])
def test_a_killed_frontends_permits_are_free_in_time_and_never_used_twice(seed, restarts_after_s):
    """Ten kills under load over the seeds; one seed's frontends stay away, so that suspicion has to do it."""

    async def main(region, history, dice):
        assert (await reserve(region, "f", 3)).status == 200
        load = Load(region, history, dice)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(load.client("f", 2.9))
            for victim in (0, 1) if restarts_after_s is None else (0, 1, 2, 0):
                await asyncio.sleep(dice.uniform(3.0, 5.0))
                node = f"frontend-{members.AZS[victim]}-1"
                async with asyncio.timeout(5.0):
                    while not (old := {key for key in await holders(region) if key[0] == node}):
                        await asyncio.sleep(0.02)
                killed = region.clock.monotonic()
                await region.kill_frontend(victim)
                if restarts_after_s is not None:
                    await asyncio.sleep(restarts_after_s)
                    await region.restart_frontend(victim)
                await asyncio.sleep(killed + SUSPECT_S + FREE_S - region.clock.monotonic())
                assert not old & (await holders(region)).keys(), f"{old} hold permits {FREE_S} s after suspicion"
            load.on = False
        await asyncio.sleep(1.0)
        await quiet(region)
        assert history.peak["f"] == 3, "never a fourth run, and the three were used"
        assert not history.twice
        assert load.statuses[200] > 20

    in_region(seed, main)


def test_frontends_and_leaders_of_the_ledger_die_together_and_no_permit_is_lost_or_used_twice(seed):
    """A new leader has the ledger and nothing else: it collects the workers' reports of draining blocks anew."""

    async def main(region, history, dice):
        assert (await reserve(region, "f", 3)).status == 200
        load = Load(region, history, dice)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(load.client("f", 2.0))
            for victim in (0, 1, 2):
                await asyncio.sleep(dice.uniform(2.0, 4.0))
                await region.until(region.counting_leader, "a leader", within_s=5.0)
                first, second = dice.sample(["frontend", "leader"], 2)
                for what in (first, second):
                    if what == "frontend":
                        await region.kill_frontend(victim)
                    elif (leader := region.counting_leader()):
                        await region.kill_counting(leader)
                    await asyncio.sleep(dice.uniform(0.0, SUSPECT_S + 0.5))
                await region.restart_frontend(victim)
            load.on = False
        await region.until(region.counting_leader, "a leader", within_s=5.0)
        await asyncio.sleep(TIMEOUT_S)
        await quiet(region)
        assert history.peak["f"] == 3
        assert not history.twice
        assert load.statuses[200] > 20

    in_region(seed, main)


def test_late_starts_of_a_frontend_that_was_stopped_at_full_use_are_refused_and_tried_once_more(seed):
    async def main(region, history, dice):
        assert (await reserve(region, "f", 3)).status == 200
        load = Load(region, history, dice)
        clients = [asyncio.create_task(load.client("f", 2.9, frontends=(0,))) for _ in range(6)]
        await asyncio.sleep(5.0)
        async with asyncio.timeout(5.0):
            while sum((await holders(region)).values()) < 3:
                await asyncio.sleep(0.02)
        before = region.clock.monotonic()
        region.stop_frontend(0, 30.0)
        others = [asyncio.create_task(load.client("f", 2.9, frontends=(1, 2))) for _ in range(6)]
        await asyncio.sleep(SUSPECT_S + TIMEOUT_S + FREE_S)
        old = [key for key in await holders(region) if key[0] == "frontend-az1-1"]
        assert not old, "fenced, counted, ended: free for the others"
        while region.clock.monotonic() < before + 40.0:
            await asyncio.sleep(1.0)
        served = region.frontends[0].service.admission.core
        assert served.epoch == 2, "the stopped frontend came back under the next epoch"
        load.on = False
        await asyncio.gather(*clients, *others)
        await asyncio.sleep(1.0)
        await quiet(region)
        assert history.peak["f"] == 3
        assert not history.twice, "a start that was refused for certain ran all the same"
        refused = [
            event for line in region.trace().splitlines() if '"RefuseStart"' in line
            for event in json.loads(line)["effects"] if event["type"] == "RefuseStart"
        ]
        return load.statuses, Counter(event["reason"] for event in refused)

    statuses, refusals = in_region(seed, main)
    assert refusals["FENCED"] > 0, (refusals, "no start came late: the story tells nothing")
    assert statuses[200] > 30


@pytest.mark.parametrize("seed", [1, 2])    # 2: a run of an older reservation ends while others run by the rest
def test_limits_change_under_load_and_bind_when_put_returns(seed):
    """Up, down, to 0 and away: whoever asks after Put has returned never starts above the new limit."""

    async def main(region, history, dice):
        load = Load(region, history, dice)
        changes: list[list[Any]] = []       # (returned at, next change sent at, limit)

        async def change(value):
            began = region.clock.monotonic()
            number = dice.randrange(3)
            if value is None:
                answer = await region.request("DELETE", "/2017-10-31/functions/f/concurrency", frontend=number)
                assert answer.status == 204
            else:
                answer = await region.request(
                    "PUT", "/2017-10-31/functions/f/concurrency", json.dumps(
                        {"ReservedConcurrentExecutions": value}
                    ).encode(), frontend=number,
                )
                assert answer.status == 200
            now = region.clock.monotonic()
            assert now - began < 2.0, "every frontend answers: nothing to wait for"
            if changes:
                changes[-1][1] = began
            changes.append([now, float("inf"), value])
            settings = (await region.request("GET", "/2016-08-19/account-settings", frontend=number)).json()
            assert settings["AccountLimit"]["UnreservedConcurrentExecutions"] == 1000 - (value or 0)
            kept = (await region.request("GET", "/2019-09-30/functions/f/concurrency", frontend=number)).json()
            assert kept.get("ReservedConcurrentExecutions") == value

        async with asyncio.TaskGroup() as group:
            for _ in range(9):
                group.create_task(load.client("f", 2.0))
            for _ in range(3):
                group.create_task(load.client("g", 0.5))
            values = [4, 1, 0, 6, 2, None, 3, 0, None, 1, 5, None]
            dice.shuffle(values)
            for value in values:
                await change(value)
                await asyncio.sleep(dice.uniform(0.2, 2.5))
            load.on = False
        await asyncio.sleep(2.0)
        await quiet(region)
        judged = 0
        for name, (started, function, running) in history.started.items():
            for since, until, limit in changes:
                if function == "f" and limit is not None and since < load.asked[name] and started < until:
                    judged += 1
                    assert running <= limit, (name, running, limit)
        assert judged >= 10
        assert load.statuses.keys() <= {200, 429, 503}
        assert load.statuses[200] > 60
        assert load.statuses[429] > 10

    in_region(seed, main, functions=("f", "g"))


@pytest.mark.parametrize("worker_too", [False, True])
def test_put_waits_for_a_silent_part_and_for_ten_seconds_at_most(worker_too):
    """A holder that doesn't answer is fenced and counted, and the change binds; where a worker is silent as well, Put
    returns after 10 s, and operators see for whom it doesn't bind."""

    async def main(region, history, dice):
        load = Load(region, history, dice)
        clients = [asyncio.create_task(load.client("f", 2.9, frontends=(0,))) for _ in range(4)]
        await asyncio.sleep(5.0)
        az = members.AZS[2]     # every worker has to say what it runs of a fenced block, also one that runs nothing
        load.on = False
        region.stop_frontend(0, 30.0)
        if worker_too:
            region.stall(f"worker-{az}-1", 25.0)
        began = region.clock.monotonic()
        body = json.dumps({"ReservedConcurrentExecutions": 1}).encode()
        answer = await region.request("PUT", "/2017-10-31/functions/f/concurrency", body, frontend=1)
        assert answer.status == 200
        took = region.clock.monotonic() - began
        late = {part.node for pool in await region.pools() for part in pool.outstanding}
        waited_for = {host for pool in await region.pools() for holder in pool.holders for host in holder.waits_for}
        if worker_too:
            assert 10.0 <= took < 11.0
            assert late == {"frontend-az1-1"}
            assert waited_for == {f"host-{az}-1"}
            until = min(part.until for pool in await region.pools() for part in pool.outstanding)
            assert until > region.clock.wall()
        else:
            assert SUSPECT_S - 1.0 < took < SUSPECT_S + FREE_S
            assert (late, waited_for) == (set(), set())
        await asyncio.sleep(35.0)
        await asyncio.gather(*clients)
        await quiet(region)
        assert not any(pool.outstanding for pool in await region.pools())

    in_region(1, main)


def test_a_function_switched_off_and_on_never_takes_the_account_above_its_limit(seed):
    """The account's limit is small and always wanted: a permit that moves between pools is not made (rule 1)."""
    limit = 6

    async def main(region, history, dice):
        await set_account_limit(region, limit)
        load = Load(region, history, dice)
        async with asyncio.TaskGroup() as group:
            for name in ("f", "g"):
                for _ in range(6):
                    group.create_task(load.client(name, 1.5))
            for _ in range(5):
                await asyncio.sleep(dice.uniform(0.5, 3.0))
                assert (await reserve(region, "f", 0)).status == 200
                switched_off = region.clock.monotonic()
                await asyncio.sleep(dice.uniform(0.5, 3.0))
                late = [name for name, (_, f, _) in history.started.items() if f == "f"
                        and load.asked[name] > switched_off]
                assert not late, "asked after Put returned 0, and ran"
                await region.request("DELETE", "/2017-10-31/functions/f/concurrency", frontend=dice.randrange(3))
            load.on = False
        await asyncio.sleep(2.0)
        await quiet(region)
        assert history.peak["*"] == limit
        assert load.statuses[200] > 60
        assert load.statuses[429] > 10

    in_region(seed, main, functions=("f", "g"))


async def set_account_limit(region, limit):
    network = region.ground.fabric.network(members.OPERATOR)
    request = counting_pb2.SetAccountLimitRequest(account=ACCOUNT, limit=limit)
    for address in members.counting_addresses().values():
        channel = network.connect(address, service="counting")
        answer = await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=15.0)
        if not answer.HasField("not_leader"):
            return
