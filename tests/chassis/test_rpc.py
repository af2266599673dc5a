"""One suite over all networks: what a service may rely on, whichever carries it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis import grpc_network
from chassis.certificates import Authority
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork, is_serving
from chassis.memory_network import Fabric
from chassis.rpc import BATCH_BYTES, Caller, Handlers, Network, Outbox, Prompt, StreamNetwork, converse
from frontend.peers.frames import FrameWriter
from protos import counting_pb2, counting_rpc, frontend_pb2, frontend_rpc, worker_pb2, worker_rpc
from tests.ports import free_port

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
        if request.param == "memory":
            return fabric.network(caller)
        return GrpcNetwork(Credentials.fixed(authority.issue(caller)))

    return make


@pytest.fixture(params=["memory", "grpc", "framed"])
async def streams_of(request, authority):
    """For what holds of streams: the framed network carries nothing else."""
    fabric = Fabric()

    def make(caller: Caller) -> StreamNetwork:
        match request.param:
            case "memory":
                return fabric.network(caller)
            case "grpc":
                return GrpcNetwork(Credentials.fixed(authority.issue(caller)))
            case _:
                return FramedNetwork(Credentials.fixed(authority.issue(caller)))

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


async def dialled(streams_of):
    server = await serve_counting(streams_of)
    channel = streams_of(FRONTEND).connect(server.address, service="counting")
    return server, channel, channel.stream(counting_rpc.FRONTEND)


async def test_unary_call_carries_the_caller_and_faults(network_of):
    server = await serve_counting(network_of)
    channel = network_of(FRONTEND).connect(server.address, service="counting", node="counting-az1")
    answer = await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60)
    assert answer.account_limit == len(FRONTEND.node)
    with pytest.raises(Fault) as caught:
        await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account="refused"), timeout_s=60)
    assert (caught.value.code, caught.value.definite) == (FaultCode.NOT_FOUND, True)
    assert "no such account: refused" in caught.value.message
    await channel.close()
    await server.close(0)


async def test_stream_is_ordered_batched_and_ends_with_the_fault_of_the_handler(streams_of):
    server, channel, stream = await dialled(streams_of)
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


async def test_what_is_flushed_and_what_is_put_arrive_in_one_order(streams_of):
    """From before the stream is open on, whether or not it can take a message at once."""
    server, channel, stream = await dialled(streams_of)
    outbox: Outbox[counting_pb2.FrontendMessage] = Outbox(stream)
    got: list[int] = []

    def on_message(answer):
        got.append(answer.stamp.index)
        if len(got) == 300:
            outbox.put(counting_pb2.FrontendMessage(goodbye=counting_pb2.FrontendMessage.Goodbye()))

    async def write():
        for number in range(300):
            message = counting_pb2.FrontendMessage(sequence=number)
            if number % 3:
                outbox.put(message)
            else:
                outbox.hold(message)
                outbox.flush()
            if number % 7 == 0:
                await asyncio.sleep(0.001 * (number % 2))

    writing = asyncio.create_task(write())
    with pytest.raises(Fault):
        await asyncio.wait_for(converse(stream, outbox, on_message), 60)
    await writing
    assert got == list(range(300))
    await channel.close()
    await server.close(0)


@pytest.mark.parametrize("streams_of", ["memory", "framed"], indirect=True)
async def test_what_is_flushed_waits_for_no_task(streams_of):
    server, channel, stream = await dialled(streams_of)
    await stream.send(counting_pb2.FrontendMessage(sequence=1))     # it is open by then
    outbox: Outbox[counting_pb2.FrontendMessage] = Outbox(stream)   # nobody runs it
    outbox.hold(counting_pb2.FrontendMessage(sequence=2))
    outbox.flush()
    async with asyncio.timeout(60):
        assert [(await stream.receive()).stamp.index for _ in range(2)] == [1, 2]
    stream.cancel()
    await channel.close()
    await server.close(0)


def combine(batch: list[worker_pb2.InvokeFrame]) -> worker_pb2.InvokeFrames:
    return worker_pb2.InvokeFrames(frames=batch)


@pytest.mark.parametrize("outbox_on", [lambda stream: Outbox(stream, combine=combine), FrameWriter])
async def test_what_waits_goes_in_messages_of_a_bounded_size(streams_of, outbox_on):
    """More than one message may have, as after a reader was held up."""
    sizes: list[int] = []
    got: list[str] = []
    whole = asyncio.Event()

    async def invoke(stream, _caller):
        while (message := await stream.receive()) is not None:
            sizes.append(message.ByteSize())
            got.extend(frame.invocation for frame in message.frames)
            if len(got) == 200:
                whole.set()

    handlers = Handlers()
    handlers.bidi(worker_rpc.INVOKE, invoke)
    server = await streams_of(WORKER).serve("127.0.0.1:0", handlers)
    channel = streams_of(FRONTEND).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    outbox = outbox_on(stream)
    for number in range(200):
        start = worker_pb2.InvokeFrame.Start(payload=bytes(60_000))
        outbox.put(worker_pb2.InvokeFrame(invocation=str(number), start=start))
    talking = asyncio.create_task(converse(stream, outbox, lambda _message: None))
    async with asyncio.timeout(60):
        await whole.wait()
        stream.cancel()
        with pytest.raises(Fault):
            await talking
    assert got == [str(number) for number in range(200)]
    assert BATCH_BYTES <= max(sizes) <= BATCH_BYTES + 61_000
    await channel.close()
    await server.close(0)


async def test_a_bug_of_the_sending_half_ends_the_stream(streams_of):
    """It must not go mute while the reading half waits on."""
    server, channel, stream = await dialled(streams_of)

    def combine(_batch):
        raise ZeroDivisionError

    outbox: Outbox[counting_pb2.FrontendMessage] = Outbox(stream, combine=combine)
    outbox.put(counting_pb2.FrontendMessage(sequence=1))
    async with asyncio.timeout(60):
        with pytest.raises(ZeroDivisionError):
            await converse(stream, outbox, lambda _message: None)
    await channel.close()
    await server.close(0)


async def test_the_serving_side_cuts_a_peer_that_does_not_read(streams_of):
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
    server = await streams_of(COUNTING).serve("127.0.0.1:0", handlers)
    channel = streams_of(FRONTEND).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    async with asyncio.timeout(60):
        fault = await break_of(stream)
        await ended.wait()
    assert fault.code is FaultCode.CANCELLED
    await channel.close()
    await server.close(0)


async def test_a_certificate_opens_only_the_calls_that_the_table_says(network_of):
    server = await serve_counting(network_of)
    channel = network_of(WORKER).connect(server.address, service="counting")
    with pytest.raises(Fault) as caught:
        await channel.call(counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(), timeout_s=60)
    assert caught.value.code is FaultCode.DENIED
    await channel.close()
    await server.close(0)


async def test_a_certificate_opens_only_the_streams_that_the_table_says(streams_of):
    server = await serve_counting(streams_of)
    channel = streams_of(WORKER).connect(server.address, service="counting")
    stream = channel.stream(counting_rpc.FRONTEND)
    with pytest.raises(Fault) as caught:
        await stream.receive()
    assert caught.value.code is FaultCode.DENIED
    await channel.close()
    await server.close(0)


async def test_a_peer_of_another_service_or_node_is_refused_by_the_dialling_side(streams_of):
    server = await serve_counting(streams_of)
    for service, node in (("placement", ""), ("counting", "counting-az2")):
        channel = streams_of(FRONTEND).connect(server.address, service=service, node=node)
        with pytest.raises(Fault):
            async with asyncio.timeout(60):
                await channel.stream(counting_rpc.FRONTEND).receive()
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
    got = [chunk.data async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=60)]
    assert [len(data) for data in got] == [1000] * 5
    request.ticket.sha256 = "bad"
    with pytest.raises(Fault, match="ticket expired"):
        [chunk async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=60)]
    await channel.close()
    await server.close(0)


async def test_a_taken_port_is_a_fault_that_names_it(streams_of):
    server = await serve_counting(streams_of)
    with pytest.raises(Fault, match=server.address.rsplit(":", 1)[1]):
        await streams_of(COUNTING).serve(server.address, Handlers())
    await server.close(0)


async def test_health_and_strangers(authority):
    server = await GrpcNetwork(Credentials.fixed(authority.issue(COUNTING))).serve("127.0.0.1:0", Handlers())
    known = GrpcNetwork(Credentials.fixed(authority.issue(FRONTEND)))
    stranger = GrpcNetwork(Credentials.fixed(Authority.create().issue(FRONTEND)))

    async def serving(network: GrpcNetwork) -> bool:
        return await is_serving(network, server.address, service="counting", node="counting-az1", timeout_s=2.0)

    assert await serving(known)
    assert not await serving(stranger)
    await server.close(0)
    assert not await serving(known)


HUNG_SERVER = """
import asyncio, sys
from chassis.certificates import Tls
from chassis.credentials import Credentials
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Handlers
from protos import worker_rpc

async def main():
    handlers = Handlers()
    async def invoke(stream, caller):
        while await stream.receive() is not None:
            pass
    handlers.bidi(worker_rpc.INVOKE, invoke)
    tls = Tls(**{k: open(f"{sys.argv[1]}/{k}", "rb").read() for k in ("authority", "certificate", "key")})
    server = await globals()[sys.argv[2]](Credentials.fixed(tls)).serve("127.0.0.1:0", handlers)
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", [GrpcNetwork, FramedNetwork])
async def test_a_hung_worker_is_noticed(authority, tmp_path, kind, monkeypatch):
    """Within 2 s and 3.5 s on a quiet machine. TCP itself would wait for a quarter of an hour."""
    monkeypatch.setattr(grpc_network, "KEEPALIVE_MS", 1000)
    tls = authority.issue(WORKER)
    for name in ("authority", "certificate", "key"):
        (tmp_path / name).write_bytes(getattr(tls, name))
    argv = [sys.executable, "-c", HUNG_SERVER, str(tmp_path), kind.__name__]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
            channel = kind(Credentials.fixed(authority.issue(FRONTEND))).connect(address, service="worker")
            stream = channel.stream(worker_rpc.INVOKE)
            await stream.send(worker_pb2.InvokeFrames())
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(Fault):
                async with asyncio.timeout(60):
                    await stream.receive()
            await channel.close()
        finally:
            process.kill()


ABANDONS = """
import asyncio, gc, sys, uvloop
from chassis import framed_network
from chassis.certificates import Tls
from chassis.credentials import Credentials
from chassis.faults import Fault
from protos import worker_rpc

async def main():
    framed_network.OPEN_S = 0.0     # over before the look-up is
    tls = Tls(**{k: open(f"{sys.argv[1]}/{k}", "rb").read() for k in ("authority", "certificate", "key")})
    channel = framed_network.FramedNetwork(Credentials.fixed(tls)).connect("nowhere.invalid:9000", service="worker")
    try:
        await channel.stream(worker_rpc.INVOKE).receive()
    except Fault as fault:
        print(fault.message, flush=True)
    await channel.close()
    try:    # takes as long as the other: by its end that one has failed too
        await asyncio.get_running_loop().getaddrinfo("elsewhere.invalid", 9000)
    except OSError:
        gc.collect()

uvloop.run(main())
"""


async def test_a_look_up_that_was_given_up_is_no_error_in_the_log(authority, tmp_path):
    tls = authority.issue(FRONTEND)
    for name in ("authority", "certificate", "key"):
        (tmp_path / name).write_bytes(getattr(tls, name))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ABANDONS, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, complaints = await process.communicate()
    assert (b"can't be reached" in out, complaints.decode()) == (True, "")


@pytest.mark.parametrize("met", [False, True])
async def test_a_stream_that_its_own_side_cuts_is_a_fault_to_who_uses_it(streams_of, met):
    """And no cancellation: that would end the task that follows the peer, which is to dial again."""
    handlers = Handlers()
    handlers.bidi(worker_rpc.INVOKE, echo)
    server = await streams_of(WORKER).serve("127.0.0.1:0", handlers)
    channel = streams_of(FRONTEND).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    if met:
        await stream.send(worker_pb2.InvokeFrames())
        assert await stream.receive() is not None
    reading = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    stream.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(Fault):
            await reading
        with pytest.raises(Fault):
            await stream.send(worker_pb2.InvokeFrames())
    await channel.close()
    await server.close(0.0)


async def test_who_waits_for_a_stream_can_still_be_cancelled(streams_of):
    handlers = Handlers()
    handlers.bidi(worker_rpc.INVOKE, echo)
    server = await streams_of(WORKER).serve("127.0.0.1:0", handlers)
    channel = streams_of(FRONTEND).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    await stream.send(worker_pb2.InvokeFrames())
    assert await stream.receive() is not None
    reading = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await channel.close()
    await server.close(0.0)


async def test_who_dials_in_vain_again_and_again_can_be_cancelled_at_any_moment(streams_of):
    """As everybody does while a placement starts anew. gRPC kept one cancellation of thirty for itself, of those that
    came while a call began: the task dialled on, and whoever waited for its end waited for ever."""
    network, address = streams_of(FRONTEND), f"127.0.0.1:{free_port()}"

    async def follow():
        while True:
            channel = network.connect(address, service="worker")
            stream = channel.stream(worker_rpc.INVOKE)
            try:
                await stream.receive()
            except Fault:
                pass    # nobody listens there
            finally:
                stream.cancel()
                await channel.close()
            await asyncio.sleep(0.0005)

    for number in range(400):
        following = asyncio.create_task(follow())
        await asyncio.sleep(number % 100 * 0.0001)
        following.cancel()
        ended, _ = await asyncio.wait({following}, timeout=60)
        assert ended, f"the {number}th goes on"


# ---------------------------------------------------------------- what only the framed network has to prove


async def echo(stream, _caller):
    while (message := await stream.receive()) is not None:
        await stream.send(worker_pb2.InvokeFrames(frames=message.frames))


async def serve_echo(authority):
    handlers = Handlers()
    handlers.bidi(worker_rpc.INVOKE, echo)
    return await FramedNetwork(Credentials.fixed(authority.issue(WORKER))).serve("127.0.0.1:0", handlers)


def frames(size: int) -> worker_pb2.InvokeFrames:
    chunk = worker_pb2.InvokeFrame.Chunk(data=os.urandom(size))
    return worker_pb2.InvokeFrames(frames=[worker_pb2.InvokeFrame(chunk=chunk)])


async def test_framed_messages_of_every_size_arrive_whole_and_in_order(authority):
    server = await serve_echo(authority)
    channel = FramedNetwork(Credentials.fixed(authority.issue(FRONTEND))).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    messages = [frames(size) for size in (0, 1, 1000, 65_536, 1_000_000, 8_000_000, 3)]
    for message in messages:
        await stream.send(message)
        assert await stream.receive() == message
    await stream.finish()
    assert await stream.receive() is None
    await channel.close()
    await server.close(0)


async def test_a_framed_sender_waits_for_a_reader_that_is_slow(authority):
    """More is on its way than both sides may hold: the sender stands until the reader reads, and nothing is lost."""
    server = await serve_echo(authority)
    channel = FramedNetwork(Credentials.fixed(authority.issue(FRONTEND))).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    messages = [frames(1_000_000) for _ in range(40)]
    sent = 0

    async def send() -> None:
        nonlocal sent
        for message in messages:
            await stream.send(message)
            sent += 1

    sending = asyncio.get_running_loop().create_task(send())
    await asyncio.sleep(4.5)  # longer than a silent peer is borne: one that isn't read is not a silent one
    assert sent < len(messages)
    assert isinstance(stream, Prompt)
    assert not stream.free, "nothing is flushed into what isn't read"
    for message in messages:
        assert await stream.receive() == message
    await sending
    await channel.close()
    await server.close(0)


async def test_who_does_not_speak_the_framed_protocol_is_cut(authority):
    server = await serve_echo(authority)
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")  # no TLS at all
    async with asyncio.timeout(60):
        assert await reader.read() == b"" or reader.at_eof()
    writer.close()
    others = Credentials.fixed(Authority.create().issue(FRONTEND))
    stranger = FramedNetwork(others).connect(server.address, service="worker")
    with pytest.raises(Fault, match=r"can't be reached|connection broke"):
        await stranger.stream(worker_rpc.INVOKE).receive()
    await stranger.close()
    channel = FramedNetwork(Credentials.fixed(authority.issue(FRONTEND))).connect(server.address, service="worker")
    stream = channel.stream(worker_rpc.INVOKE)
    await stream.send(frames(1))
    await stream.receive()
    wire: Any = stream
    wire.connection.write(b"\x02\xff\xff\xff")  # a message of 16 MiB is announced
    with pytest.raises(Fault):
        async with asyncio.timeout(60):
            await stream.receive()
    await channel.close()
    await server.close(0)
