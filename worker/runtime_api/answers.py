"""The bytes that the Runtime API answers with. Owns HTTP's outgoing side; refuses to know who asked."""

import json
from dataclasses import dataclass

BODY_BYTES_MAX = 6_291_556  # of a result: 6 MiB + 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a runtime's ``next`` gets. ``body`` is passed through untouched."""

    request_id: str
    deadline_ms: int            # Unix milliseconds
    invoked_arn: str
    trace_id: str = ""
    client_context: str = ""
    cognito_identity: str = ""
    body: bytes = b"{}"


def _answer(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


ACCEPTED = _answer("202 Accepted", b'{"status":"OK"}\n')
PONG = _answer("200 OK", b"pong", "text/plain; charset=utf-8")

_PHRASES = {
    400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 413: "Request Entity Too Large",
    431: "Request Header Fields Too Large", 500: "Internal Server Error",
}


def refusal(status: int, error_type: str, message: str) -> bytes:
    """An error of the Runtime API in its own shape."""
    body = json.dumps({"errorMessage": message, "errorType": error_type}, separators=(",", ":")).encode()
    return _answer(f"{status} {_PHRASES[status]}", body)


def not_supported(error_type: str, message: str) -> bytes:
    """202 with an error type: what extensions accept from a platform without telemetry."""
    body = json.dumps({"errorType": error_type, "errorMessage": message}, separators=(",", ":")).encode()
    return _answer("202 Accepted", body)


def event(event: Event) -> bytes:
    """The head of ``next``'s answer; the body follows it. Empty headers are left out.

    Values come from clients (trace id, client context): a line break in one would forge a header: it
    becomes a space.
    """
    head = [
        "HTTP/1.1 200 OK",
        "Content-Type: application/json",
        f"Content-Length: {len(event.body)}",
        f"Lambda-Runtime-Aws-Request-Id: {event.request_id}",
        f"Lambda-Runtime-Deadline-Ms: {event.deadline_ms}",
        f"Lambda-Runtime-Invoked-Function-Arn: {event.invoked_arn}",
    ]
    if event.trace_id:
        head.append(f"Lambda-Runtime-Trace-Id: {_one_line(event.trace_id)}")
    if event.client_context:
        head.append(f"Lambda-Runtime-Client-Context: {_one_line(event.client_context)}")
    if event.cognito_identity:
        head.append(f"Lambda-Runtime-Cognito-Identity: {_one_line(event.cognito_identity)}")
    return "\r\n".join([*head, "", ""]).encode()


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ").replace("\0", " ")
