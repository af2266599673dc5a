"""The public HTTP API as a raw ASGI application.

Owns the way of one HTTP request: body, authentication, route, operation, answer; and the headers that every answer has.
Refuses to know what operations do. No exception leaves it: what isn't typed is logged and answered as 500 without its
text.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from email.utils import formatdate
from functools import partial
from typing import Any

import structlog

from chassis.faults import Fault, FaultCode
from frontend.auth import links
from frontend.auth.authenticator import Authenticator, Claimed
from frontend.counts import HttpCounts
from frontend.gate import Gate
from frontend.health import PATH, Health

from .body import (
    HELD_BYTES_MAX,
    Body,
    BodyBudget,
    BodyLimit,
    Disconnected,
    Receive,
    check_declared,
    discard,
    read_body,
    until_gone,
)
from .codec import Encoded, Headers, parse, serialise, serialise_error
from .context import Request, Services
from .errors import ApiError, from_fault, not_there_yet, service_failure, throttled, unavailable, unknown_operation
from .invoke_operation import OPERATION, PAYLOAD_BYTES_MAX, Invoked, invoke, is_invoke, payload_too_large
from .operations import OPERATIONS, perform
from .ports import Throttled, Unavailable
from .routes import Route, Router, query_pairs

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CODE_UPLOAD_BYTES_MAX = 70_167_211
_UPLOADS = frozenset({"CreateFunction", "UpdateFunctionCode"})
# Everything else is small: names, settings and at most 4 KB of environment.
SMALL_BODY_BYTES_MAX = 1_048_576
LARGE_BYTES = 1_048_576
_OPERATION = "labda.operation"   # in the scope: what the request asked for, once that is known


class Application:
    """Mount this in an ASGI server. One per frontend process."""

    def __init__(
        self, services: Services, authenticator: Authenticator, gate: Gate, health: Health, *,
        bodies_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        self._services = services
        self._authenticator = authenticator
        self._gate = gate
        self._health = health
        self._router = Router(services.model)
        self._log = structlog.get_logger("frontend.api")
        self.bodies = BodyBudget(bodies_bytes_max)
        self._date: tuple[int, bytes] = (0, b"")
        self.counts = HttpCounts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        if scope["raw_path"] == PATH:
            await self._health.answer(send)
            return
        request_id = self._services.ids.uuid()
        account = self._gate.claimed(scope["headers"], scope["query_string"])
        refused = self._gate.enter(account)
        if refused is not None:
            self.counts.answered("unknown", refused.status)
            await self._send(send, serialise_error(self._services.model, refused), request_id)
            return
        try:
            answer = await self._answer(scope, receive, request_id)
            self.counts.answered(scope.get(_OPERATION, "unknown"), answer.status)
            await self._send(send, answer, request_id)
        except Disconnected:
            return
        finally:
            self._gate.leave(account)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Encoded | Invoked:
        """The answer to a request, whatever happens on the way."""
        try:
            raw_path: bytes = scope["raw_path"]
            if is_invoke(scope["method"], raw_path):
                scope[_OPERATION] = OPERATION
                return await self._invoke(scope, raw_path, receive, request_id)
            if raw_path.startswith(links.PREFIX.encode()):
                scope[_OPERATION] = "code download"
                return await self._download(scope, raw_path)
            return await self._operation(scope, raw_path, receive, request_id)
        except Disconnected:
            raise
        except asyncio.CancelledError:
            if not self._health.leaving:
                raise
            # What time this process had for what runs is over. Its last word has a type like any other.
            ended = Fault("this frontend ended before the answer was there", code=FaultCode.CANCELLED)
            return serialise_error(self._services.model, from_fault(ended))
        except Exception as error:  # noqa: BLE001 - the client gets a typed answer, the log gets the rest
            return serialise_error(self._services.model, self._as_api_error(error, request_id))

    def _as_api_error(self, error: Exception, request_id: str) -> ApiError:
        match error:
            case ApiError():
                return error
            case Throttled():
                return throttled(error.reason, detail=error.detail, retry_after_s=error.retry_after_s)
            case Unavailable():
                return unavailable(error.message, detail=error.detail, retry_after_s=error.retry_after_s)
            case Fault():
                self._log.warning("fault", request_id=request_id, error=str(error))
                return from_fault(error)
            case _:
                self._log.error("unexpected", request_id=request_id, exc_info=error)
                return service_failure(detail={"request_id": request_id, "remedy": "The frontend's log has the cause."})

    async def _invoke(self, scope: Scope, raw_path: bytes, receive: Receive, request_id: str) -> Invoked:
        account, body = await self._authenticated(scope, raw_path, receive, _PAYLOAD)
        try:
            return await invoke(
                self._services, account, request_id, raw_path, scope["query_string"], scope["headers"], body.data,
                partial(until_gone, receive),
            )
        finally:
            self.bodies.give(body.held)

    async def _operation(self, scope: Scope, raw_path: bytes, receive: Receive, request_id: str) -> Encoded:
        query = query_pairs(scope["query_string"])
        route = self._router.find(scope["method"], raw_path, query)
        if route is not None:
            scope[_OPERATION] = route.operation.name
        account, body = await self._authenticated(scope, raw_path, receive, _body_limit(route))
        try:
            if route is None:
                raise unknown_operation(scope["method"], raw_path.decode("latin-1"))
            return await self._performed(scope, route, query, account, body, request_id)
        finally:
            self.bodies.give(body.held)

    async def _performed(
        self, scope: Scope, route: Route, query: list[tuple[str, str]], account: str, body: Body, request_id: str
    ) -> Encoded:
        name = route.operation.name
        if name == OPERATION:  # its own address was asked before the router, this is another spelling of it
            raise unknown_operation(scope["method"], scope["raw_path"].decode("latin-1"))
        if name not in OPERATIONS:
            raise not_there_yet(name)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        given = partial(parse, route.operation, route.labels, query, headers, body.data)
        request = Request(
            operation=name,
            request_id=request_id,
            account=account,
            # An upload of 50 MB takes half a second to parse: others are served meanwhile.
            parameters=await asyncio.to_thread(given) if body.held > LARGE_BYTES else given(),
            base_url=f"{scope.get('scheme', 'http')}://{headers.get('host', '')}",
        )
        answer = await perform(self._services, request)
        return serialise(route.operation, answer.result, status=answer.status)

    async def _authenticated(
        self, scope: Scope, raw_path: bytes, receive: Receive, limit: BodyLimit
    ) -> tuple[str, Body]:
        """The proved account and the body. Of a request that can't be right nothing is kept or hashed."""
        headers, query = scope["headers"], scope["query_string"]
        try:
            claimed = await self._claimed(headers, query)
            check_declared(headers, limit)
        except ApiError:
            await discard(receive, headers)
            raise
        body = await read_body(receive, limit, self.bodies)
        try:
            if body.held > LARGE_BYTES:
                await asyncio.sleep(0)  # others get a turn between the steps that take long for a large body
            account = await self._authenticator.prove(claimed, scope["method"], raw_path, query, headers, body.sha256)
        except BaseException as error:
            if isinstance(error, ApiError):
                self.counts.not_proved(error.code)
            self.bodies.give(body.held)
            raise
        return account, body

    async def _claimed(self, headers: list[tuple[bytes, bytes]], query: bytes) -> Claimed:
        try:
            return await self._authenticator.claim(headers, query)
        except ApiError as error:
            self.counts.not_proved(error.code)
            raise

    async def _download(self, scope: Scope, raw_path: bytes) -> Invoked:
        """The code of a function, by a link that GetFunction gave."""
        path, query = raw_path.decode("latin-1"), scope["query_string"].decode("latin-1")
        sha256 = self._services.links.check(path, query, self._services.clock.wall())
        if scope["method"] != "GET" or sha256 is None:
            raise ApiError("AccessDeniedException", 403, "The link is not valid, or no longer: call GetFunction again.")
        if not await self._services.blobs.has(sha256):
            raise ApiError("ResourceNotFoundException", 404, f"There is no code with the digest {sha256}.")
        return Invoked(
            status=200, headers=[(b"content-type", b"application/zip")], body=self._services.blobs.get(sha256)
        )

    async def _send(self, send: Send, answer: Encoded | Invoked, request_id: str) -> None:
        headers: Headers = [
            (b"date", self._now()),
            (b"x-amzn-requestid", request_id.encode()),
            *answer.headers,
        ]
        body = answer.body
        if isinstance(body, bytes):
            if answer.status != 204:
                headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._stream(send, body, request_id)

    async def _stream(self, send: Send, chunks: AsyncIterator[bytes], request_id: str) -> None:
        """Send a body in pieces. A fault midway leaves the body unfinished: the client sees a broken transfer."""
        try:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Fault as error:
            self._log.warning("stream broken", request_id=request_id, error=str(error))
            return
        await send({"type": "http.response.body", "body": b""})

    def _now(self) -> bytes:
        """The Date header, made once per second."""
        now = int(self._services.clock.wall())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        return self._date[1]


_PAYLOAD = BodyLimit(bytes_max=PAYLOAD_BYTES_MAX, refuse=payload_too_large)


def _body_limit(route: Route | None) -> BodyLimit:
    name = route.operation.name if route else ""
    limit = CODE_UPLOAD_BYTES_MAX if name in _UPLOADS else SMALL_BODY_BYTES_MAX

    def refuse(size: int) -> ApiError:
        what = f" for the {name} operation" if name else ""
        return ApiError(
            "RequestEntityTooLargeException", 413, f"Request must be smaller than {limit} bytes{what}",
            detail={"limit_bytes": limit, "value_bytes": size},
        )

    return BodyLimit(bytes_max=limit, refuse=refuse)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
