"""Removing code that no function has any more: of updates, deletions, and uploads whose request failed half-way.

Owns when an archive is certainly unused. Refuses to know functions beyond the digests of their code.

An upload is stored before the record that names it is written. So an archive goes only when it was unused in every
look for ``grace_s``, longer than any request lives and than a sandbox that is being made may still want older code; and
the store deletes it only if nobody has put the same bytes again since it was listed. Several frontends may look at
once.
"""

import asyncio
import random
from typing import Protocol

import structlog

from chassis.clock import Clock
from chassis.faults import Fault
from storage.interfaces import Blob, BlobStore

_log = structlog.get_logger(__name__)


class Codes(Protocol):
    """What functions have."""

    async def codes(self) -> frozenset[str]:
        """Digests of all functions' code, from the store. Raises ValueError for a record that can't be read."""
        ...


class Collector:
    """``run`` it as a task for the process's life."""

    def __init__(self, blobs: BlobStore, codes: Codes, *, clock: Clock, rng: random.Random, grace_s: float) -> None:
        self._blobs = blobs
        self._codes = codes
        self._clock = clock
        self._rng = rng
        self._grace_s = grace_s
        self._unused_since: dict[tuple[str, str], float] = {}   # by digest and put_id, monotonic seconds

    async def run(self) -> None:
        while True:
            # Drawn, so that the frontends of a region don't look at the same moments.
            await asyncio.sleep(self._grace_s * self._rng.uniform(0.25, 0.5))
            try:
                await self.look()
            except (Fault, ValueError) as error:
                _log.warning("code not collected", error=str(error))

    async def look(self) -> list[Blob]:
        """One look; what was removed."""
        await self._blobs.sweep()
        blobs = await self._blobs.list()
        used = await self._codes.codes()     # after the listing: what was unused then may be named by now
        now = self._clock.monotonic()
        unused = {(blob.sha256, blob.put_id): blob for blob in blobs if blob.sha256 not in used}
        self._unused_since = {key: self._unused_since.get(key, now) for key in unused}
        removed = []
        for key, blob in unused.items():
            if now - self._unused_since[key] >= self._grace_s and await self._blobs.delete(blob):
                removed.append(blob)
        if removed:
            size_bytes = sum(blob.size_bytes for blob in removed)
            _log.info("unused code removed", archives=len(removed), bytes=size_bytes)
        return removed
