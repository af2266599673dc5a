"""Code archives in the blob store, and the ones that went through this frontend lately in memory.

Owns the fit between the API's port and the store's interface, and what is kept: a region whose blob store is away can
still begin functions on workers that don't have their code yet. A digest names its bytes for good, so that what is kept
is never old.
"""

import asyncio
from collections.abc import AsyncIterator

from storage.interfaces import BlobStore

CHUNK_BYTES = 256 * 1024
KEPT_BYTES_MAX = 128 * 1024 * 1024      # archives are 50 MB at most


class CodeBlobs:
    """``frontend.api.ports.Blobs`` over any blob store."""

    def __init__(self, blobs: BlobStore, *, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._blobs = blobs
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[str, bytes] = {}   # used last comes last
        self._kept_bytes = 0
        self._collected: dict[str, int] = {}    # bytes of what is on its way to somebody and will be kept

    async def put(self, data: bytes) -> str:
        sha256 = (await self._blobs.put(_chunks(data))).sha256
        self._keep(sha256, data)
        return sha256

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        """In chunks, verified; from memory where it is there."""
        kept = self._kept.pop(sha256, None)
        if kept is not None:
            self._kept[sha256] = kept
            async for chunk in _chunks(kept):
                yield chunk
            return
        if sha256 in self._collected:   # a burst of workers that need the same: one copy of it will do
            async for chunk in self._blobs.get(sha256):
                yield chunk
            return
        parts: list[bytes] = []
        collects = True     # until all that is being collected is as much as may be kept
        self._collected[sha256] = 0
        try:
            async for chunk in self._blobs.get(sha256):
                if collects and sum(self._collected.values()) + len(chunk) <= self._kept_bytes_max:
                    self._collected[sha256] += len(chunk)
                    parts.append(chunk)
                elif collects:
                    collects = False
                    parts.clear()
                    del self._collected[sha256]
                yield chunk
            if collects:
                self._keep(sha256, b"".join(parts))
        finally:
            if collects:
                del self._collected[sha256]

    async def has(self, sha256: str) -> bool:
        return await self._blobs.has(sha256)

    def _keep(self, sha256: str, data: bytes) -> None:
        if sha256 in self._kept or len(data) > self._kept_bytes_max:
            return
        self._kept[sha256] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._kept_bytes_max:
            oldest = next(iter(self._kept))
            self._kept_bytes -= len(self._kept.pop(oldest))


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES]
        await asyncio.sleep(0)  # an upload of 50 MB must not stall the invokes of this frontend
