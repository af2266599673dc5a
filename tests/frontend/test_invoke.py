"""The whole invoke path over the memory network, with small peers that speak the real protocols."""

import asyncio
import gc
import math
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from chassis.clock import SystemClock
from chassis.faults import Fault
from frontend import departure
from frontend.api.ports import InvokeRequest, Throttled, Unavailable
from frontend.peers.flight import Flight, NotStarted
from frontend.retries import BURST, RATIO
from protos import common_pb2, counting_pb2, worker_manager_pb2, worker_pb2
from tests.frontend.region import Region, until

NeverStarted = worker_pb2.InvokeFrame.NeverStarted
Refused = worker_manager_pb2.ManagerReply.Refused


@asynccontextmanager
async def region(frontends: int = 1, **settings):
    made = Region(SystemClock(), **settings)
    await made.start(frontends)
    try:
        yield made
    finally:
        await made.close()


def held(made: Region, frontend: int = 0) -> int:
    core = made.frontends[frontend].admission.core
    return sum(stock.in_use for stock in core.stocks.values())


async def test_cold_then_warm_without_the_manager():
    async with region() as made:
        cold = await made.invoke(b'{"a": 1}')
        assert (cold.payload, cold.executed_version, cold.function_error) == (b'{"a": 1}', "$LATEST", None)
        assert cold.log_tail == b"END"
        assert list(cold.phases) == ["permit", "place", "code", "sandbox", "runtime", "init", "run"]
        assert (cold.phases["runtime"], cold.phases["run"]) == (45, 1.5)
        await until(lambda: held(made) == 0)
        asked = made.counting.index
        warm = await made.invoke(b'{"a": 2}')
        assert warm.payload == b'{"a": 2}'
        assert made.manager.made == 1
        assert len(made.workers[0].starts) == 2
        sandbox = made.manager.sandboxes["s1"]
        assert sandbox.sequence == 1, "the second start went under the reservation that lingered"
        assert made.counting.index == asked, "a warm invoke needs no word of the ledger"
        await until(lambda: sandbox.holder is None)  # the linger is over: the manager was told


async def test_while_the_manager_has_nothing_a_sandbox_is_passed_on_from_request_to_request():
    async with region(linger_s=0.0) as made:
        made.manager.pass_on_s = 60.0
        made.workers[0].hold = results = asyncio.Event()
        invokes = [asyncio.create_task(made.invoke(b"0", request_id="r0"))]
        await until(lambda: made.manager.made == 1)
        made.manager.hold = asyncio.Event()
        invokes += [asyncio.create_task(made.invoke(str(n).encode(), request_id=f"r{n}")) for n in range(1, 6)]
        await until(lambda: made.manager.asked == 6)
        results.set()
        answers = await asyncio.gather(*invokes)
        assert [answer.payload for answer in answers] == [str(n).encode() for n in range(6)]
        assert made.manager.made == 1
        await until(lambda: made.manager.served == [f"r{n}" for n in range(1, 6)])
        await until(lambda: made.manager.sandboxes["s1"].holder is None)    # nobody is left: it went back
        made.manager.hold.set()     # what the manager answers all the same is let go at once
        await until(lambda: made.manager.sandboxes["s1"].sequence == 2)
        await until(lambda: all(sandbox.holder is None for sandbox in made.manager.sandboxes.values()))


async def test_concurrent_requests_get_a_sandbox_each_and_their_own_answers():
    async with region(limit=20) as made:
        answers = await asyncio.gather(*(made.invoke(str(n).encode()) for n in range(20)))
        assert [answer.payload for answer in answers] == [str(n).encode() for n in range(20)]
        assert made.manager.made <= 20
        assert len(made.servers[made.workers[0].node].pipes) == 1, "one stream, however many start at once"
        await until(lambda: held(made) == 0)


async def test_six_megabytes_in_and_out_stall_nobody():
    async with region() as made:
        await made.invoke(b"{}")
        big = b'"' + b"x" * (6 * 1024 * 1024 - 2) + b'"'
        large = asyncio.create_task(made.invoke(big))
        await asyncio.sleep(0)
        small = await made.invoke(b"1")
        assert small.payload == b"1"
        assert not large.done(), "a small one overtakes the large one"
        assert (await large).payload == big


async def test_the_limit_holds_and_the_next_is_refused_with_proof():
    async with region(limit=2, frontends=2) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        first = [asyncio.create_task(made.invoke(frontend=n)) for n in range(2)]
        await until(lambda: len(worker.running) == 2)
        with pytest.raises(Throttled) as caught:
            await made.invoke(frontend=0)
        assert caught.value.reason == "ConcurrentInvocationLimitExceeded"
        assert caught.value.detail["value"] == 2
        assert caught.value.detail["in_use"] == 2
        worker.hold.set()
        await asyncio.gather(*first)
        assert worker.peak == 2


@pytest.fixture
def collected():
    """What only the collector of cycles can free, of what was made meanwhile, by a call."""
    def call():
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [thing for thing in gc.garbage if isinstance(thing, BaseException | InvokeRequest)]

    gc.collect()
    gc.freeze()     # the test before may leave something that only now goes
    gc.disable()
    try:
        yield call
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


async def test_a_refused_request_leaves_nothing_to_the_collector(collected, monkeypatch):
    """It comes so rarely (``chassis.process``) that payloads of refused requests would add up until then."""
    monkeypatch.setattr(departure, "WATCH_AFTER_S", 0.0)
    async with region(limit=1) as made:
        made.workers[0].hold = asyncio.Event()
        first = asyncio.create_task(made.invoke())
        await until(lambda: made.workers[0].running)
        for n in range(5):
            request = replace(made.request(b"{}", f"refused-{n}"), gone=asyncio.Event().wait)
            with pytest.raises(Throttled):
                await made.frontends[0].invoker.invoke(request)
        del request
        await asyncio.sleep(0)      # the watchers of the clients end
        assert not collected()
        made.workers[0].hold.set()
        await first


async def test_a_request_whose_manager_went_leaves_nothing_to_the_collector(collected, monkeypatch):
    monkeypatch.setattr(departure, "WATCH_AFTER_S", 0.0)
    async with region() as made:
        made.manager.hold = asyncio.Event()
        asked = asyncio.create_task(made.invoke(b"{}", within_s=2.0))
        await until(lambda: made.manager.asked == 1)
        for pipe in list(made.servers["manager-1"].pipes):
            pipe.break_off()
        with pytest.raises(Unavailable):
            await asked
        del asked
        await asyncio.sleep(0)
        assert not collected()


async def test_an_idle_permit_is_recalled_from_the_other_frontend():
    async with region(limit=1, frontends=2) as made:
        await made.invoke(frontend=0)
        await until(lambda: held(made) == 0)
        assert made.counting.blocks["frontend-az1"].size == 1, "idle, and not yet for a second"
        assert (await made.invoke(b"2", frontend=1)).payload == b"2"
        assert made.counting.rounds == 1
        assert made.counting.throttled == 0


async def test_a_permit_is_free_on_end_and_not_on_result():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold_end = asyncio.Event()
        assert (await made.invoke(b"1")).payload == b"1"
        with pytest.raises(Throttled):
            await made.invoke(b"2")
        worker.hold_end.set()
        await until(lambda: held(made) == 0)
        assert (await made.invoke(b"3")).payload == b"3"


async def test_a_start_that_never_began_is_tried_once_more_under_another_id():
    async with region() as made:
        worker = made.workers[0]
        worker.refuse = [NeverStarted(reason=NeverStarted.STALE_SEQUENCE, detail="raised")]
        assert (await made.invoke(b"1", request_id="abc")).payload == b"1"
        assert worker.starts == ["abc", "abc#2"]
        worker.refuse = [NeverStarted(reason=NeverStarted.FENCED), NeverStarted(reason=NeverStarted.BUSY, detail="x")]
        with pytest.raises(Unavailable, match="busy"):
            await made.invoke(b"2")
        await until(lambda: held(made) == 0)


async def test_what_was_shed_is_not_tried_again():
    async with region() as made:
        made.workers[0].refuse = [NeverStarted(reason=NeverStarted.SHED)]
        with pytest.raises(Unavailable, match="shed"):
            await made.invoke()
        assert len(made.workers[0].starts) == 1


async def test_retries_have_a_budget_and_a_refusal_says_when_it_is_used_up():
    async with region() as made:
        worker = made.workers[0]
        tries = int(BURST) + 5
        for n in range(tries):
            worker.refuse = [NeverStarted(reason=NeverStarted.BUSY), NeverStarted(reason=NeverStarted.BUSY)]
            with pytest.raises(Unavailable) as caught:
                await made.invoke(request_id=f"r{n}")
        second = [invocation for invocation in worker.starts if invocation.endswith("#2")]
        assert BURST <= len(second) <= BURST + tries * RATIO
        assert caught.value.detail is not None
        assert caught.value.detail["limit"] == "retries of one frontend"
        assert caught.value.detail["value"] == "10% of its requests"
        await until(lambda: held(made) == 0)


async def test_a_broken_stream_frees_nothing_until_the_worker_says_so():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        for pipe in list(made.servers[worker.node].pipes):
            pipe.break_off()
        with pytest.raises(Fault) as caught:
            await running
        assert not caught.value.definite
        assert held(made) == 1, "it may run on"
        with pytest.raises((Throttled, Unavailable)):
            await made.invoke()
        worker.hold.set()
        await until(lambda: held(made) == 0)  # the stream was made again, and its END came
        assert (await made.invoke(b"1")).payload == b"1"


async def test_an_invocation_whose_start_was_lost_frees_its_permit_on_the_next_welcome():
    async with region(limit=1) as made:
        worker = made.workers[0]
        await made.invoke()
        await until(lambda: held(made) == 0)
        worker.start = lambda invocation, start: worker.starts.append(invocation)  # the start is lost on the way
        lost = asyncio.create_task(made.invoke(request_id="lost"))
        await until(lambda: "lost" in worker.starts)
        for pipe in list(made.servers[worker.node].pipes):
            pipe.break_off()
        with pytest.raises(Fault):
            await lost
        await until(lambda: held(made) == 0)  # the new stream's Welcome doesn't name it


async def test_another_incarnation_of_the_worker_frees_what_the_old_one_ran():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        worker.incarnation = common_pb2.Incarnation(host="h1", nonce=2)
        for pipe in list(made.servers[worker.node].pipes):
            pipe.break_off()
        with pytest.raises(Fault):
            await running
        await until(lambda: held(made) == 0)


async def test_a_permit_lost_with_a_silent_worker_is_free_when_the_ledger_says_that_the_worker_is_gone():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        made.servers[worker.node].crash()
        with pytest.raises(Fault):
            await running
        await asyncio.sleep(0.6)
        assert held(made) == 1
        made.counting.gone.add((worker.incarnation.host, worker.incarnation.nonce + 1))
        await asyncio.sleep(0.6)
        assert held(made) == 1, "another incarnation's end says nothing of it"
        made.counting.gone.add((worker.incarnation.host, worker.incarnation.nonce))
        await until(lambda: held(made) == 0)


async def test_what_runs_on_a_worker_that_was_declared_dead_is_over_though_its_stream_is_open():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        made.counting.say(next(iter(made.counting.blocks)), gone=counting_pb2.FrontendAnswer.Gone(
            incarnations=[worker.incarnation]
        ))
        with pytest.raises(Fault, match="no more") as caught:
            await running
        assert not caught.value.definite
        await until(lambda: held(made) == 0)
        with pytest.raises(Unavailable, match="gone"):
            await made.invoke()     # its manager still names it: nothing is sent there
        assert len(worker.starts) == 1
        await until(lambda: held(made) == 0)


async def test_a_worker_that_is_away_is_a_definite_no():
    async with region() as made:
        await made.invoke()
        await asyncio.sleep(0.1)
        worker = made.workers[0]
        made.servers[worker.node].crash()
        with pytest.raises(Unavailable, match="not started"):
            await made.invoke()
        await until(lambda: held(made) == 0)


async def test_a_worker_that_never_says_welcome_is_given_up_as_a_definite_no():
    async with region() as made:
        made.workers[0].hear = lambda frontend, frame: None
        with pytest.raises(Unavailable, match="unreachable"):
            await made.invoke()
        await until(lambda: held(made) == 0)
        assert made.workers[0].starts == []


async def test_a_start_for_the_worker_s_next_process_is_answered_though_the_view_forgets_the_one_before():
    """It waits on the old process's link, which has nothing else left and pauses between two dials."""
    async with region(limit=1) as made:
        worker, workers = made.workers[0], made.frontends[0].workers
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        made.servers[worker.node].crash()
        with pytest.raises(Fault):
            await running
        link = workers._links[worker.node]
        await until(lambda: link._stream is None)
        workers.gone([(worker.incarnation.host, worker.incarnation.nonce)])
        over: list[Flight] = []
        reservation = common_pb2.Reservation(
            worker=worker.node, address=link.address, sandbox="s",
            incarnation=common_pb2.Incarnation(host=worker.incarnation.host, nonce=worker.incarnation.nonce + 1),
        )
        start = worker_pb2.InvokeFrame.Start(reservation=reservation)
        flight = Flight("next", reservation, start, b"{}", over=over.append, answer_by=math.inf)
        workers.start(flight)
        view = SimpleNamespace(nonce=reservation.incarnation.nonce, health="serving")
        workers.see(SimpleNamespace(nodes={worker.node: view}))
        async with asyncio.timeout(60):
            assert isinstance(await flight.answer, NotStarted), "nobody listens there yet"
        assert over == [flight]


async def test_a_worker_that_left_the_region_is_forgotten():
    async with region() as made:
        await made.invoke()
        await until(lambda: held(made) == 0)
        frontend = made.frontends[0]
        assert frontend.workers._links
        nodes = [node for node in made.nodes if node.service != "worker"]
        made.placement.publish(nodes, [(made.manager.node, made.servers[made.manager.node].address)])
        await until(lambda: not frontend.workers._links)


async def test_a_client_that_goes_leaves_the_invocation_running_and_its_permit_taken():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(Throttled):
            await made.invoke()
        assert held(made) == 1
        worker.hold.set()
        await until(lambda: held(made) == 0)


async def test_a_client_that_goes_while_a_sandbox_is_made_gives_its_permit_back():
    async with region(limit=1) as made:
        made.manager.hold = asyncio.Event()
        waiting = asyncio.create_task(made.invoke(request_id="gone"))
        await until(lambda: "reserve gone" in {task.get_name() for task in made.manager.tasks._tasks})
        assert held(made) == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert held(made) == 0
        await until(lambda: made.manager.cancelled == ["gone"])
        made.manager.hold.set()
        await until(lambda: all(s.holder is None for s in made.manager.sandboxes.values()) and made.manager.made == 1)


async def test_a_client_that_goes_while_it_waits_for_a_permit_takes_none():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke())
        await until(lambda: bool(worker.running))
        waiting = asyncio.create_task(made.invoke())
        await asyncio.sleep(0)
        waiting.cancel()
        worker.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await running
        await until(lambda: held(made) == 0)
        assert len(worker.starts) == 1


async def test_without_a_ledger_a_request_is_refused_in_time_and_says_why():
    async with region() as made:
        made.servers["counting-az1"].crash()
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="no leader of the ledger"):
            await made.invoke()


async def test_managers_refusals_reach_the_client_as_what_they_mean():
    async with region() as made:
        manager = made.manager
        manager.refusals = [Refused(reason=Refused.SCALING_RATE)]
        with pytest.raises(Throttled) as caught:
            await made.invoke()
        assert caught.value.reason == "FunctionInvocationRateLimitExceeded"
        manager.refusals = [Refused(reason=Refused.CREATE_FAILED, error_type="Runtime.BadZip", message="not a zip")]
        failed = await made.invoke()
        assert failed.function_error == "Unhandled"
        assert failed.payload == b'{"errorType":"Runtime.BadZip","errorMessage":"not a zip"}'
        manager.refusals = [Refused(reason=Refused.UNKNOWN_RUNTIME)]
        with pytest.raises(Unavailable, match=r"python3\.11"):
            await made.invoke()
        manager.refusals = [Refused(reason=Refused.NOT_ACTIVE), Refused(reason=Refused.NO_CAPACITY)]
        assert (await made.invoke(b"1")).payload == b"1", "a region in motion is given time to settle"
        await until(lambda: held(made) == 0)


async def test_a_deadline_that_passes_while_a_sandbox_is_made_sheds_the_request():
    async with region() as made:
        made.manager.hold = asyncio.Event()
        with pytest.raises(Unavailable, match="before the request's deadline"):
            await made.invoke(within_s=0.1)
        assert held(made) == 0
        made.manager.hold.set()


async def test_a_recalled_reservation_goes_back_at_once_and_is_not_used_again():
    async with region(linger_s=30.0) as made:
        await made.invoke()
        await until(lambda: held(made) == 0)
        sandbox = made.manager.sandboxes["s1"]
        assert sandbox.holder is not None
        made.manager.recall(sandbox)
        await until(lambda: sandbox.holder is None)
        await made.invoke()
        assert sandbox.sequence == 2, "reserved anew"


async def test_limits_are_read_and_written_at_the_leader():
    async with region() as made:
        limits = made.frontends[0]._limits
        assert (await limits.get("000000000000")).concurrency == 10
        assert await limits.put_reserved("000000000000", "hello", 5)


async def test_a_draining_frontend_gives_everything_back():
    async with region(frontends=2) as made:
        await made.invoke(frontend=0)
        await until(lambda: held(made) == 0)

        async def nothing_runs():
            return None

        await made.frontends[0].drain(nothing_runs)
        assert "frontend-az1" not in made.counting.blocks
        assert (await made.invoke(b"1", frontend=1)).payload == b"1"
