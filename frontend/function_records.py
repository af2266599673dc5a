"""How function records are kept: their JSON, and the store with compare-and-swap.

Owns keys, encoding (environment encrypted), tombstones, and the retry of a lost race. Refuses to know what a change
means.

A deleted function leaves a tombstone under its key: a later function of the same name has to go on with its revision,
or its sandboxes would have the identity of the dead one's (invariant 8).
"""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from chassis.faults import Fault, FaultCode
from frontend.auth.keys import Cipher
from frontend.functions import Code, Configuration, FunctionRecord, Phase
from storage.faults import Conflict, OutcomeUnknown
from storage.interfaces import MetadataStore

FORMAT = 1
# Each lost race means that somebody else's change was made: this many in a row means a storm on one function.
ATTEMPTS_MAX = 16

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What is left of a deleted function."""

    account: str
    name: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the store has under a function's key, and the store's revision of it for compare-and-swap."""

    content: FunctionRecord | Tombstone
    stored: int

    @property
    def record(self) -> FunctionRecord | None:
        return self.content if isinstance(self.content, FunctionRecord) else None


class Contended(Fault):
    """Others changed the function each time before we could. Nothing was written."""

    code = FaultCode.EXHAUSTED
    definite = True


def key_of(account: str, name: str) -> str:
    return f"accounts/{account}/functions/{name}"


def encode(content: FunctionRecord | Tombstone, cipher: Cipher) -> bytes:
    key = key_of(content.account, content.name)
    if isinstance(content, Tombstone):
        document: dict[str, Any] = {"format": FORMAT, "deleted": True, "revision": content.revision}
        return json.dumps(document).encode()
    kept = content.configuration
    document = {
        "format": FORMAT,
        "version": content.version,
        "revision": content.revision,
        "revision_id": content.revision_id,
        "phase": content.phase.value,
        "configuration": {
            "role": kept.role,
            "runtime": kept.runtime,
            "handler": kept.handler,
            "description": kept.description,
            "timeout_s": kept.timeout_s,
            "memory_mb": kept.memory_mb,
            "tmp_mb": kept.tmp_mb,
            "environment": _sealed(kept.environment, key, cipher),
        },
        "code": {"sha256": content.code.sha256, "size_bytes": content.code.size_bytes},
        "last_modified": content.last_modified,
        "tags": dict(content.tags),
        "changed_at": content.changed_at,
    }
    return json.dumps(document).encode()


def decode(key: str, value: bytes, cipher: Cipher) -> FunctionRecord | Tombstone:
    """Raises ValueError for a format that this release doesn't know."""
    _, account, _, name = key.split("/", 3)
    document = json.loads(value)
    if document["format"] != FORMAT:
        raise ValueError(f"{key} is kept in format {document['format']}, this release reads {FORMAT}: upgrade labda")
    if document.get("deleted"):
        return Tombstone(account=account, name=name, revision=document["revision"])
    kept = dict(document["configuration"])
    kept["environment"] = _opened(kept["environment"], key, cipher)
    return FunctionRecord(
        account=account,
        name=name,
        version=document["version"],
        revision=document["revision"],
        revision_id=document["revision_id"],
        phase=Phase(document["phase"]),
        configuration=Configuration(**kept),
        code=Code(**document["code"]),
        last_modified=document["last_modified"],
        tags=document["tags"],
        changed_at=document["changed_at"],
    )


def _sealed(environment: Mapping[str, str] | None, key: str, cipher: Cipher) -> str | None:
    if environment is None:
        return None
    return base64.b64encode(cipher.encrypt(json.dumps(dict(environment)).encode(), key)).decode()


def _opened(sealed: str | None, key: str, cipher: Cipher) -> dict[str, str] | None:
    if sealed is None:
        return None
    opened: dict[str, str] = json.loads(cipher.decrypt(base64.b64decode(sealed), key))
    return opened


class FunctionStore:
    """Function records in the metadata store. Reads go to the store each time: an account sees its own writes."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher) -> None:
        self._metadata = metadata
        self._cipher = cipher

    async def get(self, account: str, name: str) -> FunctionRecord | None:
        kept = await self._kept(account, name)
        return kept.record if kept else None

    async def list(self, account: str) -> list[FunctionRecord]:
        """The account's functions by name."""
        listing = await self._metadata.list(f"accounts/{account}/functions/")
        contents = (decode(record.key, record.value, self._cipher) for record in listing.records)
        found = [content for content in contents if isinstance(content, FunctionRecord)]
        return sorted(found, key=lambda record: record.name)

    async def codes(self) -> frozenset[str]:
        """Digests of the code of all functions of all accounts. Raises ValueError when a record can't be read."""
        listing = await self._metadata.list("accounts/")
        contents = (
            decode(record.key, record.value, self._cipher)
            for record in listing.records if record.key.split("/", 3)[2:3] == ["functions"]
        )
        return frozenset(content.code.sha256 for content in contents if isinstance(content, FunctionRecord))

    async def create(
        self, account: str, name: str, make: Callable[[int], FunctionRecord]
    ) -> tuple[FunctionRecord, int] | None:
        """Write what ``make`` makes of the first free revision. None: the name is taken."""

        async def attempt() -> tuple[FunctionRecord, int] | None:
            kept = await self._kept(account, name)
            if kept is not None and kept.record is not None:
                return None
            record = make(kept.content.revision + 1 if kept else 1)
            return record, await self._put(record, kept)

        return await self._until_won(attempt)

    async def change(
        self, account: str, name: str, change: Callable[[FunctionRecord], FunctionRecord]
    ) -> tuple[FunctionRecord, int] | None:
        """Replace the record by what ``change`` makes of it, again from the start when a race is lost.

        Returns the new record and the store's revision; None when there is no such function. What ``change`` raises
        is passed on and nothing is written.
        """

        async def attempt() -> tuple[FunctionRecord, int] | None:
            kept = await self._kept(account, name)
            if kept is None or kept.record is None:
                return None
            record = change(kept.record)
            return record, await self._put(record, kept)

        return await self._until_won(attempt)

    async def delete(self, account: str, name: str) -> int | None:
        """Leave a tombstone; the store's revision of it. None when there is no such function."""

        async def attempt() -> tuple[Tombstone, int] | None:
            kept = await self._kept(account, name)
            if kept is None or kept.record is None:
                return None
            tombstone = Tombstone(account=account, name=name, revision=kept.record.revision)
            return tombstone, await self._put(tombstone, kept)

        done = await self._until_won(attempt)
        return done[1] if done else None

    async def _kept(self, account: str, name: str) -> Kept | None:
        key = key_of(account, name)
        record = await self._metadata.get(key)
        if record is None:
            return None
        return Kept(content=decode(key, record.value, self._cipher), stored=record.revision)

    async def _put(self, content: FunctionRecord | Tombstone, over: Kept | None) -> int:
        key = key_of(content.account, content.name)
        value = encode(content, self._cipher)
        try:
            return await self._metadata.put(key, value, expected=over.stored if over else 0)
        except OutcomeUnknown:
            # Every write has a RevisionId of its own, so that equal bytes are this very write.
            found = await self._metadata.get(key)
            if found is not None and found.value == value:
                return found.revision
            raise

    async def _until_won(
        self, attempt: Callable[[], Awaitable[tuple[Content, int] | None]]
    ) -> tuple[Content, int] | None:
        for _ in range(ATTEMPTS_MAX):
            try:
                return await attempt()
            except Conflict:
                continue
        raise Contended(f"gave up after {ATTEMPTS_MAX} lost races")
