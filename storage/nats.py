"""Blobs in NATS JetStream: the store of a cluster whose availability zones may be lost one at a time.

Owns how a blob lies in two streams of three copies each. Refuses to know what a blob holds and who refers to it.

A put writes chunks under an id of its own (`<root>.chunk.<put_id>`), then the head (`<root>.head.<sha256>`), which
names them by their sequence numbers: with it the blob is there, whole, and a head that it replaces is gone at once.
So nothing that is being put or replaced is ever seen half, a deletion names the very head that was listed, and chunks
without a head are leftovers of a crash, which `sweep` removes.

What is read was either named by a head that the stream's leader gave, or is checked against it; and every blob against
its SHA-256, because the server's own checksums have failed before (Jepsen, December 2025).
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from chassis.certificates import Tls
from chassis.clock import Clock
from storage.faults import (
    BlobCorrupt,
    BlobMissing,
    OutcomeUnknown,
    StorageFault,
    StoreClosed,
    StoreUnavailable,
)
from storage.interfaces import Blob, check_digest
from storage.nats_answers import Head, acknowledged, checked, decode, refused
from storage.nats_client import PAUSE_S, NatsClient, NatsSettings, Silent
from storage.nats_streams import BlobStreams
from storage.nats_upload import WINDOW_CHUNKS, Upload

LIST_PAGE = 500              # heads per answer
MARK = "mark"                # in the place of a digest: what a copy that has it can't be behind of
ABANDONED_S = 3600.0         # no upload lives so long: chunks that have no head by then never get one
MISSING_AGAIN_S = 0.25       # a head that wasn't found is looked for once more: a leader may not know yet that it isn't


class NatsBlobs:
    """A BlobStore on JetStream."""

    def __init__(
        self, addresses: Sequence[str], tls: Tls, clock: Clock, settings: NatsSettings | None = None, *,
        streams: BlobStreams | None = None, resolve: Callable[[str], str] | None = None,
    ) -> None:
        """Connects when first needed. ``addresses``: host:port, the nearest first."""
        self._nats = NatsClient(addresses, tls, settings, resolve=resolve)
        self._streams = streams or BlobStreams()
        self._clock = clock
        self._purging: set[asyncio.Task[None]] = set()
        self._closed = False

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        self._check_open()
        # The time is for `sweep`; the rest is nobody else's.
        put_id = f"{int(self._clock.wall() * 1000):x}-{secrets.token_hex(8)}"
        upload = Upload(self._nats, self._streams, put_id)
        try:
            await upload.send(chunks)
        except BaseException:
            self._purge_soon(put_id, after=upload.abandon())
            raise
        try:
            replaced = await self._publish(upload.head())
        except StorageFault as fault:
            if fault.definite:
                self._purge_soon(put_id)
            raise  # otherwise, and when this is cancelled, its head may be there instead of an older one: see `sweep`
        if replaced is not None:
            self._purge_soon(replaced.put_id)
        return upload.head().blob

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        check_digest(sha256)
        self._check_open()
        head = await self._head(sha256)
        if head is None:
            await asyncio.sleep(MISSING_AGAIN_S)
            head = await self._head(sha256)
        if head is None:
            raise BlobMissing(sha256)
        digest = hashlib.sha256()
        withheld = b""
        async with contextlib.aclosing(self._chunks(head)) as chunks:  # type: ignore[type-var]  # an async generator
            async for chunk in chunks:
                digest.update(chunk)
                if withheld:
                    yield withheld
                withheld = chunk
        if digest.hexdigest() != sha256:
            raise BlobCorrupt(sha256, digest.hexdigest())
        if withheld:
            yield withheld

    async def has(self, sha256: str) -> bool:
        check_digest(sha256)
        self._check_open()
        return await self._head(sha256) is not None

    async def delete(self, blob: Blob) -> bool:
        check_digest(blob.sha256)
        self._check_open()
        head = await self._head(blob.sha256)
        if head is None or head.put_id != blob.put_id:
            return False
        # This very message: a head that was put since has another number.
        answer = await self._nats.api(
            f"STREAM.MSG.DELETE.{self._streams.heads}", {"seq": head.sequence, "no_erase": True},
            until=self._nats.until(),
        )
        if not answer.get("success") and await self._head(blob.sha256) is not None:
            return False
        self._purge_soon(head.put_id)
        return True

    async def list(self) -> tuple[Blob, ...]:
        self._check_open()
        return tuple(head.blob for head in await self._all())

    async def sweep(self) -> None:
        """Remove chunks that are an hour old and that no head names."""
        self._check_open()
        found: set[str] = set()
        until = self._nats.until()
        while True:
            answer = await self._info(
                self._streams.chunks, until, subjects_filter=self._streams.chunk("*"), offset=len(found)
            )
            subjects = answer["state"].get("subjects") or {}
            found |= {subject.rsplit(".", 1)[-1] for subject in subjects}
            if not subjects or len(found) >= answer.get("total", 0):
                break
        before_ms = (self._clock.wall() - ABANDONED_S) * 1000
        used = {head.put_id for head in await self._all()}     # after the chunks: what had no head then may have one
        for put_id in found - used:
            if int(put_id.split("-")[0], 16) < before_ms:
                await self._purge(put_id)

    async def close(self) -> None:
        self._closed = True
        if self._purging:
            await asyncio.wait(self._purging)
        await self._nats.close()

    # ------------------------------------------------------------ heads

    async def _head(self, sha256: str) -> Head | None:
        """As the stream's leader has it."""
        answer = await self._nats.api(
            f"STREAM.MSG.GET.{self._streams.heads}", {"last_by_subj": self._streams.head(sha256)},
            until=self._nats.until(),
        )
        message = checked(answer, "message", missing_ok=True)
        return decode(message["subject"], base64.b64decode(message["data"]), message["seq"]) if message else None

    async def _publish(self, head: Head) -> Head | None:
        """Makes `head` the blob's; the one that it replaced, whose chunks nobody needs any more.

        A fault that is definite says that the head isn't there and won't be.
        """
        content = json.dumps(
            {"size_bytes": head.size_bytes, "put_id": head.put_id, "chunks": head.chunks}, separators=(",", ":")
        ).encode()
        until = self._nats.until()
        sent, over = False, 0
        try:
            while True:
                found = await self._head(head.sha256)
                if found is not None and found.put_id == head.put_id:
                    return None  # an earlier try came through; what it replaced is swept
                there = found.sequence if found else 0
                if sent and there != over:
                    # It may have come through and been replaced or deleted since, and its chunks with it.
                    raise StoreUnavailable("an answer was lost, and the same bytes were put again or deleted since")
                over = there
                try:
                    message = await self._nats.ask_once(
                        self._streams.head(head.sha256), content, until=until,
                        headers={"Nats-Expected-Last-Subject-Sequence": str(over)},
                    )
                    if acknowledged(message):
                        return found
                    sent = sent or not refused(message)
                except Silent:
                    sent = True
                if asyncio.get_running_loop().time() >= until:
                    raise self._nats.unavailable("it doesn't acknowledge the blob's head")
        except StorageFault as fault:
            if sent:
                raise OutcomeUnknown(f"blob {head.sha256}", fault.message) from fault
            raise

    async def _all(self) -> Sequence[Head]:
        """By digest, as of now. Any copy of the stream may answer, once it has a mark that is newer than the question.
        """
        until = self._nats.until()
        mark = 0
        while not mark:
            mark = acknowledged(await self._nats.ask(self._streams.head(MARK), b"", until=until))
        while True:
            heads = await self._all_up_to(mark, until)
            if heads is not None:
                return sorted(heads.values(), key=lambda head: head.sha256)
            if asyncio.get_running_loop().time() >= until:
                raise self._nats.unavailable("the copy of the stream that answers is behind")
            await asyncio.sleep(PAUSE_S)

    async def _all_up_to(self, mark: int, until: float) -> dict[str, Head] | None:
        """None when the copies that answered hadn't everything up to `mark`."""
        heads: dict[str, Head] = {}
        marked = False
        start = 1
        while True:
            page = await self._page(start, until)
            if page is None:
                return None
            for message in page.messages:
                headers = message.headers or {}
                sequence, subject = int(headers["Nats-Sequence"]), headers["Nats-Subject"]
                start = sequence + 1
                if subject == self._streams.head(MARK):
                    marked = marked or sequence >= mark
                    continue
                head = decode(subject, message.data, sequence)
                heads[head.sha256] = head
            if page.pending == 0 or not page.messages:
                return heads if marked else None

    async def _page(self, start: int, until: float) -> "_Page | None":
        """Some messages from `start` on, over the direct API, which answers one request with many messages."""
        client = await self._nats.connected(until)
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox, pending_bytes_limit=-1, pending_msgs_limit=-1)
        request = {"seq": start, "next_by_subj": self._streams.head("*"), "batch": LIST_PAGE}
        messages: list[Msg] = []
        try:
            await client.publish(
                f"$JS.API.DIRECT.GET.{self._streams.heads}", json.dumps(request).encode(), reply=inbox
            )
            while True:
                message = await answers.next_msg(timeout=self._nats.settings.attempt_s)
                headers = message.headers or {}
                if headers.get("Status") == "404":
                    return _Page(messages=messages, pending=0)
                if headers.get("Status") == "204":
                    return _Page(messages=messages, pending=int(headers.get("Nats-Num-Pending", 0)))
                if "Status" in headers:
                    return None
                messages.append(message)
        except nats.errors.Error as error:
            if asyncio.get_running_loop().time() >= until:
                raise self._nats.unavailable(str(error)) from error
            return None
        finally:
            await answers.unsubscribe()

    # ------------------------------------------------------------ chunks

    async def _chunks(self, head: Head) -> AsyncIterator[bytes]:
        """In order, a few on their way ahead of the one that is wanted."""
        waiting: deque[asyncio.Task[bytes]] = deque()
        ahead = iter(range(len(head.chunks)))
        try:
            while True:
                while len(waiting) < WINDOW_CHUNKS and (at := next(ahead, None)) is not None:
                    waiting.append(asyncio.create_task(self._chunk(head, at)))
                if not waiting:
                    return
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _chunk(self, head: Head, at: int) -> bytes:
        """From any copy of the stream; where that one lacks it, from the leader; of a newer put, when it was replaced.

        Two puts of the same bytes have the same chunks.
        """
        while True:
            chunk = await self._direct(head, at) or await self._from_leader(head, at)
            if chunk is not None:
                return chunk
            newer = await self._head(head.sha256)
            if newer is None:
                raise BlobMissing(head.sha256)
            if newer.put_id == head.put_id:
                raise BlobCorrupt(head.sha256, f"nothing: chunk {at + 1} of {len(head.chunks)} is missing")
            head = newer

    async def _direct(self, head: Head, at: int) -> bytes | None:
        request = json.dumps({"seq": head.chunks[at]}).encode()
        message = await self._nats.ask(
            f"$JS.API.DIRECT.GET.{self._streams.chunks}", request, until=self._nats.until()
        )
        if (message.headers or {}).get("Nats-Subject") != self._streams.chunk(head.put_id):
            return None
        return message.data

    async def _from_leader(self, head: Head, at: int) -> bytes | None:
        answer = await self._nats.api(
            f"STREAM.MSG.GET.{self._streams.chunks}", {"seq": head.chunks[at]}, until=self._nats.until()
        )
        message = checked(answer, "message", missing_ok=True)
        if message is None or message["subject"] != self._streams.chunk(head.put_id):
            return None
        return base64.b64decode(message["data"])

    def _purge_soon(self, put_id: str, *, after: Iterable[asyncio.Task[None]] = ()) -> None:
        """``after``: chunks on their way, which would come too late for it. What fails is left to `sweep`."""
        async def purge() -> None:
            await asyncio.gather(*after, return_exceptions=True)
            with contextlib.suppress(StorageFault):
                await self._purge(put_id)

        task = asyncio.create_task(purge(), name=f"purge {put_id}")
        self._purging.add(task)
        task.add_done_callback(self._purging.discard)

    async def _purge(self, put_id: str) -> None:
        await self._nats.api(
            f"STREAM.PURGE.{self._streams.chunks}", {"filter": self._streams.chunk(put_id)}, until=self._nats.until()
        )

    async def _info(self, stream: str, until: float, **request: Any) -> dict[str, Any]:
        answer = await self._nats.api(f"STREAM.INFO.{stream}", request, until=until)
        checked(answer, "state", missing_ok=False)
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    messages: list[Msg]
    pending: int    # messages after these
