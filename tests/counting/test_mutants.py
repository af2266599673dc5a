"""One short test per counting rule whose absence was refuted by the model checker: what goes wrong without it.

Each test is named after the clause that it holds; the rules are those of the ledger's module docstrings. A change of
the ledger or of its leader that makes one of them fail has taken a rule away.
"""

import pytest

from counting import commands as c
from counting import messages as m
from counting.leadership import Timing
from counting.ledger import Ledger
from counting.words import Incarnation, Session, reserved, unreserved
from tests.counting.rig import Rig
from tests.counting.test_core import IMPATIENT, A, ask, hello, limited, of

REST, F = unreserved(A), reserved(A, "f")
W1, W2 = Incarnation(host="h1", nonce=1), Incarnation(host="h2", nonce=1)
S1, S2 = Session(frontend="fe1", epoch=1), Session(frontend="fe2", epoch=1)


def run(invocation, incarnation=W1, pool=REST, function="f"):
    return c.Run(pool=pool, function=function, invocation=invocation, incarnation=incarnation)


def wish(session=S1, pool=REST, generation=0, waiting=1, spare=0):
    return c.Wish(session=session, pool=pool, generation=generation, waiting=waiting, spare=spare)


def apply(ledger, *commands):
    results = ledger.apply(c.decode(c.encode(c.Batch(stamp=1.0, number=1, commands=commands))))
    ledger.check()
    return results


def drained(held=3, workers=(W1, W2)):
    """A ledger of limit `held` whose only frontend holds everything and is gone."""
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=held),
        *(c.JoinWorker(incarnation=worker, timeout_cap_s=9) for worker in workers),
        c.OpenSession(frontend="fe1", nonce=1), c.Acquire(wishes=(wish(generation=1, waiting=held),)),
        c.MarkDraining(session=S1),
    )
    assert ledger.granted(REST) == held
    return ledger


def end(invocation, incarnation=W1):
    return c.EndOfInvocation(session=S1, pool=REST, invocation=invocation, incarnation=incarnation)


# ---------------------------------------------------------------- blocks and their evidence (rules 2, 3, 6)


def test_noevidence_a_counted_block_keeps_what_runs():
    ledger = drained()
    apply(ledger, c.CountBlocks(session=S1, runs=(run("a"), run("b", W2))))
    assert ledger.granted(REST) == 2


def test_endcount_an_end_frees_the_invocation_that_it_names():
    ledger = drained()
    apply(ledger, c.CountBlocks(session=S1, runs=(run("a"), run("b", W2))))
    apply(ledger, end("never reported"), end("a", W2))
    assert ledger.granted(REST) == 2
    apply(ledger, end("a"))
    apply(ledger, end("a"))
    assert ledger.granted(REST) == 1, "an END that comes twice frees once"


def test_sumofreports_a_block_never_grows_by_what_was_reported():
    ledger = drained(held=1)
    apply(ledger, c.CountBlocks(session=S1, runs=(run("a"), run("b"), run("c", W2))))
    assert ledger.granted(REST) == 1


def test_givelate_a_give_back_of_a_counted_epoch_is_refused():
    ledger = drained()
    back = c.GiveBack(session=S1, sequence=1, pool=REST, count=1)
    assert isinstance(apply(ledger, back)[0], c.Fenced)
    apply(ledger, c.CountBlocks(session=S1, runs=(run("a"), run("b"))))
    assert isinstance(apply(ledger, back)[0], c.Fenced)
    assert ledger.granted(REST) == 2, "what runs was freed by what was idle before"


def test_a_block_is_counted_only_when_every_member_has_reported_or_is_gone():
    rig = limited(1)
    for link, worker in ((8, W1), (9, W2)):
        rig.handle(m.Join(link=link, incarnation=worker, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    rig.handle(m.FenceAcked(link=8, session=S1, runs=()), 0.3)
    assert rig.ledger.granted(REST) == 1
    rig.handle(m.FenceAcked(link=9, session=S1, runs=()), 0.4)
    assert rig.ledger.granted(REST) == 0


def test_a_frontend_that_says_goodbye_with_a_grant_on_its_way_is_fenced_also_when_its_stream_ends():
    rig = limited(2)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.hold = True
    rig.handle(m.Goodbye(link=1, sequence=1), 0.2)
    rig.handle(m.LinkLost(link=1), 0.3)
    rig.hold = False
    effects = rig.commit(0.4)
    rig.handle(m.Heartbeat(link=2), 3.0)
    effects += rig.handle(m.Tick(), 4.0)
    assert [(fence.link, fence.session) for fence in of(effects, m.SendFence)] == [(9, S1)]
    rig.handle(m.FenceAcked(link=9, session=S1, runs=()), 4.1)
    assert rig.ledger.granted(REST) == 0
    assert rig.core.proofs.fenced == {"silent": 0, "replaced": 0, "left": 1}


def test_an_end_between_report_and_count_is_taken_out_of_the_report():
    rig = limited(2)
    for link, worker in ((8, W1), (9, W2)):
        rig.handle(m.Join(link=link, incarnation=worker, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, 12, generation=1), 0.1)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    rig.handle(m.FenceAcked(link=8, session=S1, runs=(run("a"), run("b"))), 0.3)
    rig.handle(m.Ended(link=8, session=S1, pool=REST, invocation="a"), 0.4)
    rig.handle(m.FenceAcked(link=9, session=S1, runs=()), 0.5)
    assert rig.ledger.granted(REST) == 1, "its END will not come again"


def test_a_report_on_a_workers_older_stream_says_nothing_any_more():
    rig = limited(2)
    for link, worker in ((8, W1), (9, W2)):
        rig.handle(m.Join(link=link, incarnation=worker, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, 12, generation=1), 0.1)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    rig.handle(m.Join(link=10, incarnation=W1, timeout_cap_s=900.0), 0.3)
    rig.handle(m.FenceAcked(link=10, session=S1, runs=()), 0.4)
    rig.handle(m.FenceAcked(link=8, session=S1, runs=(run("a"),)), 0.5)
    rig.handle(m.FenceAcked(link=9, session=S1, runs=()), 0.6)
    assert rig.ledger.granted(REST) == 0, "a run that had ended was counted by an older report"


# ---------------------------------------------------------------- members (rules 5, 7)


def test_notable_a_join_returns_the_whole_fence_table():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    assert not rig.ledger.is_live(S1)
    [joined] = of(rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.3), m.SendJoined)
    assert S1 in joined.watermarks


def test_fencegc_a_fence_outlives_its_block():
    ledger = drained(workers=())
    apply(ledger, c.CountBlocks(session=S1, runs=()))
    assert S1 not in ledger.sessions
    assert ledger.fences == {"fe1": 1}
    apply(ledger, c.OpenSession(frontend="fe1", nonce=2))
    assert ledger.fences == {"fe1": 1}, "the watermark covers the fenced epoch and not the new one"


def test_noack_who_joins_again_is_asked_for_the_report_that_is_missing():
    rig = limited(1)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(m.LinkLost(link=9), 0.2)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    effects = rig.handle(m.Join(link=10, incarnation=W1, timeout_cap_s=900.0), 0.3)
    assert [fence.session for fence in of(effects, m.SendFence)] == [S1]


def evicted_at(rig, until, step=1.0):
    """When the ledger evicts h1's worker, if nobody says anything; to the second."""
    at = 0.0
    while at < until:
        at += step
        rig.handle(m.Tick(), at)
        if "h1" not in rig.ledger.members:
            return at
    return None


@pytest.mark.parametrize(("timing", "cap", "earliest"), [
    (Timing(authority_s=120.0, grace_s=30.0, drift=0.0), 900.0, 1050.0),
    (Timing(authority_s=20.0, grace_s=5.0, drift=0.0), 3.0, 28.0),
    (Timing(authority_s=100.0, grace_s=0.0, drift=0.5), 100.0, 300.0),
], ids=["early", "notimeout", "nodrift"])
def test_a_silent_worker_is_evicted_after_authority_timeout_grace_and_drift(timing, cap, earliest):
    rig = Rig(timing)
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=cap), 0.0)
    assert evicted_at(rig, 2 * earliest) == earliest


def test_a_worker_whose_stream_broke_before_it_was_a_member_is_evicted_like_any_other():
    rig = Rig(Timing(authority_s=20.0, grace_s=5.0, drift=0.0))
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(hello(1, "fe1"), 0.0)
    rig.hold = True
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=3.0), 0.0)
    rig.handle(m.LinkLost(link=9), 0.1)
    rig.hold = False
    rig.commit(0.5)
    assert rig.ledger.is_member(W1)
    rig.handle(ask(1, 11), 0.6)
    rig.handle(hello(2, "fe1", nonce=2), 0.7)
    rig.handle(m.Tick(), 28.4)
    assert rig.ledger.granted(REST) == 1, "whether it runs something is for it to say, until it is evicted"
    rig.handle(m.Tick(), 28.5)
    assert rig.ledger.granted(REST) == 0


def test_a_join_on_a_stream_that_broke_gives_no_worker_more_time():
    rig = Rig(Timing(authority_s=20.0, grace_s=5.0, drift=0.0))
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=3.0), 0.0)
    rig.handle(m.LinkLost(link=9), 10.0)
    rig.hold = True
    rig.handle(m.Join(link=10, incarnation=W1, timeout_cap_s=3.0), 20.0)
    rig.handle(m.LinkLost(link=10), 20.1)
    rig.hold = False
    rig.commit(20.2)
    rig.handle(m.Tick(), 28.0)
    assert not rig.ledger.is_member(W1), "nothing was answered since: it had authority until 20"


def test_noreset_a_new_leader_starts_every_timer_anew():
    rig = Rig(Timing(authority_s=20.0, grace_s=5.0, drift=0.0))
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=3.0), 0.0)
    rig.handle(hello(1, "fe1"), 0.0)
    rig.handle(ask(1, 11), 0.0)
    rig.handle(m.Deposed(term=4, hint="other"), 1.0)
    rig.handle((m.LinkLost(link=1), m.LinkLost(link=9)), 1.0)
    rig.handle(m.Led(term=5), 27.0)
    rig.handle(m.Tick(), 29.0)
    assert "h1" in rig.ledger.members, "another leader may have answered it a moment ago"
    assert rig.ledger.is_live(S1), "a frontend is given time to find the new leader"
    rig.handle(m.Tick(), 30.1)
    assert not rig.ledger.is_live(S1)
    rig.handle(m.Join(link=10, incarnation=W2, timeout_cap_s=3.0), 31.0)
    rig.handle(m.Tick(), 55.1)
    assert "h1" not in rig.ledger.members


def test_staleleader_a_renewal_is_answered_after_a_quorum_confirmed_the_leader():
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.hold = True
    assert not of(rig.handle(m.Renew(link=9, number=1), 0.1), m.SendRenewed)
    assert of(rig.commit(0.2), m.SendRenewed)
    assert not of(rig.handle(m.Renew(link=9, number=2), 0.3), m.SendRenewed)
    rig.core.handle(m.Deposed(term=4, hint="other"), 0.4)
    assert not of(rig.commit(0.5), m.SendRenewed), "a deposed leader gave authority"


def test_an_evicted_incarnations_runs_are_free_and_it_never_joins_again():
    ledger = drained()
    apply(ledger, c.CountBlocks(session=S1, runs=(run("a"), run("b", W2))))
    apply(ledger, c.EvictWorker(incarnation=W1))
    assert ledger.granted(REST) == 1
    assert isinstance(apply(ledger, c.JoinWorker(incarnation=W1, timeout_cap_s=9))[0], c.MemberGone)


def test_the_ledger_says_of_an_incarnation_that_it_is_gone_only_when_it_is():
    rig = limited(1)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    asked = m.GoneAsked(link=1, incarnations=(W1, W2))
    assert not of(rig.handle(asked, 0.1), m.SendGone), "a member, and one that may be about to join"
    rig.handle(m.Join(link=10, incarnation=Incarnation(host="h1", nonce=2), timeout_cap_s=900.0), 0.2)
    [gone] = of(rig.handle(asked, 0.3), m.SendGone)
    assert gone.incarnations == (W1,)


# ---------------------------------------------------------------- limits (rule 9)


def carved(held=150, value=60):
    """fe1 holds most of the rest, of which f may run; then f gets a reservation. The account has 200."""
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=200), c.JoinWorker(incarnation=W1, timeout_cap_s=9),
        c.OpenSession(frontend="fe1", nonce=1), c.OpenSession(frontend="fe2", nonce=1),
        c.Acquire(wishes=(wish(generation=1, waiting=held),)),
        c.SetReserved(account=A, function="f", value=value),
    )
    return ledger


def test_chargeatack_before_a_holder_has_spoken_its_whole_block_is_charged_to_the_new_pool():
    ledger = carved()
    assert ledger.charge(F) == 150
    assert ledger.free(F) == 0
    assert ledger.precautionary(F), "no proof that it is full: 503, not 429"


def test_oldonly_runs_of_the_old_pool_are_charged_to_the_new_one_until_they_end():
    ledger = carved()
    ack = c.AckGeneration(session=S1, sequence=1, pool=REST, generation=2, moved=(("f", 40),))
    apply(ledger, ack)
    assert ledger.charge(F) == 40
    apply(ledger, c.GiveBack(session=S1, sequence=2, pool=REST, count=30, function="f"))
    assert ledger.charge(F) == 10
    assert not ledger.precautionary(F) or ledger.free(F) > 0


def test_newonly_runs_that_moved_are_still_charged_to_the_old_pool():
    ledger = carved()
    apply(ledger, c.AckGeneration(session=S1, sequence=1, pool=REST, generation=2, moved=(("f", 40),)))
    assert ledger.charge(REST) == 150
    assert ledger.free(REST) == 0, "140 are the rest's limit"


def test_fencednoxcharge_draining_and_counted_blocks_are_charged_to_the_new_pool():
    ledger = carved()
    apply(ledger, c.MarkDraining(session=S1))
    assert ledger.charge(F) == 150
    runs = (*(run(f"f{n}") for n in range(5)), *(run(f"g{n}", function="g") for n in range(3)))
    apply(ledger, c.CountBlocks(session=S1, runs=runs))
    assert ledger.charge(F) == 5
    # And where the change comes after the count.
    apply(ledger, c.SetReserved(account=A, function="g", value=3))
    assert ledger.charge(reserved(A, "g")) == 3
    apply(ledger, end("f0"))
    assert ledger.charge(F) == 4


def test_noacct_a_permit_that_moves_to_another_pool_is_not_made():
    ledger = carved(held=190)
    apply(ledger, c.AckGeneration(session=S1, sequence=1, pool=REST, generation=2, moved=()))
    assert ledger.charge(F) == 0
    assert ledger.free(F) == 10, "60 are reserved, and 10 of the account's 200 are not out"


def test_a_reservation_given_up_is_charged_to_the_rest_until_its_runs_end():
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=200), c.SetReserved(account=A, function="f", value=50),
        c.OpenSession(frontend="fe1", nonce=1), c.Acquire(wishes=(wish(pool=F, generation=2, waiting=50),)),
        c.SetReserved(account=A, function="f", value=None),
    )
    assert ledger.charge(REST) == 50
    assert ledger.free(REST) == 150
    assert ledger.outstanding(F) == [S1]


def test_oldgengrant_who_has_not_seen_the_generation_gets_nothing():
    ledger = carved(held=10)
    [stale] = apply(ledger, c.Acquire(wishes=(wish(generation=1),)))
    assert (stale.grants, len(stale.stale)) == ((), 1)
    [holds] = apply(ledger, c.Acquire(wishes=(wish(generation=2),)))
    assert holds.grants == (), "it knows the new one and holds a block of the old: first it says what runs of it"
    [behind, other] = apply(
        ledger, c.Acquire(wishes=(wish(session=S2, generation=1),)),
        c.Acquire(wishes=(wish(session=S2, generation=2),)),
    )
    assert behind.grants == (), "it holds nothing, and would start f from the rest"
    assert other.grants


@pytest.mark.parametrize("draining", [False, True], ids=["nogen", "putonmark"])
def test_put_returns_when_every_holder_acknowledged_or_was_fenced_and_counted(draining):
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(hello(1, "fe1"), 0.0)
    rig.handle(ask(1, 11, 12), 0.1)
    effects = rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=3), 0.2)
    if draining:
        effects += rig.handle(hello(2, "fe1", nonce=2), 0.3)
        assert rig.ledger.draining(REST) == [S1]
    assert not of(effects, m.AnswerLimit), "what it holds may still be used under the old limits"
    if draining:
        effects = rig.handle(m.FenceAcked(link=9, session=S1, runs=(run("a"),)), 0.4)
    else:
        effects = rig.handle(m.GenerationAcked(link=1, sequence=1, pool=REST, generation=1, moved=(("f", 1),)), 0.4)
    [answer] = of(effects, m.AnswerLimit)
    assert answer.outstanding == ()


# ---------------------------------------------------------------- refusals (rule 4)

ROUND = 3 << 32 | 1


def test_oldround_a_round_serves_nobody_who_came_after_it_began():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.handle(ask(2, 21, 22, generation=1), 0.3)
    effects = rig.handle(m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=1), 0.4)
    assert [refusal.waiting for refusal in of(effects, m.SendThrottled)] == [(21,)]
    assert [recall.round for recall in of(effects, m.SendRecall)] == [ROUND + 1], "the other gets a round of its own"


def test_silent429_a_silent_holder_is_no_proof():
    rig = limited(1, timing=IMPATIENT)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    effects = rig.handle(m.Tick(), 0.7)
    assert not of(effects, m.SendThrottled)
    assert [refusal.silent for refusal in of(effects, m.SendUnavailable)] == [("fe1",)]


def test_drainasused_a_block_that_is_not_yet_counted_is_no_proof():
    rig = limited(1, timing=IMPATIENT)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(hello(3, "fe1", nonce=2), 0.2)
    effects = rig.handle(ask(2, 21, generation=1), 0.3)
    assert not of(effects, m.SendThrottled)
    assert of(effects, m.SendUnavailable)


def test_a_precautionary_charge_is_no_proof():
    rig = Rig(IMPATIENT)
    rig.handle(m.Led(term=3), 0.0)
    for link in (1, 2):
        rig.handle(hello(link, f"fe{link}"), 0.0)
    rig.handle(ask(1, *range(5)), 0.1)
    rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=2), 0.2)
    rig.handle(ask(2, 21, pool=F, generation=1), 0.3)
    effects = rig.handle(m.RecallAnswered(link=1, round=ROUND, pool=F, given_back=0, in_use=0), 0.4)
    assert not of(effects, m.SendThrottled)
    assert of(effects, m.SendUnavailable)


def moved(timing=None):
    """fe2 runs one of f by the rest, and has said so: f's reservation of one is used up. Its worker is on link 9."""
    rig = Rig(timing)
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    for link in (1, 2):
        rig.handle(hello(link, f"fe{link}"), 0.0)
    rig.handle(ask(2, 21), 0.1)
    rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=1), 0.2)
    rig.handle(m.GenerationAcked(link=2, sequence=1, pool=REST, generation=1, moved=(("f", 1),)), 0.3)
    return rig


def given_up(timing=None):
    """fe2 runs by a reservation of f that was given up, and has said so: the whole account is charged with it."""
    rig = limited(2, timing=timing)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(m.SetAccountLimitCall(call=4, account=A, limit=102), 0.0)
    rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=2), 0.0)
    rig.handle(m.SetAccountLimitCall(call=6, account=A, limit=2), 0.0)
    rig.handle(ask(2, 21, 22, pool=F, generation=rig.ledger.generation(F)), 0.1)
    rig.handle(m.SetReservedCall(call=7, account=A, function="f", value=None), 0.2)
    generation = rig.ledger.generation(F)
    rig.handle(m.GenerationAcked(link=2, sequence=1, pool=F, generation=generation, moved=(("f", 2),)), 0.3)
    return rig


@pytest.mark.parametrize(("crossing", "pool", "own"), [(moved, F, REST), (given_up, REST, F)], ids=["moved", "ghost"])
def test_movedunasked_whose_runs_are_charged_from_another_pool_is_asked_before_a_refusal(crossing, pool, own):
    rig = crossing()
    effects = rig.handle(ask(1, 11, pool=pool, generation=rig.ledger.generation(pool)), 0.4)
    assert not of(effects, m.SendThrottled), "what runs there may have ended, its give-back is on its way"
    assert [(recall.link, recall.pool) for recall in of(effects, m.SendRecall)] == [(2, pool)]
    effects = rig.handle((
        m.GaveBack(link=2, sequence=2, pool=own, count=1, function="f"),
        m.RecallAnswered(link=2, round=ROUND, pool=pool, given_back=0, in_use=0),
    ), 0.5)
    assert not of(effects, m.SendThrottled)
    assert [(grant.link, grant.count) for grant in of(effects, m.SendGrant)] == [(1, 1)]


@pytest.mark.parametrize(("crossing", "pool"), [(moved, F), (given_up, REST)], ids=["moved", "ghost"])
def test_moveddrainasused_a_block_of_another_pool_that_is_not_yet_counted_is_no_proof(crossing, pool):
    rig = crossing(IMPATIENT)
    rig.handle(hello(3, "fe2", nonce=2), 0.4)
    effects = rig.handle(ask(1, 11, pool=pool, generation=rig.ledger.generation(pool)), 0.5)
    assert not of(effects, m.SendThrottled), "which of its runs still run, its worker hasn't said"
    assert [refusal.silent for refusal in of(effects, m.SendUnavailable)] == [("fe2",)]
    rig.handle(m.FenceAcked(link=9, session=S2, runs=()), 0.6)
    assert rig.ledger.free(pool) > 0


def test_a_refusal_without_a_proof_says_truly_what_is_missing():
    """The account is full of the rest's permits when f gets a reservation: what f's requests hear, step by step."""
    def refused(at, answers=False):
        rig.handle(m.Heartbeat(link=1), at)
        effects = rig.handle(ask(2, at, pool=F, generation=2), at)
        for recall in of(effects, m.SendRecall) if answers else ():
            answer = m.RecallAnswered(link=recall.link, round=recall.round, pool=F, given_back=0, in_use=0)
            effects = rig.handle(answer, at + 0.1)
        [refusal] = of(effects, m.SendUnavailable)
        return refusal.reason, refusal.silent

    rig = limited(200, timing=IMPATIENT)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, *range(200), generation=1), 0.1)
    rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=60), 0.2)
    assert refused(1, answers=True) == ("a change of limits isn't acknowledged everywhere yet", ("fe1",))
    rig.handle(m.GenerationAcked(link=1, sequence=1, pool=REST, generation=2), 1.5)
    assert refused(2) == ("runs of another pool, begun before a change of limits, still take its room", ())
    rig.handle(hello(3, "fe1", nonce=2), 2.5)
    assert refused(3) == ("a frontend that is gone holds permits not yet counted", ("fe1",))
    rig.handle(m.FenceAcked(link=9, session=S1, runs=tuple(run(f"g{n}", function="g") for n in range(200))), 3.5)
    assert refused(4) == ("runs of another pool, begun before a change of limits, still take its room", ())
    [pool] = [pool for pool in rig.core.report(A, 4.0) if pool.pool == F]
    assert pool.refusals == {"pending change": 1, "other pools' runs": 2, "not yet counted": 1}


def test_a_block_of_the_rest_that_is_draining_is_told_as_such_before_it_ever_acknowledged():
    rig = Rig(IMPATIENT)
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.Join(link=9, incarnation=W1, timeout_cap_s=900.0), 0.0)
    for link in (1, 2):
        rig.handle(hello(link, f"fe{link}"), 0.0)
    rig.handle(ask(2, 21), 0.1)
    rig.handle(hello(3, "fe2", nonce=2), 0.2)
    rig.handle(m.SetReservedCall(call=5, account=A, function="f", value=1), 0.3)
    [refusal] = of(rig.handle(ask(1, 11, pool=F, generation=1), 0.4), m.SendUnavailable)
    assert (refusal.reason, refusal.silent) == ("a frontend that is gone holds permits not yet counted", ("fe2",))


def test_unordered_what_came_before_an_answer_is_applied_before_the_round_closes():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    effects = rig.handle((
        m.GaveBack(link=1, sequence=1, pool=REST, count=1),
        m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=0),
    ), 0.3)
    assert not of(effects, m.SendThrottled), "its give-back is still on the way through the log"
    rig.hold = False
    effects = rig.commit(0.4)
    assert not of(effects, m.SendThrottled)
    assert [(grant.link, grant.count) for grant in of(effects, m.SendGrant)] == [(2, 1)]


def test_staleclose_a_round_is_closed_by_a_quorum_that_confirmed_the_leader_after_it():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    answer = m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=1)
    assert not of(rig.handle(answer, 0.3), m.SendThrottled)
    rig.core.handle(m.Deposed(term=4, hint="other"), 0.4)
    assert not of(rig.commit(0.5), m.SendThrottled)


def test_a_round_that_waits_for_a_batch_under_way_is_closed_by_a_later_one():
    """The batch under way was proposed before the last answer: its commit proves nothing about what came after it."""
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    rig.handle(m.ReadCall(call=9), 0.3)
    rig.handle(m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=1), 0.4)
    assert not of(rig.commit(0.5), m.SendThrottled)
    assert of(rig.commit(0.6), m.SendThrottled)


def test_anyorder_while_requests_wait_a_free_permit_goes_to_the_oldest_and_to_no_top_up():
    rig = limited(64, frontends=3)
    rig.handle(ask(1, *range(64), generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.handle(ask(3, 31, generation=1, spare=40), 0.2)
    effects = rig.handle((
        m.GaveBack(link=1, sequence=1, pool=REST, count=1),
        m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=1, in_use=63),
    ), 0.3)
    assert [(grant.link, grant.count) for grant in of(effects, m.SendGrant)] == [(2, 1)]
    effects = rig.handle(m.GaveBack(link=1, sequence=2, pool=REST, count=2), 0.4)
    assert [(grant.link, grant.count) for grant in of(effects, m.SendGrant)] == [(3, 1)], "its request, and no top-up"


def test_anyorder_in_the_ledger_no_top_up_while_a_request_of_the_same_batch_got_nothing():
    ledger = Ledger()
    apply(ledger, c.SetAccountLimit(account=A, limit=3), *(c.OpenSession(frontend=f"fe{n}", nonce=1) for n in (1, 2)))
    [done] = apply(ledger, c.Acquire(wishes=(
        wish(S1, generation=1, waiting=1, spare=5), wish(S2, generation=1, waiting=5, spare=0),
    )))
    assert [(g.session, g.waiting, g.spare) for g in done.grants] == [(S1, 1, 0), (S2, 2, 0)]


def test_reuseround_a_round_number_is_never_used_by_two_leaders():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    [first] = of(rig.handle(ask(2, 21, generation=1), 0.2), m.SendRecall)
    rig.handle(m.Deposed(term=4, hint="other"), 0.3)
    rig.handle(m.Led(term=5), 0.4)
    [second] = of(rig.handle(ask(2, 21, generation=1), 0.5), m.SendRecall)
    assert second.round != first.round
    late = rig.handle(m.RecallAnswered(link=1, round=first.round, pool=REST, given_back=0, in_use=1), 0.6)
    assert not of(late, m.SendThrottled), "an answer to the old leader's round closed the new leader's"


# ---------------------------------------------------------------- leaders (rule 10)


def test_a_read_is_answered_after_a_quorum_confirmed_the_leader():
    rig = limited(1)
    rig.hold = True
    assert not of(rig.handle(m.ReadCall(call=9), 0.1), m.AnswerRead)
    rig.core.handle(m.Deposed(term=4, hint="other"), 0.2)
    assert not of(rig.commit(0.3), m.AnswerRead)


def test_a_command_is_applied_once():
    ledger = Ledger()
    apply(ledger, c.OpenSession(frontend="fe1", nonce=1), c.Acquire(wishes=(wish(waiting=3),)))
    back = c.GiveBack(session=S1, sequence=1, pool=REST, count=1)
    apply(ledger, back, back)
    apply(ledger, back)
    assert ledger.granted(REST) == 2


def test_a_session_whose_stream_broke_before_it_was_opened_is_suspected_like_any_other():
    rig = Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.hold = True
    rig.handle(hello(1, "fe1"), 0.0)
    rig.handle(m.LinkLost(link=1), 0.1)
    rig.hold = False
    rig.commit(0.2)
    assert rig.ledger.is_live(S1)
    rig.handle(m.Tick(), 3.3)
    assert not rig.ledger.is_live(S1)


# ---------------------------------------------------------------- what operators see


def test_the_report_names_who_holds_who_drains_and_who_is_waited_for():
    rig = limited(4)
    for link, worker in ((8, W1), (9, W2)):
        rig.handle(m.Join(link=link, incarnation=worker, timeout_cap_s=900.0), 0.0)
    rig.handle(ask(1, 11, 12, generation=1), 0.1)
    rig.handle(ask(2, 21, 22, generation=1), 0.1)
    rig.handle(m.Heartbeat(link=2, holdings=(m.Holding(pool=REST, in_use=1),)), 0.2)
    rig.handle(hello(3, "fe1", nonce=2), 1.0)
    rig.handle(m.FenceAcked(link=8, session=S1, runs=(run("a"),)), 1.0)
    [pool] = rig.core.report(A, 1.0)
    gone, live = pool.holders
    assert (live.session, live.size, live.in_use, live.waits_for) == (S2, 2, 1, ())
    assert (gone.session, gone.size, gone.waits_for) == (S1, 2, ("h2",))
    assert gone.free_in_s == pytest.approx((120 + 900 + 30) * 1.01 - 1.0)
    rig.handle(m.FenceAcked(link=9, session=S1, runs=()), 1.1)
    [pool] = rig.core.report("", 1.1)
    assert [(h.state.name, h.size, h.in_use) for h in pool.holders] == [("COUNTED", 1, 1), ("LIVE", 2, 1)]
    rig.handle(m.Heartbeat(link=2, holdings=(m.Holding(pool=REST, in_use=0),)), 1.2)
    [pool] = rig.core.report(A, 1.2)
    assert [h.in_use for h in pool.holders] == [1, 0]


def test_the_report_counts_refusals_by_reason_and_names_who_holds_a_change_up():
    rig = limited(1, timing=IMPATIENT)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.handle(m.RecallAnswered(link=1, round=ROUND, pool=REST, given_back=0, in_use=1), 0.3)
    rig.handle(ask(2, 22, 23, generation=1), 0.4)
    rig.handle(m.Tick(), 1.0)
    rig.handle(m.SetAccountLimitCall(call=9, account=A, limit=2), 1.1)
    [pool] = rig.core.report(A, 1.1)
    assert pool.refusals == {"limit": 1, "silent holder": 2}
    [(node, binds_in_s)] = pool.outstanding
    assert node == "fe1"
    assert 0 < binds_in_s <= 3.0, "nobody runs anything: at the latest when it is suspected"
