"""One invocation at a worker, as the frontend sees it from its Start to its END.

Owns what came and went of it. The answer and the end are two things (rule 3): the client gets the answer on Result, the
permit comes back only on End, NeverStarted, or when the worker's incarnation is no more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chassis.faults import Fault
from protos import common_pb2, worker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the function answered, and what it cost."""

    payload: bytes
    function_error: str
    content_type: str = "application/json"
    result: worker_pb2.InvokeFrame.Result


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStarted:
    """Certainly never ran and never will under this id. ``reason`` is the protocol's word, or "UNREACHABLE" (ours)."""

    reason: str
    detail: str


class Flight:
    """``answer`` is awaited by the request, ``over`` is called once, when nothing of it can run any more."""

    __slots__ = (
        "answer", "answer_by", "content_type", "credit", "ended", "function_error", "invocation", "lost", "over",
        "parts", "payload", "reservation", "result", "sent", "start",
    )

    def __init__(
        self,
        invocation: str,
        reservation: common_pb2.Reservation,
        start: worker_pb2.InvokeFrame.Start,
        payload: bytes,
        *,
        over: Callable[["Flight"], None],
        answer_by: float,
    ) -> None:
        self.invocation = invocation
        self.reservation = reservation
        self.start = start
        self.payload = payload
        self.over = over
        self.answer_by = answer_by      # monotonic seconds; past it something is wrong at the worker
        self.answer: asyncio.Future[Answered | NotStarted] = asyncio.get_running_loop().create_future()
        self.credit = 0                 # bytes of the payload that the worker is ready for
        self.sent = 0
        self.parts: list[bytes] = []
        self.function_error = ""
        self.content_type = ""
        self.result: worker_pb2.InvokeFrame.Result | None = None
        self.ended = False              # by End: the sandbox is idle, as far as anybody told us
        self.lost = False               # the stream broke: whether it runs isn't known

    def settle(self, outcome: Answered | NotStarted | Fault) -> None:
        """The request's answer, unless it has one or nobody waits any more."""
        if self.answer.done():
            return
        if isinstance(outcome, Fault):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)
