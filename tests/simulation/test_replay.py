"""The trace of a simulated region, replayed through every service's core: the effects are equal, line by line."""

import io
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.machine import as_json
from chassis.replay import decode
from simulation import loop, replay
from simulation.region import Region
from simulation.scenario import first_invokes
from storage.interfaces import Stored
from tests.walking import walk

st.register_type_strategy(Stored, lambda stored: st.builds(
    Stored, value=st.from_type(typing.get_args(stored)[0]), revision=st.integers()
))


@pytest.fixture(scope="module")
def trace() -> str:
    async def run(_virtual):
        async with Region(11) as region:
            await first_invokes(region)
            await region.kill_frontend(0)
            await region.until(lambda: True, "nothing", within_s=1)
            for _ in range(3):
                await region.invoke("hello", frontend=1)
        return region.trace()

    recorded: str = loop.run(run)
    return recorded


def test_every_effect_of_every_core_is_equal(trace):
    verdict = replay.replay_lines(trace.splitlines())
    assert verdict.difference is None, str(verdict.difference)
    assert set(verdict.cores) == set(replay.RECIPES), "a core that no trace has is not replayed"
    assert verdict.events == sum("event" in json.loads(line) for line in trace.splitlines())


@pytest.mark.parametrize("core", sorted(replay.RECIPES))
def test_a_changed_line_is_found(core, trace):
    lines = trace.splitlines()
    parsed = [json.loads(line) for line in lines]
    of_core = [i for i, line in enumerate(parsed) if line.get("core") == core]
    number = next(i for i in reversed(of_core) if parsed[i].get("effects"))
    changed = {**parsed[number], "effects": parsed[number]["effects"][1:]}
    difference = replay.replay_lines([*lines[:number], json.dumps(changed), *lines[number + 1:]]).difference
    assert difference is not None
    assert (difference.line, difference.core) == (number + 1, core)


@pytest.mark.parametrize("core", ["CountingCore", "FrontendCore"])
def test_what_goes_past_the_events_is_needed(core, trace):
    lines = [json.loads(line) for line in trace.splitlines()]
    assert any("aside" in line for line in lines if line.get("core") == core)
    bare = [json.dumps({k: v for k, v in line.items() if k != "aside" or line.get("core") != core}) for line in lines]
    difference = replay.replay_lines(bare).difference
    assert difference is not None
    assert difference.core == core


def test_the_command_says_what_differs_and_where(trace, tmp_path):
    for folder in ("good", "bad", "none"):
        (tmp_path / folder).mkdir()
    (tmp_path / "good" / "trace.ndjson").write_text(trace)
    (tmp_path / "bad" / "trace.ndjson").write_text(trace.replace('"type":"SendGrant"', '"type":"SendNothing"', 1))
    out, complaints = io.StringIO(), io.StringIO()
    assert replay.main([tmp_path / "good" / "trace.ndjson"], out, complaints) == 0
    assert "all effects equal" in out.getvalue()
    assert replay.main([tmp_path], out, complaints) == 1
    assert "bad/trace.ndjson: line" in complaints.getvalue()
    assert "SendGrant" in complaints.getvalue()
    assert replay.main([tmp_path / "none"], out, complaints) == 1
    assert "labda up with --trace" in complaints.getvalue()
    assert replay.main([tmp_path / "nowhere.ndjson"], out, complaints) == 1


@pytest.mark.parametrize("core", sorted(replay.RECIPES))
def test_no_event_of_any_core_loses_anything_in_a_trace(core):
    kinds = typing.get_args(replay.RECIPES[core].event)
    assert len(kinds) > 5

    @walk(examples=100, steps=1)
    @given(st.one_of([st.from_type(kind) for kind in kinds]))
    def lossless(event):
        again = decode(replay.RECIPES[core].event, json.loads(json.dumps(as_json(event))))
        assert again == event or repr(again) == repr(event)     # nan isn't equal to itself

    lossless()
