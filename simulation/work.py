"""What is asked of a region while a fault plan befalls it: invokes, limits, updates; each with what came of it.

Owns the functions, the clients and the changes. Refuses to know faults, and to judge.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping

from chassis.faults import Fault
from protos import counting_pb2, counting_rpc
from simulation import members
from simulation.client import Answer
from simulation.plan import FUNCTIONS, Entry
from simulation.record import LOST, LimitChange, Record, Request, Run
from simulation.region import ACCOUNT, ConnectionLost, Region
from simulation.region import FUNCTIONS as PATH
from simulation.sandbox_driver import Handler, Invocation, MemorySandbox
from simulation.scenario import create

TIMEOUT_S = 6
SHORT_RUN_S = 0.5
LONG_SHARE = {"f": 0.4}     # of invocations may run for as long as the plan allows; of other functions fewer
FEW = 0.05
BOUND_S = 9.5       # Put returns sooner only where the change binds everywhere; counting's put_s is 10 s
POLL_S = 0.1
SETTLES_S = 20.0    # an update is looked for so long
_REVISION = "REVISION"


class Functions:
    """The handlers: they say what ran when, in true time."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._running: Counter[str] = Counter()
        self._sandboxes: dict[MemorySandbox, int] = {}

    def handlers(self) -> Mapping[str, Handler]:
        return dict.fromkeys(FUNCTIONS, self._work)

    @property
    def running(self) -> int:
        return self._running.total()

    async def _work(self, event: bytes, invocation: Invocation) -> bytes:
        asked = json.loads(event)
        name, function = asked["name"], asked["function"]
        self._running[function] += 1
        spec, now = invocation.sandbox.spec, self._record.lines.now
        run = Run(
            name=name, function=function, named=spec.environment["AWS_LAMBDA_FUNCTION_NAME"],
            sandbox=self._sandboxes.setdefault(invocation.sandbox, len(self._sandboxes)),
            revision=int(spec.environment.get(_REVISION, 0)), began=now(), with_it=self._running[function],
            in_all=self._running.total(),
        )
        self._record.runs.append(run)
        self._record.request_ids[name] = invocation.headers["lambda-runtime-aws-request-id"]
        try:
            await asyncio.sleep(asked["seconds"])
        finally:
            self._running[function] -= 1
            run.ended = now()
        return json.dumps({"name": name}).encode()


class Work:
    """The clients. One change of a function at a time; invokes whenever."""

    def __init__(self, region: Region, record: Record, dice: random.Random, *, longest_s: float) -> None:
        self.region, self.record = region, record
        self._dice = dice
        self._longest_s = longest_s
        self._numbers = itertools.count(1)
        self._settled = dict.fromkeys(FUNCTIONS, 0)
        self._revisions = dict.fromkeys(FUNCTIONS, 0)
        self._changing = {name: asyncio.Lock() for name in ("", *FUNCTIONS)}
        self._open: dict[asyncio.Task[None], None] = {}

    async def deploy(self) -> None:
        for name in FUNCTIONS:
            answer = await create(self.region, name, name, timeout_s=TIMEOUT_S)
            assert answer.status == 200, answer

    # ------------------------------------------------------------ load

    async def open(self, entry: Entry) -> None:
        end = self._now() + entry.for_s
        while True:
            await asyncio.sleep(self._dice.expovariate(entry.amount))
            if self._now() > end:
                return
            self.ask_soon(entry.target)

    async def closed(self, entry: Entry) -> None:
        end = self._now() + entry.for_s

        async def client() -> None:
            while self._now() < end:
                await asyncio.sleep(self._dice.expovariate(1.5))
                await self.ask_soon(entry.target)

        async with asyncio.TaskGroup() as group:
            for _ in range(int(entry.amount)):
                group.create_task(client())

    async def answered(self, within_s: float) -> None:
        """Waits until everything that was asked is; what isn't by then is left without an answer."""
        if self._open:
            await asyncio.wait(self._open, timeout=within_s)

    async def ask(self, function: str, *, frontend: int | None = None, seconds: float | None = None) -> Request | None:
        """One invoke. None where no frontend listens."""
        number = self._frontend() if frontend is None else frontend
        if number is None:
            return None
        request = Request(
            name=f"{function}-{next(self._numbers)}", function=function, frontend=number, asked=self._now(),
            revision=self._settled[function],
        )
        self.record.requests[request.name] = request
        event = {
            "name": request.name, "function": function,
            "seconds": self._seconds(function) if seconds is None else seconds,
        }
        try:
            answer = await self.region.invoke(function, json.dumps(event).encode(), frontend=number)
        except ConnectionLost:
            request.status = LOST
        else:
            request.status, request.body = answer.status, answer.body
            request.error_type = answer.headers.get("x-amzn-errortype", "")
            request.failed = "x-amz-function-error" in answer.headers
        request.answered = self._now()
        return request

    def ask_soon(self, function: str) -> "asyncio.Task[None]":
        async def one() -> None:
            await self.ask(function)

        task = asyncio.get_running_loop().create_task(one())
        self._open[task] = None
        task.add_done_callback(lambda done: self._open.pop(done, None))
        return task

    def _seconds(self, function: str) -> float:
        is_long = self._dice.random() < LONG_SHARE.get(function, FEW)
        return self._dice.uniform(0.02, self._longest_s if is_long else SHORT_RUN_S)

    def _frontend(self) -> int | None:
        living = [number for number, frontend in enumerate(self.region.frontends) if not frontend.killed]
        return self._dice.choice(living) if living else None

    def _now(self) -> float:
        return self.region.clock.monotonic()

    # ------------------------------------------------------------ changes

    async def limit(self, function: str, value: int | None) -> int:
        """A reservation, or none. The status of the answer; LOST where the connection broke."""
        path = f"/2017-10-31/functions/{function}/concurrency"
        body = json.dumps({"ReservedConcurrentExecutions": value}).encode()
        async with self._changing[function]:
            change = LimitChange(function=function, value=value, sent=self._now())
            if function not in {known.function for known in self.record.limits}:    # before: none
                self.record.limits.append(LimitChange(function=function, value=None, sent=0.0, binds_at=0.0))
            self.record.limits.append(change)
            answer = await self._request(*(("DELETE", path) if value is None else ("PUT", path, body)))
            if answer is not None and answer.status in (200, 204):
                if self._now() - change.sent < BOUND_S:
                    change.binds_at = self._now()
            elif answer is not None and answer.status == 400:
                self.record.limits.remove(change)   # refused by name: below the floor
            return LOST if answer is None else answer.status

    async def account_limit(self, limit: int) -> bool:
        """Whether it binds. A member that doesn't lead says so; of one that says nothing it isn't known."""
        request = counting_pb2.SetAccountLimitRequest(
            account=ACCOUNT, limit=limit, request=f"account-{next(self._numbers)}"
        )
        network = self.region.ground.fabric.network(members.OPERATOR)
        async with self._changing[""]:
            change = LimitChange(function="", value=limit, sent=self._now())
            if not any(known.function == "" for known in self.record.limits):
                self.record.limits.append(LimitChange(function="", value=None, sent=0.0, binds_at=0.0))
            self.record.limits.append(change)
            for address in members.counting_addresses().values():
                channel = network.connect(address, service="counting")
                try:
                    answer = await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=15.0)
                except Fault:
                    continue
                if not answer.HasField("not_leader") and not answer.HasField("below_floor") and not answer.outstanding:
                    change.binds_at = self._now()
                    return True
            return False

    async def update(self, function: str) -> None:
        """Another configuration; then waits until some frontend calls it Successful, and all later requests count."""
        async with self._changing[function]:
            self._revisions[function] += 1
            body = {"Environment": {"Variables": {_REVISION: str(self._revisions[function])}}}
            await self._request("PUT", f"{PATH}/{function}/configuration", json.dumps(body).encode())
            end = self._now() + SETTLES_S
            while self._now() < end and self._settled[function] < self._revisions[function]:
                await asyncio.sleep(POLL_S)
                answer = await self._request("GET", f"{PATH}/{function}/configuration")
                if answer is not None and answer.status == 200 and answer.json()["LastUpdateStatus"] == "Successful":
                    told = answer.json().get("Environment", {}).get("Variables", {})
                    self._settled[function] = max(self._settled[function], int(told.get(_REVISION, 0)))
                    return

    async def _request(self, method: str, path: str, body: bytes = b"") -> Answer | None:
        number = self._frontend()
        if number is None:
            return None
        try:
            return await self.region.request(method, path, body, frontend=number)
        except ConnectionLost:
            return None
