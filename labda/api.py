"""The public API as the command uses it: a few operations, signed, over one kept connection.

Owns those calls and the sentences for what goes wrong. Refuses to know the cluster behind the endpoint: any other
client of AWS Lambda does the same.
"""

import base64
import hashlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from labda.refusal import Refusal, Status
from labda.signing import sign
from labda.state import Credentials

FUNCTIONS = "/2015-03-31/functions"
CONNECT_S = 3.0
REQUEST_S = 960.0           # the longest function timeout and a cold start
LIST_S = 3.0                # a frontend that stands still accepts connections and answers nothing
SETTLE_S = 60.0             # how long a deployment may take
POLL_S = 0.05
ROLE_NAME = "labda"
_NO_REVISION = "none"       # revisions are UUIDs


@dataclass(frozen=True, slots=True)
class Answer:
    """``elapsed_s``: from the first byte sent to the last one read. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What ``labda deploy`` sends. None keeps what a function has; a new one needs runtime and handler."""

    name: str
    runtime: str | None
    handler: str | None
    memory_mb: int | None
    timeout_s: int | None
    archive: bytes


class Api:
    """``endpoint`` is a URL like http://127.0.0.1:9000. Of an HTTPS one ``authority`` names the file of who vouches."""

    def __init__(self, endpoint: str, credentials: Credentials, region: str, *, authority: str = "") -> None:
        self.endpoint = endpoint
        self._credentials = credentials
        self._region = region
        parts = urlsplit(endpoint)
        self._host = parts.netloc
        host = parts.hostname or "127.0.0.1"
        if parts.scheme == "https":
            try:
                trust = ssl.create_default_context(cafile=authority or None)
            except OSError as error:
                raise Refusal(f"{authority} can't be used to verify {endpoint} ({error}): it is to hold the PEM "
                              "certificate of the cluster's CA", Status.HOST) from error
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port or 443, timeout=CONNECT_S, context=trust
            )
        else:
            self._connection = http.client.HTTPConnection(host, parts.port or 80, timeout=CONNECT_S)

    def close(self) -> None:
        self._connection.close()

    def function(self, name: str) -> dict[str, Any] | None:
        """Its configuration, or None."""
        answer = self._send("GET", f"{FUNCTIONS}/{quote(name, safe='')}/configuration")
        if answer.status == 404:
            return None
        found: dict[str, Any] = self._checked(answer).json()
        return found

    def functions(self) -> Iterator[dict[str, Any]]:
        marker = ""
        while True:
            query = {"Marker": marker} if marker else {}
            page = self._checked(self._send("GET", f"{FUNCTIONS}/", query, timeout_s=LIST_S)).json()
            yield from page["Functions"]
            marker = page.get("NextMarker") or ""
            if not marker:
                return

    def deploy(self, code: Code, on_progress: Callable[[str], None]) -> dict[str, Any]:
        """Creates the function, or updates what differs; returns once it serves.

        Raises Refusal; what the API refuses has changed nothing.
        """
        wanted = {
            "Runtime": code.runtime, "Handler": code.handler, "MemorySize": code.memory_mb, "Timeout": code.timeout_s,
        }
        settings = {key: value for key, value in wanted.items() if value is not None}
        archive = base64.b64encode(code.archive).decode()
        found = self.function(code.name)
        if found is None:
            on_progress(f"{code.name}: creating, {len(code.archive):,} bytes")
            role = f"arn:aws:iam::{self._credentials.account}:role/{ROLE_NAME}"
            self._checked(self._send("POST", FUNCTIONS, body={
                "FunctionName": code.name, "Role": role, "Code": {"ZipFile": archive}, **settings,
            }))
            return self._settled(code.name)
        place = f"{FUNCTIONS}/{quote(code.name, safe='')}"
        changes = {key: value for key, value in settings.items() if found.get(key) != value}
        renewed = found["CodeSha256"] != base64.b64encode(hashlib.sha256(code.archive).digest()).decode()
        if changes and renewed:
            self._checked(self._send("PUT", f"{place}/code", body={"ZipFile": archive, "DryRun": True}))
            self._judge(code.name, changes)
        if renewed:     # first: a handler that is named before its code is there fails every invoke in between
            on_progress(f"{code.name}: updating its code, {len(code.archive):,} bytes")
            self._checked(self._send("PUT", f"{place}/code", body={"ZipFile": archive}))
            found = self._settled(code.name)
        if changes:
            on_progress(f"{code.name}: updating its configuration")
            self._checked(self.configure(code.name, changes))
            found = self._settled(code.name)
        return found

    def _judge(self, name: str, changes: Mapping[str, Any]) -> None:
        """Raises Refusal for a configuration that would be refused. The operation has no DryRun of its own.

        A revision that no function has is refused last, so that nothing is done.
        """
        answer = self.configure(name, {**changes, "RevisionId": _NO_REVISION})
        if answer.headers.get("x-amzn-errortype") != "PreconditionFailedException":
            self._checked(answer)

    def configure(self, name: str, settings: Mapping[str, Any]) -> Answer:
        """Changes its configuration; whatever the answer is, it is returned."""
        return self._send("PUT", f"{FUNCTIONS}/{quote(name, safe='')}/configuration", body=settings)

    def delete(self, name: str) -> None:
        """Its sandboxes go with it. No error when it isn't there."""
        answer = self._send("DELETE", f"{FUNCTIONS}/{quote(name, safe='')}")
        if answer.status != 404:
            self._checked(answer)

    def reserve(self, name: str, concurrency: int | None) -> None:
        """Its reserved concurrency; None takes the reservation away."""
        place = _concurrency(name)
        if concurrency is None:
            self._checked(self._send("DELETE", place))
        else:
            self._checked(self._send("PUT", place, body={"ReservedConcurrentExecutions": concurrency}))

    def reserved(self, name: str) -> int | None:
        """What is reserved for it; None: nothing."""
        found: int | None = self._checked(self._send("GET", _concurrency(name, "2019-09-30"))).json().get(
            "ReservedConcurrentExecutions"
        )
        return found

    def invoke(self, name: str, payload: bytes, *, explain: bool = False, log: bool = False) -> Answer:
        """Runs it. The answer's status is 200 also when the function failed: header x-amz-function-error says so."""
        headers = {"x-labda-explain": "1"} if explain else {}
        if log:
            headers["x-amz-log-type"] = "Tail"
        path = f"{FUNCTIONS}/{quote(name, safe='')}/invocations"
        return self._checked(self._send("POST", path, raw=payload, headers=headers))

    def _settled(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = self.function(name)
            if found is None:
                raise Refusal(f"function {name} was deleted while it was being deployed: deploy it again")
            state, update = found.get("State"), found.get("LastUpdateStatus")
            if state == "Failed" or update == "Failed":
                reason = found.get("StateReason") or found.get("LastUpdateStatusReason")
                raise Refusal(f"{name} can't be deployed: {reason}", Status.REFUSED)
            if state == "Active" and update == "Successful":
                return found
            if time.monotonic() > deadline:
                raise Refusal(
                    f"{name} is still {state} ({update}) after {SETTLE_S:.0f} s: `labda status` shows what is away"
                )
            time.sleep(POLL_S)

    def _checked(self, answer: Answer) -> Answer:
        if answer.status < 300:
            return answer
        code = answer.headers.get("x-amzn-errortype", f"HTTP {answer.status}")
        try:
            document = answer.json()
        except ValueError:
            document = {}
        text = document.get("message") or document.get("Message") or answer.body[:300].decode(errors="replace")
        detail = document.get("Detail")
        if isinstance(detail, dict):
            detail = ", ".join(f"{key} {value}" for key, value in detail.items())
        raise Refusal(f"{code}: {text}" + (f" ({detail})" if detail else ""), Status.REFUSED)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Any = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
    ) -> Answer:
        content = raw if raw is not None else (json.dumps(body).encode() if body is not None else b"")
        text = urlencode(sorted((query or {}).items()), quote_via=quote)
        signed = sign(
            self._credentials, region=self._region, method=method, host=self._host, path=path, query=text,
            headers=headers or {}, body=content, at=datetime.now(UTC),
        )
        began = time.monotonic()
        try:
            if self._connection.sock is None:
                self._connection.connect()
            self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, path + ("?" + text if text else ""), body=content, headers=signed)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Refusal(
                f"{self.endpoint} doesn't answer ({error!r}): `labda status` shows what is away, "
                "`labda up` starts a cluster", Status.NO_CLUSTER,
            ) from error
        return Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, data,
            time.monotonic() - began,
        )


def _concurrency(name: str, version: str = "2017-10-31") -> str:
    return f"/{version}/functions/{quote(name, safe='')}/concurrency"
