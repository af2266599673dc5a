"""Metrics: how a process says what it counts, and what every process counts of itself.

Owns the families of one process and the two kinds of counting that don't cost the work they count: numbers that a core
has anyway and that are read when somebody asks, and plain integers that an edge adds to. Refuses to know Prometheus'
formats and HTTP (``chassis.metrics_server``), and what a number means: each service's ``metrics.py`` names its own.
"""

import asyncio
import enum
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.clock import Clock

Labels = tuple[str, ...]
Numbers = Mapping[Labels, float]

LABEL_SETS_MAX = 100    # of one counter or gauge whose labels aren't an enum's: what comes later is counted as OTHER
OTHER = "other"
LAG_PROBE_S = 1.0
_NAME = re.compile(r"labda_[a-z][a-z0-9_]*[a-z0-9]")


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Histogram:
    """How often a value fell where. ``observe`` is all that the measured path pays: a bisection and two additions."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), f"bounds have to grow: {bounds}"
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)     # the last one: above every bound
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many values are at most that), as Prometheus has them."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(total)))
        return buckets


def histograms(bounds: Sequence[float], words: Iterable[str]) -> dict[Labels, Histogram]:
    """One histogram for each word of one label."""
    return {(word,): Histogram(bounds) for word in words}


class Counts(dict[Labels, float]):
    """A counter by labels, of which there are at most ``LABEL_SETS_MAX``: no request can make a process grow."""

    def __init__(self, known: Iterable[Labels] = ()) -> None:
        """``known``: what can be named before it happens. A counter that starts at 0 shows its first increment."""
        super().__init__(dict.fromkeys(known, 0.0))

    def add(self, *labels: str, amount: float = 1.0) -> None:
        if labels not in self and len(self) >= LABEL_SETS_MAX:
            labels = (OTHER,) * len(labels)
        self[labels] = self.get(labels, 0.0) + amount


class Tally:
    """Counts what passes a core's driver, by type: hand it to ``Driver(observe=...)``. Cores stay free of counting."""

    def __init__(self) -> None:
        self._on: dict[type, Callable[[Any], None]] = {}

    def on(self, kind: type, count: Callable[[Any], None]) -> None:
        """Calls ``count`` with every event or effect of this very type."""
        assert kind not in self._on, f"{kind.__name__} is counted already"
        self._on[kind] = count

    def of(self, kind: type) -> Counts:
        """How many there were of a type."""
        counts = Counts([()])

        def count(_: object) -> None:
            counts[()] += 1.0   # not ``add``: starts and ends of invocations are counted this way

        self.on(kind, count)
        return counts

    def by(self, kind: type, label: Callable[[Any], str], known: Iterable[str] = ()) -> Counts:
        """How many there were of a type, by one label."""
        counts = Counts((word,) for word in known)
        self.on(kind, lambda message: counts.add(label(message)))
        return counts

    def __call__(self, event: object, effects: Sequence[object]) -> None:
        on = self._on
        if type(event) in on:
            on[type(event)](event)
        for effect in effects:
            if type(effect) in on:
                on[type(effect)](effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric. ``read`` gives its numbers as they are now; of a histogram, the histograms themselves."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    read: Callable[[], Mapping[Labels, Any]]


class Metrics:
    """What one process counts. ``address``: where it is served, host:port; empty: nowhere."""

    def __init__(self) -> None:
        self.address = ""
        self.families: dict[str, Family] = {}

    def counter(
        self, name: str, text: str, read: Callable[[], Numbers | float] | Numbers, labels: Labels = ()
    ) -> None:
        """Only grows. ``read``: a function, or a mapping that is read as it is then."""
        assert name.endswith("_total"), f"{name} is a counter: its name ends with _total"
        self._add(name, Kind.COUNTER, text, labels, _reader(read))

    def gauge(
        self, name: str, text: str, read: Callable[[], Numbers | float] | Numbers, labels: Labels = ()
    ) -> None:
        assert not name.endswith("_total"), f"{name} is a gauge: only a counter's name ends with _total"
        self._add(name, Kind.GAUGE, text, labels, _reader(read))

    def histogram(self, name: str, text: str, histograms: Mapping[Labels, Histogram], labels: Labels = ()) -> None:
        assert name.endswith("_seconds"), f"{name} is a histogram: all of ours are of seconds"
        self._add(name, Kind.HISTOGRAM, text, labels, lambda: histograms)

    def _add(
        self, name: str, kind: Kind, text: str, labels: Labels, read: Callable[[], Mapping[Labels, Any]]
    ) -> None:
        assert _NAME.fullmatch(name), f"{name} is no name for a metric of ours"
        # OpenMetrics names a counter's family without its _total: a gauge of that name would be the same one.
        taken = {known.removesuffix("_total") for known in self.families}
        assert name.removesuffix("_total") not in taken, f"{name} is there already"
        self.families[name] = Family(name=name, kind=kind, help=text, labels=labels, read=read)


def _reader(read: Callable[[], Numbers | float] | Numbers) -> Callable[[], Numbers]:
    if isinstance(read, Mapping):
        numbers = read
        return lambda: numbers

    def now() -> Numbers:
        found = read()
        return found if isinstance(found, Mapping) else {(): found}
    return now


def tallied(items: Iterable[str], known: Iterable[str] = ()) -> Numbers:
    """How often each word occurs: for gauges of things by state."""
    counts: dict[Labels, float] = {(word,): 0.0 for word in known}
    for word in items:
        counts[(word,)] = counts.get((word,), 0.0) + 1
    return counts


def bounded(numbers: Numbers) -> Numbers:
    """At most ``LABEL_SETS_MAX`` of them: the largest stay, the rest is one sum under OTHER."""
    if len(numbers) <= LABEL_SETS_MAX:
        return numbers
    ranked = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[: LABEL_SETS_MAX - 1])
    rest = ranked[LABEL_SETS_MAX - 1 :]
    kept[(OTHER,) * len(rest[0][0])] = sum(value for _, value in rest)
    return kept


class LoopLag:
    """How late the event loop is, once a second: what every request of this process waits for besides its own work."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._clock = clock
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lag = Histogram((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5))
        metrics.histogram(
            "labda_event_loop_lag_seconds", "How late a timer of the event loop fired, probed once a second.",
            {(): self._lag},
        )

    def start(self) -> None:
        self._due = self._clock.monotonic() + LAG_PROBE_S
        self._timer = asyncio.get_running_loop().call_later(LAG_PROBE_S, self._probe)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _probe(self) -> None:
        self._lag.observe(max(0.0, self._clock.monotonic() - self._due))
        self.start()
