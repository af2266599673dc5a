"""Pure state machines and the driver that owns each of them.

Owns the machinery only: what an event or an effect means is the service's. A core decides (``handle``), a driver does:
it stamps the time, records the trace line, lets the core check its invariants and performs the effects.
"""

import base64
import dataclasses
import enum
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from chassis.clock import Clock, SystemClock

Event_contra = TypeVar("Event_contra", contravariant=True)
Event = TypeVar("Event")
Effect = TypeVar("Effect")
State = TypeVar("State", bound=enum.Enum)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TRACE_BYTES_MAX = 1 << 30
"""Of one process's trace file: a forgotten trace must not fill the disk."""


class Core(Protocol[Event_contra, Effect]):
    """A pure state machine: no await, clock, randomness, logging, protobuf or file in it."""

    def handle(self, event: Event_contra, now: float) -> list[Effect]: ...

    def check(self) -> None:
        """Asserts what must hold after every event (docs/invariants.md)."""
        ...


class Aside(Protocol):
    """What changes a core's state beside its events: permits taken on the hot path, entries that Raft applies.

    Only a trace wants to know. What ``changes`` says is redone before the event when the trace is replayed.
    """

    def changes(self) -> Sequence[object]:
        """Since the last call of ``settled``, in order: messages like events and effects."""
        ...

    def settled(self) -> None:
        """The core has handled its event: what differs from now on is beside the events again."""
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


_encode = json.JSONEncoder(separators=(",", ":")).encode     # json.dumps would make an encoder for every line


class TraceFile(Protocol):
    """What a trace needs of its file."""

    def write(self, text: str, /) -> int: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Which boot of which kernel a process's times are of: where that is the same, stamps can be compared. Empty:
    not known."""

    boot: str


class Trace:
    """The event trace of one process, as NDJSON.

    A core begins with a line (at, node, core, parameters): what it was made of, so that ``chassis.replay`` can make it
    again; a process that starts again begins anew. Every event is a line (at, node, core, cause, event, effects), with
    ``aside`` where something changed the core's state beside its events. What no core is told, and who judges the run
    has to know, is a line (at, node, note). A trace that has reached ``bytes_max`` says so in its last line.
    """

    def __init__(self, file: TraceFile, node: str, *, bytes_max: int = TRACE_BYTES_MAX) -> None:
        self._file = file
        self._node = node
        self._left = bytes_max

    def begin(self, core: str, at: float, parameters: Mapping[str, object]) -> None:
        self._put({"at": at, "node": self._node, "core": core, "parameters": as_json(parameters)})

    def write(
        self, core: str, at: float, event: object, effects: list[Any], *, aside: Sequence[object] = (), failed: str = ""
    ) -> None:
        """``failed``: what the core raised instead of giving effects. The process ends by it."""
        line = {"at": at, "node": self._node, "core": core, "cause": getattr(event, "cause", "")}
        if aside:
            line["aside"] = as_json(aside)
        if failed:
            line["failed"] = failed
        self._put({**line, "event": as_json(event), "effects": as_json(effects)})

    def note(self, at: float, message: object) -> None:
        """Something that an edge saw: no core's event, so that a replay passes over it."""
        self._put({"at": at, "node": self._node, "note": as_json(message)})

    def _put(self, line: dict[str, Any]) -> None:
        if self._left <= 0:
            return
        text = _encode(line) + "\n"
        self._left -= len(text)
        self._file.write(text)
        if self._left <= 0:
            self._file.write(json.dumps({"at": line["at"], "node": self._node, "ended": "the trace is full"}) + "\n")

    def close(self) -> None:
        self._file.close()


def open_trace(path: str, node: str) -> Trace | None:
    """The trace of a real process: written line by line for its whole life. None for an empty path."""
    if not path:
        return None
    return trace_to(open_trace_file(path, node), node)


def open_trace_file(path: str, node: str) -> int:
    """A descriptor to append to, behind a note of the host. A line that a killed process left unfinished is ended
    first. Only its owner may read: events hold functions' environments and signed tickets."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    size = os.fstat(descriptor).st_size
    ended = b"" if not size or os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"
    host = {"at": SystemClock().monotonic(), "node": node, "note": as_json(Host(boot=_boot()))}
    os.write(descriptor, ended + json.dumps(host, separators=(",", ":")).encode() + b"\n")
    return descriptor


def trace_to(descriptor: int, node: str) -> Trace:
    """A trace at the end of what ``open_trace_file`` gave, perhaps to another process."""
    size = os.fstat(descriptor).st_size
    return Trace(os.fdopen(descriptor, "a", buffering=1), node, bytes_max=max(1, TRACE_BYTES_MAX - size))


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def as_json(value: Any) -> Any:
    """A message as JSON, without loss: ``chassis.replay.decode`` is the reverse.

    Dataclasses carry their type's name, enums are their name, bytes base64; a mapping is an object when its keys are
    strings, else a list of pairs; sets are in an order that doesn't hang on hashes.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    names = _FIELDS.get(kind)
    if names is None and dataclasses.is_dataclass(kind):
        names = _FIELDS[kind] = tuple(field.name for field in dataclasses.fields(kind))
    if names is not None:
        return {"type": kind.__name__, **{name: as_json(getattr(value, name)) for name in names}}
    return _other_as_json(value)


_PLAIN = frozenset({str, int, float, bool, type(None)})
_FIELDS: dict[type, tuple[str, ...]] = {}   # by dataclass: a traced process asks with every event


def _other_as_json(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: as_json(item) for key, item in value.items()}
        return [[as_json(key), as_json(item)] for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return sorted((as_json(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


class Driver(Generic[Event, Effect]):
    """Owns one core. ``feed`` is synchronous; an effect that feeds another event is queued behind this one.

    ``perform`` does one effect and must not block: it sends, or it starts a task. ``check`` runs the core's invariants
    after each event: always in tests and in the simulation, by flag in a cluster. ``observe`` sees each event with its
    effects before they are performed, and counts (``chassis.metrics.Tally``). For the trace only: ``parameters`` is
    what the core was made of, ``aside`` knows what changes its state beside its events.
    """

    def __init__(
        self,
        core: Core[Event, Effect],
        *,
        clock: Clock,
        perform: Callable[[Effect], None],
        trace: Trace | None = None,
        check: bool = False,
        observe: Callable[[Event, Sequence[Effect]], None] | None = None,
        parameters: Mapping[str, object] | None = None,
        aside: Aside | None = None,
    ) -> None:
        self.core = core
        self._name = type(core).__name__
        self._clock = clock
        self._perform = perform
        self._trace = trace
        self._check = check
        self._observe = observe
        self._aside = aside
        self._queue: deque[Event] = deque()
        self._feeding = False
        if trace is not None:
            trace.begin(self._name, clock.monotonic(), parameters or {})

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
        effects = self.core.handle(event, now) if self._trace is None else self._handle_traced(self._trace, event, now)
        if self._observe is not None:
            self._observe(event, effects)
        if self._check:
            self.core.check()
        for effect in effects:
            self._perform(effect)

    def _handle_traced(self, trace: Trace, event: Event, now: float) -> list[Effect]:
        aside = self._aside.changes() if self._aside is not None else ()
        try:
            effects = self.core.handle(event, now)
        except Exception as error:
            trace.write(self._name, now, event, [], aside=aside, failed=repr(error))
            raise
        trace.write(self._name, now, event, effects, aside=aside)
        if self._aside is not None:
            self._aside.settled()
        return effects
