"""Messages out of JSON, and cores fed again: what the reading of traces promises, on a core of a few lines."""

import enum
import io
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.machine import Driver, Trace, as_json, open_trace
from chassis.replay import Recipe, UnreadableTrace, decode, made_of, replay
from tests.walking import walk

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    secret: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    colour: Colour
    inner: Inner | None
    pairs: tuple[tuple[str, int], ...]
    pair: tuple[int, float]
    names: dict[str, str]
    counts: dict[Colour, int]
    seen: frozenset[str]
    boxed: Box[Inner]
    either: Inner | Box[int]
    maybe: int | None
    until: float
    listed: list[bytes] = field(default_factory=list)


st.register_type_strategy(Box, lambda box: st.builds(Box, value=st.from_type(typing.get_args(box)[0])))


@walk(examples=50, steps=1)
@given(st.from_type(Everything))
def test_no_message_loses_anything_on_its_way_through_a_file(message):
    again = decode(Everything, json.loads(json.dumps(as_json(message))))
    assert again == message or repr(again) == repr(message)     # nan isn't equal to itself


# ------------------------------------------------------------ a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    coins: int
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pour:
    cups: int


class Vendor:
    """A cup costs ``price`` coins. ``gift`` is what somebody puts in past the events."""

    def __init__(self, *, price: int) -> None:
        self.price = price
        self.coins = 0

    def handle(self, event: Put | Pull, now: float) -> list[Pour]:
        match event:
            case Put():
                assert event.coins < 100, "jammed"
                self.coins += event.coins
                return []
            case Pull():
                cups, self.coins = divmod(self.coins, self.price)
                return [Pour(cups=cups)] if cups else []
            case _:
                assert_never(event)

    def check(self) -> None:
        assert self.coins >= 0


class Gifts:
    """The aside of a Vendor: everything that was given past its events."""

    def __init__(self, core: Vendor) -> None:
        self.core = core
        self.known = 0

    def changes(self) -> list[int]:
        return [self.core.coins - self.known] if self.core.coins != self.known else []

    def settled(self) -> None:
        self.known = self.core.coins


class Clock:
    def __init__(self) -> None:
        self.now = 0.1

    def monotonic(self) -> float:
        self.now += 1 / 3
        return self.now

    def wall(self) -> float:
        return self.now


def give(core: Any, coins: int) -> None:
    core.coins += coins


RECIPES = {"Vendor": Recipe(make=made_of(Vendor, Put | Pull).make, event=Put | Pull, aside=give)}


def traced(
    file: io.StringIO, price: int = 2, **options: Any,
) -> tuple[Vendor, Driver[Put | Pull, Pour]]:
    core = Vendor(price=price)
    return core, Driver(
        core, clock=Clock(), perform=lambda _: None, trace=Trace(file, "n1", **options), parameters={"price": price},
        aside=Gifts(core),
    )


def a_day(file: io.StringIO) -> None:
    core, driver = traced(file)
    driver.feed(Put(coins=5, cause="ann"))
    driver.feed(Pull(cause="ann"))
    core.coins += 1      # past the events
    driver.feed(Pull(cause="bob"))
    _, driver = traced(file, price=3)
    driver.feed(Put(coins=3))
    driver.feed(Pull())


def test_the_same_events_give_the_same_effects():
    file = io.StringIO()
    a_day(file)
    verdict = replay(file.getvalue().splitlines(), RECIPES)
    assert verdict.difference is None
    assert (verdict.events, verdict.lives, verdict.cores) == (5, 2, {"Vendor": 5})


def test_a_changed_line_is_found_with_its_story():
    file = io.StringIO()
    a_day(file)
    text = file.getvalue().replace('"cups":2', '"cups":1', 1)
    difference = replay(text.splitlines(), RECIPES).difference
    assert difference is not None
    assert (difference.line, difference.node, difference.core) == (3, "n1", "Vendor")
    told = str(difference)
    assert 'Put(coins=5, cause="ann")' in told
    assert "-> Pour(cups=1)\nit gives now:\n    -> Pour(cups=2)" in told


@pytest.mark.parametrize(("old", "new"), [
    ('"parameters":{"price":2}', '"parameters":{"price":4}'),
    ('"coins":5', '"coins":4'),
    ('"aside":[1],', ""),
])
def test_whatever_a_core_hears_matters(old, new):
    file = io.StringIO()
    a_day(file)
    text = file.getvalue()
    assert old in text
    assert replay(text.replace(old, new, 1).splitlines(), RECIPES).difference is not None


def test_a_failure_is_in_the_trace_and_happens_again():
    file = io.StringIO()
    _, driver = traced(file)
    with pytest.raises(AssertionError, match="jammed"):
        driver.feed(Put(coins=500))
    verdict = replay(file.getvalue().splitlines(), RECIPES)
    assert verdict.difference is None
    [failure] = verdict.failures
    assert "jammed" in failure
    mended = file.getvalue().replace('"coins":500', '"coins":5')
    difference = replay(mended.splitlines(), RECIPES).difference
    assert difference is not None
    assert "a failure" in str(difference)


def test_a_kill_cuts_a_line_and_the_next_life_begins_on_another(tmp_path):
    path = tmp_path / "trace.ndjson"
    for _ in range(2):
        trace = open_trace(str(path), "n1")
        assert trace is not None
        core = Vendor(price=2)
        driver = Driver(core, clock=Clock(), perform=lambda _: None, trace=trace, parameters={"price": 2})
        driver.feed(Put(coins=2))
        driver.feed(Pull())
        trace.close()
        path.write_bytes(path.read_bytes()[:-9])
    assert path.stat().st_mode & 0o777 == 0o600
    verdict = replay(path.read_text().splitlines(), RECIPES)
    assert verdict.difference is None
    assert (verdict.events, verdict.lives, verdict.cut) == (2, 2, 2)


def test_a_line_that_is_cut_in_the_middle_of_a_life_is_no_trace():
    file = io.StringIO()
    a_day(file)
    lines = file.getvalue().splitlines()
    lines[1] = lines[1][:-5]
    with pytest.raises(UnreadableTrace, match="line 2"):
        replay(lines, RECIPES)


@pytest.mark.parametrize(("line", "says"), [
    ({"at": 1.0, "node": "n", "core": "Kettle", "parameters": {}}, "no core is called Kettle"),
    ({"at": 1.0, "node": "n", "core": "Vendor", "event": {"type": "Pull"}, "effects": []}, "before its trace began"),
    ({"what": "else"}, "can't be read"),
])
def test_an_unreadable_line_is_named(line, says):
    with pytest.raises(UnreadableTrace, match=says):
        replay([json.dumps(line)], RECIPES)


def test_a_full_trace_says_so_and_is_replayed_up_to_there():
    file = io.StringIO()
    _, driver = traced(file, bytes_max=400)
    for _ in range(50):
        driver.feed(Put(coins=1))
    lines = file.getvalue().splitlines()
    assert len(lines) < 10
    assert json.loads(lines[-1])["ended"] == "the trace is full"
    assert replay(lines, RECIPES).events == len(lines) - 2
