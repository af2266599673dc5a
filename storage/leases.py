"""Lease records and leadership, kept in any metadata store: encoding and fencing.

Owns the rule that a fencing number never falls. Refuses to know what a lease is for, when it ends by any
clock, and how metadata is kept: the compare-and-swap of the store below makes check and write one step.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from storage.faults import Conflict, StaleLease
from storage.interfaces import Leadership, LeaseRecord, MetadataStore, Record, Stored

LEASES = "leases/"
LEADERSHIP = "leadership/placement"


class MetadataLeases:
    """A LeaseStore over a MetadataStore. A deleted lease leaves a tombstone behind that holds the fence."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata

    async def get(self, worker: str) -> Stored[LeaseRecord] | None:
        return _lease(await self._metadata.get(LEASES + worker))

    async def list(self) -> tuple[Stored[LeaseRecord], ...]:
        listing = await self._metadata.list(LEASES)
        return tuple(lease for lease in map(_lease, listing.records) if lease is not None)

    async def fence(self, worker: str) -> int:
        return _fence(await self._metadata.get(LEASES + worker))

    async def put(self, record: LeaseRecord, *, expected: int) -> int:
        key = LEASES + record.worker
        found = await self._metadata.get(key)
        lease = _lease(found)
        revision = lease.revision if lease else 0
        if revision != expected:
            raise Conflict(key, expected, revision)
        _check_lease(record, lease, _fence(found))
        # A tombstone counts as "no record" for the caller, but the store below has to see its revision.
        return await self._metadata.put(key, _encode(asdict(record)), expected=found.revision if found else 0)

    async def delete(self, worker: str, *, expected: int) -> None:
        key = LEASES + worker
        lease = await self.get(worker)
        if lease is None or lease.revision != expected:
            raise Conflict(key, expected, lease.revision if lease else 0)
        await self._metadata.put(key, _encode({"fence": lease.value.number}), expected=expected)

    async def leadership(self) -> Stored[Leadership] | None:
        found = await self._metadata.get(LEADERSHIP)
        return Stored(value=Leadership(**json.loads(found.value)), revision=found.revision) if found else None

    async def lead(self, leadership: Leadership, *, expected: int) -> int:
        found = await self.leadership()
        revision = found.revision if found else 0
        if revision != expected:
            raise Conflict(LEADERSHIP, expected, revision)
        highest = found.value.term if found else 0
        if leadership.term < 1 or leadership.term < highest:
            raise StaleLease(LEADERSHIP, leadership.term, highest, "a term is at least 1 and never falls")
        if found and leadership.term == highest and leadership.holder != found.value.holder:
            why = f"it is {found.value.holder}'s, another holder needs a higher one"
            raise StaleLease(LEADERSHIP, leadership.term, highest, why)
        return await self._metadata.put(LEADERSHIP, _encode(asdict(leadership)), expected=expected)


def raised_lease(known: Sequence[bytes], by: int) -> bytes:
    """Records of one worker as a tombstone: nobody holds it, and the next number is above them all and `by` more."""
    return _encode({"fence": max(map(_fence_of, known)) + by})


def raised_leadership(known: Sequence[bytes], by: int) -> bytes:
    """Records of leadership as one that is over, of a term that nobody had."""
    highest = max(int(json.loads(value)["term"]) for value in known)
    return _encode(asdict(Leadership(holder="", term=highest + by, renewed_until=0.0)))


def _check_lease(record: LeaseRecord, lease: Stored[LeaseRecord] | None, fence: int) -> None:
    """Invariant 9: at most one manager per lease number, and numbers strictly increase."""
    subject = LEASES + record.worker
    if record.number < fence or record.number < 0:
        raise StaleLease(subject, record.number, fence, "a fencing number never falls")
    if record.number > fence:
        return
    if lease is None and fence:
        raise StaleLease(subject, record.number, fence, "it was used before the record was deleted")
    holder = lease.value.manager if lease else ""
    if record.manager not in {holder, ""}:
        whose = f"it is {holder}'s" if holder else "nobody holds the worker under it"
        raise StaleLease(subject, record.number, fence, f"{whose}, another manager needs a higher one")


def _lease(found: Record | None) -> Stored[LeaseRecord] | None:
    fields = json.loads(found.value) if found else {}
    if found is None or "worker" not in fields:
        return None
    return Stored(value=LeaseRecord(**fields), revision=found.revision)


def _fence(found: Record | None) -> int:
    return _fence_of(found.value) if found else 0


def _fence_of(value: bytes) -> int:
    fields = json.loads(value)
    return int(fields.get("fence", fields.get("number", 0)))


def _encode(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
