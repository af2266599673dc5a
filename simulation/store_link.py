"""One node's way to the metadata store, which a scenario can cut or mute: the store is there, this node isn't told.

Owns nothing but the cut. Refuses to know what the store holds. Blobs have a way of their own to be cut.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from storage.faults import OutcomeUnknown, StoreFull, StoreUnavailable
from storage.interfaces import Acknowledgement, Blob, BlobStore, Change, Listing, MetadataStore, Record


class StoreLink:
    """A MetadataStore. While it is cut every call fails for certain and watches break; while it is mute watches say
    nothing, and nothing else shows it; while it is full writes fail.

    A store without its quorum, or out of reach, is worse: a call hangs until its client gives it up, and of a write
    nobody knows then whether it was done (``cut(after_s)``). One that is only slow does all, later (``slow``).
    """

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._cut = asyncio.Event()
        self._after_s = 0.0
        self._late_s = 0.0
        self._full = False
        self._heard = asyncio.Event()
        self._heard.set()

    def cut(self, after_s: float = 0.0) -> None:
        self._after_s = after_s
        self._cut.set()

    def slow(self, late_s: float) -> None:
        """0: as fast as ever again."""
        self._late_s = late_s

    def mute(self) -> None:
        self._heard.clear()

    def fill(self) -> None:
        self._full = True

    def heal(self) -> None:
        self._cut.clear()
        self._heard.set()
        self._full = False
        self._late_s = 0.0

    @property
    def is_cut(self) -> bool:
        return self._cut.is_set()

    async def get(self, key: str) -> Record | None:
        await self.reach()
        return await self._store.get(key)

    async def list(self, prefix: str) -> Listing:
        await self.reach()
        return await self._store.list(prefix)

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        await self._write(key)
        return await self._store.put(key, value, expected=expected)

    async def delete(self, key: str, *, expected: int | None) -> int:
        await self._write(key)
        return await self._store.delete(key, expected=expected)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Change]:
        await self.reach()
        changes = aiter(self._store.watch(prefix, after=after))
        broken = asyncio.ensure_future(self._cut.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(changes))
                try:
                    await asyncio.wait((following, broken), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    lost = not following.done()
                    if lost:
                        following.cancel()
                        await asyncio.wait((following,))
                if lost:    # also where the way is there again already: a stopped process notices late
                    await asyncio.sleep(self._after_s)
                    raise StoreUnavailable("this node's watch broke")
                await self._heard.wait()
                await self.reach()
                yield following.result()
        finally:
            broken.cancel()

    async def acknowledge(self, watcher: str, revision: int, lease_s: float) -> None:
        await self._write(watcher)
        await self._store.acknowledge(watcher, revision, lease_s)

    async def acknowledgements(self) -> tuple[Acknowledgement, ...]:
        await self.reach()
        return await self._store.acknowledgements()

    async def close(self) -> None:
        await self._store.close()

    async def _write(self, key: str) -> None:
        if self.is_cut and self._after_s:
            await asyncio.sleep(self._after_s)
            raise OutcomeUnknown(key, f"the store did not answer within {self._after_s:g} s")
        await self.reach()
        if self._full:
            raise StoreFull("this node", "anything")

    async def reach(self) -> None:
        """Raises StoreUnavailable while it is cut."""
        if self._late_s:
            await asyncio.sleep(self._late_s)
        if self.is_cut:
            await asyncio.sleep(self._after_s)
            raise StoreUnavailable("this node doesn't reach the store")


class BlobLink:
    """A BlobStore over the same way: when that is cut, blobs are out of reach too."""

    def __init__(self, store: BlobStore, way: StoreLink) -> None:
        self._store = store
        self._way = way

    async def put(self, chunks: AsyncIterable[bytes]) -> Blob:
        await self._way.reach()
        return await self._store.put(chunks)

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        await self._way.reach()
        async for chunk in self._store.get(sha256):
            await self._way.reach()
            yield chunk

    async def has(self, sha256: str) -> bool:
        await self._way.reach()
        return await self._store.has(sha256)

    async def delete(self, blob: Blob) -> bool:
        await self._way.reach()
        return await self._store.delete(blob)

    async def list(self) -> tuple[Blob, ...]:
        await self._way.reach()
        return await self._store.list()

    async def sweep(self) -> None:
        await self._way.reach()
        await self._store.sweep()

    async def close(self) -> None:
        await self._store.close()
