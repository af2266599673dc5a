"""One suite over both networks: what a service may rely on, whichever carries it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from chassis.certificates import Authority
from chassis.faults import Fault, FaultCode
from chassis.grpc_network import GrpcNetwork, is_serving
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers, Network, Outbox, converse
from protos import counting_pb2, counting_rpc, frontend_pb2, frontend_rpc

FRONTEND = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h1")
COUNTING = Caller(service="counting", node="counting-az1", az="az1", host="h1")
WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="h2")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture(params=["memory", "grpc"])
async def network_of(request, authority):
    fabric = Fabric()

    def make(caller: Caller) -> Network:
        return fabric.network(caller) if request.param == "memory" else GrpcNetwork(authority.issue(caller))

    return make


async def serve_counting(network_of):
    handlers = Handlers()

    async def limits(request, caller):
        if request.account == "refused":
            raise Fault("no such account: refused", code=FaultCode.NOT_FOUND, definite=True)
        return counting_pb2.GetLimitsAnswer(account_limit=len(caller.node))

    async def frontend(stream, caller):
        while (message := await stream.receive()) is not None:
            if message.HasField("goodbye"):
                raise Fault("session over", code=FaultCode.CONFLICT, definite=True)
            answer = counting_pb2.FrontendAnswer(stamp=counting_pb2.Stamp(index=message.sequence))
            await stream.send(answer)

    handlers.unary(counting_rpc.GET_LIMITS, limits)
    handlers.bidi(counting_rpc.FRONTEND, frontend)
    return await network_of(COUNTING).serve("127.0.0.1:0", handlers)


async def test_unary_call_carries_the_caller_and_faults(network_of):
    server = await serve_counting(network_of)
    channel = network_of(FRONTEND).connect(server.address, service="counting", node="counting-az1")
    answer = await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=5)
    assert answer.account_limit == len(FRONTEND.node)
    with pytest.raises(Fault) as caught:
        await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account="refused"), timeout_s=5)
    assert (caught.value.code, caught.value.definite) == (FaultCode.NOT_FOUND, True)
    assert "no such account: refused" in caught.value.message
    await channel.close()
    await server.close(0)


async def test_stream_is_ordered_batched_and_ends_with_the_fault_of_the_handler(network_of):
    server = await serve_counting(network_of)
    channel = network_of(FRONTEND).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    outbox: Outbox[counting_pb2.FrontendMessage] = Outbox(stream)
    got: list[int] = []

    def on_message(answer):
        got.append(answer.stamp.index)
        if len(got) == 100:
            outbox.put(counting_pb2.FrontendMessage(goodbye=counting_pb2.FrontendMessage.Goodbye()))

    for number in range(100):
        outbox.put(counting_pb2.FrontendMessage(sequence=number))
    with pytest.raises(Fault) as caught:
        await converse(stream, outbox, on_message)
    assert got == list(range(100))
    assert (caught.value.code, caught.value.definite) == (FaultCode.CONFLICT, True)
    await channel.close()
    await server.close(0)


async def break_of(stream) -> Fault:
    try:
        while await stream.receive() is not None:
            pass
    except Fault as fault:
        return fault
    pytest.fail("the stream finished instead of breaking")


async def test_the_serving_side_cuts_a_peer_that_does_not_read(network_of):
    handlers = Handlers()
    ended = asyncio.Event()

    async def frontend(stream, caller):
        outbox: Outbox[counting_pb2.FrontendAnswer] = Outbox(stream, limit=3)
        for _ in range(4):
            outbox.put(counting_pb2.FrontendAnswer())
        try:
            await converse(stream, outbox, lambda _message: None)
        finally:
            ended.set()

    handlers.bidi(counting_rpc.FRONTEND, frontend)
    server = await network_of(COUNTING).serve("127.0.0.1:0", handlers)
    channel = network_of(FRONTEND).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    async with asyncio.timeout(5):
        fault = await break_of(stream)
        await ended.wait()
    assert fault.code is FaultCode.CANCELLED
    await channel.close()
    await server.close(0)


async def test_a_certificate_opens_only_what_the_table_says(network_of):
    server = await serve_counting(network_of)
    channel = network_of(WORKER).connect(server.address, service="counting")
    with pytest.raises(Fault) as caught:
        await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=5)
    assert caught.value.code is FaultCode.DENIED
    stream = channel.stream(counting_rpc.FRONTEND)
    with pytest.raises(Fault) as caught:
        await stream.receive()
    assert caught.value.code is FaultCode.DENIED
    await channel.close()
    await server.close(0)


async def test_a_peer_of_another_service_or_node_is_refused_by_the_dialling_side(network_of):
    server = await serve_counting(network_of)
    for service, node in (("placement", ""), ("counting", "counting-az2")):
        channel = network_of(FRONTEND).connect(server.address, service=service, node=node)
        with pytest.raises(Fault):
            await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=1)
        await channel.close()
    await server.close(0)


async def test_fetch_streams_down(network_of):
    handlers = Handlers()

    async def fetch(request, caller) -> AsyncIterator[frontend_pb2.CodeChunk]:
        for number in range(5):
            yield frontend_pb2.CodeChunk(data=bytes([number]) * 1000)
        if request.ticket.sha256 == "bad":
            raise Fault("ticket expired", code=FaultCode.DENIED, definite=True)

    handlers.fetch(frontend_rpc.FETCH, fetch)
    server = await network_of(FRONTEND).serve("127.0.0.1:0", handlers)
    channel = network_of(WORKER).connect(server.address, service="frontend")
    request = frontend_pb2.FetchRequest()
    got = [chunk.data async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=5)]
    assert [len(data) for data in got] == [1000] * 5
    request.ticket.sha256 = "bad"
    with pytest.raises(Fault, match="ticket expired"):
        [chunk async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=5)]
    await channel.close()
    await server.close(0)


async def test_a_taken_port_is_a_fault_that_names_it(network_of):
    server = await serve_counting(network_of)
    with pytest.raises(Fault, match=server.address.rsplit(":", 1)[1]):
        await network_of(COUNTING).serve(server.address, Handlers())
    await server.close(0)


async def test_health_and_strangers(authority):
    server = await GrpcNetwork(authority.issue(COUNTING)).serve("127.0.0.1:0", Handlers())
    known = GrpcNetwork(authority.issue(FRONTEND))
    stranger = GrpcNetwork(Authority.create().issue(FRONTEND))

    async def serving(network: GrpcNetwork) -> bool:
        return await is_serving(network, server.address, service="counting", node="counting-az1", timeout_s=2.0)

    assert await serving(known)
    assert not await serving(stranger)
    await server.close(0)
    assert not await serving(known)


HUNG_SERVER = """
import asyncio, sys
from chassis.certificates import Tls
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Handlers
from protos import counting_rpc

async def main():
    handlers = Handlers()
    async def frontend(stream, caller):
        while await stream.receive() is not None:
            pass
    handlers.bidi(counting_rpc.FRONTEND, frontend)
    tls = Tls(**{k: open(f"{sys.argv[1]}/{k}", "rb").read() for k in ("authority", "certificate", "key")})
    server = await GrpcNetwork(tls).serve("127.0.0.1:0", handlers)
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_hung_peer_is_noticed_within_a_second_and_a_half(authority, tmp_path):
    tls = authority.issue(COUNTING)
    for name in ("authority", "certificate", "key"):
        (tmp_path / name).write_bytes(getattr(tls, name))
    with subprocess.Popen([sys.executable, "-c", HUNG_SERVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
            channel = GrpcNetwork(authority.issue(FRONTEND)).connect(address, service="counting")
            stream = channel.stream(counting_rpc.FRONTEND)
            await stream.send(counting_pb2.FrontendMessage())
            os.kill(process.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            with pytest.raises(Fault):
                async with asyncio.timeout(10):
                    await stream.receive()
            noticed_s = time.monotonic() - stopped
            await channel.close()
        finally:
            process.kill()
    assert noticed_s < 2.5, "1.5 s is the aim; the rest is for a busy machine"
