"""Opening stores by URL."""

import subprocess
import sys
from pathlib import Path

import pytest

from chassis.certificates import TlsFiles
from storage.faults import StoreUnavailable
from storage.open import addresses, open_store
from tests.storage.contract import lease, pieces
from tests.storage.servers import Authorities
from tests.storage.worlds import ManualClock


async def test_a_store_reopened_holds_everything(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/a%20state"
    stores = open_store(url, ManualClock())
    await stores.metadata.put("a", b"1", expected=0)
    await stores.leases.put(lease(3, "m1"), expected=0)
    blob = await stores.blobs.put(pieces(b"x"))
    await stores.close()
    stores = open_store(url, ManualClock())
    assert [record.key for record in (await stores.metadata.list("")).records] == ["a", "leases/w1"]
    assert await stores.leases.fence("w1") == 3
    assert await stores.blobs.has(blob.sha256)
    await stores.close()
    assert (tmp_path / "a state").is_dir()


async def test_memory() -> None:
    stores = open_store("memory:", ManualClock())
    await stores.leases.put(lease(3, "m1"), expected=0)
    await stores.close()


async def test_a_cluster_is_opened_without_being_reached(tmp_path: Path) -> None:
    authority = Authorities()
    tls = authority.client("frontend")
    files = TlsFiles(authority=str(tmp_path / "ca"), certificate=str(tmp_path / "pem"), key=str(tmp_path / "key"))
    for path, content in ((files.authority, tls.authority), (files.certificate, tls.certificate), (files.key, tls.key)):
        Path(path).write_bytes(content)
    stores = open_store("etcd://a,b:12379", ManualClock(), blobs="nats://a,b", tls=files)
    await stores.close()
    stores = open_store("etcd://a/other/root", ManualClock(), tls=tls)
    with pytest.raises(StoreUnavailable, match="no `blobs` URL"):
        await stores.blobs.list()
    await stores.close()


def test_addresses_have_ports() -> None:
    assert addresses("etcd://a,b:12379") == ["a:2379", "b:12379"]
    assert addresses("nats://10.0.0.1,b") == ["10.0.0.1:4222", "b:4222"]


@pytest.mark.parametrize("url", ["etcd://a", "memory:"])
def test_a_cluster_asks_for_a_certificate(url: str) -> None:
    with pytest.raises(ValueError, match="set store_tls"):
        open_store(url, ManualClock(), blobs="nats://a")


def test_embedded_clusters_import_no_client() -> None:
    """They pay in memory and in time to start for what they use."""
    program = "import sys, storage.open; print([name for name in sys.modules if name in ('grpc', 'nats')])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("url", ["etcd:///root", "", "sqlite:relative", "sqlite://host/path", "redis://x", "/var/lib"])
def test_an_unknown_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///absolute/directory"):
        open_store(url, ManualClock())
