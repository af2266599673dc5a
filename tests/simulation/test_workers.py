"""Workers that are killed or stopped under load in a whole simulated region (invariants 1 and 2)."""

import asyncio
import json

import pytest

from protos import common_pb2, counting_pb2, counting_rpc
from simulation import members
from simulation.scenario import reserve
from tests.simulation.test_permits import TIMEOUT_S, Load, holders, in_region, quiet

LIMIT = 3
AUTHORITY_S, GRACE_S, DRIFT = 10.0, 2.0, 0.01
SHORT = {
    "counting": {"authority_s": AUTHORITY_S, "grace_s": GRACE_S, "drift": DRIFT},
    "worker": {"timeout_cap_s": TIMEOUT_S},
}
EVICTED_S = (AUTHORITY_S + TIMEOUT_S + GRACE_S) * (1 + DRIFT)


async def loaded(region, history, dice):
    await reserve(region, "f", LIMIT)
    load = Load(region, history, dice)
    clients = [asyncio.ensure_future(load.client("f", 2.5)) for _ in range(8)]
    await region.until(lambda: history.running["f"] == LIMIT, "all permits to be in use", within_s=20.0)
    return load, clients


async def at_rest(region, history, load, clients):
    load.on = False
    await asyncio.gather(*clients)
    await quiet(region)
    assert history.peak["f"] == LIMIT, "invariant 1"
    assert history.twice == []
    assert await holders(region) == {}


def busy(region):
    """The AZ of a worker that runs something."""
    return next((az for az, worker in region.workers.items() if worker.agent.core.runs), None)


def idle(region):
    """The AZ of a worker that runs nothing."""
    return next((az for az, worker in region.workers.items() if not worker.agent.core.runs), None)


def test_killed_workers_permits_are_free_when_the_next_incarnation_has_joined(seed):
    async def main(region, history, dice):
        load, clients = await loaded(region, history, dice)
        for _ in range(10):
            await region.until(lambda: busy(region), "a worker to run something", within_s=10.0)
            az = busy(region)
            await region.kill_worker(az)
            await region.until(lambda: region.workers[az].agent.core.authority.joined, "it to join", within_s=5.0)  # noqa: B023
            await region.until(lambda: history.running["f"] == LIMIT, "all permits to be in use again", within_s=5.0)
            assert history.peak["f"] == LIMIT
        await at_rest(region, history, load, clients)

    in_region(seed, main)


@pytest.mark.parametrize(("stopped_s", "lives"), [(8.0, 1), (12.0, 1), (25.0, 2)])
def test_a_stopped_worker_starts_nothing_late_and_the_ledger_waits_for_its_end(stopped_s, lives):
    """Shorter than its authority; longer; so long that its watchdog ends it and the ledger gives its permits away."""
    async def main(region, history, dice):
        load, clients = await loaded(region, history, dice)
        az = busy(region)
        first = region.workers[az].incarnation
        stopped_at = region.clock.monotonic()
        region.stall(region.workers[az].config.node.node, stopped_s)
        under = dict(region.workers[az].agent.core.runs)
        assert under, "its permits are not given to anybody while it may run"
        await asyncio.sleep(stopped_s + 5.0)
        assert (region.workers[az].incarnation != first) == (lives > 1)
        await region.until(lambda: history.running["f"] == LIMIT, "all permits to be in use again", within_s=5.0)
        await at_rest(region, history, load, clients)
        return stopped_at, region

    stopped_at, region = in_region(4, main, changes=SHORT)
    lines = [line for line in map(json.loads, region.trace().splitlines()) if "event" in line]
    evictions = [
        line["at"] for line in lines if line["node"].startswith("counting-") and line["event"]["type"] == "Committed"
        for command in line["event"]["batch"]["commands"] if command["type"] == "EvictWorker"
    ]
    assert bool(evictions) == (stopped_s > EVICTED_S)
    if evictions:
        assert stopped_at + EVICTED_S - 5.0 < min(evictions) < stopped_at + EVICTED_S + 1.0


@pytest.mark.parametrize("killed", [False, True])
def test_a_worker_that_is_taken_out_while_the_leader_changes_is_no_member_any_more(seed, killed):
    """A Leave that is said once is lost where nobody leads, or one that won't lead for long enough."""
    async def main(region, history, dice):
        load, clients = await loaded(region, history, dice)
        await region.until(lambda: idle(region), "a worker to run nothing", within_s=20.0)
        place, leader = idle(region), region.counting_leader()
        worker = region.workers[place]
        gone = asyncio.ensure_future(region.counting.kill(leader) if killed else region.counting.drain(leader))
        await asyncio.sleep(0.0 if killed else dice.uniform(0.0, 0.05))
        await region.retire_worker(place)
        await gone
        await region.until(region.counting_leader, "another leader", within_s=5.0)
        ledger = region.counting[region.counting_leader()].core.ledger
        assert worker.incarnation.host not in ledger.members, "it is out for good"
        await at_rest(region, history, load, clients)

    in_region(seed, main)


async def declare_dead(region, incarnation, *, force=False):
    named = common_pb2.Incarnation(host=incarnation.host, nonce=incarnation.nonce)
    return await region.ask_counting(
        counting_rpc.DECLARE_DEAD, counting_pb2.DeclareDeadRequest(incarnation=named, force=force)
    )


def started_at(region, node):
    """(at, invocation) of everything that the worker ever started, in all its lives."""
    return [
        (line["at"], effect["invocation"]) for line in map(json.loads, region.trace().splitlines())
        if line["node"] == node for effect in line.get("effects", ()) if effect["type"] == "StartInvocation"
    ]


@pytest.mark.parametrize("cut_from", ["everybody", "counting"])
def test_a_worker_that_is_declared_dead_and_lives_starts_nothing_any_more_and_comes_back_as_another(seed, cut_from):
    """The operator is wrong: the host is cut off, from everybody or from the ledger alone, and runs what it runs."""
    async def main(region, history, dice):
        load, clients = await loaded(region, history, dice)
        az = busy(region)
        first, node = region.workers[az].incarnation, region.workers[az].config.node.node
        assert (await declare_dead(region, first)).refused.message, "it is connected"
        if cut_from == "everybody":
            region.part({node})
        else:
            for member in members.COUNTING:
                region.link.cut(node, member)
                region.link.cut(member, node)
        await asyncio.sleep(6.0)     # until its streams have broken
        [host] = [h for h in (await region.ask_counting(counting_rpc.LIST_HOSTS, counting_pb2.ListHostsRequest())).hosts
                  if h.incarnation.nonce == first.nonce]
        assert not host.heard
        assert host.authority_until > region.clock.wall() + 100, "of itself the ledger waits for long"
        assert (await declare_dead(region, first)).declared.changed
        declared = region.clock.monotonic()
        lost = len(region.workers[az].agent.core.runs)
        await asyncio.sleep(1.0)
        late = [start for start in started_at(region, node) if start[0] > declared + 0.05]
        assert late == [], "it was declared dead, and frontends go on starting there"
        if cut_from == "everybody":     # else managers go on naming it, and who is sent there is refused
            await region.until(lambda: history.running["f"] - len(region.workers[az].agent.core.runs) == LIMIT,
                               "all permits to be in use elsewhere", within_s=2.0)
        region.link.heal()
        await region.until(lambda: region.workers[az].incarnation != first, "another life", within_s=8.0)
        late = [start for start in started_at(region, node) if start[0] > declared + 0.05]
        assert late == [], "authority that it had left was used"
        again = await declare_dead(region, first)
        assert not again.declared.changed
        await region.until(lambda: region.workers[az].agent.core.authority.joined, "it to join", within_s=5.0)
        load.on = False
        await asyncio.gather(*clients)
        await quiet(region)
        assert history.peak["f"] <= LIMIT + lost
        assert history.twice == []
        assert await holders(region) == {}

    in_region(seed, main)


def test_a_worker_that_lives_and_is_declared_dead_by_force_is_told_and_comes_back(seed):
    async def main(region, history, dice):
        load, clients = await loaded(region, history, dice)
        az = busy(region)
        first, lost = region.workers[az].incarnation, len(region.workers[az].agent.core.runs)
        assert (await declare_dead(region, first, force=True)).declared.changed
        await region.until(lambda: region.workers[az].incarnation != first, "another life", within_s=5.0)
        await region.until(lambda: history.running["f"] == LIMIT, "all permits to be in use again", within_s=5.0)
        load.on = False
        await asyncio.gather(*clients)
        await quiet(region)
        assert history.peak["f"] <= LIMIT + lost
        assert await holders(region) == {}

    in_region(seed, main)
