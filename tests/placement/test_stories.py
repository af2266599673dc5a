"""Stories of the fleet: read tests/placement/stories."""

from placement.leases import HoldState
from placement.messages import (
    Capacity,
    Heartbeat,
    LeadershipFailed,
    LeadershipRead,
    LeadershipWritten,
    LeaseDrawn,
    ManagerLeft,
    RecordFailed,
    RecordRead,
    RecordsRead,
    RecordUnread,
    RecordWritten,
    StreamClosed,
    Tick,
    WorkerReturned,
)
from storage.interfaces import Leadership, LeaseRecord, Stored
from tests.placement.fleet import WALL, feed, first_leader, joined, new_core, registered

MANAGER, OTHER, WORKER = "worker_manager-az1", "worker_manager-az2", "worker-az1-1"


def drawn(worker=WORKER, fraction=0.5, at=0.0):
    return LeaseDrawn(worker=worker, fraction=fraction, wall=WALL + at)


def written(worker=WORKER, revision=2):
    return RecordWritten(worker=worker, revision=revision)


def renewed(revision):
    return LeadershipWritten(revision=revision, cause="leadership")


def with_lease(**settings):
    """A leader, two managers, one worker leased to the first under number 1 at 0.0."""
    core = new_core(**settings)
    feed(core, [
        *first_leader(),
        (0.0, registered(MANAGER, 1)), (0.0, joined(MANAGER, 2)),
        (0.0, registered(OTHER, 3)), (0.0, joined(OTHER, 4)),
        (0.0, registered(WORKER, 5)),
    ])
    return core


def test_a_region_begins(story):
    story(new_core(), [
        *first_leader(),
        "A manager registers, opens its lease stream and becomes active; a second one stands by.",
        (0.1, registered(MANAGER, 1)), (0.1, joined(MANAGER, 2)),
        (0.2, registered(OTHER, 3)), (0.2, joined(OTHER, 4)),
        "A worker registers: the length is drawn, the record written, then the manager is told.",
        (0.3, registered(WORKER, 5)),
        (0.3, drawn(at=0.3)),
        (0.31, written()),
    ])


def test_two_workers_per_az_make_two_active_managers(story):
    core = new_core()
    feed(core, [*first_leader(), (0.0, registered(MANAGER, 1)), (0.0, joined(MANAGER, 2)),
                (0.0, registered(OTHER, 3)), (0.0, joined(OTHER, 4)), (0.0, registered(WORKER, 5))])
    story(core, [
        (0.1, registered("worker-az1-2", 6)),
        (0.1, drawn("worker-az1-2", at=0.1)),
        (0.1, written("worker-az1-2")),
    ])


def test_a_joining_manager_gets_its_part_by_handover(story):
    core = new_core()
    feed(core, [
        *first_leader(), (0.0, registered(MANAGER, 1)), (0.0, joined(MANAGER, 2)),
        (0.0, registered(WORKER, 3)), (0.0, registered("worker-az1-2", 4)),
    ])
    story(core, [
        "Two workers, both the first manager's. A second one becomes active and owns nothing yet.",
        (0.1, registered(OTHER, 5)), (0.1, joined(OTHER, 6)),
        "The first gives one back as it is; functions move with its first worker.",
        (0.2, WorkerReturned(manager=MANAGER, worker=WORKER, lease=1)),
        (0.2, written(revision=4)),
        (0.2, drawn(at=0.2)),
        (0.2, written(revision=5)),
        "The parts are fair.",
        (5.0, Heartbeat(node=MANAGER, connection=1)),
    ])


def test_silence_is_reversible_until_it_is_not(story):
    core = with_lease()
    beats = [(quarter / 4, Tick()) for quarter in range(1, 4)]
    others = [Heartbeat(node=MANAGER, connection=1), Heartbeat(node=OTHER, connection=3)]
    feed(core, beats)
    story(core, [
        (0.9, others[0]), (0.9, others[1]),
        "A second of silence: suspected. One word: serving again.",
        (1.0, Tick()), (1.0, renewed(2)),
        (1.2, Heartbeat(node=WORKER, connection=5, load=Capacity(memory_mb=4096, memory_free_mb=128))),
        (1.8, others[0]), (1.8, others[1]),
        (2.3, Tick()), (2.3, renewed(3)),
        (2.7, others[0]), (2.7, others[1]), (3.4, others[0]), (3.4, others[1]),
        (3.4, Tick()), (3.4, renewed(4)),
        "Three seconds: dead, and its manager is told that the lease is lost.",
        (4.2, Tick()),
        "It comes back as it was: the next lease has the next number.",
        (4.3, registered(WORKER, 6)),
        (4.3, drawn(at=4.3)),
        (4.3, written(revision=3)),
    ])


def test_a_leader_that_was_cut_off_takes_no_worker_away(story):
    core = with_lease()
    away = LeadershipFailed(fault="the store did not answer within 2.0 s")
    ticks = [(quarter / 4, Tick()) for quarter in range(1, 32)]
    # Off the network: the store doesn't answer, and everybody but the second manager falls silent.
    feed(core, sorted(
        [*ticks, *((at, away) for at in (3.1, 5.1, 7.1)),
         *((at / 2, Heartbeat(node=OTHER, connection=3)) for at in range(1, 16))],
        key=lambda one: one[0],
    ))
    story(core, [
        "Back, and heard of by others before it has read its record: nobody gets a role or a worker from it.",
        (7.8, registered(WORKER, 6)), (7.8, registered(OTHER, 7)), (7.8, joined(OTHER, 8)),
        (8.0, Tick()),
        "Another one leads: who was cut off for so long has a successor.",
        (8.1, LeadershipRead(stored=Stored(
            value=Leadership(holder="placement-az2", term=2, renewed_until=WALL + 11.0), revision=9
        ))),
    ])


def test_a_placement_that_stood_still_buries_nobody(story):
    core = with_lease()
    story(core, [
        (0.25, Tick()),
        "This process was stopped for ten seconds.",
        (10.25, Tick()),
        (10.5, Tick()),
    ])


def test_a_killed_manager_is_replaced(story):
    core = with_lease()
    story(core, [
        (0.2, Heartbeat(node=MANAGER, connection=1)),
        (0.3, ManagerLeft(manager=MANAGER, connection=2)),
        (0.3, StreamClosed(node=MANAGER, connection=1)),
        (0.9, Heartbeat(node=OTHER, connection=3)), (0.9, Heartbeat(node=WORKER, connection=5)),
        "Its stream broke and it isn't back within a second: the standby takes over, under the next number.",
        (1.25, Tick()), (1.25, renewed(2)),
        (1.25, drawn(at=1.25)),
        (1.26, written(revision=3)),
        "The first one comes back: it holds nothing and stands by.",
        (1.5, registered(MANAGER, 7, nonce=2)), (1.5, joined(MANAGER, 8, nonce=2)),
    ])


def test_a_manager_that_is_back_sooner_keeps_its_part(story):
    core = with_lease()
    story(core, [
        "The stream broke; the same process reconnects and still holds its worker.",
        (0.3, ManagerLeft(manager=MANAGER, connection=2)), (0.3, StreamClosed(node=MANAGER, connection=1)),
        (0.5, registered(MANAGER, 6)), (0.5, joined(MANAGER, 7, held=[(WORKER, 1)])),
        "The order was lost with the stream: it is said again.",
        (0.6, joined(MANAGER, 8)),
        "Another process under the same name: it gets the worker under the next number.",
        (0.7, registered(MANAGER, 9, nonce=2)), (0.7, joined(MANAGER, 10, nonce=2)),
        (0.7, drawn(at=0.7)), (0.7, written(revision=3)),
        "It says that it holds what it doesn't.",
        (0.8, joined(MANAGER, 11, nonce=2, held=[(WORKER, 1)])),
    ])


def test_a_lease_is_returned_and_granted_again(story):
    core = with_lease()
    story(core, [
        "Someone else's, or an older number: nothing happens.",
        (0.5, WorkerReturned(manager=OTHER, worker=WORKER, lease=1)),
        (0.5, WorkerReturned(manager=MANAGER, worker=WORKER, lease=7)),
        (0.6, WorkerReturned(manager=MANAGER, worker=WORKER, lease=1)),
        (0.6, written(revision=3)),
        (0.6, drawn(fraction=0.0, at=0.6)),
        (0.6, written(revision=4)),
    ])


def test_a_worker_started_anew_ends_its_lease(story):
    core = with_lease()
    story(core, [
        (0.5, registered(WORKER, 6, nonce=2)),
        (0.5, drawn(at=0.5)),
        (0.5, written(revision=3)),
    ])


def test_a_leaving_manager_hands_over(story):
    core = with_lease()
    story(core, [
        (0.5, registered(MANAGER, 1, leaving=True)),
        (0.5, WorkerReturned(manager=MANAGER, worker=WORKER, lease=1)),
        (0.5, written(revision=3)),
        (0.5, drawn(at=0.5)),
        (0.5, written(revision=4)),
    ])


def test_an_unknown_outcome_is_read_again(story):
    core = new_core()
    feed(core, [*first_leader(), (0.0, registered(MANAGER, 1)), (0.0, joined(MANAGER, 2))])
    ours = LeaseRecord(
        worker=WORKER, host="host-" + WORKER, incarnation="1", manager=MANAGER, number=1,
        soft_end=WALL + 27000, hard_end=WALL + 30600, state="leased",
    )
    story(core, [
        (0.1, registered(WORKER, 5)),
        (0.1, drawn(at=0.1)),
        "The store did not answer: nobody is told anything before the record was read.",
        (0.2, RecordFailed(worker=WORKER, fault="timed out")),
        (0.3, RecordUnread(worker=WORKER, fault="timed out")),
        (1.25, Tick()),
        "It was written after all.",
        (1.3, RecordRead(worker=WORKER, stored=Stored(value=ours, revision=2), fence=1, wall=WALL + 1.3)),
        "The same on the way back; here it wasn't written.",
        (1.4, WorkerReturned(manager=MANAGER, worker=WORKER, lease=1)),
        (1.5, RecordFailed(worker=WORKER, fault="timed out")),
        (1.6, RecordRead(worker=WORKER, stored=Stored(value=ours, revision=2), fence=1, wall=WALL + 1.6)),
    ])


def test_leadership_is_taken_over_when_the_record_stands_still(story):
    def theirs(revision, until=WALL):
        leadership = Leadership(holder="placement-az2", term=4, renewed_until=until)
        return LeadershipRead(stored=Stored(value=leadership, revision=revision), cause="leadership")

    story(new_core(), [
        (0.0, Tick()), (0.0, theirs(8)),
        (1.0, Tick()), (1.0, theirs(9)),
        (2.0, Tick()), (2.0, theirs(9)),
        (3.0, Tick()), (3.0, theirs(9)),
        (4.1, Tick()), (4.1, theirs(9)),
        "Another standby was faster.",
        (4.2, LeadershipFailed(fault="conflict")),
        (5.2, Tick()),
        (5.2, theirs(10)),
        "The holder gives it up.",
        (6.2, Tick()), (6.2, theirs(11, until=0.0)),
    ])


def test_a_killed_leader_is_replaced_sooner(story):
    value = Leadership(holder="placement-az2", term=4, renewed_until=WALL)
    seen = LeadershipRead(stored=Stored(value=value, revision=8), cause="leadership")
    core = new_core()
    feed(core, [(0.0, registered("placement-az2", 1))])
    story(core, [
        (0.5, Tick()), (0.5, seen),
        "Its stream breaks and it isn't back: had it lived, it would have renewed by now.",
        (0.6, StreamClosed(node="placement-az2", connection=1)),
        (1.2, Tick()), (1.2, seen),
        (2.1, Tick()), (2.1, seen),
    ])


def test_a_manager_that_dials_before_the_records_are_read_keeps_its_leases(story):
    mine = Leadership(holder="placement-az1", term=4, renewed_until=WALL)
    core = new_core()
    seen = LeadershipRead(stored=Stored(value=mine, revision=20), cause="leadership")
    feed(core, [(0.0, Tick()), (0.0, seen), (0.2, registered(WORKER, 1)), (0.2, registered(MANAGER, 2)), (1.6, Tick())])

    def lease(worker, number):
        return Stored(value=LeaseRecord(
            worker=worker, host="host-" + worker, incarnation="1", manager=MANAGER, number=number,
            soft_end=WALL + 7200, hard_end=WALL + 10800, state="leased",
        ), revision=12)

    story(core, [
        (1.6, seen), (1.61, LeadershipWritten(revision=21)),
        (1.62, joined(MANAGER, 3, held=[(WORKER, 3), ("worker-az2-1", 8)])),
        "What it gives back meanwhile isn't taken for its own when the records say so.",
        (1.63, WorkerReturned(manager=MANAGER, worker="worker-az2-1", lease=8, cause="returned")),
        (1.7, RecordsRead(records=(lease(WORKER, 3), lease("worker-az2-1", 8)), wall=WALL, cause="leadership")),
        (1.75, Tick()),
    ])
    assert core.holds[WORKER].state is HoldState.LEASED
    assert core.holds["worker-az2-1"].state is HoldState.FREE


def test_a_restarted_placement_starts_from_its_records(story):
    mine = Leadership(holder="placement-az1", term=4, renewed_until=WALL)
    lease = LeaseRecord(
        worker=WORKER, host="host-" + WORKER, incarnation="1", manager=MANAGER, number=3,
        soft_end=WALL + 7200, hard_end=WALL + 10800, state="leased",
    )
    core = new_core()
    seen = LeadershipRead(stored=Stored(value=mine, revision=20), cause="leadership")
    story(core, [
        "The record names this process's former self: a standby, who knows the region, may be faster.",
        (0.0, Tick()), (0.0, seen),
    ])
    feed(core, [(0.2, registered(WORKER, 1)), (0.2, registered(MANAGER, 2))])
    story(core, [(1.6, Tick()), (1.6, seen)])
    feed(core, [(1.61, LeadershipWritten(revision=21))])
    story(core, [
        (1.7, RecordsRead(records=(Stored(value=lease, revision=12),), wall=WALL, cause="leadership")),
        (1.7, joined(MANAGER, 3, held=[(WORKER, 3)])),
        "Everybody had time to register: the first view goes out, the lease stays.",
        (1.75, Tick()),
        "The record carries another term: it stands by again.",
        (2.7, Tick()), (2.7, LeadershipFailed(fault="conflict")),
        (2.7, LeadershipRead(stored=Stored(value=Leadership(holder="x", term=9, renewed_until=1), revision=30))),
    ])
