"""With a clause of the counting rules taken out of the code, a story is violated; with it, the story holds.

The clauses are those of docs/specs/mutants.txt, which the model checker refutes one by one; docs/specs/README.md prints
this table beside the model's. A story that goes on holding without its clause would show nothing of it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from counting.leadership import Timing
from tests.counting import test_mutants
from tests.frontend import test_invoke
from tests.sandbox import test_watchdog
from tests.specs import stories
from tests.specs.clauses import CLAUSES, take_out

SPECS = Path(__file__).resolve().parents[2] / "docs" / "specs"
MUTANTS = SPECS / "mutants.txt"

evicted = test_mutants.test_a_silent_worker_is_evicted_after_authority_timeout_grace_and_drift
bound = test_mutants.test_put_returns_when_every_holder_acknowledged_or_was_fenced_and_counted
asked = test_mutants.test_movedunasked_whose_runs_are_charged_from_another_pool_is_asked_before_a_refusal
uncounted = test_mutants.test_moveddrainasused_a_block_of_another_pool_that_is_not_yet_counted_is_no_proof

STORIES: dict[str, Callable[[], Any]] = {
    "overgrant": test_mutants.test_newonly_runs_that_moved_are_still_charged_to_the_old_pool,
    "noacct": test_mutants.test_noacct_a_permit_that_moves_to_another_pool_is_not_made,
    "lentlimit": stories.what_another_account_leaves_is_not_lent,
    "nogroup": stories.what_is_provisioned_of_a_reservation_waits_for_what_runs_by_it,
    "anyorder":
        test_mutants.test_anyorder_while_requests_wait_a_free_permit_goes_to_the_oldest_and_to_no_top_up,
    "absans": stories.a_grants_size_is_less_own_give_backs_on_their_way,
    "giveused": stories.only_what_is_idle_goes_back,
    "coldfree": stories.a_request_that_waits_for_a_cold_sandbox_holds_its_permit,
    "result": stories.a_permit_is_held_until_end,
    "timeoutfrees": test_invoke.test_a_broken_stream_frees_nothing_until_the_worker_says_so,
    "nobar": stories.what_welcome_does_not_name_never_starts,
    "refusenobar": stories.a_refusal_is_for_good,
    "oldround": test_mutants.test_oldround_a_round_serves_nobody_who_came_after_it_began,
    "foundignored": stories.what_a_round_found_goes_to_the_oldest_and_proves_nothing_to_the_next,
    "freeignored": stories.a_round_looks_at_what_is_free_before_it_refuses,
    "unordered": test_mutants.test_a_round_that_waits_for_a_batch_under_way_is_closed_by_a_later_one,
    "recallfirst": stories.a_frontend_that_is_back_hears_its_sizes_before_a_recall,
    "staleclose":
        test_mutants.test_staleclose_a_round_is_closed_by_a_quorum_that_confirmed_the_leader_after_it,
    "reuseround": test_mutants.test_reuseround_a_round_number_is_never_used_by_two_leaders,
    "silent429": test_mutants.test_silent429_a_silent_holder_is_no_proof,
    "drainasused": test_mutants.test_drainasused_a_block_that_is_not_yet_counted_is_no_proof,
    "movedunasked": partial(asked, test_mutants.moved, test_mutants.F, test_mutants.REST),
    "moveddrainasused": partial(uncounted, test_mutants.moved, test_mutants.F),
    "precautionasused": test_mutants.test_a_precautionary_charge_is_no_proof,
    "notable": test_mutants.test_notable_a_join_returns_the_whole_fence_table,
    "beforetable": stories.nothing_begins_before_the_fence_table,
    "leaverunning": stories.a_worker_leaves_when_nothing_runs,
    "leavestarts": stories.a_worker_that_left_starts_nothing,
    "fencegc": test_mutants.test_fencegc_a_fence_outlives_its_block,
    "nofence": stories.a_start_of_a_fenced_session_is_refused,
    "countearly": test_mutants.test_a_block_is_counted_only_when_every_member_has_reported_or_is_gone,
    "noevidence": test_mutants.test_noevidence_a_counted_block_keeps_what_runs,
    "sumofreports": test_mutants.test_sumofreports_a_block_never_grows_by_what_was_reported,
    "firstpool": stories.a_report_counts_for_every_pool_of_its_session,
    "endcount": test_mutants.test_endcount_an_end_frees_the_invocation_that_it_names,
    "givelate": test_mutants.test_givelate_a_give_back_of_a_counted_epoch_is_refused,
    "oldreport": test_mutants.test_a_report_on_a_workers_older_stream_says_nothing_any_more,
    "retryunsure": stories.a_start_whose_fate_is_unknown_is_not_tried_again,
    "noack": test_mutants.test_noack_who_joins_again_is_asked_for_the_report_that_is_missing,
    "nocheck": stories.nothing_starts_without_authority,
    "receipt": stories.authority_counts_from_when_the_renewal_was_sent,
    "staleleader": test_mutants.test_staleleader_a_renewal_is_answered_after_a_quorum_confirmed_the_leader,
    "early": partial(evicted, Timing(authority_s=120.0, grace_s=30.0, drift=0.0), 900.0, 1050.0),
    "notimeout": partial(evicted, Timing(authority_s=20.0, grace_s=5.0, drift=0.0), 3.0, 28.0),
    "nodrift": partial(evicted, Timing(authority_s=100.0, grace_s=0.0, drift=0.5), 100.0, 300.0),
    "noreset": test_mutants.test_noreset_a_new_leader_starts_every_timer_anew,
    "nowatchdog": test_watchdog.test_authority_ends_and_half_a_grace_after_the_longest_timeout_everything_goes,
    "noinc": stories.a_start_for_another_incarnation_is_refused,
    "oldonly": test_mutants.test_oldonly_runs_of_the_old_pool_are_charged_to_the_new_one_until_they_end,
    "newonly": test_mutants.test_newonly_runs_that_moved_are_still_charged_to_the_old_pool,
    "chargeatack":
        test_mutants.test_chargeatack_before_a_holder_has_spoken_its_whole_block_is_charged_to_the_new_pool,
    "fencednoxcharge": test_mutants.test_fencednoxcharge_draining_and_counted_blocks_are_charged_to_the_new_pool,
    "oldgengrant": test_mutants.test_oldgengrant_who_has_not_seen_the_generation_gets_nothing,
    "keepold": stories.a_permit_of_an_older_generation_goes_back_and_is_not_used_again,
    "nogen": partial(bound, False),
    "putonmark": partial(bound, True),
    "twice": test_mutants.test_a_command_is_applied_once,
    "oldanswer": stories.an_older_answer_is_dropped,
}

WITHOUT_A_SWITCH = {
    "nolasttry": "a permit never lies idle at a frontend while a request waits there: whoever frees one serves first",
    "reportfirst": "to fence and to report is one call of the worker's core",
    "ackrunonly": "what is accepted and what has begun are one table of the worker's core",
    "killrunningonly": "the spawner knows sandboxes and no invocations: it has nothing to spare one by",
    "ghost": "a kill of real processes: tests/sandbox/test_launch.py tells it",
}

BESIDE_THE_MODEL = {
    "foundignored": "more than the model's judge asks for: what a round found is free, or one who waited longer has it",
    "movedunasked": "the model's ledger knows at once which moved runs have ended: nobody has to be asked",
    "moveddrainasused": "a fenced block is charged whole to the other pool there, which `precautionasused` takes out",
}
"""Clauses of the code that the model can't refute, and why."""

VIOLATED = (AssertionError, pytest.fail.Exception)
SYNC = [name for name, story in STORIES.items() if not inspect.iscoroutinefunction(story)]
ASYNC = [name for name in STORIES if name not in SYNC]


def test_every_mutant_of_the_model_has_a_story_and_a_switch_or_a_reason():
    lines = [line.split() for line in MUTANTS.read_text().splitlines() if line and not line.startswith("#")]
    assert {clause for _, clause, *_ in lines} == (STORIES.keys() | WITHOUT_A_SWITCH.keys()) - BESIDE_THE_MODEL.keys()
    assert STORIES.keys() == CLAUSES.keys()
    assert not STORIES.keys() & WITHOUT_A_SWITCH.keys()


def test_the_page_says_of_every_mutant_where_it_falls_and_which_story_is_violated():
    page = (SPECS / "README.md").read_text()
    for line in MUTANTS.read_text().splitlines():
        if line and not line.startswith("#"):
            cfg, clause, falls, rule, what = line.split(maxsplit=4)
            story = STORIES.get(clause)
            name = getattr(getattr(story, "func", story), "__name__", "").removeprefix("test_")
            told = f"`{name}`" if story is not None else f"none: {WITHOUT_A_SWITCH[clause]}"
            row = f"| {rule} | `{clause}` | {what} | `{falls}` in `{cfg}` |"
            assert row in page, row
            assert told in page[page.index(row):].splitlines()[0], told


@pytest.mark.parametrize("clause", SYNC)
def test_a_story_is_violated_without_its_clause(clause, monkeypatch):
    STORIES[clause]()
    take_out(clause, monkeypatch)
    with pytest.raises(VIOLATED):
        STORIES[clause]()


@pytest.mark.parametrize("clause", ASYNC)
async def test_a_story_of_streams_is_violated_without_its_clause(clause, monkeypatch):
    await STORIES[clause]()
    take_out(clause, monkeypatch)
    with pytest.raises(VIOLATED):
        await STORIES[clause]()
