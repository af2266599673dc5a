"""Invoke: from an authenticated HTTP request to the data path and back.

Owns the checks before a permit is asked for, in the order of reference section 3.5, and the answer's headers
(section 2.2). This is the hot path: its usual forms are read directly, everything else goes through the codec, which
knows how to refuse. Refuses to know permits, sandboxes and workers.
"""

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from frontend.functions import FunctionRecord, Phase
from frontend.identifiers import LATEST, Target, resolve

from .codec import Headers, parse
from .context import Services, busy
from .errors import ApiError, function_not_found, invalid_content
from .honoured import refuse_unhonoured
from .model import Operation
from .ports import Deleted, InvokeRequest
from .routes import query_pairs

OPERATION = "Invoke"
ACTION = "InvokeFunction"
PREFIX = b"/2015-03-31/functions/"
SUFFIX = b"/invocations"
EXPLAIN = b"x-labda-explain"   # ours: "1" asks for x-labda-phases, where the time went in ms (permit=0.1,place=1,run=2)
PAYLOAD_BYTES_MAX = 6_291_456
CLIENT_CONTEXT_BYTES_MAX = 3583
TRACE_BYTES_MAX = 1024
# Beyond the function's own timeout: for a permit, a place, the code and the init (at most 10 s).
MARGIN_S = 30.0

_PLAIN_NAME = re.compile(rb"[a-zA-Z0-9_-]{1,64}")
_TRACE_ROOT = re.compile(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24}", re.ASCII)
# Headers that only the codec reads: their presence ends the fast path.
_UNUSUAL = frozenset({b"x-amz-tenant-id", b"x-amz-durable-execution-name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request's parameters. ``payload`` is what came, byte for byte."""

    target: Target
    dry_run: bool
    log_tail: bool
    client_context: str | None
    trace: str | None
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoked:
    """The answer: a body in one piece or in chunks."""

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes]


def is_invoke(method: str, raw_path: bytes) -> bool:
    """Whether the address is Invoke's: checked before the router is asked."""
    return (
        method == "POST"
        and raw_path.startswith(PREFIX)
        and raw_path.endswith(SUFFIX)
        and raw_path.count(b"/") == 4
    )


async def invoke(
    services: Services,
    account: str,
    request_id: str,
    raw_path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    gone: Callable[[], Awaitable[None]] | None = None,
) -> Invoked:
    """Answer one Invoke. Raises ApiError, Disconnected, or a refusal or fault of the data path."""
    asked = read(services, account, raw_path, query, headers)
    record = await _function(services, asked.target)
    if record.phase is Phase.CREATING:
        raise busy(record.phase, asked.target.unqualified_arn)
    check_payload(body)
    if asked.dry_run:
        return Invoked(status=204, headers=[], body=b"")
    trace_id = _trace(services, asked.trace)
    request = InvokeRequest(
        request_id=request_id,
        account=account,
        function=record,
        qualifier=asked.target.qualifier,
        invoked_arn=asked.target.arn,
        payload=body or b"{}",
        client_context=asked.client_context,
        log_tail=asked.log_tail,
        trace_id=trace_id,
        deadline=services.clock.monotonic() + record.configuration.timeout_s + MARGIN_S,
        gone=gone,
    )
    try:
        answer = await services.invoker.invoke(request)
    except Deleted:
        raise _unknown(asked.target) from None
    out: Headers = [
        (b"content-type", answer.content_type.encode()),
        (b"x-amz-executed-version", answer.executed_version.encode()),
        (b"x-amzn-remapped-content-length", b"0"),
        (b"x-amzn-trace-id", trace_id.encode()),
    ]
    if answer.function_error is not None:
        out.append((b"x-amz-function-error", answer.function_error.encode()))
    if asked.log_tail and answer.log_tail is not None:
        out.append((b"x-amz-log-result", base64.b64encode(answer.log_tail)))
    if asked.explain:
        shown = ",".join(f"{phase}={spent_ms:g}" for phase, spent_ms in answer.phases.items())
        out.append((b"x-labda-phases", shown.encode()))
    return Invoked(status=200, headers=out, body=answer.payload)


async def _function(services: Services, target: Target) -> FunctionRecord:
    """The function by this frontend's watched copy, or by the store when that doesn't have it or says "creating"."""
    if target.latest:
        record = services.functions.cached(target.account, target.name)
        if record is None or record.phase is Phase.CREATING:
            record = await services.functions.get(target.account, target.name)
        if record is not None:
            return record
    raise _unknown(target)


def _unknown(target: Target) -> ApiError:
    return function_not_found(target.arn if target.qualifier else f"{target.arn}:{LATEST}")


# ---- the request


def read(
    services: Services, account: str, raw_path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> Asked:
    """The parameters of a request. Raises ApiError."""
    kind = log_type = context = trace = explain = None
    usual = not query
    for name, value in headers:
        if name == b"x-amz-invocation-type":
            kind = value
        elif name == b"x-amz-log-type":
            log_type = value
        elif name == b"x-amz-client-context":
            context = value
        elif name == b"x-amzn-trace-id":
            trace = value.decode("latin-1")
        elif name == EXPLAIN:
            explain = value
        elif name in _UNUSUAL:
            usual = False
    segment = raw_path[len(PREFIX) : -len(SUFFIX)]
    usual = (
        usual
        and kind in {None, b"RequestResponse", b"DryRun"}
        and log_type in {None, b"None", b"Tail"}
        and _PLAIN_NAME.fullmatch(segment) is not None
    )
    if usual:
        target = Target(region=services.region, account=account, name=segment.decode(), qualifier=None)
    else:
        given = _generic(services, segment, query, headers)
        refuse_unhonoured(OPERATION, given)
        target = resolve(
            given["FunctionName"], given.get("Qualifier"), account=account, region=services.region, action=ACTION
        )
    return Asked(
        target=target,
        dry_run=kind == b"DryRun",
        log_tail=log_type == b"Tail",
        client_context=None if context is None else client_context(context),
        trace=trace,
        explain=explain == b"1",
    )


def _generic(
    services: Services, segment: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> dict[str, Any]:
    operation: Operation = services.model.operations[OPERATION]
    named: Mapping[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    labels = {"FunctionName": unquote(segment.decode("latin-1"))}
    return parse(operation, labels, query_pairs(query), named, b"")


def client_context(header: bytes) -> str:
    """The decoded client context. Raises ApiError unless it is base64 of JSON of at most 3,583 bytes.

    The limit is of the JSON (reference section 2.1: raw); base64 never has 3,583 bytes, which is no multiple of 4.
    """
    try:
        decoded = base64.b64decode(header, validate=True)
        if len(decoded) > CLIENT_CONTEXT_BYTES_MAX:
            raise ApiError(
                "InvalidRequestContentException",
                400,
                f"Client context must be at most {CLIENT_CONTEXT_BYTES_MAX} bytes of JSON before it is encoded in "
                f"base64, it has {len(decoded)}.",
                detail={
                    "field": "ClientContext", "limit_bytes": CLIENT_CONTEXT_BYTES_MAX, "value_bytes": len(decoded),
                    "remedy": "Send the data in the payload.",
                },
            )
        text = decoded.decode()
        json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        raise ApiError(
            "InvalidRequestContentException", 400, "Client context must be a valid Base64-encoded JSON object."
        ) from None
    return text


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Integers are read as floats, so that a number of 5,000 digits is neither refused nor slow.
_DECODER = json.JSONDecoder(parse_constant=_not_json, parse_int=float)


def check_payload(body: bytes) -> None:
    """Raise ApiError unless the body is JSON text in UTF-8 of at most 6 MiB. An empty one stands for ``{}``."""
    if len(body) > PAYLOAD_BYTES_MAX:
        raise payload_too_large(len(body))
    if not body:
        return
    try:
        _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        text = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise invalid_content(f"Could not parse payload into json: {text}") from None


def payload_too_large(size: int) -> ApiError:
    return ApiError(
        "RequestTooLargeException",
        413,
        f"{size} byte payload is too large for the RequestResponse invocation type (limit {PAYLOAD_BYTES_MAX} bytes)",
        detail={
            "limit_bytes": PAYLOAD_BYTES_MAX,
            "value_bytes": size,
            "remedy": "Send a reference to the data instead of the data.",
        },
    )


# ---- the answer


def _trace(services: Services, given: str | None) -> str:
    """The trace header: the client's if it has a root, completed; else a new one."""
    ids = services.ids
    if given is not None and len(given) <= TRACE_BYTES_MAX and given.isascii() and _TRACE_ROOT.search(given):
        trace = given
        if "Parent=" not in trace:
            trace += f";Parent={ids.hexadecimal(16)}"
        if "Sampled=" not in trace:
            trace += ";Sampled=0"
    else:
        drawn = ids.hexadecimal(48)     # once: each draw is a system call
        root = f"Root=1-{int(services.clock.wall()):08x}-{drawn[:24]}"
        return f"{root};Parent={drawn[24:40]};Sampled=0;Lineage=1:{drawn[40:]}:0"
    return trace if "Lineage=" in trace else f"{trace};Lineage=1:{ids.hexadecimal(8)}:0"
