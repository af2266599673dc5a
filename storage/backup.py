"""Backups: all metadata of one revision and all blobs in one file, and back into a store of any kind.

Owns what is carried and what a restore may never do. Refuses to know where the stores are and who runs.

Carried as they are: functions, accounts, keys, and every blob. Of leases only how far their numbers went: a lease
itself is a promise among processes that the new store doesn't know. Not carried: acknowledgements. Enrolments of nodes
are carried within one cluster only: another one has its own authority, which issued none of them. Blobs that the store
holds besides stay: whoever collects unused code removes them.

A restore never lowers a fencing number or a term. What was given since the backup isn't in it, and nodes may remember:
so each becomes higher by RAISE than the highest that archive and store know of. Nor does it undo a revocation that the
store knows of; what such a record looks like is told by whoever calls.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.backup_file import Archive, ArchiveWriter, Head
from storage.faults import BlobCorrupt, BlobMissing, StorageFault
from storage.interfaces import Record
from storage.leases import LEADERSHIP, LEASES, raised_leadership, raised_lease
from storage.open import Stores

RAISE = 1_000_000       # numbers that may have been given since the backup was made; they have 64 bits
ENROLMENT = "enrolment/"
PUTS_AT_ONCE = 16
Join = Callable[[bytes, bytes], bytes]
Stays = Callable[[str, bytes], bool]


class StoreNotEmpty(StorageFault):
    """There is something in the store that a restore would replace. Nothing was changed."""

    def __init__(self, records: int, blobs: int) -> None:
        super().__init__(
            f"the store holds {records} records and {blobs} blobs, which the backup would replace: to have that, "
            "say --yes"
        )


class OtherKey(StorageFault):
    """The backup's values are sealed with a key that this cluster doesn't have. Nothing was changed."""

    def __init__(self, meant: str, found: str) -> None:
        super().__init__(
            f"the backup's secrets are sealed with data key {meant}, and this cluster's is {found}: first put the "
            "data.key of the cluster that it was made of into the place of this one's"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Of the cluster whose stores these are. Empty: not known, and not compared."""

    cluster: str = ""       # fingerprint of its authority
    data_key: str = ""      # id of its data key


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was carried."""

    records: int
    blobs: int
    size_bytes: int                     # of the blobs
    revision: int                       # of the store that the backup is of
    left_out: tuple[str, ...] = ()      # blobs that were corrupt


async def back_up(stores: Stores, path: Path, identity: Identity, *, now: float) -> Summary:
    """Writes `path`, whole or not at all, while the cluster runs. ``now``: Unix seconds.

    A blob that goes meanwhile is one that nothing refers to. Raises StorageFault, OSError.
    """
    listing = await stores.metadata.list("")
    writer = ArchiveWriter(path)
    try:
        writer.head(Head(
            made_at=now, revision=listing.revision, records=len(listing.records), cluster=identity.cluster,
            data_key=identity.data_key,
        ))
        writer.records(_lines(listing.records), sum(map(len, _lines(listing.records))))
        carried, size_bytes = 0, 0
        left_out: list[str] = []
        # Listed after the records: whatever they name is among these.
        for blob in await stores.blobs.list():
            try:
                await writer.blob(blob.sha256, blob.size_bytes, stores.blobs.get(blob.sha256))
            except BlobMissing:
                continue
            except BlobCorrupt:
                left_out.append(blob.sha256)
                continue
            carried += 1
            size_bytes += blob.size_bytes
        writer.publish()
    except BaseException:
        writer.discard()
        raise
    return Summary(
        records=len(listing.records), blobs=carried, size_bytes=size_bytes, revision=listing.revision,
        left_out=tuple(left_out),
    )


async def restore(
    stores: Stores, path: Path, identity: Identity, *, replace: bool, join: Join = lambda _archived, stored: stored,
    stays: Stays = lambda _key, _value: False,
) -> Summary:
    """Makes the stores hold what the backup holds, while no service of the cluster runs.

    ``join`` makes one of two enrolments of a node, the archived one and the store's: no revocation is forgotten.
    ``stays`` says which records of the store stay as they are, whatever the backup has of them: marks of revoked keys.
    Blobs come first, also those that are there and corrupt, and deletions last. One that was cut short is begun again,
    with ``replace``. Raises ArchiveDamaged, ArchiveNewer, OtherKey, StoreNotEmpty (all before anything is changed),
    StorageFault, OSError.
    """
    archive = await asyncio.to_thread(Archive, path)
    if identity.data_key and archive.head.data_key and identity.data_key != archive.head.data_key:
        raise OtherKey(archive.head.data_key, identity.data_key)
    there = {record.key: record for record in (await stores.metadata.list("")).records}
    blobs = {blob.sha256 for blob in await stores.blobs.list()}
    content = [key for key in there if not key.startswith((LEASES, LEADERSHIP, ENROLMENT))]
    if (content or blobs) and not replace:
        raise StoreNotEmpty(len(content), len(blobs))

    size_bytes = 0
    for sha256 in archive.blobs:
        if sha256 not in blobs or not await _whole(stores, sha256):
            size_bytes += (await stores.blobs.put(archive.blob(sha256))).size_bytes
    same_cluster = bool(identity.cluster) and identity.cluster == archive.head.cluster
    meant = _meant(archive, there, join if same_cluster else None)
    meant |= {key: there[key].value for key in content if stays(key, there[key].value)}
    await _put_all(stores, meant, there)
    gone = [key for key in content if key not in meant]
    for key in gone:
        await stores.metadata.delete(key, expected=None)
    return Summary(
        records=len(meant), blobs=len(archive.blobs), size_bytes=size_bytes, revision=archive.head.revision
    )


async def _whole(stores: Stores, sha256: str) -> bool:
    """Whether a blob that is listed is what it is listed as: only reading tells."""
    try:
        async for _ in stores.blobs.get(sha256):
            pass
    except (BlobCorrupt, BlobMissing):
        return False
    return True


def _meant(archive: Archive, there: dict[str, Record], join: Join | None) -> dict[str, bytes]:
    """What the store's records have to be. ``join`` None: enrolments are another cluster's."""
    found = {fields["key"]: base64.b64decode(fields["value"]) for fields in archive.records()}
    meant = {
        key: value for key, value in found.items()
        if not key.startswith((LEASES, LEADERSHIP, ENROLMENT))
    }
    for key in {*found, *there}:
        known = [value for value in (found.get(key), there[key].value if key in there else None) if value is not None]
        if key.startswith(LEASES):
            meant[key] = raised_lease(known, RAISE)
        elif key == LEADERSHIP:
            meant[key] = raised_leadership(known, RAISE)
        elif key.startswith(ENROLMENT) and key in found and join is not None:
            meant[key] = join(found[key], there[key].value) if key in there else found[key]
    return meant


async def _put_all(stores: Stores, meant: dict[str, bytes], there: dict[str, Record]) -> None:
    """A few at once, so that a store that syncs each write commits them together."""
    async def put(key: str, value: bytes) -> None:
        known = there.get(key)
        if known is None or known.value != value:
            await stores.metadata.put(key, value, expected=known.revision if known else 0)

    items = sorted(meant.items())
    for start in range(0, len(items), PUTS_AT_ONCE):
        await asyncio.gather(*(put(key, value) for key, value in items[start : start + PUTS_AT_ONCE]))


def _lines(records: Iterable[Record]) -> Iterator[bytes]:
    for record in records:
        fields = {"key": record.key, "value": base64.b64encode(record.value).decode(), "revision": record.revision}
        yield json.dumps(fields).encode() + b"\n"
