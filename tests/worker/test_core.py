"""Stories of one host's slots: who may create, start and destroy; and what is refused, for certain."""

from worker import messages as m
from worker.core import WorkerCore

HOST = m.Incarnation(host="h1", nonce=7)
HELLO = m.FunctionId(account="a", function="hello", version="$LATEST", revision=1)
SETTINGS = m.FunctionSettings(
    arn="arn:hello", runtime="python3.11", handler="app.handler", memory_mb=128, timeout_s=3, tmp_mb=512,
    code_sha256="c0de", code_size=100, region="us-east-1",
)
TICKET = m.Ticket(sha256="c0de", size=100, expires=99.0, signature=b"s")
BLOCK = m.Block(session=m.Session(frontend="f1", epoch=4), account="a")
PHASES = m.ColdPhases(code_ms=3, sandbox_ms=9, runtime_ms=45, init_ms=2)


def core(memory_mb: int = 256) -> WorkerCore:
    return WorkerCore(incarnation=HOST, memory_mb=memory_mb, sandboxes_max=10, runtimes=("python3.11",))


def adopt(lease=1, link=1, manager="m1", lasts_s=1000.0):
    return m.Adopt(link=link, manager=manager, lease=lease, lasts_s=lasts_s)


def create(sandbox="s1", lease=1, link=1, settings=SETTINGS, cause="i1"):
    return m.Create(
        link=link, lease=lease, sandbox=sandbox, function=HELLO, settings=settings, ticket=TICKET, sequence=1,
        cause=cause,
    )


def start(invocation="i1", sandbox="s1", lease=1, sequence=1, deadline=100.0, **changes):
    fields = {"incarnation": HOST, "block": BLOCK, "function": HELLO, **changes}
    return m.StartAsked(
        stream=5, invocation=invocation, lease=lease, sandbox=sandbox, sequence=sequence, deadline=deadline, **fields
    )


def result(invocation="i1", sandbox="s1"):
    return m.ResultOut(sandbox=sandbox, invocation=invocation)


def ended(invocation="i1", sandbox="s1"):
    return m.InvocationEnded(sandbox=sandbox, invocation=invocation)


def destroy(sandbox="s1", lease=1, link=1):
    return m.Destroy(link=link, lease=lease, sandbox=sandbox, reason="reaped")


JOINED = [(0.0, m.Joined(link=9, watermarks=())), (0.0, m.AuthorityRenewed(until=120.0))]
READY = [
    *JOINED,
    (0.0, adopt()),
    (1.0, create()),
    (1.1, m.SandboxBuilt(sandbox="s1")),
    (1.2, m.InitDone(sandbox="s1", phases=PHASES)),
]


def test_cold_then_warm(story):
    story(core(), [
        *READY,
        (1.3, start()),
        (1.4, result()),
        (1.5, ended()),
        "the same holder starts again under the same sequence",
        (2.0, start("i2")),
        (2.1, result("i2")),
        (2.2, ended("i2")),
    ])


def test_nothing_starts_before_counting_was_joined(story):
    story(core(), [
        (0.0, adopt()),
        (1.0, create()),
        *JOINED,
        (1.0, create()),
        (1.1, m.SandboxBuilt(sandbox="s1")),
        (1.2, m.InitDone(sandbox="s1", phases=PHASES)),
        "authority ends: starts are refused until it is renewed",
        (121.0, start(deadline=200.0)),
        (122.0, m.AuthorityRenewed(until=240.0)),
        (122.0, start("i2", deadline=200.0)),
        (122.1, m.Evicted()),
        (122.2, result("i2")),
        (122.2, ended("i2")),
        (122.3, start("i3", deadline=200.0)),
    ])


def test_the_worker_arbitrates(story):
    other = m.FunctionId(account="a", function="hello", version="$LATEST", revision=2)
    story(core(), [
        *READY,
        (2.0, start("wrong-incarnation", incarnation=m.Incarnation(host="h1", nonce=6))),
        (2.0, start("no-such-sandbox", sandbox="s9")),
        (2.0, start("other-revision", function=other)),
        (2.0, start("too-late", deadline=1.9)),
        (2.0, start("newer-lease", lease=2)),
        "the manager takes the reservation back",
        (2.0, m.Raise(link=1, lease=1, sandbox="s1", sequence=2)),
        (2.0, start("stale-sequence")),
        (2.0, start("i1", sequence=2)),
        (2.1, start("busy", sequence=3)),
        (2.1, m.Raise(link=1, lease=1, sandbox="s1", sequence=4)),
        (2.2, result()),
        (2.2, ended()),
        "what was refused, or ran, never starts under that id",
        (3.0, start("busy", sequence=4)),
        (3.0, start("i1", sequence=4)),
        (3.0, m.StartWithdrawn(stream=5, invocation="i4", reason=m.Refusal.CANCELLED, detail="its waiter has gone")),
        (3.1, start("i4", sequence=4)),
    ])


def test_what_its_first_holder_has_yet_to_use_is_not_taken_back_gently(story):
    """Found by a simulated region that began under load: two starts in a row came too late, which is a 503."""
    story(core(), [
        *READY,
        "asked for gently before the first start has come: it is still to be used",
        (2.0, m.Raise(link=1, lease=1, sandbox="s1", sequence=2, used=1)),
        (2.1, start()),
        (2.2, result()),
        (2.2, ended()),
        "used, and only kept",
        (2.3, m.Raise(link=1, lease=1, sandbox="s1", sequence=2, used=1)),
    ])


def test_take_over(story):
    story(core(), [
        *READY,
        (2.0, start()),
        "another manager adopts while i1 runs: it learns of it, and hears how it ends",
        (2.1, adopt(lease=2, link=2, manager="m2")),
        (2.2, create("s2")),
        (2.2, start("i2")),
        (2.3, result()),
        (2.3, ended()),
        (2.4, start("i3", lease=2, sequence=2)),
        "the old number again, the same number from somebody else, and the same manager on a new stream",
        (2.5, adopt()),
        (2.5, adopt(lease=2, link=3, manager="m3")),
        (2.6, m.ManagerGone(link=2)),
        (2.7, result("i3")),
        (2.7, adopt(lease=2, link=4, manager="m2")),
        (2.8, ended("i3")),
    ])


def test_capacity(story):
    big = m.FunctionSettings(
        arn="arn:hello", runtime="python3.11", handler="app.handler", memory_mb=512, timeout_s=3, tmp_mb=512,
        code_sha256="c0de", code_size=100, region="us-east-1",
    )
    ruby = m.FunctionSettings(
        arn="arn:hello", runtime="ruby3.3", handler="app.handler", memory_mb=128, timeout_s=3, tmp_mb=512,
        code_sha256="c0de", code_size=100, region="us-east-1",
    )
    story(core(), [
        *READY,
        (2.0, create("s1")),
        (2.0, create("s2", settings=big)),
        (2.0, create("s2", settings=ruby)),
        (2.0, create("s2")),
        (2.0, create("s3")),
        "memory is free again once the sandbox was seen gone",
        (3.0, destroy("s1")),
        (3.0, create("s3")),
        (3.1, m.SandboxGone(sandbox="s1")),
        (3.2, create("s3")),
        (3.3, m.BuildFailed(sandbox="s2", error_type="CodeFetchFailed", message="no frontend has c0de")),
        (3.4, destroy("s2")),
    ])


def test_a_failed_run_resets_its_sandbox(story):
    story(core(), [
        *READY,
        (2.0, start()),
        (5.0, result()),
        (5.0, m.ResetBegun(sandbox="s1")),
        (5.1, ended()),
        (6.0, start("i2")),
        (6.1, result("i2")),
        "the driver gives up on it",
        (6.2, m.SandboxBroken(sandbox="s1", reason="can't be killed")),
        (6.3, ended("i2")),
        (6.4, m.SandboxGone(sandbox="s1")),
    ])


def test_an_idle_sandbox_that_breaks_is_not_offered_any_more(story):
    story(core(), [
        *READY,
        (2.0, m.SandboxBroken(sandbox="s1", reason="can't be frozen")),
        (2.1, start()),
        (5.0, m.SandboxGone(sandbox="s1")),
    ])


def test_draining_kills_nothing(story):
    story(core(), [
        *READY,
        (2.0, create("s2", cause="i9")),
        (2.0, start()),
        (2.1, m.Drain(link=1, lease=1)),
        (2.1, create("s3")),
        (2.1, m.Return(link=1, lease=1)),
        (2.2, start("i2", sandbox="s2")),
        (2.3, m.SandboxBuilt(sandbox="s2")),
        (2.3, m.SandboxGone(sandbox="s2")),
        (2.4, result()),
        (2.5, ended()),
        (2.6, m.SandboxGone(sandbox="s1")),
        "returned: the number is spent",
        (3.0, adopt()),
        (3.0, adopt(lease=2)),
    ])


def test_the_lease_ends_by_the_workers_own_clock(story):
    story(core(), [
        *JOINED,
        (0.0, adopt(lasts_s=10.0)),
        (1.0, create()),
        (1.1, m.SandboxBuilt(sandbox="s1")),
        (1.2, m.InitDone(sandbox="s1", phases=PHASES)),
        (8.9, start()),
        (9.5, result()),
        (9.5, ended()),
        (9.6, start("i2")),
        (9.6, create("s2")),
    ])


def test_fences(story):
    later = m.Block(session=m.Session(frontend="f1", epoch=5), account="a")
    story(core(), [
        *READY,
        (2.0, start()),
        "to fence and to report is one step",
        (2.1, m.Fenced(link=9, session=BLOCK.session)),
        (2.2, m.Fenced(link=9, session=m.Session(frontend="f2", epoch=1))),
        (2.3, result()),
        (2.3, ended()),
        (2.4, start("i2")),
        (2.5, start("i3", block=later)),
        "a new leader hears the END that the old one never applied",
        (3.0, m.Joined(link=10, watermarks=(BLOCK.session,))),
        (3.1, m.EndApplied(invocation="i1")),
        (3.2, m.Joined(link=11, watermarks=(BLOCK.session,))),
    ])


def test_sigterm(story):
    story(core(), [
        *READY,
        (2.0, start()),
        (2.1, m.DrainSelf()),
        (2.2, start("i2")),
        (2.2, create("s2")),
        (2.3, result()),
        (2.4, ended()),
        (2.5, m.SandboxGone(sandbox="s1")),
    ])


def test_bars_are_bounded():
    worker = WorkerCore(
        incarnation=HOST, memory_mb=256, sandboxes_max=10, runtimes=("python3.11",), bar_s=60, bars_max=3
    )
    for number in range(5):
        worker.handle(start(f"i{number}"), 0.0)
    assert [f"i{n}" in worker.barred for n in range(5)] == [False, False, True, True, True]
    worker.handle(start("late"), 61.0)
    assert len(worker.barred) == 1
