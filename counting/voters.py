"""The members of the group, for operators: who votes, who would like to; one more, one less.

Owns these three calls and what has to hold before the group is changed: no change may cost the quorum, and no id may
vote twice. Refuses to know how a change is agreed (raft/group.py, raft/guards.py).
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from chassis.clock import Clock
from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller, Handlers
from counting import wire
from counting.commands import OLDEST, REGROUPING
from counting.peers import RaftLinks
from counting.raft.member import Group, Member
from protos import counting_pb2, counting_rpc

CERTAIN_S = 5.0     # a change that no majority has confirmed by then may still come
LEAD_S = 2.0        # for a leader that hands over
ANSWERED_S = 1.0    # a voter that answered the leader within this counts as there: it is asked every heartbeat

_log = structlog.get_logger(__name__)
_Answer = counting_pb2.ChangeMembersAnswer
_Refused = counting_pb2.ChangeMembersAnswer.Refused
_List = counting_pb2.ListMembersAnswer


class Voters:
    """``seeds``: addresses by member, as this one's config has them; they are preferred to the log's. ``proposed``: the
    newest command language that a batch in the log is in."""

    def __init__(
        self, *, node: str, seeds: dict[str, str], version: int, proposed: Callable[[], int], member: Member,
        links: RaftLinks, clock: Clock,
    ) -> None:
        self._node = node
        self._seeds = seeds
        self._version = version
        self._proposed = proposed
        self._member = member
        self._links = links
        self._clock = clock
        self._waiting: list[asyncio.Future[None]] = []

    def serve(self, handlers: Handlers) -> None:
        handlers.unary(counting_rpc.LIST_MEMBERS, self._list)
        handlers.unary(counting_rpc.ADD_MEMBER, self._add)
        handlers.unary(counting_rpc.REMOVE_MEMBER, self._remove)

    def changed(self) -> None:
        """The group is another one, or certain now, or the role is: the links follow, who waits looks again."""
        known = self._member.group.voters or self._seeds    # one that joins is heard before its log says anything
        self._links.follow({
            voter: self._seeds.get(voter, address) for voter, address in known.items() if voter != self._node
        })
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def known_by_all(self, *, but: str = "") -> int:
        """The newest command language that every voter knows, one of them left out; who never said anything knows the
        first."""
        said = self._links.versions
        peers = (voter for voter in self._member.group.voters if voter not in (self._node, but))
        return min([self._version, *(said.get(peer, OLDEST) for peer in peers)])

    async def step_aside(self, timeout_s: float) -> bool:
        """Has somebody else lead, without the silence after which one would; whether this member doesn't any more."""
        heir = self._member.hand_over()
        _log.info("hands over", to=heir)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s if heir else 0.0):
                while self._member.leads:
                    await self._news()
        return not self._member.leads

    # ------------------------------------------------------------ calls

    async def _list(self, _request: counting_pb2.ListMembersRequest, _caller: Caller) -> _List:
        if not self._member.leads:
            return _List(not_leader=self._not_leader())
        group, matched = self._member.group, self._member.matched()
        heard = {self._node, *self._answering()}
        members = [
            _List.Member(
                member=voter, address=address, state=_List.VOTES, leads=voter == self._node, heard=voter in heard,
                behind=max(0, self._member.committed - matched.get(voter, self._member.committed)),
                version=self._version if voter == self._node else self._links.versions.get(voter, 0),
            )
            for voter, address in group.voters.items()
        ] + [
            _List.Member(
                member=peer, address=address, state=_List.REMOVED if peer in group.removed else _List.JOINS,
                heard=self._links.heard(peer), version=self._links.versions.get(peer, 0),
            )
            for peer, address in self._links.introduced.items() if peer not in group.voters
        ]
        return _List(
            members=sorted(members, key=lambda one: one.member), term=self._member.term, index=self._member.index,
            settled=self._member.settled,
        )

    async def _add(self, request: counting_pb2.ChangeMembersRequest, caller: Caller) -> _Answer:
        name, group = request.member, self._member.group
        if not self._member.leads:
            return _Answer(not_leader=self._not_leader())
        if name in group.voters:
            return await self._certain(group, changed=False)
        refused = self._refuses_change(but="") or self._refuses_to_add(name)
        if refused is not None:
            return _Answer(refused=refused)
        return await self._change(group.with_voter(name, self._links.introduced[name]), caller)

    async def _remove(self, request: counting_pb2.ChangeMembersRequest, caller: Caller) -> _Answer:
        name, group = request.member, self._member.group
        if not self._member.leads:
            return _Answer(not_leader=self._not_leader())
        if name not in group.voters and name in group.removed:
            return await self._certain(group, changed=False)
        refused = self._refuses_change(but=name) or self._refuses_to_remove(name)
        if refused is not None:
            return _Answer(refused=refused)
        if name == self._node:
            return await self._hand_over()
        return await self._change(group.without_voter(name), caller)

    # ------------------------------------------------------------ what has to hold

    def _refuses_change(self, *, but: str) -> _Refused | None:
        """Who is lost has said nothing to a leader that began after that: it must not keep itself in."""
        group = self._member.group
        known = max(self._proposed(), self.known_by_all(but=but))
        if known < REGROUPING:
            return _Refused(message=wire.too_old(known, REGROUPING, self._version))
        if not self._member.settled:
            return _Refused(passes=True, message=(
                f"a change of members is not certain yet ({', '.join(group.voters)}): one at a time"
            ))
        return None

    def _refuses_to_add(self, name: str) -> _Refused | None:
        if name in self._member.group.removed:
            return _Refused(message=(
                f"{name} voted once and was removed: with files that were lost it could vote twice in one term. "
                "Start the member under another id"
            ))
        if name not in self._links.introduced or not self._links.heard(name):
            return _Refused(passes=True, message=(
                f"{name} doesn't answer {self._node}, and a voter that is away weakens the group: start it "
                "with files of --init --join and all members in its config, and see in its log what it lacks"
            ))
        takes = max(REGROUPING, self._proposed())
        if self._links.versions[name] < takes:
            return _Refused(message=wire.too_old(self._links.versions[name], takes, self._version))
        return None

    def _refuses_to_remove(self, name: str) -> _Refused | None:
        group = self._member.group
        if name not in group.voters:
            return _Refused(message=f"{name} is no member: {', '.join(group.voters)} are")
        if len(group.voters) == 1:
            return _Refused(message=f"{name} is the last member: the ledger would be nobody's")
        rest = group.without_voter(name)
        there = {self._node, *self._answering()} & set(rest.voters)
        if len(there) < rest.majority:
            away = sorted(set(rest.voters) - there)
            return _Refused(message=(
                f"without {name}, {rest.majority} of {len(rest.voters)} members have to be there, and "
                f"{', '.join(away)} can't be heard: the ledger would stand still. Bring that back, or remove it first"
            ))
        return None

    def _answering(self) -> set[str]:
        since = self._clock.monotonic() - ANSWERED_S
        return {voter for voter, at in self._member.answered().items() if at >= since and self._links.heard(voter)}

    # ------------------------------------------------------------ what is done

    async def _change(self, group: Group, caller: Caller) -> _Answer:
        _log.warning("members change", voters=list(group.voters), removed=list(group.removed), by=caller.node)
        self._member.change(group)
        return await self._certain(group, changed=True)

    async def _certain(self, group: Group, *, changed: bool) -> _Answer:
        """Also of a group that was asked for before: that may not be certain yet. Raises Fault when it isn't known
        whether it holds."""
        with contextlib.suppress(TimeoutError):     # then it is as unknown as after a lost leadership
            async with asyncio.timeout(CERTAIN_S):
                while self._member.leads and self._member.group == group and not self._member.settled:
                    await self._news()
        if not (self._member.settled and self._member.group == group):
            raise Fault(
                f"no majority has confirmed within {CERTAIN_S:.0f} s that {', '.join(group.voters)} are the members: "
                "look who they are before you go on", code=FaultCode.UNAVAILABLE,
            )
        return _Answer(changed=_Answer.Changed(changed=changed, voters=group.voters))

    async def _hand_over(self) -> _Answer:
        """Raises Fault when nobody takes the leadership."""
        if not await self.step_aside(LEAD_S):
            raise Fault(
                f"{self._node} leads, and nobody took that over within {LEAD_S:.0f} s: try again",
                code=FaultCode.UNAVAILABLE, definite=True,
            )
        return _Answer(not_leader=self._not_leader())

    async def _news(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _not_leader(self) -> counting_pb2.NotLeader:
        return counting_pb2.NotLeader(term=self._member.term, hint=self._member.leader)
