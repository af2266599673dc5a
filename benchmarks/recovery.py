"""How soon all is well after each fault: `labda chaos run`, several times each, p50 and max.

    python -m benchmarks.recovery [--runs N] [--target compose] [--state DIR] [SCENARIO...]

On a cluster of its own, embedded or in containers, unless --state names one that runs. By scenario, p50 and max: how
many requests failed; how long after the fault the last failure was known; for how long after it requests waited over a
second; then the p99 of what they waited beyond their runs, before and after; the verdicts. Exit status 1 when one is no
pass.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.rig.cluster import ROOT, Cluster
from benchmarks.rig.containers import Containers
from labda.chaos.scenarios import COMPOSE, EMBEDDED, SCENARIOS

RUNS = 5
LONG_S = 60.0       # scenarios whose fault lasts longer are about that time, not about recovery
RUN_S = 400.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N")
    parser.add_argument("--target", choices=(EMBEDDED, COMPOSE), default=EMBEDDED)
    parser.add_argument("--state", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    names = options.scenarios or [
        one.name for one in SCENARIOS.values() if options.target in one.targets and one.lasts_s < LONG_S
    ]
    failed = 0
    print(f"{'scenario':<18}{'failed':>12}{'last after':>18}{'slow for':>18}{'waited p99':>22}   verdicts")
    with cluster(options.target, options.state) as arguments:
        for name in names:
            verdicts = [run(name, seed, arguments) for seed in range(1, options.runs + 1)]
            failed += sum(one["verdict"] != "pass" for one in verdicts)
            print(row(name, verdicts), flush=True)
    return 1 if failed else 0


@contextmanager
def cluster(target: str, state: Path | None) -> Iterator[list[str]]:
    """What `labda chaos run` is told of the cluster to break."""
    if state is not None:
        yield ["--target", target, "--state", str(state)]
    elif target == COMPOSE:
        with Containers() as containers:
            yield containers.arguments
    else:
        with Cluster("--breakable") as own:     # links and clocks that some scenarios break
            yield ["--state", str(own.state.root)]


def run(name: str, seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    said = subprocess.run(
        [sys.executable, "-m", "labda", "chaos", "run", name, "--yes", "--json", "--seed", str(seed), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=RUN_S,
    )
    if not said.stdout.strip():
        raise SystemExit(f"{name} could not be run: {said.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(said.stdout)
    for sentence in verdict["violations"]:
        print(f"{name}, seed {seed}: {sentence}", file=sys.stderr)
    return verdict


def row(name: str, verdicts: Sequence[dict[str, Any]]) -> str:
    errors = [one["errors"] for one in verdicts]
    failures = [one["there"] + one["notice"] + one["unexcused"] for one in errors]
    last = [one["last_after"] or 0.0 for one in errors]
    slow = [one["slow_until"] or 0.0 for one in verdicts]
    waited = [
        sorted(one["waited"][when]["p99"] for one in verdicts if one["waited"][when]) for when in ("before", "after")
    ]
    p99 = " -> ".join(f"{_middle(values) * 1000:.0f} ms" if values else "-" for values in waited)
    passed = sum(one["verdict"] == "pass" for one in verdicts)
    return (
        f"{name:<18}{_middle(failures):>5.0f}, {max(failures):>5.0f}{_both(last):>18}{_both(slow):>18}{p99:>22}   "
        f"{passed} of {len(verdicts)} pass"
    )


def _both(values: Sequence[float]) -> str:
    return f"{_middle(values):.1f} s, {max(values):.1f} s"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
