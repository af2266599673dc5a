"""The public API's model: operations, shapes and constraints, as botocore's service description has them.

Owns reading botocore's own description of Lambda (API 2015-03-31) into plain objects, and the few constraints where the
service enforces less than the description allows. Refuses to know what an operation does, how a message is parsed,
and anything of HTTP beyond names.

The description is read as a file: importing ``botocore.loaders`` would cost every frontend 0.2 s at its start.
"""

import functools
import gzip
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "structure", "list", "map", "string", "integer", "long", "double", "float", "boolean", "blob", "timestamp"
]
Location = Literal["uri", "querystring", "header", "statusCode", "body"]

SERVICE_FILE = Path("data/lambda/2015-03-31/service-2.json.gz")

# The description's maxima cover managed instances; ordinary functions get less. Shape: constraint -> effective value.
# A runtime outside the description is refused with a code and a text of its own, after validation: no enum here.
EFFECTIVE: Mapping[str, Mapping[str, Any]] = {
    "Timeout": {"max": 900},
    "MemorySize": {"max": 10_240},
    "EphemeralStorageSize": {"max": 10_240},
    "Runtime": {"enum": ()},
}


class ModelMissing(Exception):
    """botocore, or its description of Lambda, isn't installed."""


@dataclass(slots=True)
class Member:
    """One member of a structure, or the element of a list or map. ``wire`` is its name on the wire."""

    name: str
    wire: str
    location: Location
    shape: "Shape"


@dataclass(slots=True)
class Shape:
    """One type of the description with its constraints. Built once, never changed afterwards."""

    name: str
    kind: Kind
    members: dict[str, Member] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    element: Member | None = None
    key: Member | None = None
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    enum: tuple[str, ...] = ()
    sensitive: bool = False
    payload: str | None = None
    status: int | None = None

    def matches(self, text: str) -> bool:
        """Whether the whole of ``text`` satisfies the pattern, if there is one."""
        return self.pattern is None or compiled(self.pattern).fullmatch(text) is not None


@dataclass(slots=True)
class Operation:
    """One operation: its name, its address and its messages. ``query`` are literal pairs that the address requires."""

    name: str
    method: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    status: int
    request: Shape | None
    response: Shape | None


class Model(NamedTuple):
    """The whole description. ``runtimes`` are all that AWS ever had, in the description's order."""

    operations: Mapping[str, Operation]
    shapes: Mapping[str, Shape]
    runtimes: tuple[str, ...]

    @property
    def errors(self) -> Mapping[str, Shape]:
        """The modelled errors by code."""
        return {name: shape for name, shape in self.shapes.items() if shape.status is not None}


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    r"""The description's patterns are Java's; Python has no ``\p`` classes and reads ``\d`` and ``\s`` as Unicode."""
    if r"\p{" not in pattern:
        return re.compile(pattern, re.ASCII)
    # \w without ASCII is letters, numbers and "_", which every class that uses these also lists. \p{Z}: separators.
    separators = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    return re.compile(
        pattern.replace(r"\p{L}", r"\w").replace(r"\p{N}", "").replace(r"\p{Z}", separators)
    )


@functools.cache
def load() -> Model:
    """Read the description. Takes about 40 ms, once per process. Raises ModelMissing."""
    spec = importlib.util.find_spec("botocore")
    if spec is None or spec.origin is None:
        raise ModelMissing("botocore is not installed: install the locked dependencies (make setup)")
    path = Path(spec.origin).parent / SERVICE_FILE
    try:
        described = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        raise ModelMissing(f"{path} is missing: install botocore in the locked version (make setup)") from None
    shapes = {name: _shape(name, text) for name, text in described["shapes"].items()}
    for name, text in described["shapes"].items():
        _link(shapes[name], text, shapes)
    operations = {name: _operation(name, text, shapes) for name, text in described["operations"].items()}
    return Model(operations=operations, shapes=shapes, runtimes=tuple(described["shapes"]["Runtime"]["enum"]))


def _shape(name: str, text: Mapping[str, Any]) -> Shape:
    effective = EFFECTIVE.get(name, {})
    error = text.get("error", {})
    return Shape(
        name=name,
        kind=text["type"],
        required=tuple(text.get("required", ())),
        minimum=effective.get("min", text.get("min")),
        maximum=effective.get("max", text.get("max")),
        pattern=text.get("pattern"),
        enum=tuple(effective.get("enum", text.get("enum", ()))),
        sensitive=text.get("sensitive", False),
        payload=text.get("payload"),
        status=error.get("httpStatusCode", 500) if text.get("exception") else None,
    )


def _link(shape: Shape, text: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Shapes refer to each other in circles, so that they are joined when all of them are there."""

    def member(name: str, reference: Mapping[str, Any]) -> Member:
        return Member(
            name=name,
            wire=reference.get("locationName", name),
            location=reference.get("location", "body"),
            shape=shapes[reference["shape"]],
        )

    for name, reference in text.get("members", {}).items():
        shape.members[name] = member(name, reference)
    if shape.kind == "list":
        shape.element = member("member", text["member"])
    elif shape.kind == "map":
        shape.key, shape.element = member("key", text["key"]), member("value", text["value"])


def _operation(name: str, text: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Operation:
    path, _, query = text["http"]["requestUri"].partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return Operation(
        name=name,
        method=text["http"]["method"],
        segments=tuple(path.strip("/").split("/")),
        query=tuple((key, value) for key, _, value in pairs),
        status=text["http"].get("responseCode", 200),
        request=shapes[text["input"]["shape"]] if "input" in text else None,
        response=shapes[text["output"]["shape"]] if "output" in text else None,
    )
