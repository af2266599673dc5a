"""A placement's copy of all node records, kept up to date by a watch, and by a listing every few seconds.

Owns how old the copy is. Renewals and revocations are decided by it, so that neither waits for the store; what uses up
a token is decided by the store itself. Refuses to know what a record means.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from chassis.clock import Clock
from placement.node_record import PREFIX, NodeRecord
from placement.records_file import Records, RecordsFile
from storage.faults import StorageFault, WatchGap
from storage.interfaces import Change, Listing, MetadataStore

LIST_S = 5.0        # a watch that is deaf, and one that has nothing to say, look the same
RETRY_S = 1.0
KEEP_S = 60.0       # the file's age is what a restart without the store begins with
STORE_S = 2.0       # for one listing

_log = structlog.get_logger(__name__)


class NodeRecords:
    """``follow`` runs as a task for as long as the process lives."""

    def __init__(self, metadata: MetadataStore, clock: Clock, file: RecordsFile | None = None) -> None:
        self._metadata = metadata
        self._clock = clock
        self._records: Records = {}
        self._confirmed_at: float | None = None
        self._file = file
        self._kept_at = float("-inf")
        self._observers: list[Callable[[], None]] = []

    def get(self, node: str) -> NodeRecord | None:
        found = self._records.get(node)
        return found[0] if found is not None else None

    def has_token(self, digest: str) -> bool:
        return any(record.token == digest for record, _ in self._records.values())

    @property
    def age_s(self) -> float | None:
        """For how long the store hasn't been heard; None: it never was."""
        return None if self._confirmed_at is None else self._clock.monotonic() - self._confirmed_at

    @property
    def revoked(self) -> dict[str, int]:
        """Nodes with certificates that are refused, and up to which enrolment."""
        return {node: record.revoked for node, (record, _) in sorted(self._records.items()) if record.revoked}

    def observe(self, observer: Callable[[], None]) -> None:
        """Called after each change."""
        self._observers.append(observer)

    def learn(self, record: NodeRecord, revision: int) -> None:
        """What this process wrote or read itself: the watch will tell it again."""
        self._changed(self._take(record.node, record, revision))

    async def follow(self) -> None:
        self._recall()
        while True:
            try:
                await self._follow_once()
            except WatchGap:
                continue    # list again
            except StorageFault as fault:
                _log.warning("node records are not followed", fault=fault.message, age_s=self.age_s)
            except TimeoutError:
                _log.warning("node records are not followed", fault=f"no listing within {STORE_S} s", age_s=self.age_s)
            await asyncio.sleep(RETRY_S)

    async def _follow_once(self) -> None:
        listing = await self._list(anew=True)
        async with contextlib.aclosing(self._metadata.watch(PREFIX, after=listing.revision)) as changes:  # type: ignore[type-var]  # an async generator
            pending = asyncio.ensure_future(anext(changes))
            try:
                while True:
                    done, _ = await asyncio.wait((pending,), timeout=LIST_S)
                    if not done:
                        await self._list()
                        continue
                    self._apply(pending.result())
                    pending = asyncio.ensure_future(anext(changes))
            finally:
                pending.cancel()
                await asyncio.wait((pending,))

    async def _list(self, *, anew: bool = False) -> Listing:
        """``anew``: what is known may be of a store that was restored since; the watch brings what is newer."""
        began = self._clock.monotonic()
        async with asyncio.timeout(STORE_S):
            listing = await self._metadata.list(PREFIX)
        self._confirmed_at = began
        before = self._all()
        there = {record.key.removeprefix(PREFIX) for record in listing.records}
        self._records = {
            node: (record, revision) for node, (record, revision) in self._records.items()
            if not anew and (node in there or revision > listing.revision)
        }
        for record in listing.records:
            self._decode(record.key.removeprefix(PREFIX), record.value, record.revision)
        self._changed(self._all() != before)
        if began - self._kept_at >= KEEP_S:
            self._keep()
        return listing

    def _all(self) -> dict[str, NodeRecord]:
        return {node: record for node, (record, _) in self._records.items()}

    def _recall(self) -> None:
        """What the process before this one knew. The store, when it answers, has the last word."""
        found = self._file.read() if self._file is not None else None
        if found is not None:
            self._records, confirmed = found
            self._confirmed_at = self._clock.monotonic() - max(0.0, self._clock.wall() - confirmed)
            self._tell()

    def _changed(self, changed: bool) -> None:
        if changed:
            self._tell()
            self._keep()

    def _keep(self) -> None:
        age_s = self.age_s
        if self._file is not None and age_s is not None:
            self._kept_at = self._clock.monotonic()
            self._file.write(self._records, self._clock.wall() - age_s)

    def _apply(self, change: Change) -> None:
        self._confirmed_at = self._clock.monotonic()
        node = change.key.removeprefix(PREFIX)
        if change.value is None:
            changed = self._records.pop(node, None) is not None
        else:
            changed = self._decode(node, change.value, change.revision)
        self._changed(changed)

    def _decode(self, node: str, value: bytes, revision: int) -> bool:
        try:
            return self._take(node, NodeRecord.decode(value), revision)
        except (ValueError, TypeError) as error:
            _log.error("a node record can't be read", for_node=node, error=str(error))
            return False

    def _take(self, node: str, record: NodeRecord, revision: int) -> bool:
        """Whether anything changed by it."""
        known = self._records.get(node)
        if known is not None and known[1] >= revision:
            return False
        self._records[node] = (record, revision)
        return known is None or known[0] != record

    def _tell(self) -> None:
        for observer in self._observers:
            observer()
