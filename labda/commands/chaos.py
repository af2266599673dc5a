"""``labda chaos``: breaks a cluster on purpose, under load, and says what came of it."""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labda import given
from labda.chaos.figures import figures, render
from labda.chaos.hands import Hands
from labda.chaos.history import is_recorded, is_trace, read, why
from labda.chaos.judge import Judged, judge
from labda.chaos.load import LoadConfig
from labda.chaos.scenarios import SCENARIOS, Scenario
from labda.console import LABEL_COLUMNS, Console
from labda.refusal import Refusal, Status
from labda.state import State
from labda.target import COMPOSE, also_here

if TYPE_CHECKING:
    from simulation.history import Verdict

LASTS_S_MIN = 1.0


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    shown = verbs.add_parser("list", help="what each scenario does and promises")
    shown.add_argument("--json", action="store_true", help="machine-readable")
    run = verbs.add_parser("run", help="one scenario under load; exit status 1 when its verdict is no pass")
    add = run.add_argument
    add("name", type=given.name("NAME"), metavar="NAME", help="of the scenario: `labda chaos list`")
    add("--yes", action="store_true", help="don't ask before anything is broken")
    add("--json", action="store_true", help="the verdict, machine-readable")
    add("--seed", type=int, metavar="N", help="of the load and of what is chosen (default: a new one, printed)")
    add("--duration", type=float, metavar="S", help="seconds of load from the fault on (default: the scenario's)")
    usual = LoadConfig()
    add("--functions", type=int, default=usual.functions, metavar="N", help="under load (default: %(default)s)")
    add("--pool", type=int, default=usual.pool, metavar="N", help="reserved concurrency of each (default: %(default)s)")
    add("--use", type=float, default=usual.use, metavar="SHARE", help="of each pool (default: %(default)s)")
    add("--rate", type=float, default=usual.rate, metavar="R",
        help="requests per second over all functions; how long each runs follows (default: %(default)s)")
    add("--ramp", type=float, default=usual.ramp_s, metavar="S",
        help="until the load is at its rate (default: %(default)s)")
    check = verbs.add_parser("check", help="judge a history again: the same verdict")
    check.add_argument("files", type=given.path("FILE"), nargs="+", metavar="FILE",
                       help="of `labda chaos run` or `labda up --record`; or all traces of one cluster")
    check.add_argument("--time-scale", type=float, default=1.0, metavar="SHARE",
                       help="of the leases in traces, as given to `labda up` (default: %(default)s)")
    check.add_argument("--json", action="store_true", help="the verdict, machine-readable")
    for verb in (shown, run, check):
        also_here(verb)


def run(options: argparse.Namespace) -> int:
    match options.verb:
        case "list":
            sys.stdout.write(_listed_json() if options.json else _listed())
            return Status.OK
        case "check":
            return _check(options)
        case _:
            return _run(options)


# ---------------------------------------------------------------- run


def _run(options: argparse.Namespace) -> int:
    scenario = SCENARIOS.get(options.name)
    if scenario is None:
        raise Refusal(f"there is no scenario {options.name}: {', '.join(SCENARIOS)}", Status.USAGE)
    if options.target not in scenario.targets:
        raise Refusal(f"{scenario.name} needs --target {' or '.join(scenario.targets)}", Status.USAGE)
    if options.duration is not None and options.duration < LASTS_S_MIN:
        raise Refusal(f"--duration is {options.duration:g} s, {LASTS_S_MIN:g} s at least", Status.USAGE)
    try:
        config = LoadConfig(
            functions=options.functions, pool=options.pool, use=options.use, rate=options.rate, ramp_s=options.ramp
        )
    except ValueError as error:
        raise Refusal(f"--{error}", Status.USAGE) from error
    cluster = options.state.cluster()
    if scenario.breakable and not cluster.get("breakable", False):
        raise Refusal(f"{scenario.name} needs a cluster that was started with `labda up --breakable`", Status.USAGE)
    _agree(scenario, options)
    try:
        judged, path = asyncio.run(_live(options, scenario, config))
    except asyncio.CancelledError:  # by ^C or SIGTERM
        return Status.INTERRUPTED
    return _tell(judged, path, as_json=options.json, again=True)


def _agree(scenario: Scenario, options: argparse.Namespace) -> None:
    """Says what will be done, and asks. Raises Refusal."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise Refusal(f"{scenario.name} breaks the cluster on purpose: without a terminal, say --yes", Status.USAGE)
    sys.stderr.write(
        f"{scenario.name:<{LABEL_COLUMNS}} {scenario.does}\non         {options.state.root} ({options.target})\n"
        f"promised   {scenario.promises}\nGo on? [y/N] "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Refusal("nothing was done", Status.OK)


async def _live(options: argparse.Namespace, scenario: Scenario, config: LoadConfig) -> tuple[Judged, Path]:
    # gRPC: not for who only reads the list.
    from labda.chaos.experiment import Cluster, Experiment  # noqa: PLC0415
    from labda.region import opened, wait  # noqa: PLC0415

    state: State = options.state
    task = asyncio.current_task()
    assert task is not None
    # Everything is given back. SIGINT by name: a shell starts what it puts in the background with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    found = state.cluster()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    time_scale = float(found.get("time_scale", 1.0))
    lasts_s = options.duration or scenario.lasts_s * (time_scale if scenario.scaled else 1.0)
    console = Console(sys.stderr if options.json else sys.stdout)
    async with opened(state, found["placements"]) as region:
        await wait(region, state)
        hands = await _hands(state, lambda node: region.directory.nodes[node].pid)
        try:
            experiment = Experiment(
                scenario, config, seed=seed, lasts_s=lasts_s, region=region, hands=hands, console=console,
                folder=state.root / "chaos" / time.strftime("%Y-%m-%dT%H-%M-%S"),
                cluster=Cluster(
                    target=state.target, endpoint=found["endpoint"], region=found["region"],
                    authority=found.get("authority", ""),
                    credentials=state.credentials(), time_scale=time_scale, runtime=_runtime(found["runtimes"]),
                ),
            )
            judged = await experiment.run()
        finally:
            await hands.close()
    return judged, experiment.path


async def _hands(state: State, pid: Callable[[str], int]) -> Hands:
    if state.target == COMPOSE:
        from labda.chaos.compose import ComposeHands  # noqa: PLC0415
        from labda.cluster import engine  # noqa: PLC0415

        return await ComposeHands.open(engine.of(state.root), pid=pid)
    from labda.chaos.embedded import EmbeddedHands  # noqa: PLC0415

    return await EmbeddedHands.open(state, pid=pid)


def _runtime(there: list[str]) -> str:
    """This Python's where the workers have it, else the newest that they have. Raises Refusal."""
    own = f"python3.{sys.version_info.minor}"
    pythons = sorted((one for one in there if one.startswith("python")), key=lambda one: int(one.partition(".")[2]))
    if not pythons:
        raise Refusal("the function under load is Python, and no worker has a runtime for it", Status.HOST)
    return own if own in pythons else pythons[-1]


# ---------------------------------------------------------------- check


def _check(options: argparse.Namespace) -> int:
    for path in options.files:
        given.file(path, "a history of `labda chaos run` or `labda up --record`, or traces")
    if is_trace(options.files[0]):
        return _check_traces(options)
    if is_recorded(options.files[0]):
        return _check_recorded(options)
    if len(options.files) > 1:
        raise Refusal("one history at a time: each has a verdict of its own", Status.USAGE)
    return _tell(judge(read(options.files[0])), options.files[0], as_json=options.json)


def _check_traces(options: argparse.Namespace) -> int:
    """What processes recorded is judged as what a simulated region recorded is."""
    from simulation.history import judge_files  # noqa: PLC0415 - not for who only reads the list

    return _tell_invariants(
        options, "traces of processes", lambda: judge_files(options.files, time_scale=options.time_scale)
    )


def _check_recorded(options: argparse.Namespace) -> int:
    from simulation.history import check_file  # noqa: PLC0415

    if len(options.files) > 1:
        raise Refusal("one history at a time: each has a verdict of its own", Status.USAGE)
    return _tell_invariants(options, "records of a cluster", lambda: check_file(options.files[0]))


def _tell_invariants(options: argparse.Namespace, what: str, judge_them: "Callable[[], Verdict]") -> int:
    from simulation.history.records import line  # noqa: PLC0415

    try:
        found = judge_them()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"these are not all {what}: {why(error)}") from error
    verdict = "fail" if found.violations else "pass"
    if options.json:
        violations = [
            {"invariant": one.invariant, "what": one.what, "records": [json.loads(line(r)) for r in one.records]}
            for one in found.violations
        ]
        sys.stdout.write(json.dumps({
            "verdict": verdict, "violations": violations, "records": dict(found.counts), "unfinished": found.unfinished,
        }, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{label:<{LABEL_COLUMNS}} {text}\n" for label, text in _rows(found, verdict)))
    return Status.FAILED if found.violations else Status.OK


def _rows(found: "Verdict", verdict: str) -> list[tuple[str, str]]:
    counts = found.counts
    return [
        ("requests", f"{counts.get('Asked', 0):,} asked, {counts.get('Answered', 0):,} answers of the API"),
        ("runs", f"{found.starts:,} started, {found.unfinished:,} not ended, {found.creates:,} sandboxes made"),
        ("leases", f"{found.grants:,} granted, {found.adoptions:,} adoptions, {found.ends:,} returned"),
        ("ledger", (
            f"{counts.get('Led', 0):,} leaders, {counts.get('Committed', 0):,} entries, "
            f"{counts.get('Block', 0):,} changes of blocks, {counts.get('FenceAcked', 0):,} fences"
        )),
        *(("violated", str(violation)) for violation in found.violations), ("verdict", verdict),
    ]


# ---------------------------------------------------------------- what is printed


def _tell(judged: Judged, path: Path, *, as_json: bool, again: bool = False) -> int:
    if as_json:
        sys.stdout.write(json.dumps({**figures(judged), "history": str(path)}, indent=2) + "\n")
    else:
        verdict = "pass" if judged.passed else "FAIL"
        more = f"    again: labda chaos check {path}" if again else ""
        sys.stdout.write(render(judged, live=again) + f"{'verdict':<{LABEL_COLUMNS}} {verdict}{more}\n")
    return Status.OK if judged.passed else Status.FAILED


def _listed() -> str:
    lines = []
    for one in SCENARIOS.values():
        where = " (--target compose)" if one.targets == (COMPOSE,) else ""
        where += " (labda up --breakable)" if one.breakable else ""
        lines += [f"{one.name:<24}{one.does}{where}", f"{'':<24}promises: {one.promises}"]
    return "\n".join(lines) + "\n"


def _listed_json() -> str:
    rows: list[dict[str, Any]] = [
        {"name": one.name, "does": one.does, "promises": one.promises, "targets": list(one.targets),
         "lasts_s": one.lasts_s} for one in SCENARIOS.values()
    ]
    return json.dumps(rows, indent=2) + "\n"
