"""Figures of steadiness, on histories that were written by hand."""

import pytest

from labda.chaos.history import Fault, Process, Request, Stranded
from labda.chaos.runs import Run, Runs
from labda.chaos.steadiness import Led, Span, SteppedDown, gap, leaderless, leaders, stepped_down, stranded

A, B = "counting-az1", "counting-az2"


def seen(at, node, role="", health="serving", pid=1):
    return Process(at=at, node=node, service="counting", health=health, role=role, pid=pid)


def run(start):
    return Run(nonce=f"{start}", function="f", sandbox="s", worker="w", start=start, end=start + 1)


def due(at):
    return Request(at=at, sent=at, done=at + 1, nonce=f"{at}", function="f", status=200)


def test_a_gap_is_counted_between_begins_while_requests_are_due():
    runs = Runs(all=[run(1.0), run(11.0), run(11.5), run(14.0), run(30.0)])
    requests = [due(10.0), due(13.0), due(14.5)]
    assert gap(requests, runs, since=10.0) == Span(at=11.5, lasted_s=2.5)
    assert gap(requests, Runs(all=[run(10.1)]), since=10.0) == Span(at=10.1, lasted_s=14.5 - 10.1)
    assert gap([due(1.0)], runs, since=10.0) is None


def test_permits_are_stranded_until_there_are_none():
    looks = [Stranded(at=1, permits=3), Stranded(at=2, permits=7), Stranded(at=5, permits=0), Stranded(at=8, permits=1)]
    assert stranded([*looks, Stranded(at=9, permits=0)]) == (7, Span(at=1, lasted_s=4))
    assert stranded([looks[0], Stranded(at=9, permits=2)]) == (3, Span(at=1, lasted_s=8)), "they were never counted"
    assert stranded([]) == (0, None)


FIRST = [seen(0, A, "leader"), seen(0, B, "follower")]


@pytest.mark.parametrize(("news", "led", "none"), [
    ([], [], None),
    # It stepped down, another one leads later.
    ([seen(5, A, "follower"), seen(6, B, "leader")], [Led(at=6, node=B)], Span(at=5, lasted_s=1)),
    # It stepped down, and leads again: the term is another.
    ([seen(5, A, "follower"), seen(6, A, "leader")], [Led(at=6, node=A)], Span(at=5, lasted_s=1)),
    # It was killed, and leads again.
    ([seen(5, A, "leader", "dead"), seen(7, A, "leader", pid=2)], [Led(at=7, node=A)], Span(at=5, lasted_s=2)),
    # It was only missed for a while.
    ([seen(5, A, "leader", "suspect"), seen(6, A, "leader")], [], Span(at=5, lasted_s=1)),
    # Another one leads before the old leader knows: somebody always did.
    ([seen(5, B, "leader"), seen(8, A, "follower")], [Led(at=5, node=B)], None),
])
def test_a_leader_is_another_node_process_or_term(news, led, none):
    assert leaders([*FIRST, *news], since=1.0) == led
    assert leaderless([*FIRST, *news], since=1.0) == none


def test_what_came_before_is_not_counted():
    news = [seen(3, A, "follower"), seen(4, B, "leader")]
    assert leaders([*FIRST, *news], since=5.0) == []
    assert leaderless([*FIRST, *news], since=5.0) is None


def test_a_leader_whose_links_broke_steps_down():
    strike = Fault(at=4.9, done=5.0, action="strike", nodes=(A,))
    assert stepped_down([*FIRST, strike, seen(5.5, A, "follower")]) == [SteppedDown(node=A, after_s=0.5)]
    assert stepped_down([*FIRST, strike]) == [], "it still leads"
    mend = Fault(at=5.2, done=5.2, action="mend", nodes=(A,))
    assert stepped_down([*FIRST, strike, mend, seen(5.5, A, "follower")]) == [], "that is another matter"
    follower = Fault(at=4.9, done=5.0, action="strike", nodes=(B,))
    assert stepped_down([*FIRST, follower, seen(6, A, "follower"), seen(7, B, "candidate")]) == []
