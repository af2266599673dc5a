"""A small history that is as it should be, to plant violations in: every kind of record is in it.

Two workers, three members of counting, two frontends. Seconds:

    0   everything begins; counting-1 leads in term 1; leases, sandboxes
    10  request r1 runs on s1, r2 beside it on s2; r3 is throttled, with proof
    20  all is quiet
    30  the limit of the pool is lowered from 2 to 1; r4 runs
    40  frontend-2 falls silent, with r5 running: fenced, counted, over
    50  worker-1 drains, is returned and leased again; r6 runs on it
    60  counting-2 leads in term 2
    70  worker-2 is killed with r7 running, and its host joins as another incarnation
    90  the end
"""

from simulation.history import check
from simulation.history.records import (
    Adopted,
    Answered,
    Applied,
    Asked,
    Authority,
    Beat,
    Block,
    Bound,
    Clock,
    Closed,
    Committed,
    Connected,
    DeadLettered,
    Deposed,
    Destroyed,
    Draining,
    End,
    EventAccepted,
    EventRan,
    FenceAcked,
    Granted,
    LeaseGranted,
    LeaseHeld,
    Led,
    Level,
    Life,
    Made,
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
    Room,
    Served,
    Session,
    Start,
    Throttled,
    Wanted,
)

W1, W2 = "worker-1", "worker-2"
C1, C2, C3 = "counting-1", "counting-2", "counting-3"
F1, F2 = "frontend-1", "frontend-2"
M1, M2 = "manager-1", "manager-2"
P1, P2 = "placement-1", "placement-2"
S1, S2 = f"{F1}#1", f"{F2}#1"
POOL, REST = "a/f", "a/*"
HOUR = 3600.0
EXPLAINED = ("counter", "in_use", "limit", "remedy", "value")
_LEASES = ((W1, 51.7, 2), (W1, 1, 1), (W2, 1, 1))


def asked(request, at, frontend=F1, function="f"):
    return Asked(at=at, node=frontend, request=request, account="a", function=function, digest=f"p-{request}")


def answered(request, at, frontend=F1, status=200, **fields):
    return Answered(at=at, node=frontend, request=request, function="f", status=status, **fields)


def start(invocation, at, sandbox="s1", worker=W1, lease=None, session=S1, **fields):
    number = lease or next(number for node, since, number in _LEASES if node == worker and at >= since)
    given = {
        "account": "a", "function": "f", "version": "$LATEST", "revision": 7, "pool": POOL,
        "digest": f"p-{invocation.partition('#')[0]}", **fields,
    }
    return Start(at=at, node=worker, invocation=invocation, sandbox=sandbox, lease=number, session=session, **given)


def end(invocation, at, sandbox="s1", worker=W1):
    return End(at=at, node=worker, invocation=invocation, sandbox=sandbox)


def made(sandbox, at, worker=W1, lease=1, revision=7):
    return Made(
        at=at, node=worker, sandbox=sandbox, lease=lease, account="a", function="f", version="$LATEST",
        revision=revision,
    )


def level(at, granted, limit=2, node=C1, pool=POOL, **fields):
    return Level(at=at, node=node, pool=pool, limit=limit, granted=granted, **fields)


def room(at, count, node=C1):
    return Room(at=at, node=node, account="a", room=count)


def block(at, size, session=S1, node=C1, pool=POOL, why="Acquire"):
    return Block(at=at, node=node, session=session, pool=pool, size=size, why=why)


def ran(request, at, sandbox="s1", worker=W1, lasts_s=1.0, frontend=F1, **fields):
    """A whole life: asked, started, ended, answered."""
    return [
        asked(request, at, frontend), start(request, at + 0.1, sandbox, worker, session=f"{frontend}#1", **fields),
        Responded(at=at + lasts_s, node=worker, invocation=request, digest=f"r-{request}"),
        end(request, at + lasts_s, sandbox, worker),
        Over(at=at + lasts_s + 0.01, node=frontend, request=request),
        answered(request, at + lasts_s + 0.02, frontend, digest=f"r-{request}"),
    ]


def refused(request, at, frontend=F1, **fields):
    told = {"error": "TooManyRequestsException", "explained": True, "detail": EXPLAINED, **fields}
    return [
        asked(request, at, frontend), Over(at=at + 0.3, node=frontend, request=request),
        answered(request, at + 0.3, frontend, 429, **told),
    ]


def beats(since, until, node=C1):
    return [Beat(at=since + tenth / 10, node=node) for tenth in range(int((until - since) * 10) + 1)]


def entry(index, at, members=(C1, C2, C3), after=None, digest=""):
    before = (index - 1 if index > 1 else -1) if after is None else after
    return [
        Applied(at=at + n / 1000, node=member, index=index, digest=digest or f"e{index}", after=before)
        for n, member in enumerate(members)
    ]


def committed(index, at, node=C1, digest=""):
    return Committed(at=at, node=node, index=index, digest=digest or f"e{index}")


def grant(at, lease, worker=W1, manager=M1, node=P1, hard_end_s=8 * HOUR):
    return LeaseGranted(at=at, node=node, worker=worker, lease=lease, manager=manager, hard_end_s=hard_end_s)


def adopted(at, lease, worker=W1, manager=M1, lasts_s=8 * HOUR):
    return Adopted(at=at, node=worker, lease=lease, manager=manager, lasts_s=lasts_s)


def wanted(at, *waiting, frontend=F1, node=C1, pool=POOL):
    return Wanted(at=at, node=node, frontend=frontend, pool=pool, waiting=waiting)


def granted(at, count, frontend=F1, node=C1, pool=POOL):
    return Granted(at=at, node=node, frontend=frontend, pool=pool, count=count)


def throttled(at, *waiting, limit=1, frontend=F1, node=C1, pool=POOL):
    return Throttled(at=at, node=node, frontend=frontend, pool=pool, waiting=waiting, round=1, limit=limit)


def recall(at, number, *frontends, given_back=0, node=C2, pool=POOL):
    """A round, and the answers of these."""
    return [
        Recalled(at=at, node=node, pool=pool, round=number),
        *(RecallAnswered(at=at + 0.1, node=node, pool=pool, round=number, frontend=frontend, given_back=given_back,
                         in_use=1) for frontend in frontends),
    ]


HONEST = [
    # 0: everything begins
    Life(at=0, node=W1, incarnation="host-1@1"), Life(at=0, node=W2, incarnation="host-2@1"),
    *(Life(at=0, node=node) for node in (C1, C2, C3, F1, F2, M1, M2, P1, P2)),
    *entry(1, 0.1), Led(at=0.2, node=C1, term=1), committed(1, 0.2), Proposed(at=29.8, node=C1),
    Member(at=0.3, node=C1, incarnation="host-1@1", state="joined"),
    Member(at=0.3, node=C1, incarnation="host-2@1", state="joined"),
    Session(at=0.3, node=C1, session=S1, state="live"), Session(at=0.3, node=C1, session=S2, state="live"),
    room(0.4, 600), level(0.4, 0), Bound(at=0.5, node=C1, pool=POOL, limit=2, since=0.4),
    level(0.4, 0, limit=600, pool=REST), Bound(at=0.5, node=C1, pool=REST, limit=600, since=0.4),
    Authority(at=0.5, node=W1, until=120), Authority(at=0.5, node=W2, until=120),
    FenceAcked(at=0.5, node=W1, session=f"{F1}#0", reports=False),
    grant(0.5, 1), grant(0.5, 1, W2), grant(0.6, 1, W2, hard_end_s=8 * HOUR - 0.1),
    adopted(1, 1), adopted(1, 1, W2), adopted(1.1, 1, W2),
    LeaseHeld(at=1.2, node="operator", worker=W1, lease=1, manager=M1),
    Connected(at=1, node=M1, worker=W1), Placed(at=2, node=M1, worker=W1, sandbox="s1"), made("s1", 2.1),
    made("s2", 2.1, W2), made("s3", 2.1, W2),
    # 10: two run, one is throttled
    wanted(10.1, 1, 2), block(10.1, 2), level(10.1, 2), granted(10.1, 2),
    Served(at=10.1, node=F1, number=1, how="admitted"), Served(at=10.1, node=F1, number=2, how="admitted"),
    wanted(10.11),
    *ran("r1", 10), *ran("r2", 10, "s2", W2, lasts_s=2),
    wanted(10.5, 3), Recalled(at=10.5, node=C1, pool=POOL, round=1),
    RecallAnswered(at=10.6, node=C1, pool=POOL, round=1, frontend=F1, given_back=0, in_use=2),
    throttled(10.6, 3, limit=2), Served(at=10.61, node=F1, number=3, how="refused"),
    *refused("r3", 10.4),
    block(13, 1, why="GiveBack"), level(13, 1), block(13.1, 0, why="GiveBack"), level(13.1, 0),
    Rest(at=25, pool=POOL, out=0, after_s=1, whole=True),
    # 30: a lower limit
    *entry(2, 29.9), committed(2, 29.9), level(30, 0, limit=1), level(30, 0, limit=601, pool=REST),
    Bound(at=30.2, node=C1, pool=POOL, limit=1, since=30), Bound(at=30.2, node=C1, pool=REST, limit=601, since=30),
    block(31, 1), level(31, 1, limit=1), *ran("r4", 31), block(33, 0, why="GiveBack"), level(33, 0, limit=1),
    Refused(at=34, node=W1, invocation="r0", reason="STALE_SEQUENCE"),
    # 40: a frontend falls silent
    block(40, 1, S2), level(40, 1, limit=1), asked("r5", 40, F2), start("r5", 40.1, session=S2),
    Session(at=43, node=C1, session=S2, state="draining"),
    FenceAcked(at=43.1, node=W1, session=S2, running=("r5",)), FenceAcked(at=43.1, node=W2, session=S2),
    Session(at=43.2, node=C1, session=S2, state="counted"), end("r5", 45), block(45.1, 0, S2, why="EndOfInvocation"),
    Session(at=45.1, node=C1, session=S2, state="gone"), level(45.1, 0, limit=1),
    Life(at=46, node=F2),
    # 50: a lease ends
    Draining(at=50, node=M1, worker=W1), Draining(at=50.1, node=W1, worker=W1),
    Destroyed(at=50.5, node=W1, sandbox="s1"), Returned(at=51, node=W1), grant(51.5, 2), adopted(51.7, 2),
    Connected(at=51.6, node=M1, worker=W1), Placed(at=51.8, node=M1, worker=W1, sandbox="s4"),
    made("s4", 51.9, lease=2), block(52, 1), level(52, 1, limit=1), *ran("r6", 52, "s4"),
    block(54, 0, why="GiveBack"), level(54, 0, limit=1),
    # 60: another leader
    *entry(3, 60, (C2, C3)), Deposed(at=60.4, node=C1, term=1), Led(at=60.5, node=C2, term=2),
    committed(3, 60.6, C2), *entry(3, 60.8, (C1,)), Session(at=60.6, node=C2, session=S1, state="live"),
    room(60.6, 600, C2), level(60.6, 0, limit=1, node=C2), Bound(at=60.6, node=C2, pool=POOL, limit=1, since=30),
    # 70: a worker is killed
    block(69, 1, node=C2), level(69, 1, limit=1, node=C2), asked("r7", 69), start("r7", 69.1, "s3", W2),
    Life(at=71, node=W2, incarnation="host-2@2"), Authority(at=71.3, node=W2, until=200),
    Member(at=71.2, node=C2, incarnation="host-2@1", state="replaced"),
    Member(at=71.2, node=C2, incarnation="host-2@2", state="joined"),
    Over(at=71.4, node=F1, request="r7"),
    answered("r7", 71.4, status=500, error="ServiceException", explained=True),
    block(72, 0, node=C2, why="GiveBack"), level(72, 0, limit=1, node=C2),
    # events
    EventAccepted(at=5, node=F1, event="e1", retries=2), EventRan(at=6, node=F1, event="e1", outcome="error"),
    EventRan(at=7, node=F1, event="e1", outcome="throttle"), EventRan(at=8, node=F1, event="e1", outcome="success"),
    EventAccepted(at=5, node=F1, event="e2", retries=1), EventRan(at=6, node=F1, event="e2", outcome="error"),
    EventRan(at=7, node=F1, event="e2", outcome="error"), DeadLettered(at=8, node=F1, event="e2"),
    *beats(0.2, 60.4), *beats(60.5, 89, C2),
]
CLOSED = Closed(at=90)


def history(*extra, without=()):
    """The honest one with more in it, and without some."""
    kept = [record for record in HONEST if record not in without]
    return [*sorted([*kept, *extra], key=lambda record: record.at), CLOSED]


def found(*extra, without=()):
    return check(history(*extra, without=without)).violations


def far(node, low_s=-60.0, high_s=60.0):
    """This node's clock is known within these bounds only."""
    return Clock(at=-1, node=node, low_s=low_s, high_s=high_s)
