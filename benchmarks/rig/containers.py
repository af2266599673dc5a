"""A cluster in containers to measure: the committed shape, as `labda cluster up` makes it, under a name and a port of
its own, and gone afterwards."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.rig.client import Client
from benchmarks.rig.cluster import ROOT
from labda.children import descendants
from labda.cluster import engine, shape
from labda.target import COMPOSE, ContainerState

PROJECT = "labda-bench"
PORT = 9800
UP_S = 1800.0       # with the images built from nothing


class Containers:
    """``with Containers() as cluster``: up within, gone after it, whatever happens."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="labda-bench-"))
        self.state = ContainerState(self._folder / "state")

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))    # told to end, it cleans up
        self.state.root.mkdir(mode=0o700)
        text = shape.TOPOLOGY.read_text()
        named = text.replace('project = "labda"', f'project = "{PROJECT}"').replace(":9000", f":{PORT}")
        assert named != text, "the committed topology names its project and its endpoint"
        (self.state.root / "topology.toml").write_text(named)
        try:
            self._labda("cluster", "up")
        except BaseException:
            self._down()
            raise
        self._cluster = self.state.cluster()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._down()

    @property
    def arguments(self) -> list[str]:
        """What any `labda` command is told to mean this cluster."""
        return ["--target", COMPOSE, "--state", str(self.state.root)]

    def client(self) -> Client:
        """A connection by way of the endpoint. Whoever asks closes it."""
        return Client(self._cluster["endpoint"], self.state.credentials(), self._cluster["region"])

    def groups(self) -> dict[str, list[int]]:
        """Pids on this host by container."""
        return {
            one.node: [one.pid, *descendants(one.pid)] for one in engine.of(self.state.root).containers() if one.pid
        }

    def pids(self) -> list[int]:
        return [pid for pids in self.groups().values() for pid in pids]

    def _labda(self, *words: str) -> None:
        command = [sys.executable, "-m", "labda", *words, "--state", str(self.state.root)]
        said = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=UP_S
        )
        if said.returncode:
            raise SystemExit(f"labda {' '.join(words)} failed: {said.stderr}")

    def _down(self) -> None:
        self._labda("cluster", "down", "--yes")
        shutil.rmtree(self._folder, ignore_errors=True)
