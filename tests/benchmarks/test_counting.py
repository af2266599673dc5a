"""The benchmark of counting, where it could lie: the gap between grants, and whether all of the churn happens."""

import asyncio
import random

from benchmarks import churn, counting
from benchmarks.failover import Grants
from simulation.loop import run
from tests.counting.client import Client
from tests.counting.region import REST, frontend, region_in_memory


def test_a_gap_begins_with_the_last_grant_before_the_leader_was_killed():
    grants = Grants()
    grants.at = [0.0, 5.0, 9.9, 10.8, 10.9]
    assert round(grants.gap_s(10.0), 3) == 0.9
    grants.at += [13.0]
    assert round(grants.gap_s(10.0), 3) == 2.1
    assert round(grants.gap_s(12.0), 3) == 2.1, "it had begun before"


def test_permits_handed_back_in_one_turn_go_in_one_message(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        client = await Client(region.network(frontend(1)), frontend(1).node, region.addresses).start()
        await client.welcomed()
        for _ in range(7):
            await client.take(REST)
        before = client._sequence
        for _ in range(7):
            client.hand_back(REST)
        await client.take(REST)
        assert client._sequence == before + 1
        assert (client.block(REST).size, client.block(REST).in_use) == (1, 1)
        ledger = region.services[region.leading()].core.ledger
        assert [ledger.granted(pool) for pool in ledger.pools()] == [1]
        await client.stop()
        await region.close()

    run(main)


def test_churn_is_all_that_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(churn, "MEMBER_S", 50.0)

    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        work = churn.Churn(region, random.Random(1))
        await work.start()
        await asyncio.sleep(130.0)
        assert all(work.did.values()), work.did
        ledger = region.services[region.leading()].core.ledger
        assert ledger.epochs["frontend-az1-1"] > 1
        assert ledger.gone
        await work.stop()
        await region.close()

    run(main)


def test_the_hot_path_is_measured_by_what_it_does():
    calls: list[str] = []
    assert counting._each_ns(calls.append) > 0
    assert len(calls) == counting.CALLS
