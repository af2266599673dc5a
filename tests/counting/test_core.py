"""Stories of the leader's core: golden files beside this module say what it does, event by event."""

from typing import Any

import pytest

from counting import commands as c
from counting import messages as m
from counting.commands import Run
from counting.leadership import Gathering, Timing
from counting.words import Incarnation, Session, reserved, unreserved
from tests.counting.rig import Rig

A = "000000000000"
REST = unreserved(A)
F = reserved(A, "f")


def hello(link: int, frontend: str, nonce: int = 1, epoch: int = 0) -> m.Hello:
    return m.Hello(link=link, frontend=frontend, nonce=nonce, epoch=epoch)


def ask(link: int, *ids: int, pool=REST, generation: int = 0, spare: int = 0, seen: int = 0) -> m.Ask:
    return m.Ask(link=link, pool=pool, generation=generation, waiting=ids, spare=spare, seen=seen)


IMPATIENT = Timing(unproven_s=0.0)     # refuses without a proof as soon as a round has found none


def limited(limit: int, frontends: int = 2, timing: Timing | None = None) -> Rig:
    """A leader of an account whose whole limit is `limit`, with frontends fe1, fe2, ... on links 1, 2, ..."""
    rig = Rig(timing)
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.SetAccountLimitCall(call=1, account=A, limit=limit), 0.0)
    for n in range(1, frontends + 1):
        rig.handle(hello(n, f"fe{n}"), 0.0)
    return rig


def of(effects: list[m.Effect], *kinds: type) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kinds)]


def test_first_grant_and_top_up(story):
    rig = Rig()
    story(rig, [
        (0.0, m.Led(term=3)),
        "a frontend says hello: a session, and no limits of its own yet",
        (0.0, hello(1, "fe1")),
        "two requests wait: a block; the account has room, so the top-up comes along",
        (0.1, ask(1, 11, 12, spare=20)),
        "the same wish again, sent before the grant was seen, counts once",
        (0.1, ask(1, 11, 12)),
    ])


def test_proven_refusal(story):
    rig = limited(2)
    story(rig, [
        "fe1 takes the whole limit",
        (0.1, ask(1, 11, 12, generation=1)),
        "fe2 asks: nothing is free, so a round begins; fe1 has nothing idle",
        (0.2, ask(2, 21, generation=1)),
        "a later request isn't served by that round",
        (0.2, ask(2, 21, 22, generation=1)),
        (0.3, m.RecallAnswered(link=1, round=3 << 32 | 1, pool=REST, given_back=0, in_use=2)),
        "its own round does serve it",
        (0.4, m.RecallAnswered(link=1, round=3 << 32 | 2, pool=REST, given_back=0, in_use=2)),
    ])


def test_recalled_permit_goes_to_the_oldest(story):
    rig = limited(2, frontends=3)
    story(rig, [
        (0.1, ask(1, 11, 12, generation=1)),
        "fe2 asks before fe3, fe3 also wishes a top-up",
        (0.2, ask(2, 21, generation=1)),
        (0.2, ask(3, 31, generation=1, spare=5)),
        "one of fe1's permits was idle: fe2 gets it, and the round refuses nobody",
        (0.3, (
            m.GaveBack(link=1, sequence=1, pool=REST, count=1),
            m.RecallAnswered(link=1, round=3 << 32 | 1, pool=REST, given_back=1, in_use=1),
        )),
        "fe3's round: fe1 and fe2 use what they have",
        (0.4, m.RecallAnswered(link=1, round=3 << 32 | 2, pool=REST, given_back=0, in_use=1)),
        (0.4, m.RecallAnswered(link=2, round=3 << 32 | 2, pool=REST, given_back=0, in_use=1)),
    ])


def test_silent_holder_is_no_proof(story):
    rig = limited(1, timing=Timing(unproven_s=5.0))
    story(rig, [
        (0.0, m.Join(link=9, incarnation=Incarnation(host="h1", nonce=7), timeout_cap_s=900.0)),
        (0.1, ask(1, 11, generation=1)),
        (0.2, ask(2, 21, generation=1)),
        "fe1 doesn't answer: no proof, so that who waits goes on waiting; the next round begins a little later",
        (0.7, m.Tick()),
        (0.95, m.Tick()),
        "fe1 is silent for 3 s: fenced, and not yet counted",
        (1.0, m.Heartbeat(link=2)),
        (3.2, m.Tick()),
        (3.3, ask(2, 21, 22, generation=1)),
        (3.7, m.Heartbeat(link=2)),
        (3.7, m.Tick()),
        (4.0, m.RecallAnswered(link=2, round=3 << 32 | 3, pool=REST, given_back=0, in_use=0)),
        "who has waited for 5 s is refused with 503, not 429; who came later still waits",
        (5.3, m.Tick()),
        "the worker says that nothing of it runs: its permit is free, and goes to the one who waits",
        (5.4, m.FenceAcked(link=9, session=Session(frontend="fe1", epoch=1), runs=())),
    ])


def test_killed_frontend_comes_back_by_ends(story):
    rig = limited(2)
    worker = Incarnation(host="h1", nonce=7)
    old = Session(frontend="fe1", epoch=1)
    run = Run(pool=REST, function="f", invocation="i-1", incarnation=worker)
    story(rig, [
        (0.0, m.Join(link=9, incarnation=worker, timeout_cap_s=900.0)),
        (0.1, ask(1, 11, 12, generation=1)),
        "another process of fe1: the older session is fenced at every member",
        (0.2, hello(3, "fe1", nonce=2)),
        "not yet counted: no proof, it waits",
        (0.2, ask(2, 21, generation=1)),
        "the worker fenced it and runs one of the two: the other permit is free",
        (0.3, m.FenceAcked(link=9, session=old, runs=(run,))),
        (0.4, ask(2, 22, generation=1)),
        "an END of an id that was not reported changes nothing",
        (0.5, m.Ended(link=9, session=old, pool=REST, invocation="i-9")),
        "the END that was: free",
        (0.6, m.Ended(link=9, session=old, pool=REST, invocation="i-1")),
        (0.7, ask(2, 23, generation=1)),
    ])


def test_reserved_zero_binds_the_next_request(story):
    rig = Rig()
    story(rig, [
        (0.0, m.Led(term=3)),
        (0.0, (hello(1, "fe1"), hello(2, "fe2"))),
        (0.1, ask(1, 11, 12)),
        "f is switched off: fe1 holds permits of the rest, which f may be using",
        (0.2, m.SetReservedCall(call=5, account=A, function="f", value=0)),
        "a wish that doesn't know it yet is refused",
        (0.2, ask(2, 21)),
        "fe1 gives back what is idle and says what of f still runs: now it binds",
        (0.3, (
            m.GaveBack(link=1, sequence=1, pool=REST, count=1),
            m.GenerationAcked(link=1, sequence=2, pool=REST, generation=1, moved=(("f", 1),)),
        )),
        "the next request of f: fe1 is asked, whose run of the rest is all that f is charged with",
        (0.4, ask(2, 22, pool=F, generation=1)),
        (0.5, m.RecallAnswered(link=1, round=3 << 32 | 1, pool=F, given_back=0, in_use=0)),
    ])


def test_change_of_limits_waits_ten_seconds_at_most(story):
    rig = Rig()
    story(rig, [
        (0.0, m.Led(term=3)),
        (0.0, hello(1, "fe1")),
        (0.1, ask(1, 11)),
        (0.2, m.SetReservedCall(call=5, account=A, function="f", value=10)),
        "the reservation can't be used while fe1 may run f under the old limits: 503",
        (0.2, m.GenerationAcked(link=1, sequence=1, pool=F, generation=1)),
        (0.3, ask(1, 12, pool=F, generation=1)),
        *((t / 2, m.Heartbeat(link=1)) for t in range(1, 20)),
        (10.2, m.Tick()),
    ])


def test_floor_of_the_rest(story):
    story(Rig(), [
        (0.0, m.Led(term=3)),
        (0.1, m.SetReservedCall(call=5, account=A, function="f", value=900)),
        (0.1, m.SetReservedCall(call=6, account=A, function="g", value=1)),
        "equal to what is: nothing changes",
        (0.1, m.SetReservedCall(call=7, account=A, function="f", value=900)),
        "given up",
        (0.1, m.SetReservedCall(call=8, account=A, function="f", value=None)),
        (0.1, m.SetReservedCall(call=9, account=A, function="g", value=1)),
    ])


def test_followers_answer_not_leader_and_welcome_when_they_lead(story):
    rig = Rig()
    story(rig, [
        (0.0, m.Deposed(term=2, hint="counting-2")),
        (0.0, hello(1, "fe1")),
        (0.0, m.SetReservedCall(call=5, account=A, function="f", value=1)),
        "it leads: whoever said hello is welcomed without asking again",
        (1.0, m.Led(term=3)),
        (1.1, ask(1, 11)),
        "and is sent on when it doesn't lead any more",
        (1.2, m.ReadCall(call=6)),
        (2.0, m.Deposed(term=4, hint="counting-3")),
    ])


def test_worker_renewals_and_eviction(story):
    rig = Rig()
    first, second = Incarnation(host="h1", nonce=7), Incarnation(host="h1", nonce=8)
    story(rig, [
        (0.0, m.Led(term=3)),
        (0.0, m.Join(link=9, incarnation=first, timeout_cap_s=900.0)),
        "authority is answered only after a commit: a quorum confirmed this leader since the renewal came",
        (10.0, m.Renew(link=9, number=1)),
        "a new incarnation of the host is proof that the older one is gone",
        (20.0, m.Join(link=10, incarnation=second, timeout_cap_s=900.0)),
        (21.0, m.Renew(link=9, number=2)),
        "which may never come back",
        (22.0, m.Join(link=11, incarnation=first, timeout_cap_s=900.0)),
        "silent beyond authority, timeout and grace: evicted",
        (1081.0, m.Tick()),
        (1090.0, m.Tick()),
        (1090.0, m.Renew(link=10, number=1)),
    ])


def test_a_host_is_declared_dead(story):
    rig = limited(3, frontends=1)
    first, second = Incarnation(host="h1", nonce=7), Incarnation(host="h1", nonce=8)
    run = Run(pool=REST, function="f", invocation="i1", incarnation=first)
    story(rig, [
        (0.1, m.Join(link=9, incarnation=first, timeout_cap_s=900.0)),
        "fe1 takes everything and falls silent; the worker says that one of these runs, and falls silent as well",
        (0.2, ask(1, 11, 12, 13, generation=1)),
        (3.3, m.Tick()),
        (3.4, m.FenceAcked(link=9, session=Session(frontend="fe1", epoch=1), runs=(run,))),
        (3.5, hello(2, "fe2")),
        (3.5, ask(2, 21, 22, 23, generation=1)),
        "an operator says that it is dead while its stream is still open: he is not believed",
        (4.0, m.DeclareDeadCall(call=5, incarnation=first)),
        "its stream breaks, he says it again: its permit is free at once, and every frontend is told",
        (6.0, m.LinkLost(link=9)),
        (6.1, m.DeclareDeadCall(call=6, incarnation=first)),
        (6.2, ask(2, 24, generation=1)),
        "said twice, it changes nothing",
        (7.0, m.DeclareDeadCall(call=7, incarnation=first)),
        "it was not dead: it may not come back, and gets no authority any more",
        (8.0, m.Renew(link=9, number=1)),
        (8.1, m.Join(link=10, incarnation=first, timeout_cap_s=900.0)),
        "its next life may; that one is connected, and he insists: it is told at once",
        (9.0, m.Join(link=11, incarnation=second, timeout_cap_s=900.0)),
        (9.1, m.DeclareDeadCall(call=8, incarnation=second, force=True)),
        (9.2, m.Renew(link=11, number=1)),
    ])


def test_recall_follows_grants_still_in_the_log():
    """A round may not begin while a grant is on its way through the log: its holder would be recalled too early."""
    rig = limited(1)
    rig.hold = True
    rig.handle(ask(1, 11, generation=1), 0.1)
    assert not of(rig.handle(ask(2, 21, generation=1), 0.1), m.SendRecall)
    effects = rig.commit(0.2)
    kinds = [type(effect) for effect in effects if isinstance(effect, m.SendGrant | m.SendRecall)]
    assert kinds == [m.SendGrant, m.SendRecall]


def test_refusal_waits_for_a_commit_after_the_last_answer():
    """The commit that closes a round proves that this leader still led after everybody had answered."""
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    answer = m.RecallAnswered(link=1, round=3 << 32 | 1, pool=REST, given_back=0, in_use=1)
    assert not of(rig.handle(answer, 0.3), m.SendThrottled)
    assert of(rig.commit(0.4), m.SendThrottled)


def test_deposed_leader_never_closes_its_round():
    rig = limited(1)
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.hold = True
    rig.handle(m.RecallAnswered(link=1, round=3 << 32 | 1, pool=REST, given_back=0, in_use=1), 0.3)
    rig.handle(m.Deposed(term=4, hint="other"), 0.4)
    assert not of(rig.commit(0.5), m.SendThrottled)
    effects = rig.handle(m.Led(term=5), 0.6)
    assert not of(effects, m.SendThrottled, m.SendRecall)
    rig.hold = False
    effects = rig.handle(ask(2, 21, generation=1), 0.7)
    assert of(effects, m.SendRecall)[0].round == 5 << 32 | 1


def test_small_pools_are_exact():
    rig = limited(10)
    effects = rig.handle(ask(1, 11, generation=1, spare=5), 0.1)
    assert [grant.count for grant in of(effects, m.SendGrant)] == [1]


def test_lost_command_is_asked_for_again():
    rig = limited(2)
    rig.handle(ask(1, 11, 12, generation=1), 0.1)
    effects = rig.handle(m.GaveBack(link=1, sequence=2, pool=REST, count=1), 0.2)
    assert [welcome.applied for welcome in of(effects, m.SendWelcome)] == [0]
    again = m.GaveBack(link=1, sequence=1, pool=REST, count=1)
    rig.handle((again, again), 0.3)
    assert rig.ledger.granted(REST) == 1


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_waiters_share_a_limit_and_the_rest_is_refused(limit: int):
    rig = limited(limit, frontends=3)
    granted = sum(
        grant.count
        for n in range(limit)
        for grant in of(rig.handle(ask(n % 3 + 1, *range(n, -1, -3), generation=1, seen=10**6), 0.1), m.SendGrant)
    )
    assert rig.ledger.granted(REST) >= limit
    assert granted >= limit


def test_the_batch_of_the_next_leader_answers_nobody_here():
    """Its entry can be applied here before this member learns that it no longer leads (found by tests/walks)."""
    rig, other = Rig(), Rig()
    rig.handle(m.Led(term=3), 0.0)
    rig.hold = True
    rig.handle(m.SetReservedCall(call=1, account=A, function="f", value=10), 0.0)
    other.handle(m.Led(term=4), 0.0)
    [batch] = [e.batch for e in other.handle(m.ReadCall(call=9), 0.0) if isinstance(e, m.Propose)]
    effects = rig.core.handle(m.Committed(index=1, batch=batch, results=()), 0.1)
    assert not effects, "another leader's commit confirmed this one, or was taken for its own batch"
    [refused] = of(rig.handle(m.Deposed(term=4, hint="counting-az2"), 0.1), m.AnswerNotLeader)
    assert refused.call == 1


# ---------------------------------------------------------------- batches


def test_a_command_that_weighs_more_than_a_batch_goes_alone():
    session = Session(frontend="frontend-az1-1", epoch=7)
    moved = tuple((f"{n:064}", 1000) for n in range(3000))
    ack = c.AckGeneration(session=session, sequence=1, pool=REST, generation=1, moved=moved)
    gathering = Gathering()
    for command in (c.MarkDraining(session=session), ack, c.SetAccountLimit(account=A, limit=5)):
        gathering.add(command)
    batches: list[list[c.Command]] = []
    while gathering and len(batches) < 9:
        first, gathering = gathering.split()
        batches.append(first.commands)
    assert [[type(command) for command in commands] for commands in batches] == [
        [c.MarkDraining], [c.AckGeneration], [c.SetAccountLimit]
    ]
    encoded = c.encode(c.Batch(stamp=1.7e9, number=3 << 32, commands=(ack,)))
    assert len(encoded) < 300_000, "an entry of the log has room for three of them"


def test_what_is_heavy_holds_nobody_up():
    rig = limited(10)
    rig.hold = True
    moved = tuple((f"f{n}", 1) for n in range(1365))
    rig.handle((
        m.GenerationAcked(link=1, sequence=1, pool=REST, generation=1, moved=moved),
        m.SetAccountLimitCall(call=3, account=A, limit=5),
    ), 0.1)
    rig.commit(0.2)
    rig.commit(0.3)
    assert rig.ledger.limit(REST) == 5
