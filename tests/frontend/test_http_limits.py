"""What a client may take of a frontend, tried with raw sockets: sizes, counts, and every way of being slow.

Each by HTTP and by HTTPS.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import uvloop

from chassis.certificates import Authority
from chassis.credentials import Credentials
from chassis.rpc import Caller
from frontend.config import HttpLimits
from frontend.http_server import HttpServer

HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
WITHIN_S = 60.0
# Scaled down: what takes a minute in a frontend takes a moment here; longer than this process may stand still for, on a
# machine that has more to do: a client would look slow.
QUICK = HttpLimits(
    head_s=1.0, keep_alive_s=1.2, pace_s=1.0, bytes_per_s_min=1000, body_s=30.0, header_bytes_max=8192,
    url_bytes_max=4096,
)
LARGE = 32 * 1024 * 1024     # more than the kernel takes for a client that reads nothing
Test = Callable[["World"], Awaitable[None]]


class Application:
    """Reads the body and answers with its length; /large answers with more than any buffer takes."""

    def __init__(self) -> None:
        self.entered = self.whole = self.disconnected = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope, receive, send) -> None:
        self.entered += 1
        size = 0
        if scope["path"] != "/unread":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.disconnected += 1
                    return
                size += len(message["body"])
                more = message["more_body"]
        self.whole += 1
        await self.gate.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


ROOT = Authority.create()
CERTIFICATE = ROOT.issue(Caller(service="frontend", node="frontend-az1-1", az="az1", host="h"))
TRUST = ssl.create_default_context(cadata=ROOT.pem.decode())


class World:
    """One server and its clients. ``secured``: they talk HTTPS."""

    def __init__(self, limits: HttpLimits, *, secured: bool) -> None:
        self.secured = secured
        self.application = Application()
        self.server = HttpServer(self.application, limits)
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(
        self, first: bytes = b"", *, local: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(local, 0) if local else None, ssl=TRUST if self.secured else None,
            server_hostname="frontend.labda" if self.secured else None,
        )
        self._writers.append(writer)
        writer.write(first)
        return reader, writer

    async def ask(self, first: bytes, *, local: str = "") -> bytes:
        """What comes until the server ends the connection, or until one answer is whole."""
        reader, _ = await self.connect(first, local=local)
        return await answer(reader)

    async def served_normally(self) -> None:
        """Another client gets its answer while the test's clients do what they do."""
        assert (await self.ask(HEAD + b"\r\n", local="127.0.0.2")).endswith(b"\r\n\r\n0")

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not true():
                await asyncio.sleep(0.01)

    def has_entered(self, requests: int) -> bool:
        return self.application.entered == requests

    async def close(self) -> None:
        self.application.gate.set()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        await self.server.finish(1)
        await self.until(lambda: self.server.connections == 0)


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(WITHIN_S):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = await reader.readline()
            if not line:
                return head
            head += line
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head + await reader.readexactly(int(length or 0))


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came before the server ended the connection."""
    async with asyncio.timeout(WITHIN_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def told(text: bytes) -> tuple[int, str, dict[str, Any]]:
    """Status, AWS's error type and the document of a refusal."""
    head, _, body = text.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return int(head.split()[1]), headers[b"x-amzn-errortype"].decode(), json.loads(body)


def run(test: Test, limits: HttpLimits = QUICK) -> None:
    """On a frontend's event loop (``test_http_server.py`` is on asyncio's)."""

    async def main(*, secured: bool) -> None:
        async with world(limits, secured=secured) as made:
            await test(made)

    for secured in (False, True):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(secured=secured))


@asynccontextmanager
async def world(limits: HttpLimits, *, secured: bool) -> AsyncIterator[World]:
    made = World(limits, secured=secured)
    credentials = Credentials(CERTIFICATE) if secured else None
    made.port = int((await made.server.listen("127.0.0.1:0", credentials=credentials)).rsplit(":", 1)[1])
    try:
        yield made
    finally:
        await made.close()


# ---- sizes


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "RequestUriTooLongException"),
        (HEAD + b"x-large: " + b"x" * 9000 + b"\r\n\r\n", 431, "RequestHeaderSectionTooLargeException"),
        (HEAD + b"x-large: " + b"x" * 900_000, 431, "RequestHeaderSectionTooLargeException"),
        (HEAD + b"a: b\r\n" * 200 + b"\r\n", 431, "RequestHeaderSectionTooLargeException"),
        (POST + b"content-length: 134217729\r\n\r\n", 413, "RequestEntityTooLargeException"),
        (POST + b"content-length: 134217729\r\n\r\n" + b"x" * 3_000_000, 413, "RequestEntityTooLargeException"),
        (b"nonsense\r\n\r\n", 400, "BadRequestException"),
        (POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "BadRequestException"),
        (POST + b"content-length: -3\r\n\r\n", 400, "BadRequestException"),
        (POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400, "BadRequestException"),
    ],
    ids=["url", "header", "endless header", "headers", "length", "large body", "no http", "two lengths", "negative",
         "twice"],
)
def test_what_is_too_large_or_broken_is_refused_before_any_work(request_, status, code):
    async def test(world):
        found = told(await world.ask(request_))
        assert found[:2] == (status, code)
        assert found[2]["message"]
        assert found[2]["Detail"]
        assert world.application.entered == 0 or b"transfer" in request_
        await world.served_normally()

    run(test)


def test_trailers_and_chunk_extensions_without_end_are_refused():
    async def test(world):
        endless = POST + b"transfer-encoding: chunked\r\n\r\n"
        for number, more in enumerate((b"1;" + b"x" * 100_000, b"0\r\nx-trailer: " + b"x" * 100_000), 1):
            reader, writer = await world.connect(endless)
            await world.until(partial(world.has_entered, number))
            writer.write(more)
            assert b"431" in (await ended(reader))[:20]
        await world.until(lambda: world.application.disconnected == 2)
        await world.served_normally()

    run(test)


def test_a_client_that_waits_to_be_told_gets_told():
    async def test(world):
        reader, writer = await world.connect(POST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        async with asyncio.timeout(WITHIN_S):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader)).endswith(b"3")
        # One that was refused without being asked for its body may send it or not: the connection ends.
        reader, _ = await world.connect(
            b"POST /unread HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        )
        found = await ended(reader)
        assert found.startswith(b"HTTP/1.1 200")
        assert b"100 Continue" not in found

    run(test)


def test_a_body_that_ends_short_is_no_request():
    async def test(world):
        _, writer = await world.connect(POST + b"content-length: 10\r\n\r\nabc")
        await world.until(lambda: world.application.entered == 1)
        writer.close()
        await world.until(lambda: world.application.disconnected == 1)
        assert world.application.whole == 0

    run(test)


def test_a_large_body_and_the_next_requests_beginning_in_one_read_are_no_large_head():
    async def test(world):
        body = b"x" * 60_000
        request = POST + b"content-length: 60000\r\n\r\n" + body
        reader, writer = await world.connect()
        for _ in range(3):
            writer.write(request + HEAD)  # the rest of the second head follows with the next round
            assert (await answer(reader)).endswith(b"60000")
            writer.write(b"\r\n")
            assert (await answer(reader)).endswith(b"0")

    run(test)


def test_an_answer_that_came_early_leaves_the_connection_usable():
    async def test(world):
        reader, writer = await world.connect(
            b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 1000
        )
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"x" * 199_000 + HEAD + b"\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        assert await ended(reader) == b"", "an idle connection ends"

    run(test)


# ---- time


def test_a_head_that_comes_slowly():
    async def test(world):
        async def drip(writer: asyncio.StreamWriter) -> None:
            for byte in HEAD * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)

        reader, writer = await world.connect()
        dripping = asyncio.create_task(drip(writer))
        await world.served_normally()
        found = told(await answer(reader))
        dripping.cancel()
        assert found[:2] == (408, "RequestTimeoutException")
        assert found[2]["Detail"]["limit"] == "head_s"
        assert world.application.entered == 1

    run(test)


@pytest.mark.parametrize("first", [b"", b"\r\n", HEAD + b"\r\n"], ids=["nothing", "an empty line", "one request"])
def test_an_idle_connection_ends(first):
    async def test(world):
        reader, _ = await world.connect(first)
        await ended(reader)
        await world.until(lambda: world.server.connections == 0)

    run(test)


def test_a_client_that_waits_for_its_answer_is_not_slow():
    async def test(world):
        world.application.gate.clear()
        reader, writer = await world.connect(HEAD + b"\r\n" + b"\r\n")
        await world.until(lambda: world.application.whole == 1)
        await asyncio.sleep(2 * QUICK.head_s)
        world.application.gate.set()
        assert (await answer(reader)).endswith(b"0")
        writer.close()

    run(test)


@pytest.mark.parametrize("framing", [b"content-length: 100000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
def test_a_body_that_comes_too_slowly(framing):
    async def test(world):
        async def drip(writer: asyncio.StreamWriter) -> None:
            for _ in range(100):
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.05)

        reader, writer = await world.connect(POST + framing)
        dripping = asyncio.create_task(drip(writer))
        await world.served_normally()
        found = told(await answer(reader))
        dripping.cancel()
        assert found[:2] == (408, "RequestTimeoutException")
        assert found[2]["Detail"]["limit"] == "bytes_per_s_min"
        await world.until(lambda: world.application.disconnected == 1)
        assert world.application.whole == 1, "the other client's"

    run(test)


def test_a_body_that_comes_steadily_and_takes_too_long():
    async def test(world):
        async def drip(writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(b"x" * 200)
                await asyncio.sleep(0.02)

        reader, writer = await world.connect(POST + b"content-length: 10000000\r\n\r\n")
        dripping = asyncio.create_task(drip(writer))
        found = told(await answer(reader))
        dripping.cancel()
        assert (found[0], found[2]["Detail"]["limit"]) == (408, "body_s")

    run(test, replace(QUICK, body_s=0.5))


def test_a_body_at_the_allowed_pace_is_read():
    async def test(world):
        reader, writer = await world.connect(POST + b"content-length: 10000\r\n\r\n")
        for _ in range(20):
            writer.write(b"x" * 500)
            await asyncio.sleep(0.05)
        assert (await answer(reader)).endswith(b"10000")

    run(test)


def test_a_client_that_never_reads_its_answer():
    async def test(world):
        await world.connect(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")    # this process reads a little and stops
        await world.until(lambda: world.application.whole == 1)
        await world.served_normally()
        await world.until(lambda: world.server.connections == 1)  # the other client's, kept alive

    run(test, replace(QUICK, keep_alive_s=60.0))


def test_a_client_that_reads_its_answer_slowly_and_steadily_gets_it():
    async def test(world):
        reader, _ = await world.connect(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        size = 0
        async with asyncio.timeout(WITHIN_S):
            while chunk := await reader.read(256 * 1024):
                size += len(chunk)
                await asyncio.sleep(0.02)
        assert size > LARGE

    run(test)


# ---- counts


def test_200_idle_connections_leave_room():
    async def test(world):
        idle = [await world.connect() for _ in range(200)]
        await world.served_normally()
        assert all(not reader.at_eof() for reader, _ in idle)
        assert world.server.connections == 201

    run(test, replace(QUICK, head_s=30.0, keep_alive_s=30.0))


def test_the_longest_idle_connection_gives_way_to_a_new_one():
    async def test(world):
        kept = [await world.connect() for _ in range(3)]
        await world.until(lambda: world.server.connections == 3)
        await world.served_normally()
        assert await ended(kept[0][0]) == b""
        assert not kept[1][0].at_eof()

    run(test, replace(QUICK, connections_max=3, connections_per_client_max=3, head_s=30.0, keep_alive_s=30.0))


@pytest.mark.parametrize(
    ("limits", "local", "limit"),
    [
        ({"connections_max": 2, "connections_per_client_max": 2}, "127.0.0.2", "connections_max"),
        ({"connections_max": 9, "connections_per_client_max": 2}, "127.0.0.1", "connections_per_client_max"),
    ],
)
def test_a_connection_too_many_is_refused_with_its_reason(limits, local, limit):
    async def test(world):
        world.application.gate.clear()
        busy = [await world.connect(HEAD + b"\r\n") for _ in range(2)]
        await world.until(lambda: world.application.whole == 2)
        if world.secured:   # there is no room for the handshake, after which it could be told
            with pytest.raises(ConnectionError):
                await world.ask(HEAD + b"\r\n", local=local)
            assert world.server.refused == 1
        else:
            status, code, document = told(await world.ask(HEAD + b"\r\n", local=local))
            assert (status, code) == (503, "ServiceUnavailableException")
            assert (document["Detail"]["limit"], document["Detail"]["value"]) == (limit, 2)
        assert world.application.entered == 2
        world.application.gate.set()
        for reader, writer in busy:
            assert (await answer(reader)).endswith(b"0")
            writer.close()
        await world.served_normally()

    run(test, replace(QUICK, head_s=30.0, keep_alive_s=30.0, **limits))


@pytest.mark.parametrize(
    "wrong", [{"head_s": 0}, {"connections_per_client_max": 5000}, {"header_bytes_max": 100}, {"bodies_bytes_max": 1}]
)
def test_limits_that_can_not_be_right(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HttpLimits(**wrong)
