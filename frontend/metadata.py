"""This frontend's copy of the metadata: followed by list-then-watch, acknowledged, and served from on the warm path.

Owns the copies of function records and access keys, the lease under which they may be used, and the task that follows
the store. Refuses to know what functions do and who asks for them.

An update is complete once every live frontend acknowledged its revision or let its lease lapse (architecture: update).
Beyond the lease, counted from before the acknowledgement was sent, the copy may be old without anybody waiting for this
frontend: it is served all the same, because no invoke waits for the store, but ``sure`` says so, and the function's
manager decides whether that revision may still start (decision 0014).
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from chassis.beat import next_beat
from chassis.clock import Clock
from frontend.api.ports import Unavailable
from frontend.auth import keys
from frontend.auth.keys import Cipher, KeyRing
from frontend.function_records import FunctionStore, Tombstone, decode
from frontend.functions import FunctionRecord, Phase
from storage.faults import StorageFault, StoreClosed, WatchGap
from storage.interfaces import Change, Listing, MetadataStore

PREFIX = "accounts/"
LEASE_S = 10.0
KEYS_LISTED_S = 1.0   # keys are watched, and listed again this often besides
RETRY_S_MIN, RETRY_S_MAX = 0.1, 2.0


class WatchedFunctions(FunctionStore):
    """The function store with a watched copy in front of it for the warm path."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher, clock: Clock) -> None:
        super().__init__(metadata, cipher)
        self._clock = clock
        self._records: dict[tuple[str, str], FunctionRecord] = {}
        self._deleted: dict[tuple[str, str], int] = {}      # the last revision of what is no more
        self._valid_until = float("-inf")
        self.applied = 0
        self.on_current: Callable[[], None] = lambda: None     # the copy has just become certainly current
        self.on_unsettled: Callable[[FunctionRecord, int], None] = lambda _record, _stored: None

    def cached(self, account: str, name: str) -> FunctionRecord | None:
        """The record as of the last applied change. Raises Unavailable before the first listing."""
        if self._valid_until == float("-inf"):
            raise Unavailable(
                "This frontend has not reached the metadata store yet, so that it knows no functions.",
                {"remedy": "Try again: another frontend may answer. The store's health is in `labda status`."},
            )
        return self._records.get((account, name))

    @property
    def sure(self) -> bool:
        """Whether no update can have become Successful that this copy doesn't have."""
        return self._clock.monotonic() < self._valid_until

    def newest(self, record: FunctionRecord) -> FunctionRecord | None:
        """What a request that came with ``record`` has to run by now; None: the function was deleted meanwhile.

        A request may know more than the watch, because the API reads from the store what the copy hasn't got.
        """
        at = (record.account, record.name)
        kept = self._records.get(at)
        if kept is None:
            return None if self._deleted.get(at, 0) >= record.revision else record
        if kept.revision <= record.revision:
            return record
        return None if kept.phase is Phase.CREATING else kept    # another function of the same name, not made yet

    def all(self) -> list[FunctionRecord]:
        """Every function of the copy, for status displays."""
        return list(self._records.values())

    def apply(self, change: Change) -> bool:
        """Take over one change; whether somebody waits for its acknowledgement."""
        self.applied = change.revision
        parts = change.key.split("/", 3)
        if len(parts) != 4 or parts[2] != "functions":
            return False
        at = (parts[1], parts[3])
        content = None if change.value is None else decode(change.key, change.value, self._cipher)
        if content is None or isinstance(content, Tombstone):
            self._records.pop(at, None)
            if content is not None:
                self._deleted[at] = content.revision
            return True
        self._records[at] = content
        self._deleted.pop(at, None)
        if content.phase is Phase.ACTIVE:
            return False
        self.on_unsettled(content, change.revision)
        return True

    def replace(self, listing: Listing) -> None:
        """Take over a whole listing."""
        self._records.clear()
        self._deleted.clear()
        for record in listing.records:
            self.apply(Change(key=record.key, value=record.value, revision=record.revision))
        self.applied = listing.revision

    def serve_until(self, monotonic: float) -> None:
        """The copy is certainly current until ``monotonic`` (seconds on the monotonic clock)."""
        self._valid_until = max(self._valid_until, monotonic)


class Follower:
    """Keeps the copies in step with the store. ``run`` it as a task for the process's life."""

    def __init__(
        self, metadata: MetadataStore, functions: WatchedFunctions, ring: KeyRing, *, node: str, clock: Clock
    ) -> None:
        self._metadata = metadata
        self._functions = functions
        self._ring = ring
        self._node = node
        self._clock = clock
        self._log = structlog.get_logger("frontend.metadata")
        self._due = asyncio.Event()
        self._unlisted = {PREFIX, keys.PREFIX}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled or until the store is closed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again_and_again(self._follow_functions))
            group.create_task(self._again_and_again(self._follow_keys))

    async def withdraw(self) -> None:
        """Give the acknowledgement back at shutdown, so that no update waits for this frontend's lease."""
        await self._metadata.acknowledge(self._node, self._functions.applied, 0)

    async def _again_and_again(self, follow: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        retry_s = RETRY_S_MIN

        def listed() -> None:
            nonlocal retry_s
            retry_s = RETRY_S_MIN

        while True:
            try:
                await follow(listed)
            except WatchGap:
                continue
            except StoreClosed:
                return
            except StorageFault as fault:
                self._log.warning("metadata store away", error=str(fault), retry_s=retry_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def _follow_functions(self, listed: Callable[[], None]) -> None:
        await self._metadata.acknowledge(self._node, 0, LEASE_S)
        listing = await self._metadata.list(PREFIX)
        self._functions.replace(listing)
        await self._acknowledge()
        self._functions.on_current()
        listed()
        self._listed(PREFIX)
        renewing = asyncio.create_task(self._renew(), name="renew metadata lease")
        try:
            async for change in self._metadata.watch(PREFIX, after=listing.revision):
                if self._functions.apply(change):
                    self._due.set()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    def _listed(self, prefix: str) -> None:
        self._unlisted.discard(prefix)
        if not self._unlisted:
            self.ready.set()

    async def _renew(self) -> None:
        """Acknowledge at once when somebody waits for it, else often enough to keep the lease."""
        while True:
            try:
                async with asyncio.timeout(LEASE_S / 3):
                    await self._due.wait()
            except TimeoutError:
                pass  # nobody waits: the lease is due
            self._due.clear()
            try:
                await self._acknowledge()
            except StoreClosed:
                return
            except StorageFault as fault:
                self._log.warning("metadata not acknowledged", error=str(fault))
                await asyncio.sleep(RETRY_S_MIN)
                self._due.set()

    async def _acknowledge(self) -> None:
        before = self._clock.monotonic()
        await self._metadata.acknowledge(self._node, self._functions.applied, LEASE_S)
        self._functions.serve_until(before + LEASE_S)

    async def _follow_keys(self, listed: Callable[[], None]) -> None:
        listing = await self._ring.relist(self._clock)
        listed()
        self._listed(keys.PREFIX)
        again = asyncio.create_task(self._list_keys_again(), name="list keys again")
        try:
            async for change in self._metadata.watch(keys.PREFIX, after=listing.revision):
                self._ring.apply(change.key, change.value, change.revision)
        finally:
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)

    async def _list_keys_again(self) -> None:
        """A revoked key is refused everywhere within 2 s, also where the watch is late or misses a change."""
        while True:
            await next_beat(KEYS_LISTED_S)
            try:
                await self._ring.relist(self._clock)
            except StoreClosed:
                return
            except StorageFault as fault:
                self._log.warning("keys not listed", error=str(fault))
