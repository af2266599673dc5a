"""Opening stores by URL."""

from pathlib import Path

import pytest

from storage.open import open_store
from tests.storage.contract import lease, pieces
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


@pytest.mark.parametrize("url", ["", "sqlite:relative", "sqlite://host/path", "redis://x", "/var/lib"])
def test_an_unknown_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///absolute/directory"):
        open_store(url, ManualClock())
