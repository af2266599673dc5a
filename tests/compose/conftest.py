"""A cluster in containers for tests: its own project, port and state directory, and nothing left of it afterwards."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labda.cluster import engine, shape
from labda.refusal import Refusal

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "labda-test"
PORT = 9700
# The committed shape, beside a cluster that somebody has.
TOPOLOGY = (
    shape.TOPOLOGY.read_text().replace('project = "labda"', f'project = "{PROJECT}"').replace(":9000", f":{PORT}")
)


def labda(*words: str, state: Path, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """The command as a person types it."""
    return subprocess.run(
        [sys.executable, "-m", "labda", *words, "--state", str(state)], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=timeout_s,
    )


@pytest.fixture(scope="session")
def docker() -> None:
    """Skips, naming what is missing."""
    try:
        engine.Engine(shape.Shape(), ROOT).require()
    except Refusal as refusal:
        pytest.skip(f"needs a container engine: {refusal.message}")


@pytest.fixture(scope="module")
def state(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a topology of the tests' own. Whatever becomes of the test, nothing stays."""
    root = tmp_path_factory.mktemp("compose") / "state"
    root.mkdir(mode=0o700)
    (root / "topology.toml").write_text(TOPOLOGY)
    left = engine.of(root)
    try:
        yield root
    finally:
        if left.left():
            left.write()
            left.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "2")
            for volume in left.volumes():   # of members that the topology named meanwhile
                engine.docker("volume", "rm", volume)
        shutil.rmtree(root, ignore_errors=True)
