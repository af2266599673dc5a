"""The three interfaces of storage: metadata with compare-and-swap and watch, blobs by digest, and lease
records.

Owns the types and the promises that every implementation keeps (the contract suite in tests/storage checks
them). Refuses to know what is in a value, how it is kept, and who calls.
"""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

KEY_CHARACTERS_MAX = 1024
# etcd refuses requests above 1.5 MiB; the embedded store must not accept what a cluster would refuse.
VALUE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One key with its value. `revision` is the store-wide revision of the last change of this key."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The records under a prefix, by key, as of `revision`: watch after that revision and nothing is missed.
    """

    records: tuple[Record, ...]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one key. `value` is None when the key was deleted."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """A watcher has applied everything up to `revision`; after `expires_at` (Unix seconds) it serves nothing.
    """

    watcher: str
    revision: int
    expires_at: float


class MetadataStore(Protocol):
    """Small records under keys, one store-wide revision that grows by every change, strictly serialisable
    writes.

    Keys are 1 to 1,024 printable ASCII characters without blanks, values at most 1 MiB; others raise
    ValueError. A write that raises a fault with `definite` false, or that was cancelled, may have happened:
    read again.
    """

    async def get(self, key: str) -> Record | None:
        """The record as of now (never from a cache), or None."""
        ...

    async def list(self, prefix: str) -> Listing:
        """All records whose key begins with `prefix`, from one instant."""
        ...

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        """Write by compare-and-swap and return the change's revision; it is durable then.

        `expected` is the key's revision as the caller knows it, 0 for "must not exist", None for "whatever is
        there". Raises Conflict, StoreUnavailable, OutcomeUnknown.
        """
        ...

    async def delete(self, key: str, *, expected: int | None) -> int:
        """Delete by compare-and-swap (`expected` at least 1, or None) and return the change's revision.

        With None, deleting what is not there changes nothing and returns the store's revision.
        Raises Conflict, StoreUnavailable, OutcomeUnknown.
        """
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Change]:
        """Every change under `prefix` with a revision above `after`, in order, for ever.

        Raises WatchGap when changes after `after` are gone from the log, at the beginning or because the
        consumer was too slow, and when `after` lies in this store's future; StoreClosed when the store is
        closed.
        """
        ...

    async def acknowledge(self, watcher: str, revision: int, lease_s: float) -> None:
        """Promise that `watcher` has applied everything up to `revision`, for `lease_s` seconds from now on.

        A promise is renewed with the same or a higher revision (a lower one leaves the higher), and given
        back with `lease_s` 0. A watcher must not serve from what it watches beyond its lease, counted from
        *before* it called. A watcher that starts acknowledges 0 first, then lists, acknowledges the listing's
        revision, and only then serves: so that no change between its listing and its first acknowledgement
        overlooks it.
        """
        ...

    async def acknowledgements(self) -> tuple[Acknowledgement, ...]:
        """The promises that have not lapsed by the store's clock, by watcher.

        A change of revision r binds everywhere once none of these has a revision below r.
        """
        ...

    async def close(self) -> None:
        """End watches and refuse further work. What was begun ends first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What was put: its digest (64 lower-case hexadecimal digits) and size.

    `put_id` is another one after each time that the bytes were put; equality is that of the content.
    """

    sha256: str
    size_bytes: int
    put_id: str = field(default="", compare=False)


class BlobStore(Protocol):
    """Immutable byte strings named by their SHA-256. A digest that is malformed raises ValueError."""

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        """Store what `chunks` yields; durable when this returns. Nothing is kept when `chunks` raises.

        Putting the same bytes again is harmless and replaces a corrupt copy. Raises StoreUnavailable.
        """
        ...

    def get(self, sha256: str) -> AsyncIterator[bytes]:
        """The blob in chunks, verified: the last chunk is withheld until the whole digest was found right.

        Raises BlobMissing before the first chunk, BlobCorrupt instead of the last one.
        """
        ...

    async def has(self, sha256: str) -> bool:
        """Whether the blob is there; its bytes are not read."""
        ...

    async def delete(self, blob: Blob) -> bool:
        """Forget the blob unless it was put again since `blob` was listed; whether it was forgotten."""
        ...

    async def list(self) -> tuple[Blob, ...]:
        """All blobs, by digest."""
        ...

    async def sweep(self) -> None:
        """Remove what puts left behind whose process crashed. Several processes may sweep at once."""
        ...

    async def close(self) -> None:
        """Refuse further work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One worker's lease: who holds the whole worker, under which fencing number, and until when.

    `manager` is empty while nobody holds it. `number` is the fencing number. `soft_end` and `hard_end` are
    Unix seconds. `state` is placement's word, kept and not interpreted.
    """

    worker: str
    host: str
    incarnation: str
    manager: str
    number: int
    soft_end: float
    hard_end: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """Which placement is the active one: holder, fencing term, and until when it may act (Unix seconds)."""

    holder: str
    term: int
    renewed_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Generic[T]):
    """A value with the revision that the next compare-and-swap has to name."""

    value: T
    revision: int


class LeaseStore(Protocol):
    """Lease records and placement's leadership, changed by compare-and-swap only; fencing numbers only grow.

    Enforced here, whatever the caller believes: a number never falls, also not over a deletion; under one
    number there is one manager (it may give the worker back, nobody else may take it without a higher
    number). The same holds for leadership's term and holder. A write whose outcome is unknown says so
    (`definite` false).
    """

    async def get(self, worker: str) -> Stored[LeaseRecord] | None:
        """The worker's lease record, or None."""
        ...

    async def list(self) -> tuple[Stored[LeaseRecord], ...]:
        """All lease records, by worker."""
        ...

    async def fence(self, worker: str) -> int:
        """The highest number ever given for this worker (0: none), also when its record was deleted."""
        ...

    async def put(self, record: LeaseRecord, *, expected: int) -> int:
        """Write by compare-and-swap (`expected` 0: there is no record) and return the new revision.

        Raises Conflict, StaleLease, StoreUnavailable, OutcomeUnknown.
        """
        ...

    async def delete(self, worker: str, *, expected: int) -> None:
        """Delete by compare-and-swap; the fence stays. A new record needs a number above it.

        Raises Conflict, StoreUnavailable, OutcomeUnknown.
        """
        ...

    async def leadership(self) -> Stored[Leadership] | None:
        """Who leads placement by the record, or None when nobody ever did."""
        ...

    async def lead(self, leadership: Leadership, *, expected: int) -> int:
        """Take over (a higher term) or renew (the same term and holder) by compare-and-swap; the new
        revision.

        Whether the former holder's time is over is for the caller to judge, by its clock and drift bound.
        Raises Conflict, StaleLease, StoreUnavailable, OutcomeUnknown.
        """
        ...


def check_key(key: str) -> None:
    """Raise ValueError unless `key` is one that every implementation can keep."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not _is_plain(key):
        raise ValueError(
            f"key {key[:80]!r} is not 1 to {KEY_CHARACTERS_MAX} printable ASCII characters without blanks"
        )


def check_prefix(prefix: str) -> None:
    """Raise ValueError unless `prefix` can begin a key; the empty prefix means all keys."""
    if prefix:
        check_key(prefix)


def check_value(key: str, value: bytes) -> None:
    """Raise ValueError when `value` is too large to be metadata."""
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(
            f"the value of {key} has {len(value)} bytes, metadata holds at most {VALUE_BYTES_MAX}: use a blob"
        )


def check_delete(expected: int | None) -> None:
    """Raise ValueError for a deletion that expects the key not to exist."""
    if expected is not None and expected < 1:
        raise ValueError("a deletion expects a revision of at least 1, or None")


def check_digest(sha256: str) -> None:
    """Raise ValueError unless `sha256` is a digest as Blob names it; it becomes part of a path."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256[:80]!r} is not a SHA-256 of 64 lower-case hexadecimal digits")


def _is_plain(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)
