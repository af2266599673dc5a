"""The contract in memory."""

from collections.abc import AsyncIterator

import pytest

from tests.storage import contract
from tests.storage.worlds import MemoryWorld


@pytest.fixture
async def world() -> AsyncIterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    await world.close()


class TestCompareAndSwap(contract.CompareAndSwapContract): ...


class TestWatch(contract.WatchContract): ...


class TestAcknowledgement(contract.AcknowledgementContract): ...


class TestLease(contract.LeaseContract): ...


class TestBlob(contract.BlobContract): ...
