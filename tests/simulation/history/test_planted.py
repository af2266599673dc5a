"""The checker is checked: each planted violation is found as its invariant and no other, an honest history has none."""

import pytest

from simulation.history import check, records
from simulation.history.records import (
    Authority,
    Beat,
    Bound,
    Clock,
    Connected,
    Cut,
    DeadLettered,
    Deposed,
    Destroyed,
    Draining,
    EventAccepted,
    EventRan,
    FenceAcked,
    Header,
    LeaseHeld,
    Led,
    Life,
    Lost,
    Member,
    Over,
    Placed,
    Proposed,
    RecallAnswered,
    Recalled,
    Refused,
    Responded,
    Rest,
    Returned,
    Served,
    Session,
    Unproven,
    line,
    parse,
)
from tests.simulation.history.honest import (
    C2,
    C3,
    CLOSED,
    F1,
    F2,
    HONEST,
    HOUR,
    M1,
    M2,
    P1,
    P2,
    POOL,
    REST,
    S1,
    S2,
    W1,
    W2,
    adopted,
    answered,
    asked,
    block,
    committed,
    end,
    entry,
    far,
    found,
    grant,
    granted,
    history,
    level,
    made,
    ran,
    recall,
    refused,
    room,
    start,
    throttled,
    wanted,
)

HELD_BY_TWO = [
    level(79, 0, node=C2), Session(at=79.1, node=C2, session=S2, state="live"), block(79.9, 1, node=C2),
    block(79.9, 1, S2, node=C2), level(79.9, 2, node=C2), wanted(80, 9, node=C2),
    block(82, 0, node=C2), block(82, 0, S2, node=C2), level(82, 0, node=C2)]
BEGUN = [asked("x", 80), start("x", 80.1, "s9", W2)]
ENDED = [end("x", 82, "s9", W2), answered("x", 82.1)]
CONTENDED = [   # frontend-1 waits from 79.5 on; a permit comes free at 80.9, and frontend-2 gets it
    block(79, 1, node=C2), level(79, 1, limit=1, node=C2), wanted(79.5, 9, node=C2), block(80.9, 0, node=C2),
    level(80.9, 0, limit=1, node=C2), block(80.95, 1, f"{F2}#2", node=C2), level(80.95, 1, limit=1, node=C2),
    block(82, 0, f"{F2}#2", node=C2), level(82, 0, limit=1, node=C2), granted(82, 1, node=C2)]
RESERVED = [level(78, 0, limit=1, node=C2, room=1), Bound(at=78.2, node=C2, pool=POOL, limit=1, since=78)]
FROM_THE_REST = [*ran("x", 80, "s4", pool=REST)]
LED_ANEW = [Deposed(at=79, node=C2, term=2), Led(at=79.1, node=C3, term=3)]
DRAINING = [
    Session(at=75, node=C2, session=f"{F2}#2", state="draining"), block(75, 1, f"{F2}#2", node=C2),
    level(75, 1, limit=1, node=C2), FenceAcked(at=75.1, node=W1, session=f"{F2}#2"),
    *(Authority(at=at, node=W1, until=200) for at in (76, 77, 78))]
ALSO_HONEST = {
    "as it is": [],
    "one after the other in one instant": [*ran("x", 31.1 + 1, "s2", W2)],
    "admitted before the limit was lowered, begun after it": [
        asked("x", 29), start("x", 30.3, "s2", W2), asked("y", 29), start("y", 30.4, "s3", W2),
        end("x", 30.5, "s2", W2), end("y", 30.5, "s3", W2), answered("x", 30.6), answered("y", 30.6)],
    "more than the old limit, when the new one is written": [
        level(80, 0, limit=3, node=C2), *ran("x", 81, "s4"), *ran("y", 81, "s5"), *ran("z", 81, "s6")],
    "two at once, as far as clocks of two hosts can tell": [
        far(W2), *ran("x", 81, "s4"), *ran("y", 81, "s9", W2)],
    "started again elsewhere after a certain refusal": [
        asked("x", 80), Refused(at=80.1, node=W1, invocation="x", reason="FENCED"), start("x#2", 80.2, "s9", W2),
        end("x#2", 80.5, "s9", W2), answered("x", 80.6)],
    "killed, and its host declared dead": [
        start("x", 80, "s9", W2), asked("x", 79.9), Lost(at=80.5, node=W2), answered("x", 80.6, status=500,
        error="ServiceException", explained=True)],
    "a permit that is kept until the worker that may run it is gone": [
        block(75, 1, node=C2), level(75, 1, limit=1, node=C2), asked("x", 75.1),
        answered("x", 75.5, status=500, error="ServiceException", explained=True),
        Member(at=83, node=C2, incarnation="host-9@1", state="evicted"),
        block(84, 0, node=C2, why="GiveBack"), level(84, 0, limit=1, node=C2)],
    "a permit that is kept by a frontend which could not hear of the end": [
        block(75, 1, node=C2), level(75, 1, limit=1, node=C2), asked("x", 75.1), start("x", 75.2, "s4"),
        end("x", 75.3, "s4"), answered("x", 78.5, status=500, error="ServiceException", explained=True),
        block(84.5, 0, node=C2, why="GiveBack"), level(84.5, 0, limit=1, node=C2)],
    "a frontend that was killed with a request, a moment before its permit came back": [
        asked("x", 74), block(75, 1, node=C2), level(75, 1, limit=1, node=C2), Lost(at=80, node=F1),
        block(84.5, 0, node=C2), level(84.5, 0, limit=1, node=C2)],
    "a draining block, and a worker that has not said what runs of it": DRAINING,
    "a draining block, and a worker whose word may be lost": [
        *DRAINING, FenceAcked(at=75.1, node=W2, session=f"{F2}#2"), Authority(at=76, node=W2, until=200)],
    "the operator declared a host dead that starts one more": [
        Member(at=80, node=C2, incarnation="host-1@1", state="declared dead"), *ran("x", 80.5, "s4")],
    "the operator declared a host dead that still runs something": [
        *BEGUN, Member(at=80.3, node=C2, incarnation="host-2@2", state="declared dead"), *ENDED],
    "another incarnation starts once it has authority": [
        Life(at=79, node=W1, incarnation="host-1@2"), Authority(at=79.5, node=W1, until=200), *ran("x", 80, "s4")],
    "a free permit, and a leader that was stopped": [
        wanted(81.55, 9, node=C2), Served(at=83.4, node=F1, number=9, how="admitted")],
    "a free permit of a pool whose account has none": [
        room(80, 0, C2), wanted(80.1, 9, node=C2), Served(at=85, node=F1, number=9, how="refused"),
        throttled(85, 9, node=C2), *refused("x", 84.9)],
    "a free permit of a pool whose function's reservation has none": [
        level(80, 0, limit=1, node=C2, room=0), wanted(80.1, 9, node=C2),
        Served(at=85, node=F1, number=9, how="refused"), throttled(85, 9, node=C2), *refused("x", 84.9)],
    "a free permit, and a quorum that is slow": [
        wanted(80, 9, node=C2), Proposed(at=80.1, node=C2), *entry(4, 81.5), committed(4, 81.5, C2),
        granted(82.4, 1, node=C2)],
    "a free permit, and a quorum that is gone": [wanted(80, 9, node=C2), Proposed(at=80.1, node=C2)],
    "a wish that reaches a leader whose time is over": [
        wanted(80, 9), level(80, 0), Served(at=85, node=F1, number=9, how="admitted")],
    "granted at once, and heard of late": [
        wanted(80, 9, node=C2), granted(80.1, 1, node=C2), wanted(80.2, 9, node=C2),
        Served(at=84, node=F1, number=9, how="admitted")],
    "granted and served, when a slow wish for it comes": [
        wanted(80, 9, node=C2), granted(80.1, 1, node=C2), Served(at=80.15, node=F1, number=9, how="admitted"),
        wanted(80.2, 9, node=C2)],
    "granted, and its stream broke": [
        wanted(80, 9, node=C2), granted(80.1, 1, node=C2), wanted(80.2, 9, node=C2), wanted(80.3, node=C2)],
    "granted one after the other, and heard of late": [
        wanted(80, 8, 9, node=C2), granted(80.1, 1, node=C2), granted(80.15, 1, node=C2), wanted(80.2, 8, 9, node=C2),
        Served(at=84, node=F1, number=8, how="admitted"), Served(at=84, node=F1, number=9, how="admitted")],
    "granted to who came a moment later": [
        *CONTENDED, wanted(80.4, 5, frontend=F2, node=C2), granted(80.95, 1, F2, node=C2)],
    "granted to who had come before, and whose stream broke meanwhile": [
        *CONTENDED, wanted(79.4, 5, frontend=F2, node=C2), wanted(80, frontend=F2, node=C2),
        wanted(80.8, 5, frontend=F2, node=C2), granted(80.95, 1, F2, node=C2)],
    "granted to who had come before, and whose frontend's older session ended meanwhile": [
        Session(at=79, node=C2, session=f"{F2}#2", state="live"), *CONTENDED, wanted(79.4, 5, frontend=F2, node=C2),
        Session(at=80, node=C2, session=S2, state="gone"), wanted(80.8, 5, frontend=F2, node=C2),
        granted(80.95, 1, F2, node=C2)],
    "granted for the wish of a stream that broke": [
        *CONTENDED, wanted(79.4, 5, frontend=F2, node=C2), wanted(80, frontend=F2, node=C2),
        granted(80.95, 1, F2, node=C2)],
    "granted for one that its frontend served meanwhile": [
        *CONTENDED, wanted(79.4, 5, 6, frontend=F2, node=C2), Served(at=80.8, node=F2, number=5, how="admitted"),
        wanted(80.8, 6, 7, frontend=F2, node=C2), granted(80.95, 2, F2, node=C2)],
    "granted to a younger one when a slow quorum has answered": [
        *CONTENDED, wanted(80.8, 5, frontend=F2, node=C2), Proposed(at=80, node=C2), *entry(4, 80.85),
        committed(4, 80.85, C2), granted(80.95, 1, F2, node=C2)],
    "throttled when all who hold permits live were heard": [
        *HELD_BY_TWO, Recalled(at=80.3, node=C2, pool=POOL, round=1),
        Session(at=80.4, node=C2, session=S2, state="gone"), RecallAnswered(
            at=80.5, node=C2, pool=POOL, round=1, frontend=F1, given_back=0, in_use=1),
        wanted(80.55, node=C2), wanted(80.56, 9, node=C2), throttled(80.6, 9, node=C2), *refused("x", 80)],
    "throttled where all permits are those of frontends that are gone": [
        *HELD_BY_TWO, Session(at=80.3, node=C2, session=S1, state="counted"),
        Session(at=80.3, node=C2, session=S2, state="counted"), throttled(80.6, 9, node=C2), *refused("x", 80),
        Session(at=80.7, node=C2, session=S1, state="live")],
    "throttled in a round that nobody could be asked in, as what came free meanwhile went to older ones": [
        level(79, 0, node=C2), Session(at=79.1, node=C2, session=S2, state="live"), wanted(80, 9, node=C2),
        block(80.2, 1, node=C2), block(80.2, 1, S2, node=C2), level(80.2, 2, node=C2), throttled(80.6, 9, node=C2),
        *refused("x", 80), block(82, 0, node=C2), block(82, 0, S2, node=C2), level(82, 0, node=C2)],
    "refused for want of a proof": [
        wanted(80, 9, node=C2),
        Unproven(at=80.5, node=C2, frontend=F1, pool=POOL, waiting=(9,), reason="silent holder"),
        Served(at=84, node=F1, number=9, how="refused")],
    "a permit out while its run can't be heard of": [
        block(80, 1, node=C2), level(80, 1, limit=1, node=C2), asked("x", 80), start("x", 80.1, "s9", W2),
        Lost(at=88, node=W2), answered("x", 81, status=500, error="ServiceException", explained=True)],
    "a refusal of what the client did wrong": [
        answered("x", 80, status=404, error="ResourceNotFoundException")],
    "a reservation given up while one of its requests waits for a sandbox": [
        asked("x", 80), level(80.5, 0, limit=0, node=C2), Bound(at=80.6, node=C2, pool=POOL, limit=0, since=80.5),
        *ran("y", 81, "s9", W2, pool=REST), *ran("z", 81, "s8", W2, pool=REST), start("x", 81.5, "s4"),
        Responded(at=81.9, node=W1, invocation="x", digest="r-x"), end("x", 81.9, "s4"),
        Over(at=82, node=F1, request="x"), answered("x", 82, digest="r-x")],
    "a reservation given up by the clock of a leader of which little is known": [
        far(C2, -0.5, 0.5), asked("x", 80), level(80.5, 0, limit=0, node=C2),
        Bound(at=80.6, node=C2, pool=POOL, limit=0, since=80.5), *ran("y", 80.8, "s9", W2, pool=REST),
        *ran("z", 80.8, "s8", W2, pool=REST), start("x", 80.9, "s4"),
        Responded(at=81.9, node=W1, invocation="x", digest="r-x"), end("x", 81.9, "s4"),
        Over(at=82, node=F1, request="x"), answered("x", 82, digest="r-x")],
    "from the account's rest, asked before the reservation bound": [
        level(78, 0, limit=1, node=C2, room=1), Bound(at=80.05, node=C2, pool=POOL, limit=1, since=78),
        *FROM_THE_REST],
    "from the account's rest, when the reservation is being given up": [
        *RESERVED, level(80.05, 0, limit=0, node=C2), *FROM_THE_REST],
    "from the account's rest, of a reservation that was given up": [
        *RESERVED, level(79, 0, limit=0, node=C2), Bound(at=79.2, node=C2, pool=POOL, limit=0, since=79),
        *FROM_THE_REST],
    "from the account's rest, of a reservation of which a new leader knows nothing": [
        *RESERVED, *LED_ANEW, *FROM_THE_REST],
    "told again what is left of a lease": [grant(80, 2, hard_end_s=HOUR)],
    "told again by a placement that was replaced": [
        grant(80, 3, node=P2), grant(81, 2, hard_end_s=7 * HOUR)],
    "adopted again, a moment after the order was sent": [
        grant(80, 3, manager=M2), adopted(80.1, 3, manager=M2), adopted(81.9, 3, manager=M2)],
    "taken over": [grant(80, 3, manager=M2, node=P2), adopted(80.1, 3, manager=M2)],
    "the old manager still says so": [
        LeaseHeld(at=80, node="operator", worker=W1, lease=2, manager=M1),
        LeaseHeld(at=80.1, node="operator", worker=W1, lease=3, manager=M2),
        LeaseHeld(at=80.2, node="operator", worker=W1, lease=2, manager=M1)],
    "a member that was away begins in the midst": [
        Life(at=80, node=C3), *entry(3, 80.1, (C3,), after=-1), *entry(4, 80.2, (C3, C2), after=3)],
    "a new leader from a snapshot that nobody saw": [
        Life(at=80, node=C3), Deposed(at=81, node=C2, term=2), Led(at=82, node=C3, term=3)],
}
STOPPED = [record for record in HONEST if isinstance(record, Beat) and 81.55 < record.at < 82.55]
PAUSED = {"a free permit, and a leader that was stopped": STOPPED}

PLANTED = {
    # 1: limits
    "two runs of a limit of 1": (1, [*ran("x", 80, "s4"), *ran("y", 80.5, "s9", W2)]),
    "three runs of a limit of 2": (1, [asked("x", 10), start("x", 10.3, "s3", W2), end("x", 10.4, "s3", W2)]),
    "one more run when the limit had become 0": (1, [
        level(80, 0, limit=0, node=C2), Bound(at=80.1, node=C2, pool=POOL, limit=0, since=80), *ran("x", 80.2, "s4")]),
    "one too many of a function whose older runs are of the account's rest": (1, [
        *ran("x", 80, "s4", lasts_s=2, pool="a/*"), *ran("y", 80.5, "s9", W2)]),
    "more granted than the limit": (1, [
        block(80, 2, node=C2), level(80, 2, limit=1, node=C2), block(80.1, 0, node=C2),
        level(80.1, 0, limit=1, node=C2)]),
    "more granted than the function has reserved": (1, [
        block(80, 1, node=C2), level(80, 1, limit=1, node=C2, room=-1), block(80.1, 0, node=C2),
        level(80.1, 0, limit=1, node=C2, room=0)]),
    "more granted than the account has": (1, [
        block(80, 1, node=C2), room(80, -1, C2), level(80, 1, limit=1, node=C2), block(80.1, 0, node=C2),
        level(80.1, 0, limit=1, node=C2)]),
    "a permit that two hold": (1, [
        block(80, 1, node=C2), block(80, 1, f"{F2}#2", node=C2), level(80, 1, limit=1, node=C2),
        block(80.1, 0, node=C2), block(80.1, 0, f"{F2}#2", node=C2), level(80.1, 0, limit=1, node=C2)]),
    "started on a fenced block": (1, [asked("x", 80, F2), start("x", 80.1, "s4", session=S2), end("x", 80.2, "s4"),
                                      answered("x", 80.3, F2)]),
    "a fence's report that leaves a run out": (1, [
        asked("x", 80), start("x", 80.1, "s4"), FenceAcked(at=80.2, node=W1, session=S1), end("x", 80.3, "s4"),
        answered("x", 80.4)]),
    "started by an evicted worker": (1, [
        Member(at=80, node=C2, incarnation="host-1@1", state="evicted"), *ran("x", 80.5, "s4")]),
    "started without authority": (1, [Authority(at=79, node=W1, until=80), *ran("x", 80.5, "s4")]),
    "started by an incarnation that has not joined": (1, [
        Life(at=79, node=W1, incarnation="host-1@2"), *ran("x", 80, "s4")]),
    "started between its life and its first authority": (1, [
        Life(at=79, node=W1, incarnation="host-1@2"), *ran("x", 80, "s4"), Authority(at=82, node=W1, until=200),
        *ran("y", 83, "s4")]),
    "evicted while it runs": (1, [*BEGUN, Member(at=80.3, node=C2, incarnation="host-2@2", state="evicted"), *ENDED]),
    "left while it runs": (1, [*BEGUN, Member(at=80.3, node=C2, incarnation="host-2@2", state="left"), *ENDED]),
    "replaced while it runs": (1, [
        *BEGUN, Member(at=80.3, node=C2, incarnation="host-2@2", state="replaced"), *ENDED]),
    "from the account's rest although its function has a reservation": (1, [*RESERVED, *FROM_THE_REST]),
    "from the account's rest although its function is reserved 0": (1, [
        level(78, 0, limit=0, node=C2, room=0), Bound(at=78.2, node=C2, pool=POOL, limit=0, since=78),
        *FROM_THE_REST]),
    "from the account's rest although a new leader knows its function's reservation": (1, [
        *RESERVED, *LED_ANEW, level(79.1, 0, limit=1, node=C3, room=1), *FROM_THE_REST]),
    # 2: leaks
    "a permit that never came back": (2, [block(75, 1, node=C2), level(75, 1, limit=1, node=C2)]),
    "one more than is kept for a run that nobody knows of": (2, [
        block(75, 2, node=C2), level(75, 2, limit=2, node=C2), asked("x", 75.1),
        answered("x", 75.5, status=500, error="ServiceException", explained=True)]),
    "a permit that is kept for a run that began and ended": (2, [
        block(75, 1, node=C2), level(75, 1, limit=1, node=C2), asked("x", 75.1), start("x", 75.2, "s4"),
        end("x", 75.3, "s4"), answered("x", 78, status=500, error="ServiceException", explained=True)]),
    "a permit that is kept although its worker is gone": (2, [
        block(75, 1, node=C2), level(75, 1, limit=1, node=C2), asked("x", 75.1),
        answered("x", 75.5, status=500, error="ServiceException", explained=True),
        Member(at=76, node=C2, incarnation="host-9@1", state="evicted")]),
    "a counted block of which nothing runs": (2, [
        Session(at=75, node=C2, session=f"{F2}#2", state="counted"), block(75, 1, f"{F2}#2", node=C2),
        level(75, 1, limit=1, node=C2)]),
    "a permit that never came back, and a frontend that was killed with a request": (2, [
        block(75, 1, node=C2), level(75, 1, limit=1, node=C2), asked("x", 74, F2), Lost(at=76, node=F2)]),
    "a permit that never came back, killed before its request was sent": (2, [
        asked("x", 74), Lost(at=74.5, node=F1), block(75, 1, f"{F2}#2", node=C2), level(75, 1, limit=1, node=C2)]),
    "a draining block of which every worker has said what runs": (2, [
        *DRAINING, FenceAcked(at=75.1, node=W2, session=f"{F2}#2"),
        *(Authority(at=at, node=W2, until=200) for at in (76, 77, 78))]),
    "a draining block when the worker that said nothing is out": (2, [
        *DRAINING, Member(at=76, node=C2, incarnation="host-2@2", state="evicted")]),
    "out when the ledger was asked": (2, [Rest(at=85, pool=POOL, out=1, after_s=5, whole=False)]),
    "a run without an end": (2, [asked("x", 80), start("x", 80.1, "s4"), answered("x", 81)]),
    # 3: events
    "an event that was lost": (3, [EventAccepted(at=80, node=F1, event="x", retries=2)]),
    "an event that failed for good and went nowhere": (3, [
        EventAccepted(at=80, node=F1, event="x", retries=0), EventRan(at=81, node=F1, event="x", outcome="error")]),
    "an event that was dead-lettered twice": (3, [
        EventAccepted(at=80, node=F1, event="x", retries=0), EventRan(at=81, node=F1, event="x", outcome="error"),
        DeadLettered(at=82, node=F1, event="x"), DeadLettered(at=82, node=F2, event="x")]),
    # 4: retries
    "one retry too many": (4, [EventRan(at=7.5, node=F1, event="e2", outcome="error")]),
    "tried again after all retries, with success": (4, [
        EventAccepted(at=80, node=F1, event="x", retries=0), EventRan(at=81, node=F1, event="x", outcome="error"),
        EventRan(at=82, node=F1, event="x", outcome="success")]),
    # 5: at most one start
    "started twice": (5, [start("r1#2", 80, "s4")]),
    "started on two workers": (5, [start("r4", 31.2, "s2", W2)]),
    "refused, and run": (5, [*refused("x", 80), start("x", 80.1, "s4"), end("x", 80.2, "s4")]),
    "refused when it had run": (5, [
        asked("x", 80), start("x", 80.1, "s4"), end("x", 80.2, "s4"),
        answered("x", 80.3, status=503, error="ServiceUnavailableException", explained=True)]),
    "refused for certain by a worker that starts it later": (5, [
        asked("x", 80), Refused(at=80.1, node=W1, invocation="x", reason="BUSY"), start("x", 80.2, "s4"),
        end("x", 80.3, "s4"), answered("x", 80.4)]),
    # 6: its own result
    "another's payload": (6, [
        asked("x", 80), start("x", 80.1, "s4", digest="p-y"), end("x", 80.2, "s4"), answered("x", 80.3)]),
    "another's answer": (6, [
        asked("x", 80), start("x", 80.1, "s4"), Responded(at=80.2, node=W1, invocation="x", digest="r-x"),
        end("x", 80.2, "s4"), answered("x", 80.3, digest="r-y")]),
    "an answer that says whose it is": (6, [answered("x", 80, echoes=True, echo="y")]),
    "an answer that doesn't say whose it is": (6, [answered("x", 80, echoes=True)]),
    # 7: one at a time
    "two at once in one sandbox": (7, [
        asked("x", 10.5), start("x", 11.05, "s2", W2), end("x", 11.06, "s2", W2), answered("x", 12)]),
    "begun before the one before had ended": (7, [
        level(80, 0, limit=2, node=C2), asked("x", 81), start("x", 81.1, "s4"), asked("y", 81),
        start("y", 81.2, "s4"), end("x", 81.3, "s4"), end("y", 81.4, "s4"), answered("x", 82), answered("y", 82)]),
    "a call that came after a later one": (7, [*ran("x", 80, "s4", call=5), *ran("y", 82, "s4", call=5)]),
    # 8: one identity
    "another revision": (8, [*ran("x", 80, "s4", revision=8)]),
    "another function": (8, [*ran("x", 80, "s4", function="g", pool="a/*")]),
    "another account's": (8, [made("s4", 80, lease=2), *ran("x", 81, "s4", account="b", pool="b/*")]),
    # 9: leases
    "granted to two under one number": (9, [grant(80, 2, manager=M2)]),
    "granted under a lower number": (9, [grant(80, 1, hard_end_s=HOUR)]),
    "granted under a lower number by who gave the higher": (9, [
        grant(80, 3), grant(81, 2, hard_end_s=HOUR)]),
    "granted under a lower number by who was replaced, to another": (9, [
        grant(80, 3, node=P2), grant(81, 2, manager=M2)]),
    "granted under a lower number by who never gave it": (9, [
        grant(80, 3), grant(81, 2, node=P2, hard_end_s=HOUR)]),
    "adopted by two under one number": (9, [adopted(80, 2, manager=M2)]),
    "adopted under a lower number": (9, [adopted(80, 1)]),
    "held by two, by their own words": (9, [
        LeaseHeld(at=80, node="operator", worker=W1, lease=2, manager=M2)]),
    # 10: the newest lease rules
    "started under a lower number": (10, [*ran("x", 80, "s4", lease=1)]),
    "made under a lower number": (10, [made("s8", 80, lease=1)]),
    # 11: a lease's end
    "started after the lease's end": (11, [adopted(79, 2, lasts_s=1), *ran("x", 80.5, "s4")]),
    "made after the lease's end": (11, [adopted(79, 2, lasts_s=1), made("s8", 80, lease=2)]),
    "returned after the lease's end": (11, [adopted(79, 2, lasts_s=1), Returned(at=80, node=W1)]),
    "too short a lease": (11, [grant(80, 3, hard_end_s=5 * HOUR)]),
    "too long a lease": (11, [grant(80, 3, hard_end_s=11 * HOUR)]),
    "adopted for longer than it was granted": (11, [grant(80, 3), adopted(80.1, 3, lasts_s=10 * HOUR)]),
    "adopted again for its whole length": (11, [
        grant(79, 3, W2), adopted(79.1, 3, W2), adopted(82, 3, W2, lasts_s=8 * HOUR)]),
    "granted again for its whole length": (11, [grant(79, 3, W2), grant(82, 3, W2)]),
    "granted again for its whole length by another placement": (11, [grant(79, 3, W2), grant(82, 3, W2, node=P2)]),
    "adopted again for longer, of a grant that nobody saw": (11, [
        adopted(79, 3, manager=M2), adopted(82, 3, manager=M2, lasts_s=9 * HOUR)]),
    # 12: draining
    "made while it drains": (12, [Draining(at=80, node=W1, worker=W1), made("s8", 81, lease=2)]),
    "placed by a manager that drains it": (12, [
        Draining(at=80, node=M1, worker=W1), Placed(at=81, node=M1, worker=W1, sandbox="s8")]),
    "killed by draining": (12, [
        asked("x", 80), start("x", 80.1, "s4"), Draining(at=80.2, node=W1, worker=W1),
        Destroyed(at=80.3, node=W1, sandbox="s4"), end("x", 80.4, "s4"), answered("x", 80.5)]),
    # 13: free permits
    "nobody serves who waits": (13, [wanted(80, 9, node=C2), Served(at=82, node=F1, number=9, how="admitted")]),
    "one of two is served late": (13, [
        wanted(80, 8, 9, node=C2), Served(at=80.1, node=F1, number=8, how="admitted"), wanted(80.2, 9, node=C2),
        Served(at=81.9, node=F1, number=9, how="refused")]),
    "not served once a slow quorum has answered": (13, [
        wanted(80, 9, node=C2), Proposed(at=80.1, node=C2), *entry(4, 81.5), committed(4, 81.5, C2),
        granted(82.7, 1, node=C2)]),
    "granted to another one": (13, [
        wanted(80, 9, node=C2), granted(80.1, 1, F2, node=C2), Served(at=82, node=F1, number=9, how="admitted")]),
    "asked for again, and never served": (13, [
        wanted(80, 9, node=C2), granted(80.1, 1, node=C2), wanted(80.5, 9, node=C2),
        Served(at=82, node=F1, number=9, how="admitted")]),
    "throttled while one is free": (13, [
        throttled(80, 9, node=C2), *refused("x", 79.9)]),
    "granted, never heard of, and not asked for again": (13, [
        wanted(80, 9, node=C2), granted(80.1, 1, node=C2), wanted(80.2, 9, node=C2)]),
    "granted to two, and one of them never heard of it": (13, [
        wanted(80, 8, 9, node=C2), granted(80.1, 2, node=C2), wanted(80.2, 8, 9, node=C2),
        Served(at=80.3, node=F1, number=8, how="admitted"), wanted(80.31, 9, node=C2),
        Served(at=85, node=F1, number=9, how="admitted")]),
    "granted to a younger one, at once": (13, [
        *CONTENDED, wanted(80.92, 5, frontend=F2, node=C2), granted(80.95, 1, F2, node=C2)]),
    "granted to a younger one beside an older one": (13, [
        *CONTENDED, wanted(79.4, 5, frontend=F2, node=C2), wanted(80.92, 5, 6, frontend=F2, node=C2),
        granted(80.95, 2, F2, node=C2)]),
    "granted beyond those who wait while others do": (13, [
        *CONTENDED, wanted(79.4, 5, frontend=F2, node=C2), granted(80.95, 2, F2, node=C2)]),
    "throttled without a round": (13, [*HELD_BY_TWO, throttled(80.5, 9, node=C2), *refused("x", 80)]),
    "throttled by an older round": (13, [
        *HELD_BY_TWO, *recall(80.1, 7), throttled(80.6, 9, node=C2), *refused("x", 80)]),
    "throttled without a round while the runs of other pools are charged": (13, [
        level(80, 0, limit=1, node=C2, crossing=1), block(80, 1, node=C2, pool=REST), level(80, 1, 601, C2, REST),
        wanted(80, 9, node=C2), throttled(80.5, 9, node=C2), *refused("x", 80), block(82, 0, node=C2, pool=REST),
        level(82, 0, 601, C2, REST), level(82, 0, limit=1, node=C2)]),
    "throttled without the word of one who holds permits": (13, [
        *HELD_BY_TWO, *recall(80.1, 1, F1), throttled(80.6, 9, node=C2), *refused("x", 80)]),
    "throttled although a permit was given back": (13, [
        *HELD_BY_TWO, *recall(80.1, 1, F1, F2, given_back=1), throttled(80.6, 9, node=C2), *refused("x", 80)]),
    "throttled by a round that began before it came": (13, [
        *HELD_BY_TWO, *recall(80.1, 1, F1, F2), wanted(80.2, 9, 10, node=C2), throttled(80.6, 9, 10, node=C2),
        *refused("x", 80)]),
    # 14: Raft
    "two leaders in one term": (14, [Led(at=80, node=C3, term=2)]),
    "another entry at the same index": (14, [*entry(4, 80, (C2,)), *entry(4, 80.1, (C3,), digest="other")]),
    "an entry left out": (14, [*entry(4, 80, (C2,)), *entry(5, 80.1, (C2,)), *entry(5, 80.2, (C3,), after=3)]),
    "an acknowledged entry that the next leader lacks": (14, [
        *entry(4, 80, (C2,)), committed(4, 80.1, C2), Led(at=81, node=C3, term=3)]),
    "acknowledged by a leader that the others had left": (14, [
        Led(at=81, node=C3, term=3), *entry(4, 82, (C2,)), committed(4, 82.1, C2)]),
    # 15: refusals
    "a throttle that doesn't say which limit": (15, refused("x", 80, detail=("remedy",))),
    "a throttle without a Detail": (15, refused("x", 80, explained=False, detail=())),
    "an error that nobody explains": (15, [answered("x", 80, status=500, error="ServiceException")]),
    "a refusal without a type": (15, [answered("x", 80, status=400)]),
}


@pytest.mark.parametrize("name", ALSO_HONEST)
def test_an_honest_history_has_no_violation(name):
    assert list(map(str, found(*ALSO_HONEST[name], without=PAUSED.get(name, ())))) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found_as_what_it_is(name):
    invariant, planted = PLANTED[name]
    violations = found(*planted)
    assert {violation.invariant for violation in violations} == {invariant}, list(map(str, violations))
    everything = history(*planted)
    for violation in violations:
        assert violation.records
        assert all(record in everything for record in violation.records), "a record that nobody wrote shows nothing"
        assert any(record in planted for record in violation.records), "it is shown by what was planted"


def test_every_invariant_has_two_planted_violations():
    planted = [invariant for invariant, _ in PLANTED.values()]
    assert all(planted.count(invariant) >= 2 for invariant in range(1, 16))


def test_every_kind_of_record_is_in_these_histories():
    there = {type(record) for records_ in (history(), *(planted for _, planted in PLANTED.values()),
                                           *ALSO_HONEST.values()) for record in records_}
    assert there | {Header, Cut} == set(records.KINDS.values())


@pytest.mark.parametrize("name", PLANTED)
def test_a_file_gives_the_same_verdict(name):
    _, planted = PLANTED[name]
    read = [parse(line(record)) for record in history(*planted)]
    assert read == history(*planted)
    assert check(read).violations == found(*planted)


@pytest.mark.parametrize(("name", "doubtful"), [
    ("two runs of a limit of 1", W2),
    ("started by an evicted worker", W1),
    ("evicted while it runs", W2),
    ("from the account's rest although its function has a reservation", C2),
    ("granted under a lower number", P1),
])
def test_what_clocks_of_two_hosts_leave_open_is_no_violation(name, doubtful):
    """The same stamps, and a host whose clock may be a minute off: one order of events is as good as the other."""
    planted = PLANTED[name][1]
    other = [grant(80, 1, node=P2, hard_end_s=HOUR)] if doubtful == P1 else planted
    assert found(*planted)
    assert found(*other, far(doubtful)) == []
    assert found(*other, far(doubtful, -0.001, 0.001)), "a millisecond leaves nothing open"


def test_a_trace_that_ended_early_proves_nothing():
    [violation] = found(Cut(at=50, node=W1, reason="the trace is full"))
    assert str(violation).startswith("history: what worker-1 did from 50.000 on is not in it")


def test_a_lease_is_as_long_as_the_time_scale_says():
    scaled = [Header(at=0), grant(1, 1, hard_end_s=8.0)]
    assert check(scaled, time_scale=1 / HOUR).violations == []
    assert [violation.invariant for violation in check(scaled).violations] == [11]


@pytest.mark.parametrize("text", [
    "{}", "no json", '{"record":"Nothing","at":1}', '{"record":"Start","at":1}',
    line(Header(at=0)).replace('"format":1', '"format":2'),
])
def test_what_is_no_record_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        records.parse(text)


def test_the_last_record_closes():
    assert history()[-1] is CLOSED
    assert isinstance(history(far(W1))[0], Clock)
    assert Connected in map(type, history())
    assert Over in map(type, history())
