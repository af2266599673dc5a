"""Three Raft members on one virtual-time loop, over a network that delays, cuts and pauses, from a seed.

Real members, real journals and dumps in files; only the links are ours: per-link order is kept, as a stream keeps it.
Messages travel as bytes, so the encoding is under test too.
"""

import asyncio
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from counting.raft.member import Group, Member, RaftTiming, create
from protos import raft_pb2
from simulation.loop import VirtualClock, VirtualLoop

NAMES = ("m1", "m2", "m3")
FOUNDERS = Group(voters=dict.fromkeys(NAMES, ""))


class LogMachine:
    """The state is the list of applied commands: what prefix-equality is judged by."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.failing = False

    def apply(self, index: int, command: bytes) -> int:
        if self.failing:
            raise ZeroDivisionError("a bug in the state machine")
        self.applied.append(command)
        return index

    def save(self) -> bytes:
        return b"\n".join(self.applied)

    def restore(self, state: bytes) -> None:
        self.applied = state.split(b"\n") if state else []


class PausableMember(Member):
    """A stopped process: no timer of it fires until it goes on."""

    paused = False

    def _tick(self) -> None:
        if not self.paused:
            super()._tick()


class RaftNet:
    def __init__(
        self, directory: Path, seed: int, *, timing: RaftTiming | None = None, without: frozenset[int] = frozenset(),
        names: tuple[str, ...] = NAMES, make_dumps: Callable[..., Any] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.random = random.Random(seed)
        self.clock = VirtualClock(loop)
        self.directory = directory
        self.names = names
        self.founders = Group(voters=dict.fromkeys(names, ""))
        self.timing = timing or RaftTiming()
        self.without = without
        self.make_dumps = make_dumps
        self.members: dict[str, PausableMember] = {}
        self.machines: dict[str, LogMachine] = {}
        self.cut: set[tuple[str, str]] = set()
        self.paused: dict[str, list[Callable[[], None]]] = {}
        self.roles: list[tuple[float, str, bool, int]] = []
        self.acknowledged: list[bytes] = []
        self.truth: dict[int, bytes] = {}  # index -> what was applied there, by whoever came first
        self.failure: str = ""
        self.spikes = True
        self._free_at: dict[tuple[str, str], float] = {}
        self._life: dict[str, int] = dict.fromkeys(names, 0)
        for name in names:
            create(directory / name, name)
            self.start(name)

    # ------------------------------------------------------------ members

    def start(self, name: str) -> None:
        machine = self.machines[name] = LogMachine()
        self._life[name] += 1
        extra: dict[str, Any] = {"make_dumps": self.make_dumps} if self.make_dumps else {}
        self.members[name] = PausableMember(
            member=name, founders=self.founders, directory=self.directory / name,
            machine=machine, clock=self.clock, generator=random.Random(self.random.getrandbits(32)), timing=self.timing,
            send=lambda peer, wire: self._send(name, peer, wire),
            on_committed=lambda index, command, result: self._committed(name, index, command),
            on_role=lambda *, leads, term, hint: self.roles.append((self.loop.time(), name, leads, term)),
            durable=False, without=self.without, **extra,
        )
        for other in self.members:
            if other != name:
                self.members[name].connected(other)
                self.members[other].connected(name)

    def join(self, name: str) -> None:
        """A new member with empty files. It has no vote until somebody's log says so."""
        self.names += (name,)
        self._life[name] = 0
        create(self.directory / name, name, joins=True)
        self.start(name)

    def change(self, make: Callable[[Group], Group]) -> bool:
        """Has the leader put another group into force; False when it can't now, as its service would answer."""
        leader = self.members.get(self.leader() or "")
        if leader is None or leader.paused or not leader.settled:
            return False
        group = make(leader.group)
        if group == leader.group:
            return False
        leader.change(group)
        return True

    def crash(self, name: str) -> None:
        self.members.pop(name).crash()
        self._life[name] += 1
        self.paused.pop(name, None)
        for other in self.members.values():
            other.disconnected(name)

    def pause(self, name: str) -> None:
        self.paused.setdefault(name, [])
        self.members[name].paused = True

    def resume(self, name: str) -> None:
        actions = self.paused.pop(name, [])
        self.members[name].paused = False
        for action in actions:
            action()
        self.members[name]._tick()

    def close(self) -> None:
        for member in self.members.values():
            member.close()
        self.members = {}

    # ------------------------------------------------------------ commands

    def leader(self) -> str | None:
        leading = [name for name, member in self.members.items() if member.leads]
        return max(leading, key=lambda name: self.members[name].term, default=None)

    def leading(self) -> str:
        leader = self.leader()
        assert leader is not None, "nobody leads"
        return leader

    def propose(self, command: bytes, name: str | None = None) -> bool:
        name = name or self.leader()
        if name is None or name in self.paused:
            return False
        return self.members[name].propose(command)

    async def until(self, condition: Callable[[], Any], within_s: float) -> None:
        deadline = self.loop.time() + within_s
        while not condition():
            assert self.loop.time() < deadline, f"not within {within_s} s of virtual time"
            await asyncio.sleep(0.01)

    async def settle(self, within_s: float = 15.0) -> str:
        """Heals everything and waits until all voters have applied the same; returns the leader."""
        self.cut.clear()
        for name in list(self.paused):
            self.resume(name)
        for name in self.names:
            if name not in self.members:
                self.start(name)
        await self.until(self.leader, within_s)
        mark = b"settled at %f" % self.loop.time()
        deadline = self.loop.time() + within_s
        while (leader := self.leader()) is None or not all(
            mark in self.machines[voter].applied for voter in self.members[leader].group.voters
        ):
            assert self.loop.time() < deadline, "members don't agree after everything was healed"
            if self.loop.time() * 10 % 5 < 1:
                self.propose(mark)
            await asyncio.sleep(0.05)
        return leader

    def judge(self) -> None:
        """Invariant 14: applied logs prefix-equal, everything acknowledged is there, one leader per term."""
        assert not self.failure, self.failure
        logs = sorted((machine.applied for machine in self.machines.values()), key=len)
        for shorter, longer in itertools.pairwise(logs):
            assert longer[: len(shorter)] == shorter, "applied logs differ"
        missing = set(self.acknowledged) - set(logs[-1])
        assert not missing, f"{len(missing)} acknowledged commands are lost, such as {min(missing)!r}"
        leaders: dict[int, str] = {}
        for _, name, leads, term in self.roles:
            if leads:
                assert leaders.setdefault(term, name) == name, f"two leaders in term {term}"

    # ------------------------------------------------------------ network

    def _committed(self, name: str, index: int, command: bytes) -> None:
        if self.members[name].leads:
            self.acknowledged.append(command)  # a leader that applied it would answer its caller now
            if self.members[name]._journal._waiting and 5 not in self.without and not self.failure:
                self.failure = f"{name} counted itself for {command!r} before that was on its disk"
        truth = self.truth.setdefault(index, command)
        if truth != command and not self.failure:
            self.failure = f"{name} applied {command!r} at {index}, where another applied {truth!r}"

    def _send(self, sender: str, receiver: str, wire: raft_pb2.RaftMessage) -> bool:
        link = (sender, receiver)
        if link in self.cut or receiver not in self.members:
            return False
        data, life = wire.SerializeToString(), self._life[receiver]
        at = max(self.loop.time() + self._delay(), math.nextafter(self._free_at.get(link, 0.0), math.inf))
        self._free_at[link] = at

        def deliver() -> None:
            if self._life[receiver] != life or receiver not in self.members or link in self.cut:
                return
            if receiver in self.paused:
                self.paused[receiver].append(deliver)
                return
            self.members[receiver].receive(sender, raft_pb2.RaftMessage.FromString(data))

        self.loop.call_at(at, deliver)
        return True

    def _delay(self) -> float:
        if self.spikes and self.random.random() < 0.02:
            return self.random.uniform(0.05, 0.6)
        return self.random.uniform(0.0002, 0.003)
