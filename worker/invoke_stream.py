"""One frontend's stream: payloads in, responses out, many invocations at once, in chunks with credit.

Owns reassembly, credit and the bounds per invocation and per stream, so that neither one 6 MB body nor a frontend that
doesn't read holds up the others. Refuses to know what starts and what doesn't: whole starts go to the agent.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from chassis.rpc import Outbox, Stream
from protos import common_pb2, worker_pb2
from worker import messages as m
from worker.invocation import Result
from worker.translation import result_out

CHUNK_BYTES = 64 * 1024
WINDOW_BYTES = 256 * 1024           # per invocation and direction, before the first Credit
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024
UPLOADS_BYTES_MAX = 64 * 1024 * 1024    # payloads under way on one stream
REPLIES_BYTES_MAX = 128 * 1024 * 1024   # responses that one frontend hasn't taken yet
DRAINED_BYTES = 256 * 1024

_Frame = worker_pb2.InvokeFrame
_log = structlog.get_logger(__name__)


class Starter(Protocol):
    """The agent, as a stream sees it."""

    def hello(self, stream: "InvokeStream") -> list[str]:
        """The frontend's other streams are over. Returns its invocations that still run."""
        ...

    def start(
        self, stream: "InvokeStream", invocation: str, start: worker_pb2.InvokeFrame.Start, payload: bytes
    ) -> None: ...

    def withdraw(self, stream: "InvokeStream", invocation: str, reason: m.Refusal, detail: str) -> None: ...


class _Upload:
    __slots__ = ("chunks", "received", "start", "uncredited")

    def __init__(self, start: worker_pb2.InvokeFrame.Start) -> None:
        self.start = start
        self.chunks: list[bytes] = []
        self.received = 0
        self.uncredited = 0


class InvokeStream:
    """``number`` names it to the core."""

    def __init__(
        self, *, number: int, frontend: str, stream: Stream[worker_pb2.InvokeFrames, worker_pb2.InvokeFrames],
        starter: Starter, incarnation: common_pb2.Incarnation,
    ) -> None:
        self.number = number
        self.frontend = frontend
        self.outbox: Outbox[worker_pb2.InvokeFrames] = Outbox(stream, combine=_combine)
        self.replies: dict[str, StreamReply] = {}
        self.closed = False
        self.waiting_bytes = 0      # of responses
        self._stream = stream
        self._starter = starter
        self._incarnation = incarnation
        self._uploads: dict[str, _Upload] = {}
        self._uploading_bytes = 0

    def hear(self, frames: worker_pb2.InvokeFrames) -> None:
        for frame in frames.frames:
            match frame.WhichOneof("frame"):
                case "start":
                    self._start(frame.invocation, frame.start)
                case "chunk":
                    self._chunk(frame.invocation, frame.chunk)
                case "credit":
                    reply = self.replies.get(frame.invocation)
                    if reply is not None:
                        reply.credit(frame.credit.bytes)
                case "cancel":
                    if self._drop(frame.invocation):
                        self._starter.withdraw(self, frame.invocation, m.Refusal.CANCELLED, "its waiter has gone")
                case "hello":
                    running = self._starter.hello(self)
                    self.put(_Frame(welcome=_Frame.Welcome(incarnation=self._incarnation, running=running)))
                case _:
                    _log.warning("frame ignored", frontend=self.frontend, frame=frame.WhichOneof("frame"))

    def put(self, frame: worker_pb2.InvokeFrame) -> None:
        if not self.closed:
            self.outbox.put(frame)

    def hold(self, frame: worker_pb2.InvokeFrame) -> None:
        """``put`` by somebody who flushes in this very turn."""
        if not self.closed:
            self.outbox.hold(frame)

    def close(self) -> None:
        """The stream is over. What runs goes on; what had not arrived whole never starts."""
        self.closed = True
        for invocation in list(self._uploads):
            self._drop(invocation)
            self._starter.withdraw(self, invocation, m.Refusal.CANCELLED, "its stream broke")

    def cut(self) -> None:
        self._stream.cancel()

    # ------------------------------------------------------------ up

    def _start(self, invocation: str, start: worker_pb2.InvokeFrame.Start) -> None:
        if len(start.payload) == start.payload_size or not start.payload_size:
            self._starter.start(self, invocation, start, start.payload)
            return
        if start.payload_size > PAYLOAD_BYTES_MAX:
            refused = f"a payload of {start.payload_size} bytes is over {PAYLOAD_BYTES_MAX}"
        elif self._uploading_bytes + start.payload_size > UPLOADS_BYTES_MAX:
            refused = f"this frontend has {self._uploading_bytes} bytes of payloads under way already"
        elif invocation in self._uploads:
            refused = "its payload is under way already"
            self._drop(invocation)
        else:
            self._uploads[invocation] = _Upload(start)
            self._uploading_bytes += start.payload_size
            return
        self._starter.withdraw(self, invocation, m.Refusal.SHED, refused)

    def _chunk(self, invocation: str, chunk: worker_pb2.InvokeFrame.Chunk) -> None:
        upload = self._uploads.get(invocation)
        if upload is None:
            return  # refused or cancelled meanwhile
        upload.chunks.append(chunk.data)
        upload.received += len(chunk.data)
        upload.uncredited += len(chunk.data)
        size = upload.start.payload_size
        if upload.received > size or (chunk.last and upload.received != size):
            self._drop(invocation)
            detail = f"its payload has {upload.received} bytes, {size} were announced"
            self._starter.withdraw(self, invocation, m.Refusal.SHED, detail)
        elif upload.received == size:
            self._drop(invocation)
            self._starter.start(self, invocation, upload.start, b"".join(upload.chunks))
        elif upload.uncredited >= WINDOW_BYTES // 2:
            self.put(_Frame(invocation=invocation, credit=_Frame.Credit(bytes=upload.uncredited)))
            upload.uncredited = 0

    def _drop(self, invocation: str) -> bool:
        upload = self._uploads.pop(invocation, None)
        if upload is None:
            return False
        self._uploading_bytes -= upload.start.payload_size
        return True


class StreamReply:
    """The way back of one invocation: Response, Chunks within the credit, Result, End; in that order."""

    __slots__ = (
        "_after", "_buffer", "_done", "_drained", "_last", "_offset", "_stream", "_waiting_bytes", "_window",
        "invocation",
    )

    def __init__(self, stream: InvokeStream, invocation: str) -> None:
        self.invocation = invocation
        self._stream = stream
        self._window = WINDOW_BYTES
        self._buffer: deque[bytes | bytearray] = deque()
        self._offset = 0            # of the first in the buffer, how much has gone out
        self._waiting_bytes = 0     # of all in the buffer, what has not
        self._last = False          # what is buffered is all
        self._done = True           # nothing waits before what follows
        self._after: list[worker_pb2.InvokeFrame] = []
        self._drained: Callable[[], None] | None = None
        stream.replies[invocation] = self

    @property
    def stream(self) -> InvokeStream:
        return self._stream

    def respond(self, body: bytes, *, content_type: str, function_error: bool) -> None:
        whole = len(body) <= CHUNK_BYTES
        response = _Frame.Response(
            function_error="Unhandled" if function_error else "", content_type=content_type, size=len(body),
            payload=body if whole else b"", complete=whole,
        )
        frame = _Frame(invocation=self.invocation, response=response)
        if whole:
            self._after.append(frame)   # it goes with its Result: nobody can be answered before
        else:
            self._stream.put(frame)
            self._done, self._last = False, True
            self._wait(body)

    def chunk(self, data: bytes) -> int:
        if self._done:
            self._done = False
            response = _Frame.Response(content_type="application/octet-stream")
            self._stream.put(_Frame(invocation=self.invocation, response=response))
        self._wait(data)
        return self._waiting_bytes

    def finish_stream(self) -> None:
        self._last = True
        self._pump()

    def when_drained(self, callback: Callable[[], None]) -> None:
        self._drained = callback

    def result(self, result: Result) -> None:
        self._put_after(result_out(self.invocation, result))

    def end(self) -> None:
        self._put_after(_Frame(invocation=self.invocation, end=_Frame.End()))

    def credit(self, count: int) -> None:
        self._window += count
        self._pump()

    def _wait(self, data: bytes) -> None:
        buffer, size = self._buffer, len(data)
        if not buffer or size >= CHUNK_BYTES:
            buffer.append(data)
        else:   # a function chooses the pieces of its stream: small ones wait, and go out, together
            last = buffer[-1]
            if isinstance(last, bytes) or len(last) >= CHUNK_BYTES:
                last = bytearray()
                buffer.append(last)
            last += data
        self._waiting_bytes += size
        self._stream.waiting_bytes += size
        self._bound()
        self._pump()

    def _put_after(self, frame: worker_pb2.InvokeFrame) -> None:
        self._after.append(frame)
        self._flush_after()

    def _flush_after(self) -> None:
        if not self._done and not self._stream.closed:
            return
        for frame in self._after:
            self._stream.hold(frame)
            if frame.HasField("end"):
                self._stream.replies.pop(self.invocation, None)
        if self._after:
            self._after.clear()
            self._stream.outbox.flush()     # somebody waits: for an answer, or for what its end frees

    def _pump(self) -> None:
        """Sends what the credit allows."""
        if self._stream.closed:
            self._forget()
        while self._buffer and self._window:
            head = self._buffer[0]
            data = bytes(head[self._offset:self._offset + min(CHUNK_BYTES, self._window)])
            self._offset += len(data)
            if self._offset == len(head):
                self._buffer.popleft()
                self._offset = 0
            self._window -= len(data)
            self._waiting_bytes -= len(data)
            self._stream.waiting_bytes -= len(data)
            self._send(data, last=self._last and not self._buffer)
        if self._last and not self._buffer and not self._done:
            self._send(b"", last=True)  # a stream whose last piece went out before it was known to be the last
        self._flush_after()
        if self._drained is not None and self._waiting_bytes < DRAINED_BYTES:
            callback, self._drained = self._drained, None
            callback()

    def _send(self, data: bytes, *, last: bool) -> None:
        self._done = self._done or last
        self._stream.put(_Frame(invocation=self.invocation, chunk=_Frame.Chunk(data=data, last=last)))

    def _forget(self) -> None:
        self._stream.waiting_bytes -= self._waiting_bytes
        self._buffer.clear()
        self._offset = self._waiting_bytes = 0
        self._done = True

    def _bound(self) -> None:
        if self._stream.waiting_bytes > REPLIES_BYTES_MAX and not self._stream.closed:
            _log.warning("frontend doesn't read", frontend=self._stream.frontend, waiting=self._stream.waiting_bytes)
            self._stream.cut()


def _combine(frames: list[worker_pb2.InvokeFrame]) -> worker_pb2.InvokeFrames:
    return worker_pb2.InvokeFrames(frames=frames)
