"""Stories of a worker manager: read tests/worker_manager/stories."""

from tests.worker_manager.pool import (
    ME,
    busy,
    feed,
    granted,
    idle,
    inventory,
    key,
    new_core,
    placed,
    ready,
    reserve,
    warm,
)
from worker_manager.messages import (
    Cancel,
    CreateFailed,
    FrontendLeft,
    Going,
    Gone,
    HandOver,
    Leave,
    Lost,
    NoCapacity,
    Placed,
    Raised,
    RegionSeen,
    Release,
    Revised,
    RoleGiven,
    SandboxFacts,
    StaleLease,
    Tick,
    WorkerAway,
    WorkerReturned,
)

W1, W2, W3 = "worker-az1", "worker-az2", "worker-az3"
FRONT, OTHER = "frontend-az1", "frontend-az2"


def release(cause, sequence, frontend=FRONT):
    return Release(frontend=frontend, sandbox=f"s-{cause}", sequence=sequence)


def raised(cause, sequence, *, still=False, kept=False):
    return Raised(worker=W1, sandbox=f"s-{cause}", sequence=sequence, busy=still, kept=kept)


def gone(cause, worker=W1):
    return Gone(worker=worker, sandbox=f"s-{cause}", reason="destroyed")


def going(cause, worker=W1):
    return Going(worker=worker, sandbox=f"s-{cause}", reason="can't be frozen")


def test_a_cold_start_then_warm(story):
    story(new_core(W1, W2), [
        (1.0, reserve("a")),
        (1.001, placed("a", W1, W2)),
        (1.06, ready("a")),
        (1.06, busy("a")),
        (1.07, idle("a")),
        "The frontend lingers, then lets go; the next request finds it idle.",
        (1.12, release("a", 1)),
        (2.0, reserve("b", frontend=OTHER)),
        "Late words about the first holder change nothing.",
        (2.0, busy("a", sequence=1)), (2.0, idle("a", sequence=1)),
        (3.0, Tick()),
    ])


def test_the_most_recently_used_is_reused(story):
    core = new_core(W1)
    for cause in "abc":
        feed(core, [(1.0, reserve(cause)), (1.0, placed(cause, W1)), (1.0, ready(cause)), (1.0, busy(cause))])
    for at, cause in ((2.0, "b"), (2.1, "c"), (2.2, "a")):
        feed(core, [(at, idle(cause)), (at, release(cause, 1))])
    story(core, [(3.0, reserve("d")), (3.0, reserve("e")), (3.0, reserve("f"))])


def test_no_storm(story):
    story(new_core(W1, W2), [
        "Three at once: three sandboxes, whichever comes first serves the oldest.",
        (1.0, reserve("a")), (1.0, reserve("b")), (1.0, reserve("c")),
        (1.0, placed("a", W1)), (1.0, placed("b", W2)), (1.0, placed("c", W1)),
        (1.1, ready("c")), (1.1, busy("c")),
        "It runs short: it is free again before the others are ready, and its frontend serves the next with it.",
        (1.15, idle("c")), (1.15, Cancel(frontend=FRONT, cause="b", served=True)), (1.15, busy("c")),
        (1.2, ready("b", W2)),
        "Nobody waits for the third: it is kept.",
        (1.3, ready("a")),
        (1.4, reserve("d")),
    ])


def test_a_waiter_that_gives_up_leaves_its_sandbox(story):
    story(new_core(W1), [
        (1.0, reserve("a", deadline_s=0.05)),
        (1.0, placed("a", W1)),
        "Its deadline passes.",
        (1.05, Tick()),
        (1.1, ready("a")),
        "Another one cancels.",
        (1.2, reserve("b")), (1.2, reserve("c")), (1.2, Cancel(frontend=FRONT, cause="c")),
        (1.2, placed("c", W1)), (1.3, ready("c")),
    ])


def test_a_deadline_goes_with_its_waiter(story):
    core = new_core(W1, memory_mb=128)
    warm(core, "a")
    feed(core, [(0.1, busy("a"))])
    story(core, [
        "Served under another's reservation, and asked anew under the same id with more time: the new deadline counts.",
        (1.0, reserve("b", deadline_s=5.0)), (1.0, placed("b", W1)),
        (1.1, Cancel(frontend=FRONT, cause="b", served=True)),
        (1.2, reserve("b", deadline_s=9.0)),
        (6.0, Tick()),
        (10.2, Tick()),
    ])


def test_lingering_is_recalled_before_a_cold_start(story):
    core = new_core(W1)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a")), (1.0, busy("a"))])
    story(core, [
        (1.1, idle("a")),
        "Another frontend needs it while the first lingers: the worker raises the sequence.",
        (1.11, reserve("b", frontend=OTHER)),
        (1.111, raised("a", 2)),
        (1.2, busy("a", 3)), (1.3, idle("a", 3)),
        "The same, but the holder had just started again: it goes on, and a sandbox is made.",
        (1.31, reserve("c")),
        (1.311, raised("a", 4, still=True, kept=True)),
        (1.312, placed("c", W1)),
        "The run ends before the new one is there: the holder would keep it, and is asked again.",
        (1.4, idle("a", 3)),
        (1.401, raised("a", 4)),
    ])


def test_short_runs_are_not_told_and_the_worker_says_who_only_keeps(story):
    core = new_core(W1)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a"))])
    story(core, [
        "No word since the first holder got it. Another asks: the worker knows that the first has yet to start.",
        (1.001, reserve("b", frontend=OTHER)),
        (1.002, raised("a", 2, kept=True)),
        (1.003, placed("b", W1)),
        (1.06, ready("b")),
        "Both have run and linger; the workers' words are on their way. A third asks both in turn.",
        (1.07, reserve("c", frontend="frontend-az3")),
        (1.071, raised("b", 2)),
        "The first was never told busy: its Release makes it idle, and the late word changes nothing.",
        (1.08, Release(frontend=FRONT, sandbox="s-a", sequence=1)),
        (1.09, idle("a", 1)),
    ])


def test_a_kept_or_unused_reservation_is_taken_back(story):
    core = new_core(W1)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a")), (1.0, busy("a")), (1.1, idle("a"))])
    story(core, [
        "No Release came: after the linger and its grace.",
        (1.36, Tick()),
        (1.361, raised("a", 2)),
        "Reserved and never started.",
        (2.0, reserve("b")),
        (3.0, Tick()),
        (7.0, Tick()),
        (7.0, raised("a", 4)),
        "The frontend goes: what it keeps is taken back, what it runs goes on.",
        (8.0, reserve("c")),
        (8.0, FrontendLeft(frontend=FRONT)),
        (8.0, raised("a", 6)),
        (9.0, reserve("d")), (9.0, busy("a", 7)),
        (9.1, FrontendLeft(frontend=FRONT)),
        (9.9, idle("a", 7)),
    ])


def test_a_full_worker_and_then_the_next(story):
    story(new_core(W1, W2), [
        (1.0, reserve("a")),
        (1.0, placed("a", W1, W2)),
        (1.01, NoCapacity(worker=W1, sandbox="s-a", reason="process limit", memory_free_mb=0)),
        (1.02, NoCapacity(worker=W2, sandbox="s-a", reason="process limit", memory_free_mb=64)),
        "Placement is away: the manager ranks by itself, and finds no room.",
        (2.0, reserve("b")),
        (2.2, Placed(sandbox="s-b", workers=None, cause="b")),
        "Nothing of the function runs anywhere: after room_s it is refused.",
        (4.2, Tick()),
    ])


def test_a_refusal_says_nothing_of_what_is_still_on_its_way_to_the_worker(story):
    story(new_core(W1, memory_mb=512), [
        (1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, reserve("b", name="g")), (1.0, placed("b", W1)),
        "It refuses the first and says what was free then; it will take the second.",
        (1.01, NoCapacity(worker=W1, sandbox="s-a", reason="process limit", memory_free_mb=512)),
        "384 MB are left: 512 MB are not ordered there before the second has gone.",
        (1.02, reserve("c", name="h", memory_mb=512)), (1.02, placed("c", W1)),
        (1.1, ready("b")), (1.2, gone("b")),
    ])


def test_what_breaks_has_its_memory_until_it_has_gone(story):
    core = new_core(W1, memory_mb=256)
    warm(core, "a", 10.5)
    feed(core, [(10.6, release("a", 1))])
    story(core, [
        "An idle sandbox breaks on a full worker: who needs its memory waits for it, and isn't sent there in vain.",
        (11.0, going("a")),
        (11.1, reserve("b", name="g", memory_mb=256)), (11.1, placed("b", W1)),
        (11.3, gone("a")),
        (11.4, ready("b")),
        "One that its holder has yet to start on: nothing starts there any more, so an update isn't kept waiting.",
        (11.5, going("b")),
        (11.6, Revised(function=key("g", 2), deleted=False, frontend=FRONT, cause="settle")),
        (11.7, gone("b")),
        "One that starts: another is made elsewhere or here, and how the first ends is told to nobody.",
        (12.0, reserve("c")), (12.0, placed("c", W1)),
        (12.1, going("c")),
        (12.1, placed("c-1", W1)), (12.2, ready("c-1")),
        (12.3, CreateFailed(worker=W1, sandbox="s-c", error_type="E", message="was told to end")),
        "All of the worker's memory is there again.",
        (12.4, busy("c-1")), (12.5, idle("c-1")), (12.5, release("c-1", 1)), (12.6, going("c-1")), (12.7, gone("c-1")),
        (13.0, reserve("d", name="h", memory_mb=256)), (13.0, placed("d", W1)),
    ])


def test_a_worker_of_the_release_before_says_twice_that_a_sandbox_has_gone(story):
    core = new_core(W1, memory_mb=256)
    warm(core, "a", 10.5)
    feed(core, [(10.6, release("a", 1))])
    story(core, [
        "It breaks, has yet to go, and what is created in its room is refused.",
        (11.0, gone("a")),
        (11.1, reserve("b", name="g", memory_mb=256)), (11.1, placed("b", W1)),
        (11.11, NoCapacity(worker=W1, sandbox="s-b", reason="256 MB wanted, 128 free", memory_free_mb=128)),
        (11.2, reserve("c", name="g", memory_mb=256)), (11.2, placed("c", W1)),
        "It has gone: all of the worker's memory is there again, for who waits.",
        (11.3, gone("a")),
    ])


def test_idle_sandboxes_make_room(story):
    core = new_core(W1, memory_mb=512)
    for at, name in ((1.0, "x"), (2.0, "y"), (3.0, "z")):
        warm(core, name, at, name=name)
        feed(core, [(at, release(name, 1))])
    story(core, [
        "128 MB are free, 384 MB are asked for: the two longest idle go, the third stays.",
        (4.0, reserve("a", memory_mb=384)),
        (4.0, placed("a", refusal="384 MB fit on none of 1 workers")),
        (4.1, gone("x")),
        (4.2, gone("y")),
        "Nothing idle would be enough.",
        (5.0, reserve("b", name="g", memory_mb=384)),
        (5.0, placed("b", refusal="384 MB fit on none of 1 workers")),
        (7.0, Tick()),
    ])


def test_lingering_reservations_make_room(story):
    core = new_core(W1, memory_mb=256)
    warm(core, "x", 1.0, name="x")
    warm(core, "y", 1.0, name="y")
    story(core, [
        "Two sandboxes fill the worker, both kept by their frontend: one is taken back before anybody is refused.",
        (1.01, reserve("a")), (1.01, placed("a")),
        (1.02, raised("x", 2)), (1.03, gone("x")),
        "The other's holder was faster than the recall: its room comes when that run ends.",
        (1.04, reserve("b", name="g")), (1.04, placed("b")),
        (1.045, raised("y", 2, still=True)),
        (1.1, idle("y", 2)), (1.2, gone("y")),
    ])


def test_a_worker_starts_few_at_a_time(story):
    story(new_core(W1, starting_max=1, placing_max=2), [
        (1.0, reserve("a")), (1.0, reserve("b")), (1.0, reserve("c")),
        (1.01, placed("a", W1)), (1.01, placed("b", W1)),
        "A is ready and serves the oldest; another starts.",
        (1.1, ready("a")),
        "A serves one after the other: in the end nobody waits for what was still to come.",
        (1.11, busy("a")), (1.12, idle("a")), (1.12, Cancel(frontend=FRONT, cause="b", served=True)),
        (1.13, busy("a")), (1.13, Cancel(frontend=FRONT, cause="c", served=True)), (1.14, idle("a")),
        (1.2, ready("b")),
        "A start that takes long waits for its own init: the next may begin.",
        (2.0, reserve("d", name="g")), (2.0, placed("d", W1)), (2.0, reserve("e", name="h")), (2.0, placed("e", W1)),
        (3.1, Tick()),
    ])


def test_where_requests_wait_a_frontends_own_go_first_for_a_moment(story):
    other = "frontend-az2"
    core = new_core(W1, memory_mb=128)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, reserve("b")), (1.0, reserve("x", frontend=other)),
                (1.0, reserve("c")), (1.0, reserve("d")), (1.0, reserve("y", frontend=other))])
    story(core, [
        "The worker has room for one sandbox. Its first holder's requests go before the other frontend's older one.",
        (1.1, ready("a")), (1.1, busy("a")),
        (1.15, idle("a")), (1.15, Cancel(frontend=FRONT, cause="b", served=True)), (1.15, busy("a")),
        (1.2, idle("a")), (1.2, Cancel(frontend=FRONT, cause="c", served=True)), (1.2, busy("a")),
        "Its time is up, and it gives the sandbox back: the oldest is next, whose frontend has another one that waits.",
        (1.5, idle("a")), (1.5, release("a", 1)), (1.51, busy("a", 2)),
        "That one neither passes it on nor gives it back, and loses it.",
        (1.55, idle("a", 2)), (1.76, Tick()), (1.77, raised("a", 3)),
    ])


def test_what_comes_free_makes_room_for_an_account_that_has_less(story):
    core = new_core(W1, memory_mb=512)
    for cause in "abcd":
        feed(core, [(1.0, reserve(cause, account="1")), (1.0, placed(cause, W1)), (1.0, ready(cause)),
                    (1.0, busy(cause))])
    feed(core, [(1.1, reserve(cause, account="1")) for cause in "efgh"])
    feed(core, [(1.1, placed(cause)) for cause in "efgh"])
    story(core, [
        "Account 1 fills the worker and has more waiting. Account 2 gets what comes free, until it has as much.",
        (1.2, reserve("i", account="2", name="g")), (1.2, placed("i")),
        (1.3, idle("a")), (1.31, raised("a", 2)), (1.35, gone("a")), (1.4, ready("i")), (1.4, busy("i")),
        (1.5, reserve("j", account="2", name="g")), (1.5, placed("j")),
        (1.6, idle("b")), (1.61, raised("b", 2)), (1.65, gone("b")), (1.7, ready("j")), (1.7, busy("j")),
        (1.8, reserve("k", account="2", name="g")), (1.8, placed("k")),
        (1.9, idle("c")), (1.91, raised("c", 2)),
    ])


def test_nobody_waits_whose_turn_would_come_too_late(story):
    core = new_core(W1, memory_mb=128, patience_s=2.0)
    warm(core, "a", 0.5)
    feed(core, [(0.55, release("a", 1))])
    for n in range(8):                      # 8 per second
        at = 1.0 + n / 8
        feed(core, [(at, reserve(f"b{n}")), (at, busy("a", n + 2)), (at + 0.1, idle("a", n + 2)),
                    (at + 0.11, release("a", n + 2))])
    feed(core, [(2.0, reserve("c")), (2.0, busy("a", 10))])
    feed(core, [(2.0, reserve(f"d{n}")) for n in range(17)])
    feed(core, [(2.0, placed("d0"))])
    story(core, [
        "One sandbox serves 8 per second, and there is no room for another: the 18th in the queue would wait over 2 s.",
        (2.1, reserve("e")),
        (2.2, idle("a", 10)), (2.2, reserve("f")),
    ])


def test_a_failed_create_is_told_once(story):
    failed = CreateFailed(worker=W1, sandbox="s-a", error_type="Code.Missing", message="no such archive")
    story(new_core(W1), [
        (1.0, reserve("a")), (1.0, reserve("b")),
        (1.0, placed("a", W1)), (1.0, placed("b", W1)),
        (1.1, failed),
        (1.2, ready("b")),
        "A sandbox that vanishes while it starts is made again, a few times.",
        (2.0, reserve("c", name="g")), (2.0, placed("c", W1)), (2.1, gone("c")),
        (2.1, Placed(sandbox="s-c-1", workers=(W1,), cause="c")), (2.2, gone("c-1")),
        (2.2, Placed(sandbox="s-c-2", workers=(W1,), cause="c")), (2.3, gone("c-2")),
    ])


def revised(revision, *, frontend="", cause="", deleted=False):
    return Revised(function=key(revision=revision), deleted=deleted, frontend=frontend, cause=cause)


def test_a_new_revision_retires_the_old(story):
    core = new_core(W1, W2)
    for cause in "abcd":
        feed(core, [(11.0, reserve(cause)), (11.0, placed(cause, W1)), (11.0, ready(cause))])
        feed(core, [(11.0, busy(cause))] if cause != "d" else [])
    feed(core, [(11.1, idle("a")), (11.1, release("a", 1)), (11.15, idle("b")), (11.15, reserve("e"))])
    story(core, [
        "One is idle and given away again at once, one is kept by its frontend, one runs, under one nothing began yet.",
        "Two requests wait: the kept one is taken back for the first, one is being made for the second.",
        (11.16, reserve("v")), (11.16, reserve("w")), (11.16, placed("w", W1)),
        "Whoever settles the update is answered when no right to start on the old is left.",
        (11.17, revised(2, frontend=FRONT, cause="settle")),
        (11.18, raised("a", 3)), (11.18, raised("b", 2)),
        (11.19, raised("c", 2, still=True)), (11.19, raised("d", 2)),
        "What was being made for one that waited is destroyed when it is ready.",
        (11.2, ready("w")),
        (11.21, gone("a")), (11.21, gone("b")), (11.21, gone("d")), (11.21, gone("w")),
        "c still runs, and finishes.",
        (11.9, idle("c")), (11.95, gone("c")),
        "A frontend that is behind is told so.",
        (13.0, reserve("f")),
        "The function is deleted.",
        (14.0, reserve("g", revision=2)), (14.0, placed("g", W1)), (14.1, ready("g")), (14.1, busy("g")),
        (14.2, revised(2, frontend=FRONT, cause="delete", deleted=True)),
        (14.25, raised("g", 2, still=True)),
        (14.3, idle("g")), (14.35, gone("g")),
        (14.4, reserve("h", revision=2)),
    ])


def test_a_frontend_that_may_be_behind_gets_what_another_vouches_for(story):
    story(new_core(W1, idle_s=1000.0), [
        "Nobody who knows has asked for this revision here.",
        (1.0, reserve("a", unsure=True)),
        (2.0, reserve("b", frontend=OTHER)), (2.0, placed("b", W1)), (2.1, ready("b")), (2.1, busy("b")),
        (2.2, idle("b")), (2.2, release("b", 1, frontend=OTHER)),
        (3.0, reserve("c", unsure=True)), (3.0, busy("b", sequence=2)),
        (3.1, idle("b", sequence=2)), (3.1, release("b", 2)),
        "The owners' map changed: another manager may have settled an update meanwhile.",
        (4.0, RegionSeen(owners_version=2, owners=(ME, "worker_manager-az9"))),
        (4.0, RegionSeen(owners_version=3, owners=(ME,))),
        (5.0, reserve("d", unsure=True)),
        "A newer revision was seen: it is refused from then on, and the newer one is not vouched for by that.",
        (6.0, revised(2)),
        (7.0, reserve("e", unsure=True)), (7.0, reserve("f", revision=2, unsure=True)),
        "One that knows names it, without asking for it; what it said of the older one comes late and changes nothing.",
        (8.0, Revised(function=key(revision=2), deleted=False, vouched=True, frontend=OTHER)),
        (8.0, Revised(function=key(), deleted=False, vouched=True, frontend=OTHER)),
        (9.0, reserve("g", revision=2, unsure=True)), (9.0, reserve("h", unsure=True)),
    ])


def test_who_settles_an_update_asks_the_active_manager(story):
    core = new_core(W1)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a")), (1.0, busy("a"))])
    story(core, [
        "A broken stream hides whether something may start: not before the worker is adopted again, or given up.",
        (2.0, WorkerAway(worker=W1, lease=1)),
        (2.0, revised(2, frontend=FRONT, cause="settle")),
        (2.5, inventory(W1, sandboxes=(SandboxFacts(
            sandbox="s-a", function=key(), sequence=1, state="busy", memory_mb=128),))),
        (2.6, raised("a", 2, still=True)),
        (9.0, Tick()),
        "One that stands by sends it away, also who was waiting.",
        (10.0, WorkerAway(worker=W1, lease=1)),
        (10.0, revised(3, frontend=FRONT, cause="settle")),
        (10.0, revised(3, frontend=OTHER, cause="settle")),
        (10.1, FrontendLeft(frontend=OTHER)),
        (10.2, RoleGiven(active=False, term=2)),
        (10.3, revised(3, frontend=FRONT, cause="settle")),
    ])


def test_a_lease_ends(story):
    core = new_core()
    feed(core, [(0.0, granted(W1, soft_end_s=100.0, hard_end_s=1100.0)), (0.0, inventory(W1))])
    feed(core, [(0.0, granted(W2)), (0.0, inventory(W2))])
    for cause in "abcd":
        feed(core, [(1.0, reserve(cause)), (1.0, placed(cause, W1)), (1.0, ready(cause)), (1.0, busy(cause))])
    feed(core, [(99.0, idle("a")), (99.0, release("a", 1)), (99.95, idle("b")), (99.9, reserve("e", name="g"))])
    feed(core, [(99.9, Placed(sandbox="s-e", workers=(W1,), cause="e"))])
    story(core, [
        "One is idle, one is kept, two run, one starts.",
        (100.0, Tick()),
        (100.01, raised("b", 2)),
        (100.1, gone("a")), (100.1, gone("b")),
        "The one that starts is not used any more: its request gets another, elsewhere.",
        (100.2, ready("e")), (100.2, Placed(sandbox="s-e-1", workers=(W1, W2), cause="e")), (100.3, gone("e")),
        (150.0, idle("c")), (150.0, gone("c")),
        (400.0, idle("d")), (400.1, gone("d")),
        (400.2, WorkerReturned(worker=W1, lease=1)),
    ])


def test_a_lease_ends_without_placement_or_worker(story):
    core = new_core()
    feed(core, [(0.0, granted(W1, soft_end_s=3000.0, hard_end_s=1900.0)), (0.0, inventory(W1))])
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a")), (1.0, busy("a"))])
    story(core, [
        "The drain must fit before the hard end, whatever the soft end says.",
        (1000.0, Tick()),
        (1001.0, WorkerAway(worker=W1, lease=1)),
        (1002.0, inventory(W1, sandboxes=[
            SandboxFacts(sandbox="s-a", function=key(), sequence=1, state="busy", memory_mb=128)])),
        "It never ended: at the hard end the worker is nobody's.",
        (1900.0, Tick()),
        "A worker that was never reached is given back at once.",
        (2000.0, granted(W2, soft_end_s=10.0, hard_end_s=1000.0)),
        (2010.0, Tick()),
    ])


def test_a_worker_is_lost_and_found(story):
    core = new_core(W1, W2)
    for cause in "ab":
        feed(core, [(1.0, reserve(cause)), (1.0, placed(cause, W1)), (1.0, ready(cause)), (1.0, busy(cause))])
    feed(core, [(1.1, idle("a")), (1.1, release("a", 1)), (1.2, reserve("c", name="g")), (1.2, placed("c", W1))])
    story(core, [
        "The stream breaks: what waited for it goes elsewhere.",
        (2.0, WorkerAway(worker=W1, lease=1)),
        (2.0, Placed(sandbox="s-c-1", workers=(W1, W2), cause="c")),
        "The same lease again: rights given under it might still be used, so they are raised.",
        (2.5, inventory(W1, sandboxes=[
            SandboxFacts(sandbox="s-a", function=key(), sequence=1, state="idle", memory_mb=128),
            SandboxFacts(sandbox="s-b", function=key(), sequence=1, state="busy", memory_mb=128)])),
        (2.6, raised("a", 2)),
        (2.7, idle("b")),
        (2.8, reserve("d")),
        "The worker was given to another manager, or has died.",
        (3.0, StaleLease(worker=W1, lease=1, highest=2)),
        (3.1, Lost(worker=W2, lease=1, reason="the worker is dead")),
    ])


def test_take_over_keeps_the_sandboxes(story):
    core = new_core()
    story(core, [
        "Requests come before the workers do: they wait.",
        (1.0, granted(W1, lease=2)),
        (1.1, reserve("x")), (1.1, reserve("y", name="g")),
        (1.2, inventory(W1, lease=2, sandboxes=[
            SandboxFacts(sandbox="s-a", function=key(), sequence=5, state="idle", memory_mb=128),
            SandboxFacts(sandbox="s-b", function=key("g"), sequence=2, state="starting", memory_mb=128)])),
        (1.3, ready("b")),
        "Said again, and of an older lease: nothing. A higher number: adopted anew.",
        (2.0, granted(W1, lease=2)), (2.0, WorkerAway(worker=W1, lease=1)),
        (2.1, granted(W1, lease=4)),
    ])


def test_without_workers_requests_wait_a_little(story):
    core = new_core()
    story(core, [
        (1.0, reserve("a")),
        (2.0, Tick()),
        (2.1, reserve("b")),
        (3.0, granted(W1)), (3.1, inventory(W1)),
        (3.2, reserve("c", runtime="ruby3.4")),
        (5.5, Tick()),
        (5.6, reserve("d", runtime="ruby3.4")),
    ])


def test_roles_and_owners(story):
    core = new_core(W1)
    others = tuple(sorted([ME, "worker_manager-az2"]))
    story(core, [
        (1.0, RegionSeen(owners_version=2, owners=others)),
        (1.1, reserve("a", name="f")), (1.1, reserve("b", name="g")),
        "A function that moves while requests wait.",
        (1.2, RegionSeen(owners_version=3, owners=("worker_manager-az2",))),
        (1.3, RoleGiven(active=False, term=2)),
        (1.4, reserve("c")),
        "An order of an earlier term is ignored.",
        (1.5, RoleGiven(active=True, term=1)),
        (1.6, reserve("d")),
    ])


def test_a_draining_worker_gets_nothing_new(story):
    core = new_core(W1, W2)
    warm(core, "a")
    feed(core, [(0.0, release("a", 1))])
    story(core, [
        (1.0, RegionSeen(owners_version=1, owners=(ME,), unusable=frozenset({W1}))),
        (1.1, reserve("b")), (1.1, placed("b", W1, W2)),
        "It answers again, and what is idle there serves the one who waits.",
        (1.2, RegionSeen(owners_version=1, owners=(ME,))),
    ])


def test_what_is_taken_back_on_a_worker_that_fell_silent_leaves_its_waiter_another(story):
    """Found by the simulation: a placement that hears nobody calls workers unusable that answer their manager."""
    core = new_core(W1, W2)
    feed(core, [(1.0, reserve("a")), (1.0, placed("a", W1)), (1.0, ready("a")), (1.0, busy("a")), (1.1, idle("a"))])
    story(core, [
        (1.12, RegionSeen(owners_version=1, owners=(ME,), unusable=frozenset({W1}))),
        "The worker's own word is what makes the kept one free; nothing new starts there.",
        (1.13, reserve("b", frontend=OTHER)),
        (1.131, raised("a", 2)),
        (1.132, placed("b", W2)), (1.2, ready("b", W2)),
    ])


def test_bounds(story):
    core = new_core(W1, scaling_burst=2, scaling_per_s=1.0, waiting_per_function_max=3, waiting_max=4, idle_max=1)
    story(core, [
        (1.0, reserve("a")), (1.0, reserve("b")), (1.0, reserve("c")),
        "Half a second later half a token; a whole one later.",
        (1.5, reserve("d")), (2.0, reserve("e")), (2.0, reserve("f")),
        (2.0, reserve("g", name="g")), (2.0, reserve("h", name="g")),
        "Two became idle and one is kept.",
        (3.0, placed("a", W1)), (3.0, Cancel(frontend=FRONT, cause="a")), (3.0, Cancel(frontend=FRONT, cause="b")),
        (3.0, Cancel(frontend=FRONT, cause="e")), (3.1, ready("a")),
        (3.1, placed("b", W1)), (3.2, ready("b")),
        (603.2, Tick()),
    ])


def test_one_account_does_not_keep_the_others_out(story):
    core = new_core(W1, waiting_per_function_max=4, waiting_max=4)
    story(core, [
        "Account 1 has filled the manager: its newest requests give way, until both have two.",
        *((1.0, reserve(cause, account="1")) for cause in "abcd"),
        (1.1, reserve("e", account="2", name="g")),
        (1.2, reserve("f", account="2", name="g")),
        (1.3, reserve("g", account="2", name="g")),
        (1.4, reserve("h", account="1")),
    ])


def test_accounts_take_turns_for_the_room_that_a_worker_brings(story):
    core = new_core()
    feed(core, [(0.5, reserve(cause, account="1", name=name)) for cause, name in ("af", "bf", "cg", "dg")])
    feed(core, [(0.6, reserve("e", account="2", name="h"))])
    story(core, [(1.0, granted(W1)), (1.0, inventory(W1))])


def test_a_worker_is_handed_over_as_it_is(story):
    core = new_core(W1, W2)
    warm(core, "a")
    feed(core, [(1.0, reserve("b", name="g")), (1.0, placed("b", W1))])
    story(core, [
        "Of another lease: nothing. Of this one: no drain, and who waits for a sandbox there gets one elsewhere.",
        (1.1, HandOver(worker=W1, lease=7)),
        (1.1, HandOver(worker=W1, lease=1)),
    ])


def test_leaving_hands_the_workers_over_as_they_are(story):
    core = new_core(W1, W2)
    warm(core, "a")
    story(core, [
        (1.0, reserve("b", name="g")),
        (1.1, Leave()),
        (1.2, reserve("c")),
        (1.3, granted(W3)),
    ])
