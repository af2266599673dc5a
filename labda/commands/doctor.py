"""``labda doctor``: what this host lacks, and the command that gets it."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from labda import given, host
from labda.commands.up import RUNTIMES
from labda.refusal import Refusal, Status

PROJECT = Path(__file__).resolve().parents[2]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtimes", type=given.path("--runtimes"), default=RUNTIMES, metavar="DIR",
                        help="what set-up made for sandboxes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    found = checks(options.runtimes, options.state.root)
    if options.json:
        sys.stdout.write(json.dumps([asdict(check) for check in found], indent=2) + "\n")
    else:
        for check in found:
            mark = "ok" if check.ok else "missing" if check.fatal else "weak"
            sys.stdout.write(f"{mark:<8} {check.name:<18} {check.missing}".rstrip() + "\n")
            if not check.ok:
                sys.stdout.write(f"{'':<8} {'':<18} {check.remedy}\n")
    return Status.HOST if any(check.fatal and not check.ok for check in found) else Status.OK


def checks(runtimes: Path, state: Path) -> list[host.Check]:
    """The host's, with the disk of the state directory, and the sandboxes'."""
    from worker.sandbox import doctor  # noqa: PLC0415 - looks at the host when asked, not at import

    sandbox = [
        host.Check(name=check.name, ok=check.ok, missing=check.missing, remedy=check.remedy, fatal=check.fatal)
        for check in doctor.checks(str(runtimes))
    ]
    own = host.checks(state) + host.stores(PROJECT)
    names = {check.name for check in own}
    return own + [check for check in sandbox if check.name not in names]


def require(runtimes: Path, state: Path) -> None:
    """Raises Refusal, naming all that is missing, before anything is started."""
    missing = [check for check in checks(runtimes, state) if check.fatal and not check.ok]
    if missing:
        listed = "; ".join(f"{check.missing}: {check.remedy}" for check in missing)
        raise Refusal(f"this host can't run labda: {listed}", Status.HOST)
