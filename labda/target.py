"""Which cluster a command means: the embedded one of a state directory, or the one in containers.

Owns the two kinds and their default directories. ``State`` is the embedded one; ``ContainerState`` answers the same
questions from the engine's labels, so that commands don't have to know which they talk to.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labda import endpoint, given
from labda.refusal import Refusal, Status
from labda.state import State, default_state

if TYPE_CHECKING:
    from storage.open import Stores

EMBEDDED, COMPOSE = "embedded", "compose"
TARGETS = (EMBEDDED, COMPOSE)
_REGION = "us-east-1"


def also_here(action: argparse.ArgumentParser) -> None:
    """--state and --target behind a command's action as well, where people write them."""
    action.add_argument("--state", type=given.path("--state"), default=argparse.SUPPRESS, metavar="DIR",
                        help=argparse.SUPPRESS)
    action.add_argument("--target", choices=TARGETS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def state_of(target: str, root: Path | None) -> State:
    """``root`` None: the target's default, .labda or .labda-compose beside it."""
    if target == COMPOSE:
        root = root or default_state().with_name(f"{default_state().name}-compose")
        return ContainerState(_folder(root))
    return State(_folder(root or default_state()))


def _folder(root: Path) -> Path:
    """A state directory may be missing; what is there of its path has to be folders. Raises Refusal."""
    root = root.expanduser().resolve()
    with contextlib.suppress(OSError):      # who may not look is told so by whoever opens it
        there = next(path for path in (root, *root.parents) if path.exists())
        if not there.is_dir():
            raise Refusal(f"--state is {root}, but {there} is a file: name a folder with --state", Status.USAGE)
    return root


@dataclass(frozen=True, slots=True)
class ContainerState(State):
    """The state directory of a cluster in containers (labda/cluster/trust.py draws its layout)."""

    @property
    def default(self) -> Path:
        return default_state().with_name(f"{default_state().name}-compose")

    @property
    def target(self) -> str:
        return COMPOSE

    @property
    def where_logs_are(self) -> str:
        return "what `docker logs` shows of its container"

    @property
    def end_command(self) -> str:
        return "labda cluster stop"

    @property
    def authority(self) -> Path:
        return self.root / "ca" / "root.pem"

    @property
    def resolver(self) -> Callable[[str], str]:
        """Registered addresses as this host reaches them, by what the engine said a moment ago."""
        from labda.cluster.addresses import Addresses  # noqa: PLC0415 - only for this target

        return Addresses(self.root)

    def cluster(self) -> dict[str, Any]:
        """As ``State.cluster``. Raises Refusal when no container runs."""
        from labda.cluster import engine  # noqa: PLC0415
        from labda.cluster.shape import GRPC  # noqa: PLC0415
        from labda.version import VERSION  # noqa: PLC0415

        there = engine.of(self.root)
        if not any(container.running for container in there.containers()):
            raise Refusal(
                f"no container of the cluster in {self.root} runs: start it with `labda cluster up`, or name its state "
                "directory with --state", Status.NO_CLUSTER,
            )
        where = endpoint.url(there.shape.endpoint)
        return {
            "endpoint": where, "authority": str(self.authority) if where.startswith("https:") else "",
            "region": _REGION, "version": VERSION,
            "account": self.credentials().account, "pid": os.getpid(),
            "placements": [f"{member.node}:{GRPC}" for member in there.shape.of("placement")],
            "runtimes": self.read("runtimes.json") or [],
        }

    def holder(self) -> int | None:
        return None

    def stores(self) -> "Stores":
        from labda.cluster import engine, founding  # noqa: PLC0415 - only for this target

        return founding.open_stores(self, engine.of(self.root).shape)

    @contextlib.contextmanager
    def stores_to_itself(self) -> Iterator[None]:
        from labda.cluster import engine, trust  # noqa: PLC0415

        there = engine.of(self.root)
        users = [one for one in there.containers() if one.running and one.service in trust.STORE_CLIENTS]
        if users:
            names = " ".join(f"{there.shape.project}-{one.node}" for one in users)
            raise Refusal(
                f"{engine.names(users)} use the stores: stop them with `docker stop {names}`, restore, and start them "
                "again with `docker start` and the same names"
            )
        yield
