"""One Raft member on an asyncio loop: drives the guarded node without a thread, and hides pysyncobj from everybody
else.

The interface that counting's service sees: ``propose`` (a command, committed or not is said by ``on_committed``; an
empty command is a read barrier, since its commit proves that a quorum followed this leader after it was proposed),
``on_role`` (leadership changed), ``term`` and ``index``. A tick runs when time asks for it and once per turn of the
loop in which messages came, so that a member at rest does next to nothing.
Refuses to know the commands and how messages travel (links.py).
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chassis.clock import Clock
from counting.raft import ambient
from counting.raft.codec import Message, from_wire, to_wire
from counting.raft.dump import Dumps
from counting.raft.framing import DamagedFileError
from counting.raft.group import Group
from counting.raft.guards import COMMAND_BYTES_MAX, GuardedNode, Peer, RaftTiming, Transport
from counting.raft.journal import Journal
from protos import raft_pb2

__all__ = ["COMMAND_BYTES_MAX", "Group", "LogCounts", "Member", "RaftTiming", "Role", "StateMachine", "create"]

_MARGIN_S = 0.001
"""pysyncobj acts when a deadline is past, not when it is reached."""


class StateMachine(Protocol):
    """What is replicated. ``apply`` is total and knows no clock and no randomness; an exception in it ends the
    process."""

    def apply(self, index: int, command: bytes) -> Any: ...

    def save(self) -> bytes: ...

    def restore(self, state: bytes) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCounts:
    """What became of a member's log since its process began, by times."""

    compactions: int
    installs: int       # of a leader's snapshot
    truncations: int    # entries that weren't committed gave way to another leader's


class Role(Protocol):
    """``leads`` only once everything acknowledged before is applied here. ``hint``: the leader's id, "" if unknown."""

    def __call__(self, *, leads: bool, term: int, hint: str) -> None: ...


def create(directory: Path, member: str, *, joins: bool = False) -> None:
    """The files of a member that never was; ``joins``: no founder. Raises FileExistsError where there are any.

    Done once, on purpose: a member that starts without its files would vote with amnesia (defect 5), so it doesn't
    start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if _dump_path(directory).exists():
        raise FileExistsError(f"{_dump_path(directory)} is there already: a member's files are created once")
    Journal.create(_journal_path(directory), member, joins=joins)


def _journal_path(directory: Path) -> Path:
    return directory / "journal"


def _dump_path(directory: Path) -> Path:
    return directory / "dump"


class Member:
    """A member of the group that its log names; while that says nothing, of the ``founders``, unless its files say that
    it joins: then it votes when the log has come and names it. Raises DamagedFileError when its files are lost or
    damaged."""

    def __init__(
        self,
        *,
        member: str,
        founders: Group,
        directory: Path,
        machine: StateMachine,
        clock: Clock,
        generator: random.Random,
        timing: RaftTiming,
        send: Callable[[str, raft_pb2.RaftMessage], bool],
        on_committed: Callable[[int, bytes, Any], None],
        on_role: Role,
        on_group: Callable[[], None] = lambda: None,
        durable: bool = True,
        without: frozenset[int] = frozenset(),
        make_dumps: Callable[..., Dumps] = Dumps,
    ) -> None:
        ambient.install()
        if not _journal_path(directory).exists():
            raise DamagedFileError(
                f"{_journal_path(directory)} is missing. A new member is made with --init; one that lost its files "
                f"must come back under a new id, or it would vote twice in one term"
            )
        self._clock = clock
        self._generator = generator
        self._machine = machine
        self._send = send
        self._on_committed = on_committed
        self._on_role = on_role
        self._on_group = on_group
        self._committed: list[tuple[int, bytes, Any]] = []
        self._retry_s = timing.heartbeat_s
        self._role = (False, 0, "")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._tick_soon: asyncio.Handle | None = None
        self._driving = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._journal = Journal(_journal_path(directory), member, durable=durable)
        founders = Group() if self._journal.joins else founders
        self._grouped = (founders, True)
        self._transport = Transport(self._send_message, self._journal, without)
        dump_path = _dump_path(directory)
        self._dumps = make_dumps(dump_path, machine.save, durable=durable)
        with ambient.driven(clock, generator):
            self._node = GuardedNode(
                member, founders, timing, transport=self._transport, journal=self._journal,
                dumps=self._dumps, dump_path=str(dump_path),
                apply=self._apply, restore=machine.restore, now=clock.monotonic, without=without,
            )
        if tuple(self.group.voters) == (member,):
            self._tick_in_this_turn()
        self._after()

    # ------------------------------------------------------------ for the service

    @property
    def leads(self) -> bool:
        return self._role[0]

    @property
    def leader(self) -> str:
        """Its id, as far as this member knows it; "" otherwise."""
        return self._role[2]

    @property
    def term(self) -> int:
        return self._node.term()

    @property
    def index(self) -> int:
        """The last entry that is applied here."""
        return self._node.applied()

    @property
    def committed(self) -> int:
        """The last entry that is known here to be in a majority's logs."""
        return self._node.committed()

    @property
    def log(self) -> LogCounts:
        return LogCounts(
            compactions=self._dumps.made, installs=self._dumps.installed, truncations=self._journal.truncations
        )

    def propose(self, command: bytes) -> bool:
        """Puts a command into the log. False, for certain, when this member isn't leader; True promises nothing yet."""
        if self._closed or not self._node.is_leader():
            return False
        self._drive(lambda: self._node.propose(command))
        self._sync_after_sends()
        return True

    @property
    def group(self) -> Group:
        """Who votes, by this member's log."""
        return self._node.group

    @property
    def settled(self) -> bool:
        """Whether a majority has the entry that says so: the next change waits for that."""
        return self._node.settled()

    def matched(self) -> dict[str, int]:
        """The last entry that each other voter is known to have, as the leader knows it."""
        return self._node.matched()

    def answered(self) -> dict[str, float]:
        """When each other voter answered last, by this member's monotonic clock, as the leader knows it."""
        return self._node.answered()

    def change(self, group: Group) -> None:
        """Puts a group that differs by one member into force. ``leads`` and ``settled`` must hold, and this member is
        in it. It is certain once it is ``settled``; ``on_group`` tells."""
        self._drive(lambda: self._node.change(group))
        self._sync_after_sends()

    def hand_over(self) -> str:
        """Asks the follower that is furthest to lead instead; its id, "" without one. Whether it does is told by
        ``on_role``."""
        heir = ""

        def tell() -> None:
            nonlocal heir
            heir = self._node.hand_over()

        self._drive(tell)
        return heir

    def close(self) -> None:
        """Stops; what was added and not yet synced is synced."""
        self._stop()
        self._journal._destroy()  # noqa: SLF001 - pysyncobj's name for closing

    def crash(self) -> None:
        """Stops as a killed process would: what isn't synced is gone (simulations)."""
        self._stop()
        self._journal.abandon()

    # ------------------------------------------------------------ for the links

    def connected(self, peer: str) -> None:
        callback = self._transport.on_connected
        if callback is not None:
            self._drive(lambda: callback(Peer(peer)))

    def disconnected(self, peer: str) -> None:
        callback = self._transport.on_disconnected
        if callback is not None:
            self._drive(lambda: callback(Peer(peer)))

    def receive(self, peer: str, wire: raft_pb2.RaftMessage) -> None:
        """From anyone: a candidate or leader may be in a group that this log doesn't have yet (thesis, 4.1)."""
        message, callback = from_wire(wire), self._transport.on_message
        if message is not None and callback is not None:
            self._drive(lambda: callback(Peer(peer), message))

    # ------------------------------------------------------------ driving

    def _send_message(self, peer: str, message: Message) -> bool:
        return self._send(peer, to_wire(message))

    def _apply(self, index: int, command: bytes) -> None:
        try:
            result = self._machine.apply(index, command)
        except Exception as error:
            raise AssertionError(f"entry {index} can't be applied ({error}): this member must not go on") from error
        self._committed.append((index, command, result))

    def _drive(self, action: Callable[[], None]) -> None:
        """Every entry into pysyncobj goes through here. One within another (a send that delivers at once) just runs."""
        if self._closed:
            return
        if self._driving:
            action()
            return
        self._driving = True
        try:
            with ambient.driven(self._clock, self._generator):
                action()
        except OSError as error:
            self._end_without_disk(error)
        finally:
            self._driving = False
        self._after()

    def _end_without_disk(self, error: OSError) -> None:
        """A member that can't write its journal promises nothing any more. Its process ends, whoever drove it here."""
        self._stop()
        self._loop.call_exception_handler({
            "message": "the journal can't be written: this member ends",
            "exception": AssertionError(f"{error}: free space on its disk, it is started again"),
        })

    def _sync_after_sends(self) -> None:
        """A link writes in the next turn of the loop. Synced before that, entries would reach the followers only after
        this member's disk: so all disks work at the same time. A tick that counts this member syncs by itself."""
        self._loop.call_soon(self._loop.call_soon, self._sync)

    def _sync(self) -> None:
        self._drive(self._journal.sync)

    def _tick(self) -> None:
        self._tick_soon = None
        self._drive(lambda: self._node.doTick(0))

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self._tick()

    def _tick_in_this_turn(self) -> None:
        if self._tick_soon is None:
            self._tick_soon = self._loop.call_soon(self._tick)

    def _after(self) -> None:
        if self._closed:
            return
        committed, self._committed = self._committed, []
        for index, command, result in committed:
            self._on_committed(index, command, result)
        role = (self._node.leads(), self._node.term(), self._node.leader())
        if role != self._role:
            self._role = role
            self._on_role(leads=role[0], term=role[1], hint=role[2])
        grouped = (self._node.group, self._node.settled())
        if grouped != self._grouped:
            self._grouped = grouped
            self._on_group()
        if self._node.wants_tick():
            self._tick_in_this_turn()
        now, at = self._clock.monotonic(), self._node.next_tick_at()
        # A member that hears nobody can't stand for election: its deadline is past, and it looks again later.
        self._arm((at if at > now else now + self._retry_s) + _MARGIN_S)

    def _arm(self, at: float) -> None:
        """A timer that fires too early is let run: it finds nothing to do and arms the next."""
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self._clock.monotonic()), self._on_timer)

    def _stop(self) -> None:
        self._closed = True
        for handle in (self._timer, self._tick_soon):
            if handle is not None:
                handle.cancel()
