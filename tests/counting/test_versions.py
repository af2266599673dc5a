"""Rolling upgrades (rule 11), retried changes of limits, and batches that stay within an entry of the log."""

import asyncio
import dataclasses

import pytest

from counting import commands as c
from counting import messages as m
from counting.accounts import REQUESTS_MAX
from counting.ledger import Ledger
from counting.raft.member import COMMAND_BYTES_MAX
from counting.snapshot import dump, load
from counting.words import Incarnation, Session, reserved, unreserved
from protos import common_pb2, counting_pb2, counting_rpc
from simulation.loop import run
from tests.counting.region import A, call, frontend, region_in_memory
from tests.counting.rig import Rig
from tests.counting.test_core import ask, hello, of
from tests.counting.test_service import until

REST, F = unreserved(A), reserved(A, "f")
W1 = Incarnation(host="h1", nonce=1)


def put(value, request, function="f"):
    return c.SetReserved(account=A, function=function, value=value, request=request)


def apply(ledger, *commands, version=c.VERSION):
    batch = c.decode(c.encode(c.Batch(stamp=1.0, number=1, commands=commands, version=version)))
    results = ledger.apply(batch)
    ledger.check()
    assert dump(load(dump(ledger))) == dump(ledger)
    return results


# ---------------------------------------------------------------- requests


def test_a_change_of_limits_is_applied_once_per_request_whatever_came_between():
    ledger = Ledger()
    [first] = apply(ledger, put(5, "r1"))
    [other] = apply(ledger, put(7, "r2"))
    [again] = apply(ledger, put(5, "r1"))
    assert again == first
    assert (first.generation, other.generation) == (1, 2)
    assert ledger.limit(F) == 7, "a retry undid a later change"


def test_one_that_changed_nothing_or_was_refused_is_not_remembered_as_more():
    ledger = Ledger()
    apply(ledger, put(5, "r1"), put(5, "r2"))
    [again] = apply(ledger, put(5, "r2"))
    assert not again.changed
    [refused] = apply(ledger, put(900, "r3", "g"))
    assert isinstance(refused, c.BelowFloor)
    apply(ledger, put(None, "r4"))
    [granted] = apply(ledger, put(900, "r3", "g"))
    assert granted.changed, "a refusal binds nobody"


def test_an_account_limit_is_set_once_per_request():
    ledger = Ledger()
    apply(ledger, c.SetAccountLimit(account=A, limit=500, request="r1"))
    apply(ledger, c.SetAccountLimit(account=A, limit=400, request="r2"))
    [again] = apply(ledger, c.SetAccountLimit(account=A, limit=500, request="r1"))
    assert again.changed
    assert ledger.account(A).limit == 400


def test_the_memory_of_requests_is_bounded_and_forgets_the_oldest():
    ledger = Ledger()
    for n in range(REQUESTS_MAX + 10):
        apply(ledger, put(n % 2, f"r{n}"))
    known = ledger.account(A).requests
    assert len(known) == REQUESTS_MAX
    assert "r9" not in known
    assert "r10" in known


# ---------------------------------------------------------------- versions


def test_a_batch_of_the_first_version_holds_nothing_that_came_later():
    commands = (
        put(5, "r1"), c.SetAccountLimit(account=A, limit=300, request="r2"),
        c.CountBlocks(session=Session(frontend="fe1", epoch=1), runs=()),
    )
    old = c.encode(c.Batch(stamp=1.0, number=1, commands=commands, version=1))
    for word in (b"request", b"first", b"last", b"r1"):
        assert word not in old
    assert c.decode(old).commands[0] == put(5, "")
    assert b'"request":"r1"' in c.encode(c.Batch(stamp=1.0, number=1, commands=commands))


def test_a_ledger_that_never_saw_the_second_version_is_dumped_for_members_of_the_first():
    ledger = Ledger()
    apply(ledger, put(5, "r1"), version=1)
    assert dump(ledger).startswith(b'{"format":1,')
    assert b"requests" not in dump(ledger)
    apply(ledger, put(6, "r2"), version=2)
    assert dump(ledger).startswith(b'{"format":2,')
    assert b"declared" not in dump(ledger)
    assert load(dump(ledger)).version == 2
    apply(ledger, c.DeclareDead(incarnation=W1), version=3)
    assert dump(ledger).startswith(b'{"format":3,')
    assert b"provisioned" not in dump(ledger)
    apply(ledger, c.SetProvisioned(account=A, function="f", qualifier="1", value=1))
    assert dump(ledger).startswith(b'{"format":4,')


def test_nothing_is_provisioned_while_a_member_does_not_know_the_command():
    rig = Rig()
    rig.handle(m.Led(term=1), 0.0)
    call = m.SetProvisionedCall(call=1, account=A, function="f", qualifier="1", value=5, version=c.PROVISIONING - 1)
    assert rig.handle(call, 0.1) == [m.AnswerTooOld(call=1, version=c.PROVISIONING - 1)]
    effects = rig.handle(dataclasses.replace(call, call=2, version=c.PROVISIONING), 0.2)
    assert [effect for effect in effects if isinstance(effect, m.AnswerLimit)] == [
        m.AnswerLimit(call=2, generation=1, changed=True, outstanding=())
    ]


def test_the_core_proposes_in_the_version_that_all_know_and_never_goes_back():
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.core.handle(m.SetReservedCall(call=1, account=A, function="f", value=5, request="r1"), 0.1)
    [old] = of(rig.core.handle(m.Flush(wall=1.0, version=1), 0.1), m.Propose)
    assert old.batch.version == 1
    rig._proposed.append(old.batch)
    rig.commit(0.1)
    [new] = of(rig.handle(m.ReadCall(call=2), 0.2), m.Propose)
    assert new.batch.version == c.VERSION
    rig.core.handle(m.ReadCall(call=3), 0.3)
    [still] = of(rig.core.handle(m.Flush(wall=1.0, version=1), 0.3), m.Propose)
    assert still.batch.version == c.VERSION, "a member that is away doesn't forget what it knew"


def reserve(region, value, request):
    message = counting_pb2.SetReservedRequest(account=A, function="f", value=value, request=request)
    return call(region, counting_rpc.SET_RESERVED, message, frontend(9))


def declare(incarnation, *, force=False):
    named = common_pb2.Incarnation(host=incarnation.host, nonce=incarnation.nonce)
    return counting_pb2.DeclareDeadRequest(incarnation=named, force=force)


def proposed(region):
    return region.services[region.leading()].core.ledger.version


@pytest.mark.parametrize("older", [1, 2, 3])
def test_a_rolling_upgrade_speaks_the_old_language_until_the_last_member_knows_the_new_one(tmp_path, older):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path, versions={older: 1})
        await until(lambda: region.leader() is not None)
        await asyncio.sleep(1.0)
        await reserve(region, 5, "r1")
        refused = (await call(region, counting_rpc.DECLARE_DEAD, declare(W1))).refused
        assert refused.reason == refused.UPGRADE
        assert "version 1" in refused.message
        assert {s.core.ledger.version for s in region.services.values()} == {1}
        assert proposed(region) == 1
        await region.kill(f"counting-az{older}")
        await until(lambda: region.leader() is not None)
        region.versions.clear()
        await region.start(older)
        await asyncio.sleep(2.0)
        answer = await reserve(region, 7, "r2")
        assert answer.changed
        assert proposed(region) == c.VERSION
        assert (await call(region, counting_rpc.DECLARE_DEAD, declare(W1))).declared.changed
        await reserve(region, 8, "r3")
        assert (await reserve(region, 7, "r2")).generation == answer.generation
        limits = await call(region, counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account=A))
        assert dict(limits.reserved) == {"f": 8}, "a retry undid a later change"
        await asyncio.sleep(0.5)
        assert len({dump(s.core.ledger) for s in region.services.values()}) == 1
        await region.close()

    run(main)


# ---------------------------------------------------------------- sizes


def test_a_batch_stays_within_an_entry_of_the_log():
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(hello(1, "f" * 60), 0.0)
    rig.handle(m.SetAccountLimitCall(call=1, account=A, limit=100_000), 0.0)
    moved = tuple((f"function-{n:04}-{'x' * 40}", n) for n in range(40))
    rig.hold = True
    rig.handle(ask(1, 1, generation=1), 0.1)
    sizes, effects = [], rig.handle(tuple(
        m.GenerationAcked(link=1, sequence=n, pool=REST, generation=1, moved=moved) for n in range(1, 201)
    ), 0.1)
    while rig._proposed:
        sizes.append(len(c.encode(rig._proposed[0])))
        effects = rig.commit(0.1)
    assert max(sizes) < COMMAND_BYTES_MAX
    assert len(sizes) > 3, "200 long acknowledgements are more than one batch"
    assert rig.ledger.sessions[Session(frontend="f" * 60, epoch=1)].applied == 200
    assert effects is not None


def test_wishes_of_many_that_wait_stay_within_an_entry_of_the_log():
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.SetAccountLimitCall(call=1, account=A, limit=5000), 0.0)
    for link in (1, 2):
        rig.handle(hello(link, f"fe{link}"), 0.0)
    rig.hold = True
    rig.handle(m.ReadCall(call=2), 0.1)
    for n in range(1, 601):
        for link in (1, 2):
            rig.handle(ask(link, *range(1, n + 1), generation=1), 0.1)
    sizes, granted = [], 0
    while rig._proposed:
        sizes.append(len(c.encode(rig._proposed[0])))
        granted += sum(grant.count for grant in of(rig.commit(0.1), m.SendGrant))
    assert max(sizes) < COMMAND_BYTES_MAX // 2
    assert granted == 1200, "who is left over is in the next batch"


def test_a_long_report_is_counted_in_parts():
    """A frontend that is gone with thousands of runs: one command of them all would not fit into an entry."""
    rig = Rig()
    runs = tuple(
        c.Run(pool=REST, function="f", invocation=f"00000000-0000-0000-0000-{n:012}", incarnation=W1)
        for n in range(4500)
    )
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.SetAccountLimitCall(call=1, account=A, limit=5000), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(hello(1, "fe1"), 0.0)
    for at in range(0, 5000, 1000):
        rig.handle(ask(1, *range(at, at + 1000), generation=1, seen=10**6), 0.1)
    assert rig.ledger.granted(REST) == 5000
    rig.hold = True
    rig.handle(hello(2, "fe1", nonce=2), 0.2)
    rig.commit(0.2)
    rig.handle(m.FenceAcked(link=9, session=Session(frontend="fe1", epoch=1), runs=runs), 0.3)
    sizes = []
    while rig._proposed:
        sizes.append(len(c.encode(rig._proposed[0])))
        assert rig.ledger.granted(REST) == 5000, "nothing is free before the last part"
        rig.commit(0.3)
    assert len(sizes) > 1
    assert max(sizes) < COMMAND_BYTES_MAX
    assert rig.ledger.granted(REST) == 4500
    rig.hold = False
    rig.handle(m.Ended(
        link=9, session=Session(frontend="fe1", epoch=1), pool=REST, invocation=runs[0].invocation
    ), 0.4)
    assert rig.ledger.granted(REST) == 4499


def test_a_count_that_an_earlier_leader_began_is_begun_anew():
    ledger = Ledger()
    session = Session(frontend="fe1", epoch=1)
    stale, runs = (c.Run(pool=REST, function="f", invocation=i, incarnation=W1) for i in ("ended", "runs"))
    apply(
        ledger, c.JoinWorker(incarnation=W1, timeout_cap_s=1), c.OpenSession(frontend="fe1", nonce=1),
        c.Acquire(wishes=(c.Wish(session=session, pool=REST, generation=0, waiting=3, spare=0),)),
        c.MarkDraining(session=session),
        c.CountBlocks(session=session, runs=(stale,), last=False),
    )
    assert ledger.is_draining(session)
    apply(ledger, c.CountBlocks(session=session, runs=(runs,)))
    assert ledger.granted(REST) == 1
    apply(ledger, c.EndOfInvocation(session=session, pool=REST, invocation="runs", incarnation=W1))
    assert ledger.granted(REST) == 0
