"""What an hour of churn leaves in counting: journal, snapshot and memory every ten minutes, in virtual time.

    python -m benchmarks.churn [MINUTES]

Three members in this one process, with production's settings, over memory: the services' own code and real files,
which aren't synced. What comes and goes: permits, frontends' processes (each fences the one before), workers'
incarnations, functions' reservations under names that never come again, the account's limit, members. All of it as in
an hour of a busy region, so that what is kept for each that ever was shows up.
"""

import asyncio
import functools
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chassis import logs
from chassis.faults import Fault
from chassis.process import Tasks
from protos import counting_pb2, counting_rpc
from simulation.loop import VirtualLoop, run
from tests.counting.client import Client, Refused, WorkerClient, WorkerUp
from tests.counting.region import REST, A, Region, call, frontend, pool_of, region_in_memory

WINDOW_MIN = 10     # a journal is a saw, in the file and in memory: of it, the highest tooth of so many minutes is told
FRONTENDS, WORKERS = 3, 3
REQUESTS_PER_FRONTEND = 4   # that wait or run at a time
RUN_S = 1.0                 # mean
FUNCTION_S, FUNCTIONS = 10.0, 6     # a function comes so often, and so many are there
RESTART_S = 40.0            # in turn: a frontend, a worker
MEMBER_S = 420.0            # the leader is killed, and comes back from its files


class Churn:
    """Counts what it does: ``did``."""

    def __init__(self, region: Region, generator: random.Random) -> None:
        self.did = dict.fromkeys(
            ("grants", "refusals", "frontends", "workers", "functions", "account limits", "leaders killed"), 0
        )
        self._region = region
        self._generator = generator
        self._functions: deque[str] = deque()
        self._clients: dict[int, tuple[Client, Tasks]] = {}
        self._workers: dict[int, WorkerClient] = {}
        self._tasks = Tasks()

    async def start(self) -> None:
        for n in range(1, FRONTENDS + 1):
            await self._start_frontend(n, nonce=1)
        for n in range(1, WORKERS + 1):
            await self._start_worker(n, nonce=1)
        self._tasks.start(self._every(FUNCTION_S, self._change_functions), name="functions")
        self._tasks.start(self._every(RESTART_S, self._restart), name="processes")
        self._tasks.start(self._every(MEMBER_S, self._kill_leader), name="members")

    async def stop(self) -> None:
        await self._tasks.cancel()
        for client, requests in self._clients.values():
            await requests.cancel()
            await client.stop()
        for worker in self._workers.values():
            await worker.stop()

    async def _every(self, seconds: float, act: Callable[[int], Awaitable[None]]) -> None:
        turn = 0
        while True:
            await asyncio.sleep(seconds)
            turn += 1
            await act(turn)

    # ------------------------------------------------------------ frontends and what they ask

    async def _start_frontend(self, n: int, nonce: int) -> None:
        client = Client(self._region.network(frontend(n)), frontend(n).node, self._region.addresses, nonce)
        requests = Tasks()
        self._clients[n] = await client.start(), requests
        for number in range(REQUESTS_PER_FRONTEND):
            requests.start(self._requests(client), name=f"request {number} of {client.name}")

    async def _requests(self, client: Client) -> None:
        while True:
            pool = pool_of(self._generator.choice(self._functions)) if self._functions else REST
            if self._generator.random() < 0.5:
                pool = REST
            try:
                await client.take(pool)
            except (Refused, TimeoutError):     # a limit is reached, a function has gone, a leader is away
                self.did["refusals"] += 1
                await asyncio.sleep(0.1)
                continue
            self.did["grants"] += 1
            epoch = client.session.epoch
            await asyncio.sleep(self._generator.expovariate(1 / RUN_S))
            if client.session is not None and client.session.epoch == epoch and client.block(pool).in_use:
                client.hand_back(pool)

    # ------------------------------------------------------------ what changes

    async def _change_functions(self, turn: int) -> None:
        name = f"function-{turn}"
        await self._set_reserved(name, 1 + turn % 3)
        self._functions.append(name)
        if len(self._functions) > FUNCTIONS:
            await self._set_reserved(self._functions.popleft(), None)
        self.did["functions"] += 1
        if turn % 3 == 0:
            await self._ask(counting_rpc.SET_ACCOUNT_LIMIT, counting_pb2.SetAccountLimitRequest(
                account=A, limit=1000 + turn % 2, request=f"limit-{turn}"
            ))
            self.did["account limits"] += 1

    async def _set_reserved(self, function: str, value: int | None) -> None:
        await self._ask(counting_rpc.SET_RESERVED, counting_pb2.SetReservedRequest(
            account=A, function=function, value=value, request=f"{function}-{value}"
        ), frontend(1))

    async def _ask(self, method: Any, request: Any, *caller: Any) -> None:
        """The same request again until somebody has answered it: its id makes it count once."""
        while True:
            try:
                await call(self._region, method, request, *caller)
                return
            except Fault:
                await asyncio.sleep(0.2)

    async def _restart(self, turn: int) -> None:
        n = 1 + turn // 2 % FRONTENDS
        if turn % 2:
            client, requests = self._clients.pop(n)
            await requests.cancel()
            await client.stop()
            await asyncio.sleep(4.0 * (turn % 4 == 1))  # silent for long enough, or replaced at once
            await self._start_frontend(n, client.nonce + 1)
            self.did["frontends"] += 1
        else:
            worker = self._workers.pop(n)
            await worker.stop()
            await self._start_worker(n, worker.nonce + 1)
            self.did["workers"] += 1

    async def _start_worker(self, n: int, nonce: int) -> None:
        worker = self._workers[n] = await WorkerClient(self._region, f"host-{n}", nonce).start()
        await worker.say(WorkerUp(renew=WorkerUp.Renew(number=1)))

    async def _kill_leader(self, _turn: int) -> None:
        name = self._region.leading()
        await self._region.kill(name)
        await asyncio.sleep(5.0)
        await self._region.start(int(name[-1]))
        self.did["leaders killed"] += 1
        for n, worker in list(self._workers.items()):   # its streams are for one life
            await worker.stop()
            await self._start_worker(n, worker.nonce + 1)


class Sizes:
    """Of all members: the largest journal and dump, and this process's memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journals: list[int] = []
        self._resident: list[int] = []

    def look(self) -> None:
        self._journals.append(max(path.stat().st_size for path in self._folder.glob("*/journal")))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._resident.append(pages * os.sysconf("SC_PAGE_SIZE"))

    def told(self) -> str:
        """Of what was seen since it was told last."""
        dumps = [path.stat().st_size for path in self._folder.glob("*/dump")]
        text = (
            f"journal {max(self._journals) / 1e6:.2f} MB, snapshot {max(dumps, default=0) / 1e3:.1f} KB, memory "
            f"{max(self._resident) / 1e6:.1f} MB at most"
        )
        self._journals, self._resident = [], []
        return text


async def churn(loop: VirtualLoop, folder: Path, minutes: int) -> None:
    region = await region_in_memory(loop, folder)
    region.network_of = functools.cache(region.network_of)  # the fabric keeps each: that isn't counting's growth
    sizes, work = Sizes(folder), Churn(region, random.Random(1))
    await work.start()
    for minute in range(1, minutes + 1):
        for _ in range(60):
            await asyncio.sleep(1.0)
            sizes.look()
        if minute % WINDOW_MIN == 0 or minute == minutes:
            print(f"churn, minute {minute}: {sizes.told()}", flush=True)
    compactions = sum(service.log.compactions for service in region.services.values())
    print(f"  {', '.join(f'{count:,} {what}' for what, count in work.did.items())}; {compactions} compactions")
    await work.stop()
    await region.close()


def main(minutes: int) -> None:
    logs.configure(service="counting", node="churn", level="error")     # that members are away is no news here
    with tempfile.TemporaryDirectory() as folder:
        run(lambda loop: churn(loop, Path(folder), minutes))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
