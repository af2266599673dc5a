"""The verdict on one history: which invariants (docs/invariants.md) and promises it contradicts.

Owns what a scenario promises, and when a history proves nothing; the invariants are ``simulation.history``'s. A
violation is a sentence that begins with the invariant's number, or with ``promise`` or ``history``. Judging a file
again gives the same verdict: everything it needs, the scenario's promise included, is in the records. Refuses to know
how a run was made; numbers for people are ``figures``'s.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from labda.chaos import evidence, runs
from labda.chaos.faults import GIVES, HITS
from labda.chaos.history import (
    Closed,
    Fault,
    Ledger,
    Opened,
    Process,
    Promise,
    Record,
    Request,
    Write,
    of_type,
)
from labda.chaos.runs import FOREVER, Run, Runs
from labda.chaos.steadiness import leaders
from labda.refusal import Refusal
from simulation.history import check

OK = 200
UNAVAILABLE = 503
EXAMPLES_MAX = 5                                        # sentences of one kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that didn't get its result. ``excuse``: "there", "notice", "refused", or empty: nothing excuses it."""

    request: Request
    excuse: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """``failures``: of requests from the time on when the load was at its rate."""

    opened: Opened
    records: Sequence[Record]
    runs: Runs
    failures: Sequence[Failure]
    violations: Sequence[str]

    @property
    def passed(self) -> bool:
        return not self.violations

    @property
    def hits(self) -> list[Fault]:
        return [one for one in of_type(self.records, Fault) if one.action in HITS]


def judge(records: Sequence[Record]) -> Judged:
    """Raises Refusal for what doesn't begin as a history does."""
    if not records or not isinstance(records[0], Opened):
        raise Refusal("this history doesn't say which scenario it is of: its first line is missing")
    opened = records[0]
    found = runs.find(records)
    ran, hits, over = found.by_nonce(), _hits(records), _over(records)
    failures = [
        Failure(
            request=one, excuse="refused" if _may_refuse(opened.promise, one, hits, over) else
            _excuse(opened.promise, one, ran.get(one.nonce), hits),
        )
        for one in of_type(records, Request) if failed(one) and one.at >= opened.steady_at
    ]
    violations = _shortened([
        *_whole(records, found), *_invariants(records, found), *_promises(opened, records, found, failures)
    ])
    return Judged(opened=opened, records=records, runs=found, failures=failures, violations=violations)


def failed(request: Request) -> bool:
    return request.status != OK or bool(request.error)


def _shortened(sentences: Iterable[str]) -> list[str]:
    """The first few of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for sentence in sentences:
        kinds[sentence.partition(":")[0]].append(sentence)
    shortened = []
    for kind, all_of_them in kinds.items():
        rest = len(all_of_them) - EXAMPLES_MAX
        shortened += all_of_them[:EXAMPLES_MAX] + ([f"{kind}: and {rest} more of this kind"] if rest > 0 else [])
    return shortened


# ---------------------------------------------------------------- invariants


def _whole(records: Sequence[Record], found: Runs) -> Iterator[str]:
    """A history that proves nothing is no pass."""
    closed = of_type(records, Closed)
    if not closed:
        yield "history: it was cut short, so that nobody knows what it lacks"
    for one in closed:
        if one.unsent:
            yield f"history: {one.unsent} requests were due and not sent, the generator had no connection left"
        for node in one.missing:
            yield f"history: {node} doesn't serve again after the run"
        for node in one.unheard:
            yield f"history: the log of {node} could not be followed to the end"
    if not found.all:
        yield "history: nothing ran"


def _invariants(records: Sequence[Record], found: Runs) -> Iterator[str]:
    yield from map(str, check(evidence.records(records, found)).violations)
    if not any(one.moment == "end" for one in of_type(records, Ledger)) and of_type(records, Closed):
        yield "2: the ledger was not asked at the end"


# ---------------------------------------------------------------- promises


def _hits(records: Sequence[Record]) -> list[Fault]:
    return [one for one in of_type(records, Fault) if one.action in HITS]


def _over(records: Sequence[Record]) -> float:
    """When the newest of what was done was given back. What a cluster does by itself is over when it was done."""
    faults = [one for one in of_type(records, Fault) if one.action in HITS | GIVES]
    return faults[-1].done if faults and (faults[-1].action in GIVES or faults[-1].action == "kill") else FOREVER


def _may_refuse(promise: Promise, request: Request, hits: Sequence[Fault], over: float) -> bool:
    if request.status not in promise.refuses or not request.explained or not hits:
        return False
    told_when = request.status != UNAVAILABLE or bool(request.retry_after)
    return told_when and hits[0].at <= request.done <= over + promise.healed_s


def _excuse(promise: Promise, request: Request, run: Run | None, hits: Iterable[Fault]) -> str:
    """Why this failure was to be expected: its request was at what was hit, or was sent before that was noticed."""
    if not promise.fails:
        return ""
    for hit in hits:
        # What was killed last was alive until ``done``: docker takes a second or two over an AZ.
        if not hit.at <= request.done <= hit.done + promise.over_s or request.sent > hit.done + promise.notice_s:
            continue
        # Which frontend had it nobody knows when no answer came. Where it ran is known.
        elsewhere = run is not None and run.worker and run.worker not in hit.nodes
        if elsewhere and not any(node.startswith("frontend-") for node in hit.nodes):
            continue
        return "there" if request.sent <= hit.done else "notice"
    return ""


def _promises(
    opened: Opened, records: Sequence[Record], found: Runs, failures: Sequence[Failure]
) -> Iterator[str]:
    promise, hits = opened.promise, _hits(records)
    for failure in failures:
        request = failure.request
        if not failure.excuse:
            yield f"promise: {_told(request, opened, hits)}"
        elif request.status == OK:
            yield f"promise: request {request.nonce} of {request.function} got {request.error}, which no fault does"
    if promise.warm_share:
        share = warm_share(found, since=max((hit.done for hit in hits), default=0.0) + promise.over_s)
        if share is not None and share < promise.warm_share:
            yield (
                f"promise: {share:.1%} of the runs were warm once it was over, at least {promise.warm_share:.0%} "
                "should have been"
            )
    yield from _writes(promise, records, hits)
    yield from _leaders(promise, records, hits)
    if not hits:
        yield "promise: nothing was done to the cluster"


def _leaders(promise: Promise, records: Sequence[Record], hits: Sequence[Fault]) -> Iterator[str]:
    if promise.leaders_per_min is None or not hits:
        return
    last = max((one.done for one in of_type(records, Request)), default=hits[0].at)
    allowed = max(1.0, promise.leaders_per_min * (last - hits[0].at) / 60.0)
    changes = leaders(records, since=hits[0].at)
    if len(changes) > allowed:
        yield (
            f"promise: counting's leader changed {len(changes)} times in {last - hits[0].at:.0f} s, "
            f"{promise.leaders_per_min:g} times a minute are allowed"
        )


def _writes(promise: Promise, records: Sequence[Record], hits: Sequence[Fault]) -> Iterator[str]:
    """While the stores are away a write gets a 503 that says why, and works again afterwards."""
    writes = of_type(records, Write)
    if not promise.writes_refused:
        return
    healed = [one.done for one in of_type(records, Fault) if one.action in GIVES]
    if not writes or not hits or not healed:
        yield "promise: no write was tried while the stores were away"
        return
    for write in writes:
        if write.at > hits[0].done and write.done < min(healed) and (write.status != 503 or not write.explained):
            yield f"promise: while the stores were away a write got {write.status} {write.error}, no 503 that says why"
    if writes[-1].status >= 300 or writes[-1].at < max(healed):
        yield f"promise: writes don't work again: the last one got {writes[-1].status} {writes[-1].error}"


def _told(request: Request, opened: Opened, hits: Sequence[Fault]) -> str:
    after = [request.done - hit.at for hit in hits if hit.at <= request.done]
    when = f"{after[-1]:.1f} s after the last fault" if after else "before any fault"
    status = f"{request.status} {request.error}" if request.status else request.error
    return (
        f"request {request.nonce} of {request.function} failed {when} ({status}{': ' if request.reason else ''}"
        f"{request.reason}; sent at t+{request.sent - opened.steady_at:.1f} s)"
    )


def warm_share(found: Runs, *, since: float, until: float = FOREVER) -> float | None:
    """Of the answered runs that began in this time. None without any."""
    calls = [run.calls for run in found.all if run.calls and since <= run.start < until]
    return sum(one > 1 for one in calls) / len(calls) if calls else None


def new_workers(records: Sequence[Record]) -> list[str]:
    """Workers that came into the region after the first hit and weren't there before."""
    hits = _hits(records)
    seen = [one for one in of_type(records, Process) if one.service == "worker"]
    before = {one.node for one in seen if not hits or one.at <= hits[0].at}
    return sorted({one.node for one in seen} - before)

