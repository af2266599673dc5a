"""What a member of counting is told about Raft's spans: every config that is accepted makes a member that may lead."""

import math

import pytest

from chassis.config import NodeConfig
from counting.config import CountingConfig
from counting.raft.guards import RaftTiming
from tests.counting.region import NO_TLS

NODE = NodeConfig(
    service="counting", node="counting-az1-1", az="az1", host="h1", listen="127.0.0.1:0", placement=(), tls=NO_TLS,
)


def config(heartbeat_s=0.2, election_min_s=0.65, election_max_s=1.0):
    return CountingConfig(
        node=NODE, directory="raft", members={NODE.node: "127.0.0.1:1"}, heartbeat_s=heartbeat_s,
        election_min_s=election_min_s, election_max_s=election_max_s,
    )


@pytest.mark.parametrize("spans", [(0.2, 0.65, 1.0), (0.6, 2.0, 3.0), (0.15, 0.5, 0.8), (0.02, 0.15, 0.2)])
def test_a_leader_that_nobody_answers_stops_before_another_is_elected(spans):
    told = config(*spans)
    timing = RaftTiming(
        heartbeat_s=told.heartbeat_s, election_min_s=told.election_min_s, election_max_s=told.election_max_s
    )
    assert 2 * timing.heartbeat_s < timing.fallback_s <= timing.election_min_s - 0.07 + 1e-9


def test_by_default_a_leader_keeps_its_promise_of_600_ms():
    assert RaftTiming().fallback_s == 0.58


@pytest.mark.parametrize(("spans", "refusal"), [
    ((0.2, 0.6, 1.0), "election_min_s is 0.6, it must be above 0.6 where heartbeat_s is 0.2"),
    ((0.05, 0.16, 1.0), "election_min_s is 0.16, it must be above 0.17 where heartbeat_s is 0.05"),
    ((0.2, math.nan, 1.0), "election_min_s is nan"),
    ((0.2, 0.7, 0.7), "election_max_s is 0.7, it must be above election_min_s, 0.7"),
    ((0.0, 0.65, 1.0), "heartbeat_s is 0.0, it must be above 0"),
])
def test_spans_that_would_depose_who_is_alive_are_refused_by_name(spans, refusal):
    with pytest.raises(ValueError, match=refusal):
        config(*spans)
