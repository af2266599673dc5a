"""What is in the images, and what isn't."""

import contextlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from labda.cluster import engine
from tests.compose.conftest import labda

LABDA_BYTES_MAX = 350 * 1000 * 1000
SECRET = (".key", "root.json", "/token", "id_rsa", ".netrc", "pip.conf")
NOT_OURS = ("usr/share/", "etc/ssl/", "opt/labda/venv/lib/", "opt/labda/runtimes/")


@pytest.fixture(scope="module")
def built(state: Path) -> None:
    assert labda("cluster", "build", state=state, timeout_s=900).returncode == 0


@pytest.mark.timeout(900)
def test_the_services_image_is_small_and_runs_as_nobody_special(built: None) -> None:
    described = json.loads(engine.docker("image", "inspect", "labda:local"))[0]
    assert described["Size"] <= LABDA_BYTES_MAX
    for name in ("labda", "labda-etcd", "labda-nats", "labda-endpoint"):
        user = json.loads(engine.docker("image", "inspect", f"{name}:local"))[0]["Config"]["User"]
        assert user.partition(":")[0] not in {"", "root", "0"}, name


@pytest.mark.timeout(900)
def test_no_layer_holds_a_secret_or_a_checkouts_own_files(built: None) -> None:
    names = set(_files_of_all_layers("labda:local"))
    assert "opt/labda/app/chassis/config.py" in names
    ours = {name for name in names if not name.startswith(NOT_OURS)}
    assert [name for name in ours if name.endswith(SECRET)] == []
    assert [name for name in ours if "/tests/" in name or "/.git/" in name or "/.labda" in name] == []


def test_a_container_without_rights_is_told_what_is_missing(built: None) -> None:
    said = subprocess.run(
        ["docker", "run", "--rm", "--user", "0", "--network", "none", "labda:local", "doctor", "--runtimes",
         "/opt/labda/runtimes"], capture_output=True, text=True, check=False,
    )
    assert said.returncode == 5
    assert "missing  capabilities" in said.stdout
    assert "SYS_ADMIN" in said.stdout
    assert "seccomp-worker.json" in said.stdout


def _files_of_all_layers(image: str) -> list[str]:
    names: list[str] = []
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.size > 1024:
                    # Descriptions lie beside the layers: they are no archives.
                    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(content.read())) as it:
                        names += it.getnames()
    return names
