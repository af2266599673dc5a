"""One client's connection: uvicorn's protocol with the bounds that it lacks (``HttpLimits``).

Owns what a client may take before it is known who it is: connections, the size of a head, and time, whether it sends
too slowly, sends nothing, or doesn't read its answer. A connection that is refused is told why in one answer. Refuses
to know what is served.
"""

import asyncio
import enum
import json
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NoReturn, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from chassis.tls_doors import Door
from frontend.config import HttpLimits

# A refused client may still be sending: it is read for so long that the refusal reaches it instead of a reset.
LINGER_S = 2.0
LINGERING_MAX = 256
UNSENT_BYTES = 65_536       # of HTTPS: above it the next piece of an answer waits


class Reading(enum.Enum):
    """What is expected of the client."""

    NOTHING = "nothing"   # no request has begun, or it is complete
    HEAD = "head"         # some bytes came, its headers aren't complete
    BODY = "body"         # its headers are complete


class Refused(Exception):
    """Leaves a parser's callback; uvicorn goes on at ``send_400_response``."""


class Member(Protocol):
    """A connection, or one whose TLS handshake has not ended."""

    peer: str       # the client's address

    def give_way(self) -> None:
        """Leaves the crowd and ends."""
        ...


class Crowd:
    """All connections of one server, counted. Those that wait for a next request are in the order they began to."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.lingering = 0    # refused connections that are still being told so
        self.refused = 0      # since the start
        self._count = 0
        self._clients: Counter[str] = Counter()
        self._idle: dict[Member, None] = {}

    def enter(self, connection: Member) -> bytes | None:
        """Count a new connection, at the cost of the longest idle one where there are too many; else a refusal."""
        limits, client = self.limits, connection.peer
        if self._clients[client] >= limits.connections_per_client_max and not self._end_idle(client):
            return _full("connections_per_client_max", limits.connections_per_client_max, f"connections of {client}")
        if self._count >= limits.connections_max and not self._end_idle():
            return _full("connections_max", limits.connections_max, "connections of this frontend")
        self._count += 1
        self._clients[client] += 1
        self._idle[connection] = None
        return None

    def leave(self, connection: Member) -> None:
        self._idle.pop(connection, None)
        self._count -= 1
        self._clients[connection.peer] -= 1
        if not self._clients[connection.peer]:
            del self._clients[connection.peer]

    def idle(self, connection: Member) -> None:
        self._idle[connection] = None

    def busy(self, connection: Member) -> None:
        self._idle.pop(connection, None)

    def _end_idle(self, client: str = "") -> bool:
        """The longest idle connection (of a client) ends; whether there was one."""
        for connection in self._idle:
            if client in {"", connection.peer}:
                connection.give_way()
                return True
        return False


class CrowdAtTheDoor:
    """A crowd as ``chassis.tls_doors`` asks it: a handshake counts as an idle connection, and gives way like one."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def enter(self, door: Door) -> bool:
        """Who finds no room is cut off: to tell why would take the handshake."""
        if self._crowd.enter(door) is None:
            return True
        self._crowd.refused += 1
        return False

    def leave(self, door: Door) -> None:
        self._crowd.leave(door)


class Connection(HttpToolsProtocol):
    """Made for each connection; ``crowd`` is the server's. ``door``: where a TLS handshake comes first."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, crowd: Crowd, door: Door | None = None
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self.peer = ""
        self._door = door
        self._crowd = crowd
        self._limits = crowd.limits
        self.timeout_keep_alive = crowd.limits.keep_alive_s  # type: ignore[assignment]  # any number of seconds will do
        self._reading = Reading.NOTHING
        self._entered = self._lingers = self._kept_alive = False
        self._refusal: bytes | None = None          # what a callback of the parser wants the client to be told
        self._unparsed_bytes = 0                    # that came for a head which isn't complete
        self._head_bytes = self._header_count = 0   # of the request that is being read
        self._body_bytes = self._framed_bytes = 0   # of its body, and of the same with its framing
        self._judged_bytes = 0                      # of the body when the client's pace was last judged
        self._body_until = 0.0                      # on the loop's clock
        self._taken_bytes = 0                       # when the client's pace of taking was last judged
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if self._door is not None:
            self._door.leave()
            transport.set_write_buffer_limits(high=UNSENT_BYTES)
        refused = self._crowd.enter(self)
        if refused is not None:
            self._refuse(refused)
            return
        self._entered = True
        self._read_timer = self.loop.call_later(self._limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._read_timer, self._write_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = self._end_timer = None
        if self._entered:
            self._entered = False
            self._crowd.leave(self)
        if self._lingers:
            self._lingers = False
            self._crowd.lingering -= 1
        super().connection_lost(exc)

    def give_way(self) -> None:
        """An idle connection ends, so that a new one has room."""
        self._entered = False
        self._crowd.leave(self)
        if self._door is not None:
            self.transport.abort()      # a goodbye would take the client's, and it is counted no more
        else:
            self._close()

    def shutdown(self) -> None:
        super().shutdown()
        self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_in_time()
        elif self._reading is Reading.NOTHING and self.cycle.response_complete:
            self._crowd.idle(self)

    # ------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return  # what a refused client still sends
        # What is counted here the parser doesn't tell of: a header that isn't whole, a chunk's extensions. Bytes that
        # came together with an earlier part of the talk are left out: they are of one read.
        match self._reading:
            case Reading.NOTHING:
                self._reading = Reading.HEAD
                self._crowd.busy(self)
            case Reading.HEAD:
                self._unparsed_bytes += len(data)
            case Reading.BODY:
                self._framed_bytes += len(data)
        super().data_received(data)
        match self._reading:
            case Reading.HEAD:
                too_many = self._unparsed_bytes > self._limits.header_bytes_max + self._limits.url_bytes_max
                self._await_more(self._limits.head_s, self._head_is_late, too_many=too_many)
            case Reading.BODY:
                too_many = self._framed_bytes > 8 * self._body_bytes + self._limits.header_bytes_max
                self._await_more(self._limits.pace_s, self._judge_sender, too_many=too_many)
            case Reading.NOTHING:
                pass

    def _await_more(self, within_s: float, judge: Callable[[], None], *, too_many: bool) -> None:
        if too_many:
            self._refuse(self._head_too_large())
        elif self._read_timer is None and not self._lingers:
            self._read_timer = self.loop.call_later(within_s, judge)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = Reading.HEAD
        self._unparsed_bytes = self._head_bytes = self._header_count = 0
        self._body_bytes = self._framed_bytes = self._judged_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.url_bytes_max:
            self._deny(refusal(414, "RequestUriTooLongException", "The request's URL is too long.", {
                "limit": "url_bytes_max", "limit_bytes": self._limits.url_bytes_max,
                "remedy": "Send what is long in the body.",
            }))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._header_count += 1
        if self._head_bytes > self._limits.header_bytes_max or self._header_count > self._limits.header_count_max:
            self._deny(self._head_too_large())
        if len(name) == 14 and name.lower() == b"content-length" and int(value) > self._limits.body_bytes_max:
            limit = self._limits.body_bytes_max
            self._deny(refusal(
                413, "RequestEntityTooLargeException", f"Request must be smaller than {limit} bytes",
                {"limit": "body_bytes_max", "limit_bytes": limit, "value_bytes": int(value)},
            ))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reading = Reading.BODY
        self._unparsed_bytes = 0
        self._body_until = self.loop.time() + self._limits.body_s
        self._stop_reading_timer()
        super().on_headers_complete()
        if self.expect_100_continue:
            # Answered without being asked to go on, it may send its body or not: the connection ends with the answer.
            self._kept_alive = self.cycle.keep_alive
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._went_on()
        super().on_body(body)

    def _went_on(self) -> None:
        if self.expect_100_continue and not self.cycle.response_started:
            self.cycle.keep_alive = self._kept_alive

    def on_message_complete(self) -> None:
        self._reading = Reading.NOTHING
        self._stop_reading_timer()
        self._went_on()
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # it was answered before it was whole
            self.timeout_keep_alive_task = self.loop.call_later(
                self._limits.keep_alive_s, self.timeout_keep_alive_handler
            )
            self._crowd.idle(self)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way out of a request that its parser, or a callback above, refused."""
        answer, self._refusal = self._refusal, None
        remedy = {"remedy": "Send HTTP/1.1 as RFC 9112 has it."}
        self._refuse(answer or refusal(400, "BadRequestException", msg, remedy))

    def _deny(self, answer: bytes) -> NoReturn:
        self._refusal = answer
        raise Refused

    def _stop_reading_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    # ------------------------------------------------------------ clients that are slow

    def _head_is_late(self) -> None:
        self._read_timer = None
        if self._answering:
            # It waits for an answer, and may send the next request's beginning meanwhile.
            self._read_timer = self.loop.call_later(self._limits.head_s, self._head_is_late)
        elif self._reading is Reading.NOTHING:
            self._close()
        else:
            limit_s = self._limits.head_s
            self._refuse(_too_slow(f"The request's headers were not complete after {limit_s:g} s.", "head_s", limit_s))

    def _judge_sender(self) -> None:
        """Every ``pace_s`` while a body is expected. A client that waits for us is not slow."""
        self._read_timer = None
        limits = self._limits
        came, self._judged_bytes = self._body_bytes - self._judged_bytes, self._body_bytes
        waits = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self.loop.time() >= self._body_until:
            self._refuse(_too_slow(f"The request's body was not complete after {limits.body_s:g} s.", "body_s",
                                   limits.body_s))
        elif not waits and came < limits.pace_s * limits.bytes_per_s_min:
            self._refuse(_too_slow(
                f"The request's body came too slowly: {came} bytes in {limits.pace_s:g} s.", "bytes_per_s_min",
                limits.bytes_per_s_min,
            ))
        else:
            self._read_timer = self.loop.call_later(limits.pace_s, self._judge_sender)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_taker()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._end_in_time()

    def _watch_taker(self) -> None:
        if self._write_timer is None:
            self._taken_bytes = self._taken()
            self._write_timer = self.loop.call_later(self._limits.pace_s, self._judge_taker)

    def _judge_taker(self) -> None:
        """Every ``pace_s`` while an answer waits for its client: nothing is added to it meanwhile."""
        before, self._taken_bytes = self._taken_bytes, self._taken()
        if self._taken_bytes - before < self._limits.pace_s * self._limits.bytes_per_s_min:
            self._write_timer = None
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self._limits.pace_s, self._judge_taker)

    def _taken(self) -> int:
        """Grows with what the client takes, from wherever it began."""
        if self._door is None:
            return -self.transport.get_write_buffer_size()
        # TLS writes into a transport below its own, whose buffer isn't shown.
        return self._door.acknowledged_bytes()

    # ------------------------------------------------------------ ends

    def _refuse(self, answer: bytes) -> None:
        """Tell why, and read on for a moment so that it arrives. What runs for the client is told that it went."""
        if self._lingers or self.transport.is_closing():
            return
        self._crowd.refused += 1
        self._stop_reading_timer()
        self._unset_keepalive_if_required()
        running = self._answering
        if running and (self._reading is not Reading.BODY or self.cycle.response_started or self.pipeline):
            self.transport.abort()  # another request's answer is due here: this one would be taken for it
            return
        if running:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        if self._crowd.lingering >= LINGERING_MAX:
            self._close()
            return
        self._lingers = True
        self._crowd.lingering += 1
        if self.transport.can_write_eof():      # TLS can't say that alone: the client goes by the length
            self.transport.write_eof()
        self.flow.resume_reading()
        self._end_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    @property
    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """A closed connection waits until its client took what was written, and TLS's goodbye: not for ever."""
        if self.transport.is_closing() and (self._door is not None or self.transport.get_write_buffer_size()):
            self._watch_taker()

    def _head_too_large(self) -> bytes:
        return refusal(431, "RequestHeaderSectionTooLargeException", "The request's headers are too large.", {
            "limit": "header_bytes_max, header_count_max", "limit_bytes": self._limits.header_bytes_max,
            "limit_count": self._limits.header_count_max, "remedy": "Send fewer and shorter headers.",
        })


# ---- answers without an application


def refusal(status: int, code: str, message: str, detail: dict[str, Any]) -> bytes:
    """A whole answer in the form that AWS's clients read, after which the connection ends."""
    body = json.dumps({"Type": "User" if status < 500 else "Service", "message": message, "Detail": detail}).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"date: {formatdate(usegmt=True)}",
        "content-type: application/json",
        f"x-amzn-errortype: {code}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if status == 503:
        lines.append("retry-after: 1")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _full(limit: str, value: int, counter: str) -> bytes:
    return refusal(503, "ServiceUnavailableException", "There are as many connections as there may be.", {
        "limit": limit, "value": value, "counter": counter, "in_use": value,
        "remedy": "Nothing was done: try again, and keep fewer connections open.",
    })


def _too_slow(message: str, limit: str, value: float) -> bytes:
    return refusal(408, "RequestTimeoutException", message, {
        "limit": limit, "value": value, "remedy": "Nothing was done: try again, over a faster connection.",
    })
