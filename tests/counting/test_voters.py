"""Members of counting that come and go by an operator's word: three real services in virtual time."""

import asyncio

import pytest

from chassis.faults import Fault
from protos import counting_pb2, counting_rpc
from simulation.loop import run
from tests.counting.region import OPERATOR, A, call, counting, frontend, region_in_memory

C1, C2, C3, C4 = (counting(n).node for n in (1, 2, 3, 4))
List = counting_pb2.ListMembersAnswer


async def add(region, name):
    return await call(region, counting_rpc.ADD_MEMBER, counting_pb2.ChangeMembersRequest(member=name))


async def remove(region, name):
    return await call(region, counting_rpc.REMOVE_MEMBER, counting_pb2.ChangeMembersRequest(member=name))


async def members(region):
    answer = await call(region, counting_rpc.LIST_MEMBERS, counting_pb2.ListMembersRequest())
    return {one.member: one for one in answer.members}


async def reserve(region, value):
    request = counting_pb2.SetReservedRequest(account=A, function="f", value=value, request=f"r{value}")
    return await call(region, counting_rpc.SET_RESERVED, request, frontend(9))


async def reserved(region):
    answer = await call(region, counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account=A))
    return answer.reserved["f"]


async def led(region, *, by=None, within_s=5.0):
    async with asyncio.timeout(within_s):
        while region.leader() is None or (by is not None and region.leader() not in by):
            await asyncio.sleep(0.02)
    return region.leading()


def test_a_lost_member_is_replaced_by_an_empty_one(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        leader = await led(region)
        await reserve(region, 5)
        lost = next(name for name in (C1, C2, C3) if name != leader)
        await region.kill(lost)
        assert (await remove(region, lost)).changed.changed
        assert not (await remove(region, lost)).changed.changed, "said twice, done once"
        await region.join(4)
        await asyncio.sleep(1.0)
        assert (await members(region))[C4].state == List.JOINS
        answer = await add(region, C4)
        assert sorted(answer.changed.voters) == sorted({C1, C2, C3, C4} - {lost})
        assert not (await add(region, C4)).changed.changed
        await asyncio.sleep(1.0)
        shown = await members(region)
        assert [(one.state, one.heard, one.behind) for one in shown.values()] == [(List.VOTES, True, 0)] * 3
        await region.kill(leader)       # with the new one there is still a majority
        await led(region, by={C1, C2, C3, C4} - {lost, leader})
        assert await reserved(region) == 5
        await reserve(region, 7)
        assert await reserved(region) == 7
        await region.close()

    run(main)


def test_a_member_that_no_leader_has_ever_heard_of_is_removed_too(tmp_path):
    """Found by the simulation (seed 78): what it knows was asked before it was let go, and it had nothing to say."""
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        await led(region)
        await region.kill(C1)
        for name in (C2, C3):
            await region.kill(name)
        for n in (2, 3):
            await region.start(n)
        await led(region)
        assert (await remove(region, C1)).changed.changed
        await region.join(4)
        await asyncio.sleep(1.0)
        assert (await add(region, C4)).changed.changed
        await region.close()

    run(main)


def test_what_was_asked_for_before_is_not_said_to_be_so_while_nobody_has_confirmed_it(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        leader = await led(region)
        one, other = (name for name in (C1, C2, C3) if name != leader)
        await region.kill(one)
        await region.kill(other)
        raft = region.services[leader]._raft()
        raft.change(raft.group.without_voter(one))
        channel = region.network(OPERATOR).connect(region.addresses[leader], service="counting", node=leader)
        with pytest.raises(Fault, match="no majority has confirmed"):
            await channel.call(
                counting_rpc.REMOVE_MEMBER, counting_pb2.ChangeMembersRequest(member=one), timeout_s=10.0
            )
        await channel.close()
        await region.close()

    run(main)


def test_a_leader_that_is_removed_hands_over_first(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        leader = await led(region)
        before = loop.time()
        assert (await remove(region, leader)).changed.changed
        assert loop.time() - before < 0.5, "nobody's silence was waited for"
        assert region.leading() != leader
        shown = await members(region)
        assert shown[leader].state == List.REMOVED
        await reserve(region, 3)
        await asyncio.sleep(5.0)
        groups = [service._raft().group for service in region.services.values()]
        assert groups == groups[:1] * 3, "it knows it too"
        await region.close()

    run(main)


def test_a_member_that_drains_as_leader_hands_over(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        leader = await led(region)
        await asyncio.sleep(1.0)
        before = loop.time()
        await region.services.pop(leader).drain()
        await led(region, within_s=0.4)
        assert loop.time() - before < 0.4
        await region.close()

    run(main)


def test_what_would_cost_the_quorum_or_a_vote_is_refused(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        leader = await led(region)
        one, other = (name for name in (C1, C2, C3) if name != leader)
        refused = (await add(region, "counting-az9")).refused.message
        assert refused.startswith(f"counting-az9 doesn't answer {leader}")
        assert (await remove(region, "counting-az9")).refused.message == (
            "counting-az9 is no member: counting-az1, counting-az2, counting-az3 are"
        )
        await region.kill(one)
        await asyncio.sleep(1.5)
        assert f"and {one} can't be heard" in (await remove(region, other)).refused.message
        assert (await remove(region, one)).changed.changed
        await region.start(int(one[-1]))
        await asyncio.sleep(1.0)
        assert (await members(region))[one].state == List.REMOVED
        assert (await add(region, one)).refused.message.startswith(f"{one} voted once and was removed")
        assert (await remove(region, other)).changed.changed
        assert "is the last member" in (await remove(region, leader)).refused.message
        await reserve(region, 2)
        await region.close()

    run(main)


@pytest.mark.parametrize("older", ["a voter", "who joins"])
def test_members_of_an_older_release_are_upgraded_first(tmp_path, older):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path, versions={3: 4} if older == "a voter" else {4: 4})
        await led(region)
        await region.join(4)
        await asyncio.sleep(1.0)
        refused = (await add(region, C4)).refused.message
        assert refused.startswith("a member of counting knows command version 4 only, this takes 5")
        await region.close()

    run(main)
