"""A run's records in the words of the checker (``simulation.history``): requests, runs, limits, leases, the ledger.

Owns the translation. A run's function stands for its pool, and a nonce for its request. Refuses to judge.
"""

from collections.abc import Iterator, Sequence

from labda.chaos.faults import away
from labda.chaos.history import Closed, Fault, Lease, Ledger, Limit, Record, Request, of_type
from labda.chaos.runs import ENDED_BY, FOREVER, Runs
from simulation.history import records as r


def records(history: Sequence[Record], found: Runs) -> list[r.Record]:
    """In the order of time. At one instant what ended comes before what began: the permit had come back."""
    told = [*_requests(history), *_runs(found), *_cluster(history)]
    return sorted(told, key=lambda record: (record.at, not isinstance(record, r.End | r.Bound)))


def _requests(history: Sequence[Record]) -> Iterator[r.Record]:
    for one in of_type(history, Request):
        yield r.Asked(at=one.sent, request=one.nonce, function=one.function)
        if one.status:
            yield r.Answered(
                at=one.done, request=one.nonce, function=one.function, status=one.status, error=one.error,
                explained=one.explained, echoes=True, echo=one.echo,
            )
        else:
            yield r.Over(at=one.done, request=one.nonce)


def _runs(found: Runs) -> Iterator[r.Record]:
    for run in found.all:
        yield r.Start(
            at=run.start, node=run.worker, invocation=run.nonce, function=run.function, sandbox=run.sandbox,
            pool=run.function, call=run.calls,
        )
        if run.end < FOREVER:
            yield r.End(at=run.end, node=run.worker, invocation=run.nonce, sandbox=run.sandbox)
    for start in found.others:
        yield r.Start(
            at=start.at, node=start.worker, invocation=start.nonce, function=start.function, sandbox=start.sandbox,
            pool=start.function,
        )


def _cluster(history: Sequence[Record]) -> Iterator[r.Record]:
    for one in history:
        match one:
            case Limit():
                yield r.Bound(at=one.at, pool=one.function, limit=one.limit, since=one.at)
            case Lease():
                yield r.LeaseHeld(at=one.at, worker=one.worker, lease=one.lease, manager=one.manager)
            case Fault() if one.action in ENDED_BY:
                for node in one.nodes:
                    yield r.Lost(at=one.done, node=node)
            case Ledger():
                gone = away(history, one.at)
                for pool in one.pools:
                    yield r.Rest(
                        at=one.at, pool=pool.function, out=pool.out(away=gone), after_s=one.at - one.since,
                        whole=one.moment == "end",
                    )
            case Closed():
                yield r.Closed(at=one.at)
            case _:
                pass
