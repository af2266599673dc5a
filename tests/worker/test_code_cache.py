"""Code by ticket: who has it serves it, whoever was asked first."""

import asyncio
import hashlib
import tempfile
from typing import BinaryIO, cast

import pytest

from chassis.faults import Fault
from chassis.process import Tasks
from simulation.sandbox_driver import MemoryDriver
from worker.code_cache import CodeCache, CodeFault
from worker.messages import Ticket

DATA = b"an archive"


class Source:
    """Frontends by name: each serves the archive, has to wait for its store until ``store`` is set, or is away."""

    def __init__(self, **frontends: str) -> None:
        self.frontends = frontends
        self.store = asyncio.Event()
        self.asked: list[str] = []

    def addresses(self, _ticket):
        return list(self.frontends)

    async def fetch(self, address, _ticket):
        self.asked.append(address)
        if self.frontends[address] == "away":
            raise Fault("it is away", definite=True)
        if self.frontends[address] == "waits":
            await self.store.wait()
        yield DATA


@pytest.fixture
async def tasks():
    made = Tasks()
    yield made
    await made.cancel()


def cache_of(source, tasks):
    def scratch() -> BinaryIO:
        return cast("BinaryIO", tempfile.TemporaryFile())

    return CodeCache(driver=MemoryDriver(), source=source, tasks=tasks, scratch=scratch)


def ticket():
    return Ticket(sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA), expires=1e12, signature=b"")


async def test_who_has_it_in_memory_serves_it_while_the_store_is_away(tasks):
    source = Source(one="waits", two="waits", three="serves")
    await cache_of(source, tasks).ensure(ticket())
    assert source.asked == ["one", "two", "three"]


async def test_where_nobody_has_it_the_store_is_waited_for(tasks):
    source = Source(one="waits", two="away")
    coming = asyncio.ensure_future(cache_of(source, tasks).ensure(ticket()))
    async with asyncio.timeout(30):
        while len(source.asked) < 3:
            await asyncio.sleep(0.01)
    assert source.asked == ["one", "two", "one"], "who is away isn't asked again"
    assert not coming.done()
    source.store.set()
    await coming


async def test_where_nobody_can_serve_it_each_reason_is_told(tasks):
    with pytest.raises(CodeFault, match="one: it is away; two: it is away"):
        await cache_of(Source(one="away", two="away"), tasks).ensure(ticket())
