"""Which operation a request asks for: by method, path and literal query.

Owns splitting and decoding of paths and queries. Refuses to know what the operations are about.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from .model import Model, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The operation and the path's labels, decoded."""

    operation: Operation
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Node:
    """One position in the tree of path segments: literals go before the label."""

    literals: dict[str, "_Node"] = field(default_factory=dict)
    label: "_Node | None" = None
    # Per method: the operations that end here with their label names, those with literal query pairs first.
    ends: dict[str, list[tuple[Operation, tuple[str, ...]]]] = field(default_factory=dict)


class Router:
    """All operations of the model in one tree."""

    def __init__(self, model: Model) -> None:
        self._root = _Node()
        for operation in model.operations.values():
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        node = self._root
        names: list[str] = []
        for segment in operation.segments:
            if segment.startswith("{"):
                names.append(segment[1:-1].removesuffix("+"))
                node.label = node = node.label or _Node()
            else:
                node = node.literals.setdefault(segment, _Node())
        ends = node.ends.setdefault(operation.method, [])
        ends.append((operation, tuple(names)))
        ends.sort(key=lambda end: -len(end[0].query))

    def find(self, method: str, raw_path: bytes, query: list[tuple[str, str]]) -> Route | None:
        """The route, or None when no operation has this address.

        The raw path is split first and each segment decoded once after that: ``%2F`` in an ARN separates nothing.
        One trailing slash is tolerated, as older SDKs send it on collections.
        """
        path = raw_path.decode("latin-1").removeprefix("/").removesuffix("/")
        values: list[str] = []
        node = self._walk(self._root, path.split("/"), 0, values)
        if node is None:
            return None
        for operation, names in node.ends.get(method, ()):
            if all(pair in query for pair in operation.query):
                return Route(operation=operation, labels=dict(zip(names, values, strict=True)))
        return None

    def _walk(self, node: _Node, segments: list[str], at: int, values: list[str]) -> _Node | None:
        if at == len(segments):
            return node if node.ends else None
        literal = node.literals.get(segments[at])
        if literal is not None:
            found = self._walk(literal, segments, at + 1, values)
            if found is not None:
                return found
        if node.label is None or not segments[at]:
            return None
        values.append(unquote(segments[at]))
        found = self._walk(node.label, segments, at + 1, values)
        if found is None:
            values.pop()
        return found


def query_pairs(raw: bytes) -> list[tuple[str, str]]:
    """The query's pairs, decoded, in order; a name without ``=`` has the empty value."""
    pairs = []
    for part in raw.decode("latin-1").split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((unquote(name), unquote(value)))
    return pairs
