"""The judge is judged: each planted violation is found and no honest history has one."""

import pytest

from labda.chaos.history import (
    FORMAT,
    Closed,
    End,
    Fault,
    Host,
    Lease,
    Ledger,
    Limit,
    Opened,
    Pool,
    Process,
    Promise,
    Request,
    Start,
    Writer,
    line,
    parse,
    read,
)
from labda.chaos.judge import judge
from labda.refusal import Refusal

T = 1000.0      # when the load is at its rate
HIT = T + 10
REFUSES = Promise(fails=False, refuses=(503,), healed_s=2.0)
STEADY = Promise(fails=False, leaders_per_min=1.0)
W1, W2 = "worker-az1-1", "worker-az2-1"
F = "chaos-1"


def opened(promise=None, **fields):
    return Opened(
        format=FORMAT, at=T - 18, wall="2026-11-29T12:00:00+0000", scenario="worker-kill", target="embedded", seed=1,
        rate=30.0, run_s=1.0, use=0.5, steady_at=T, promise=promise or Promise(), **fields,
    )


def ok(nonce, begun, sandbox="s1", calls=1, function=F, **fields):
    return Request(
        at=begun - 0.01, sent=begun - 0.01, done=begun + 1.01, nonce=nonce, function=function, status=200,
        echo=nonce, sandbox=sandbox, calls=calls, begun=begun, ended=begun + 1, **fields,
    )


def failure(nonce, sent, done, status=500, error="ServiceException", explained=True, function=F, **fields):
    return Request(
        at=sent, sent=sent, done=done, nonce=nonce, function=function, status=status, error=error, reason="why",
        explained=explained, **fields,
    )


def start(nonce, at, sandbox="s1", worker=W1, function=F):
    return Start(at=at, nonce=nonce, function=function, sandbox=sandbox, worker=worker)


def end(nonce, at, sandbox="s1", worker=W1, function=F):
    return End(at=at, nonce=nonce, function=function, sandbox=sandbox, worker=worker)


def ran(nonce, begun, sandbox="s1", worker=W1, calls=1, function=F):
    """An answered run with its two lines of the log."""
    return [
        start(nonce, begun, sandbox, worker, function), end(nonce, begun + 1, sandbox, worker, function),
        ok(nonce, begun, sandbox, calls, function),
    ]


def ledger(moment, at, granted=0, stranded=0, running=0):
    pool = Pool(function=F, limit=2, granted=granted, running=running, stranded=stranded)
    return Ledger(
        at=at, since=at - 1, moment=moment, pools=(pool,), hosts=(Host(host="host", until=at + 60),) * bool(stranded)
    )


def fault(at=HIT, nodes=(W1,), action="hold"):
    return Fault(at=at, done=at + 0.1, action=action, nodes=nodes)


def led(at, node="counting-az2"):
    return Process(at=at, node=node, service="counting", health="serving", role="leader", pid=1)


def shed(nonce, sent, done, status=503, **fields):
    error = {503: "ServiceUnavailableException", 429: "TooManyRequestsException"}[status]
    return failure(nonce, sent, done, status, error, **{"retry_after": "1"} | fields)


def stopped(*extra, promise):
    """Members of counting are stopped for 20 s, and nothing else is done."""
    return [
        opened(promise), Limit(at=T - 18, function=F, limit=2), *ran("a", T + 1), led(T - 18, "counting-az1"),
        fault(HIT, ("counting-az1", "counting-az2"), "stop"), *ran("b", HIT + 1, calls=2),
        fault(HIT + 20, ("counting-az1", "counting-az2"), "continue"), *ran("c", HIT + 24, calls=3), *extra,
        ledger("quiet", HIT + 30), ledger("end", HIT + 40), Closed(at=HIT + 41),
    ]


def lease(number, manager="manager-az2", at=T):
    return Lease(at=at, worker=W1, lease=number, manager=manager)


def history(*extra, promise=None, closed=True, quiet=(2, 1, 1), final=0):
    """Two sandboxes, one on each worker; one worker is killed, with a run, and stays away until the load is over."""
    return [
        opened(promise), Limit(at=T - 18, function=F, limit=2), lease(1), lease(1, "manager-az2", T + 1),
        Process(at=T - 18, node=W1, service="worker", health="serving", role="", pid=1),
        Process(at=T - 18, node=W2, service="worker", health="serving", role="", pid=2),
        *ran("a", T + 1), *ran("b", T + 3, calls=2), *ran("c", T + 3, "s2", W2),
        start("d", HIT - 0.5), failure("d", HIT - 0.6, HIT + 0.2), fault(),
        *ran("e", HIT + 1, "s2", W2, calls=2), *ran("f", HIT + 2, "s3", W2),
        *extra,
        ledger("quiet", HIT + 30, *quiet), fault(HIT + 31, action="release"), ledger("end", HIT + 40, granted=final),
        *([Closed(at=HIT + 41)] if closed else []),
    ]


FINE = {
    "as it is": history(),
    "a run that the log doesn't know": history(ok("g", HIT + 4, "s2", 3)),
    "two runs, one after the other, in the same microsecond": history(
        ok("g", HIT + 4, "s3", 2), ok("h", HIT + 5, "s3", 3)),
    "a refusal of what never ran": history(failure("g", HIT - 0.1, HIT + 3, 503, "ServiceUnavailableException")),
    "failures before the load is at its rate": history(failure("g", T - 5, T - 4, 503, "ServiceUnavailableException")),
    "a frontend took what ran elsewhere with it": history(
        fault(HIT, ("frontend-az1-1",)), start("g", HIT - 0.4, "s2", W2), end("g", HIT + 0.6, "s2", W2),
        failure("g", HIT - 0.5, HIT, 0, "the connection broke", explained=False)),
    "a request sent before it was noticed": history(
        failure("g", HIT + 0.5, HIT + 0.5, 0, "ConnectionRefusedError", explained=False),
        promise=Promise(notice_s=1.0)),
    "a lower limit, what ran goes on": history(
        ok("g", HIT + 5, "s2", 3), ok("h", HIT + 5.1, "s3", 2), Limit(at=HIT + 5.5, function=F, limit=1),
        ok("i", HIT + 7, "s2", 4)),
    "refused while a quorum is lost, and a little later": stopped(
        shed("g", HIT + 2, HIT + 4), shed("h", HIT + 19, HIT + 22), promise=REFUSES),
    "one change of the leader": stopped(led(HIT + 1), promise=STEADY),
    "taken over": history(lease(2, "manager-az3", T + 2), lease(1, at=T + 2.1), lease(3, "manager-az3", T + 3)),
}
PLANTED = {
    # 1: limits
    "three at once": ("1", history(ok("g", HIT + 1.5, "s9"), ok("h", HIT + 1.6, "s8"))),
    "a killed worker's run still counts until it was seen gone": (
        "1", history(ok("g", HIT + 0.01, "s9"), ok("h", HIT + 0.05, "s8"))),
    "one too many after a limit was lowered": (
        "1", history(Limit(at=HIT + 5, function=F, limit=1), ok("g", HIT + 6, "s2", 3), ok("h", HIT + 6.1, "s3", 2))),
    # 2: leaks
    "a permit that never came back": ("2", history(final=1)),
    "one more than is stranded": ("2", history(quiet=(3, 1, 1))),
    "something runs when nothing is away": ("2", [
        *history()[:-1], ledger("quiet", HIT + 45, 1, 0, 1), Closed(at=HIT + 46)]),
    "a run without an end": ("2", history(start("g", HIT + 9, "s9", W2))),
    "a ledger that nobody asked": ("2", [
        one for one in history() if not (isinstance(one, Ledger) and one.moment == "end")]),
    # 5: at most one start
    "started twice": ("5", history(start("c", HIT + 6, "s9", W1))),
    "refused and run": ("5", history(
        start("g", HIT - 0.5, "s9", W1), failure("g", HIT - 0.6, HIT + 0.2, 503, "ServiceUnavailableException"))),
    "throttled and run": ("5", history(
        start("x", HIT - 0.05, "s9", W1), failure("x", HIT - 0.1, HIT + 0.2, 429, "TooManyRequestsException"))),
    "answered from another run than the log's": ("5", history(
        start("g", HIT + 4, "s9", W2), end("g", HIT + 5, "s9", W2), ok("g", HIT + 4, "s8"))),
    # 6: its own answer
    "another's answer": ("6", history(Request(
        at=T, sent=T, done=T + 2, nonce="g", function=F, status=200, echo="h", sandbox="s9", calls=1, begun=T + 0.1,
        ended=T + 1))),
    "nobody's answer": ("6", history(Request(
        at=T, sent=T, done=T + 2, nonce="g", function=F, status=200, sandbox="s9", calls=1, begun=T + 0.1,
        ended=T + 1))),
    # 7, 8: sandboxes
    "two at once in one sandbox": ("7", history(ok("g", HIT + 2.5, "s3", 2))),
    "a call that was counted twice": ("7", history(ok("g", HIT + 4, "s2", 2))),
    "a sandbox that serves two functions": ("8", history(
        Limit(at=T - 18, function="chaos-2", limit=2), ok("g", HIT + 4, "s3", 2, "chaos-2"))),
    "a sandbox that served two functions, by the log": ("8", history(
        *ran("g", HIT + 4, "s3", W2, 2, "chaos-2"))),
    # 9: leases
    "two managers under one number": ("9", history(lease(1, "manager-az3", T + 2))),
    "a number that fell": ("9", history(lease(4, at=T + 2), lease(3, at=T + 3))),
    # 15: refusals
    "a refusal without a Detail": ("15", history(failure("g", HIT - 0.1, HIT + 0.2, 503, "HTTP 503", explained=False))),
    "a function error that the load can't cause": ("promise", history(
        failure("g", HIT - 0.1, HIT + 0.2, 200, "Unhandled", explained=False))),
    "a throttle without a Detail": ("15", history(failure(
        "g", HIT - 0.1, HIT + 0.2, 429, "TooManyRequestsException", explained=False))),
    # promises
    "failed where nothing was done": ("promise", history(
        start("g", HIT - 0.5, "s2", W2), end("g", HIT, "s2", W2), failure("g", HIT - 0.6, HIT + 0.1))),
    "failed before the fault": ("promise", history(failure("g", T + 5, T + 5.5))),
    "sent after the fault": ("promise", history(failure("g", HIT + 0.5, HIT + 1, 503, "ServiceUnavailableException"))),
    "failed too late": ("promise", history(failure("g", HIT - 0.5, HIT + 6))),
    "failed though nothing may": ("promise", history(promise=Promise(fails=False))),
    "cold afterwards": ("promise", history(
        ok("g", HIT + 9, "s8"), ok("h", HIT + 9, "s9"), promise=Promise(warm_share=0.9))),
    "refused before the quorum was lost": ("promise", stopped(shed("g", T + 2, T + 3), promise=REFUSES)),
    "refused too long after it was back": ("promise", stopped(shed("g", HIT + 21, HIT + 22.2), promise=REFUSES)),
    "refused without saying when to come again": (
        "promise", stopped(shed("g", HIT + 2, HIT + 4, retry_after=""), promise=REFUSES)),
    "throttled where only a 503 is true": ("promise", stopped(shed("g", HIT + 2, HIT + 4, 429), promise=REFUSES)),
    "leaders that change too often": (
        "promise", stopped(led(HIT + 1), led(HIT + 2, "counting-az1"), promise=STEADY)),
    "nothing was done": ("promise", [
        one for one in history(quiet=(0,)) if not isinstance(one, Fault) and getattr(one, "nonce", "") != "d"]),
    # histories that prove nothing
    "cut short": ("history", history(closed=False)),
    "nothing ran": ("history", [one for one in history() if not isinstance(one, Request | Start | End)]),
    "not sent": ("history", [*history()[:-1], Closed(at=HIT + 41, unsent=3)]),
    "a function that is gone": ("history", [*history()[:-1], Closed(at=HIT + 41, missing=("function chaos-1",))]),
    "a log that nobody heard": ("history", [*history()[:-1], Closed(at=HIT + 41, unheard=(W2,))]),
}


@pytest.mark.parametrize("name", FINE)
def test_an_honest_history_passes(name):
    assert judge(FINE[name]).violations == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name):
    invariant, records = PLANTED[name]
    found = {sentence.partition(":")[0] for sentence in judge(records).violations}
    assert found == {invariant}


def test_every_judged_invariant_has_two_planted_violations():
    planted = [invariant for invariant, _ in PLANTED.values()]
    assert {one: planted.count(one) for one in set(planted) if planted.count(one) < 2} == {}
    assert {"1", "2", "5", "6", "7", "8", "9", "15", "promise"} <= set(planted)


def test_a_file_gives_the_same_verdict_again(tmp_path):
    for number, records in enumerate([*FINE.values(), *(records for _, records in PLANTED.values())]):
        path = tmp_path / f"{number}.ndjson"
        with path.open("w") as file:
            writer = Writer(file)
            for record in records:
                writer.add(record)
        assert read(path) == records
        assert judge(read(path)).violations == judge(records).violations


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    path = tmp_path / "history.ndjson"
    lines = [line(record) for record in history()]
    path.write_text("\n".join(lines)[:-7])
    assert judge(read(path)).violations == ["history: it was cut short, so that nobody knows what it lacks"]


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", '{"type":"start"}\n', '{"type":"nothing","at":1}\n'])
def test_what_is_no_history_is_refused(tmp_path, text):
    path = tmp_path / "history.ndjson"
    path.write_text(text)
    with pytest.raises(Refusal):
        judge(read(path))


def test_an_empty_history_is_refused():
    with pytest.raises(Refusal, match="doesn't say which scenario"):
        judge([])


def test_a_newer_format_is_refused():
    with pytest.raises(ValueError, match="format 2"):
        parse(line(opened()).replace('"format":1', '"format":2'))
