"""What a member of counting shows: amounts, not messages; the leader's pools, up to a bound."""

from chassis.metrics import LABEL_SETS_MAX, OTHER, Metrics
from counting import messages as m
from counting.leadership import Timing
from counting.metrics import measure
from counting.words import Incarnation, reserved
from tests.counting.rig import Rig
from tests.counting.test_core import REST, A, ask, hello


def watched():
    """A leader of two frontends, with a limit of 3, and what it counts."""
    rig, metrics = Rig(), Metrics()
    tally, handle = measure(metrics, rig.core, lambda: None), rig.core.handle

    def seen(event, now):
        effects = handle(event, now)
        tally(event, effects)
        return effects

    rig.core.handle = seen  # type: ignore[method-assign]  # as a driver does it
    rig.handle(m.Led(term=3), 0.0)
    rig.handle(m.SetAccountLimitCall(call=1, account=A, limit=3), 0.0)
    rig.handle(hello(1, "fe1"), 0.0)
    rig.handle(hello(2, "fe2"), 0.0)
    return rig, lambda name: metrics.families[f"labda_counting_{name}"].read()


def test_permits_and_refusals_are_counted_one_by_one():
    rig, read = watched()
    rig.handle(ask(1, 11, 12, 13, generation=1), 0.1)
    assert read("grants_total") == {(): 3}
    rig.handle(ask(2, 21, 22, generation=1), 0.2)
    assert read("permits_waiting") == {(A, "", "unreserved"): 2}
    answer = m.RecallAnswered(
        link=1, round=rig.core.desks[REST].round.number, pool=REST, given_back=0, in_use=3
    )
    rig.handle(answer, 0.3)
    assert read("refusals_total") == {("throttled",): 2, ("unproven",): 0}
    assert read("recall_rounds_total") == {(): 1}
    assert read("permits_granted") == read("permits_limit") == {(A, "", "unreserved"): 3}
    assert read("permits_in_use") == {(A, "", "unreserved"): 3}
    rig.handle(m.GaveBack(link=1, sequence=1, pool=REST, count=2, function=""), 0.4)
    assert read("give_backs_total") == {(): 2}
    assert read("permits_granted") == {(A, "", "unreserved"): 1}


def test_a_silent_holder_is_an_unproven_refusal_then_a_fence():
    rig, read = watched()
    rig.handle(m.Join(link=9, incarnation=Incarnation(host="h1", nonce=1), timeout_cap_s=3.0), 0.0)
    rig.handle(ask(1, 11, 12, 13, generation=1), 0.1)
    rig.handle(ask(2, 21, generation=1), 0.2)
    rig.handle(m.Tick(), 1.0)
    assert read("refusals_total") == {("throttled",): 0, ("unproven",): 0}
    rig.handle(m.Heartbeat(link=2), 3.0)
    rig.handle(m.Tick(), 3.5)
    rig.handle(m.Heartbeat(link=2), 10.0)
    rig.handle(m.Tick(), 10.5)
    assert read("refusals_total") == {("throttled",): 0, ("unproven",): 1}
    assert read("fences_total") == {(): 1}
    assert read("sessions_fenced_total") == {("silent",): 1, ("replaced",): 0, ("left",): 0}
    assert read("sessions") == {("live",): 1, ("draining",): 1, ("counted",): 0}
    assert read("workers") == {(): 1}


def test_an_eviction_is_counted_by_what_proved_it():
    def evicted(*, silent=0, replaced=0, declared=0):
        return {("silent",): silent, ("replaced",): replaced, ("declared_dead",): declared}

    rig, read = watched()
    old, new, other = (Incarnation(host=host, nonce=nonce) for host, nonce in (("h1", 1), ("h1", 2), ("h2", 1)))
    for link, worker in ((8, old), (9, other), (10, new)):
        rig.handle(m.Join(link=link, incarnation=worker, timeout_cap_s=3.0), 0.1)
    assert read("evictions_total") == evicted(replaced=1)
    rig.handle(m.LinkLost(link=9), 0.2)
    for _ in range(2):
        rig.handle(m.DeclareDeadCall(call=2, incarnation=other), 0.2)
    assert read("evictions_total") == evicted(replaced=1, declared=1), "once, however often it is said"
    rig.handle(m.Leave(link=10), 0.3)
    rig.handle(m.Tick(), 1000.0)
    assert read("evictions_total") == evicted(replaced=1, declared=1), "who left isn't evicted"
    rig.handle(m.Join(link=11, incarnation=Incarnation(host="h3", nonce=1), timeout_cap_s=3.0), 1000.0)
    rig.handle(m.Tick(), 1000.0 + Timing().evict_after_s(3.0))
    assert read("evictions_total") == evicted(silent=1, replaced=1, declared=1)
    rig.handle(m.Led(term=9), 2000.0)
    assert read("evictions_total") == evicted(), "a new leader counts from 0"


def test_a_session_that_ends_is_fenced_by_why_it_ended():
    rig, read = watched()
    rig.handle(hello(3, "fe1", nonce=2), 0.1)
    rig.handle(m.Goodbye(link=2, sequence=1), 0.1)
    assert read("sessions_fenced_total") == {("silent",): 0, ("replaced",): 1, ("left",): 1}
    assert rig.core.proofs.uncounted == 0


def test_pools_are_told_apart_up_to_a_bound():
    rig, read = watched()
    rig.handle(m.SetAccountLimitCall(call=2, account=A, limit=20_000), 0.1)
    for number in range(LABEL_SETS_MAX + 50):
        pool = reserved(A, f"f{number}")
        rig.handle(m.SetReservedCall(call=3, account=A, function=pool.function, value=number + 1), 0.2)
    limits = read("permits_limit")
    assert len(limits) == LABEL_SETS_MAX
    assert limits[A, f"f{LABEL_SETS_MAX + 49}", "reserved"] == LABEL_SETS_MAX + 50
    assert sum(limits.values()) == 20_000
    assert limits[OTHER, OTHER, OTHER] > 0


def test_a_deposed_leader_says_nothing_of_permits():
    rig, read = watched()
    rig.handle(ask(1, 11, generation=1), 0.1)
    rig.handle(m.Deposed(term=4, hint="counting-az2"), 0.2)
    assert read("permits_limit") == read("permits_granted") == {}
    assert (read("leader_changes_total"), read("depositions_total")) == ({(): 1}, {(): 1})
