"""`labda counting`: what it shows of members, and what it says of a change."""

import io

import pytest

from labda import __main__ as command
from labda.commands import counting, status
from labda.refusal import Refusal
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


def test_one_voter_is_one_voter():
    assert "1 voter, 0 away: none more may be lost" in counting.render(described(member("counting-az1", leads=True)))


KNOWN = List(members=[
    member("counting-az1", heard=False), member("counting-az2", leads=True), member("counting-az3"),
    member("counting-az4", List.REMOVED),
])


@pytest.mark.parametrize("typed", ["", "y\n", "counting-az2\n"])
def test_no_vote_is_taken_unless_the_members_own_name_was_typed(monkeypatch, capsys, typed):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with pytest.raises(Refusal, match="counting-az1 was not removed"):
        counting.confirm(KNOWN, "counting-az1")
    said = capsys.readouterr().err
    assert "counting-az1 (voter, not heard from) loses its vote for good" in said
    assert "Voters are then counting-az2, counting-az3: none may be lost" in said


def test_whoever_types_it_goes_on_and_who_has_no_vote_is_not_asked_about(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("counting-az1\n"))
    counting.confirm(KNOWN, "counting-az1")
    counting.confirm(KNOWN, "counting-az4")
    counting.confirm(KNOWN, "counting-az9")


def test_a_member_of_an_embedded_cluster_is_not_removed_since_it_would_have_no_successor(tmp_path, capsys):
    assert command.main(["counting", "remove", "counting-az1", "--yes", "--state", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("labda: counting-az1 can't be removed from the embedded cluster in")
    assert said.count("\n") == 1


def test_status_says_of_a_removed_member_that_it_has_no_vote():
    """It goes on running, and following."""
    found = List(members=[member("counting-az1"), member("counting-az2", List.REMOVED)])
    nodes = [
        placement_pb2.Node(node=f"counting-az{n}", service="counting", health="serving", role="follower")
        for n in (1, 2, 3)
    ]
    nodes.append(placement_pb2.Node(node="placement-az1", service="placement", health="serving", role="active"))
    assert [status._process(node, found)["votes"] for node in nodes] == [True, False, False, None]
    assert [status._process(node, None)["votes"] for node in nodes] == [None] * 4
    assert [status._word(status._process(node, found)) for node in nodes] == [
        "counting-az1 (follower)", "counting-az2 (no vote)", "counting-az3 (no vote)", "placement-az1 (active)",
    ]


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
