"""What a traced frontend notes beside its core's events: what was asked of it, and what it answered.

Owns the notes, which a history is judged by (invariants 5, 6, 15). Refuses to know contents: no note has more of them
than digests, types and names. A frontend that isn't traced has none of this in its way.
"""

import json
from dataclasses import dataclass

from chassis.clock import Clock
from chassis.digest import digest
from chassis.machine import Trace
from frontend.api.app import Application, Send
from frontend.api.codec import Encoded
from frontend.api.context import Services
from frontend.api.invoke_operation import Invoked
from frontend.api.ports import InvokeAnswer, Invoker, InvokeRequest
from frontend.auth.authenticator import Authenticator
from frontend.gate import Gate
from frontend.health import Health

_TYPE, _FUNCTION_ERROR = b"x-amzn-errortype", b"x-amz-function-error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A synchronous invoke that was let in, authenticated and checked."""

    request: str
    account: str
    function: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Any request. ``error``: a refusal's type, or the function's error; ``detail``: the names in a Detail."""

    request: str
    status: int
    error: str
    explained: bool
    detail: tuple[str, ...]
    digest: str         # empty of a body that is streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The invoke waits for nothing and wants no permit any more. Its answer follows, unless its client has gone."""

    request: str


class RecordedInvoker:
    """``frontend.api.ports.Invoker``: another one, noted."""

    def __init__(self, invoker: Invoker, trace: Trace, clock: Clock) -> None:
        self._invoker = invoker
        self._trace = trace
        self._clock = clock

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        """Raises what the other one does."""
        self._trace.note(self._clock.monotonic(), Asked(
            request=request.request_id, account=request.account, function=request.function.name,
            digest=digest(request.payload),
        ))
        try:
            return await self._invoker.invoke(request)
        finally:
            self._trace.note(self._clock.monotonic(), Over(request=request.request_id))


class RecordedApplication(Application):
    """The API, with every answer noted before it goes out."""

    def __init__(
        self, services: Services, authenticator: Authenticator, gate: Gate, health: Health, *, bodies_bytes_max: int,
        trace: Trace,
    ) -> None:
        super().__init__(services, authenticator, gate, health, bodies_bytes_max=bodies_bytes_max)
        self._trace = trace
        self._clock = services.clock

    async def _send(self, send: Send, answer: Encoded | Invoked, request_id: str) -> None:
        self._trace.note(self._clock.monotonic(), _answered(answer, request_id))
        await super()._send(send, answer, request_id)


def _answered(answer: Encoded | Invoked, request_id: str) -> Answered:
    headers = dict(answer.headers)
    body = answer.body if isinstance(answer.body, bytes) else b""
    detail = json.loads(body).get("Detail") if _TYPE in headers else None
    return Answered(
        request=request_id, status=answer.status,
        error=(headers.get(_TYPE) or headers.get(_FUNCTION_ERROR) or b"").decode(),
        explained=bool(detail), detail=tuple(sorted(detail)) if isinstance(detail, dict) else (),
        digest=digest(body) if isinstance(answer.body, bytes) else "",
    )
