"""The ledger of a real cluster, asked over one connection that stays, and what functions say of when they ran."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from labda.region import Region, opened, wait
from labda.state import State
from protos import counting_pb2
from tests.cluster.cluster import Cluster
from tests.cluster.operators import Answer, Operator

ANSWER_S = 20.0
ROOT_ACCOUNT = "0" * 12

# A function that says when it ran, by a clock that all processes of this machine share.
STAMPED = """
import time

def handler(event, context):
    stamp = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    print(f"RUN {context.aws_request_id} START {stamp()}", flush=True)
    time.sleep(event)
    print(f"RUN {context.aws_request_id} END {stamp()}", flush=True)
    return "ran"
"""
_STAMP = re.compile(r"RUN (\S+) (START|END) (\d+)")


@dataclass(frozen=True)
class Run:
    """One run by the function's own stamps, in seconds since boot. ``end`` is infinite where it never came."""

    request: str
    start: float
    end: float


def runs(cluster: Cluster, name: str) -> list[Run]:
    """Every run that the function's log knows of, also those whose client lost its answer."""
    said = cluster.labda("logs", name)
    assert said.returncode == 0, said.stderr
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    for request, what, stamp in _STAMP.findall(said.stdout):
        where = starts if what == "START" else ends
        assert request not in where, f"{request} says {what} twice: it ran twice"
        where[request] = int(stamp) / 1e9
    return [Run(request, start, ends.get(request, float("inf"))) for request, start in starts.items()]


def most_at_once(found: list[Run], *, since: float = 0.0, until: float = float("inf")) -> int:
    """The largest number of runs that overlapped at one instant from ``since`` to ``until``."""
    running, most = 0, 0
    # An end and a start of one instant don't overlap.
    for at, change in sorted([(r.start, 1) for r in found] + [(r.end, -1) for r in found]):
        running += change
        if since <= at <= until:
            most = max(most, running)
    return most


class Ledger:
    """Use ``opened_ledger``: asks the leader of counting, whichever it is."""

    def __init__(self, operator: Operator, region: Region) -> None:
        self._operator = operator
        self._region = region

    def pool(self, function: str) -> counting_pb2.ListPoolsAnswer.PoolStatus:
        """The function's own pool; "": what no function of the root account has reserved. Polls while nobody leads."""
        [found] = self._named(function)
        return found

    def limit(self, function: str) -> int:
        """Of its own pool; 0 once that has gone, which it has when its reservation has and nothing runs by it."""
        return sum(status.limit for status in self._named(function))

    def holders(self, function: str) -> dict[tuple[str, int], int]:
        """(frontend, epoch) -> permits."""
        return {(h.session.frontend, h.session.epoch): h.size for h in self.pool(function).holders}

    def _named(self, function: str) -> list[counting_pb2.ListPoolsAnswer.PoolStatus]:
        answer = self._ask(self._pools)
        return [pool for pool in answer.pools if (pool.pool.account, pool.pool.function) == (ROOT_ACCOUNT, function)]

    async def _pools(self) -> counting_pb2.ListPoolsAnswer:
        async with asyncio.timeout(ANSWER_S):
            while (answer := await self._region.pools()) is None:
                await asyncio.sleep(0.05)
        return answer

    def _ask(self, what: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        return self._operator.run(what())


@contextmanager
def opened_ledger(cluster: Cluster) -> Iterator[Ledger]:
    """A connection of an operator's that stays."""
    state, operator = State(cluster.root), cluster.operator
    connection = opened(state, state.cluster()["placements"])

    async def enter() -> Region:
        region = await connection.__aenter__()
        await wait(region, state)
        return region

    region = operator.run(enter())
    try:
        yield Ledger(operator, region)
    finally:
        operator.run(connection.__aexit__(None, None, None))
