"""What the cluster itself says during a run: when handlers ran, who holds which worker, what the ledger counts.

Owns the following of logs and of the region's view, under the operator's certificate, and the records of them. It
follows the logs live: what a worker said before it was killed has been heard, its files may be lost.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence

from chassis.faults import Fault
from chassis.process import Tasks
from labda.chaos.history import End, Host, Lease, Ledger, Pool, Process, Record, Start, Stranded, now
from labda.region import Node, Region
from protos import counting_pb2, worker_pb2

REDIAL_S = 0.2
LEASES_S = 0.5
LEDGER_S = 0.25
STRANDED_S = 0.25
OVERLAP_MS = 2000           # a log that is followed anew is read from that long before its newest line
_STAMP = re.compile(r"RUN (\S+) (START|END) ([0-9.]+)")


class Witness:
    """``start`` and ``close`` frame it; records go to ``tell``."""

    def __init__(
        self, region: Region, account: str, functions: Sequence[str], tell: Callable[[Record], None], *,
        limited: Sequence[str],
    ) -> None:
        self._region = region
        self._account = account
        self._functions = tuple(functions)
        self._limited = frozenset(limited)      # those with a pool of their own
        self._tell = tell
        self._tasks = Tasks()
        self._followed: set[str] = set()
        self._heard: set[tuple[str, str, str]] = set()      # a log that is followed anew says its last lines twice
        self._processes: dict[str, Process] = {}
        self._leases: dict[tuple[str, str], int] = {}
        self._since_ms = 0

    def start(self, *, since_ms: int) -> None:
        """``since_ms``: Unix milliseconds; what functions of these names logged before is of other runs."""
        self._since_ms = since_ms
        self._region.directory.observe(lambda _: self._look())
        self._look()
        self._tasks.start(self._follow_leases(), name="leases")
        self._tasks.start(self._follow_stranded(), name="stranded permits")

    async def close(self) -> None:
        await self._tasks.cancel()

    async def collect(self) -> tuple[str, ...]:
        """Once more everything that the workers' logs have kept; the workers that serve and could not be asked."""
        deaf = []
        for worker in self._region.directory.of_service("worker"):
            for function in self._functions:
                request = worker_pb2.LogsRequest(
                    account=self._account, function=function, since_ms=self._since_ms, follow=False
                )
                try:
                    async for line in self._region.logs(worker, request):
                        self._hear(worker.node, function, line)
                except Fault:
                    deaf.append(worker.node)
                    break
        return tuple(deaf)

    async def ledger(self, moment: str, *, since: float, within_s: float, away: bool) -> Ledger:
        """The pools of these functions, as soon as nothing is out that nothing accounts for, or when time is up."""
        deadline = now() + within_s
        pools: tuple[Pool, ...] = ()
        while True:
            answer = await self._region.pools()
            if answer is not None:
                pools = tuple(_pool(one) for one in answer.pools if self._is_ours(one.pool.account, one.pool.function))
                if len(pools) == len(self._limited) and not any(pool.out(away=away) for pool in pools):
                    break
            if now() > deadline:
                break
            await asyncio.sleep(LEDGER_S)
        record = Ledger(at=now(), since=since, moment=moment, pools=pools, hosts=await self._silent_hosts())
        self._tell(record)
        return record

    async def _silent_hosts(self) -> tuple[Host, ...]:
        answer = await self._region.hosts()
        since = now() - time.time()
        return tuple(
            Host(host=one.incarnation.host, until=one.evicted_by + since)
            for one in (answer.hosts if answer is not None else ()) if one.member and not one.heard
        )

    def _is_ours(self, account: str, function: str) -> bool:
        return account == self._account and function in self._limited

    # ------------------------------------------------------------ the region's view

    def _look(self) -> None:
        for node in self._region.nodes:
            seen = Process(
                at=0.0, node=node.node, service=node.service, health=node.health, role=node.role, pid=node.pid
            )
            if self._processes.get(node.node) != seen:
                self._processes[node.node] = seen
                self._tell(Process(
                    at=now(), node=node.node, service=node.service, health=node.health, role=node.role, pid=node.pid
                ))
            if node.service == "worker" and node.node not in self._followed:
                self._followed.add(node.node)
                for function in self._functions:
                    self._tasks.start(self._follow_log(node.node, function), name=f"log of {function} on {node.node}")

    async def _follow_leases(self) -> None:
        while True:
            for manager, answer in (await self._region.managers()).items():
                for held in answer.workers:
                    if self._leases.get((manager, held.worker)) != held.lease:
                        self._leases[manager, held.worker] = held.lease
                        self._tell(Lease(at=now(), worker=held.worker, lease=held.lease, manager=manager))
            await asyncio.sleep(LEASES_S)

    async def _follow_stranded(self) -> None:
        """While nobody leads, nobody can say; what was said last is taken to hold."""
        said = 0
        while True:
            answer = await self._region.pools()
            if answer is not None:
                permits = self._stranded(answer)
                if permits != said:
                    said = permits
                    self._tell(Stranded(at=now(), permits=permits))
            await asyncio.sleep(STRANDED_S)

    def _stranded(self, answer: counting_pb2.ListPoolsAnswer) -> int:
        """Of frontends that are gone: by the region's view, which knows sooner, or by the ledger."""
        serving = {node.node for node in self._region.nodes if node.health == "serving"}
        holders = [
            holder for one in answer.pools if self._is_ours(one.pool.account, one.pool.function)
            for holder in one.holders
        ]
        return sum(one.size for one in holders if one.state != "live" or one.session.frontend not in serving)

    # ------------------------------------------------------------ logs

    async def _follow_log(self, worker: str, function: str) -> None:
        since_ms = self._since_ms
        while True:
            node: Node | None = self._region.directory.nodes.get(worker)
            if node is not None and node.health == "serving":
                request = worker_pb2.LogsRequest(
                    account=self._account, function=function, since_ms=since_ms, follow=True
                )
                try:
                    async for line in self._region.logs(node, request):
                        since_ms = max(since_ms, line.at_ms - OVERLAP_MS)
                        self._hear(worker, function, line)
                except Fault:
                    pass    # it went away; the next life is asked for what is newer
            await asyncio.sleep(REDIAL_S)

    def _hear(self, worker: str, function: str, line: worker_pb2.LogLines.Line) -> None:
        found = _STAMP.match(line.message)
        if found is None:
            return
        nonce, what, stamp = found.groups()
        if (nonce, what, line.stream) in self._heard:
            return
        self._heard.add((nonce, what, line.stream))
        kind = Start if what == "START" else End
        self._tell(kind(at=float(stamp), nonce=nonce, function=function, sandbox=line.stream, worker=worker))


def _pool(status: counting_pb2.ListPoolsAnswer.PoolStatus) -> Pool:
    """A frontend that is gone and not counted yet strands what it held; what was counted ends with its invocations."""
    gone = [holder for holder in status.holders if holder.state != "live"]
    return Pool(
        function=status.pool.function, limit=status.limit, granted=status.granted,
        running=sum(holder.in_use for holder in status.holders if holder.state == "live"),
        stranded=sum(holder.size for holder in gone),
    )
