"""Records from what the services' cores traced (``chassis.machine.Trace``): the simulation's and real processes' alike.

Owns which events, effects and notes of which core say what. Counting's are read by ``ledger_trace``. Refuses to judge.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from counting.words import Pool, PoolKind
from simulation.history import records as r
from simulation.history.ledger_trace import LedgerReader

Message = Mapping[str, Any]
Bounds = Mapping[str, tuple[float, float]]      # of clocks, by node


class Reader(Protocol):
    """Of one node's lines, over all its lives."""

    def begin(self, at: float, parameters: Message) -> Iterator[r.Record]: ...

    def note(self, at: float, note: Message) -> Iterator[r.Record]: ...

    def event(self, at: float, line: Message) -> Iterator[r.Record]: ...


class Traces:
    """Told every line in the order of time; says what it means. ``bounds``: where hosts don't share one clock."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = dict(bounds or {})
        self._readers: dict[str, Reader] = {}
        self._boots: dict[str, str] = {}        # by node

    def start(self) -> Iterator[r.Record]:
        for node, (low_s, high_s) in self._bounds.items():
            yield r.Clock(at=0.0, node=node, low_s=low_s, high_s=high_s)

    def read(self, line: Message) -> Iterator[r.Record]:
        """Raises KeyError, TypeError or ValueError for what is no line of a trace."""
        node, at = line["node"], line["at"]
        if "ended" in line:
            yield r.Cut(at=at, node=node, reason=line["ended"])
        elif "note" in line:
            yield from self._note(node, at, line["note"])
        else:
            reader = self._readers.get(node)
            if reader is None:
                reader = self._readers[node] = _READERS[line["core"]](node)
            if "parameters" in line:
                yield from reader.begin(at, line["parameters"])
            elif "event" in line:
                yield from reader.event(at, line)

    def _note(self, node: str, at: float, note: Message) -> Iterator[r.Record]:
        if note["type"] == "Host":
            yield from self._host(node, at, note["boot"])
        elif node in self._readers:
            yield from self._readers[node].note(at, note)

    def _host(self, node: str, at: float, boot: str) -> Iterator[r.Record]:
        """Processes of one boot of one kernel share its clock. Others' stamps mean something by bounds only."""
        self._boots[node] = boot
        first = next(iter(self._boots.values()))
        if node not in self._bounds and (boot != first or not boot):
            yield r.Cut(at=at, node=node, reason="its clock is of another boot, and nothing bounds the difference")


def records(lines: Iterable[str], *, bounds: Bounds | None = None) -> Iterator[r.Record]:
    """Of any number of traces, put in the order of time; lines of one instant stay as they are."""
    when = _When(bounds or {})
    yield from _read(sorted(map(json.loads, lines), key=when), bounds)


def merged(traces: Iterable[Iterable[str]], *, bounds: Bounds | None = None) -> Iterator[r.Record]:
    """Of traces that are in the order of time each, as processes write them: however long they are."""
    when = _When(bounds or {})
    yield from _read(heapq.merge(*(map(json.loads, lines) for lines in traces), key=when), bounds)


def _read(lines: Iterable[Message], bounds: Bounds | None) -> Iterator[r.Record]:
    traces = Traces(bounds)
    yield from traces.start()
    for line in lines:
        yield from traces.read(line)


class _When:
    """When a line was written, on the region's clock: in the middle of what its node's bounds say."""

    def __init__(self, bounds: Bounds) -> None:
        self._middle = {node: (low_s + high_s) / 2 for node, (low_s, high_s) in bounds.items()}

    def __call__(self, line: Message) -> float:
        return float(line["at"]) + self._middle.get(line["node"], 0.0)


# ---------------------------------------------------------------- the readers


class _Plain:
    """A core of which only some effects matter."""

    def __init__(self, node: str) -> None:
        self.node = node

    def begin(self, at: float, parameters: Message) -> Iterator[r.Record]:
        del parameters
        yield r.Life(at=at, node=self.node)

    def note(self, at: float, note: Message) -> Iterator[r.Record]:
        del at, note
        yield from ()

    def event(self, at: float, line: Message) -> Iterator[r.Record]:
        for effect in line["effects"]:
            record = self.effect(at, effect)
            if record is not None:
                yield record

    def effect(self, at: float, effect: Message) -> r.Record | None:
        raise NotImplementedError


class _Placement(_Plain):
    def effect(self, at: float, effect: Message) -> r.Record | None:
        if effect["type"] != "Grant":
            return None
        return r.LeaseGranted(
            at=at, node=self.node, worker=effect["worker"], lease=effect["lease"], manager=effect["manager"],
            hard_end_s=effect["hard_end_s"],
        )


class _Manager(_Plain):
    def effect(self, at: float, effect: Message) -> r.Record | None:
        match effect["type"]:
            case "DrainWorker":
                return r.Draining(at=at, node=self.node, worker=effect["worker"])
            case "Connect":
                return r.Connected(at=at, node=self.node, worker=effect["worker"])
            case "Create":
                return r.Placed(at=at, node=self.node, worker=effect["worker"], sandbox=effect["sandbox"])
            case _:
                return None


class _Frontend(_Plain):
    """Its notes are ``frontend.recording``'s."""

    def note(self, at: float, note: Message) -> Iterator[r.Record]:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in note.items()
        }
        match fields.pop("type"):
            case "Asked":
                yield r.Asked(at=at, node=self.node, **fields)
            case "Answered":
                yield r.Answered(at=at, node=self.node, **fields)
            case "Over":
                yield r.Over(at=at, node=self.node, **fields)
            case kind:
                raise ValueError(f"no note of a frontend is called {kind}")

    def event(self, at: float, line: Message) -> Iterator[r.Record]:
        event = line["event"]
        if event["type"] == "WaiterGone":
            yield r.Served(at=at, node=self.node, number=event["request"], how="gone")
        yield from super().event(at, line)

    def effect(self, at: float, effect: Message) -> r.Record | None:
        how = {"Admit": "admitted", "Refuse": "refused"}.get(effect["type"])
        return r.Served(at=at, node=self.node, number=effect["request"], how=how) if how else None


class _Worker:
    """Its notes are ``worker.recording``'s."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._digests: dict[str, str] = {}      # of payloads, by invocations that are about to start

    def begin(self, at: float, parameters: Message) -> Iterator[r.Record]:
        yield r.Life(at=at, node=self.node, incarnation=_incarnation(parameters["incarnation"]))

    def note(self, at: float, note: Message) -> Iterator[r.Record]:
        match note["type"]:
            case "Received":
                self._digests[note["invocation"]] = note["digest"]
            case "Responded":
                yield r.Responded(at=at, node=self.node, invocation=note["invocation"], digest=note["digest"])
            case kind:
                raise ValueError(f"no note of a worker is called {kind}")

    def event(self, at: float, line: Message) -> Iterator[r.Record]:
        event, effects = line["event"], line["effects"]
        match event["type"]:
            case "InvocationEnded":
                yield r.End(at=at, node=self.node, invocation=event["invocation"], sandbox=event["sandbox"])
            case "Drain" | "Return" if "StaleLease" not in map(_news, effects):
                yield r.Draining(at=at, node=self.node, worker=self.node)
            case "AuthorityRenewed":
                yield r.Authority(at=at, node=self.node, until=event["until"])
            case "Joined":
                for session in event["watermarks"]:
                    yield r.FenceAcked(at=at, node=self.node, session=_session(session), reports=False)
        for effect in effects:
            yield from self._effect(at, event, effect)

    def _effect(self, at: float, event: Message, effect: Message) -> Iterator[r.Record]:
        node = self.node
        match effect["type"]:
            case "TellManager" if event["type"] == "Adopt" and _news(effect) == "Inventory":
                yield r.Adopted(
                    at=at, node=node, lease=event["lease"], manager=event["manager"], lasts_s=event["lasts_s"]
                )
            case "TellManager" if _news(effect) == "Returned":
                yield r.Returned(at=at, node=node)
            case "StartInvocation":
                yield self._start(at, event, effect)
            case "RefuseStart":
                self._digests.pop(effect["invocation"], None)
                yield r.Refused(at=at, node=node, invocation=effect["invocation"], reason=effect["reason"])
            case "BuildSandbox":
                yield r.Made(
                    at=at, node=node, sandbox=effect["sandbox"], lease=event["lease"], **_function(effect["function"])
                )
            case "DestroySandbox":
                yield r.Destroyed(at=at, node=node, sandbox=effect["sandbox"])
            case "AcknowledgeFence":
                running = tuple(invocation for of in effect["running"] for invocation in of["invocations"])
                yield r.FenceAcked(at=at, node=node, session=_session(effect["session"]), running=running)

    def _start(self, at: float, event: Message, effect: Message) -> r.Start:
        block = event["block"]
        pool = Pool(
            account=block["account"], kind=PoolKind(block["kind"]), function=block["function"],
            qualifier=block["qualifier"],
        )
        return r.Start(
            at=at, node=self.node, invocation=effect["invocation"], sandbox=effect["sandbox"], lease=event["lease"],
            pool=str(pool), session=_session(block["session"]), digest=self._digests.pop(effect["invocation"], ""),
            **_function(event["function"]),
        )


def _news(effect: Message) -> str:
    """The type of the news that an effect tells a manager; empty for another effect."""
    return str(effect["news"]["type"]) if effect["type"] == "TellManager" else ""


def _function(function: Message) -> dict[str, Any]:
    return {name: function[name] for name in ("account", "function", "version", "revision")}


def _incarnation(incarnation: Message) -> str:
    return f"{incarnation['host']}@{incarnation['nonce']}"


def _session(session: Message) -> str:
    return f"{session['frontend']}#{session['epoch']}"


_READERS: Mapping[str, type[Any]] = {
    "CountingCore": LedgerReader, "FrontendCore": _Frontend, "ManagerCore": _Manager, "PlacementCore": _Placement,
    "WorkerCore": _Worker,
}
