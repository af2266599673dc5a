"""`labda counting`: what it shows of members, and what it says of a change."""

import pytest

from labda import __main__ as command
from labda.commands import counting
from protos import counting_pb2, placement_pb2

List = counting_pb2.ListMembersAnswer


def member(name, state=List.VOTES, **fields):
    fields = {"heard": True, "version": 5, **fields}
    return List.Member(member=name, address=f"{name}:9001", state=state, **fields)


def described(*members, **fields):
    nodes = [placement_pb2.Node(node=f"counting-az{n}", az=f"az{n}") for n in (1, 2, 3)]
    return counting.describe(List(members=members, term=4, index=700, **fields), nodes)


WHOLE = described(
    member("counting-az1"), member("counting-az2", leads=True), member("counting-az3", behind=12), settled=True
)


def test_a_program_gets_everything_of_a_member():
    assert WHOLE["members"][1] == {
        "member": "counting-az2", "az": "az2", "address": "counting-az2:9001", "state": "voter", "leads": True,
        "heard": True, "behind": 0, "commands": 5,
    }


def test_a_person_sees_who_leads_and_who_is_behind_and_what_more_may_happen():
    assert counting.render(WHOLE) == """\
member              az    state     heard   behind  commands  raft at
counting-az1        az1   voter     yes     0       5         counting-az1:9001
counting-az2        az2   leader    yes     0       5         counting-az2:9001
counting-az3        az3   voter     yes     12      5         counting-az3:9001
3 voters, 0 away: 1 more may be lost; term 4, entry 700
"""


def test_a_person_sees_that_a_loss_has_used_up_what_may_be_lost():
    found = described(
        member("counting-az1", heard=False, version=0), member("counting-az1-2", List.JOINS),
        member("counting-az2", leads=True), member("counting-az3"), settled=False,
    )
    assert counting.render(found).splitlines()[1:] == [
        "counting-az1        az1   voter     NO      0       -         counting-az1:9001",
        "counting-az1-2            joins     yes     -       5         counting-az1-2:9001",
        "counting-az2        az2   leader    yes     0       5         counting-az2:9001",
        "counting-az3        az3   voter     yes     0       5         counting-az3:9001",
        "3 voters, 1 away: none more may be lost; term 4, entry 700; a change of members is NOT certain yet",
    ]


def test_a_change_is_said_with_who_votes_now():
    done = {"member": "counting-az1-2", "added": True, "changed": True, "voters": ["a", "b", "c"], "caught_up": True}
    assert counting.said(done) == "added      counting-az1-2; voters are a, b, c\n"
    assert counting.said(done | {"added": False}).startswith("removed    counting-az1-2")
    assert counting.said(done | {"changed": False}).startswith("unchanged  counting-az1-2")
    assert "doesn't have the whole log yet" in counting.said(done | {"caught_up": False})


def test_without_a_cluster_it_is_one_sentence(tmp_path, capsys):
    assert command.main(["counting", "members", "--state", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["counting", "members"], ["counting", "add", "c1"], ["counting", "remove", "c1"], ["hosts", "declare-dead", "h"],
    ["key", "list"], ["account", "list"], ["chaos", "list"],
], ids=" ".join)
def test_state_and_target_may_stand_behind_the_action(tmp_path, capsys, words):
    where = ["--state", str(tmp_path / "away"), "--target", "compose"]
    assert command.main([*words, *where]) == (0 if words[0] == "chaos" else 3)
    said = capsys.readouterr()
    assert words[0] == "chaos" or str(tmp_path / "away") in said.err
