"""One put's chunks on their way to JetStream.

Owns the window of chunks that wait for their acknowledgement, and sending one again whose answer was lost. Refuses to
know what becomes of them: the head that names them is written by `nats.py`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from storage.nats_answers import Head, acknowledged
from storage.nats_client import NatsClient, Silent
from storage.nats_streams import CHUNK_BYTES, BlobStreams

WINDOW_CHUNKS = 6            # on their way at once, of one put or one get: 3 MiB of a process's memory


class Upload:
    """One put's chunks on their way: a window of them at once, whatever the blob's size."""

    def __init__(self, client: NatsClient, streams: BlobStreams, put_id: str) -> None:
        self._nats = client
        self._subject = streams.chunk(put_id)
        self._put_id = put_id
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._sequences: dict[int, int] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._abandoned = False

    def abandon(self) -> set[asyncio.Task[None]]:
        """Sends nothing again; what is on its way."""
        self._abandoned = True
        return self._sending

    def head(self) -> Head:
        return Head(
            sha256=self._digest.hexdigest(), size_bytes=self._size_bytes, put_id=self._put_id,
            chunks=tuple(self._sequences[at] for at in range(len(self._sequences))),
        )

    async def send(self, chunks: AsyncIterable[bytes]) -> None:
        """Raises whatever `chunks` raises, and StoreUnavailable."""
        count = 0
        async for chunk in of_size(chunks, CHUNK_BYTES):
            self._digest.update(chunk)
            self._size_bytes += len(chunk)
            self._sending.add(asyncio.create_task(self._send(count, chunk)))
            count += 1
            if len(self._sending) >= WINDOW_CHUNKS:
                await self._some_sent(asyncio.FIRST_COMPLETED)
        while self._sending:
            await self._some_sent(asyncio.FIRST_EXCEPTION)

    async def _some_sent(self, which: str) -> None:
        done, self._sending = await asyncio.wait(self._sending, return_when=which)
        for task in done:
            task.result()

    async def _send(self, at: int, chunk: bytes) -> None:
        until = self._nats.until()
        while not self._abandoned:
            # One whose answer was lost is sent again; the first one is purged with the put, some day.
            try:
                sequence = acknowledged(await self._nats.ask_once(self._subject, chunk, until=until))
            except Silent as silent:
                sequence, why = 0, str(silent)
            else:
                why = "it acknowledges nothing"
            if sequence:
                self._sequences[at] = sequence
                return
            if asyncio.get_running_loop().time() >= until:
                raise self._nats.unavailable(why)


async def of_size(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter: equal blobs have equal chunks."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)
