"""Certificates that live for seconds, renewed under running streams and calls; expired and revoked ones refused.

Real sockets, and the chain that a cluster has: root, an intermediate per placement, a process's own.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis.certificates import Authority, Tls
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.process import Tasks
from chassis.rpc import Caller, Handlers
from protos import counting_pb2, counting_rpc, frontend_pb2, frontend_rpc

FRONTEND = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h1", enrolment=1)
COUNTING = Caller(service="counting", node="counting-az1", az="az1", host="h1", enrolment=1)
WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="h2", enrolment=1)
LONG = counting_pb2.FrontendAnswer.Unavailable(reason="x" * 500_000)
LIFETIME_S = 4.0
RENEWED_S = 1.0     # after so long, as often as the certificates of a cluster are renewed within their lifetime

BOTH = pytest.mark.parametrize("kind", [GrpcNetwork, FramedNetwork])


class Region:
    """Two placements' intermediates under one root, and who got certificates."""

    def __init__(self) -> None:
        self.root = Authority.create()
        self.placements = [self.root.intermediate(f"placement-az{number}") for number in (1, 2)]
        self._turn = 0

    def issue(self, caller: Caller, *, lifetime_s: float = 3600.0, now: float | None = None) -> Tls:
        """By one placement after the other."""
        self._turn += 1
        return self.placements[self._turn % 2].issue(caller, lifetime_s=lifetime_s, now=now)

    def credentials(self, caller: Caller, **how: float) -> Credentials:
        return Credentials(self.issue(caller, **how))


@pytest.fixture(scope="module")
def region() -> Region:
    return Region()


def handlers() -> Handlers:
    made = Handlers()

    async def echo(stream, caller):
        while (message := await stream.receive()) is not None:
            await stream.send(counting_pb2.FrontendAnswer(stamp=counting_pb2.Stamp(index=message.sequence)))

    async def limits(request, caller):
        return counting_pb2.GetLimitsAnswer(account_limit=caller.enrolment)

    async def fetch(request, caller) -> AsyncIterator[frontend_pb2.CodeChunk]:
        yield frontend_pb2.CodeChunk(data=b"first")
        await asyncio.get_running_loop().create_future()

    made.bidi(counting_rpc.FRONTEND, echo)
    made.unary(counting_rpc.GET_LIMITS, limits)
    made.fetch(frontend_rpc.FETCH, fetch)
    return made


async def echoes(stream, number: int) -> None:
    """Raises Fault when the stream is broken."""
    async with asyncio.timeout(60):
        await stream.send(counting_pb2.FrontendMessage(sequence=number))
        answer = await stream.receive()
    assert answer is not None
    assert answer.stamp.index == number


async def opened(channel) -> None:
    """A new stream does its work. Raises Fault."""
    stream = channel.stream(counting_rpc.FRONTEND)
    try:
        await echoes(stream, 7)
    finally:
        stream.cancel()


async def broken(stream) -> None:
    """After whatever was on its way."""
    try:
        while await stream.receive() is not None:
            pass
    except Fault:
        return
    pytest.fail("the stream finished instead of breaking")


async def refused(channel) -> Fault:
    """Sends nothing: gRPC in Python may lose a call's status to a message that it can no longer send."""
    stream = channel.stream(counting_rpc.FRONTEND)
    async with asyncio.timeout(60):
        with pytest.raises(Fault) as caught:
            await stream.receive()
    await channel.close()
    return caught.value


@BOTH
async def test_what_runs_goes_on_while_certificates_are_renewed_and_expire(region, kind):
    """A stream that outlives its certificates, streams opened all the time, calls all the time: nothing fails."""
    ends = {COUNTING: region.credentials(COUNTING, lifetime_s=LIFETIME_S),
            FRONTEND: region.credentials(FRONTEND, lifetime_s=LIFETIME_S)}
    server = await kind(ends[COUNTING]).serve("127.0.0.1:0", handlers())
    channel = kind(ends[FRONTEND]).connect(server.address, service="counting", node="counting-az1")
    stream = channel.stream(counting_rpc.FRONTEND)
    until = time.monotonic() + LIFETIME_S + 2 * RENEWED_S
    done = {"exchanged": 0, "opened": 0, "called": 0, "renewed": 0}

    async def exchange():
        while time.monotonic() < until:
            await echoes(stream, done["exchanged"])
            done["exchanged"] += 1

    async def open_more():
        while time.monotonic() < until:
            await opened(channel)
            done["opened"] += 1

    async def call():
        while time.monotonic() < until:
            answer = await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60)
            assert answer.account_limit == 1
            done["called"] += 1
            await asyncio.sleep(0.002)

    async def renew():
        while time.monotonic() < until:
            await asyncio.sleep(RENEWED_S)
            for caller, credentials in ends.items():
                credentials.replace(region.issue(caller, lifetime_s=LIFETIME_S))
                done["renewed"] += 1

    work = [exchange(), open_more(), renew()] + ([call()] if kind is GrpcNetwork else [])
    async with asyncio.TaskGroup() as tasks:
        for part in work:
            tasks.create_task(part)
    assert done["exchanged"] > 50
    assert done["opened"] > 10
    assert done["renewed"] >= 6
    assert done["called"] > 10 or kind is FramedNetwork
    await channel.close()
    await server.close(0)


async def test_an_older_connection_closes_when_its_last_stream_is_over(region):
    credentials = region.credentials(FRONTEND)
    server = await GrpcNetwork(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    channel = GrpcNetwork(credentials).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    await echoes(stream, 1)
    for _ in range(3):
        credentials.replace(region.issue(FRONTEND))
        await opened(channel)
    await echoes(stream, 2)
    await fewer_connections(server.address, 2)      # the one that the stream keeps, and the newest
    await stream.finish()
    assert await stream.receive() is None
    del stream
    await fewer_connections(server.address, 1)
    await channel.close()
    await server.close(0)


async def fewer_connections(address: str, number: int) -> None:
    async with asyncio.timeout(60):
        while connections(address) > number:
            await asyncio.sleep(0.02)
    assert connections(address) == number


def connections(address: str) -> int:
    """Established ones at this port, by the kernel's tables."""
    port = int(address.rsplit(":", 1)[1])
    rows = [
        line.split() for table in ("/proc/net/tcp", "/proc/net/tcp6") for line in Path(table).read_text().splitlines()
    ]
    return sum(row[3] == "01" and int(row[1].rsplit(":", 1)[1], 16) == port for row in rows)


@BOTH
async def test_expired_certificates_are_refused_at_either_end(region, kind):
    past = time.time() - 60.0
    fresh = await kind(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    stale = await kind(region.credentials(COUNTING, lifetime_s=30.0, now=past)).serve("127.0.0.1:0", handlers())
    expired = kind(region.credentials(FRONTEND, lifetime_s=30.0, now=past))
    await refused(expired.connect(fresh.address, service="counting"))
    good = kind(region.credentials(FRONTEND))
    await refused(good.connect(stale.address, service="counting"))
    await opened(good.connect(fresh.address, service="counting"))
    for server in (fresh, stale):
        await server.close(0)


@BOTH
async def test_a_channel_whose_certificate_expired_dials_again_with_the_next_one(region, kind):
    credentials = region.credentials(FRONTEND, lifetime_s=30.0, now=time.time() - 60.0)
    server = await kind(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    channel = kind(credentials).connect(server.address, service="counting")
    with pytest.raises(Fault):
        await opened(channel)
    credentials.replace(region.issue(FRONTEND))
    await opened(channel)
    await channel.close()
    await server.close(0)


@BOTH
async def test_a_certificate_of_another_root_or_without_its_intermediate_is_refused(region, kind):
    server = await kind(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    own = region.issue(FRONTEND)
    elsewhere = Authority.create().intermediate("placement-az1").issue(FRONTEND)
    for tls in (
        dataclasses.replace(elsewhere, authority=own.authority),
        elsewhere,
        dataclasses.replace(own, certificate=own.certificate.partition(b"-----END CERTIFICATE-----\n")[0]
                            + b"-----END CERTIFICATE-----\n"),
    ):
        await refused(kind(Credentials(tls)).connect(server.address, service="counting"))
    await server.close(0)


@BOTH
async def test_a_listener_follows_a_new_authority(region, kind):
    """As a root is replaced: first both are known, then the new one alone."""
    later = Authority.create()
    both = region.root.pem + later.pem
    serving = region.credentials(COUNTING)
    server = await kind(serving).serve("127.0.0.1:0", handlers())
    old = dataclasses.replace(region.issue(FRONTEND), authority=both)
    new = dataclasses.replace(later.intermediate("placement-az1").issue(FRONTEND), authority=both)
    await refused(kind(Credentials(new)).connect(server.address, service="counting"))
    serving.replace(dataclasses.replace(serving.current, authority=both))
    for tls in (old, new):
        await opened(kind(Credentials(tls)).connect(server.address, service="counting"))
    serving.replace(later.intermediate("placement-az1").issue(COUNTING))
    await refused(kind(Credentials(old)).connect(server.address, service="counting"))
    await opened(kind(Credentials(new)).connect(server.address, service="counting"))
    await server.close(0)


@BOTH
async def test_a_revoked_node_is_refused_and_its_streams_are_cut(region, kind):
    serving = region.credentials(COUNTING)
    server = await kind(serving).serve("127.0.0.1:0", handlers())
    channel = kind(region.credentials(FRONTEND)).connect(server.address, service="counting")
    other = kind(region.credentials(dataclasses.replace(FRONTEND, node="frontend-az2-1"))).connect(
        server.address, service="counting"
    )
    stream, others = channel.stream(counting_rpc.FRONTEND), other.stream(counting_rpc.FRONTEND)
    await echoes(stream, 1)
    await echoes(others, 1)
    serving.revoked.add({FRONTEND.node: 1})
    async with asyncio.timeout(60):
        with pytest.raises(Fault, match="was revoked") as caught:
            await stream.receive()
    assert (caught.value.code, caught.value.definite) == (FaultCode.DENIED, True)
    assert (await refused(channel)).code is FaultCode.DENIED
    await echoes(others, 2)
    successor = kind(region.credentials(dataclasses.replace(FRONTEND, enrolment=2)))
    await opened(successor.connect(server.address, service="counting"))
    await other.close()
    await server.close(0)


@BOTH
async def test_what_a_revoked_placement_signed_is_refused_and_cut(region, kind):
    serving = Credentials(region.placements[1].issue(COUNTING))
    server = await kind(serving).serve("127.0.0.1:0", handlers())
    channels = [
        kind(Credentials(placement.issue(FRONTEND))).connect(server.address, service="counting")
        for placement in region.placements
    ]
    streams = [channel.stream(counting_rpc.FRONTEND) for channel in channels]
    for stream in streams:
        await echoes(stream, 1)
    serving.revoked.add({"placement-az1": 1})
    async with asyncio.timeout(60):
        with pytest.raises(Fault, match="issued by placement-az1"):
            await streams[0].receive()
    assert (await refused(channels[0])).code is FaultCode.DENIED
    await echoes(streams[1], 2)
    await channels[1].close()
    await server.close(0)


async def test_an_operator_whom_a_placement_signed_for_is_refused_while_nobody_is_revoked(region):
    """Who has stolen an intermediate would admit nodes of his own, whom its revocation doesn't reach."""
    server = await GrpcNetwork(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    operator = Caller(service="operator", node="operator", az="az1", host="operator", enrolment=1)
    for issuer in (region.root, region.placements[0]):
        channel = GrpcNetwork(Credentials(issuer.issue(operator))).connect(server.address, service="counting")
        asked = channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60)
        if issuer is region.root:
            assert (await asked).account_limit == 1
        else:
            with pytest.raises(Fault, match="the root's own") as caught:
                await asked
            assert (caught.value.code, caught.value.definite) == (FaultCode.DENIED, True)
        await channel.close()
    await server.close(0)


async def test_calls_and_fetches_of_a_revoked_node_end_too(region):
    serving = region.credentials(COUNTING)
    network = GrpcNetwork(serving)
    server = await network.serve("127.0.0.1:0", handlers())
    channel = GrpcNetwork(region.credentials(FRONTEND)).connect(server.address, service="counting")
    await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60)
    fetching = GrpcNetwork(region.credentials(WORKER)).connect(server.address, service="counting")
    chunks = fetching.fetch(frontend_rpc.FETCH, frontend_pb2.FetchRequest(), timeout_s=120)
    assert (await anext(chunks)).data == b"first"
    network.revoke({FRONTEND.node: 1, WORKER.node: 1})
    for broken in (
        anext(chunks), channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60),
    ):
        async with asyncio.timeout(60):
            with pytest.raises(Fault, match="was revoked"):
                await broken
    for each in (channel, fetching):
        await each.close()
    await server.close(0)


@BOTH
async def test_a_revoked_node_that_does_not_read_is_cut_all_the_same(region, kind):
    made, ended = Handlers(), asyncio.Event()

    async def flood(stream, caller):
        try:
            while True:
                await stream.send(counting_pb2.FrontendAnswer(unavailable=LONG))
        finally:
            ended.set()

    made.bidi(counting_rpc.FRONTEND, flood)
    serving = region.credentials(COUNTING)
    server = await kind(serving).serve("127.0.0.1:0", made)
    channel = kind(region.credentials(FRONTEND)).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    async with asyncio.timeout(60):
        assert await stream.receive() is not None
        serving.revoked.add({FRONTEND.node: 1})
        await ended.wait()
        await broken(stream)
    await channel.close()
    await server.close(0)


@BOTH
async def test_streams_to_a_revoked_node_are_cut_by_who_dialled_it(region, kind):
    credentials = region.credentials(FRONTEND)
    server = await kind(region.credentials(COUNTING)).serve("127.0.0.1:0", handlers())
    channel = kind(credentials).connect(server.address, service="counting", node="counting-az1")
    stream = channel.stream(counting_rpc.FRONTEND)
    await echoes(stream, 1)
    reading = Tasks().start(stream.receive(), name="read")
    credentials.revoked.add({"counting-az1": 1})
    async with asyncio.timeout(60):
        with pytest.raises(Fault) as caught:
            await reading
    assert caught.value.code is FaultCode.CANCELLED
    if kind is FramedNetwork:   # gRPC's library tells a client only that the name is right
        assert (await refused(channel)).code is FaultCode.DENIED
    await server.close(0)
