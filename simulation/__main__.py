"""``python -m simulation run``: fault plans drawn from seeds, each befalling a whole region under load, judged.
``python -m simulation story --seed N``: the first invokes of a region to which nothing happens, told line by line.
``python -m simulation replay TRACE...``: what services were told, told to their cores again.

Exit status: 0 no violation (every answer, every effect was the expected one), 1 one was, or a service failed, 2 a wrong
command line.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import structlog

from chassis import logs
from simulation import batches, campaign, coverage, loop, replay
from simulation.campaign import Outcome
from simulation.loop import VirtualLoop
from simulation.plan import Plan, draw
from simulation.region import Region
from simulation.scenario import Told, first_invokes


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "replay":
        return replay.main(arguments.traces, sys.stdout, sys.stderr)
    if arguments.log_level:
        logs.configure(service="simulation", node="region", level=arguments.log_level)
    else:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if arguments.command == "story":
        return _tell(arguments)
    if arguments.seeds or arguments.minutes:
        return _many(arguments)
    try:
        plan = Plan.from_json(arguments.plan.read_text()) if arguments.plan else draw(
            arguments.seed, swarm=arguments.swarm
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{arguments.plan}: {error}\n")
        return 2
    return _single(plan, arguments)


# ------------------------------------------------------------ fault plans


def _single(plan: Plan, arguments: argparse.Namespace) -> int:
    outcome, record = campaign.run(plan)
    if arguments.trace:
        Path(arguments.trace).write_text("".join(record.lines.text))
    sys.stdout.writelines(f"{entry}\n" for entry in plan.entries)
    seen = ", ".join(f"{name} {times}" for name, times in outcome.coverage.items())
    sys.stdout.write(f"{outcome.invokes} invokes; {seen}\n")
    sys.stdout.write(f"seed {plan.seed}  {outcome.virtual_s:.3f} virtual s  trace {outcome.trace_hash}\n")
    if not outcome.violations:
        return 0
    sys.stderr.writelines(f"seed {plan.seed}: {violation}\n" for violation in outcome.violations)
    if arguments.plan:  # it is small already
        sys.stderr.writelines(f"  {line}\n" for line in outcome.story)
    else:
        sys.stderr.write(batches.explain(outcome, arguments.failures))
    return 1


def _many(arguments: argparse.Namespace) -> int:
    seeds: Iterable[int] = arguments.seeds or count(arguments.seed)
    until = time.monotonic() + 60.0 * arguments.minutes if arguments.minutes else float("inf")
    batch = batches.Batch()
    for outcome in batches.outcomes(seeds, swarm=arguments.swarm, jobs=arguments.jobs, until=until):
        batch.add(outcome)
        for violation in outcome.violations[:1]:
            sys.stdout.write(f"seed {outcome.plan.seed}: {violation}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{batch}\n")
    _explain(batch.failed, arguments)
    missing = coverage.missing(batch.coverage)
    if missing:
        sys.stdout.write(f"never happened: {', '.join(missing)}\n")
    return 1 if batch.failed else 0


def _explain(failed: list[Outcome], arguments: argparse.Namespace) -> None:
    """One of each kind: the others are told by their seeds."""
    told: set[frozenset[int]] = set()
    for outcome in failed:
        kind = frozenset(outcome.invariants)
        if kind not in told:
            told.add(kind)
            sys.stderr.write(batches.explain(outcome, arguments.failures))


# ------------------------------------------------------------ the first scenario


def _tell(arguments: argparse.Namespace) -> int:
    try:
        told, region, virtual_s = run(arguments.seed)
    except AssertionError as bug:  # a service's, or one of the simulation's own judgements
        sys.stderr.write(f"seed {arguments.seed}: {bug}\n")
        return 1
    for line in told:
        sys.stdout.write(f"{line.at:9.4f} s  {line.what:<26} {line.answer.status}  {_shown(line)}\n")
    if arguments.trace:
        Path(arguments.trace).write_text(region.trace())
    sys.stdout.write(f"seed {arguments.seed}  {virtual_s:.3f} virtual s  trace {region.trace_hash()}\n")
    wrong = [line for line in told if not line.as_expected]
    for line in wrong:
        sys.stderr.write(
            f"seed {arguments.seed}: {line.what} was answered {line.answer.status} instead of {line.expected}: "
            f"run it again with --log-level info\n"
        )
    return 1 if wrong else 0


def run(seed: int) -> tuple[list[Told], Region, float]:
    """The story, the region (closed: its trace is whole) and the virtual seconds that it took."""
    async def scenario(virtual: VirtualLoop) -> tuple[list[Told], Region, float]:
        async with Region(seed) as region:
            told = await first_invokes(region)
        return told, region, virtual.time()

    return loop.run(scenario)


def _shown(line: Told) -> str:
    if line.phases:
        kind = "cold" if line.cold else "warm"
        parts = ", ".join(f"{name} {spent:g}" for name, spent in line.phases.items())
        return f"{line.answer.body.decode()}  {kind} ({parts}) ms"
    return line.answer.body.decode()


# ------------------------------------------------------------ the command line


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        return range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: seeds are given as A..B") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulation", description="A whole region in virtual time.")
    commands = parser.add_subparsers(required=True, dest="command")
    runs = commands.add_parser("run", help="a fault plan from a seed, or many; a failure is made small and told")
    runs.add_argument("--seed", type=int, default=1, help="of everything that is drawn; with --minutes the first (1)")
    runs.add_argument("--seeds", type=_seeds, metavar="A..B", help="each of them")
    runs.add_argument("--jobs", type=int, default=1, metavar="N", help="so many seeds at once, on as many cores (1)")
    runs.add_argument("--swarm", action="store_true", help="each seed has some kinds of faults and not the others")
    runs.add_argument("--minutes", type=float, metavar="M", help="seed after seed for so long")
    runs.add_argument("--plan", type=Path, metavar="FILE", help="this plan instead of one that is drawn")
    runs.add_argument("--failures", type=Path, metavar="FOLDER", default=Path("build/simulation"),
                      help="where plans that fail are written (build/simulation)")
    story = commands.add_parser("story", help="create two functions, invoke cold and warm, throttle one")
    story.add_argument("--seed", type=int, default=1, help="of everything that is drawn (1)")
    for one in (runs, story):
        one.add_argument("--trace", metavar="FILE", help="write the event trace of all drivers there, as NDJSON")
        one.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="show the services' logs")
    again = commands.add_parser("replay", help="feed the cores of a traced run again and compare their effects")
    again.add_argument("traces", metavar="TRACE", nargs="+", type=Path, help="a trace file, or a folder of them")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
