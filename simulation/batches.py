"""Many seeds: in this process or several, what they gave together, and what a failure tells.

Owns the children, the sums, and how a failure is made small and told. Refuses to know what a run is (``campaign.py``).
"""

import gc
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import structlog

from simulation.campaign import Outcome, run
from simulation.plan import Plan, draw
from simulation.shrink import shrink


@dataclass(slots=True)
class Batch:
    """What a number of seeds gave. ``invokes_min``: of the seed that had fewest."""

    seeds: int = 0
    invokes: int = 0
    invokes_min: int = 0
    virtual_s: float = 0.0
    virtual_s_min: float = 0.0
    cpu_s: float = 0.0
    coverage: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.invokes_min = min(self.invokes_min, outcome.invokes) if self.seeds else outcome.invokes
        self.virtual_s_min = min(self.virtual_s_min, outcome.virtual_s) if self.seeds else outcome.virtual_s
        self.seeds += 1
        self.invokes += outcome.invokes
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.coverage.update(outcome.coverage)
        if outcome.violations:
            self.failed.append(outcome)

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {count}" for name, count in self.coverage.items())
        each_s = self.cpu_s / max(1, self.seeds)
        return (
            f"{self.seeds} seeds, {len(self.failed)} failed; {self.virtual_s:.0f} virtual s, {self.invokes} invokes "
            f"(at least {self.virtual_s_min:.0f} s and {self.invokes_min} invokes each), {each_s:.2f} s of CPU each\n"
            f"{seen}"
        )


def outcomes(
    seeds: Iterable[int], *, swarm: bool, jobs: int, until: float = float("inf"), hashed: bool = False,
) -> Iterator[Outcome]:
    """As they come; in spawned children where there is more than one job. None begins after ``until`` (monotonic)."""
    if jobs <= 1:
        quiet()
        for seed in seeds:
            if time.monotonic() > until:
                return
            yield _one(seed, swarm, hashed)
        return
    left = iter(seeds)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=quiet) as pool:
        running: set[Future[Outcome]] = set()
        while True:
            if time.monotonic() <= until:
                running.update(pool.submit(_one, seed, swarm, hashed) for seed in islice(left, 2 * jobs - len(running)))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def quiet() -> None:
    """Services' logs cost as much as the services."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _one(seed: int, swarm: bool, hashed: bool) -> Outcome:
    try:
        return run_alone(draw(seed, swarm=swarm), hashed=hashed)
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


def run_alone(plan: Plan, *, hashed: bool = False) -> Outcome:
    """Without the collector: a run makes millions of objects that go with it, and few cycles before."""
    gc.disable()
    try:
        outcome, _ = run(plan, hashed=hashed)
    finally:
        gc.enable()
        gc.collect()
    return outcome


def explain(outcome: Outcome, directory: Path, *, runs_max: int = 200) -> str:
    """The smallest plan that fails alike, how to replay it, and its story. Writes the plan there."""
    invariants = outcome.invariants
    small = shrink(outcome.plan, lambda plan: bool(run_alone(plan).invariants & invariants), runs_max=runs_max)
    again = run_alone(small)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"seed-{small.seed}.json"
    path.write_text(small.to_json())
    return "\n".join([
        f"seed {small.seed}: {again.violations[0] if again.violations else outcome.violations[0]}",
        f"the plan that it takes, {len(small.entries)} of {len(outcome.plan.entries)} entries:",
        *(f"  {entry}" for entry in small.entries),
        f"again: python -m simulation run --plan {path}",
        "what happened to whom it is about, and what befell the region:",
        *(f"  {line}" for line in again.story),
        "",
    ])
