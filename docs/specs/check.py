"""Runs TLC on every configuration of the ledger's model, and on every mutant: a clause of the design taken away.

    python docs/specs/check.py [--jobs N] [--only WORD] [--traces DIR]

A configuration holds when TLC exhausts it without a violation; a mutant is refuted when TLC finds one, of the property
that `mutants.txt` names. Anything else is a failure: one line says which, and a trace what happened. Needs Java and
`.specs/tla2tools.jar` (`make spec` gets them) and nothing but Python's standard library.

One worker per TLC, as many TLCs as there are cores: breadth-first search is then the same in every run, and the trace
that refutes a mutant is a shortest one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
JAR = HERE.parent.parent / ".specs" / "tla2tools.jar"
MUTANTS = HERE / "mutants.txt"
HEAP_MB = 2000
LIMIT_S = 2400.0    # of one run, on a machine that does other things too

HOLDS, VIOLATED, UNLIVE = 0, 12, 13     # TLC's exit statuses

# Started first, so that no core idles at the end.
LONGEST = ("carve", "carve-recall", "evict", "evict-silent", "recall-silent", "carve-evict", "fence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`clause` is what is taken away (empty: nothing), `expected` the property that has to fall then."""

    cfg: str
    clause: str = ""
    expected: str = ""

    @property
    def name(self) -> str:
        return f"{self.cfg} without {self.clause}" if self.clause else self.cfg


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    run: Run
    good: bool
    said: str
    states: str
    took_s: float
    output: str


def mutants() -> list[Run]:
    """Lines of mutants.txt: configuration, clause, property that falls, rule and sentence."""
    lines = [line.split(maxsplit=3) for line in MUTANTS.read_text().splitlines() if line and not line.startswith("#")]
    return [Run(cfg=cfg, clause=clause, expected=expected) for cfg, clause, expected, _ in lines]


def configurations() -> list[Run]:
    names = sorted(path.stem for path in HERE.glob("*.cfg"))
    return [Run(cfg=name) for name in sorted(names, key=lambda name: (name not in LONGEST, name))]


def check(run: Run, limit_s: float = LIMIT_S) -> Outcome:
    """One TLC in a directory of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spec-") as scratch:
        for module in HERE.glob("*.tla"):
            shutil.copy(module, scratch)
        text = (HERE / f"{run.cfg}.cfg").read_text()
        if run.clause:
            text = text.replace(" MUT = {}", f' MUT = {{"{run.clause}"}}')
        (Path(scratch) / "run.cfg").write_text(text)
        # A mutant falls within seconds: the second compiler would be most of them.
        short = ["-XX:TieredStopAtLevel=1"] if run.clause else []
        # TLC unpacks its standard modules into Java's temporary directory, where two of them would meet.
        own = f"-Djava.io.tmpdir={scratch}"
        argv = [
            "java", own, f"-Xmx{HEAP_MB}m", "-XX:+UseSerialGC", *short, "-cp", str(JAR), "tlc2.TLC", "-deadlock",
            "-workers", "1", "-metadir", str(Path(scratch) / "meta"), "-config", "run.cfg", "Ledger.tla",
        ]
        try:
            done = subprocess.run(
                argv, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s,
                check=False,
            )
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            status, output = -1, late.stdout.decode() if isinstance(late.stdout, bytes) else ""
    return judge(run, status, output, time.monotonic() - began)


def judge(run: Run, status: int, output: str, took_s: float) -> Outcome:
    found = re.search(r"Invariant (\w+) is violated", output)
    fallen = found[1] if found else "Liveness" if status == UNLIVE else ""
    states = re.findall(r"([\d,]+) distinct states found", output)
    if run.clause:
        good = status in (VIOLATED, UNLIVE) and fallen == run.expected
        said = f"refuted by {fallen}{_why(output)}" if good else (
            f"NOT REFUTED by {run.expected}: TLC ended with {status}, fallen is {fallen or 'nothing'}"
        )
    else:
        good = status == HOLDS
        said = "holds" if good else f"VIOLATED: {fallen or 'no verdict'}{_why(output)} (status {status})"
    return Outcome(
        run=run, good=good, said=said, states=states[-1] if states else "?", took_s=took_s, output=output
    )


def _why(output: str) -> str:
    """What the last step did wrong, in the model's own words."""
    words = [word for word in re.findall(r'^/\\ bad = "([^"]*)"', output, re.MULTILINE) if word != "-"]
    return f" ({words[-1]})" if words else ""


def steps(output: str) -> list[str]:
    """The actions of TLC's trace, in order."""
    return re.findall(r"^State \d+: <(\w+) line", output, re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs TLC on the ledger's model and on its mutants.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many TLCs at once")
    parser.add_argument("--only", default="", help="configurations and clauses whose name holds this word")
    parser.add_argument("--traces", type=Path, help="a directory for TLC's whole output of each run")
    arguments = parser.parse_args()
    if shutil.which("java") is None or not JAR.exists():
        sys.stderr.write("Java or .specs/tla2tools.jar is missing: `make spec` gets them\n")
        return 2
    os.nice(max(0, 10 - os.nice(0)))    # whoever works beside it goes first
    runs = [run for run in [*configurations(), *mutants()] if arguments.only in run.name]
    began = time.monotonic()
    bad = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(check, run) for run in runs]):
            outcome = done.result()
            print(f"{outcome.run.name:<40} {outcome.said:<60} {outcome.states:>9} states {outcome.took_s:6.1f} s",
                  flush=True)
            if arguments.traces is not None:
                arguments.traces.mkdir(parents=True, exist_ok=True)
                (arguments.traces / f"{outcome.run.name.replace(' ', '-')}.txt").write_text(outcome.output)
            if not outcome.good:
                bad += 1
                print("\n".join(outcome.output.splitlines()[-60:]))
            elif outcome.run.clause:
                print(f"    {' '.join(steps(outcome.output))}")
    took_min = (time.monotonic() - began) / 60
    print(f"{len(runs) - bad} of {len(runs)} as they should be, in {took_min:.1f} min")
    return 1 if bad or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
