"""What a traced worker notes beside its core's events: digests of the payloads that came and of what was answered.

Owns the notes, which a history is judged by (invariant 6). Refuses to know contents: no note has a byte of them.
"""

from dataclasses import dataclass

from chassis.clock import Clock
from chassis.digest import digest
from chassis.machine import Trace
from worker.invoke_stream import InvokeStream, StreamReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A payload came with a start that the core is about to be asked for."""

    invocation: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Responded:
    """The function's answer is about to go out, in one piece."""

    invocation: str
    digest: str


class Recording:
    """Of one agent."""

    def __init__(self, trace: Trace, clock: Clock) -> None:
        self._trace = trace
        self._clock = clock

    def reply(self, stream: InvokeStream, invocation: str, payload: bytes) -> StreamReply:
        """Notes the payload; the way back for its answer."""
        self.note(Received(invocation=invocation, digest=digest(payload)))
        return _Noted(stream, invocation, self)

    def note(self, message: Received | Responded) -> None:
        self._trace.note(self._clock.monotonic(), message)


class _Noted(StreamReply):
    __slots__ = ("_recording",)

    def __init__(self, stream: InvokeStream, invocation: str, recording: Recording) -> None:
        super().__init__(stream, invocation)
        self._recording = recording

    def respond(self, body: bytes, *, content_type: str, function_error: bool) -> None:
        self._recording.note(Responded(invocation=self.invocation, digest=digest(body)))
        super().respond(body, content_type=content_type, function_error=function_error)
