"""Code tickets: who may fetch what, and for how long."""

import random

import pytest

from chassis.faults import Fault, FaultCode
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers
from frontend.code_blobs import CodeBlobs
from frontend.tickets import LIFETIME_S, CodeService, Tickets, derive_key
from protos import frontend_pb2, frontend_rpc
from storage.memory import MemoryBlobs

WORKER = Caller(service="worker", node="worker-az1", az="az1", host="h1")
FRONTEND = Caller(service="frontend", node="frontend-az1", az="az1", host="h1")


class StandingClock:
    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now


@pytest.fixture
async def world():
    clock, blobs = StandingClock(), MemoryBlobs()
    tickets = Tickets(derive_key(b"k" * 32, "code tickets"), clock, lambda: ["here:1", "there:2"])
    fabric = Fabric()
    handlers = Handlers()
    handlers.fetch(frontend_rpc.FETCH, CodeService(tickets, CodeBlobs(blobs)).fetch)
    server = await fabric.network(FRONTEND).serve("mem:0", handlers)
    channel = fabric.network(WORKER).connect(server.address, service="frontend")

    async def fetch(ticket):
        request = frontend_pb2.FetchRequest(ticket=ticket)
        return [chunk.data async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=5)]

    yield clock, blobs, tickets, fetch
    await server.close(0)


async def test_a_ticket_buys_the_archive_in_small_chunks(world):
    _, blobs, tickets, fetch = world
    code = random.Random(1).randbytes(300_000)
    blob = await CodeBlobs(blobs).put(code)
    ticket = tickets.issue(blob, len(code))
    chunks = await fetch(ticket)
    assert b"".join(chunks) == code
    assert max(map(len, chunks)) <= 64 * 1024
    assert list(ticket.addresses) == ["here:1", "there:2"]


@pytest.mark.parametrize("field", ["sha256", "size", "expires", "signature"])
async def test_a_ticket_that_was_changed_buys_nothing(world, field):
    _, blobs, tickets, fetch = world
    other = await CodeBlobs(blobs).put(b"another's code")
    ticket = tickets.issue(await CodeBlobs(blobs).put(b"code"), 4)
    setattr(ticket, field, {"sha256": other, "size": 5, "expires": 9e9, "signature": b"x" * 32}[field])
    with pytest.raises(Fault) as caught:
        await fetch(ticket)
    assert caught.value.code is FaultCode.DENIED


async def test_a_ticket_ends(world):
    clock, blobs, tickets, fetch = world
    ticket = tickets.issue(await CodeBlobs(blobs).put(b"code"), 4)
    clock.now += LIFETIME_S
    assert await fetch(ticket) == [b"code"]
    clock.now += 1
    with pytest.raises(Fault, match="expired"):
        await fetch(ticket)


async def test_code_that_is_gone_and_code_that_is_corrupt_are_typed(world):
    _, blobs, tickets, fetch = world
    with pytest.raises(Fault) as caught:
        await fetch(tickets.issue("0" * 64, 4))
    assert caught.value.code is FaultCode.NOT_FOUND
    blob = await CodeBlobs(blobs).put(b"code")
    blobs.damage(blob)
    with pytest.raises(Fault, match="corrupt"):
        await fetch(tickets.issue(blob, 4))


def test_keys_of_two_purposes_differ():
    assert derive_key(b"k" * 32, "code tickets") != derive_key(b"k" * 32, "code links")
