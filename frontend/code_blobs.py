"""Code archives in the blob store.

Owns nothing but the fit between the API's port and the store's interface.
"""

import asyncio
from collections.abc import AsyncIterator

from storage.interfaces import BlobStore

CHUNK_BYTES = 256 * 1024


class CodeBlobs:
    """``frontend.api.ports.Blobs`` over any blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def put(self, data: bytes) -> str:
        return (await self._blobs.put(_chunks(data))).sha256

    def get(self, sha256: str) -> AsyncIterator[bytes]:
        return self._blobs.get(sha256)

    async def has(self, sha256: str) -> bool:
        return await self._blobs.has(sha256)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES]
        await asyncio.sleep(0)  # an upload of 50 MB must not stall the invokes of this frontend
