"""``labda up --set``: other values for settings, refused where a service would refuse them."""

from pathlib import Path

import pytest

from labda import launch
from labda.commands.up import parse_changes
from labda.refusal import Refusal
from labda.state import State
from labda.topology import Topology


def plan(tmp_path, *words, trace=False):
    state = State(tmp_path)
    topology = Topology()
    seeds = dict.fromkeys(launch.seed_names(topology), "127.0.0.1:1")
    return launch.Plan(
        state=state, topology=topology, listen="127.0.0.1:9000", seeds=seeds, runtimes=Path("/runtimes"), trace=trace,
        changes=parse_changes(words),
    )


def settings(found, service):
    return [launch.settings(found, member) for member in found.topology.members() if member.service == service]


def test_a_change_reaches_every_process_of_its_service_and_no_other(tmp_path):
    found = plan(tmp_path, "counting.authority_s=4", "counting.grace_s=1.5", "worker.timeout_cap_s=3")
    assert {(one.authority_s, one.grace_s) for one in settings(found, "counting")} == {(4.0, 1.5)}
    assert {one.timeout_cap_s for one in settings(found, "worker")} == {3}
    assert settings(plan(tmp_path), "worker")[0].timeout_cap_s == 900


def test_events_are_recorded_by_each_process_in_a_file_of_its_own_when_asked(tmp_path):
    assert settings(plan(tmp_path), "frontend")[0].node.trace == ""
    files = [one.node.trace for one in settings(plan(tmp_path, trace=True), "frontend")]
    assert files[0] == str(tmp_path / "nodes" / "frontend-az1-1" / "trace.ndjson")
    assert len(set(files)) == len(files)


@pytest.mark.parametrize(("word", "told"), [
    ("authority_s=4", "SERVICE.SETTING=VALUE"),
    ("counting.authority_s", "SERVICE.SETTING=VALUE"),
    ("counter.authority_s=4", "there is no service counter, but frontend"),
    ("counting.authority_s=four", "no value as TOML writes it"),
    ("counting.authority=4", "authority is not a setting; there are authority_s"),
    ('counting.authority_s="4"', "authority_s is '4', float is needed"),
    ("counting.authority_s=2", "suspect_s 3.0 < authority_s 2.0 must hold"),
    ("counting.grace_s=0.1", "grace_s is 0.1, allowed are 1 to 120"),
])
def test_what_can_not_be_is_refused_with_the_reason(tmp_path, word, told):
    with pytest.raises(Refusal, match=told):
        [*settings(plan(tmp_path, word), "counting"), *settings(plan(tmp_path, word), "worker")]
