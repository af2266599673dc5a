"""The manager's view of sandboxes: which are being placed, starting, idle, reserved, going.

Owns the one table of their states and the indices that answer "an idle one of this function" in constant time. Refuses
to know who waits (``waiting``) and what a worker can hold (``leases``).
"""

import enum
from collections.abc import Iterator
from typing import TypeVar

from chassis.machine import Story, Transitions
from worker_manager.messages import (
    Busy,
    CreateFailed,
    Destroy,
    FunctionKey,
    Going,
    Gone,
    Idle,
    Inventory,
    NoCapacity,
    Order,
    Placed,
    Raise,
    Raised,
    Ready,
    Refused,
    Release,
    Reserved,
    WorkerAway,
)

Key = TypeVar("Key")


class State(enum.Enum):
    PLACING = "placing"          # wanted; no worker has been asked, or the last one said no
    STARTING = "starting"        # ordered at a worker
    IDLE = "idle"                # nobody has a right on it
    RESERVED = "reserved"        # a frontend runs on it, may start on it, or lingers
    RECALLED = "recalled"        # the sequence is being raised at the worker
    DRAINING = "draining"        # its end is ordered
    LEAVING = "leaving"          # by its worker's word nothing starts on it any more; it has yet to go
    GONE = "gone"


class StillRuns:
    """Something runs on the sandbox, or its holder is about to start: that goes first."""


_LIVE = (State.STARTING, State.IDLE, State.RESERVED, State.RECALLED, State.DRAINING, State.LEAVING)
STATES: Transitions[State] = Transitions({
    (State.PLACING, Placed): State.STARTING,
    (State.PLACING, Refused): State.GONE,
    (State.PLACING, WorkerAway): State.GONE,
    (State.STARTING, NoCapacity): State.PLACING,
    (State.STARTING, CreateFailed): State.GONE,
    (State.STARTING, Ready): State.IDLE,
    (State.IDLE, Reserved): State.RESERVED,
    (State.IDLE, Busy): State.RESERVED,
    (State.IDLE, Raise): State.RECALLED,
    (State.IDLE, Destroy): State.DRAINING,
    (State.RESERVED, Busy): State.RESERVED,
    (State.RESERVED, Idle): State.IDLE,
    (State.RESERVED, Release): State.IDLE,
    (State.RESERVED, Raise): State.RECALLED,
    (State.RECALLED, Busy): State.RECALLED,
    (State.RECALLED, Raised): State.IDLE,
    (State.RECALLED, StillRuns): State.RESERVED,
    (State.DRAINING, Busy): State.DRAINING,
    (State.DRAINING, Idle): State.DRAINING,
    (State.DRAINING, Ready): State.DRAINING,
    (State.DRAINING, Inventory): State.DRAINING,
    (State.LEAVING, CreateFailed): State.GONE,
    **{(state, Going): State.LEAVING for state in _LIVE},
    **{(state, Gone): State.GONE for state in _LIVE},
    **{(state, WorkerAway): State.GONE for state in _LIVE},
})


class Sandbox:
    """One sandbox. Times are monotonic seconds."""

    __slots__ = (
        "asked_at", "az", "busy", "cause", "deadline_at", "function", "gently", "held", "holder", "idle_since",
        "linger_s", "making_room", "memory_mb", "name", "order", "pass_on_until", "place_ms", "ranking", "refusal",
        "released", "reserved_at", "room_on", "runtime", "sequence", "short", "started_at", "state", "story", "tried",
        "worker",
    )

    def __init__(self, name: str, function: FunctionKey, memory_mb: int, state: State) -> None:
        self.name = name
        self.function = function
        self.memory_mb = memory_mb
        self.state = state
        self.worker = ""
        self.cause = ""                  # invocation that it was made for, or is reserved for
        self.runtime = ""
        self.az = ""
        self.order = Order()
        # placing
        self.asked_at = 0.0
        self.deadline_at = 0.0           # of the request that it is made for
        self.place_ms = 0.0
        self.ranking: list[str] | None = None
        self.refusal = ""                # placement's word, or the last worker's
        self.tried: set[str] = set()     # workers that refused for certain
        self.room_on = ""                # worker on which others make room for it
        self.short = False               # of memory, when it last looked for a worker
        self.started_at = 0.0            # ordered at the worker
        # the right to start on it
        self.sequence = 1                # highest given to a holder or raised at the worker
        self.held = 1                    # sequence of the present or last holder
        self.holder = ""                 # frontend; empty: nobody we know
        self.busy = False                # by the worker's word
        self.released = False            # the holder won't start again
        self.making_room = False         # recalled to go
        self.gently = False              # it is being taken back only if its holder keeps it without using it
        self.linger_s = 0.0
        self.pass_on_until = float("-inf")  # its holder's own requests go first until then
        self.reserved_at = 0.0
        self.idle_since: float | None = None   # lingering or idle since
        self.story = Story()

    @property
    def startable(self) -> bool:
        """Whether somebody has, or may have, a right to start on it that the worker would honour."""
        if self.state is State.RESERVED:
            return self.held == self.sequence
        return self.state in (State.IDLE, State.RECALLED, State.DRAINING)

    @property
    def goes(self) -> bool:
        """Whether its memory comes free, whatever happens."""
        return self.state in (State.DRAINING, State.LEAVING)

    def __repr__(self) -> str:
        return f"Sandbox({self.name}, {self.state.name}, on {self.worker or 'no worker'})"


class Sandboxes:
    """All sandboxes, and per function the idle (most recently used last), the lingering and the coming ones."""

    def __init__(self) -> None:
        self.by_name: dict[str, Sandbox] = {}
        self._by_worker: dict[str, dict[str, Sandbox]] = {}
        self._by_function: dict[FunctionKey, dict[str, Sandbox]] = {}
        self._idle: dict[FunctionKey, dict[str, Sandbox]] = {}
        self._idle_all: dict[str, Sandbox] = {}                  # longest idle first
        self._lingering: dict[FunctionKey, dict[str, Sandbox]] = {}
        self._perhaps: dict[FunctionKey, dict[str, Sandbox]] = {}   # reserved, and no word of the worker's since
        self._coming: dict[FunctionKey, dict[str, Sandbox]] = {}  # will serve a waiter: placing, starting, recalled

    def get(self, name: str, worker: str | None = None) -> Sandbox | None:
        """By name; where a worker speaks, only if the sandbox is there."""
        sandbox = self.by_name.get(name)
        return sandbox if sandbox is not None and worker in (None, sandbox.worker) else None

    def add(self, sandbox: Sandbox) -> None:
        assert sandbox.name not in self.by_name, f"{sandbox.name} exists already"
        self.by_name[sandbox.name] = sandbox
        self._by_function.setdefault(sandbox.function, {})[sandbox.name] = sandbox
        if sandbox.worker:
            self._by_worker.setdefault(sandbox.worker, {})[sandbox.name] = sandbox
        self._index(sandbox)

    def seat(self, sandbox: Sandbox, worker: str) -> None:
        """Puts it on a worker; the empty string takes it off again."""
        _drop(self._by_worker, sandbox.worker, sandbox.name)
        sandbox.worker = worker
        if worker:
            self._by_worker.setdefault(worker, {})[sandbox.name] = sandbox

    def move(self, sandbox: Sandbox, event: type, now: float) -> None:
        """The only place where a sandbox's state changes."""
        sandbox.story.tell(now, f"{sandbox.name} {sandbox.state.name} {event.__name__}")
        before, sandbox.state = sandbox.state, STATES.next(sandbox.state, event, sandbox.story)
        _drop(self._lingering, sandbox.function, sandbox.name)
        _drop(self._perhaps, sandbox.function, sandbox.name)
        if event is Reserved and sandbox.pass_on_until <= now:
            self._perhaps.setdefault(sandbox.function, {})[sandbox.name] = sandbox
        if sandbox.state is before:
            return
        _drop(self._idle, sandbox.function, sandbox.name)
        _drop(self._coming, sandbox.function, sandbox.name)
        self._idle_all.pop(sandbox.name, None)
        if sandbox.state is State.GONE:
            del self.by_name[sandbox.name]
            _drop(self._by_function, sandbox.function, sandbox.name)
            _drop(self._by_worker, sandbox.worker, sandbox.name)
        else:
            self._index(sandbox)

    def of_worker(self, worker: str) -> list[Sandbox]:
        return list(self._by_worker.get(worker, {}).values())

    def memory_mb(self, worker: str) -> int:
        """Of all that are there, or ordered."""
        return sum(sandbox.memory_mb for sandbox in self.of_worker(worker))

    def ordered_after(self, sandbox: Sandbox) -> list[Sandbox]:
        """Those that were ordered at its worker later than it."""
        on_worker = self.of_worker(sandbox.worker)
        return on_worker[on_worker.index(sandbox) + 1:]

    def of_function(self, function: FunctionKey) -> list[Sandbox]:
        return list(self._by_function.get(function, {}).values())

    def functions(self) -> list[FunctionKey]:
        return list(self._by_function)

    def idle(self, function: FunctionKey) -> Iterator[Sandbox]:
        """Most recently used first."""
        return iter(reversed(self._idle.get(function, {}).values()))

    def longest_idle(self) -> Iterator[Sandbox]:
        return iter(self._idle_all.values())

    @property
    def idle_count(self) -> int:
        return len(self._idle_all)

    def coming(self, function: FunctionKey) -> int:
        return len(self._coming.get(function, {}))

    def placing(self, function: FunctionKey) -> Iterator[Sandbox]:
        return (one for one in self._coming.get(function, {}).values() if one.state is State.PLACING)

    def lingers(self, sandbox: Sandbox) -> bool:
        """Whether a frontend keeps it without using it."""
        return sandbox.name in self._lingering.get(sandbox.function, {})

    def recalled(self, function: FunctionKey) -> int:
        """Of those that are coming: kept ones that are being taken back."""
        return sum(item.state is State.RECALLED for item in self._coming.get(function, {}).values())

    def lingering(self, function: FunctionKey) -> Sandbox | None:
        """One that a frontend keeps without using it."""
        return next(iter(self._lingering.get(function, {}).values()), None)

    def perhaps_kept(self, function: FunctionKey, frontend: str) -> Sandbox | None:
        """One that another frontend uses, or only keeps: workers are slow to tell of short runs."""
        perhaps = self._perhaps.get(function, {}).values()
        return next((sandbox for sandbox in perhaps if sandbox.holder != frontend), None)

    def linger(self, sandbox: Sandbox) -> None:
        """Until its next event the frontend only keeps it."""
        self._lingering.setdefault(sandbox.function, {})[sandbox.name] = sandbox

    def _index(self, sandbox: Sandbox) -> None:
        if sandbox.state is State.IDLE:
            self._idle.setdefault(sandbox.function, {})[sandbox.name] = sandbox
            self._idle_all[sandbox.name] = sandbox
        elif sandbox.state in (State.PLACING, State.STARTING, State.RECALLED):
            self._coming.setdefault(sandbox.function, {})[sandbox.name] = sandbox

    def check(self) -> None:
        for name, sandbox in self.by_name.items():
            idle = name in self._idle.get(sandbox.function, {})
            assert idle == (sandbox.state is State.IDLE), f"{sandbox} is indexed wrongly"
            assert idle == (name in self._idle_all), f"{sandbox} is indexed wrongly"
            coming = sandbox.state in (State.PLACING, State.STARTING, State.RECALLED)
            assert coming == (name in self._coming.get(sandbox.function, {})), f"{sandbox} is indexed wrongly"
            # 7: one holder at a time: rights are told apart by sequences that only grow.
            assert sandbox.held <= sandbox.sequence, f"{sandbox}: held {sandbox.held} above {sandbox.sequence}"
            assert not (idle and sandbox.busy), f"{sandbox} is busy and idle"
            assert (sandbox.state is State.PLACING) == (not sandbox.worker), f"{sandbox} sits wrongly"


def _drop(index: dict[Key, dict[str, Sandbox]], key: Key, name: str) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(name, None)
        if not entries:
            del index[key]
