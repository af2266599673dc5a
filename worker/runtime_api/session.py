"""One sandbox's Runtime API: what its runtime may do now, and whom to tell when it did.

Owns the state (``states``) and the connections of one sandbox. Refuses to know what an invocation is worth, how long it
may take, and sandboxes: ``RuntimeEvents`` hears what happened.
"""

import asyncio
import re
from typing import Protocol

from chassis.machine import Story
from worker.runtime_api import answers
from worker.runtime_api.answers import BODY_BYTES_MAX, Event
from worker.runtime_api.connection import Connection
from worker.runtime_api.states import (
    TRANSITIONS,
    ApiState,
    BodyDone,
    BodyLost,
    ErrorBegun,
    EventHandedOut,
    InitFailed,
    NextAsked,
    NextLost,
    ResponseBegun,
    Restarted,
)

CONNECTIONS_MAX = 32
STREAMED_BYTES_MAX = 200 * 1024 * 1024
_PREFIX = "/2018-06-01/"
_INIT_ERROR = _PREFIX + "runtime/init/error"
# awslambdaric ends its process on a 413, and Lambda keeps the environment of a result that was too large: its posts are
# accepted. The client gets Function.ResponseSizeTooLarge either way.
_DIES_OF_REFUSALS = "aws-lambda-python/"
_TOO_LARGE = answers.refusal(
    413, "RequestEntityTooLarge", f"Exceeded maximum allowed payload size ({BODY_BYTES_MAX} bytes)."
)
_INVOCATION = re.compile(r"/2018-06-01/runtime/invocation/([^/]{1,128})/(response|error)")
_ERROR_TYPE = re.compile(r"(Runtime|Function)\.[A-Z][a-zA-Z]+")


class RuntimeEvents(Protocol):
    """Who hears what a runtime does. Calls are synchronous and must be quick."""

    def loaded(self) -> None:
        """The runtime pinged before its first next: it is about to load the function."""
        ...

    def asked_next(self) -> None: ...

    def responded(self, body: bytes, content_type: str) -> None:
        """``content_type``: what Invoke answers with. The runtime's own word isn't for that."""
        ...


    def streamed(self, chunk: bytes) -> None:
        """A piece of a streamed result. ``responded(b"", ...)`` or ``failed`` ends it."""
        ...

    def oversized(self) -> None:
        """The result was over the limit and is thrown away."""
        ...

    def failed(self, error_type: str, body: bytes) -> None: ...

    def init_failed(self, error_type: str, body: bytes) -> None: ...


class RuntimeSession:
    """Answers for one sandbox over all its runtime processes. ``connection()`` is the protocol factory."""

    def __init__(self, events: RuntimeEvents) -> None:
        self.state = ApiState.STARTED
        self._events = events
        self._connections: set[Connection] = set()
        self._waiter: Connection | None = None
        self._reporter: Connection | None = None    # an init error is arriving there
        self._request_id = ""
        self._streaming = False         # the caller wants the result as it comes
        self._story = Story()

    # ------------------------------------------------------------ the worker's side

    def connection(self) -> asyncio.Protocol:
        return Connection(self)

    @property
    def ready(self) -> bool:
        """The runtime waits for an event."""
        return self.state is ApiState.READY

    def deliver(self, event: Event, *, streaming: bool = False) -> None:
        """Hands an event to the runtime, which must be ``ready``."""
        waiter = self._waiter
        assert waiter is not None, f"the runtime is {self.state.name} and asked for nothing"
        self._step(EventHandedOut)
        self._waiter = None
        self._request_id, self._streaming = event.request_id, streaming
        waiter.answer_event(answers.event(event), event.body)

    def restart(self) -> None:
        """The processes were killed: what comes next is a new one."""
        self._waiter = self._reporter = None
        self._request_id = ""
        for connection in list(self._connections):
            connection.abort()
        self._step(Restarted)

    def pause(self, *, paused: bool) -> None:
        """Stops or goes on reading a streamed result: its reader is slow."""
        for connection in self._connections:
            connection.hold(paused=paused)

    # ------------------------------------------------------------ the connections' side

    def opened(self, connection: Connection) -> bool:
        """Whether one more connection is allowed."""
        if len(self._connections) >= CONNECTIONS_MAX:
            return False
        self._connections.add(connection)
        return True

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection is self._reporter:
            self._reporter = None
        if connection is self._waiter:
            self._waiter = None
            self._step(NextLost)
        if connection.posting:
            connection.posting = False
            if TRANSITIONS.allows(self.state, BodyLost):
                self._step(BodyLost)
                if connection.streams:
                    self._step(ErrorBegun)
                    self._step(BodyDone)
                    self._events.failed("Runtime.TruncatedResponse", b"")

    def begin(self, connection: Connection, method: str, path: str) -> bytes | None:
        """Headers are here. Returns a refusal, or None: go on (the body may be read)."""
        if method != "POST":
            return None
        match = _INVOCATION.fullmatch(path)
        if match is None:
            if path != _INIT_ERROR:
                return None
            if self._reporter is not None or not TRANSITIONS.allows(self.state, InitFailed):
                return self._forbidden("InitError")
            self._reporter = connection
            return None
        request_id, kind = match.groups()
        event = ResponseBegun if kind == "response" else ErrorBegun
        if self.state is ApiState.RUNNING and request_id != self._request_id:
            return answers.refusal(400, "InvalidRequestID", "Invalid request ID")
        if not TRANSITIONS.allows(self.state, event):
            return self._forbidden("InvocationResponse" if kind == "response" else "InvocationErrorResponse")
        mode = connection.header(b"lambda-runtime-function-response-mode").lower()
        if kind == "response" and mode not in ("", "streaming"):
            return answers.refusal(
                400, "InvalidFunctionResponseMode", f"Invalid response mode {mode!r}: it is 'streaming' or absent"
            )
        self._step(event)
        connection.posting = True
        connection.streams = kind == "response" and mode == "streaming" and self._streaming
        return None

    def body_limit(self, connection: Connection) -> int:
        """How many bytes of its request's body are kept or passed on; of what nobody reads, none."""
        if connection.streams:
            return STREAMED_BYTES_MAX
        return BODY_BYTES_MAX if connection.posting or connection is self._reporter else 0

    def streamed(self, chunk: bytes) -> None:
        self._events.streamed(chunk)

    def complete(self, connection: Connection, method: str, path: str, body: bytes, *, oversized: bool) -> bytes | None:
        """A whole request. Returns the answer, or None: it comes later (``next``)."""
        if connection.posting:
            return self._posted(connection, body, oversized=oversized)
        if connection is self._reporter:
            return self._init_failed(connection, body, oversized=oversized)
        if path == _PREFIX + "runtime/invocation/next" and method == "GET":
            return self._next(connection)
        if path == _PREFIX + "ping" and method == "GET":
            if self.state is ApiState.STARTED:
                self._events.loaded()
            return answers.PONG
        return self._elsewhere(path)

    def cut(self, connection: Connection) -> None:
        """A result without end: it counts as oversized, and its connection is about to be closed."""
        if connection.posting:
            connection.posting = False
            self._step(BodyDone)
            self._events.oversized()

    def _posted(self, connection: Connection, body: bytes, *, oversized: bool) -> bytes:
        connection.posting = False
        failing = self.state is ApiState.FAILING
        self._step(BodyDone)
        if oversized:
            self._events.oversized()
            if connection.header(b"user-agent").startswith(_DIES_OF_REFUSALS):
                return answers.ACCEPTED
            return _TOO_LARGE
        # A streamed result that fails in the middle says so in trailers.
        broken = connection.streams and connection.header(b"lambda-runtime-function-error-type")
        if failing or broken:
            self._events.failed(_error_type(connection), body)
        else:
            self._events.responded(body, _content_type(connection, body))
        return answers.ACCEPTED

    def _init_failed(self, connection: Connection, body: bytes, *, oversized: bool) -> bytes:
        self._reporter = None
        if oversized:
            return _TOO_LARGE
        if not TRANSITIONS.allows(self.state, InitFailed):
            return self._forbidden("InitError")     # it asked for an event meanwhile
        self._step(InitFailed)
        self._events.init_failed(_error_type(connection), body)
        return answers.ACCEPTED

    def _next(self, connection: Connection) -> bytes | None:
        if not TRANSITIONS.allows(self.state, NextAsked):
            return self._forbidden("Ready")
        self._step(NextAsked)
        self._waiter = connection
        connection.waiting = True
        self._events.asked_next()
        return None

    def _elsewhere(self, path: str) -> bytes:
        if path == _PREFIX + "runtime/restore/next":
            return self._forbidden("RestoreReady")
        if path == "/2022-07-01/telemetry":
            return answers.not_supported("Telemetry.NotSupported", "Telemetry API is not supported")
        if path == "/2020-08-15/logs":
            return answers.not_supported("Logs.NotSupported", "Logs API is not supported")
        if path.startswith("/2020-01-01/extension/"):
            return answers.refusal(
                403, "Extension.NotSupported", "Extensions are not supported yet: deploy the function without them"
            )
        if path.startswith(_PREFIX):
            return answers.refusal(404, "NotFound", f"The Runtime API has no {path[:200]} for this method")
        return answers.refusal(404, "NotFound", f"No API here: {path[:200]}")

    def _forbidden(self, wanted: str) -> bytes:
        return answers.refusal(
            403, "InvalidStateTransition",
            f"State transition from {self.state.value} to {wanted} failed for runtime. "
            "Error: State transition is not allowed",
        )

    def _step(self, event: type) -> None:
        self._story.tell(0.0, event)
        self.state = TRANSITIONS.next(self.state, event, self._story)


def _error_type(connection: Connection) -> str:
    """The error type that a runtime names, if it is well-formed; else what the platform makes of it."""
    named = connection.header(b"lambda-runtime-function-error-type")
    if _ERROR_TYPE.fullmatch(named):
        return named
    return "Function.Unknown" if named.startswith("Function.") else "Runtime.Unknown"


def _content_type(connection: Connection, body: bytes) -> str:
    """Of the answer to an Invoke: another where a streaming handler had something to say (reference section 2.2)."""
    streaming = connection.header(b"lambda-runtime-function-response-mode") != ""
    return "application/octet-stream" if streaming and body else "application/json"
