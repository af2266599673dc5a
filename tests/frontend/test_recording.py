"""What a traced frontend notes: requests and answers by digest, refusals by type and names; nothing when it isn't."""

import asyncio
import io
import json
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.digest import digest
from chassis.machine import Trace
from frontend.api.app import Application
from frontend.api.codec import serialise_error
from frontend.api.errors import ApiError, function_not_found, throttled
from frontend.api.invoke_operation import Invoked
from frontend.api.model import load
from frontend.api.ports import InvokeAnswer, InvokeRequest
from frontend.recording import RecordedApplication, RecordedInvoker
from tests.frontend.region import Region
from tests.frontend_api.world import World


class Clock:
    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return 0.0


class Invoker:
    """Answers, raises, or waits to be cancelled."""

    def __init__(self, fate: Exception | None) -> None:
        self._fate = fate

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        if self._fate is not None:
            raise self._fate
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")


class Name:
    name = "f"


def request(payload: bytes = b"secret") -> InvokeRequest:
    return InvokeRequest(
        request_id="r1", account="a", function=Name(), qualifier=None, invoked_arn="", payload=payload,  # type: ignore[arg-type]
        client_context=None, log_tail=False, trace_id="", deadline=9.0,
    )


def notes(file: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert all((line["at"], line["node"]) == (5.0, "frontend-1") for line in lines)
    return [line["note"] for line in lines]


@pytest.mark.parametrize("fate", [ZeroDivisionError("of any kind"), None])
async def test_an_invoke_is_noted_from_its_beginning_to_whatever_end(fate):
    file = io.StringIO()
    invoker = RecordedInvoker(Invoker(fate), Trace(file, "frontend-1"), Clock())
    task = asyncio.create_task(invoker.invoke(request()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
        await task
    assert notes(file) == [
        {"type": "Asked", "request": "r1", "account": "a", "function": "f", "digest": digest(b"secret")},
        {"type": "Over", "request": "r1"},
    ]
    assert "secret" not in file.getvalue()


def refusal(error: ApiError) -> Any:
    return serialise_error(load(), error)


@pytest.mark.parametrize(("answer", "noted"), [
    (Invoked(status=200, headers=[], body=b"secret"), {"status": 200, "error": "", "digest": digest(b"secret")}),
    (Invoked(status=200, headers=[(b"x-amz-function-error", b"Unhandled")], body=b"{}"),
     {"status": 200, "error": "Unhandled", "explained": False}),
    (refusal(throttled("ReservedFunctionConcurrentInvocationLimitExceeded", detail={"limit": 1, "value": 2})),
     {"status": 429, "error": "TooManyRequestsException", "explained": True, "detail": ["limit", "value"]}),
    (refusal(function_not_found("arn")),
     {"status": 404, "error": "ResourceNotFoundException", "explained": False, "detail": []}),
])
async def test_every_answer_is_noted_before_it_goes_out(answer, noted):
    file, sent = io.StringIO(), []

    async def send(message: Any) -> None:
        assert file.getvalue(), "what is noted later could be lost with the process"
        sent.append(message)

    world = World()
    application = RecordedApplication(
        world.services, None, world.gate, world.health, bodies_bytes_max=1000, trace=Trace(file, "frontend-1")  # type: ignore[arg-type]
    )
    application._clock = Clock()
    await application._send(send, answer, "r1")
    [note] = notes(file)
    assert {"type": "Answered", "request": "r1", **noted}.items() <= note.items()
    assert "secret" not in file.getvalue()
    assert sent[0]["status"] == answer.status


async def test_a_frontend_that_is_not_traced_has_none_of_it_in_its_way():
    made = Region(SystemClock())
    await made.start()
    try:
        [frontend] = made.frontends
        assert type(frontend.application) is Application
        assert frontend.application._services.invoker is frontend.invoker
    finally:
        await made.close()
