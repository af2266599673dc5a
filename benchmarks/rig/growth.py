"""Whether something grows: samples over time, and a verdict per quantity.

Owns the rule: the last quarter of the samples against the second quarter, by their means or by their lowest values;
what was made within the first quarter (caches that fill) is no growth. Refuses to know what is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

SAMPLES_MIN = 8     # two per quarter


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What the later value may lie above the earlier one: the larger of a share of that and an amount. ``lowest``: of
    what comes and goes, such as the buffer of a large body, only what is there at any time is compared; a sample that
    missed it, as of a process that was being started again, hides nothing."""

    share: float
    amount: float
    lowest: bool = False

    def value(self, samples: Sequence[float]) -> float:
        return min(filter(None, samples), default=0.0) if self.lowest else fmean(samples)

    def allows(self, earlier: float, later: float) -> bool:
        return later - earlier <= max(self.share * earlier, self.amount)

    def __str__(self) -> str:
        return f"+{self.share * 100:g} % or +{self.amount:g}"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """For what may grow up to a bound that it has by design."""

    most: float

    def value(self, samples: Sequence[float]) -> float:
        return fmean(samples)

    def allows(self, _earlier: float, later: float) -> bool:
        return later <= self.most

    def __str__(self) -> str:
        return f"up to {self.most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of one quantity. ``per_hour``: how fast it grew between the middles of both quarters."""

    name: str
    earlier: float
    later: float
    highest: float
    per_hour: float
    rule: Tolerance | Ceiling

    @property
    def grew(self) -> bool:
        return not self.rule.allows(self.earlier, self.later)


@dataclass(slots=True)
class Samples:
    """Values by name, each with the second at which they were taken. A name that is missing in a sample counts as 0."""

    taken: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def add(self, at: float, values: Mapping[str, float]) -> None:
        self.taken.append((at, values))

    def verdicts(self, rules: Mapping[str, Tolerance | Ceiling]) -> Iterator[Verdict]:
        """Of every name in any sample, sorted. ``rules`` by the last word of a name ("frontend-az1-1 memory")."""
        assert len(self.taken) >= SAMPLES_MIN, f"{len(self.taken)} samples, {SAMPLES_MIN} are needed for a verdict"
        quarter = len(self.taken) // 4
        second, last = self.taken[quarter:2 * quarter], self.taken[-quarter:]
        apart_s = fmean(at for at, _ in last) - fmean(at for at, _ in second)
        for name in sorted({name for _, values in self.taken for name in values}):
            rule = rules[name.rsplit(" ", 1)[-1]]
            earlier, later = rule.value(_of(second, name)), rule.value(_of(last, name))
            yield Verdict(
                name=name, earlier=earlier, later=later, highest=max(values.get(name, 0.0) for _, values in self.taken),
                per_hour=(later - earlier) / apart_s * 3600, rule=rule,
            )


def _of(samples: list[tuple[float, Mapping[str, float]]], name: str) -> list[float]:
    return [values.get(name, 0.0) for _, values in samples]
