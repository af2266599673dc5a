"""The gate on a loop in virtual time that a request holds up for as long as it costs."""

import asyncio
from collections.abc import Mapping

import pytest

from frontend.gate import Gate, GateBounds
from simulation import loop as virtual

SERVE_S, REFUSE_S = 0.010, 0.0005     # of the loop's time: a capacity of 100 requests per second


class Frontend:
    """Serves one request after the other, as a process with one event loop does."""

    def __init__(self, loop, **bounds):
        self.loop = loop
        self.gate = Gate(GateBounds(**bounds), virtual.VirtualClock(loop), str)
        self.done = []      # (account, due, served at) of each request; served at None: refused

    def request(self, account, due):
        refused = self.gate.enter(account)
        if refused is not None:
            self.loop.advance(REFUSE_S)
            assert refused.status == 503
            assert isinstance(refused.detail, Mapping)
            assert refused.detail["limit"]
            assert refused.detail["value"]
            self.done.append((account, due, None))
            return
        self.loop.advance(SERVE_S)
        self.gate.leave(account)
        self.done.append((account, due, self.loop.time()))

    def offer(self, account, rate, begin, end):
        for n in range(int((end - begin) * rate)):
            due = begin + n / rate
            self.loop.call_at(due, self.request, account, due)

    def of(self, account, begin, end):
        return [(due, at) for one, due, at in self.done if one == account and begin <= due < end]


def served(requests):
    return [at - due for due, at in requests if at is not None]


def run(main, **bounds):
    async def live(loop):
        frontend = Frontend(loop, **bounds)
        await main(frontend)
        frontend.gate.close()
        return frontend

    return virtual.run(live)


def test_below_capacity_everybody_gets_in():
    async def main(frontend):
        frontend.offer("a", 80, 0.0, 10.0)
        await asyncio.sleep(11)

    frontend = run(main)
    assert len(served(frontend.of("a", 0, 10))) == 800
    assert frontend.gate.shed == {"crowded": 0, "lag": 0}


@pytest.mark.parametrize("times", [3, 10])
def test_beyond_capacity_what_gets_in_is_served_soon_and_the_rest_refused_at_once(times):
    async def main(frontend):
        frontend.offer("a", 100 * times, 0.0, 30.0)
        frontend.offer("a", 60, 30.0, 40.0)
        await asyncio.sleep(45)

    frontend = run(main)
    steady = served(frontend.of("a", 5, 30))
    assert len(steady) / 25 > (70 if times == 3 else 40), "goodput per second"
    assert max(steady) < 1.0, "who gets in waits little"
    after = frontend.of("a", 32, 40)
    assert len(served(after)) == len(after), "two seconds after the overload everybody gets in"


def test_an_account_at_ten_times_its_share_leaves_the_others_alone():
    async def main(frontend):
        frontend.offer("greedy", 500, 0.0, 20.0)
        frontend.offer("modest", 20, 0.0, 20.0)
        await asyncio.sleep(25)

    frontend = run(main)
    modest = frontend.of("modest", 2, 20)
    assert len(served(modest)) > 0.97 * len(modest)
    greedy = frontend.of("greedy", 2, 20)
    assert 0.05 < len(served(greedy)) / len(greedy) < 0.5


def test_one_long_step_of_the_loop_is_no_overload():
    async def main(frontend):
        frontend.offer("a", 20, 0.0, 4.0)
        for at in (1.0, 2.0, 3.0):
            frontend.loop.call_at(at, frontend.loop.advance, 0.5)
        await asyncio.sleep(5)

    assert run(main).gate.shed == {"crowded": 0, "lag": 0}


def test_places_are_bounded_and_an_account_with_few_gets_one_of_the_last_quarter():
    async def main(frontend):
        gate = frontend.gate
        assert [gate.enter("a") for _ in range(8)] == [None] * 8
        refused = gate.enter("a")
        assert refused.detail["value"] == 8
        assert refused.detail["in_use_of_this_account"] == 8
        for _ in range(2):
            gate.leave("a")
        assert gate.enter("b") is None
        assert gate.enter("a") is not None, "it has more than half while another is there"
        assert gate.enter("b") is None
        assert gate.running == 8
        for account, count in (("a", 6), ("b", 2)):
            for _ in range(count):
                gate.leave(account)
        assert gate.running == 0

    run(main, requests_max=8)


def test_a_gate_at_rest_has_no_timer():
    async def main(frontend):
        frontend.offer("a", 10, 0.0, 1.0)
        await asyncio.sleep(2.0)
        assert frontend.gate._timer is None

    run(main)


def test_keys_that_nobody_knows_share_one_account():
    known = {"AKIAKNOWN": "000000000000"}

    async def main(loop):
        gate = Gate(GateBounds(), virtual.VirtualClock(loop), lambda key: known.get(key, ""))
        header = b"AWS4-HMAC-SHA256 Credential=%s/20261121/us-east-1/lambda/aws4_request, SignedHeaders=host"
        assert gate.claimed([(b"host", b"x"), (b"authorization", header % b"AKIAKNOWN")], b"") == "000000000000"
        assert gate.claimed([(b"authorization", header % b"AKIAOTHER")], b"") == ""
        assert gate.claimed([(b"authorization", b"Bearer x")], b"") == ""
        assert gate.claimed([], b"X-Amz-Credential=AKIAKNOWN%2F20261121&X-Amz-Date=1") == "000000000000"
        assert gate.claimed([], b"") == ""

    virtual.run(main)
