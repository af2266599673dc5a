"""One HTTP/1.1 connection from inside a sandbox: parsing and its bounds.

Owns bytes, limits and slow clients. Whatever arrives is hostile until parsed: headers, bodies, connections and the time
that a request takes are bounded. Refuses to know what a request means (``session``).
"""

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from worker.runtime_api import answers

if TYPE_CHECKING:
    from worker.runtime_api.session import RuntimeSession

HEADER_BYTES_MAX = 128 * 1024   # a cause for X-Ray alone may have 64 KiB; also of what the parser keeps to itself
HEADERS_MAX = 100
URL_BYTES_MAX = 8 * 1024
DISCARD_BYTES_MAX = 64 * 1024 * 1024  # an oversized body is read on this far, so that its sender hears the 413
STALL_S = 30.0                  # between two pieces of one request: of its body, or whole lines of its head


class Connection(asyncio.Protocol):
    """One at a time: a runtime never has two requests under way on one connection."""

    def __init__(self, session: "RuntimeSession") -> None:
        self.posting = False        # a result or an error is arriving here
        self.streams = False        # ...and is passed on as it arrives
        self.waiting = False        # ``next`` waits here
        self._session = session
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._under_way = False
        self._untold_bytes = 0      # that came since the parser last told of any
        self._timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._method = self._path = ""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._refusal: bytes | None = None
        self._body: bytes | bytearray = b""     # what is kept of it; one piece, as it nearly always is, isn't copied
        self._received = 0
        self._limit = 0
        self.streams = False

    def header(self, name: bytes) -> str:
        """A header or trailer of the current request by its lower-case name; empty when absent."""
        return self._headers.get(name, b"").decode("latin-1").strip()

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        if not self._session.opened(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._stop_timer()
        self._session.lost(self)
        self._reset()
        del self._parser    # it refers back: by reference counts this connection would never be freed

    def data_received(self, data: bytes) -> None:
        self._untold_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse_and_close(400, "BadRequest", "This server speaks HTTP/1.1 and nothing else")
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, AssertionError):
                raise error.__context__ from None  # a bug of ours, met inside a callback: not the client's fault
            self._refuse_and_close(400, "BadRequest", f"Not HTTP/1.1: {error}"[:300])
        if self.streams and self._body:
            self._pass_on()
        # A header, a trailer or a chunk's extensions that don't end: the parser gathers them and says nothing.
        if self._untold_bytes > HEADER_BYTES_MAX:
            self._refuse_and_close(400, "BadRequest", f"Over {HEADER_BYTES_MAX} bytes of one header, or between chunks")
        if not self._under_way or not self._untold_bytes:
            self._stop_timer()
        if self._under_way and self._timer is None and self._transport is not None:
            self._timer = asyncio.get_running_loop().call_later(STALL_S, self.abort)

    def eof_received(self) -> bool:
        if self._under_way:
            self._refuse_and_close(400, "TruncatedHTTPRequest", "HTTP request ended before its body did")
        return False

    def pause_writing(self) -> None:
        """Its reader is slow: nothing more is read, so that answers don't pile up."""
        self.hold(paused=True)

    def resume_writing(self) -> None:
        self.hold(paused=False)

    def hold(self, *, paused: bool) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _refuse_and_close(self, status: int, error_type: str, message: str) -> None:
        self._under_way = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answers.refusal(status, error_type, message))
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------ answers

    def answer_event(self, head: bytes, body: bytes) -> None:
        self.waiting = False
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(head + body if len(body) <= 65536 else head)
            if len(body) > 65536:
                transport.write(body)

    def _write(self, answer: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(answer)
        if not self._parser.should_keep_alive():
            transport.close()

    # ------------------------------------------------------------ httptools' callbacks

    def on_message_begin(self) -> None:
        if self.waiting:
            raise httptools.HttpParserError("a request while the one before waits")
        self._reset()
        self._under_way = True

    def on_url(self, url: bytes) -> None:
        self._untold_bytes = 0
        self._url += url
        if len(self._url) > URL_BYTES_MAX:
            raise httptools.HttpParserError(f"a URL over {URL_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._untold_bytes = 0
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX or len(self._headers) >= HEADERS_MAX:
            raise httptools.HttpParserError(f"headers over {HEADER_BYTES_MAX} bytes or {HEADERS_MAX} lines")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._method = self._parser.get_method().decode("latin-1")
        self._path = self._url.split(b"?", 1)[0].decode("latin-1")
        self._refusal = self._session.begin(self, self._method, self._path)
        self._limit = self._session.body_limit(self)
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._untold_bytes = 0
        self._received += len(body)
        if self._received > self._limit or self._refusal is not None:
            if not self.streams:
                self._body = b""
                if self._received > DISCARD_BYTES_MAX:
                    self._session.cut(self)
                    raise httptools.HttpParserError(f"a body over {DISCARD_BYTES_MAX} bytes")
        elif not self._body:
            self._body = body
        else:   # never one by one: chunks of a byte would cost fifty times their size
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def _pass_on(self) -> None:
        """What one read brought of a streamed result, in however many chunks."""
        piece, self._body = bytes(self._body), b""
        self._session.streamed(piece)

    def on_message_complete(self) -> None:
        self._under_way = False
        if self._refusal is not None:
            self._write(self._refusal)
            return
        if self.streams and self._body:
            self._pass_on()
        body, self._body = bytes(self._body), b""
        oversized = self._received > self._limit
        answer = self._session.complete(self, self._method, self._path, body, oversized=oversized)
        if answer is not None:
            self._write(answer)
