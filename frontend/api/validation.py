"""Constraints of the model, checked on parsed requests, with AWS's sentences (reference section 1.6).

Owns which constraints exist and how a violation is worded. Refuses to know operations and HTTP.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from .errors import ApiError, validation
from .model import Shape


class Violation(NamedTuple):
    """One value that breaks one constraint. ``value`` is None when it must not be shown."""

    path: str
    value: str | None
    constraint: str

    def sentence(self) -> str:
        shown = "Value" if self.value is None else f"Value {self.value}"
        return f"{shown} at '{self.path}' failed to satisfy constraint: {self.constraint}"


# When a function is created, a name that isn't an ARN is judged by the service: the same sentence under another code.
_JUDGED_BY_SERVICE = frozenset({("CreateFunctionRequest", "functionName")})


def check(shape: Shape, value: dict[str, Any]) -> None:
    """Raise ValidationException naming every violation in a request."""
    found = list(_structure(shape, value, ""))
    if not found:
        return
    error = as_error(found)
    by_service = all((shape.name, violation.path) in _JUDGED_BY_SERVICE for violation in found)
    if by_service and not any((violation.value or "").startswith("'arn:") for violation in found):
        error.code = "InvalidParameterValueException"
    raise error


def as_error(violations: list[Violation]) -> ApiError:
    count = len(violations)
    detected = f"{count} validation error{'s' if count > 1 else ''} detected: "
    return validation(detected + "; ".join(violation.sentence() for violation in violations))


def _structure(shape: Shape, value: dict[str, Any], prefix: str) -> Iterator[Violation]:
    for name in shape.required:
        if value.get(name) is None:
            yield Violation(prefix + _camel(name), "null", "Member must not be null")
    for name, member in shape.members.items():
        if value.get(name) is not None:
            yield from _any(member.shape, value[name], prefix + _camel(name))


def _any(shape: Shape, value: Any, path: str) -> Iterator[Violation]:
    if shape.kind == "structure":
        yield from _structure(shape, value, path + ".")
        return
    for constraint in broken(shape, value):
        yield Violation(path, _quoted(shape, value), constraint)
    if shape.kind == "list":
        yield from _list(shape, value, path)
    elif shape.kind == "map":
        yield from _map(shape, value, path)


def _list(shape: Shape, value: list[Any], path: str) -> Iterator[Violation]:
    assert shape.element is not None
    element = shape.element.shape
    if element.kind in {"structure", "list", "map"}:
        for at, item in enumerate(value, start=1):
            yield from _any(element, item, f"{path}.{at}.member")
    elif any(True for item in value for _ in broken(element, item)):
        listed = ", ".join(constraints(element))
        yield Violation(path, _quoted(shape, value), f"Member must satisfy constraint: [{listed}]")


def _map(shape: Shape, value: dict[str, Any], path: str) -> Iterator[Violation]:
    assert shape.key is not None
    assert shape.element is not None
    key, element = shape.key.shape, shape.element.shape
    if any(True for name in value for _ in broken(key, name)):
        listed = ", ".join(constraints(key))
        yield Violation(path, _quoted(shape, value), f"Map keys must satisfy constraint: [{listed}]")
    if element.kind in {"structure", "list", "map"}:
        for name, item in value.items():
            yield from _any(element, item, f"{path}.{name}.member")
    elif any(True for item in value.values() for _ in broken(element, item)):
        listed = ", ".join(constraints(element))
        yield Violation(path, _quoted(shape, value), f"Map value must satisfy constraint: [{listed}]")


def constraints(shape: Shape) -> list[str]:
    """All constraints of a simple shape in words, in AWS's order."""
    noun = "value" if shape.kind in {"integer", "long", "double", "float"} else "length"
    found = []
    if shape.maximum is not None:
        found.append(f"Member must have {noun} less than or equal to {shape.maximum}")
    if shape.minimum is not None:
        found.append(f"Member must have {noun} greater than or equal to {shape.minimum}")
    if shape.pattern is not None:
        found.append(f"Member must satisfy regular expression pattern: {shape.pattern}")
    if shape.enum:
        found.append(f"Member must satisfy enum value set: [{', '.join(shape.enum)}]")
    return found


def broken(shape: Shape, value: Any) -> Iterator[str]:
    """The constraints of ``shape`` itself that ``value`` breaks, in words."""
    match shape.kind:
        case "integer" | "long" | "double" | "float":
            size, noun = value, "value"
        case "string" | "blob" | "list" | "map":
            size, noun = len(value), "length"
        case _:
            return
    if shape.maximum is not None and size > shape.maximum:
        yield f"Member must have {noun} less than or equal to {shape.maximum}"
    if shape.minimum is not None and size < shape.minimum:
        yield f"Member must have {noun} greater than or equal to {shape.minimum}"
    if shape.kind == "string":
        if not shape.matches(value):
            yield f"Member must satisfy regular expression pattern: {shape.pattern}"
        if shape.enum and value not in shape.enum:
            yield f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


def _quoted(shape: Shape, value: Any) -> str | None:
    """The value as a violation shows it; a sensitive one isn't shown."""
    return None if shape.sensitive else f"'{_shown(value)}'"


def _shown(value: Any) -> str:
    """A value as AWS prints it (Java's toString)."""
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case dict():
            return "{" + ", ".join(f"{name}={_shown(item)}" for name, item in value.items()) + "}"
        case _:
            return str(value)
