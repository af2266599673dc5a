"""Stories of single clauses that no other test tells by itself: short, and each fails when its clause is taken out.

Told with the real cores; those that need streams run in virtual time. Owns no switch (clauses.py) and no table
(test_clauses.py).
"""

import asyncio
import contextlib

from chassis.faults import Fault
from counting import commands as c
from counting import messages as m
from counting.ledger import Ledger
from counting.words import provisioned, reserved, unreserved
from frontend import messages as fm
from frontend.core import FrontendCore
from simulation.loop import VirtualClock, run
from tests.counting.test_core import A, ask, hello, limited, of
from tests.counting.test_mutants import REST, ROUND, S1, W1, apply, wish
from tests.frontend import test_core_stories as frontends
from tests.frontend.region import until
from tests.frontend.test_invoke import NeverStarted, held, region
from tests.worker import test_core as workers
from tests.worker.region import Region
from tests.worker.test_agent import log_of, start_frame
from worker import messages as wm
from worker.core import WorkerCore

B_REST = unreserved("other")

# ---------------------------------------------------------------- the ledger


def what_another_account_leaves_is_not_lent():
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=200), c.SetAccountLimit(account="other", limit=200),
        c.JoinWorker(incarnation=W1, timeout_cap_s=9), c.OpenSession(frontend="fe1", nonce=1),
        c.Acquire(wishes=(wish(generation=1, waiting=190),)), c.SetReserved(account=A, function="f", value=60),
        c.AckGeneration(session=S1, sequence=1, pool=REST, generation=2, moved=()),
    )
    assert ledger.free(reserved(A, "f")) == 10, "of the account's own 200"


def what_is_provisioned_of_a_reservation_waits_for_what_runs_by_it():
    ledger, f, version = Ledger(), reserved(A, "f"), provisioned(A, "f", "1")
    apply(
        ledger, c.SetReserved(account=A, function="f", value=2), c.OpenSession(frontend="fe1", nonce=1),
        c.Acquire(wishes=(wish(pool=f, generation=1, waiting=2),)),
        c.SetProvisioned(account=A, function="f", qualifier="1", value=1),
    )
    [full] = apply(ledger, c.Acquire(wishes=(wish(pool=version, generation=2),)))
    assert full.grants == (), "two may run by the reservation of two"
    apply(ledger, c.GiveBack(session=S1, sequence=1, pool=f, count=1))
    assert (ledger.free(f), ledger.free(version)) == (0, 1)


def a_report_counts_for_every_pool_of_its_session():
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=3), c.SetAccountLimit(account="other", limit=3),
        c.JoinWorker(incarnation=W1, timeout_cap_s=9), c.OpenSession(frontend="fe1", nonce=1),
        c.Acquire(wishes=(wish(generation=1, waiting=2), wish(pool=B_REST, generation=1, waiting=2))),
        c.MarkDraining(session=S1),
        c.CountBlocks(session=S1, runs=tuple(
            c.Run(pool=pool, function="f", invocation=f"{pool.account}-1", incarnation=W1) for pool in (REST, B_REST)
        )),
    )
    assert [ledger.granted(pool) for pool in (REST, B_REST)] == [1, 1]


# ---------------------------------------------------------------- the leader


def what_a_round_found_goes_to_the_oldest_and_proves_nothing_to_the_next():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, 22, generation=1), 0.2)
    effects = rig.handle((
        m.GaveBack(link=1, sequence=1, pool=REST, count=1),
        m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=1, in_use=0),
    ), 0.3)
    assert [(grant.link, grant.count) for grant in of(effects, m.SendGrant)] == [(2, 1)]
    assert not of(effects, m.SendThrottled), "22 gets a round of its own"


def a_frontend_that_is_back_hears_its_sizes_before_a_recall():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.handle(m.LinkLost(link=1), 0.3)
    effects = rig.handle(hello(3, "fe1", epoch=1), 0.4)
    assert [type(effect) for effect in of(effects, m.SendGrant, m.SendRecall)] == [m.SendGrant, m.SendRecall]


def a_round_looks_at_what_is_free_before_it_refuses():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    rig.handle((
        m.SetAccountLimitCall(call=9, account=A, limit=2),
        m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=1),
    ), 0.3)
    assert not of(rig.commit(0.4), m.SendThrottled), "the limit was raised by the batch that closed the round"


# ---------------------------------------------------------------- a frontend


def tell(core, events):
    effects = []
    for now, event in events:
        effects += core.handle(event, now)
        core.check()
    return effects


def frontend_with_five() -> FrontendCore:
    """One of its five permits is in use."""
    core = frontends.frontend()
    tell(core, [
        *frontends.LIVE, (0.1, frontends.wanted(1)), (0.1, fm.Flush()), (0.11, frontends.granted(5, 1, 5)),
    ])
    return core


RECALL = (0.2, fm.Recalled(link=1, stamp=(1, 6), round=77, pool=frontends.REST))


def a_grants_size_is_less_own_give_backs_on_their_way():
    core = frontend_with_five()
    tell(core, [RECALL, (0.21, frontends.granted(7, 1, 6))])
    assert frontends.block_of(core).size == 2


def only_what_is_idle_goes_back():
    effects = tell(frontend_with_five(), [RECALL])
    assert [effect.count for effect in effects if isinstance(effect, fm.GiveBack)] == [4]


def an_older_answer_is_dropped():
    core = frontend_with_five()
    tell(core, [RECALL, (0.3, frontends.granted(8, 1, 2, applied=1)), (0.4, frontends.granted(7, 1, 6))])
    assert frontends.block_of(core).size == 2, "the older answer had not seen the give-back, which it forgot"


def a_permit_of_an_older_generation_goes_back_and_is_not_used_again():
    core = frontends.frontend()
    tell(core, [
        *frontends.LIVE, (0.1, frontends.wanted(1)), (0.1, fm.Flush()), (0.11, frontends.granted(5, 1, 1)),
        (0.2, frontends.wanted(2)),
    ])
    block = frontends.block_of(core)
    tell(core, [(0.3, frontends.generation(6, 1, 990))])
    effects = tell(core, frontends.end(core, block))
    assert [effect.count for effect in effects if isinstance(effect, fm.GiveBack)] == [1]
    assert not [effect for effect in effects if isinstance(effect, fm.Admit)]


async def a_request_that_waits_for_a_cold_sandbox_holds_its_permit():
    async with region(limit=1) as made:
        serve = made.manager.serve
        in_use = []

        async def look(outbox, request):
            in_use.append(held(made))
            await serve(outbox, request)

        made.manager.serve = look
        await made.invoke()
        assert in_use == [1]


async def a_permit_is_held_until_end():
    async with region(limit=1) as made:
        worker = made.workers[0]
        worker.hold_end = asyncio.Event()
        await made.invoke()
        in_use = held(made)
        worker.hold_end.set()
        await until(lambda: held(made) == 0)
        assert in_use == 1


async def a_start_whose_fate_is_unknown_is_not_tried_again():
    async with region(limit=2) as made:
        worker = made.workers[0]
        worker.hold = asyncio.Event()
        running = asyncio.create_task(made.invoke(request_id="once"))
        await until(lambda: bool(worker.running))
        for pipe in list(made.servers[worker.node].pipes):
            pipe.break_off()
        worker.refuse = [NeverStarted(reason=NeverStarted.BUSY)] * 2
        with contextlib.suppress(Exception):
            await running
        starts = list(worker.starts)
        worker.hold.set()
        await until(lambda: held(made) == 0)
        assert starts == ["once"]


# ---------------------------------------------------------------- a worker


def refusals(core: WorkerCore, events) -> list[wm.Refusal]:
    return [effect.reason for effect in tell(core, events) if isinstance(effect, wm.RefuseStart)]


def ready() -> WorkerCore:
    core = workers.core()
    tell(core, workers.READY)
    return core


def a_start_of_a_fenced_session_is_refused():
    fenced = (2.0, wm.Fenced(link=9, session=workers.BLOCK.session))
    assert refusals(ready(), [fenced, (2.1, workers.start())]) == [wm.Refusal.FENCED]


def a_refusal_is_for_good():
    late = workers.start(deadline=500.0)
    told = [(121.0, late), (122.0, wm.AuthorityRenewed(until=240.0)), (122.1, late)]
    assert refusals(ready(), told) == [wm.Refusal.NO_AUTHORITY, wm.Refusal.BARRED]


def nothing_starts_without_authority():
    assert refusals(ready(), [(121.0, workers.start(deadline=500.0))]) == [wm.Refusal.NO_AUTHORITY]


def nothing_begins_before_the_fence_table():
    told = [(0.0, wm.AuthorityRenewed(until=120.0)), (0.0, workers.adopt()), (1.0, workers.create())]
    assert not [effect for effect in tell(workers.core(), told) if isinstance(effect, wm.BuildSandbox)]


def a_start_for_another_incarnation_is_refused():
    older = workers.start(incarnation=wm.Incarnation(host="h1", nonce=6))
    assert refusals(ready(), [(2.0, older)]) == [wm.Refusal.WRONG_INCARNATION]


def a_worker_leaves_when_nothing_runs():
    core = ready()
    effects = tell(core, [(2.0, workers.start()), (2.1, wm.DrainSelf())])
    assert not [effect for effect in effects if isinstance(effect, wm.LeaveCounting)]
    effects = tell(core, [(2.2, workers.result()), (2.2, workers.ended())])
    assert [effect for effect in effects if isinstance(effect, wm.LeaveCounting)]


def a_worker_that_left_starts_nothing():
    assert refusals(ready(), [(2.0, wm.DrainSelf()), (2.1, workers.start())])


def in_virtual_time(scenario, **config):
    async def main(loop):
        async with Region(VirtualClock(loop), **config) as made:
            await scenario(made)

    run(main)


def what_welcome_does_not_name_never_starts():
    """A frontend's next stream says what runs: what it doesn't name is barred, whatever the older one still holds."""
    async def scenario(made):
        await made.ready()
        older = made.client
        again = await made.connect()
        assert not (await again.welcome).running
        with contextlib.suppress(Fault):
            await older.send(start_frame("late", made.start()))
        await asyncio.sleep(1.0)
        assert "START RequestId: late Version: $LATEST\n" not in log_of(made)

    in_virtual_time(scenario)


def authority_counts_from_when_the_renewal_was_sent():
    async def scenario(made):
        await asyncio.sleep(5.0)
        made.ledger.slow_s = 2.0
        begun, left_s = made.worker.agent.core.authority.until, []
        await asyncio.sleep(20.0)
        for _ in range(200):
            left_s.append(made.worker.agent.core.authority.until - made.clock.monotonic())
            await asyncio.sleep(0.1)
        assert made.worker.agent.core.authority.until > begun, "it was renewed"
        assert max(left_s) <= 120.0 - 2.0

    in_virtual_time(scenario)
