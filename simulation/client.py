"""A client of a simulated region: signed requests straight into a frontend's ASGI application.

Owns the client's half of HTTP as ASGI sees it, and botocore's own signature at the region's time. Refuses to know
operations: paths and bodies are the caller's.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from chassis.clock import Clock
from frontend.auth.keys import AccessKey

SERVICE = "lambda"
SCHEME = "http"
_OUT_OF_TIME = (b"Signature expired", b"Signature not yet current")

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Left(Exception):
    """The client left, and the frontend ended its request without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer. Header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _Signer(SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """botocore's signer with a clock that is passed in: its own reads the host's."""

    def __init__(self, key: AccessKey, region: str, clock: Clock) -> None:
        super().__init__(Credentials(key.key_id, key.secret), SERVICE, region)
        self._clock = clock

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)


class Client:
    """One key at one frontend."""

    def __init__(self, application: Asgi, *, host: str, key: AccessKey, region: str, clock: Clock) -> None:
        self._application = application
        self._host = host
        self._signer = _Signer(key, region, clock)

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *,
        leaves_after_s: float = math.inf,
    ) -> Answer:
        """One request; waits for the whole answer. Cancelling it takes the task that serves it along.

        A client that leaves closes its connection by then, and what becomes of the request is the frontend's to see:
        raises Left when the frontend ended it without an answer. Refused for its time, it is signed once more: the
        frontend's clock was moved after it had been signed, and real clients do so too.
        """
        answer = await self._send(method, path, body, headers, leaves_after_s)
        if answer.status == HTTPStatus.FORBIDDEN and any(text in answer.body for text in _OUT_OF_TIME):
            answer = await self._send(method, path, body, headers, leaves_after_s)
        return answer

    async def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None, leaves_after_s: float
    ) -> Answer:
        url = f"{SCHEME}://{self._host}{path}"
        request = AWSRequest(method=method, url=url, data=body, headers=dict(headers or {}))
        self._signer.add_auth(request)
        signed = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
        signed += [(b"host", self._host.encode()), (b"content-length", str(len(body)).encode())]
        parts = urlsplit(request.url)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": SCHEME,
            "path": parts.path, "raw_path": parts.path.encode(), "query_string": parts.query.encode(),
            "headers": signed, "client": ("client", 1), "server": (self._host, 80),
        }
        exchange = _Exchange(body)
        leaving = None
        if leaves_after_s < math.inf:
            leaving = asyncio.get_running_loop().call_later(leaves_after_s, exchange.leave)
        try:
            await self._application(scope, exchange.receive, exchange.send)
        finally:
            if leaving is not None:
                leaving.cancel()
        return exchange.answer()


class _Exchange:
    """One request and its answer, as an ASGI server carries them."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._complete = asyncio.Event()
        self._over = asyncio.Event()    # it is complete, or the client has left
        self._left = False

    def leave(self) -> None:
        self._left = True
        self._over.set()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._complete.set()
                self._over.set()

    def answer(self) -> Answer:
        if self._left and not self._complete.is_set():
            raise Left
        assert self._complete.is_set(), "the application ended without an answer"
        return Answer(status=self._status, headers=self._headers, body=b"".join(self._parts))
