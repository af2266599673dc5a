"""One run of one scenario: functions, load, fault, quiet, everything back, verdict.

Owns the order of the steps and the cleaning up, which happens whatever becomes of the run: what was stopped or cut is
as before, the functions under load are gone, the history is a file. Refuses to know the scenario and the target.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labda.api import Api, Code
from labda.chaos import load as load_module
from labda.chaos.connections import Connections
from labda.chaos.faults import away
from labda.chaos.figures import load_told, told
from labda.chaos.hands import Hands
from labda.chaos.history import FORMAT, Closed, Fault, Limit, Opened, Writer, now
from labda.chaos.judge import Judged, judge
from labda.chaos.load import Load, LoadConfig, Signer
from labda.chaos.scenarios import Scenario
from labda.chaos.stage import Stage
from labda.chaos.witness import Witness
from labda.console import Console
from labda.refusal import Refusal
from labda.region import Region
from labda.state import Credentials

SETTLE_S = 3.0          # after the ramp, before promises count
BEFORE_S = 10.0         # of steady load before the fault, at most: no longer than what follows it
ANSWERS_S = 30.0        # beyond a run, for the last answers
QUIET_S = 5.0           # invariant 2
END_S = 20.0            # for the ledger, after everything serves again
DELETE_S = 30.0
LIVE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a run has to know of the cluster that it is made on."""

    target: str
    endpoint: str
    authority: str          # file of who vouches for an HTTPS endpoint; empty: it isn't one
    region: str
    credentials: Credentials
    time_scale: float
    runtime: str

    def api(self) -> "contextlib.closing[Api]":
        return contextlib.closing(Api(self.endpoint, self.credentials, self.region, authority=self.authority))

    def connections(self) -> Connections:
        parts = urlsplit(self.endpoint)
        tls = ssl.create_default_context(cafile=self.authority) if parts.scheme == "https" else None
        return Connections(parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80), tls=tls)


class Experiment:
    """``run`` it once."""

    def __init__(
        self, scenario: Scenario, config: LoadConfig, *, seed: int, lasts_s: float, cluster: Cluster, region: Region,
        hands: Hands, folder: Path, console: Console,
    ) -> None:
        self._scenario = scenario
        self._config = config
        self._seed = seed
        self._lasts_s = lasts_s
        self._cluster = cluster
        self._region = region
        self._hands = hands
        self._console = console
        self.path = folder / "history.ndjson"

    async def run(self) -> Judged:
        """Raises Refusal when the run could not be made to its end; the cluster is as before then too."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w") as file:
            writer = Writer(file)
            try:
                await self._run(writer)
            finally:
                await self._hands.restore()
        return judge(writer.records)

    async def _run(self, writer: Writer) -> None:
        load = Load(
            self._config, self._seed, connections=self._cluster.connections(),
            signer=Signer(self._cluster.credentials, endpoint=self._cluster.endpoint, region=self._cluster.region),
            tell=writer.add,
        )
        opened: list[Opened] = []
        stage = Stage(
            region=self._region, hands=self._hands, load=load, rng=random.Random(self._seed),  # noqa: S311
            lasts_s=self._lasts_s, time_scale=self._cluster.time_scale, tell=writer.add,
            say=lambda fault: self._say(fault, opened[0]), open_api=self._cluster.api,
        )
        if missing := stage.missing():
            raise Refusal(f"the cluster isn't whole, so that nothing can be proven on it: {', '.join(missing)}")
        if self._scenario.prepare is not None:
            self._console.live("preparing  the leaders")
            await self._scenario.prepare(stage)
        async with self._functions() as limits:
            opened.append(self._open(writer, limits))
            self._console.line("load", load_told(opened[0], limits))
            witness = Witness(
                self._region, self._cluster.credentials.account, self._names, writer.add, limited=self._config.names
            )
            witness.start(since_ms=int(time.time() * 1000))
            try:
                await self._under_load(stage, load, opened[0])
                await self._afterwards(stage, load, witness, writer)
            finally:
                await witness.close()

    def _open(self, writer: Writer, limits: list[Limit]) -> Opened:
        at = now()
        opened = Opened(
            format=FORMAT, at=at, wall=time.strftime("%Y-%m-%dT%H:%M:%S%z"), scenario=self._scenario.name,
            target=self._cluster.target, seed=self._seed, rate=self._config.rate, run_s=self._config.run_s,
            use=self._config.use, steady_at=at + self._config.ramp_s + SETTLE_S, promise=self._scenario.promise,
        )
        writer.add(opened)
        for limit in limits:
            writer.add(limit)
        return opened

    async def _under_load(self, stage: Stage, load: Load, opened: Opened) -> None:
        """The load, and in its midst the fault. Ends when the scenario has, or with what either raises."""
        act = asyncio.ensure_future(self._act(stage, opened))
        sending = asyncio.ensure_future(load.run())
        showing = asyncio.ensure_future(self._show(load, opened))
        tasks = (act, sending, showing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _act(self, stage: Stage, opened: Opened) -> None:
        await asyncio.sleep(max(0.0, opened.steady_at + min(BEFORE_S, self._lasts_s) - now()))
        await self._scenario.act(stage)

    async def _afterwards(self, stage: Stage, load: Load, witness: Witness, writer: Writer) -> None:
        self._console.live("quiet      the last answers, then the ledger")
        await load.stop(self._config.run_s + ANSWERS_S)
        await witness.ledger("quiet", since=now(), within_s=QUIET_S, away=away(writer.records, now()))
        self._console.live("back       everything is started again")
        await stage.restore()
        missing: list[str] = []
        try:
            await stage.all_serve()
        except Refusal:
            missing = stage.missing()
        await witness.ledger("end", since=now(), within_s=END_S, away=False)
        missing += await asyncio.to_thread(self._lost)
        unheard = await witness.collect()
        writer.add(Closed(at=now(), unsent=load.unsent, unheard=unheard, missing=tuple(missing)))

    async def _show(self, load: Load, opened: Opened) -> None:
        while True:
            self._console.live(
                f"t{now() - opened.steady_at:+.0f} s  {load.answered:,} answered, {load.failed:,} of them not with a "
                f"result; {load.under_way:,} under way"
            )
            await asyncio.sleep(LIVE_S)

    def _say(self, fault: Fault, opened: Opened) -> None:
        self._console.line(*told(fault, opened))

    # ------------------------------------------------------------ functions

    @property
    def _names(self) -> list[str]:
        return [*self._config.names, *self._scenario.known]

    @contextlib.asynccontextmanager
    async def _functions(self) -> AsyncIterator[list[Limit]]:
        """Deployed and limited while inside, gone afterwards."""
        try:
            yield await asyncio.to_thread(self._deploy)
        finally:
            await self._hands.restore()     # or nobody may answer
            await asyncio.to_thread(self._delete)

    def _deploy(self) -> list[Limit]:
        limits = []
        with self._cluster.api() as api:
            for name in self._names:
                self._console.live(f"deploying  {name}")
                api.deploy(Code(
                    name=name, runtime=self._cluster.runtime, handler=load_module.HANDLER,
                    memory_mb=self._config.memory_mb, timeout_s=self._config.timeout_s,
                    archive=load_module.archive(name),
                ), lambda _: None)
            for name in self._config.names:
                api.reserve(name, self._config.pool)
                limits.append(Limit(at=now(), function=name, limit=self._config.pool))
        return limits

    def _lost(self) -> list[str]:
        """Functions and limits that were there before and aren't now."""
        with self._cluster.api() as api:
            names = {found["FunctionName"] for found in api.functions()}
            lost = [f"function {name}" for name in self._names if name not in names]
            return lost + [
                f"the limit of {name}" for name in self._config.names
                if name in names and api.reserved(name) != self._config.pool
            ]

    def _delete(self) -> None:
        """What was killed a moment ago may not answer yet: each is tried for a while. Raises Refusal."""
        deadline = now() + DELETE_S
        names = list(self._names)
        while names:
            try:
                with self._cluster.api() as api:
                    while names:
                        api.delete(names[-1])
                        names.pop()
            except Refusal:
                if now() > deadline:
                    raise
                time.sleep(LIVE_S)
