"""The HTTP edge on real sockets: bounds of a connection, a shared address, a graceful end."""

import asyncio

import pytest

from chassis.faults import Fault
from frontend.config import HttpLimits
from frontend.http_server import HttpServer


class Application:
    """Answers with the path, once it may."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = 0

    async def __call__(self, scope, receive, send):
        self.entered += 1
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def served():
    application = Application()
    server = HttpServer(application, HttpLimits(header_bytes_max=8192))
    address = await server.listen("127.0.0.1:0")
    yield application, server, int(address.rsplit(":", 1)[1])
    application.gate.set()
    await server.finish(1)


async def ask(port, head=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    return reader, writer


async def answer(reader, writer):
    try:
        async with asyncio.timeout(60):
            return await reader.readuntil(b"ok")
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_request_is_answered(served):
    _, _, port = served
    assert (await answer(*await ask(port))).startswith(b"HTTP/1.1 200")


async def test_a_head_that_is_too_large_is_refused(served):
    application, _, port = served
    told = await answer(*await ask(port, b"GET / HTTP/1.1\r\nx-large: " + b"x" * 20_000 + b"\r\n\r\n"))
    assert told.startswith(b"HTTP/1.1 431")
    assert application.entered == 0


async def test_an_end_lets_running_requests_finish_and_takes_no_more(served):
    application, server, port = served
    application.gate.clear()
    connection = await ask(port)
    async with asyncio.timeout(60):
        while not server.running:
            await asyncio.sleep(0.005)
    server.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await ask(port)
    finishing = asyncio.create_task(server.finish(60))
    await asyncio.sleep(0)
    application.gate.set()
    assert (await answer(*connection)).startswith(b"HTTP/1.1 200")
    await finishing


async def test_two_servers_share_an_address_and_one_goes_on_alone(served):
    _, first, _ = served
    address = await first.listen("127.0.0.1:0", shared=True)
    port = int(address.rsplit(":", 1)[1])
    other = HttpServer(Application(), HttpLimits())
    assert await other.listen(address, shared=True) == address
    first.stop_listening()
    for _ in range(8):
        assert (await answer(*await ask(port))).startswith(b"HTTP/1.1 200")
    await other.finish(1)


async def test_an_address_that_is_taken_is_said(served):
    _, server, port = served
    with pytest.raises(Fault, match="can't listen"):
        await server.listen(f"127.0.0.1:{port}")
