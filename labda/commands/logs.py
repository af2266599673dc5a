"""``labda logs``: what a function logged, from every worker that ran it, in order of time."""

import argparse

from labda.refusal import Status


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the function")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    options.state.cluster()
    return Status.OK
