"""Metadata in etcd: the store of a cluster whose availability zones may be lost one at a time.

Owns how the interface maps to etcd's keys, and the write token by which a write whose answer was lost is recognised.
Refuses to know which member answers (``etcd_members``) and who may touch which key (``founding``).

Under one root lie `records/KEY` (token and value) and `acknowledgements/WATCHER`. Revisions are etcd's own: also a
renewed acknowledgement uses one up, which no watch of records hears of.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from chassis.certificates import Tls
from chassis.clock import Clock
from chassis.faults import Fault
from protos import etcd_pb2
from protos.etcd_rpc import RANGE, TXN
from protos.rpc import Method
from storage.etcd_members import COMPACTED, Members, Silence, storage_fault
from storage.etcd_watch import EtcdWatch
from storage.faults import Conflict, NewerSchema, OutcomeUnknown, StorageFault, StoreClosed, StoreFull
from storage.interfaces import (
    Acknowledgement,
    Change,
    Listing,
    Record,
    check_delete,
    check_key,
    check_prefix,
    check_value,
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

RECORDS = "records/"
ACKNOWLEDGEMENTS = "acknowledgements/"
VERSION = 1
TOKEN_BYTES = 12
LAPSED_MAX = 50   # acknowledgements that one renewal removes; etcd allows 128 operations


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    root: str = "labda/"          # what all keys begin with
    answer_s: float = 5.0         # an operation that takes longer is unavailable or unknown
    attempt_s: float = 1.0        # then another member is asked
    page_records: int = 256       # of a listing, per answer
    behind_max: int = 4096        # changes that wait for a watch's consumer; one that is further behind lists again
    drift_s: float = 0.5          # how far hosts' clocks may differ: an acknowledgement lapses so much later for others

    def __post_init__(self) -> None:
        if not self.root.endswith("/"):
            raise ValueError(f"root {self.root!r} has to end with a slash")
        check_key(self.root)
        if not 0 < self.attempt_s <= self.answer_s:
            raise ValueError(f"attempt_s {self.attempt_s} has to be above 0 and at most answer_s {self.answer_s}")
        if self.page_records < 1 or self.behind_max < 1 or self.drift_s < 0:
            raise ValueError("page_records and behind_max have to be at least 1, drift_s at least 0")


class EtcdMetadata:
    """A MetadataStore in etcd. Reads are linearisable; what was acknowledged is on the disks of a majority."""

    def __init__(
        self, addresses: Sequence[str], tls: Tls, clock: Clock, settings: EtcdSettings | None = None, *,
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        """Connects when first needed. ``addresses``: host:port, the nearest first; certificates name these hosts."""
        self._settings = settings or EtcdSettings()
        self._clock = clock
        self._members = Members(
            addresses, tls, answer_s=self._settings.answer_s, attempt_s=self._settings.attempt_s, resolve=resolve
        )
        self._watches: set[EtcdWatch] = set()
        self._closed = False
        self._begun = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def get(self, key: str) -> Record | None:
        check_key(key)
        with self._work():
            answer = await self._read(RANGE, etcd_pb2.RangeRequest(key=self._key(key)))
        return self._record(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        check_prefix(prefix)
        with self._work():
            while True:
                try:
                    return await self._list(prefix)
                except Fault as fault:
                    if COMPACTED not in fault.message:  # while it was paging
                        raise storage_fault(fault) from fault

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        check_key(key)
        check_value(key, value)
        token = os.urandom(TOKEN_BYTES)
        put = etcd_pb2.PutRequest(key=self._key(key), value=bytes((VERSION,)) + token + value)
        with self._work():
            until = self._members.until()
            while True:
                base = await self._base(key, expected, until)
                try:
                    answer, uncertain = await self._swap(key, base, etcd_pb2.RequestOp(request_put=put), until)
                except StoreFull as full:
                    return await self._written(key, base, put.value[: 1 + TOKEN_BYTES], full, until)
                if answer.succeeded:
                    return answer.header.revision
                found = _found(answer)
                if uncertain and found is not None and found.value.startswith(put.value[: 1 + TOKEN_BYTES]):
                    return found.mod_revision  # an earlier try had come through
                if uncertain:
                    raise OutcomeUnknown(key, "an answer was lost, and it was changed by somebody else since")
                if expected is not None:
                    raise Conflict(key, expected, found.mod_revision if found else 0)

    async def delete(self, key: str, *, expected: int | None) -> int:
        check_key(key)
        check_delete(expected)
        delete = etcd_pb2.RequestOp(request_delete_range=etcd_pb2.DeleteRangeRequest(key=self._key(key)))
        with self._work():
            until = self._members.until()
            while True:
                base = await self._base(key, expected, until)
                answer, uncertain = await self._swap(key, base, delete, until)
                found = _found(answer)
                if answer.succeeded or (expected is None and found is None):
                    return answer.header.revision
                if uncertain:
                    raise OutcomeUnknown(key, "an answer was lost, and it is another one or gone by now")
                if expected is not None:
                    raise Conflict(key, expected, found.mod_revision if found else 0)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Change]:
        check_prefix(prefix)
        self._check_open()
        begin, end = span(self._key(prefix))
        watch = EtcdWatch(self._members, begin, end, after=after, behind_max=self._settings.behind_max)
        self._watches.add(watch)
        running = asyncio.create_task(watch.run(), name=f"watch {prefix}")
        try:
            while True:
                event = await watch.next()
                deleted = event.type == etcd_pb2.Event.DELETE
                yield Change(
                    key=self._name(event.kv), value=None if deleted else self._value(event.kv),
                    revision=event.kv.mod_revision,
                )
        finally:
            self._watches.discard(watch)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def acknowledge(self, watcher: str, revision: int, lease_s: float) -> None:
        check_key(watcher)
        key = self._settings.root.encode() + ACKNOWLEDGEMENTS.encode() + watcher.encode()
        with self._work():
            until = self._members.until()
            while True:
                now = self._clock.wall()
                found = await self._acknowledgement_records(until)
                own = next((kv for kv in found if kv.key == key), None)
                live = own is not None and self._is_live(own, now)
                kept = _promise(own)[0] if own is not None and live else 0
                value = json.dumps({"revision": max(revision, kept), "expires_at": now + lease_s}).encode()
                lapsed = [kv for kv in found if kv.key != key and not self._is_live(kv, now)][:LAPSED_MAX]
                request = etcd_pb2.TxnRequest(
                    compare=[_unchanged(key, own.mod_revision if own else 0)]
                    + [_unchanged(kv.key, kv.mod_revision) for kv in lapsed],
                    success=[etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key, value=value))]
                    + [_deletion(kv.key) for kv in lapsed],
                )
                try:
                    answer, _ = await self._ask_write(watcher, request, until)
                except StoreFull as full:   # it is given again before long, and is as true if it came through
                    raise OutcomeUnknown(watcher, full.message) from full
                if answer.succeeded:
                    return

    async def acknowledgements(self) -> tuple[Acknowledgement, ...]:
        with self._work():
            found = await self._acknowledgement_records(self._members.until())
        now = self._clock.wall()
        begin = len(self._settings.root + ACKNOWLEDGEMENTS)
        return tuple(
            Acknowledgement(watcher=kv.key[begin:].decode(), revision=revision, expires_at=expires_at)
            for kv in found if self._is_live(kv, now)
            for revision, expires_at in (_promise(kv),)
        )

    async def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            watch.close()
        await self._idle.wait()
        await self._members.close()

    # ------------------------------------------------------------ asking

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        self._check_open()
        self._begun += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._begun -= 1
            if not self._begun:
                self._idle.set()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed

    async def _read(
        self, method: Method[Request, Response], request: Request, until: float | None = None
    ) -> Response:
        try:
            answer, _ = await self._members.ask(method, request, until=until or self._members.until())
        except Silence as silence:
            raise self._members.unavailable(str(silence)) from silence
        return answer

    async def _base(self, key: str, expected: int | None, until: float) -> int:
        """The revision that the write compares with.

        Where nothing was heard of the cluster for a while, it is asked first: a write that isn't even sent certainly
        didn't happen.
        """
        if expected is not None and not self._members.in_doubt:
            return expected
        answer = await self._read(RANGE, etcd_pb2.RangeRequest(key=self._key(key), keys_only=True), until)
        if expected is not None:
            return expected
        return answer.kvs[0].mod_revision if answer.kvs else 0

    async def _swap(
        self, key: str, base: int, write: etcd_pb2.RequestOp, until: float
    ) -> tuple[etcd_pb2.TxnResponse, bool]:
        """Writes if the key is still at `base`, else reads it. May be tried twice: only one try finds `base` there."""
        at = self._key(key)
        request = etcd_pb2.TxnRequest(
            compare=[_unchanged(at, base)], success=[write],
            failure=[etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=at))],
        )
        return await self._ask_write(key, request, until)

    async def _ask_write(
        self, key: str, request: etcd_pb2.TxnRequest, until: float
    ) -> tuple[etcd_pb2.TxnResponse, bool]:
        try:
            return await self._members.ask(TXN, request, until=until)
        except Silence as silence:
            if silence.uncertain:
                raise OutcomeUnknown(key, str(silence)) from silence
            raise self._members.unavailable(str(silence)) from silence

    async def _written(self, key: str, base: int, token: bytes, full: StoreFull, until: float) -> int:
        """The revision of a put that etcd called too much. Raises `full` when it certainly wasn't carried out.

        A member refuses most of them before it proposes anything. But what passed there and crosses the quota by the
        time it is applied is written, and answered in the same words (etcd's `quotaApplierV3`): only reading tells.
        Deletions need no room and are never refused so.
        """
        try:
            answer = await self._read(RANGE, etcd_pb2.RangeRequest(key=self._key(key)), until)
        except StorageFault as fault:
            raise OutcomeUnknown(key, f"{full.message}; and then: {fault.message}") from fault
        found = answer.kvs[0] if answer.kvs else None
        if found is not None and found.value.startswith(token):
            return found.mod_revision
        if (found.mod_revision if found else 0) != base:
            raise OutcomeUnknown(key, f"{full.message}; and it was changed by somebody else since") from full
        raise full

    async def _list(self, prefix: str) -> Listing:
        begin, end = span(self._key(prefix))
        records: list[Record] = []
        revision = 0
        while True:
            answer = await self._read(RANGE, etcd_pb2.RangeRequest(
                key=begin, range_end=end, limit=self._settings.page_records, revision=revision
            ))
            revision = revision or answer.header.revision
            records += [self._record(kv) for kv in answer.kvs]
            if not answer.more:
                return Listing(records=tuple(records), revision=revision)
            begin = answer.kvs[-1].key + b"\0"

    async def _acknowledgement_records(self, until: float) -> Sequence[etcd_pb2.KeyValue]:
        begin, end = span((self._settings.root + ACKNOWLEDGEMENTS).encode())
        return (await self._read(RANGE, etcd_pb2.RangeRequest(key=begin, range_end=end), until)).kvs

    # ------------------------------------------------------------ encoding

    def _key(self, key: str) -> bytes:
        return (self._settings.root + RECORDS + key).encode()

    def _name(self, kv: etcd_pb2.KeyValue) -> str:
        return kv.key[len(self._settings.root + RECORDS):].decode()

    def _value(self, kv: etcd_pb2.KeyValue) -> bytes:
        if kv.value[:1] != bytes((VERSION,)):
            raise NewerSchema(f"etcd's {kv.key.decode()}", kv.value[0] if kv.value else 0, VERSION)
        return kv.value[1 + TOKEN_BYTES:]

    def _record(self, kv: etcd_pb2.KeyValue) -> Record:
        return Record(key=self._name(kv), value=self._value(kv), revision=kv.mod_revision)

    def _is_live(self, kv: etcd_pb2.KeyValue, now: float) -> bool:
        return _promise(kv)[1] + self._settings.drift_s > now


def span(prefix: bytes) -> tuple[bytes, bytes]:
    """The keys with a prefix. Keys are ASCII below 0x7f, so that 0x7f is above them all."""
    return prefix, prefix + b"\x7f"


def _unchanged(key: bytes, revision: int) -> etcd_pb2.Compare:
    """Holds while the key's last change is of `revision` (0: it does not exist)."""
    return etcd_pb2.Compare(
        key=key, target=etcd_pb2.Compare.MOD, result=etcd_pb2.Compare.EQUAL, mod_revision=revision
    )


def _deletion(key: bytes) -> etcd_pb2.RequestOp:
    return etcd_pb2.RequestOp(request_delete_range=etcd_pb2.DeleteRangeRequest(key=key))


def _found(answer: etcd_pb2.TxnResponse) -> etcd_pb2.KeyValue | None:
    """What the key held when the comparison failed."""
    kvs = [] if answer.succeeded else answer.responses[0].response_range.kvs
    return kvs[0] if kvs else None


def _promise(kv: etcd_pb2.KeyValue) -> tuple[int, float]:
    fields = json.loads(kv.value)
    return int(fields["revision"]), float(fields["expires_at"])
