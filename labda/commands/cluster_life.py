"""``labda cluster render | up | stop | down``: the containers of a cluster.

Owns these verbs' command lines. The work is in ``labda/cluster/``, imported when it is done.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from labda import given, package
from labda.cluster import shape
from labda.console import Console
from labda.refusal import Refusal, Status
from labda.target import ContainerState

if TYPE_CHECKING:
    from labda.cluster.running import Cluster


def topology_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", type=given.path("--topology"), metavar="FILE",
                        help=f"shape of the cluster, TOML (default: that of its first start, else {shape.TOPOLOGY})")


def chosen(options: argparse.Namespace) -> Path:
    """The named topology, else the kept one, else the committed one."""
    kept: Path = options.state.root / "topology.toml"
    return options.topology or (kept if kept.exists() else shape.TOPOLOGY)


def _render_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", type=given.path("--topology"), default=shape.TOPOLOGY, metavar="FILE",
                        help="shape of the cluster, TOML (default: %(default)s)")
    parser.add_argument("--output", type=given.path("--output"), default=shape.DEPLOY, metavar="DIR",
                        help="(default: %(default)s)")


def _render(options: argparse.Namespace) -> int:
    from labda.cluster import compose_file  # noqa: PLC0415
    from worker.sandbox import container_profile  # noqa: PLC0415

    for name, text in (
        ("compose.yaml", compose_file.render(shape.read(options.topology))),
        ("seccomp-worker.json", container_profile.render()),
    ):
        (options.output / name).write_text(text)
        sys.stdout.write(f"{options.output / name}\n")
    return Status.OK


def _up_arguments(parser: argparse.ArgumentParser) -> None:
    topology_argument(parser)
    parser.add_argument("--no-build", action="store_true", help="the images are there")
    parser.add_argument("--deploy", type=given.path("--deploy"), action="append", default=[], metavar="DIR",
                        help="deploy this function and invoke it cold and warm; may be given again")
    parser.add_argument("--env", action="store_true", help="print the lines of `labda env --target compose` at the end")


def _up(options: argparse.Namespace) -> int:
    from labda.cluster.running import Cluster  # noqa: PLC0415
    from labda.commands import env  # noqa: PLC0415
    from labda.commands.deploy import demonstrate  # noqa: PLC0415

    for path in options.deploy:     # before anything is built
        package.read(path)
    console, topology = Console(), chosen(options)
    state: ContainerState = options.state
    Cluster(state, console, shape.read(topology)).up(topology, build=not options.no_build)
    for path in options.deploy:
        demonstrate(state, path, console)
    console.line("use it", f'eval "$(labda env{state.words})"; aws lambda list-functions')
    if options.env:
        env.run(options)
    return Status.OK


def _build(options: argparse.Namespace) -> int:
    from labda.cluster.running import Cluster  # noqa: PLC0415

    topology = chosen(options)
    cluster = Cluster(options.state, Console(), shape.read(topology))
    cluster.init(topology)
    cluster.build()
    return Status.OK


def _roll_arguments(parser: argparse.ArgumentParser) -> None:
    topology_argument(parser)
    parser.add_argument("--no-build", action="store_true", help="the images are there")


def _roll(options: argparse.Namespace) -> int:
    from labda.cluster.running import Cluster  # noqa: PLC0415

    topology = chosen(options)
    Cluster(options.state, Console(), shape.read(topology)).roll(topology, build=not options.no_build)
    return Status.OK


def _replace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", type=given.name("NODE"), metavar="NODE",
                        help="whose disk is lost; its container and volume are removed")


def _replace(options: argparse.Namespace) -> int:
    from labda.cluster import engine, replacing  # noqa: PLC0415

    Console().line("replaced", replacing.replace(options.state, engine.of(options.state.root), options.node))
    return Status.OK


def _nothing(_parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def _stop(options: argparse.Namespace) -> int:
    _existing(options).stop()
    return Status.OK


def _down_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove the state directory too, and the images")
    parser.add_argument("--keep", action="store_true", help="keep both, and don't ask")


def _down(options: argparse.Namespace) -> int:
    from labda.cluster.running import ask_to_forget  # noqa: PLC0415

    cluster = _existing(options)
    forget = options.yes or (
        not options.keep and sys.stdin.isatty() and ask_to_forget(options.state.root, input)
    )
    cluster.down(forget=forget)
    if not forget:
        kept = f"{options.state.root} and the images: its keys found the next cluster (--yes removes both)"
        sys.stdout.write(f"kept       {kept}\n")
    return Status.OK


def _existing(options: argparse.Namespace) -> "Cluster":
    from labda.cluster.running import Cluster  # noqa: PLC0415

    root = options.state.root
    if not (root / "compose.yaml").exists():
        raise Refusal(f"no cluster in containers was ever started in {root}: name its directory with --state",
                      Status.NO_CLUSTER)
    return Cluster(options.state, Console(), shape.read(chosen(argparse.Namespace(topology=None, state=options.state))))


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "render": ("write compose.yaml and the workers' seccomp profile from the topology", _render_arguments, _render),
    "build": ("build the images", topology_argument, _build),
    "up": ("make what is missing, build, start, and wait until everything serves", _up_arguments, _up),
    "roll": ("restart everything, AZ by AZ, with new images, files and members", _roll_arguments, _roll),
    "replace": ("bring a node back that lost its disk", _replace_arguments, _replace),
    "stop": ("stop all containers; `up` starts them again with all that they keep", _nothing, _stop),
    "down": ("remove containers, networks and volumes, and with them all functions", _down_arguments, _down),
}
