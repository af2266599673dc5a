"""Code archives that went through a frontend are there while the blob store isn't."""

import contextlib

import pytest

from chassis.clock import SystemClock
from frontend.code_blobs import CodeBlobs
from simulation.store_link import BlobLink, StoreLink
from storage.faults import StoreUnavailable
from storage.memory import MemoryBlobs, MemoryMetadata


def stores():
    way = StoreLink(MemoryMetadata(SystemClock()))
    return BlobLink(MemoryBlobs(), way), way


async def read(blobs, sha256):
    return b"".join([chunk async for chunk in blobs.get(sha256)])


async def test_what_was_put_or_read_here_is_there_while_the_store_is_away():
    store, way = stores()
    one, other = CodeBlobs(store), CodeBlobs(store)
    code = b"code" * 100_000
    sha256 = await one.put(code)
    assert await read(other, sha256) == code
    unread = await other.put(b"unread")
    way.cut()
    assert await read(one, sha256) == await read(other, sha256) == code
    assert await read(other, unread) == b"unread"
    with pytest.raises(StoreUnavailable):
        await read(one, unread)


async def test_what_is_kept_is_bounded_and_the_one_used_longest_ago_goes():
    store, way = stores()
    blobs = CodeBlobs(store, kept_bytes_max=250)
    first, second = await blobs.put(b"1" * 100), await blobs.put(b"2" * 100)
    assert await read(blobs, first) == b"1" * 100
    third, large = await blobs.put(b"3" * 100), await blobs.put(b"4" * 300)
    way.cut()
    assert await read(blobs, first) == b"1" * 100
    assert await read(blobs, third) == b"3" * 100
    for gone in (second, large):
        with pytest.raises(StoreUnavailable):
            await read(blobs, gone)


async def test_fetches_at_once_collect_one_copy_of_each_and_no_more_than_may_be_kept():
    store, way = stores()
    blobs, other = CodeBlobs(store, kept_bytes_max=500_000), CodeBlobs(store)
    first, second = await other.put(b"1" * 300_000), await other.put(b"2" * 300_000)
    fetches = [aiter(blobs.get(sha256)) for sha256 in (first, first, second)]
    got = [[await anext(fetch)] for fetch in fetches]
    assert set(blobs._collected) == {first}, "the second one would be too much beside it"
    assert sum(blobs._collected.values()) == len(got[0][0])
    for chunks, fetch in zip(got, fetches, strict=True):
        chunks += [chunk async for chunk in fetch]
    assert [b"".join(chunks) for chunks in got] == [b"1" * 300_000] * 2 + [b"2" * 300_000]
    assert blobs._collected == {}
    way.cut()
    assert await read(blobs, first) == b"1" * 300_000
    with pytest.raises(StoreUnavailable):
        await read(blobs, second)


async def test_a_fetch_that_was_given_up_collects_no_more():
    store, way = stores()
    blobs = CodeBlobs(store)
    sha256 = await CodeBlobs(store).put(b"1" * 600_000)
    async with contextlib.aclosing(blobs.get(sha256)) as fetch:  # type: ignore[type-var]
        await anext(fetch)
    assert blobs._collected == {}
    assert await read(blobs, sha256) == b"1" * 600_000
    way.cut()
    assert await read(blobs, sha256) == b"1" * 600_000
