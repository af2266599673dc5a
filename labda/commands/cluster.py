"""``labda cluster VERB``: the cluster of containers.

Owns the verbs' command lines. What a verb does is in ``labda/cluster/``, imported when it runs.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass

from labda import given
from labda.cluster import shape
from labda.commands import cluster_life
from labda.console import Console
from labda.refusal import Status


@dataclass(frozen=True, slots=True)
class Verb:
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        command = verbs.add_parser(name, help=verb.help, description=verb.help[0].upper() + verb.help[1:] + ".")
        verb.arguments(command)
        # Also behind the verb, where people write it.
        command.add_argument("--state", type=given.path("--state"), default=argparse.SUPPRESS, metavar="DIR",
                             help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    return VERBS[options.verb].run(options)


# ---------------------------------------------------------------- trust


def _init(options: argparse.Namespace) -> int:
    from labda.cluster.running import Cluster  # noqa: PLC0415 - cryptography

    topology = cluster_life.chosen(options)
    made = Cluster(options.state, Console(), shape.read(topology)).init(topology)
    where = options.state.root
    if made.founded:
        sys.stdout.write(f"founded    {where}; keep {where / 'ca'} away from the hosts: it signs for everybody\n")
    names = (*made.nodes, *made.stores)
    sys.stdout.write(f"made       {', '.join(names)}\n" if names else f"unchanged  {where}\n")
    return Status.OK


def _node_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", type=given.name("NODE"), metavar="NODE",
                        help="name of the node, as `labda status` shows it")


def _revoke(options: argparse.Namespace) -> int:
    from labda.cluster import membership  # noqa: PLC0415

    done = asyncio.run(membership.revoke(options.state, options.node))
    sys.stdout.write(f"revoked    {options.node}, enrolment {done.enrolment} and before")
    sys.stdout.write(f"; refused since {done.bound_s:.1f} s after\n" if done.bound_s is not None else "\n")
    if done.bound_s is None:
        sys.stderr.write(
            "labda: no placement has told the region yet: it is recorded, and binds as soon as one does\n"
        )
        return Status.FAILED
    return Status.OK


def _token(options: argparse.Namespace) -> int:
    from labda.cluster import membership  # noqa: PLC0415

    made = asyncio.run(membership.token(options.state, options.node))
    sys.stdout.write(f"enrolment  {made.enrolment} of {options.node}, in {made.folder}\n")
    if made.token:
        sys.stdout.write(f"token      {made.token}   (shown this once, good for a day)\n")
    return Status.OK


def _rotate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("authority", choices=("root", "stores", "peers"), help="which of the three in ca/")


def _rotate(options: argparse.Namespace) -> int:
    from labda.cluster import engine, rotation  # noqa: PLC0415
    from labda.cluster.running import RELOADS, Cluster  # noqa: PLC0415

    kept = options.state.root / "topology.toml"
    containers = engine.of(options.state.root).containers() if kept.exists() else []
    started = {one.node: one.started_at for one in containers if one.running and one.service not in RELOADS}
    step = rotation.rotate(options.state.root, options.authority, started)
    if kept.exists():       # what else carries the root: the endpoint's files, Prometheus'
        Cluster(options.state, Console(), shape.read(kept)).init(kept)
    sys.stdout.write(f"{step.name.lower():<10} {options.authority}: {step.value}\n")
    return Status.OK


VERBS = {
    "init": Verb("make the authorities, keys and one-time tokens that a cluster is founded on",
                 cluster_life.topology_argument, _init),
    **{name: Verb(*parts) for name, parts in cluster_life.VERBS.items()},
    "revoke": Verb("refuse every certificate of a node, within two seconds, everywhere", _node_argument, _revoke),
    "token": Verb("make a new one-time token for a node that was replaced, or revoked", _node_argument, _token),
    "rotate": Verb("replace an authority: the next of three steps, each followed by a rolling restart",
                   _rotate_arguments, _rotate),
}
