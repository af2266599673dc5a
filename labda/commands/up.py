"""``labda up``: the embedded cluster, in the foreground or, with --detach, behind."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from labda import endpoint
from labda.console import ENDS, Console
from labda.refusal import Refusal, Status
from labda.state import State
from labda.topology import Topology

LISTEN = "127.0.0.1:9000"
_PROJECT = Path(__file__).resolve().parent.parent.parent
RUNTIMES = _PROJECT / ".runtimes"  # where set-up makes them


def arguments(parser: argparse.ArgumentParser) -> None:
    shape = Topology()
    add = parser.add_argument
    add("--listen", default=LISTEN, metavar="HOST:PORT",
        help="public endpoint; port 0 picks a free one (default: %(default)s)")
    add("--azs", type=int, default=shape.azs, metavar="N", help="availability zones (default: %(default)s)")
    add("--workers-per-az", type=int, default=shape.workers_per_az, metavar="N", help="(default: %(default)s)")
    add("--frontends-per-az", type=int, default=shape.frontends_per_az, metavar="N", help="(default: %(default)s)")
    add("--detach", action="store_true", help="return once the cluster serves; `labda down` ends it")
    add("--deploy", type=Path, action="append", default=[], metavar="DIR",
        help="deploy this function and invoke it cold and warm; may be given again")
    add("--runtimes", type=Path, default=RUNTIMES, metavar="DIR",
        help="what set-up made for sandboxes (default: %(default)s)")
    add("--check", action="store_true", help="services check their invariants after every event")
    add("--report-fd", type=int, default=-1, help=argparse.SUPPRESS)  # of the parent of a detached start


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    try:
        topology = Topology(
            azs=options.azs, workers_per_az=options.workers_per_az, frontends_per_az=options.frontends_per_az
        )
    except ValueError as error:
        raise Refusal(f"--{error}", Status.USAGE) from error
    endpoint.parse(options.listen)
    if options.detach:
        return _detach(state, options)
    from chassis import process  # noqa: PLC0415 - as below
    from labda import supervisor  # noqa: PLC0415 - gRPC; not for the parent of a detached start
    from labda.commands import doctor  # noqa: PLC0415

    doctor.require(options.runtimes)
    mirror = os.fdopen(options.report_fd, "w") if options.report_fd >= 0 else None
    supervisor.supervise(state, supervisor.Options(
        topology=topology, listen=options.listen, runtimes=options.runtimes.resolve(), deploy=tuple(options.deploy),
        check=options.check,
    ), Console(mirror=mirror))
    return process.leave(Status.OK)


def _detach(state: State, options: argparse.Namespace) -> int:
    """Starts the same command in a session of its own and shows what it says until it serves."""
    state.prepare()
    reader, writer = os.pipe()
    argv = [
        sys.executable, "-m", "labda", "up", "--state", str(state.root), "--listen", options.listen,
        "--azs", str(options.azs), "--workers-per-az", str(options.workers_per_az),
        "--frontends-per-az", str(options.frontends_per_az), "--runtimes", str(options.runtimes),
        "--report-fd", str(writer),
    ]
    argv += [word for path in options.deploy for word in ("--deploy", str(path.resolve()))]
    argv += ["--check"] if options.check else []
    log = state.log("supervisor")
    with log.open("w") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, pass_fds=(writer,),
            cwd="/", env={**os.environ, "PYTHONPATH": str(_PROJECT)},
        )
    os.close(writer)
    serves = False
    try:
        with os.fdopen(reader) as lines:
            for line in lines:
                serves = serves or line.startswith(ENDS)
                sys.stdout.write(line.replace(ENDS, "labda down ends everything"))
                sys.stdout.flush()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if not serves:
        process.wait()
        said = log.read_text().strip().splitlines()
        words = next((line.removeprefix("labda: ") for line in reversed(said) if line.startswith("labda: ")), "")
        raise Refusal(words or f"the cluster did not start: {log} says why")
    return Status.OK
