"""One embedded cluster for nearly all tests of this folder: started once, ended and inspected after them."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import ROOT, Cluster, Footprint, Functions


@pytest.fixture(scope="session")
def _needs_a_host() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: workers build real sandboxes")
    if not (ROOT / ".runtimes").exists():
        pytest.fail("no .runtimes: run `make setup` first")


@pytest.fixture(scope="session")
def cluster(_needs_a_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The default shape: three AZs, a worker and a frontend in each. Traced: test_replay.py replays what all did."""
    running = Cluster(tmp_path_factory.mktemp("cluster") / "state")
    running.start("--trace")
    try:
        yield running
    finally:
        footprint = Footprint.of(running)
        status = running.stop()
    assert status == 0, "".join(running.output)
    assert len(footprint.processes) > 10, "the look at the running cluster saw it"
    assert footprint.namespaces
    assert footprint.sockets
    assert footprint.cgroups
    assert not footprint.left(running)


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[Any]:
    """boto3 on the shared endpoint, one attempt per call."""
    made = cluster.client()
    yield made
    made.close()


@pytest.fixture
def functions(client: Any) -> Iterator[Functions]:
    made = Functions(client)
    yield made
    made.close()
