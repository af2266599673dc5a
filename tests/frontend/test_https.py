"""HTTPS at a frontend on real sockets: handshakes that never end, renewed certificates, the end of a process."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from chassis.certificates import Authority, Tls
from chassis.credentials import Credentials
from chassis.rpc import Caller
from frontend.config import HttpLimits, HttpTls
from frontend.http_server import HttpServer
from frontend.published import Published

FRONTEND = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h")
ROOT = Authority.create()
PLACEMENT = ROOT.intermediate("placement-az1")
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
WITHIN_S = 60.0


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A frontend's event loop and asyncio's own: TLS is each one's own work."""

    @pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
    def run(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test())

    return run


class Edge:
    """A server that answers with the path's length once it may, and what its clients need."""

    def __init__(self, limits: HttpLimits) -> None:
        self.server = HttpServer(self.application, limits)
        self.credentials = Credentials(PLACEMENT.issue(FRONTEND))
        self.port = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.trust = ssl.create_default_context(cadata=ROOT.pem.decode())

    async def application(self, scope, receive, send):
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["scheme"].encode()[:2]})

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust, server_hostname="frontend.labda")

    async def served(self) -> str:
        """A client that does as it should; the serial number that it was shown."""
        async with asyncio.timeout(WITHIN_S):
            reader, writer = await self.dial()
            writer.write(ASK)
            assert (await reader.readuntil(b"ht")).startswith(b"HTTP/1.1 200")
            shown: str = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
        return shown

    async def until_connections(self, number: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.server.connections != number:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def edge(limits: HttpLimits) -> AsyncIterator[Edge]:
    made = Edge(limits)
    address = await made.server.listen("127.0.0.1:0", credentials=made.credentials)
    made.port = int(address.rsplit(":", 1)[1])
    try:
        yield made
    finally:
        made.may_answer.set()
        await made.server.finish(1)
        await made.until_connections(0)


@on_both_loops
async def test_handshakes_that_never_end_are_counted_and_end_in_time():
    limits = HttpLimits(handshake_s=2.0)
    async with edge(limits) as made:
        silent = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(20)]
        silent[0][1].write(b"\x16\x03\x01\x02")      # as a handshake begins
        await made.until_connections(20)
        await made.served()
        async with asyncio.timeout(WITHIN_S):
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        await made.until_connections(0)


@on_both_loops
async def test_a_handshake_gives_way_to_a_new_client_as_an_idle_connection_does():
    limits = HttpLimits(connections_max=4, connections_per_client_max=4)
    async with edge(limits) as made:
        silent = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(12)]
        await made.until_connections(4)
        await made.served()
        for reader, writer in silent[:8]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        for _, writer in silent[8:]:
            writer.close()


@on_both_loops
async def test_what_is_no_handshake_ends_the_connection():
    async with edge(HttpLimits()) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(ASK)
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
        writer.close()
        await made.until_connections(0)
        await made.served()


@on_both_loops
async def test_a_client_that_leaves_within_the_handshake_leaves_nothing():
    async with edge(HttpLimits()) as made:
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.transport.abort()
        await made.until_connections(0)
        await made.served()


@on_both_loops
async def test_a_request_goes_on_while_the_certificate_is_renewed():
    async with edge(HttpLimits()) as made:
        first = await made.served()
        made.may_answer.clear()
        reader, writer = await made.dial()
        writer.write(ASK)
        made.credentials.replace(ROOT.intermediate("placement-az2").issue(FRONTEND))
        made.may_answer.set()
        second = await made.served()
        assert second != first
        async with asyncio.timeout(WITHIN_S):
            assert (await reader.readuntil(b"ht")).startswith(b"HTTP/1.1 200")
            writer.write(ASK)   # on the connection that was made with the older one
            assert (await reader.readuntil(b"ht")).startswith(b"HTTP/1.1 200")
        writer.close()


@on_both_loops
async def test_an_expired_certificate_is_followed_by_the_next_one():
    async with edge(HttpLimits()) as made:
        made.credentials.replace(PLACEMENT.issue(FRONTEND, lifetime_s=30.0, now=1e9))
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await made.served()
        made.credentials.replace(PLACEMENT.issue(FRONTEND))
        await made.served()


@on_both_loops
async def test_the_end_ends_handshakes_and_lets_answers_go_out():
    async with edge(HttpLimits()) as made:
        made.may_answer.clear()
        reader, writer = await made.dial()
        writer.write(ASK)
        _, silent = await asyncio.open_connection("127.0.0.1", made.port)
        await made.until_connections(2)
        async with asyncio.timeout(WITHIN_S):
            while not made.server.running:
                await asyncio.sleep(0.01)
        finishing = asyncio.create_task(made.server.finish(WITHIN_S))
        await asyncio.sleep(0)
        made.may_answer.set()
        async with asyncio.timeout(WITHIN_S):
            assert (await reader.readuntil(b"ht")).startswith(b"HTTP/1.1 200")
            await finishing
        for each in (writer, silent):
            each.close()


def test_the_endpoints_files_are_read_again_when_they_changed(tmp_path):
    def write(issued: Tls) -> None:
        (tmp_path / "endpoint.pem").write_bytes(issued.certificate)
        (tmp_path / "endpoint.key").write_bytes(issued.key)

    first, second = (ROOT.issue_plain("endpoint", hosts=["example.org"]) for _ in range(2))
    write(first)
    published = Published(HttpTls(certificate=str(tmp_path / "endpoint.pem"), key=str(tmp_path / "endpoint.key")))
    (tmp_path / "endpoint.pem").write_bytes(second.certificate)     # whose key isn't there yet
    published.look()
    assert published.credentials.current.certificate == first.certificate
    write(second)
    published.look()
    assert published.credentials.current.certificate == second.certificate
    (tmp_path / "endpoint.key").unlink()
    published.look()
    assert published.credentials.current.certificate == second.certificate
