"""A member of counting is lost for good and another takes its place, in virtual time: who follows, what clients see."""

import asyncio

import pytest

from protos import counting_pb2, counting_rpc
from simulation.members import COUNTING, SUCCESSORS
from simulation.scenario import create, reserve
from tests.simulation.test_region import in_region
from tests.simulation.test_standby import under_load

LOST = "counting-az1"
SUCCESSOR = f"{LOST}-2"


async def led_by(region, wanted):
    """Until this one leads: whoever does else is killed, and started again."""
    async with asyncio.timeout(60.0):
        while region.counting_leader() != wanted:
            leader = region.counting_leader()
            if leader:
                await region.counting.kill(leader)
                await asyncio.sleep(1.5)
                await region.counting.start(leader)
            await asyncio.sleep(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_no_invoke_fails_while_a_lost_member_is_replaced(seed):
    async def main(region):
        load = await under_load(region)
        await region.counting.kill(LOST)
        await asyncio.sleep(2.0)
        await region.replace_counting(LOST, within_s=5.0)
        await asyncio.sleep(2.0)
        await led_by(region, SUCCESSOR)
        await asyncio.sleep(5.0)
        answer = await region.ask_counting(counting_rpc.LIST_MEMBERS, counting_pb2.ListMembersRequest())
        assert [(one.member, one.leads, one.heard) for one in answer.members] == sorted(
            (name, name == SUCCESSOR, True) for name in ({*COUNTING, SUCCESSOR} - {LOST})
        )
        await load.end()
        assert load.failures == []
        assert len(load.answers) > 300
        assert (await create(region, "other", "echo")).status == 200
        assert (await reserve(region, "other", 0)).status == 200, "frontends ask the new one"
        assert (await region.invoke("other")).status == 429
        hosts = await region.ask_counting(counting_rpc.LIST_HOSTS, counting_pb2.ListHostsRequest())
        assert len(hosts.hosts) == 3
        assert all(host.heard for host in hosts.hosts), "workers renew with it"

    in_region(seed, main)


def test_all_members_are_replaced_one_after_the_other_under_load():
    async def main(region):
        load = await under_load(region)
        for lost in COUNTING:
            await region.counting.kill(lost)
            await region.replace_counting(lost, within_s=10.0)
            await asyncio.sleep(2.0)
        assert set(region.counting.nodes) == set(SUCCESSORS)
        await asyncio.sleep(5.0)
        await load.end()
        assert load.failures == []

    in_region(1, main)
