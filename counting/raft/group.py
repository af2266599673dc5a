"""Who votes: the members of the group, as the log says it. Pure.

A change of members is an entry of the log. It holds from the moment it is in a member's log, committed or not, and is
taken back where the entry is truncated (Ongaro's thesis, 4.1). One member comes or goes at a time, so that a majority
of the group before and one of the group after share a member. Refuses to know how anybody is reached, or who may ask.
"""

from dataclasses import dataclass, field
from typing import Self

from pysyncobj.syncobj import _COMMAND_TYPE

from protos import raft_pb2

_MEMBERSHIP = bytes((_COMMAND_TYPE.MEMBERSHIP,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """``voters``: address where each serves Raft, by member id. ``removed``: ids that voted once and never may again,
    since the files behind such an id may be lost, and with them its votes."""

    voters: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def with_voter(self, member: str, address: str) -> Self:
        assert member not in self.removed, f"{member} would vote a second time"
        return type(self)(voters=dict(sorted([*self.voters.items(), (member, address)])), removed=self.removed)

    def without_voter(self, member: str) -> Self:
        voters = {voter: address for voter, address in self.voters.items() if voter != member}
        return type(self)(voters=voters, removed=(*self.removed, member))

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1


def to_wire(group: Group) -> raft_pb2.Group:
    voters = [raft_pb2.Group.Voter(member=member, address=address) for member, address in group.voters.items()]
    return raft_pb2.Group(voters=voters, removed=group.removed)


def from_wire(wire: raft_pb2.Group) -> Group:
    return Group(voters={voter.member: voter.address for voter in wire.voters}, removed=tuple(wire.removed))


def entry_of(group: Group) -> bytes:
    """The command of the log entry that puts this group into force."""
    return _MEMBERSHIP + to_wire(group).SerializeToString(deterministic=True)


class Groups:
    """The group in force, and the ones before it that the log may fall back to. ``founders``: what holds in a log that
    says nothing."""

    def __init__(self, founders: Group) -> None:
        self._founders = founders
        self._since: list[tuple[int, Group]] = [(0, founders)]

    @property
    def current(self) -> Group:
        return self._since[-1][1]

    @property
    def index(self) -> int:
        """Of the entry that put the current one into force; 0: the founders'."""
        return self._since[-1][0]

    def said_at(self, index: int) -> Group | None:
        """The one that held when the log ended with this entry; None while it hadn't said any."""
        return next((group for since, group in reversed(self._since) if 0 < since <= index), None)

    def added(self, index: int, command: bytes) -> None:
        """An entry is in the log now."""
        if command.startswith(_MEMBERSHIP) and index > self.index:
            self._since.append((index, from_wire(raft_pb2.Group.FromString(command[1:]))))

    def truncated(self, index: int) -> None:
        """Entries from this one on are gone."""
        while self._since[-1][0] >= index > 0:
            self._since.pop()

    def restored(self, index: int, group: Group | None) -> None:
        """The log begins behind a snapshot whose last entry is this one; None: it says nothing of members."""
        self._since = [(0, self._founders)] if group is None else [(index, group)]
