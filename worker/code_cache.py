"""Code by ticket: an archive comes from a frontend once, is verified, and goes to the driver's cache.

Owns joining concurrent fetches and the digest check while streaming. Refuses to know the store (workers have no
credentials for it) and what is in an archive (the driver unpacks it in confinement).
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import BinaryIO, Protocol

import structlog

from chassis.faults import Fault, FaultCode
from chassis.metrics import Counts
from chassis.process import Tasks
from worker import messages as m
from worker.sandbox.driver import SandboxDriver, UnpackLimits

ARCHIVE_BYTES_MAX = 64 * 1024 * 1024  # zips come through the API: 50 MB
BEGINS_S = 1.0  # a frontend that has to wait longer for its store isn't waited for before all others were asked

_log = structlog.get_logger(__name__)

Scratch = Callable[[], BinaryIO]


class CodeSource(Protocol):
    """Frontends, by address."""

    def addresses(self, ticket: m.Ticket) -> Sequence[str]:
        """Whom to ask, best first."""
        ...

    def fetch(self, address: str, ticket: m.Ticket) -> AsyncIterator[bytes]:
        """The archive's chunks. Raises Fault."""
        ...


class CodeFault(Fault):
    """The code could not be had: names the digest, and what each address said."""

    code = FaultCode.UNAVAILABLE
    definite = True


class CodeCache:
    """``scratch`` makes a seekable file without a name."""

    def __init__(self, *, driver: SandboxDriver, source: CodeSource, scratch: Scratch, tasks: Tasks) -> None:
        self._driver = driver
        self._source = source
        self._scratch = scratch
        self._tasks = tasks
        self._coming: dict[str, asyncio.Task[None]] = {}
        self.counts = Counts([("cached",), ("fetched",), ("joined",), ("failed",)])

    async def ensure(self, ticket: m.Ticket) -> None:
        """Returns once the code is unpacked here. Raises CodeFault, BadArchive, SandboxFault."""
        if await self._driver.has_code(ticket.sha256):
            self.counts.add("cached")
            return
        coming = self._coming.get(ticket.sha256)
        if coming is not None:
            self.counts.add("joined")
        else:
            coming = self._tasks.start(self._bring(ticket), name=f"code {ticket.sha256[:12]}")
            self._coming[ticket.sha256] = coming
            coming.add_done_callback(lambda _: self._coming.pop(ticket.sha256, None))
        await asyncio.shield(coming)  # one of those who wait may go: the others still want it

    async def _bring(self, ticket: m.Ticket) -> None:
        outcome = "failed"
        try:
            await self._fetch(ticket)
            outcome = "fetched"
        finally:
            self.counts.add(outcome)

    async def _fetch(self, ticket: m.Ticket) -> None:
        if ticket.size > ARCHIVE_BYTES_MAX:
            raise CodeFault(f"code {ticket.sha256} has {ticket.size} bytes, at most {ARCHIVE_BYTES_MAX} are fetched")
        try:
            await self._bring_in(ticket)
        except OSError as error:
            why = f"this host can't keep code {ticket.sha256} ({error.strerror})"
            raise CodeFault(f"{why}: free space on its disk") from error

    async def _bring_in(self, ticket: m.Ticket) -> None:
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(None, self._scratch)
        try:
            await self._download(ticket, file)
            unpacked = await self._driver.unpack(file, ticket.sha256, UnpackLimits())
            _log.info("code", sha256=ticket.sha256, size=ticket.size, unpacked=unpacked.size_bytes)
        finally:
            with contextlib.suppress(OSError):  # it has no name: nothing of it stays
                await loop.run_in_executor(None, file.close)

    async def _download(self, ticket: m.Ticket, file: BinaryIO) -> None:
        """From the first address that serves it whole. Raises CodeFault with what each one said.

        Who has the archive in memory serves it at once, also while the store is away and everybody else waits for it.
        """
        said: list[str] = []
        late: list[str] = []
        for addresses, begins_s in ((self._source.addresses(ticket), BEGINS_S), (late, None)):
            for address in addresses:
                try:
                    await self._download_from(address, ticket, file, begins_s)
                except TimeoutError:
                    late.append(address)
                except Fault as fault:
                    said.append(f"{address}: {fault.message}")
                else:
                    return
        raise CodeFault(f"no frontend served code {ticket.sha256}: {'; '.join(said) or 'none is known'}")

    async def _download_from(self, address: str, ticket: m.Ticket, file: BinaryIO, begins_s: float | None) -> None:
        """Raises Fault, and TimeoutError when not even the first chunk is there within ``begins_s``."""
        loop = asyncio.get_running_loop()
        digest, size = hashlib.sha256(), 0
        await loop.run_in_executor(None, _empty, file)
        async with asyncio.timeout(begins_s) as patience:
            async for chunk in self._source.fetch(address, ticket):
                patience.reschedule(None)
                size += len(chunk)
                if size > ticket.size:
                    raise CodeFault(f"more than the {ticket.size} bytes of its ticket")
                digest.update(chunk)
                await loop.run_in_executor(None, file.write, chunk)
        if size != ticket.size or digest.hexdigest() != ticket.sha256:
            raise CodeFault(f"{size} bytes of {digest.hexdigest()}: not what was asked for")
        await loop.run_in_executor(None, file.flush)


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
