"""The driver, the transition table and the trace."""

import enum
import io
import json
from dataclasses import dataclass

import pytest

from chassis.machine import Driver, IllegalTransition, Story, Trace, Transitions


class Lamp(enum.Enum):
    OFF = enum.auto()
    ON = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressed:
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broke:
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shine:
    on: bool


TABLE = Transitions({(Lamp.OFF, Pressed): Lamp.ON, (Lamp.ON, Pressed): Lamp.OFF})


class LampCore:
    def __init__(self) -> None:
        self.state = Lamp.OFF
        self.story = Story()
        self.checked = 0

    def handle(self, event, now):
        self.story.tell(now, event)
        self.state = TABLE.next(self.state, type(event), self.story)
        return [Shine(on=self.state is Lamp.ON)]

    def check(self):
        self.checked += 1


class Still:
    def monotonic(self):
        return 5.0

    def wall(self):
        return 0.0


def test_driver_stamps_traces_checks_and_performs_in_order():
    core, file, done = LampCore(), io.StringIO(), []

    def perform(effect):
        done.append(effect)
        if effect.on:
            driver.feed(Pressed(cause="again"))  # fed while performing: queued behind this event

    driver = Driver(core, clock=Still(), perform=perform, trace=Trace(file, "n1"), check=True)
    driver.feed(Pressed(cause="first"))
    assert done == [Shine(on=True), Shine(on=False)]
    assert core.checked == 2
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert lines[0] == {"at": 5.0, "node": "n1", "core": "LampCore", "parameters": {}}
    assert lines[1] == {
        "at": 5.0, "node": "n1", "core": "LampCore", "cause": "first", "event": {"type": "Pressed", "cause": "first"},
        "effects": [{"type": "Shine", "on": True}],
    }


def test_a_missing_transition_tells_the_story():
    core = LampCore()
    core.handle(Pressed(cause="a"), 1.0)
    with pytest.raises(IllegalTransition, match=r"Lamp.ON has no transition for Broke(.|\n)*cause='a'"):
        core.handle(Broke(cause="b"), 2.0)


def test_the_diagram_is_printed_from_the_table():
    assert TABLE.mermaid() == "stateDiagram-v2\n    OFF --> ON: Pressed\n    ON --> OFF: Pressed"


def test_a_story_is_compared_with_its_golden_file(story):
    story(LampCore(), ["a lamp with one button", (0.0, Pressed(cause="a")), (1.5, Pressed(cause="b"))])
