"""The container engine as the command uses it: docker and its compose plugin, by their command lines.

Owns those calls and what is said when the engine isn't there. Refuses to know what containers are for: it finds them by
the labels that ``compose_file`` gave them.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from labda.cluster import compose_file, shape
from labda.cluster.shape import DEPLOY, Shape
from labda.refusal import Refusal, Status

PROJECT_LABEL = "com.docker.compose.project"
LIVE_S = 0.5        # between two looks at a long command
GONE = "No such object"
LOOKS_MAX = 10      # at containers of which one goes each time
GET_ENGINE = "install a Docker engine (Debian: apt-get install docker.io; then systemctl start docker)"
GET_COMPOSE = "install Compose v2 (Debian 13: apt-get install docker-compose; else Docker's docker-compose-plugin)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a cluster, running or not."""

    id: str
    node: str
    service: str
    az: str
    host: str
    running: bool
    health: str                 # docker's word: starting, healthy, unhealthy; "" without a check
    pid: int                    # of its process 1, on this host; 0 when it doesn't run
    started: str
    addresses: Mapping[str, str] = field(default_factory=dict)  # network, without the project's name -> address

    @property
    def started_at(self) -> float:
        """Unix seconds."""
        return datetime.fromisoformat(self.started).timestamp()

    @property
    def address(self) -> str:
        """Where this host reaches it: over the region's network, over its AZ's when it is cut off; "" nowhere."""
        return self.addresses.get("region") or next((ip for ip in self.addresses.values() if ip), "")


class Engine:
    """One cluster's containers. ``root``: its state directory."""

    def __init__(self, form: Shape, root: Path) -> None:
        self.shape = form
        self.root = root
        self.file = root / "compose.yaml"

    def require(self) -> None:
        """Raises Refusal, saying how to get what is missing."""
        if os.geteuid() != 0:
            raise Refusal("containers' files are given to the users that run in them: run it as root (sudo)",
                          Status.HOST)
        if shutil.which("docker") is None:
            raise Refusal(f"there is no docker on this host: {GET_ENGINE}", Status.HOST)
        said = subprocess.run(
            ["docker", "version", "-f", "{{.Server.Version}}"], capture_output=True, text=True, check=False
        )
        if said.returncode != 0:
            why = (said.stderr.strip().splitlines() or ["no answer"])[-1]
            raise Refusal(f"the Docker engine doesn't answer ({why}): start it, or {GET_ENGINE}", Status.HOST)
        said = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False)
        if said.returncode != 0 or not said.stdout.strip().lstrip("v").startswith("2"):
            raise Refusal(f"docker compose is not there, or older than 2: {GET_COMPOSE}", Status.HOST)

    def write(self) -> None:
        self.file.write_text(compose_file.render(self.shape))

    def compose_argv(self, *words: str) -> list[str]:
        return ["docker", "compose", "--project-directory", str(DEPLOY), "-f", str(self.file), "--ansi", "never",
                "--progress", "plain", *words]

    def compose(
        self, *words: str, live: Callable[[float], None] | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        """Runs it; ``live`` is called with the seconds so far. Returns its output. Raises Refusal with its end."""
        log = self.root / "compose.log"
        began = time.monotonic()
        with log.open("w+") as output:
            process = subprocess.Popen(
                self.compose_argv(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "LABDA_STATE": str(self.root), **(environment or {})},
            )
            try:
                while True:
                    try:
                        status = process.wait(LIVE_S)
                        break
                    except subprocess.TimeoutExpired:
                        if live is not None:
                            live(time.monotonic() - began)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            output.seek(0)
            said = output.read()
        if status != 0:
            end = "\n".join(said.strip().splitlines()[-12:])
            raise Refusal(f"docker compose {words[0]} failed with status {status}; all of it is in {log}:\n{end}")
        return said

    def containers(self) -> list[Container]:
        """By node; those of `docker compose run` aren't nodes, and may go while one looks at what was listed."""
        for look in range(LOOKS_MAX):
            ids = docker("ps", "-aq", "--no-trunc", "--filter", f"label={PROJECT_LABEL}={self.shape.project}").split()
            try:
                found = [read(described) for described in json.loads(docker("inspect", *ids))] if ids else []
            except Refusal as refusal:
                if GONE not in refusal.message or look == LOOKS_MAX - 1:
                    raise
            else:
                return sorted((one for one in found if one is not None), key=lambda one: one.node)
        raise AssertionError("no look was taken")

    def is_healthy(self, node: str) -> bool:
        """Runs the container's own health check now: docker's last word may be half a minute old."""
        name = f"{self.shape.project}-{node}"
        test = json.loads(docker("inspect", "-f", "{{json .Config.Healthcheck.Test}}", name))
        said = subprocess.run(["docker", "exec", name, *test[1:]], capture_output=True, check=False)
        return said.returncode == 0

    def left(self) -> list[str]:
        """Whatever of this project the engine still has."""
        which = self._which
        found = [f"container {name}" for name in docker("ps", "-a", "--format", "{{.Names}}", *which).split()]
        found += [f"network {name}" for name in docker("network", "ls", "--format", "{{.Name}}", *which).split()]
        return found + [f"volume {name}" for name in self.volumes()]

    def volumes(self) -> list[str]:
        """All of this project, whatever its shape is now."""
        return docker("volume", "ls", "--format", "{{.Name}}", *self._which).split()

    def forget_images(self, *, all_of_them: bool) -> None:
        """Images that this project built and no container uses: all, or those that a later build has replaced."""
        docker("image", "prune", "--force", *(["--all"] if all_of_them else []), *self._which)

    @property
    def _which(self) -> tuple[str, str]:
        return "--filter", f"label={PROJECT_LABEL}={self.shape.project}"


def of(root: Path) -> Engine:
    """The cluster of that directory, in the shape in which it was started."""
    kept = root / "topology.toml"
    return Engine(shape.read(kept if kept.exists() else shape.TOPOLOGY), root)


def docker(*words: str) -> str:
    """One docker command's output. Raises Refusal."""
    said = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise Refusal(f"docker {words[0]} failed: {said.stderr.strip() or 'it says nothing'}", Status.HOST)
    return said.stdout


def read(described: Mapping[str, Any]) -> Container | None:
    """From what `docker inspect` says of one container; None when it is no node of ours."""
    config, state = described["Config"], described["State"]
    labels = config.get("Labels") or {}
    if "labda.node" not in labels or labels.get("com.docker.compose.oneoff") == "True":
        return None
    project = labels[PROJECT_LABEL]
    networks = described["NetworkSettings"]["Networks"]
    return Container(
        id=described["Id"], node=labels["labda.node"], service=labels["labda.service"], az=labels.get("labda.az", ""),
        host=labels.get("labda.host", ""), running=bool(state["Running"]), pid=int(state["Pid"]),
        started=state["StartedAt"], health=(state.get("Health") or {}).get("Status", ""),
        addresses={
            name.removeprefix(f"{project}_"): network["IPAddress"] for name, network in networks.items()
        } if state["Running"] else {},
    )


def names(containers: Sequence[Container]) -> str:
    return ", ".join(container.node for container in containers)
