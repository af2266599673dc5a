"""Traces read back: messages from JSON by their annotations, and cores fed again with what they were told.

The reverse of ``chassis.machine.Trace``. A core is deterministic, so that the same events at the same times give the
same effects; where they don't, either the code has changed, or something reached the core that the trace doesn't say.
Pure: lines in, a verdict out. Refuses to know which cores there are (``Recipe`` says how one is made) and files.
"""

import base64
import collections.abc
import dataclasses
import enum
import functools
import json
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from chassis.machine import Core, Host, as_json

Decoder = Callable[[Any], Any]
STORY_LINES = 12


class UnreadableTrace(Exception):
    """A line that no trace of this build holds: says which line, and what is wrong with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a core is built from its trace. ``make`` takes the header's parameters; ``aside`` redoes one thing that
    changed the core's state beside its events (in the order in which it happened)."""

    make: Callable[[Mapping[str, Any]], Core[Any, Any]]
    event: Any                                                  # the annotation: a dataclass or a union of them
    aside: Callable[[Core[Any, Any], Any], None] | None = None


def made_of(kind: Callable[..., Core[Any, Any]], event: Any) -> Recipe:
    """The recipe of a core whose parameters are its constructor's, by name, and which nothing changes but events."""
    hints = typing.get_type_hints(kind.__init__)

    def make(parameters: Mapping[str, Any]) -> Core[Any, Any]:
        return kind(**{name: decode(hints[name], value) for name, value in parameters.items()})

    return Recipe(make=make, event=event)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event of one core whose effects were others. ``expected`` is what the trace says."""

    line: int
    node: str
    core: str
    at: float
    event: Any
    expected: list[Any]
    effects: list[Any]
    story: tuple[str, ...]
    bug: str = ""                       # an assertion that failed instead

    def __str__(self) -> str:
        wrong = self.bug or "\n".join([
            "it gave then:", *(f"    -> {_line(item)}" for item in self.expected),
            "it gives now:", *(f"    -> {_line(item)}" for item in self.effects),
        ])
        return "\n".join([
            f"line {self.line}: {self.core} of {self.node} differs at {self.at:.6f} s; its story:",
            *(f"  {told}" for told in self.story), f"  {self.at:.6f} {_line(self.event)}", wrong,
        ])


@dataclasses.dataclass(slots=True, kw_only=True)
class _Life:
    """One core from its header on."""

    recipe: Recipe
    core: Core[Any, Any]
    event: Decoder
    story: deque[str] = dataclasses.field(default_factory=lambda: deque(maxlen=STORY_LINES))


@dataclasses.dataclass(slots=True, kw_only=True)
class Verdict:
    """``cut``: lines that a kill left unfinished (the next one begins a new life, or there is none)."""

    events: int = 0
    lives: int = 0
    cut: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)       # that happened then and happen again
    cores: dict[str, int] = dataclasses.field(default_factory=dict)     # events by kind of core
    difference: Difference | None = None


def replay(lines: Iterable[str], recipes: Mapping[str, Recipe]) -> Verdict:
    """Feeds every core of a trace with its events and compares the effects, up to the first difference.

    Raises UnreadableTrace.
    """
    verdict = Verdict()
    lives: dict[tuple[str, str], _Life] = {}
    unfinished = 0
    for number, text in enumerate(lines, start=1):
        line = _parse(text)
        if unfinished and not (line and _begins_anew(line)):
            raise UnreadableTrace(f"line {unfinished} is no JSON object, and nothing begins anew after it")
        unfinished = 0
        if line is None:
            unfinished, verdict.cut = number, verdict.cut + 1
            continue
        if "ended" in line or "note" in line:
            continue    # the trace was full: what follows of this process is not in it; or no core was told
        try:
            key = (line["node"], line["core"])
            if "parameters" in line:
                lives[key] = _begin(number, line, recipes)
                verdict.lives += 1
                continue
            life, at = lives.get(key), line["at"]
            if life is None:
                raise UnreadableTrace(f"line {number}: {key[1]} of {key[0]} did something before its trace began")
            event, asides, expected = life.event(line["event"]), line.get("aside", ()), line["effects"]
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableTrace(f"line {number} can't be read by this build: {error!r}") from error
        verdict.events += 1
        verdict.cores[key[1]] = verdict.cores.get(key[1], 0) + 1
        effects, bug = _feed(life, event, at, asides)
        if "failed" in line:
            if bug:
                verdict.failures.append(f"line {number}: {key[1]} of {key[0]} fails as it did then: {bug}")
                continue
            expected = [f"a failure: {line['failed']}"]
        if bug or effects != expected:
            verdict.difference = Difference(
                line=number, node=key[0], core=key[1], at=at, event=line["event"], expected=expected, effects=effects,
                story=tuple(life.story), bug=bug,
            )
            break
        life.story.append(f"{at:.6f} {_line(line['event'])}")
    return verdict


def _begins_anew(line: Mapping[str, Any]) -> bool:
    """The first of a process: the note of its host, or of one without files its core's parameters."""
    return "parameters" in line or ("note" in line and line["note"].get("type") == Host.__name__)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def _begin(number: int, line: dict[str, Any], recipes: Mapping[str, Recipe]) -> _Life:
    recipe = recipes.get(line["core"])
    if recipe is None:
        raise UnreadableTrace(f"line {number}: no core is called {line['core']}; known: {', '.join(recipes)}")
    return _Life(recipe=recipe, core=recipe.make(line["parameters"]), event=decoder(recipe.event))


def _feed(life: _Life, event: Any, at: float, asides: Iterable[Any]) -> tuple[list[Any], str]:
    """The effects as they come out of a file, and what failed."""
    try:
        for item in asides:
            assert life.recipe.aside is not None, f"nothing goes past the events of {type(life.core).__name__}"
            life.recipe.aside(life.core, item)
        effects = life.core.handle(event, at)
        life.core.check()
    except Exception as error:  # noqa: BLE001 - whatever a core raises now, it didn't raise then
        return [], f"it fails now: {error!r}"
    return _again(effects), ""


def _again(effects: list[Any]) -> list[Any]:
    """As they come out of a file."""
    again: list[Any] = json.loads(json.dumps([as_json(effect) for effect in effects]))
    return again


def _line(message: Any) -> str:
    if not isinstance(message, dict) or "type" not in message:
        return json.dumps(message)
    parts = (f"{name}={json.dumps(value)}" for name, value in message.items() if name != "type")
    return f"{message['type']}({', '.join(parts)})"


# ------------------------------------------------------------ JSON -> messages


def decode(annotation: Any, value: Any) -> Any:
    """The value that ``as_json`` wrote, by what its annotation says. Raises ValueError, KeyError or TypeError."""
    return decoder(annotation)(value)


@functools.cache
def decoder(annotation: Any) -> Decoder:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(annotation))
    kind: Any = origin or annotation
    if _is_message(kind):
        return _dataclass(annotation)
    if origin is not None:
        return _container(origin, typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return lambda name: annotation[name]
    if annotation is bytes:
        return base64.b64decode
    return lambda value: value      # str, int, float, bool, None, Any: JSON has them


def _is_message(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _union(members: tuple[Any, ...]) -> Decoder:
    """Dataclasses by their type's name; else None, or the one member that is neither."""
    kinds: dict[Any, Any] = {x: typing.get_origin(x) or x for x in members}
    named = {str(kind.__name__): x for x, kind in kinds.items() if _is_message(kind)}
    others = [x for x in members if x is not types.NoneType and x not in named.values()]

    def decode_union(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, dict) and value.get("type") in named:
            return decoder(named[value["type"]])(value)
        if len(others) > 1 and not {int, float, str, bool}.issuperset(others):
            raise TypeError(f"{value!r} could be any of {others}")
        if not others:
            raise ValueError(f"{value!r} is none of {', '.join(named)}")
        return decoder(others[0])(value)

    return decode_union


def _dataclass(annotation: Any) -> Decoder:
    kind: Any = typing.get_origin(annotation) or annotation
    bound = dict(zip(getattr(kind, "__parameters__", ()), typing.get_args(annotation), strict=False))
    hints = typing.get_type_hints(kind)
    # Made when first needed: a message may hold its own kind.
    fields = {field.name: bound.get(hints[field.name], hints[field.name]) for field in dataclasses.fields(kind)}

    def decode_dataclass(value: Any) -> Any:
        if value["type"] != kind.__name__:
            raise ValueError(f"{value['type']} stands where a {kind.__name__} belongs")
        return kind(**{name: decoder(fields[name])(item) for name, item in value.items() if name != "type"})

    return decode_dataclass


def _container(origin: Any, arguments: tuple[Any, ...]) -> Decoder:
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            item = decoder(arguments[0])
            return lambda values: tuple(item(value) for value in values)
        items = [decoder(argument) for argument in arguments]
        return lambda values: tuple(item(value) for item, value in zip(items, values, strict=True))
    if origin in (dict, collections.abc.Mapping):
        of_key, of_item = (decoder(argument) for argument in arguments)
        return lambda value: {
            of_key(key): of_item(item) for key, item in (value.items() if isinstance(value, dict) else value)
        }
    if origin in (list, set, frozenset, collections.abc.Sequence):
        made = list if origin is collections.abc.Sequence else origin
        item = decoder(arguments[0])
        return lambda values: made(item(value) for value in values)
    raise TypeError(f"no message holds a {origin}: teach chassis.replay what it is in JSON")
