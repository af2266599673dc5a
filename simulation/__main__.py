"""``python -m simulation run --seed N``: one region through the first scenario, its story and its trace's hash.

Exit status: 0 every answer was the expected one, 1 one was not, or a service failed.
"""

import argparse
import logging
import sys
from pathlib import Path

import structlog

from chassis import logs
from simulation import loop
from simulation.loop import VirtualLoop
from simulation.region import Region
from simulation.scenario import Told, first_invokes


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.log_level:
        logs.configure(service="simulation", node="region", level=arguments.log_level)
    else:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulation", description="A whole region in virtual time.")
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("run", help="create two functions, invoke cold and warm, throttle one")
    first.add_argument("--seed", type=int, default=1, help="of everything that is drawn (1)")
    first.add_argument("--trace", metavar="FILE", help="write the event trace of all drivers there, as NDJSON")
    first.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="show the services' logs")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
