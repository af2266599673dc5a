"""A host whose disk is full: code is refused by name, log lines are lost whole, and with room both are kept again."""

import hashlib
import json
import os
import tempfile
from typing import BinaryIO, cast

import pytest

from chassis.process import Tasks
from simulation.sandbox_driver import MemoryDriver
from tests.small_disk import small_disk
from worker.code_cache import CodeCache, CodeFault
from worker.logs import FunctionLogs, RotatedFiles
from worker.messages import Ticket

KEY = ("000000000000", "f")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", size_mb=2) as made:
        yield made


class Source:
    """One frontend that serves one archive."""

    def __init__(self, data):
        self.data = data

    def addresses(self, ticket):
        return ["frontend-1"]

    async def fetch(self, address, ticket):
        yield self.data


async def test_code_that_does_not_fit(disk):
    data = os.urandom(300_000)
    tasks = Tasks()

    def scratch() -> BinaryIO:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=disk.path))

    cache = CodeCache(driver=MemoryDriver(), source=Source(data), tasks=tasks, scratch=scratch)
    ticket = Ticket(sha256=hashlib.sha256(data).hexdigest(), size=len(data), expires=1e12, signature=b"")
    disk.fill()
    with pytest.raises(CodeFault, match=r"this host can't keep code .* \(No space left on device\): free space"):
        await cache.ensure(ticket)
    disk.empty()
    before = disk.free_bytes
    await cache.ensure(ticket)
    assert disk.free_bytes == before, "what was fetched is unpacked and not kept twice"
    await tasks.cancel()


async def test_lines_of_functions_are_lost_whole(disk):
    files = RotatedFiles(disk.path / "logs", file_bytes_max=1_000_000)
    logs = FunctionLogs(files)
    logs.start()
    try:
        await say(logs, "first")
        disk.fill()
        await say(logs, "x" * 100_000)
        disk.empty()
        await say(logs, "last")
    finally:
        await logs.close()
    assert [json.loads(line)["message"] for line in files.read(KEY).splitlines()] == ["first", "last"]


async def say(logs, message):
    logs.append(KEY, at_ms=1, stream="s", message=message)
    await logs._flush()
