"""Bringing creations and updates to their end: Pending to Active, InProgress to Successful.

Owns the waiting for every live frontend's acknowledgement and the completion of the phase, also for a frontend that
died in between. Refuses to know what was created or updated.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from chassis.faults import Fault
from frontend.api.ports import Functions, Ids
from frontend.functions import FunctionRecord, Phase, settle
from storage.interfaces import MetadataStore

POLL_S_MIN, POLL_S_MAX = 0.01, 0.25
# A frontend that began a change normally completes it within a fraction of a second. After this the others do it.
ORPHAN_S = 3.0
# A deletion is answered after at most this, whoever hasn't acknowledged it.
DELETION_S_MAX = 2.0
# A manager that hasn't answered by then is asked again: the function may have another one by now.
RETIRE_S = 2.0

# Returns when nothing older than the record's revision can start (``deleted``: nothing of it); raises Fault.
Retire = Callable[[FunctionRecord, bool], Awaitable[None]]


class _Settled(Exception):
    """Somebody else has completed the phase, or another change came after it."""


class Settler:
    """One per frontend. Tasks are held until they end; ``close`` cancels them (another frontend completes the rest).

    A phase ends when every live frontend has acknowledged it, so that what comes from now on gets the new revision,
    and the function's manager has retired the older ones, so that what was on its way can't start them either.
    """

    def __init__(self, metadata: MetadataStore, functions: Functions, ids: Ids, retire: Retire) -> None:
        self._metadata = metadata
        self._retire = retire
        self._functions = functions
        self._ids = ids
        self._log = structlog.get_logger("frontend.settling")
        self._tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}

    def begin(self, record: FunctionRecord, stored: int) -> None:
        """Complete the phase that this frontend has begun."""
        self._start(record, stored, 0.0, replace=True)

    def adopt(self, record: FunctionRecord, stored: int) -> None:
        """Complete a phase that was seen in the store, should the frontend that began it not do so."""
        self._start(record, stored, ORPHAN_S, replace=False)

    async def deleted(self, record: FunctionRecord, stored: int) -> None:
        try:
            async with asyncio.timeout(DELETION_S_MAX):
                await self._retire(record, True)
                await self.acknowledged(stored)
        except (TimeoutError, Fault) as late:
            # It is deleted all the same: each frontend answers 404 once it knows, and tells the manager.
            self._log.warning("deletion not known to all", function=record.name, revision=stored, error=str(late))

    async def acknowledged(self, stored: int) -> None:
        """Return when no live frontend may still serve from anything older than store revision ``stored``."""
        pause_s = POLL_S_MIN
        while any(each.revision < stored for each in await self._metadata.acknowledgements()):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_S_MAX)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, record: FunctionRecord, stored: int, after_s: float, *, replace: bool) -> None:
        at = (record.account, record.name, record.revision)
        running = self._tasks.get(at)
        if running is not None:
            if not replace:
                return
            running.cancel()
        task = asyncio.create_task(self._complete(record, stored, after_s), name=f"settle {record.name}")
        self._tasks[at] = task
        task.add_done_callback(self._forget(at))

    def _forget(self, at: tuple[str, str, int]) -> Callable[[asyncio.Task[None]], None]:
        def done(task: asyncio.Task[None]) -> None:
            if self._tasks.get(at) is task:
                del self._tasks[at]

        return done

    async def _complete(self, record: FunctionRecord, stored: int, after_s: float) -> None:
        def how(current: FunctionRecord) -> FunctionRecord:
            if current.revision != record.revision or current.phase is Phase.ACTIVE:
                raise _Settled
            return settle(current, revision_id=self._ids.uuid())

        pause_s = after_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.acknowledged(stored)
                if record.revision > 1:
                    async with asyncio.timeout(RETIRE_S):
                        await self._retire(record, False)
                await self._functions.change(record.account, record.name, how)
            except _Settled:
                return
            except (Fault, TimeoutError) as late:
                self._log.warning("not settled yet", function=record.name, error=str(late) or "its manager is silent")
                pause_s = 1.0
                continue
            return
