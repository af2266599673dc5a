"""What a member of counting shows: amounts, not messages; the leader's pools, up to a bound."""

from chassis.metrics import LABEL_SETS_MAX, OTHER, Metrics
from counting import messages as m
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
    assert read("sessions") == {("live",): 1, ("draining",): 1, ("counted",): 0}
    assert read("workers") == {(): 1}


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
