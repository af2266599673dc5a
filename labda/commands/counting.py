"""``labda counting``: who are the ledger's members, one more, one less. Where one was lost, both."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from labda import given
from labda.refusal import Refusal, Status
from labda.region import Node, Region, opened, wait
from labda.state import State
from labda.target import EMBEDDED, also_here
from protos import counting_pb2

PATIENCE_S = 30.0   # for a leader to be found
JOINING_S = 120.0   # for a member that has just been started, perhaps on a host that starts much else
AGAIN_S = 0.5

_List = counting_pb2.ListMembersAnswer
_STATES = {_List.VOTES: "voter", _List.JOINS: "joins", _List.REMOVED: "removed"}
_NO_LEADER = "no member of counting leads, so that nobody can say who the members are: a majority of them has to be up"
_NO_SUCCESSOR = (
    "{member} can't be removed from the embedded cluster in {state}: it would never vote again, and nothing makes a "
    "successor for it there; one that died is started again by itself. --target compose removes one of the cluster in "
    "containers"
)
WHAT_IT_DOES = """\
{member} ({state}, {heard}) loses its vote for good: that id never gets one again, its successor needs another.
  - Voters are then {voters}: {spare} may be lost before the ledger stops.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="members|add|remove")
    members = actions.add_parser("members", help="who votes, who would like to, how far each is")
    add = actions.add_parser("add", help="give a vote to a member that has been started (with files of --init --join)")
    remove = actions.add_parser("remove", help="take a member's vote, for good: it never gets one again under that id")
    for action in (add, remove):
        action.add_argument("member", type=given.name("NODE"), metavar="NODE", help="its node id")
    remove.add_argument("--yes", action="store_true", help="don't ask")
    for action in (members, add, remove):
        action.add_argument("--json", action="store_true", help="machine-readable")
        also_here(action)


def run(options: argparse.Namespace) -> int:
    if options.action == "members":
        found = asyncio.run(collect(options.state))
        sys.stdout.write(json.dumps(found, indent=2) + "\n" if options.json else render(found))
        return Status.OK
    add = options.action == "add"
    if not add and options.target == EMBEDDED:
        raise Refusal(_NO_SUCCESSOR.format(member=options.member, state=options.state.root), Status.USAGE)
    done = asyncio.run(change(options.state, options.member, add=add, sure=add or options.yes))
    sys.stdout.write(json.dumps(done, indent=2) + "\n" if options.json else said(done))
    return Status.OK


async def collect(state: State) -> dict[str, Any]:
    """As ``members --json`` prints it. Raises Refusal without a cluster, or a leader of its ledger."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        answer = await region.counting_members()
        nodes = region.nodes
    if answer is None:
        raise Refusal(_NO_LEADER, Status.REFUSED)
    return describe(answer, nodes)


async def change(state: State, member: str, *, add: bool, sure: bool = True) -> dict[str, Any]:
    """Returns when it is certain, and who is added has the whole log. Raises Refusal.

    Unless ``sure``, the operator is asked first: who loses a vote has no way back.
    """
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        if not sure:
            await asyncio.to_thread(confirm, await _known(region), member)
        end = time.monotonic() + (JOINING_S if add else PATIENCE_S)
        while True:
            answer = await region.change_counting(member, add=add)
            if answer is not None and answer.HasField("changed"):
                break
            refused = answer.refused if answer is not None else None
            if (refused is not None and not refused.passes) or time.monotonic() > end:
                what = "was not added" if add else "was not removed"
                raise Refusal(
                    f"{member} {what}: {refused.message}" if refused is not None else
                    f"{_NO_LEADER}. `labda counting members` says whether {member} {what}", Status.REFUSED,
                )
            await asyncio.sleep(AGAIN_S)
        caught_up = not add or await _catches_up(region, member, end)
    return {
        "member": member, "added": add, "changed": answer.changed.changed, "voters": list(answer.changed.voters),
        "caught_up": caught_up,
    }


async def _known(region: Region) -> _List:
    """The members, once somebody leads. Raises Refusal."""
    end = time.monotonic() + PATIENCE_S
    while (answer := await region.counting_members()) is None:
        if time.monotonic() > end:
            raise Refusal(_NO_LEADER, Status.REFUSED)
        await asyncio.sleep(AGAIN_S)
    return answer


async def _catches_up(region: Region, member: str, end: float) -> bool:
    while time.monotonic() < end:
        answer = await region.counting_members()
        if answer is not None and any(one.member == member and one.heard and not one.behind for one in answer.members):
            return True
        await asyncio.sleep(AGAIN_S)
    return False


def describe(answer: _List, nodes: Sequence[Node]) -> dict[str, Any]:
    azs = {node.node: node.az for node in nodes}
    return {
        "term": answer.term, "index": answer.index, "settled": answer.settled,
        "members": [{
            "member": one.member, "az": azs.get(one.member, ""), "address": one.address, "state": _STATES[one.state],
            "leads": one.leads, "heard": one.heard, "behind": one.behind, "commands": one.version or None,
        } for one in answer.members],
    }


# ---------------------------------------------------------------- for people


def confirm(known: _List, member: str) -> None:
    """Raises Refusal unless the operator types the member's name. Who isn't one is the ledger's to refuse."""
    found = next((one for one in known.members if one.member == member and one.state != _List.REMOVED), None)
    if found is None:
        return
    voters = sorted(one.member for one in known.members if one.state == _List.VOTES and one.member != member)
    away = sum(one.state == _List.VOTES and one.member != member and not one.heard for one in known.members)
    sys.stderr.write(WHAT_IT_DOES.format(
        member=member, state="leader" if found.leads else _STATES[found.state],
        heard="heard from" if found.heard else "not heard from", voters=", ".join(voters) or "nobody",
        spare=_spare(len(voters), away),
    ))
    sys.stderr.write(f"Type {member} to take its vote: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != member:
        raise Refusal(f"{member} was not removed: its name was not typed (--yes doesn't ask)", Status.REFUSED)


def _spare(voters: int, away: int) -> str:
    """How many more may be lost while a majority is up."""
    spare = (voters - 1) // 2 - away
    return "none" if spare < 1 else str(spare)


def render(found: Mapping[str, Any]) -> str:
    members = found["members"]
    lines = [f"{'member':<20}{'az':<6}{'state':<10}{'heard':<8}{'behind':<8}{'commands':<10}raft at"]
    for one in members:
        state = "leader" if one["leads"] else one["state"]
        behind = one["behind"] if one["state"] == "voter" else "-"
        lines.append(
            f"{one['member']:<20}{one['az']:<6}{state:<10}{'yes' if one['heard'] else 'NO':<8}{behind:<8}"
            f"{one['commands'] or '-':<10}{one['address']}"
        )
    voters = [one for one in members if one["state"] == "voter"]
    away = len(voters) - sum(one["heard"] for one in voters)
    lines.append(
        f"{len(voters)} {'voter' if len(voters) == 1 else 'voters'}, {away} away: {_spare(len(voters), away)} more may "
        f"be lost; term {found['term']}, "
        f"entry {found['index']}{'' if found['settled'] else '; a change of members is NOT certain yet'}"
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def said(done: Mapping[str, Any]) -> str:
    what = ("added" if done["added"] else "removed") if done["changed"] else "unchanged"
    lines = [f"{what:<11}{done['member']}; voters are {', '.join(done['voters'])}"]
    if not done["caught_up"]:
        lines.append(f"{'':<11}it doesn't have the whole log yet: `labda counting members` says how far it is")
    return "\n".join(lines) + "\n"
