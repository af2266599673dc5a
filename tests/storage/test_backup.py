"""Backups: from each kind of store into each other, damage, and what a restore may never do."""

import asyncio
import dataclasses
import itertools
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.backup import RAISE, Identity, OtherKey, StoreNotEmpty, back_up, restore
from storage.backup_file import FORMAT, ArchiveDamaged, ArchiveNewer
from storage.faults import BlobMissing, StaleLease, StoreUnavailable
from storage.founding import found_etcd, found_nats
from storage.interfaces import Blob, Leadership
from storage.leases import MetadataLeases
from storage.memory import MemoryBlobs, MemoryMetadata
from storage.open import Stores, open_store
from tests.storage.contract import CONTENTS, lease, pieces
from tests.storage.servers import EtcdTrio, NatsTrio
from tests.storage.worlds import ManualClock

HERE = Identity(cluster="here", data_key="key")
NOW = 1_000_000.0


def memory() -> Stores:
    metadata = MemoryMetadata(ManualClock())
    return Stores(metadata=metadata, blobs=MemoryBlobs(), leases=MetadataLeases(metadata))


async def fill(stores: Stores) -> dict[str, bytes]:
    """Some of everything; the records that are carried as they are."""
    content = {f"accounts/1/functions/{number}": b"%d" % number * number for number in range(60)}
    content |= {"keys/k": bytes(range(256)), "registry/accounts": b"{}"}
    for key, value in content.items():
        await stores.metadata.put(key, value, expected=0)
    for blob in CONTENTS:
        await stores.blobs.put(pieces(blob))
    await stores.leases.put(lease(7, "m1"), expected=0)
    revision = await stores.leases.put(lease(9, "m1", worker="w2"), expected=0)
    await stores.leases.delete("w2", expected=revision)
    await stores.leases.lead(Leadership(holder="p1", term=3, renewed_until=5.0), expected=0)
    await stores.metadata.acknowledge("frontend-1", 5, 10.0)
    return content


async def content_of(stores: Stores) -> dict[str, bytes]:
    listing = await stores.metadata.list("")
    return {record.key: record.value for record in listing.records if not record.key.startswith("lea")}


async def check(stores: Stores, content: dict[str, bytes], *, fence: int) -> None:
    assert await content_of(stores) == content
    found = [b"".join([chunk async for chunk in stores.blobs.get(blob.sha256)]) for blob in await stores.blobs.list()]
    assert sorted(found) == sorted(CONTENTS)
    assert await stores.leases.list() == ()
    assert await stores.leases.fence("w1") == 7 + fence
    assert await stores.leases.fence("w2") == 9 + fence
    leadership = await stores.leases.leadership()
    assert leadership is not None
    assert leadership.value == Leadership(holder="", term=3 + fence, renewed_until=0.0)
    assert await stores.metadata.acknowledgements() == ()
    with pytest.raises(StaleLease):
        await stores.leases.put(lease(8, "m2"), expected=0)


@pytest.fixture(scope="module")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdTrio]:
    trio = EtcdTrio(tmp_path_factory.mktemp("etcd"))
    try:
        trio.start_all()
        await trio.ready()
        await found_etcd(trio.addresses, trio.authorities.client("operator"))
        yield trio
    finally:
        trio.end()


@pytest.fixture(scope="module")
async def nats(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdTrio) -> AsyncIterator[NatsTrio]:
    trio = NatsTrio(tmp_path_factory.mktemp("nats"), etcd.authorities)
    try:
        trio.start_all()
        await trio.ready()
        await found_nats(trio.addresses, trio.authorities.client("operator"))
        yield trio
    finally:
        trio.end()


async def test_a_state_moves_from_sqlite_to_a_cluster_and_back(
    tmp_path: Path, etcd: EtcdTrio, nats: NatsTrio
) -> None:
    first = open_store(f"sqlite://{tmp_path}/first", ManualClock())
    cluster = open_store(
        f"etcd://{','.join(etcd.addresses)}", ManualClock(), blobs=f"nats://{','.join(nats.addresses)}",
        tls=etcd.authorities.client("operator"),
    )
    second = open_store(f"sqlite://{tmp_path}/second", ManualClock())
    try:
        content = await fill(first)
        saved = await back_up(first, tmp_path / "1", HERE, now=NOW)
        assert (saved.records, saved.blobs, saved.size_bytes) == (65, 4, sum(map(len, CONTENTS)))
        await restore(cluster, tmp_path / "1", HERE, replace=False)
        await check(cluster, content, fence=RAISE)
        assert (await back_up(cluster, tmp_path / "2", HERE, now=NOW)).blobs == 4
        await restore(second, tmp_path / "2", HERE, replace=False)
        await check(second, content, fence=2 * RAISE)
    finally:
        for stores in (first, cluster, second):
            await stores.close()


async def test_a_backup_is_for_its_owner_and_any_tar_lists_it(tmp_path: Path) -> None:
    stores = memory()
    await fill(stores)
    path = tmp_path / "backup"
    await back_up(stores, path, HERE, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert names[:2] == ["labda-backup.json", "records.ndjson"]
    assert names[-1] == "manifest.json"
    assert names[2:-1] == [f"blobs/{blob.sha256}" for blob in await stores.blobs.list()]
    assert list(tmp_path.iterdir()) == [path]


async def test_a_backup_is_saved_when_its_name_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "backup"
    synced: list[tuple[int, bool]] = []     # what, and whether the backup had its name by then
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    await back_up(memory(), path, HERE, now=NOW)
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


async def test_what_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    stores, other = memory(), memory()
    content = await fill(stores)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    await other.metadata.put("accounts/2/functions/x", b"", expected=0)
    await other.metadata.put("keys/k", b"another", expected=0)
    kept = await other.blobs.put(pieces(b"kept"))
    with pytest.raises(StoreNotEmpty, match=r"2 records and 1 blobs.*--yes"):
        await restore(other, tmp_path / "backup", HERE, replace=False)
    assert len((await other.metadata.list("")).records) == 2
    await restore(other, tmp_path / "backup", HERE, replace=True)
    assert await content_of(other) == content
    assert await other.blobs.has(kept.sha256)
    await restore(other, tmp_path / "backup", HERE, replace=True)
    assert await content_of(other) == content


async def test_numbers_never_fall(tmp_path: Path) -> None:
    """Whatever the store knows by now that the backup doesn't, and whatever nodes know that neither does."""
    stores = memory()
    await fill(stores)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    found = await stores.leases.get("w1")
    assert found is not None
    await stores.leases.put(lease(5_000_000, "m2"), expected=found.revision)
    await stores.leases.put(lease(4, "m2", worker="new"), expected=0)
    await restore(stores, tmp_path / "backup", HERE, replace=True)
    assert await stores.leases.fence("w1") == 5_000_000 + RAISE
    assert await stores.leases.fence("new") == 4 + RAISE
    leadership = await stores.leases.leadership()
    assert leadership is not None
    assert leadership.value.term == 3 + RAISE


async def test_enrolments_are_of_one_cluster(tmp_path: Path) -> None:
    stores = memory()
    for node in ("a", "b"):
        await stores.metadata.put(f"enrolment/{node}", b"archived", expected=0)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)

    async def into(cluster: str) -> dict[str, bytes]:
        target = memory()
        await target.metadata.put("enrolment/a", b"stored", expected=0)
        await target.metadata.put("enrolment/c", b"stored", expected=0)
        await restore(
            target, tmp_path / "backup", Identity(cluster=cluster), replace=False,
            join=lambda archived, stored: archived + stored,
        )
        return await content_of(target)

    assert await into("here") == {
        "enrolment/a": b"archivedstored", "enrolment/b": b"archived", "enrolment/c": b"stored",
    }
    assert await into("elsewhere") == {"enrolment/a": b"stored", "enrolment/c": b"stored"}


async def test_what_stays_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    """A key that was revoked since the backup, and one that was made and revoked since."""
    stores = memory()
    old = await stores.metadata.put("keys/old", b"secret", expected=0)
    await stores.metadata.put("keys/live", b"secret", expected=0)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    await stores.metadata.put("keys/old", b"mark", expected=old)
    await stores.metadata.put("keys/new", b"mark", expected=0)
    await stores.metadata.put("keys/later", b"secret", expected=0)
    await restore(stores, tmp_path / "backup", HERE, replace=True, stays=lambda _, value: value == b"mark")
    assert await content_of(stores) == {"keys/old": b"mark", "keys/live": b"secret", "keys/new": b"mark"}


async def test_a_backup_sealed_with_another_key_is_refused(tmp_path: Path) -> None:
    stores = memory()
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    with pytest.raises(OtherKey, match=r"data key key, and this cluster's is missing"):
        await restore(memory(), tmp_path / "backup", Identity(data_key="missing"), replace=False)


async def test_it_is_of_one_revision_while_others_write(tmp_path: Path) -> None:
    stores = open_store(f"sqlite://{tmp_path}/store", ManualClock())
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for key in ("accounts/first", "accounts/second"):
                await stores.metadata.put(key, b"%d" % number, expected=None)

    writing = asyncio.create_task(write())
    try:
        for turn in range(10):
            await asyncio.sleep(0.01)
            path = tmp_path / str(turn)
            saved = await back_up(stores, path, HERE, now=NOW)
            target = memory()
            await restore(target, path, HERE, replace=False)
            found = {key: int(value) for key, value in (await content_of(target)).items()}
            if found:
                assert found.get("accounts/first", 0) - found.get("accounts/second", 0) in {0, 1}
                assert saved.revision == found["accounts/first"] + found.get("accounts/second", 0)
    finally:
        stop.set()
        await writing
        await stores.close()


# ---------------------------------------------------------------- what is wrong with a file or a store


async def archive(tmp_path: Path) -> Path:
    stores = memory()
    await fill(stores)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    return tmp_path / "backup"


async def refused(path: Path) -> ArchiveDamaged:
    target = memory()
    with pytest.raises(ArchiveDamaged) as damaged:
        await restore(target, path, HERE, replace=False)
    assert (await target.metadata.list("")).records == ()
    assert await target.blobs.list() == ()
    return damaged.value


async def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path: Path) -> None:
    path = await archive(tmp_path)
    content = path.read_bytes()
    with tarfile.open(path) as found:
        members = [member for member in found if member.size and member.name != "manifest.json"]
    for member in members:
        for at in (member.offset_data, member.offset_data + member.size - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            damaged = await refused(path)
            assert damaged.entry == member.name
            assert member.name in damaged.message


async def test_an_archive_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = await archive(tmp_path)
    content = path.read_bytes()
    with tarfile.open(path) as found:
        members = found.getmembers()
    for member in members[1:]:
        for at in (member.offset, member.offset_data, member.offset_data + member.size // 2):
            path.write_bytes(content[:at])
            await refused(path)


async def test_an_entry_that_was_taken_out_is_named(tmp_path: Path) -> None:
    path = await archive(tmp_path)
    content = path.read_bytes()
    with tarfile.open(path) as found:
        members = found.getmembers()
    for member, following in itertools.pairwise(members[1:]):
        path.write_bytes(content[: member.offset] + content[following.offset :])
        assert (await refused(path)).entry == member.name


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 1000], ids=["empty", "text"])
async def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    await refused(path)


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = await archive(tmp_path)
    old, new = json.dumps({"format": FORMAT})[1:-1].encode(), json.dumps({"format": FORMAT + 1})[1:-1].encode()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ArchiveNewer, match=f"format {FORMAT + 1}.*newer program"):
        await restore(memory(), path, HERE, replace=False)


async def test_a_corrupt_blob_is_left_out_and_named(tmp_path: Path) -> None:
    stores = memory()
    content = await fill(stores)
    assert isinstance(stores.blobs, MemoryBlobs)
    corrupt = max(await stores.blobs.list(), key=lambda blob: blob.size_bytes)
    stores.blobs.damage(corrupt.sha256)
    saved = await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    assert saved.left_out == (corrupt.sha256,)
    target = memory()
    await restore(target, tmp_path / "backup", HERE, replace=False)
    assert await content_of(target) == content
    assert not await target.blobs.has(corrupt.sha256)


async def test_a_corrupt_blob_is_mended(tmp_path: Path) -> None:
    """A listing names it as if nothing were wrong."""
    stores = memory()
    await fill(stores)
    await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    assert isinstance(stores.blobs, MemoryBlobs)
    corrupt = max(await stores.blobs.list(), key=lambda blob: blob.size_bytes)
    stores.blobs.damage(corrupt.sha256)
    restored = await restore(stores, tmp_path / "backup", HERE, replace=True)
    assert (restored.blobs, restored.size_bytes) == (len(CONTENTS), corrupt.size_bytes)
    found = [b"".join([chunk async for chunk in stores.blobs.get(blob.sha256)]) for blob in await stores.blobs.list()]
    assert sorted(found) == sorted(CONTENTS)


class Vanishing(MemoryBlobs):
    """Lists a blob that is collected a moment later; or breaks down."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self._fault = fault

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        yield b"x"
        raise self._fault

    async def list(self) -> tuple[Blob, ...]:
        return (Blob(sha256="0" * 64, size_bytes=2),)


async def test_a_blob_that_is_collected_meanwhile_is_no_loss(tmp_path: Path) -> None:
    stores = dataclasses.replace(memory(), blobs=Vanishing(BlobMissing("0" * 64)))
    saved = await back_up(stores, tmp_path / "backup", HERE, now=NOW)
    assert (saved.blobs, saved.left_out) == (0, ())
    await restore(memory(), tmp_path / "backup", HERE, replace=False)


async def test_a_backup_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    path = await archive(tmp_path)
    before = path.read_bytes()
    stores = dataclasses.replace(memory(), blobs=Vanishing(StoreUnavailable("away")))
    with pytest.raises(StoreUnavailable):
        await back_up(stores, path, HERE, now=NOW)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
