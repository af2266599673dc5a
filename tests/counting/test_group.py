"""Members that come and go, over a faulty network in virtual time; what is never allowed falls in some seed."""

import asyncio
import functools
import random
from typing import Any

import pytest

from counting.raft.group import Group, Groups, entry_of
from counting.raft.guards import GuardedNode
from protos import raft_pb2
from simulation.loop import run
from tests.counting.raftnet import FOUNDERS, NAMES, RaftNet
from tests.counting.test_raft import COMPACTING, fault

THREE = Group(voters={"m1": "one:1", "m2": "two:2", "m3": "three:3"})
FOUR = THREE.with_voter("m4", "four:4")


def test_a_group_goes_back_with_the_entry_that_named_it():
    groups = Groups(THREE)
    groups.added(5, entry_of(FOUR))
    groups.added(6, b"\x00no change of members")
    groups.added(7, entry_of(FOUR.without_voter("m1")))
    assert (groups.current, groups.index) == (FOUR.without_voter("m1"), 7)
    groups.truncated(8)
    assert groups.index == 7
    groups.truncated(6)
    assert (groups.current, groups.index) == (FOUR, 5)
    groups.truncated(2)
    assert (groups.current, groups.index, groups.said_at(9)) == (THREE, 0, None)


def test_a_snapshot_says_who_votes_after_it():
    groups = Groups(Group())
    groups.added(5, entry_of(FOUR))
    assert groups.said_at(4) is None
    assert groups.said_at(5) == FOUR
    groups.restored(9, FOUR)
    groups.added(8, entry_of(THREE))    # an entry that the snapshot holds already
    assert groups.current == FOUR
    groups.restored(12, None)
    assert groups.current == Group()


def test_an_id_votes_once():
    gone = FOUR.without_voter("m4")
    assert gone.removed == ("m4",)
    with pytest.raises(AssertionError, match="m4 would vote a second time"):
        gone.with_voter("m4", "elsewhere:1")


# ---------------------------------------------------------------- members that come and go


async def led(tmp_path, seed: int, **settings: Any) -> RaftNet:
    """Founders with a leader, on a network without spikes."""
    net = RaftNet(tmp_path, seed=seed, **settings)
    net.spikes = False
    await net.until(net.leader, 3.0)
    return net


def test_an_empty_member_takes_a_lost_ones_place(tmp_path):
    async def main(loop):
        net = await led(tmp_path, 3, timing=COMPACTING)
        for n in range(40):
            assert net.propose(b"c%d" % n)
            await asyncio.sleep(0.02)
        lost = next(name for name in NAMES if name != net.leader())
        net.crash(lost)
        net.join("m4")
        await asyncio.sleep(3.0)
        assert net.machines["m4"].applied == [], "nobody sends it anything, and it stands for nothing"
        assert net.change(lambda group: group.without_voter(lost))
        await net.until(lambda: net.members[net.leading()].settled, 1.0)
        assert net.change(lambda group: group.with_voter("m4", ""))
        await net.until(lambda: len(net.machines["m4"].applied) == 40, 1.0)
        assert net.members["m4"].log.installs == 1, "the log begins behind what it lacks"
        net.crash(next(name for name in net.members if name not in ("m4", net.leader())))
        await net.until(lambda: net.propose(b"with its vote"), 1.0)
        await net.until(lambda: b"with its vote" in net.machines["m4"].applied, 1.0)
        net.crash("m4")
        net.start("m4")
        assert set(net.members["m4"].group.voters) == {*NAMES, "m4"} - {lost}, "its files say it, no config"
        net.judge()
        net.close()

    run(main)


def test_a_member_that_was_removed_disturbs_nobody(tmp_path):
    async def main(loop):
        net = await led(tmp_path, 5)
        await asyncio.sleep(1.0)
        leader, away = net.leading(), next(name for name in NAMES if name != net.leader())
        net.cut |= {(leader, away)}     # it never hears that it was removed, and misses its leader
        assert net.change(lambda group: group.without_voter(away))
        await asyncio.sleep(20.0)
        assert net.leading() == leader
        assert {term for _, _, leads, term in net.roles if leads} == {net.members[leader].term}
        net.judge()
        net.close()

    run(main)


def test_a_leader_hands_over_within_a_few_messages(tmp_path):
    async def main(loop):
        net = await led(tmp_path, 6)
        await asyncio.sleep(1.0)
        before, began = net.leading(), loop.time()
        heir = net.members[before].hand_over()
        await net.until(lambda: net.leader() == heir, 1.0)
        assert loop.time() - began < 0.05, "nobody's patience had to end"
        net.judge()
        net.close()

    run(main)


def test_two_voters_agree_together_and_one_alone(tmp_path):
    async def main(loop):
        net = await led(tmp_path, 7)
        leader = net.leading()
        for name in (name for name in NAMES if name != leader):
            assert net.change(functools.partial(Group.without_voter, member=name))
            await net.until(lambda: net.members[leader].settled, 2.0)
            assert net.propose(b"after %s" % name.encode())
            await asyncio.sleep(0.2)
            net.crash(name)
        await asyncio.sleep(2.0)
        assert net.leading() == leader
        assert net.machines[leader].applied == [b"after %s" % name.encode() for name in NAMES if name != leader]
        net.close()

    run(main)


@pytest.mark.parametrize("guarded", [True, False])
def test_two_changes_at_once_would_split_the_group(tmp_path, guarded, monkeypatch):
    """A leader that nobody hears could shrink the group to itself, and agree with itself."""
    if not guarded:
        monkeypatch.setattr(GuardedNode, "settled", lambda self: True)

    async def main(loop):
        net = await led(tmp_path, 8)
        await asyncio.sleep(1.0)
        leader = net.leading()
        others = [name for name in NAMES if name != leader]
        net.cut = {link for other in others for link in ((leader, other), (other, leader))}
        assert net.change(lambda group: group.without_voter(others[0]))
        assert net.change(lambda group: group.without_voter(others[1])) is not guarded
        assert net.propose(b"by one", leader)
        await asyncio.sleep(0.1)
        assert (b"by one" in net.machines[leader].applied) is not guarded
        await net.until(lambda: net.leader() in others, 3.0)
        net.propose(b"by two")
        await net.until(lambda: b"by two" in net.machines[others[0]].applied, 1.0)
        if guarded:
            net.cut = set()
            await net.until(lambda: b"by two" in net.machines[leader].applied, 3.0)
            assert net.members[leader].group == FOUNDERS, "the entry that it had is gone, and the group with it"
            net.judge()
        else:
            with pytest.raises(AssertionError, match="applied"):
                net.judge()
        net.close()

    run(main)


def test_a_vote_of_somebody_who_has_none_counts_for_nothing(tmp_path):
    async def main(loop):
        net = RaftNet(tmp_path, seed=9)
        net.cut = {(one, other) for one in NAMES for other in NAMES}
        member = net.members["m1"]
        await asyncio.sleep(1.5)
        granted = raft_pb2.RaftMessage.PreVoteAnswer(term=1, granted=True)
        member.receive("m9", raft_pb2.RaftMessage(pre_vote_answer=granted))
        await asyncio.sleep(0.01)
        assert member.term == 0, "it doesn't stand for election on a stranger's word"
        member.receive("m2", raft_pb2.RaftMessage(pre_vote_answer=granted))
        await asyncio.sleep(0.01)
        assert member.term == 1
        vote = raft_pb2.RaftMessage(vote_answer=raft_pb2.RaftMessage.VoteAnswer(term=1))
        member.receive("m9", vote)
        await asyncio.sleep(0.01)
        assert member._node.leader() != "m1"
        member.receive("m2", vote)
        await asyncio.sleep(0.01)
        assert member._node.leader() == "m1"
        with pytest.raises(AssertionError, match="by a leader that has committed in its term"):
            member.change(member.group.without_voter("m3"))
        net.close()

    run(main)


# ---------------------------------------------------------------- a walk


async def walk(net: RaftNet, seconds: float) -> int:
    """Commands, faults, and members that come and go, all from the net's dice; how many changes were certain."""
    dice, until, commands, changes = net.random, net.loop.time() + seconds, 0, 0
    while net.loop.time() < until:
        await asyncio.sleep(dice.uniform(0.01, 0.15))
        for _ in range(dice.choice((1, 1, 2, 8))):
            commands += net.propose(b"%d" % commands)
        if dice.random() < 0.1:
            fault(net, dice, crashes=True)
        if dice.random() < 0.1:
            changes += net.change(lambda group: another(net, group, dice))
    return changes


def another(net: RaftNet, group: Group, dice: random.Random) -> Group:
    """One more or one less. A joiner is started first, as an operator does; who is removed lives on for a while."""
    if len(group.voters) < 3 or (len(group.voters) < 5 and dice.random() < 0.5):
        name = f"m{len(net.names) + 1}"
        net.join(name)
        return group.with_voter(name, "")
    others = [voter for voter in group.voters if voter != net.leader()]
    return group.without_voter(dice.choice(others))


def walked(tmp_path, seed: int) -> int:
    """How many changes there were. Raises AssertionError where invariant 14 doesn't hold."""

    async def main(loop) -> int:
        net = RaftNet(tmp_path, seed=seed, timing=COMPACTING)
        changes = await walk(net, 20.0)
        await net.settle()
        net.judge()
        net.close()
        return changes

    return run(main)


@pytest.mark.parametrize("seeds", [range(first, first + 5) for first in range(0, 20, 5)], ids=str)
def test_nothing_acknowledged_is_lost_while_members_come_and_go(tmp_path, seeds):
    assert sum(walked(tmp_path / str(seed), seed) for seed in seeds) > 20, "members did come and go"


