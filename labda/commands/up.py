"""``labda up``: the embedded cluster, in the foreground or, with --detach, behind."""

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labda import endpoint, given, package
from labda.console import ENDS, Console
from labda.refusal import Refusal, Status
from labda.state import State
from labda.topology import DRAIN_ORDER, Topology

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
    add("--managers", type=int, default=shape.managers, metavar="N", help="worker managers (default: %(default)s)")
    add("--placements", type=int, default=shape.placements, metavar="N", help="(default: %(default)s)")
    add("--detach", action="store_true", help="return once the cluster serves; `labda down` ends it")
    add("--deploy", type=given.path("--deploy"), action="append", default=[], metavar="DIR",
        help="deploy this function and invoke it cold and warm; may be given again")
    add("--runtimes", type=given.path("--runtimes"), default=RUNTIMES, metavar="DIR",
        help="what set-up made for sandboxes (default: %(default)s)")
    add("--time-scale", type=_scale, default=1.0, metavar="SHARE",
        help="of leases (6 to 10 h), and of 900 s, which then caps functions' timeouts: for tests and demonstrations")
    add("--check", action="store_true", help="services check their invariants after every event")
    add("--trace", action="store_true", help="services record every event: STATE/nodes/NODE/trace.ndjson")
    add("--record", type=given.path("--record"), metavar="FILE",
        help="when all has ended, write there what happened: `labda chaos check FILE` judges it (with --trace)")
    add("--breakable", action="store_true",
        help="what counting's members say and hear goes through a proxy, for `labda chaos` to break")
    add("--set", action="append", default=[], metavar="SERVICE.SETTING=VALUE",
        help="another value than the default for a setting of a service's configuration, as TOML writes it "
        "(counting.authority_s=30); may be given again")
    add("--report-fd", type=int, default=-1, help=argparse.SUPPRESS)  # of the parent of a detached start


def _scale(text: str) -> float:
    """A share like 0.001 or 1/3600. Raises Refusal."""
    from placement.config import FleetConfig  # noqa: PLC0415 - certificates, which no other command needs this early

    above, _, below = text.partition("/")
    try:
        scale = float(above) / float(below or 1)
        FleetConfig(time_scale=scale)
    except (ValueError, ZeroDivisionError) as error:
        raise Refusal(
            f"--time-scale is {text!r}, it must be a share above 0 and at most 1, such as 0.001 or 1/3600", Status.USAGE
        ) from error
    return scale


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    try:
        topology = Topology(
            azs=options.azs, workers_per_az=options.workers_per_az, frontends_per_az=options.frontends_per_az,
            managers=options.managers, placements=options.placements,
        )
    except ValueError as error:
        raise Refusal(f"--{error}", Status.USAGE) from error
    endpoint.parse(options.listen)
    changes = parse_changes(options.set)
    look_first(state, options)
    if options.detach:
        return _detach(state, options)
    from chassis import process  # noqa: PLC0415 - as below
    from labda import supervisor  # noqa: PLC0415 - gRPC; not for the parent of a detached start
    from labda.commands import doctor  # noqa: PLC0415

    doctor.require(options.runtimes, state.root)
    mirror = os.fdopen(options.report_fd, "w") if options.report_fd >= 0 else None
    served = supervisor.supervise(state, supervisor.Options(
        topology=topology, listen=options.listen, runtimes=options.runtimes.resolve(), deploy=tuple(options.deploy),
        check=options.check, trace=options.trace, changes=changes, time_scale=options.time_scale,
        record=options.record.resolve() if options.record else None, breakable=options.breakable,
    ), Console(mirror=mirror))
    return process.leave(Status.OK if served else Status.INTERRUPTED)


def look_first(state: State, options: argparse.Namespace) -> None:
    """Refuses what can be known to fail before anything is made or started. Raises Refusal."""
    for path in options.deploy:
        package.read(path)
    if not os.access(state.root, os.F_OK):  # else a cluster that was killed may have the port still: it is ended first
        from labda.commands import doctor  # noqa: PLC0415 - looks at the host

        doctor.require(options.runtimes, state.root)
        endpoint.reserve(options.listen).close()


def parse_changes(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """SERVICE.SETTING=VALUE, each, as settings by service. Raises Refusal."""
    changes: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        service, dot, setting = name.partition(".")
        if not (equals and dot and setting):
            raise Refusal(f"--set {word}: SERVICE.SETTING=VALUE is needed", Status.USAGE)
        if service not in DRAIN_ORDER:
            raise Refusal(f"--set {word}: there is no service {service}, but {', '.join(DRAIN_ORDER)}", Status.USAGE)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise Refusal(f"--set {word}: {text!r} is no value as TOML writes it ({error})", Status.USAGE) from error
        changes.setdefault(service, {})[setting] = value
    return changes


def _detach(state: State, options: argparse.Namespace) -> int:
    """Starts the same command in a session of its own and shows what it says until it serves."""
    state.prepare()
    reader, writer = os.pipe()
    argv = [
        sys.executable, "-m", "labda", "up", "--state", str(state.root), "--listen", options.listen,
        "--azs", str(options.azs), "--workers-per-az", str(options.workers_per_az),
        "--frontends-per-az", str(options.frontends_per_az), "--managers", str(options.managers),
        "--placements", str(options.placements), "--time-scale", str(options.time_scale),
        "--runtimes", str(options.runtimes), "--report-fd", str(writer),
    ]
    argv += ["--record", str(options.record.resolve())] if options.record else []
    argv += [word for path in options.deploy for word in ("--deploy", str(path.resolve()))]
    argv += [word for change in options.set for word in ("--set", change)]
    flags = (("--check", options.check), ("--trace", options.trace), ("--breakable", options.breakable))
    argv += [word for word, wanted in flags if wanted]
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
                _say(line.replace(ENDS, f"labda down{state.words} ends everything"))
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


def _say(text: str) -> None:
    """On standard output, for as long as somebody reads it: the cluster is waited for all the same."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
