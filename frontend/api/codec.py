"""The one rest-json codec: requests in, results and errors out, all by the model.

Owns the wire forms of every type at every location (reference section 1.1). Refuses to know operations by name.
"""

import base64
import binascii
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from .errors import ApiError, invalid_content, serialization
from .model import Member, Model, Operation, Shape
from .validation import check

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
JSON_TYPE = "application/json"

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An answer on the wire, without the headers that every answer has."""

    status: int
    headers: Headers
    body: bytes


# ---- requests


def parse(
    operation: Operation,
    labels: Mapping[str, str],
    query: list[tuple[str, str]],
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, Any]:
    """The request's members by name, as their Python types; absent ones (and JSON nulls) have no key.

    Raises ApiError: SerializationException for a wrong type, InvalidRequestContentException for a body that isn't JSON,
    ValidationException for violated constraints.
    """
    shape = operation.request
    if shape is None:
        return {}
    parsed: dict[str, Any] = {}
    document: dict[str, Any] | None = None
    for name, member in shape.members.items():
        if document is None and member.location == "body":
            document = _document(body) if shape.payload is None else {}
        with _field(member.wire):
            match member.location:
                case "uri":
                    value: Any = _from_text(member.shape, labels[member.wire], "uri")
                case "querystring":
                    value = _from_query(member, query)
                case "header":
                    text = headers.get(member.wire.lower())
                    value = None if text is None else _from_text(member.shape, text, "header")
                case _ if name == shape.payload:
                    value = _from_payload(member.shape, body)
                case _:
                    value = from_json(member.shape, (document or {}).get(member.wire))
        if value is not None:
            parsed[name] = value
    check(shape, parsed)
    return parsed


@contextlib.contextmanager
def _field(name: str) -> Iterator[None]:
    """What has a wrong type inside is told with the path to it: the message, AWS's own, names no field."""
    try:
        yield
    except ApiError as error:
        if error.code == "SerializationException":
            within = error.detail["field"] if isinstance(error.detail, dict) else ""
            error.detail = {"field": f"{name}.{within}" if within else name}
        raise


def _document(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid_content(str(error) or "nested too deeply") from None
    if not isinstance(document, dict):
        raise serialization("Expected a structure at the top of the request's body")
    return document


def _from_payload(shape: Shape, body: bytes) -> Any:
    if shape.kind == "structure":
        return from_json(shape, _document(body)) if body else None
    return body or None


def _from_query(member: Member, query: list[tuple[str, str]]) -> Any:
    values = [value for name, value in query if name == member.wire]
    if not values:
        return None
    if member.shape.kind == "list":
        assert member.shape.element is not None
        return [_from_text(member.shape.element.shape, value, "querystring") for value in values]
    return _from_text(member.shape, values[-1], "querystring")


def _from_text(shape: Shape, text: str, location: str) -> Any:
    match shape.kind:
        case "string":
            return text
        case "integer" | "long" | "double" | "float":
            try:
                number = float(text) if shape.kind in {"double", "float"} else int(text)
            except ValueError:
                raise serialization(f"'{text}' can not be converted to {_noun(shape)}") from None
            return _number(shape, number)
        case "boolean":
            if text not in {"true", "false"}:
                raise serialization(f"'{text}' can not be converted to {_noun(shape)}")
            return text == "true"
        case "timestamp":
            return _moment(text, rfc822=location == "header")
        case "blob":
            return _blob(text)
        case _:
            raise AssertionError(f"{shape.name}: no {shape.kind} is written as text in the model")


def from_json(shape: Shape, value: Any) -> Any:
    """A JSON value as the shape's Python type. Members that the model doesn't have are dropped, as AWS does."""
    if value is None:
        return None
    match shape.kind:
        case "structure":
            _expect(isinstance(value, dict), shape, value)
            return _members(shape, value)
        case "list":
            _expect(isinstance(value, list), shape, value)
            assert shape.element is not None
            return [from_json(shape.element.shape, item) for item in value if item is not None]
        case "map":
            _expect(isinstance(value, dict), shape, value)
            return _entries(shape, value)
        case "string":
            _expect(isinstance(value, str), shape, value)
            return _unicode(value)
        case "boolean":
            _expect(isinstance(value, bool), shape, value)
            return value
        case "blob":
            _expect(isinstance(value, str), shape, value)
            return _blob(value)
        case "timestamp":
            return _moment(value)
        case _:
            _expect(isinstance(value, int | float) and not isinstance(value, bool), shape, value)
            return _number(shape, value)


def _members(shape: Shape, value: dict[str, Any]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, member in shape.members.items():
        if value.get(member.wire) is not None:
            with _field(member.wire):
                members[name] = from_json(member.shape, value[member.wire])
    return members


def _entries(shape: Shape, value: dict[str, Any]) -> dict[str, Any]:
    assert shape.element is not None
    entries: dict[str, Any] = {}
    for name, item in value.items():
        if item is not None:
            with _field(_printable(name)):
                entries[_unicode(name)] = from_json(shape.element.shape, item)
    return entries


def _unicode(text: str) -> str:
    """JSON can escape one half of a surrogate pair: no character, and nothing that can be stored or answered."""
    if not text.isascii() and text != _printable(text):
        raise serialization("A string of the request has half a surrogate pair, which is no character")
    return text


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _number(shape: Shape, value: float) -> float:
    """Fractions of integers are cut toward zero and overflows saturate, as recorded for AWS."""
    if shape.kind in {"double", "float"}:
        return float(value)
    low, high = INT32 if shape.kind == "integer" else INT64
    if isinstance(value, float):
        if math.isnan(value):
            raise serialization(f"NaN can not be converted to {_noun(shape)}")
        if math.isinf(value):
            return high if value > 0 else low
    return min(max(int(value), low), high)


# Characters of base64 that are decoded in one step: a step keeps the interpreter to itself for about 2 ms.
BLOB_STEP = 1 << 20


def _blob(text: str) -> bytes:
    """Strict base64. The library's own strict mode takes twice as long: 0.4 s for 50 MB.

    The lenient mode drops what isn't base64, so that whatever was dropped shows in the length. In steps, so that the
    event loop gets its turns where this runs in a thread.
    """
    pieces = [_blob_piece(text[at:at + BLOB_STEP], last=at + BLOB_STEP >= len(text))
              for at in range(0, len(text), BLOB_STEP)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _blob_piece(text: str, *, last: bool) -> bytes:
    try:
        data = binascii.a2b_base64(text)
    except (binascii.Error, ValueError):
        data = None
    padding = (2 if text.endswith("==") else 1 if text.endswith("=") else 0) if last else 0
    if data is None or len(text) % 4 or len(data) != len(text) // 4 * 3 - padding:
        raise serialization("A blob of the request is not base64")
    return data


def _moment(value: Any, *, rfc822: bool = False) -> datetime:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if rfc822:
            return parsedate_to_datetime(value)
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise serialization(f"{_token(value)} can not be converted to a Timestamp") from None


def _expect(right: bool, shape: Shape, value: Any) -> None:
    if right:
        return
    if isinstance(value, dict):
        raise serialization("Start of structure or map found where not expected.")
    if isinstance(value, list):
        raise serialization("Start of list found where not expected")
    raise serialization(f"{_token(value)} can not be converted to {_noun(shape)}")


def _token(value: Any) -> str:
    match value:
        case bool():
            return "TRUE_VALUE" if value else "FALSE_VALUE"
        case int():
            return "NUMBER_VALUE"
        case float():
            return "DECIMAL_VALUE"
        case _:
            return "STRING_VALUE"


def _noun(shape: Shape) -> str:
    noun = {"list": "List", "map": "Map", "structure": "Structure"}.get(shape.kind, shape.kind.capitalize())
    return f"an {noun}" if noun[0] in "AEIO" else f"a {noun}"


# ---- results


def serialise(operation: Operation, result: Mapping[str, Any], *, status: int | None = None) -> Encoded:
    """The answer for a result. Members that are None are left out; an unknown one is a bug and raises KeyError.

    ``status`` is for operations whose real status differs from the model's. A status member sets it as well.
    """
    shape = operation.response
    status = operation.status if status is None else status
    if shape is None:
        assert not result, f"{operation.name} has no output"
        return _empty(status)
    headers: Headers = []
    document: dict[str, Any] = {}
    payload: bytes | None = None
    for name, value in result.items():
        member = shape.members[name]
        if value is None:
            continue
        if member.location == "header":
            headers.append((member.wire.encode(), _to_text(member.shape, value).encode()))
        elif member.location == "statusCode":
            status = value
        elif name == shape.payload:
            payload = value if member.shape.kind != "structure" else dumps(to_json(member.shape, value))
        else:
            document[member.wire] = to_json(member.shape, value)
    if status == 204 or (status == 202 and not document and payload is None):
        return Encoded(status=status, headers=headers, body=b"")
    body = payload if shape.payload is not None else dumps(document)
    headers.insert(0, (b"content-type", JSON_TYPE.encode()))
    return Encoded(status=status, headers=headers, body=body or b"")


def _empty(status: int) -> Encoded:
    if status == 204:
        return Encoded(status=status, headers=[], body=b"")
    return Encoded(status=status, headers=[(b"content-type", JSON_TYPE.encode())], body=b"{}")


def to_json(shape: Shape, value: Any) -> Any:
    """A Python value as JSON has it. An unknown member is a bug and raises KeyError."""
    match shape.kind:
        case "structure":
            members = shape.members
            return {
                members[name].wire: to_json(members[name].shape, item)
                for name, item in value.items()
                if item is not None
            }
        case "list":
            assert shape.element is not None
            return [to_json(shape.element.shape, item) for item in value]
        case "map":
            assert shape.element is not None
            return {name: to_json(shape.element.shape, item) for name, item in value.items()}
        case "blob":
            return base64.b64encode(value).decode()
        case "timestamp":
            seconds = value.timestamp()
            return int(seconds) if seconds == int(seconds) else seconds
        case _:
            return value


def _to_text(shape: Shape, value: Any) -> str:
    match shape.kind:
        case "boolean":
            return "true" if value else "false"
        case "timestamp":
            return format_datetime(value.astimezone(UTC), usegmt=True)
        case _:
            return str(value)


def dumps(document: Any) -> bytes:
    """Compact JSON as AWS writes it."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


# ---- errors


def serialise_error(model: Model, error: ApiError) -> Encoded:
    """The answer for an error: the text under the key that the modelled shape has for it (reference section 1.5)."""
    shape = model.shapes.get(error.code)
    document: dict[str, Any] = {}
    headers: Headers = [(b"content-type", JSON_TYPE.encode()), (b"x-amzn-errortype", error.code.encode())]
    members = dict(error.members)
    modelled = shape is not None and shape.status is not None
    if modelled:
        members.setdefault("Type", "User" if error.status < 500 else "Service")
    for name, value in members.items():
        member = shape.members.get(name) if modelled and shape is not None else None
        if member is not None and member.location == "header":
            headers.append((member.wire.lower().encode(), str(value).encode()))
        elif name == "retryAfterSeconds":
            headers.append((b"retry-after", str(value).encode()))
        else:
            document[name] = value
    if error.message is not None:
        document[_message_key(shape if modelled else None, error.code)] = error.message
    if error.detail is not None:
        document["Detail"] = error.detail
    return Encoded(status=error.status, headers=headers, body=dumps(document))


def _message_key(shape: Shape | None, code: str) -> str:
    if shape is not None:
        return "message" if "message" in shape.members else "Message"
    return "Message" if code == "AccessDeniedException" else "message"
