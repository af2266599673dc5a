"""Pure state machines and the driver that owns each of them.

Owns the machinery only: what an event or an effect means is the service's. A core decides (``handle``), a driver does:
it stamps the time, records the trace line, lets the core check its invariants and performs the effects.
"""

import dataclasses
import enum
import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TextIO, TypeVar

from chassis.clock import Clock

Event_contra = TypeVar("Event_contra", contravariant=True)
Event = TypeVar("Event")
Effect = TypeVar("Effect")
State = TypeVar("State", bound=enum.Enum)


class Core(Protocol[Event_contra, Effect]):
    """A pure state machine: no await, clock, randomness, logging, protobuf or file in it."""

    def handle(self, event: Event_contra, now: float) -> list[Effect]: ...

    def check(self) -> None:
        """Asserts what must hold after every event (docs/invariants.md)."""
        ...


class IllegalTransition(AssertionError):
    """An event that the table has no entry for. A bug: the process ends and is started again."""

    def __init__(self, state: enum.Enum, event: type, story: list[str]) -> None:
        lines = "\n  ".join(story)
        name = f"{type(state).__name__}.{state.name}"
        super().__init__(f"{name} has no transition for {event.__name__}; its story:\n  {lines}")


class Transitions(Generic[State]):
    """One table ``(state, event type) -> state``: the only place where a thing's state changes."""

    def __init__(self, table: Mapping[tuple[State, type], State]) -> None:
        self._table = dict(table)

    def next(self, state: State, event: type, story: "Story") -> State:
        try:
            return self._table[state, event]
        except KeyError:
            raise IllegalTransition(state, event, story.lines()) from None

    def allows(self, state: State, event: type) -> bool:
        return (state, event) in self._table

    def mermaid(self) -> str:
        """The table as a Mermaid state diagram: the docs print this, so they can't go stale."""
        arrows = sorted({(a.name, b.name, event.__name__) for (a, event), b in self._table.items()})
        return "\n".join(["stateDiagram-v2", *(f"    {a} --> {b}: {event}" for a, b, event in arrows)])


class Story:
    """The last events of one thing, for the message of an IllegalTransition. Keeps strings only when asked."""

    __slots__ = ("_events",)

    def __init__(self, length: int = 16) -> None:
        self._events: deque[tuple[float, object]] = deque(maxlen=length)

    def tell(self, now: float, event: object) -> None:
        self._events.append((now, event))

    def lines(self) -> list[str]:
        return [f"{at:.3f} {event!r}" for at, event in self._events]


class Trace:
    """The event trace of one process: NDJSON lines (at, node, cause, event, effects)."""

    def __init__(self, file: TextIO, node: str) -> None:
        self._file = file
        self._node = node

    def write(self, at: float, event: object, effects: list[Any]) -> None:
        line = {
            "at": round(at, 6),
            "node": self._node,
            "cause": getattr(event, "cause", ""),
            "event": as_json(event),
            "effects": [as_json(effect) for effect in effects],
        }
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self._file.close()


def open_trace(path: str, node: str) -> Trace | None:
    """The trace of a real process: written line by line for its whole life. None for an empty path."""
    if not path:
        return None
    return Trace(Path(path).open("a", buffering=1), node)  # it ends with the process


def as_json(value: Any) -> Any:
    """A message as JSON: dataclasses carry their type's name, enums their name, bytes their length."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((as_json(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


class Driver(Generic[Event, Effect]):
    """Owns one core. ``feed`` is synchronous; an effect that feeds another event is queued behind this one.

    ``perform`` does one effect and must not block: it sends, or it starts a task. ``check`` runs the core's invariants
    after each event: always in tests and in the simulation, by flag in a cluster.
    """

    def __init__(
        self,
        core: Core[Event, Effect],
        *,
        clock: Clock,
        perform: Callable[[Effect], None],
        trace: Trace | None = None,
        check: bool = False,
    ) -> None:
        self.core = core
        self._clock = clock
        self._perform = perform
        self._trace = trace
        self._check = check
        self._queue: deque[Event] = deque()
        self._feeding = False

    def feed(self, event: Event) -> None:
        self._queue.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._feeding = False

    def _step(self, event: Event) -> None:
        now = self._clock.monotonic()
        effects = self.core.handle(event, now)
        if self._trace is not None:
            self._trace.write(now, event, effects)
        if self._check:
            self.core.check()
        for effect in effects:
            self._perform(effect)
