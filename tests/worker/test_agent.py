"""The whole agent in virtual time: real core, coroutines, Runtime API and streams; sandboxes in memory."""

import asyncio
import functools
import json

import pytest

from simulation.loop import VirtualClock, VirtualLoop, run
from simulation.sandbox_driver import MemoryDriver
from tests.worker.region import SESSION, Frame, Order, Region
from worker import messages as m
from worker.sandbox.driver import DriverEnded, SandboxFault


def in_region(**config):
    """Runs an async scenario(region) in virtual time."""
    def decorate(scenario):
        @functools.wraps(scenario)
        def test():
            async def main(loop):
                async with Region(VirtualClock(loop), **config) as region:
                    await scenario(region)
            run(main)
        del test.__wrapped__  # pytest must not see the scenario's parameter
        return test
    return decorate


def start_frame(invocation, start):
    return Frame(invocation=invocation, start=start)


def log_of(region) -> list[str]:
    data = region.worker.logs._files.read(("000000000000", "hello"))
    buffered = region.worker.logs._buffers.get(("000000000000", "hello"), [])
    return [json.loads(row)["message"] for row in data.splitlines()] + [line.message for line in buffered]


@in_region()
async def test_cold_and_warm(region):
    assert list(region.inventory.runtimes) == ["provided.al2023", "python3.11"]
    ready = await region.ready()
    assert ready.phases.runtime_ms == pytest.approx(40)
    assert ready.phases.init_ms == pytest.approx(2)
    assert ready.phases.sandbox_ms == pytest.approx(5)
    cold = await region.invoke("i1", payload=b'{"a": 1}', log_tail=True)
    assert cold.body == b'{"a": 1}'
    assert cold.kinds == ["response", "result", "end"]
    assert cold.result.cold
    assert cold.result.billed_ms == 43  # ceil(42 + a little): init is billed
    warm = await region.invoke("i2", payload=b"null")
    assert (warm.body, warm.error, warm.result.cold, warm.result.status) == (b"null", "", False, "success")
    assert region.driver.sandboxes["s1"].started == 1
    lines = log_of(region)
    assert lines[0].startswith("INIT_START Runtime Version: python:3.11.v1\tRuntime Version ARN: arn:aws:lambda:us-")
    assert lines[1:3] == ["START RequestId: i1 Version: $LATEST\n", "END RequestId: i1\n"]
    assert lines[3].startswith("REPORT RequestId: i1\tDuration: 0.")
    assert lines[3].endswith("\tMemory Size: 128 MB\tMax Memory Used: 32 MB\tInit Duration: 42.00 ms\t\n")
    assert "Init Duration" not in lines[-1]
    assert lines[-1].endswith(" MB\t\n")
    assert cold.result.log_tail.decode() == "".join(lines[:4])


@in_region()
async def test_it_is_frozen_between_invocations(region):
    await region.ready()
    await asyncio.sleep(0.1)
    sandbox = region.driver.sandboxes["s1"]
    assert sandbox.frozen
    assert not sandbox.boosted
    assert (await region.invoke()).body == b"{}"
    assert not sandbox.frozen
    await asyncio.sleep(0.1)
    assert sandbox.frozen


@in_region()
async def test_handler_error(region):
    await region.ready(handler="error")
    answer = await region.invoke()
    assert answer.error == "Unhandled"
    assert answer.json["errorType"] == "ValueError"
    assert answer.result.status == "error"
    assert log_of(region)[-1].endswith("\t\n")  # a handler's own exception counts as success in the report
    assert (await region.invoke("i2")).error == "Unhandled"
    assert region.driver.sandboxes["s1"].started == 1


@in_region()
async def test_timeout_resets_and_the_next_one_inits_again(region):
    await region.ready(handler="sleep", timeout_s=3)
    sandbox = region.driver.sandboxes["s1"]
    sandbox.tmp["kept"] = b"yes"
    answer = await region.invoke("i1", payload=b"10")
    assert answer.json == {
        "errorType": "Sandbox.Timedout", "errorMessage": "RequestId: i1 Error: Task timed out after 3.00 seconds"
    }
    assert answer.kinds == ["response", "result", "end"]
    assert "Duration: 3000.00 ms\tBilled Duration: 3042 ms" in log_of(region)[-1]
    assert log_of(region)[-1].endswith("Status: timeout\n")
    answer = await region.invoke("i2", payload=b"1")
    assert answer.json == {"slept": 1.0}
    assert sandbox.started == 2
    assert sandbox.tmp == {"kept": b"yes"}
    assert any(line.startswith("INIT_REPORT Init Duration: 42.") and "Phase: invoke" in line for line in log_of(region))


@in_region()
async def test_what_can_not_be_killed_has_not_ended_until_its_sandbox_is_gone(region):
    """Rule 3: the end frees a permit."""
    await region.ready(handler="sleep", timeout_s=1)
    sandbox = region.driver.sandboxes["s1"]
    destroy, ordered, goes = sandbox.destroy, asyncio.Event(), asyncio.Event()

    async def fails():
        raise SandboxFault("the order to kill is lost")

    async def slowly():
        ordered.set()
        await goes.wait()
        await destroy()

    sandbox.kill, sandbox.destroy = fails, slowly
    await region.client.send(start_frame("i1", region.start(payload=b"10")))
    await ordered.wait()
    await asyncio.sleep(60)     # virtual
    assert "i1" in region.worker.agent.core.runs
    goes.set()
    answer = await region.client.answer("i1")
    assert answer.json["errorType"] == "Sandbox.Timedout"
    assert answer.kinds == ["response", "result", "end"]
    assert (await region.news("gone")).sandbox == "s1"


@in_region()
async def test_what_can_be_neither_killed_nor_destroyed_never_ends(region):
    await region.ready(handler="sleep", timeout_s=1)
    sandbox = region.driver.sandboxes["s1"]
    destroy = sandbox.destroy
    tried = asyncio.Event()

    async def fails():
        raise SandboxFault("the order to kill is lost")

    async def fails_too():
        tried.set()
        raise SandboxFault("groups remained")

    sandbox.kill, sandbox.destroy = fails, fails_too
    await region.client.send(start_frame("i1", region.start(payload=b"10")))
    await tried.wait()
    await asyncio.sleep(60)     # virtual
    assert "i1" in region.worker.agent.core.runs
    sandbox.destroy = destroy


@in_region()
async def test_exit_and_oom(region):
    await region.ready(handler="exit")
    answer = await region.invoke("i1", payload=b"12")
    assert answer.json == {
        "errorType": "Runtime.ExitError",
        "errorMessage": "RequestId: i1 Error: Runtime exited with error: exit status 12",
    }
    assert log_of(region)[-1].endswith("\tStatus: error\tError Type: Runtime.ExitError\n")
    answer = await region.invoke("i2", payload=b"0")
    assert answer.json["errorMessage"] == "RequestId: i2 Error: Runtime exited without providing a reason"
    await region.ready("s2", handler="oom")
    answer = await region.invoke("i3", sandbox="s2")
    assert answer.json == {
        "errorType": "Runtime.OutOfMemory",
        "errorMessage": "RequestId: i3 Error: Runtime exited with error: signal: killed",
    }


@in_region()
async def test_init_error_is_the_result_of_whoever_caused_it(region):
    await region.ready(handler="init_error")
    answer = await region.invoke("i1")
    assert answer.error == "Unhandled"
    assert answer.json["errorType"] == "Runtime.ImportModuleError"
    assert answer.json["requestId"] == ""
    assert region.driver.sandboxes["s1"].started == 1
    assert any("Phase: init\tStatus: error\tError Type: Runtime.ImportModuleError" in x for x in log_of(region))
    assert (await region.invoke("i2")).json["errorType"] == "Runtime.ImportModuleError"
    assert region.driver.sandboxes["s1"].started == 2


@in_region()
async def test_init_that_exits_is_tried_again_inside_the_invocation(region):
    await region.ready(handler="init_exit")
    answer = await region.invoke("i1")
    assert answer.json["errorMessage"] == "RequestId: i1 Error: Runtime exited with error: exit status 3"
    assert region.driver.sandboxes["s1"].started == 2


@in_region()
async def test_slow_init_runs_on_under_the_functions_timeout(region):
    began = region.clock.monotonic()
    await region.ready(handler="slow_init", timeout_s=30)
    assert region.clock.monotonic() - began == pytest.approx(10, abs=0.2)
    assert (await region.invoke("i1")).body == b"{}"
    assert any("Phase: init\tStatus: timeout" in line for line in log_of(region))
    await region.ready("s2", handler="slow_init", timeout_s=5)
    assert (await region.invoke("i2", sandbox="s2")).json["errorType"] == "Sandbox.Timedout"
    await region.ready("s3", handler="slow_init", on_demand=False)
    answer = await region.invoke("i3", sandbox="s3")
    assert (answer.body, answer.result.cold) == (b"{}", True)


@in_region()
async def test_six_megabytes_each_way(region):
    await region.ready(handler="echo")
    payload = b'"' + b"x" * (6 * 1024 * 1024 - 2) + b'"'
    answer = await region.send_whole("i1", payload)
    assert answer.body == payload
    assert answer.kinds[-2:] == ["result", "end"]


@in_region()
async def test_response_at_and_over_the_limit(region):
    await region.ready(handler="big")
    answer = await region.invoke("i1", payload=b"6291556")
    assert len(answer.body) == 6291556
    answer = await region.invoke("i2", payload=b"6291557")
    assert answer.body == (
        b'{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).",'
        b'"errorType":"Function.ResponseSizeTooLarge"}'
    )
    assert answer.error == "Unhandled"
    assert region.driver.sandboxes["s1"].started == 1


@in_region()
async def test_log_tail_is_the_last_4096_bytes(region):
    await region.ready(handler="say")
    answer = await region.invoke("i1", payload=json.dumps("ä" * 4000 + "\n").encode(), log_tail=True)
    tail = answer.result.log_tail.decode()
    assert tail.endswith(" MB\tInit Duration: 42.00 ms\t\n")
    assert len(tail.replace("\ufffd", "").encode()) in (4096, 4095)


@in_region()
async def test_refusals_are_definite_and_bar_the_id(region):
    await region.ready()
    assert (await region.invoke("i1", sequence=0)).refusal == "STALE_SEQUENCE"
    assert (await region.invoke("i1")).refusal == "BARRED"
    assert (await region.invoke("i1#2")).body == b"{}"
    assert (await region.invoke("i2", lease=9)).refusal == "STALE_LEASE"
    assert (await region.invoke("i3", deadline_s=-1)).refusal == "SHED"
    assert "START RequestId: i1 Version: $LATEST\n" in log_of(region)


@in_region()
async def test_cancel_before_and_after_it_began(region):
    await region.ready(handler="sleep")
    await region.client.send(start_frame("i1", region.start(payload=b"", size=1000)))
    await region.client.send(Frame(invocation="i1", cancel=Frame.Cancel()))
    assert (await region.client.answer("i1")).refusal == "CANCELLED"
    cancel = Frame(invocation="i2", cancel=Frame.Cancel())
    await region.client.send(start_frame("i2", region.start(payload=b"1")), cancel)
    assert (await region.client.answer("i2")).json == {"slept": 1.0}


@in_region()
async def test_a_broken_stream_learns_the_rest_from_welcome(region):
    await region.ready(handler="sleep")
    await region.client.send(start_frame("i1", region.start(payload=b"2")))
    await asyncio.sleep(0.5)
    region.client.stream.cancel()
    await asyncio.sleep(0.1)
    again = await region.connect()
    assert list((await again.welcome).running) == ["i1"]
    assert (await again.answer("i1")).kinds == ["end"]
    assert list((await (await region.connect()).welcome).running) == []


@in_region()
async def test_fence_and_report(region):
    await region.ready(handler="sleep")
    await region.client.send(start_frame("i1", region.start(payload=b"2")))
    await asyncio.sleep(0.5)
    await region.ledger.fence(SESSION)
    await asyncio.sleep(0.1)
    ack = next(message.fence_ack for message in region.ledger.heard if message.HasField("fence_ack"))
    assert [(of.function, list(of.invocations)) for of in ack.running] == [("hello", ["i1"])]
    assert (await region.client.answer("i1")).json == {"slept": 2.0}
    await asyncio.sleep(0.1)
    assert [message.end.invocation for message in region.ledger.heard if message.HasField("end")] == ["i1"]
    assert (await region.invoke("i2", payload=b"0")).refusal == "FENCED"


@in_region()
async def test_authority_ends_with_counting(region):
    await region.ready()
    region.fabric.server("counting:1").crash()
    await asyncio.sleep(110)
    assert (await region.invoke("i1")).body == b"{}"
    await asyncio.sleep(20)
    assert (await region.invoke("i2")).refusal == "NO_AUTHORITY"
    await region.create("s2")
    assert "authority" in (await region.news("no_capacity")).reason


@in_region()
async def test_code_is_fetched_once_and_verified(region):
    for name in ("s1", "s2", "s3"):
        await region.create(name)
    for _ in range(3):
        await region.news("ready")
    assert region.fetches == 1


@in_region()
async def test_wrong_code_creates_nothing(region):
    region.archive = b"something else, too short"
    await region.create()
    failed = await region.news("create_failed")
    assert failed.error_type == "Sandbox.CreateFailed"
    assert "not what was asked for" in failed.message or "more than" in failed.message
    assert "nobody listens" in failed.message
    assert region.driver.sandboxes == {}
    assert region.worker.agent.lives == {}


@in_region()
async def test_destroy_at_every_stage(region):
    for delay in (0.0, 0.003, 0.006, 0.02, 0.049, 0.06, 0.2):
        await region.create(f"s-{delay}")
        await asyncio.sleep(delay)
        await region.order(destroy=Order.Destroy(sandbox=f"s-{delay}", reason="test"))
        assert (await region.news("gone")).reason == "test"
    assert region.driver.sandboxes == {}
    assert region.worker.agent.core.memory_free_mb == 1024


@in_region()
async def test_a_build_that_fails_as_its_end_is_ordered_is_no_bug(region):
    bugs: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: bugs.append(context))
    begun, fails = asyncio.Event(), asyncio.Event()

    async def create(_spec):
        begun.set()
        await fails.wait()
        raise SandboxFault("no namespaces")

    region.driver.create = create
    await region.create("s1")
    await begun.wait()
    fails.set()
    link = next(iter(region.worker.agent._managers))
    region.worker.agent.feed(m.Destroy(link=link, lease=1, sandbox="s1", reason="test"))
    assert (await region.news("gone")).reason == "test"
    assert bugs == []
    assert region.worker.agent.lives == {}
    assert region.worker.agent.core.memory_free_mb == 1024


@in_region()
async def test_a_sandbox_that_goes_by_itself_ends_what_runs_on_it_at_once(region):
    await region.ready(handler="sleep", timeout_s=900)
    await region.client.send(start_frame("i1", region.start(payload=b"800")))
    await asyncio.sleep(1)
    await region.driver.sandboxes["s1"].destroy()   # nobody here asked for it
    answer = await region.client.answer("i1")
    assert region.clock.monotonic() < 10, "the function would sleep on"
    assert answer.json == {"errorType": "Sandbox.Failure", "errorMessage": "RequestId: i1 Error: s1 was destroyed"}
    assert answer.kinds == ["response", "result", "end"]
    assert answer.result.status == "failure"
    assert log_of(region)[-1].endswith("\tStatus: failure\n")
    assert (await region.news("gone")).reason == "s1 was destroyed"
    assert region.worker.agent.lives == {}
    assert region.worker.agent.core.memory_free_mb == 1024


@in_region()
async def test_a_sandbox_that_goes_by_itself_during_init_is_broken(region):
    await region.create(handler="slow_init", timeout_s=900, on_demand=False)
    await asyncio.sleep(1)
    await region.driver.sandboxes["s1"].destroy()
    assert (await region.news("gone")).reason == "s1 was destroyed"
    assert region.clock.monotonic() < 10, "the init would go on"


@in_region()
async def test_what_cannot_be_killed_runs_until_its_sandbox_is_seen_gone(region):
    await region.ready(handler="sleep", timeout_s=3)
    sandbox = region.driver.sandboxes["s1"]
    destroy, asked, seen = sandbox.destroy, asyncio.Event(), asyncio.Event()

    async def kill():
        raise SandboxFault("no such process", definite=True)

    async def destroy_slowly():
        asked.set()
        await seen.wait()
        await destroy()

    sandbox.kill, sandbox.destroy = kill, destroy_slowly
    await region.client.send(start_frame("i1", region.start(payload=b"800")))
    kinds = [(await region.client.next("i1")).WhichOneof("frame") for _ in range(2)]
    assert kinds == ["response", "result"]
    await asyncio.wait_for(asked.wait(), 10)
    await asyncio.sleep(10)
    assert region.client.of("i1").empty()
    assert region.worker.agent.core.slots["s1"].running
    seen.set()
    assert (await region.client.next("i1")).WhichOneof("frame") == "end"
    assert (await region.news("gone")).reason == "no such process"


@in_region()
async def test_what_a_lost_driver_ran_is_never_said_to_have_ended(region):
    create, lost = region.driver.create, asyncio.Event()

    async def created(spec):
        sandbox = await create(spec)

        async def exited():
            await lost.wait()
            raise DriverEnded("the spawner is gone")

        async def refused():
            raise DriverEnded("the spawner is gone")

        sandbox.exited, sandbox.kill, sandbox.destroy = exited, refused, refused
        return sandbox

    region.driver.create = created
    await region.ready(handler="sleep", timeout_s=3)
    await region.client.send(start_frame("i1", region.start(payload=b"800")))
    await asyncio.sleep(1)
    lost.set()
    kinds = [(await region.client.next("i1")).WhichOneof("frame") for _ in range(2)]
    assert kinds == ["response", "result"]
    await asyncio.sleep(10)
    assert region.client.of("i1").empty()
    assert region.worker.agent.core.slots["s1"].running
    region.driver.sandboxes.clear()     # the driver's own end would wait for it


@in_region()
async def test_drain_lets_what_runs_finish(region):
    await region.ready(handler="sleep")
    await region.client.send(start_frame("i1", region.start(payload=b"2")))
    await asyncio.sleep(0.1)
    drain = asyncio.get_running_loop().create_task(region.worker.drain())
    await asyncio.sleep(0.1)
    await region.client.send(start_frame("i2", region.start(payload=b"0")))
    assert (await region.client.answer("i2")).refusal == "DRAINING"
    assert (await region.client.answer("i1")).json == {"slept": 2.0}
    began = region.clock.monotonic()
    await drain
    assert region.clock.monotonic() - began < 1.5
    assert region.ledger.left
    assert region.driver.sandboxes == {}
    assert not region.ended.is_set(), "that it is no member is what it wanted to hear"


@in_region()
async def test_a_worker_that_leaves_waits_for_the_ledgers_word_and_not_for_ever(region):
    region.ledger.silent = True
    began = region.clock.monotonic()
    await region.worker.drain()
    assert 5.0 < region.clock.monotonic() - began < 6.5, "what is left of drain_s, and its servers' end"
    assert sum(message.HasField("leave") for message in region.ledger.heard) >= 1


@in_region(notice_s=1.0)
async def test_what_was_promised_before_a_drain_was_heard_of_starts(region):
    """A manager hears of it by way of placement. A refusal would cost a retry, and two of them the request."""
    await region.ready(handler="sleep")
    await region.ready("s2", handler="sleep")
    drain = asyncio.get_running_loop().create_task(region.worker.drain())
    await asyncio.sleep(0.5)
    await region.client.send(start_frame("i1", region.start(payload=b"2")))
    await asyncio.sleep(0.6)
    await region.client.send(start_frame("i2", region.start(sandbox="s2", payload=b"0")))
    assert (await region.client.answer("i2")).refusal == "DRAINING"
    assert (await region.client.answer("i1")).json == {"slept": 2.0}
    await drain
    assert region.driver.sandboxes == {}


def test_two_runs_are_the_same():
    def traced() -> list[str]:
        lines: list[str] = []

        async def main(loop):
            async with Region(VirtualClock(loop)) as region:
                await region.ready()
                await region.invoke("i1")
                await region.invoke("i2")
                lines.extend(log_of(region))
        run(main)
        return lines
    assert traced() == traced()


@in_region(timeout_cap_s=10)
async def test_an_agent_stopped_for_longer_than_its_authority_refuses_what_came_meanwhile(region):
    """Stopped: time goes on and nothing happens here, as after SIGSTOP."""
    await region.ready()
    assert (await region.invoke("i1")).body == b"{}"
    region.ledger.silent = True
    await region.client.send(start_frame("late", region.start(deadline_s=900.0)))
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.advance(120.5)
    assert (await region.client.answer("late")).refusal == "NO_AUTHORITY"
    region.ledger.silent = False
    await asyncio.sleep(3)
    assert (await region.invoke("late")).refusal == "BARRED", "the refusal was for good"
    assert (await region.invoke("i2")).body == b"{}", "the sandbox is as it was"


expired: list[str] = []


@in_region(driver=MemoryDriver(timeout_cap_s=10.0, on_expired=lambda: expired.append("expired")))
async def test_the_watchdog_hears_of_every_renewal_and_waits_for_the_longest_timeout_and_half_the_grace(region):
    await asyncio.sleep(20)
    until = region.worker.agent.core.authority.until
    assert 134.0 < until <= 140.0, "120 s from the newest renewal"
    region.ledger.silent = True
    await asyncio.sleep(until + 10.0 + 15.0 - region.clock.monotonic() - 0.1)
    assert expired == []
    await asyncio.sleep(0.2)
    assert expired == ["expired"]


@in_region(renew_s=30)
async def test_a_short_authority_is_renewed_in_time(region):
    region.ledger.authority_s = 4.0
    await asyncio.sleep(31)
    before = len(region.ledger.heard)
    await asyncio.sleep(20)
    assert len(region.ledger.heard) - before >= 15
    await region.ready()
