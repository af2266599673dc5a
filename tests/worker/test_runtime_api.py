"""The Runtime API over real sockets: what a runtime may ask, and what hostile code may try."""

import asyncio
import contextlib
import json
import tracemalloc
from typing import Any

import pytest

from simulation.loop import run
from worker.runtime_api import connection as connection_module
from worker.runtime_api.answers import BODY_BYTES_MAX, Event
from worker.runtime_api.connection import HEADER_BYTES_MAX
from worker.runtime_api.session import CONNECTIONS_MAX, RuntimeSession
from worker.runtime_api.states import TRANSITIONS, ApiState

INVOCATION = "/2018-06-01/runtime/invocation"
EVENT = Event(
    request_id="id-1", deadline_ms=1_750_000_003_000, invoked_arn="arn:f", trace_id="Root=1\r\nForged: yes",
    client_context='{"custom":{}}', body=b'{"a":1}',
)


class Heard(list[Any]):
    """``RuntimeEvents`` that keeps what it hears."""

    def loaded(self):
        self.append("loaded")

    def asked_next(self):
        self.append("next")

    def responded(self, body, content_type):
        self.append(("responded", body, content_type))

    def streamed(self, chunk):
        self.append(("streamed", chunk))

    def oversized(self):
        self.append("oversized")

    def failed(self, error_type, body):
        self.append(("failed", error_type, body))

    def init_failed(self, error_type, body):
        self.append(("init failed", error_type, body))


class Http:
    """A client on one connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, method, path, body=b"", **headers):
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def receive(self):
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {}
            for line in head[1:-2]:
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, body

    async def ask(self, method, path, body=b"", **headers):
        self.send(method, path, body, **headers)
        return await self.receive()

    async def error(self, method, path, body=b"", **headers):
        status, _, answer = await self.ask(method, path, body, **headers)
        return status, json.loads(answer)["errorType"]

    async def is_closed(self):
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read() == b""
            return True


@pytest.fixture
async def api():
    """(session, what it said, dial): a Runtime API on a free port."""
    heard = Heard()
    session = RuntimeSession(heard)
    server = await asyncio.get_running_loop().create_server(session.connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    opened = []

    async def dial():
        http = Http(*await asyncio.open_connection("127.0.0.1", port))
        opened.append(http)
        return http

    yield session, heard, dial
    server.close()
    for http in opened:
        http.writer.close()
        with contextlib.suppress(ConnectionError):
            await http.writer.wait_closed()
    await server.wait_closed()


class Wire(asyncio.Transport):
    """A connection's transport without a network: keeps what is answered."""

    def __init__(self, session):
        super().__init__()
        self.connection = session.connection()
        self.answers = b""
        self.closed = False
        self.connection.connection_made(self)

    def is_closing(self):
        return self.closed

    def write(self, data):
        self.answers += data

    def close(self):
        self.closed = True

    abort = close

    def feed(self, data, read_bytes=65_536):
        """As reads of a socket would bring it; ends with the connection. Returns how many bytes were taken."""
        taken = 0
        while taken < len(data) and not self.closed:
            piece = data[taken:taken + read_bytes]
            taken += len(piece)
            self.connection.data_received(piece)
        return taken

    def drop(self):
        self.connection.connection_lost(None)


def given_to(session, wire, *, streaming=False):
    wire.feed(f"GET {INVOCATION}/next HTTP/1.1\r\n\r\n".encode())
    session.deliver(EVENT, streaming=streaming)
    wire.answers = b""


def chunked(method, path, body, *, size, head=""):
    """A request whose body has chunks of so many bytes."""
    pieces = [body[start:start + size] for start in range(0, len(body), size)]
    return f"{method} {path} HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces
    ) + b"0\r\n\r\n"


async def given_an_event(session, http, *, streaming=False, event=EVENT):
    http.send("GET", f"{INVOCATION}/next")
    async with asyncio.timeout(60):
        while not session.ready:
            await asyncio.sleep(0.001)
    session.deliver(event, streaming=streaming)
    return await http.receive()


async def test_next_and_response(api):
    session, heard, dial = api
    http = await dial()
    assert await http.ask("GET", "/2018-06-01/ping") == (
        200, {"content-type": "text/plain; charset=utf-8", "content-length": "4"}, b"pong"
    )
    status, headers, body = await given_an_event(session, http)
    assert (status, body) == (200, b'{"a":1}')
    assert headers == {
        "content-type": "application/json", "content-length": "7", "lambda-runtime-aws-request-id": "id-1",
        "lambda-runtime-deadline-ms": "1750000003000", "lambda-runtime-invoked-function-arn": "arn:f",
        "lambda-runtime-trace-id": "Root=1  Forged: yes", "lambda-runtime-client-context": '{"custom":{}}',
    }
    answer = await http.ask("POST", f"{INVOCATION}/id-1/response", b'"done"', content_type="application/json")
    assert (answer[0], answer[2]) == (202, b'{"status":"OK"}\n')
    assert heard == ["loaded", "next", ("responded", b'"done"', "application/json")]


async def test_states_are_held(api):
    session, heard, dial = api
    http, other = await dial(), await dial()
    assert await http.error("POST", f"{INVOCATION}/id-1/response") == (403, "InvalidStateTransition")
    await given_an_event(session, http)
    assert await http.error("POST", f"{INVOCATION}/id-2/response", b"1") == (400, "InvalidRequestID")
    assert await http.error("GET", f"{INVOCATION}/next") == (403, "InvalidStateTransition")
    assert await http.error("POST", "/2018-06-01/runtime/init/error", b"{}") == (403, "InvalidStateTransition")
    assert await http.error(
        "POST", f"{INVOCATION}/id-1/response", b"1", Lambda_Runtime_Function_Response_Mode="sideways"
    ) == (400, "InvalidFunctionResponseMode")
    assert (await http.ask("POST", f"{INVOCATION}/id-1/error", b"{}"))[0] == 202
    assert await other.error("POST", f"{INVOCATION}/id-1/response", b"1") == (403, "InvalidStateTransition")
    assert heard == ["next", ("failed", "Runtime.Unknown", b"{}")]


@pytest.mark.parametrize(("named", "kept"), [
    ("Runtime.ImportModuleError", "Runtime.ImportModuleError"), ("Function.MyError", "Function.MyError"),
    ("Function.my error", "Function.Unknown"), ("ValueError", "Runtime.Unknown"), ("", "Runtime.Unknown"),
])
async def test_init_error_and_its_type(api, named, kept):
    session, heard, dial = api
    http = await dial()
    answer = await http.ask(
        "POST", "/2018-06-01/runtime/init/error", b'{"x":1}', Lambda_Runtime_Function_Error_Type=named
    )
    assert answer[0] == 202
    assert heard == [("init failed", kept, b'{"x":1}')]
    assert await http.error("GET", f"{INVOCATION}/next") == (403, "InvalidStateTransition")
    session.restart()
    assert await http.is_closed()
    assert session.state is ApiState.STARTED


async def test_sizes(api):
    session, heard, dial = api
    http = await dial()
    await given_an_event(session, http)
    answer = await http.ask("POST", f"{INVOCATION}/id-1/response", b"x" * BODY_BYTES_MAX)
    assert answer[0] == 202
    await given_an_event(session, http)
    assert await http.error("POST", f"{INVOCATION}/id-1/response", b"x" * (BODY_BYTES_MAX + 1)) == (
        413, "RequestEntityTooLarge"
    )
    assert heard[-1] == "oversized"
    await given_an_event(session, http)  # it may go on
    answer = await http.ask(
        "POST", f"{INVOCATION}/id-1/response", b"x" * (BODY_BYTES_MAX + 1), User_Agent="aws-lambda-python/3.11-4.2"
    )
    assert answer[0] == 202


async def test_streaming(api):
    session, heard, dial = api
    http = await dial()
    await given_an_event(session, http, streaming=True)
    http.writer.write(
        f"POST {INVOCATION}/id-1/response HTTP/1.1\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n"
        "Transfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n3\r\nabc\r\n".encode()
    )
    await until(lambda: ("streamed", b"abc") in heard)
    http.writer.write(b"2\r\nde\r\n0\r\nLambda-Runtime-Function-Error-Type: Runtime.Late\r\n\r\n")
    assert (await http.receive())[0] == 202
    assert heard[1:] == [("streamed", b"abc"), ("streamed", b"de"), ("failed", "Runtime.Late", b"")]


async def test_what_is_streamed_in_tiny_chunks_is_passed_on_once_per_read():
    heard = Heard()
    session = RuntimeSession(heard)
    wire = Wire(session)
    given_to(session, wire, streaming=True)
    body = bytes(range(256)) * 200
    mode = "Lambda-Runtime-Function-Response-Mode: streaming\r\n"
    request = chunked("POST", f"{INVOCATION}/id-1/response", body, size=1, head=mode)
    wire.feed(request)
    assert wire.answers.startswith(b"HTTP/1.1 202 ")
    assert heard[-1] == ("responded", b"", "application/json")
    pieces = [piece for _, piece in heard[1:-1]]
    assert b"".join(pieces) == body
    assert {type(piece) for piece in pieces} == {bytes}
    assert len(pieces) == -(-len(request) // 65_536)


async def test_what_was_streamed_before_a_request_breaks_is_passed_on():
    heard = Heard()
    session = RuntimeSession(heard)
    wire = Wire(session)
    given_to(session, wire, streaming=True)
    mode = "Lambda-Runtime-Function-Response-Mode: streaming\r\n"
    request = chunked("POST", f"{INVOCATION}/id-1/response", b"abc", size=1, head=mode)
    wire.feed(request.removesuffix(b"0\r\n\r\n") + b"no chunk\r\n")
    wire.drop()
    assert heard[1:] == [("streamed", b"abc"), ("failed", "Runtime.TruncatedResponse", b"")]


@pytest.mark.parametrize(("method", "path", "kept"), [
    ("POST", "/nowhere", False), ("GET", "/2018-06-01/ping", False), ("PUT", "/2022-07-01/telemetry", False),
    ("POST", f"{INVOCATION}/id-2/response", False), ("POST", f"{INVOCATION}/id-1/response", True),
    ("POST", f"{INVOCATION}/id-1/error", True),
])
async def test_a_body_costs_its_size_where_it_has_a_use_and_else_nothing(method, path, kept):
    heard = Heard()
    session = RuntimeSession(heard)
    wire, poster = Wire(session), Wire(session)
    given_to(session, wire)
    body = b"xy" * 100_000
    request = chunked(method, path, body, size=2).removesuffix(b"0\r\n\r\n")
    tracemalloc.start()
    try:
        poster.feed(request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + kept * 2 * len(body)
    poster.feed(b"0\r\n\r\n")
    assert poster.answers != b""
    assert (heard[-1][1:] in {(body, "application/json"), ("Runtime.Unknown", body)}) is kept


async def test_one_init_error_at_a_time_is_read():
    heard = Heard()
    session = RuntimeSession(heard)
    first, second = Wire(session), Wire(session)
    head = b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
    first.feed(head + b"{")
    second.feed(head + b"{}")
    assert b"InvalidStateTransition" in second.answers
    first.drop()
    second.feed(head + b"{}")
    assert second.answers.count(b"HTTP/1.1 202 ") == 1
    assert heard == [("init failed", "Runtime.Unknown", b"{}")]


@pytest.mark.parametrize(("body", "content_type"), [(b"<p>", "application/octet-stream"), (b"", "application/json")])
async def test_a_streaming_handler_whose_caller_wants_the_whole(api, body, content_type):
    session, heard, dial = api
    http = await dial()
    await given_an_event(session, http)
    answer = await http.ask(
        "POST", f"{INVOCATION}/id-1/response", body, content_type="text/html",
        Lambda_Runtime_Function_Response_Mode="streaming",
    )
    assert answer[0] == 202
    assert heard[-1] == ("responded", body, content_type)


async def test_a_connection_that_breaks_in_the_middle_may_be_repeated(api):
    session, heard, dial = api
    http, other = await dial(), await dial()
    await given_an_event(session, http)
    http.writer.write(f"POST {INVOCATION}/id-1/response HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc".encode())
    await until(lambda: session.state is ApiState.RESPONDING)
    http.writer.close()
    await until(lambda: session.state is ApiState.RUNNING)
    assert (await other.ask("POST", f"{INVOCATION}/id-1/response", b"1"))[0] == 202
    assert heard[-1] == ("responded", b"1", "application/json")


async def test_what_is_not_there_yet_says_so(api):
    _, _, dial = api
    http = await dial()
    assert await http.error("PUT", "/2022-07-01/telemetry", b"{}") == (202, "Telemetry.NotSupported")
    assert await http.error("PUT", "/2020-08-15/logs", b"{}") == (202, "Logs.NotSupported")
    assert await http.error("POST", "/2020-01-01/extension/register", b"{}") == (403, "Extension.NotSupported")
    assert (await http.error("GET", "/2018-06-01/runtime/invocation/next/"))[0] == 404


@pytest.mark.parametrize("request_bytes", [
    b"nonsense\r\n\r\n",
    b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /2018-06-01/ping HTTP/1.1\r\n" + b"".join(b"H%d: v\r\n" % i for i in range(200)) + b"\r\n",
    b"GET /2018-06-01/ping HTTP/1.1\r\nLong: " + b"x" * 200_000 + b"\r\n\r\n",
    b"GET /2018-06-01/ping HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
])
async def test_malformed_requests_end_their_connection(api, request_bytes):
    session, heard, dial = api
    http, other = await dial(), await dial()
    http.writer.write(request_bytes)
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 400 " in await http.reader.read()
    assert (await other.ask("GET", "/2018-06-01/ping"))[0] == 200
    assert set(heard) == {"loaded"}
    assert session.state is ApiState.STARTED


@pytest.mark.parametrize("beginning", [
    b"GET /2018-06-01/ping HTTP/1.1\r\nLong: ", b"GET /2018-06-01/ping HTTP/1.1\r\n", b"GET /2018-06-01/ping ",
    b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;",
    b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nLong: ",
    b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"",
], ids=["value", "name", "blanks", "extension", "trailer", "size", "lines"])
async def test_what_never_ends_is_taken_up_to_a_bound(beginning):
    heard = Heard()
    session = RuntimeSession(heard)
    wire = Wire(session)
    filler = b" " if beginning.endswith(b"ping ") else b"0" if beginning.endswith(b"\r\n\r\n") else b"x"
    filler = b"\r\n" if not beginning else filler
    wire.feed(beginning)
    assert wire.feed(filler * (16 * HEADER_BYTES_MAX // len(filler)), 1024) <= HEADER_BYTES_MAX + 1024
    assert wire.answers.startswith(b"HTTP/1.1 400 ")
    assert heard == []


async def test_connections_are_capped(api):
    _, _, dial = api
    kept = [await dial() for _ in range(CONNECTIONS_MAX)]
    for http in kept:
        await http.ask("GET", "/2018-06-01/ping")
    assert await (await dial()).is_closed()
    kept[0].writer.close()
    assert (await kept[1].ask("GET", "/2018-06-01/ping"))[0] == 200


async def test_a_slow_request_is_cut(api, monkeypatch):
    monkeypatch.setattr(connection_module, "STALL_S", 0.05)
    _, _, dial = api
    http, waits = await dial(), await dial()
    waits.send("GET", f"{INVOCATION}/next")
    http.writer.write(b"GET /2018-06-01/pi")
    assert await http.is_closed()
    await asyncio.sleep(0.1)
    assert not waits.reader.at_eof()  # who waits for an event may wait for ever


def test_a_line_that_never_ends_has_no_more_time_for_each_of_its_pieces():
    async def main(loop):
        wire, other = Wire(RuntimeSession(Heard())), Wire(RuntimeSession(Heard()))
        wire.feed(b"GET /2018-06-01/ping HTTP/1.1\r\nLong: ")
        other.feed(b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
        for _ in range(4):
            assert not wire.closed
            await asyncio.sleep(connection_module.STALL_S / 4)
            wire.feed(b"x")
            other.feed(b"x")
        await asyncio.sleep(connection_module.STALL_S / 8)
        assert wire.closed
        assert not other.closed, "a body that comes is not stalled"
        other.drop()
    run(main)


async def test_a_request_behind_a_waiting_next_ends_the_connection(api):
    session, _, dial = api
    http = await dial()
    http.send("GET", f"{INVOCATION}/next")
    await until(lambda: session.ready)
    http.send("GET", "/2018-06-01/ping")
    await until(lambda: not session.ready)
    assert session.state is ApiState.RESPONSE_SENT  # it may ask again


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_the_table_is_whole():
    assert "Running --> RESPONSE" not in TRANSITIONS.mermaid()
    assert "    READY --> RUNNING: EventHandedOut" in TRANSITIONS.mermaid().splitlines()
