"""What admission does, told event by event: read the golden files in stories/."""

from pathlib import Path

from frontend import core as core_module
from frontend import messages as m
from frontend.core import FrontendCore, Timing
from frontend.permits import Block, reserved, unreserved

REST = unreserved("acct")
KEPT = reserved("acct", "kept")


def frontend(**timing) -> FrontendCore:
    return FrontendCore(Timing(**timing))


def wanted(request: int, function: str = "hello", deadline: float = 3.0) -> m.Wanted:
    return m.Wanted(request=request, account="acct", function=function, deadline=deadline, cause=f"r{request}")


def granted(index: int, count: int, size: int, *, pool=REST, applied: int = 0, generation: int = 0) -> m.Granted:
    return m.Granted(
        link=1, stamp=(1, index), pool=pool, generation=generation, count=count, applied=applied, size=size
    )


def generation(index: int, number: int, limit: int, *, pool=REST, gone: bool = False) -> m.GenerationChanged:
    return m.GenerationChanged(link=1, stamp=(1, index), pool=pool, generation=number, limit=limit, gone=gone)


def welcome(link: int = 1, epoch: int = 1, term: int = 1, applied: int = 0) -> m.Welcomed:
    return m.Welcomed(link=link, stamp=(term, 0), epoch=epoch, applied=applied)


def end(core: FrontendCore, block, function: str = "hello"):
    """A permit comes back as the edge brings it: the counter first, then word of it where somebody wants it."""
    block.give(function)
    if not block.watched:
        return []
    freed = m.Freed(pool=block.pool, epoch=block.epoch, generation=block.generation, function=function)
    return [(9.0, freed)]


def block_of(core: FrontendCore, function: str = "hello") -> Block:
    block = core.block_for("acct", function)
    assert block is not None
    return block


LIVE: list[tuple[float, m.Event]] = [(0.0, m.LinkUp(link=1)), (0.0, welcome())]


def told(core: FrontendCore, *events: tuple[float, m.Event]) -> None:
    for at, event in (*LIVE, *events):
        core.handle(event, at)
        core.check()


def test_first_request_asks_with_a_top_up_and_later_ones_need_nobody(story):
    core = frontend()
    story(core, [*LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 5, 5))])
    block = block_of(core)
    assert [block.try_take("hello") for _ in range(5)] == [True, True, True, True, False]
    story(core, ["four more were admitted by the block alone", (0.2, m.Low(pool=REST)), (0.2, m.Flush())])


def test_idle_permits_go_back_after_a_second(story):
    core = frontend()
    story(core, [*LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 5, 5))])
    block = block_of(core)
    story(core, [
        "fresh permits are not idle yet", (1.2, m.Tick()),
        "one runs, four were idle for a second", (2.3, m.Tick()),
    ])
    story(core, [*end(core, block), (3.4, m.Tick()), "the last one", (4.5, m.Tick())])
    assert core.wakes_at() is None


def test_a_permit_that_comes_back_goes_to_who_waits_longest(story):
    core = frontend()
    story(core, [*LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 1, 1))])
    block = block_of(core)
    story(core, [(0.2, wanted(2)), (0.2, wanted(3)), (0.2, m.Flush())])
    story(core, ["r1 ends", *end(core, block), (9.0, m.Flush())])


def test_a_recall_is_answered_at_once_and_what_is_idle_goes_back_first(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 5, 5)),
        (0.2, m.Recalled(link=1, stamp=(1, 6), round=77, pool=REST)),
        "a grant that had not seen the give-back counts it off", (0.21, granted(7, 1, 6)),
        "one that had doesn't", (0.22, granted(8, 1, 3, applied=1)),
        "a pool that nothing is held of", (0.3, m.Recalled(link=1, stamp=(1, 9), round=78, pool=KEPT)),
    ])


def test_a_refusal_is_passed_on_only_after_the_own_block_was_tried(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, wanted(2)), (0.1, wanted(3)), (0.1, m.Flush()),
        (0.11, granted(5, 1, 1)),
        (0.2, m.Throttled(
            link=1, stamp=(1, 6), pool=REST, waiting=(1, 2), limit=1, in_use=1, round=77
        )),
        (0.3, m.Unproven(link=1, stamp=(1, 7), pool=REST, waiting=(3,), reason="frontend-az2 is silent",
                         silent=("frontend-az2",), retry_after_s=2)),
    ])


def test_a_reservation_moves_its_functions_requests_and_retires_the_rest(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1, "kept")), (0.1, wanted(2)), (0.1, m.Flush()), (0.11, granted(5, 4, 4)),
    ])
    old = block_of(core, "kept")
    story(core, [
        (0.2, generation(6, 1, 990)), (0.2, generation(6, 1, 10, pool=KEPT)),
        (0.3, wanted(3, "kept")), (0.3, wanted(4)), (0.3, m.Flush()),
        (0.31, granted(7, 1, 1, pool=KEPT, generation=1)),
        (0.31, granted(7, 1, 3, generation=1, applied=2)),
    ])
    story(core, ["what ran under the older generation goes back and isn't used again", *end(core, old, "kept")])
    story(core, [
        "the reservation is given up while a request waits for it",
        (9.1, wanted(5, "kept", 12.0)), (9.1, m.Flush()),
        (9.2, generation(8, 2, 1000)), (9.2, generation(8, 2, 0, pool=KEPT, gone=True)), (9.2, m.Flush()),
    ])


def test_a_reservation_that_is_gone_is_forgotten_when_nothing_of_it_runs(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, generation(5, 1, 990)), (0.1, generation(5, 1, 10, pool=KEPT)),
        (0.2, wanted(1, "kept")), (0.2, m.Flush()), (0.21, granted(6, 1, 1, pool=KEPT, generation=1)),
    ])
    block = block_of(core, "kept")
    story(core, [
        "it is given up while a request runs",
        (0.3, generation(7, 2, 1000)), (0.3, generation(7, 2, 0, pool=KEPT, gone=True)), (1.4, m.Tick()),
    ])
    assert KEPT in core.stocks
    story(core, ["the run ends", *end(core, block, "kept"), (10.1, m.Tick())])
    assert KEPT not in core.stocks
    assert core.wakes_at() is None
    story(core, [
        "a late grant of its older generation goes back and admits nobody",
        (11.0, granted(8, 1, 1, pool=KEPT, generation=1, applied=2)),
        (11.1, wanted(2, "kept", 14.0)), (11.1, m.Flush()), (12.2, m.Tick()), (13.3, m.Tick()),
    ])
    assert KEPT not in core.stocks
    story(core, [
        "it comes anew, and the request that waits moves there",
        (13.4, generation(9, 3, 990)), (13.4, generation(9, 3, 10, pool=KEPT)), (13.4, m.Flush()),
        (13.5, granted(10, 1, 1, pool=KEPT, generation=3, applied=3)),
    ])
    assert block_of(core, "kept").generation == 3


def test_reservations_that_came_and_went_leave_nothing():
    core = frontend()
    told(core)
    for number in range(100):
        pool = reserved("acct", f"f{number}")
        core.handle(generation(5, 2 * number + 1, 10, pool=pool), 0.1)
        core.handle(generation(5, 2 * number + 2, 0, pool=pool, gone=True), 0.1)
    at = core.wakes_at()
    assert at is not None, "without requests it isn't forgotten either, unless it wakes for that"
    core.handle(m.Tick(), at)
    assert list(core.stocks) == [REST]
    assert core.wakes_at() is None


def test_a_pool_that_is_forgotten_without_a_leader_is_not_asked_for_by_the_next_one():
    core = frontend()
    told(
        core, (0.1, generation(5, 1, 10, pool=KEPT)), (0.2, wanted(1, "kept")), (0.2, m.Flush()),
        (0.3, generation(6, 2, 0, pool=KEPT, gone=True)), (0.3, m.LinkDown(link=1)), (0.4, m.WaiterGone(request=1)),
        (1.4, m.Tick()), (1.5, m.LinkUp(link=2)), (1.5, welcome(link=2, term=2)),
    )
    assert list(core.stocks) == [REST]
    assert core.handle(m.Flush(), 1.5) == []


def test_a_lost_sessions_permit_that_comes_back_after_its_pool_was_forgotten_is_nothing():
    core = frontend()
    told(
        core, (0.1, generation(5, 1, 10, pool=KEPT)), (0.2, wanted(1, "kept")), (0.2, m.Flush()),
        (0.3, granted(6, 1, 1, pool=KEPT, generation=1)), (0.4, generation(7, 2, 0, pool=KEPT, gone=True)),
        (4.0, m.Fenced(link=1, stamp=(1, 8))), (5.1, m.Tick()),
    )
    assert KEPT not in core.stocks
    assert core.handle(m.Freed(pool=KEPT, epoch=1, generation=1, function="kept"), 5.2) == []


def test_a_new_leader_hears_what_the_old_one_may_not_have_applied(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 5, 5)),
        (0.2, m.Recalled(link=1, stamp=(1, 6), round=77, pool=REST)),
        (0.3, m.LinkUp(link=2)), (0.3, m.NotLeader(link=2, stamp=(1, 6))),
        "the leader goes", (0.4, m.LinkDown(link=1)),
        (0.5, wanted(2)), (0.5, m.Flush()),
        (0.6, welcome(link=2, term=2)), (0.6, m.Flush()),
        "the old leader's late word is dropped", (0.7, granted(9, 3, 9)),
        "the new one's size corrects for what was lost",
        (0.8, m.Granted(link=2, stamp=(2, 9), pool=REST, generation=0, count=1, applied=1, size=2)),
    ])


def test_a_start_refused_as_fenced_is_word_enough_that_the_session_is_lost(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 3, 3)),
        "stopped for long, and on again: what it holds was fenced meanwhile, and a worker says so first",
        (30.0, m.RefusedAsFenced(epoch=1, cause="r1")),
        "the lost block admits nobody",
        (30.0, wanted(2, deadline=33.0)),
        "the second refusal, and the leader's late word, change nothing",
        (30.0, m.RefusedAsFenced(epoch=1, cause="r3")), (30.0, m.Fenced(link=1, stamp=(1, 8))),
        (30.1, m.Welcomed(link=1, stamp=(1, 9), epoch=2, applied=0)), (30.1, m.Flush()),
        (30.2, granted(10, 1, 1)),
        "of an older session: nothing", (30.3, m.RefusedAsFenced(epoch=1)),
    ])


def test_without_a_leader_a_refusal_as_fenced_waits_for_the_next_stream(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 3, 3)),
        (30.0, m.LinkDown(link=1)), (30.0, m.RefusedAsFenced(epoch=1)),
        (30.1, m.LinkUp(link=2)), (30.2, m.Welcomed(link=2, stamp=(1, 9), epoch=2, applied=0)),
    ])


def test_a_later_leaders_fence_is_heard_before_the_end_of_the_stream_to_the_one_before(story):
    """What waited in the streams of a frontend that was stopped comes in any order."""
    core = frontend()
    story(core, [
        (0.0, m.LinkUp(link=1)), (0.0, m.LinkUp(link=2)), (0.0, welcome()),
        "stopped for long, and on again: another member leads by now, and had fenced the session",
        (30.0, m.Fenced(link=2, stamp=(2, 0))), (30.0, m.LinkDown(link=1)),
        (30.1, m.Welcomed(link=2, stamp=(2, 9), epoch=2, applied=0)),
        "what the first leader says late is nothing",
        (30.2, m.Fenced(link=1, stamp=(1, 8))), (30.2, m.NotLeader(link=1, stamp=(2, 0))),
    ])
    assert core.link == 2


def test_a_fenced_session_is_replaced_and_its_running_invocations_free_nothing(story):
    core = frontend()
    story(core, [*LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 2, 2))])
    lost = block_of(core)
    story(core, [
        (4.0, m.Fenced(link=1, stamp=(1, 8))), "said once more to what was on its way",
        (4.0, m.Fenced(link=1, stamp=(1, 8))), (4.1, wanted(2, deadline=7.0)),
        (4.2, m.Welcomed(link=1, stamp=(1, 9), epoch=2, applied=0)), (4.2, m.Flush()),
        (4.3, granted(10, 1, 1)),
    ])
    assert not lost.try_take("hello")
    assert end(core, lost) == []
    core.check()


def test_without_a_leader_a_request_waits_until_its_deadline(story):
    story(frontend(), [
        (0.0, m.LinkUp(link=1)), (0.0, m.NotLeader(link=1, stamp=(0, 0))),
        (0.1, wanted(1)), (0.2, wanted(2)), (0.3, m.WaiterGone(request=2)), (3.0, m.Tick()),
    ])


def test_queues_are_bounded_and_one_account_leaves_room_for_others(story):
    core = frontend(waiting_max=3, waiting_per_account_max=2)
    story(core, [
        (0.1, wanted(1)), (0.1, wanted(2)), (0.1, wanted(3)),
        (0.1, m.Wanted(request=4, account="other", function="hello", deadline=3.0, cause="r4")),
        (0.1, m.Wanted(request=5, account="third", function="hello", deadline=3.0, cause="r5")),
    ])


def test_leaving_gives_everything_back_and_says_goodbye(story):
    core = frontend()
    story(core, [*LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 5, 5))])
    block = block_of(core)
    story(core, [(0.2, m.Leave()), (0.3, wanted(2))])
    story(core, ["the last invocation ends", *end(core, block)])


def test_the_readme_shows_the_table():
    readme = Path(core_module.__file__).with_name("README.md").read_text()
    assert core_module.TRANSITIONS.mermaid() in readme


def test_without_a_leader_who_comes_waits_for_one_and_after_ten_seconds_not_for_long(story):
    core = frontend()
    story(core, [
        *LIVE, (0.1, wanted(1)), (0.1, m.Flush()), (0.11, granted(5, 2, 2)),
        "the leader goes: what is held can be spent, who comes then waits",
        (1.0, m.LinkDown(link=1)),
        (1.1, wanted(2, deadline=31.1)), (1.2, wanted(3, deadline=31.2)),
        "no leader for ten seconds: no change of leaders takes as long. Who waits goes on, who comes waits for 2 s",
        (11.0, wanted(4, deadline=41.0)), (11.5, wanted(6, deadline=41.5)),
        (13.0, m.Tick()),
        "a leader: the ones that waited are asked for, and may wait for as long as they can",
        (13.1, m.LinkUp(link=2)), (13.1, welcome(link=2, term=2)), (13.1, m.Flush()),
        (13.2, wanted(5, deadline=43.2)), (13.2, m.Flush()),
        (13.5, m.Tick()),
        (31.2, m.Tick()),
    ])
