"""The command ``labda``: parses the command line, runs one command, turns a refusal into one sentence.

Owns the command line. What a command does is its module's in ``labda/commands``; exit statuses are in
``labda/refusal.py``. Modules are imported when their command is run: ``labda env`` must not wait for gRPC.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from chassis.faults import Fault
from labda import given
from labda.refusal import Refusal, Status
from labda.target import COMPOSE, EMBEDDED, TARGETS, state_of
from labda.version import VERSION

# Commands that mean one kind of cluster only.
ALWAYS = {"up": "embedded", "down": "embedded", "cluster": "compose"}
COMMANDS = {
    "up": "start an embedded cluster and keep it running",
    "down": "end the cluster that runs on a state directory",
    "status": "processes, workers and functions on one screen",
    "hosts": "workers' hosts: health, lease, until when counting believes them; declare one dead",
    "counting": "members of the ledger: who votes, who is behind; give a vote, take one",
    "limits": "permits per pool: limit, granted, running, draining, refusals by reason",
    "env": "shell lines that make any AWS client use the cluster",
    "deploy": "create or update a function from a folder or a zip archive",
    "invoke": "run a function and print its result",
    "metrics": "where every process serves its numbers, and what they are",
    "logs": "print what a function logged",
    "account": "the accounts of a cluster: create, list",
    "key": "the access keys of accounts: create, revoke, list",
    "chaos": "break a cluster on purpose, under load, and say what came of it: list, run, check",
    "cluster": "the cluster in containers: up, roll, replace, down, and who is trusted in it",
    "backup": "everything that a cluster keeps, into one file",
    "restore": "what a backup holds, into a cluster's stores that no service uses",
    "doctor": "what this host lacks, and the command that gets it",
}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except Refusal as refusal:
        sys.stderr.write(f"labda: {refusal.message}\n")
        return int(refusal.status)
    except Fault as fault:  # from the world, and it says what to do
        sys.stderr.write(f"labda: {fault.message}\n")
        return int(Status.FAILED)
    except KeyboardInterrupt:
        return int(Status.INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Status.OK)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="labda", description="The AWS Lambda architecture on your own machine.",
        epilog="exit status: 0 done, 1 it failed (a function error too), 2 wrong command line, 3 no cluster there, "
               "4 the cluster refused, 5 this host can't, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"labda {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((word for word in argv if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            importlib.import_module(f"labda.commands.{name}").arguments(command)
        command.add_argument(
            "--state", type=given.path("--state"), metavar="DIR",
            help=f"state directory of the cluster (default: {_default_state(name)})",
        )
        if name not in ALWAYS:
            command.add_argument(
                "--target", choices=TARGETS, default=EMBEDDED,
                help="which cluster: the embedded one, or the one in containers (default: %(default)s)",
            )
    options = parser.parse_args(argv)
    options.state = state_of(ALWAYS.get(options.command) or options.target, options.state)
    status = importlib.import_module(f"labda.commands.{options.command}").run(options)
    sys.stdout.flush()
    return int(status)


def _default_state(command: str) -> str:
    if command in ALWAYS:
        return str(state_of(ALWAYS[command], None).root)
    return f"{state_of(EMBEDDED, None).root}, or {state_of(COMPOSE, None).root} for --target compose"


if __name__ == "__main__":
    sys.exit(main())
