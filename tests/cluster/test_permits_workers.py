"""Workers killed and stopped under load: never one run too many, and every permit comes back (invariants 1 and 2).

A cluster of its own: authority 2.5 s, timeouts 3 s, grace 4 s, five workers with room for two sandboxes each. Who ran
when is read from the workers' event traces, whose times are one clock's (boot time of this machine), and from the
function itself, which says by the same clock when its handler began and ended. A run that was killed has no END: it
counts until every process of its worker's sandboxes was seen gone.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from labda.launch import cluster_id
from labda.region import opened
from labda.state import State
from tests.cluster.cluster import Cluster, Footprint, Functions, call, until, until_some

AUTHORITY_S, TIMEOUT_S, GRACE_S, DRIFT = 2.5, 3, 4.0, 0.01  # half a grace lies between a watchdog and an eviction
EVICTED_S = (AUTHORITY_S + TIMEOUT_S + GRACE_S) * (1 + DRIFT)
LIMIT = 3
KILLS = 10
HEALED_S = 60.0
SOURCE = """
import time

def handler(event, context):
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    time.sleep(event)
    return {"id": context.aws_request_id, "begun": begun, "ended": time.clock_gettime(time.CLOCK_BOOTTIME)}
"""


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def events_of(lines: list[bytes]) -> list[dict[str, Any]]:
    """A trace without what is said of its cores."""
    return [line for line in map(json.loads, lines) if "event" in line]


@dataclass
class Run:
    """One invocation at a worker, from its admission to its END."""

    node: str
    function: str
    invocation: str
    begun: float
    ended: float = float("inf")


class Workers:
    """What the workers of the cluster do, read from their traces, and how they are killed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.gone: dict[str, list[float]] = {}      # when a killed incarnation's sandboxes were seen gone, by node
        self._read: dict[str, tuple[list[dict[str, Any]], int]] = {}
        self._prefix = f"labda-{cluster_id(State(cluster.root))}-"

    @property
    def nodes(self) -> list[str]:
        return [node for node in self.cluster.pids() if node.startswith("worker-")]

    def events(self, node: str) -> list[dict[str, Any]]:
        """Everything that the node's incarnations were told and did, oldest first."""
        known, at = self._read.get(node, ([], 0))
        with (self.cluster.root / "nodes" / node / "trace.ndjson").open("rb") as file:
            file.seek(at)
            whole = file.read().rpartition(b"\n")[0]
        lines = whole.splitlines()
        self._read[node] = ([*known, *events_of(lines)], at + len(whole) + bool(lines))
        return self._read[node][0]

    def runs(self) -> list[Run]:
        """Every invocation of every worker; what a kill cut off ends when its worker's sandboxes were seen gone."""
        found: list[Run] = []
        for node in self.nodes:
            under: dict[str, Run] = {}
            for line in self.events(node):
                for effect in line["effects"]:
                    if effect["type"] == "StartInvocation":
                        function = line["event"]["function"]["function"]
                        run = Run(node, function, effect["invocation"], line["at"])
                        under[run.invocation] = run
                        found.append(run)
                if line["event"]["type"] == "InvocationEnded":
                    under.pop(line["event"]["invocation"]).ended = line["at"]
            for run in under.values():
                run.ended = min((at for at in self.gone.get(node, []) if at >= run.begun), default=float("inf"))
        return found

    def busy(self) -> list[str]:
        """Nodes where an invocation runs now, those first that were killed least."""
        running = {run.node for run in self.runs() if run.ended == float("inf")}
        return sorted(running, key=lambda node: len(self.gone.get(node, [])))

    def node_of(self, invocation: str) -> str:
        return next(run.node for run in self.runs() if run.invocation.partition("#")[0] == invocation)

    def joins(self, node: str, since: float) -> bool:
        return any(line["at"] > since and line["event"]["type"] == "Joined" for line in self.events(node))

    def without_authority(self, node: str, since: float) -> list[dict[str, Any]]:
        """What the node's core did from then on until it had authority again.

        A renewal that was on its way when the agent was stopped is read late and is over by then: it gives none.
        """
        lines = [line for line in self.events(node) if line["at"] >= since]
        renewed = next(i for i, line in enumerate(lines)
                       if line["event"]["type"] == "AuthorityRenewed" and line["event"]["until"] > line["at"])
        return lines[:renewed]

    def forgotten_at(self, node: str, since: float) -> float:
        """When the ledger first took the node's host for dead: evicted, or another incarnation joined."""
        host = node.replace("worker", "host")
        found: list[float] = []
        for trace in (self.cluster.root / "nodes").glob("counting-*/trace.ndjson"):
            for line in events_of(trace.read_bytes().splitlines()):
                if line["at"] > since and line["event"]["type"] == "Committed":
                    found += [line["at"] for command in line["event"]["batch"]["commands"]
                              if command["type"] in {"EvictWorker", "JoinWorker", "LeaveWorker"}
                              and command["incarnation"]["host"] == host]
        return min(found)

    def agent(self, node: str) -> int:
        """Pid of the agent: the spawner's child in the spawner's own pid namespace."""
        spawner = self.cluster.pids()[node]
        own = Path(f"/proc/{spawner}/ns/pid").readlink()
        children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
        return next(int(pid) for pid in children if Path(f"/proc/{pid}/ns/pid").readlink() == own)

    def inside(self, node: str) -> set[str]:
        """Names of the node's sandboxes in which a process is."""
        found = set()
        for place in ("", "*/"):
            with contextlib.suppress(OSError):  # a group goes while it is looked at: its processes have gone before
                for group in Path("/sys/fs/cgroup").glob(f"{place}{self._prefix}{node}/*"):
                    for folder, _, files in os.walk(group):
                        if "cgroup.procs" in files and Path(folder, "cgroup.procs").read_text():
                            found.add(group.name)
        return found

    def kill(self, node: str, *, agent: bool, spawner: bool) -> float:
        """Returns when, after everything that ran there was seen gone."""
        pids = [self.agent(node)] * agent + [self.cluster.pids()[node]] * spawner
        there = self.inside(node)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        at = now()
        self.await_gone(node, there)
        return at

    def await_gone(self, node: str, there: set[str]) -> float:
        """Until no process is in any of these sandboxes; returns when."""
        deadline = now() + EVICTED_S + HEALED_S
        while there & self.inside(node):
            assert now() < deadline, f"processes of {node} live: {there & self.inside(node)}"
            time.sleep(0.005)
        at = now()
        self.gone.setdefault(node, []).append(at)
        return at

    def spent(self, node: str) -> list[str]:
        """Control groups of sandboxes that no living incarnation of the node made."""
        lines = self.events(node)
        killed_at = max(self.gone.get(node, [0.0]))
        made = {effect["sandbox"] for line in lines for effect in line["effects"]
                if effect["type"] == "BuildSandbox" and line["at"] > killed_at}
        groups = {path.name for place in ("", "*/") for path in
                  Path("/sys/fs/cgroup").glob(f"{place}{self._prefix}{node}/*/")}
        return sorted(groups - made)


@dataclass
class Load:
    """Threads that invoke one function without a pause, and what they got."""

    client: Any
    function: str
    run_s: float = 0.2
    threads: int = 4
    answers: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    _going: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._going.set()
        self._threads = [threading.Thread(target=self._invoke, daemon=True) for _ in range(self.threads)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._going.clear()
            for thread in self._threads:
                thread.join(30)

    def _invoke(self) -> None:
        while self._going.is_set():
            try:
                result = call(self.client, self.function, self.run_s)
            except (ClientError, BotoCoreError) as error:
                self.refusals.append(str(error))
                time.sleep(0.1)
                continue
            if result.error is None:
                self.answers.append(result.payload)

    def all_at_once(self, since: float) -> bool:
        """Whether as many ran at one instant since then as there are permits: none is missing."""
        later = [answer for answer in self.answers[-200:] if answer["begun"] > since]
        return most_at_once([(answer["begun"], answer["ended"]) for answer in later]) == LIMIT


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """An end counts before a begin of the same instant: the permit had come back."""
    steps = sorted([(begun, 1) for begun, _ in spans] + [(ended, -1) for _, ended in spans])
    most = running = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


def look(cluster: Cluster) -> tuple[set[tuple[str, int]], int]:
    """The ledger's members, and how many permits are granted, from its leader."""
    async def ask() -> Any:
        placements = json.loads((cluster.root / "cluster.json").read_text())["placements"]
        async with opened(State(cluster.root), placements) as region:
            await region.directory.ready(5.0)
            return await region.pools()

    answer = None
    while answer is None:   # while another member comes to lead
        answer = cluster.operator.run(ask())
    return {(m.host, m.nonce) for m in answer.members}, sum(pool.granted for pool in answer.pools)


@pytest.fixture(scope="module")
def region(_needs_a_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("permits") / "state")
    running.start(
        "--azs", "1", "--workers-per-az", "5", "--trace", "--set", "counting.suspect_s=2",
        "--set", f"counting.authority_s={AUTHORITY_S}", "--set", f"counting.grace_s={GRACE_S}",
        "--set", f"worker.timeout_cap_s={TIMEOUT_S}", "--set", "worker.memory_mb=300",
    )
    try:
        yield running
    finally:
        footprint = Footprint.of(running)
        status = running.stop()
    assert status == 0, "".join(running.output)
    assert footprint.cgroups
    assert not footprint.left(running)


@pytest.fixture(scope="module")
def workers(region: Cluster) -> Workers:
    """One for all tests: a run that a kill cut off has no other end than what it saw."""
    return Workers(region)


@pytest.fixture
def functions(region: Cluster) -> Iterator[Functions]:
    client = region.client()
    made = Functions(client)
    try:
        yield made
    finally:
        made.close()
        client.close()


@pytest.fixture
def load(functions: Functions) -> Load:
    name = functions.make(SOURCE, Timeout=TIMEOUT_S)
    functions.client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=LIMIT)
    return Load(functions.client, name)


def judge(workers: Workers, load: Load) -> None:
    """Never one run too many, by the workers' word and by the function's own; then at rest: no permit is out."""
    until(lambda: look(workers.cluster)[1] == 0, "every permit is back in the ledger")
    runs = [run for run in workers.runs() if run.function == load.function]
    assert all(run.ended < float("inf") for run in runs), "every run has an end"
    assert most_at_once([(run.begun, run.ended) for run in runs]) == LIMIT
    known = {run.invocation.partition("#")[0]: run for run in runs}
    for answer in load.answers:
        run = known[answer["id"]]
        assert run.begun <= answer["begun"] < answer["ended"] <= run.ended, "the trace and the function agree"
    for node in workers.nodes:
        assert workers.spent(node) == [], "a killed incarnation's groups are swept by the next one"


def test_ten_kills_under_load(workers, load):
    with load.running():
        until(lambda: load.all_at_once(0.0), "all permits are in use")
        for number in range(KILLS):
            victim = until_some(workers.busy, "something runs")[0]
            # In turn: the agent, both, the spawner.
            at = workers.kill(victim, agent=number % 3 != 2, spawner=number % 3 != 0)
            until(partial(workers.joins, victim, at), f"{victim} joined again", timeout_s=HEALED_S)
            until(partial(load.all_at_once, at), "all permits are in use again", timeout_s=HEALED_S)
    judge(workers, load)


def test_agents_stopped_for_longer_than_their_authority(workers, load, functions):
    """One goes on before its watchdog loses patience, and finds a start that came late; the other never does."""
    warm = Load(load.client, functions.make(SOURCE, Timeout=TIMEOUT_S), run_s=0.0, threads=1)
    with load.running():
        until(lambda: load.all_at_once(0.0), "all permits are in use")
        with warm.running():    # amid the load: an idle sandbox would make room for the load's
            until(lambda: len(warm.answers) > 1, "a sandbox is warm")
        late = workers.node_of(warm.answers[-1]["id"])
        others = until_some(lambda: set(workers.busy()) - {late}, "another worker runs something")
        lost = min(others)
        agents = {node: workers.agent(node) for node in (late, lost)}
        there = workers.inside(lost)
        stopped_at = now()
        try:
            for pid in agents.values():
                os.kill(pid, signal.SIGSTOP)
            with warm.running():    # its frontend still holds the warm sandbox, and sends a start that nobody reads
                time.sleep(max(0.0, stopped_at + AUTHORITY_S + 0.5 - now()))    # authority is over, patience isn't
                continued_at = now()
                os.kill(agents[late], signal.SIGCONT)
                gone_at = workers.await_gone(lost, there)
        finally:
            for pid in agents.values():
                with contextlib.suppress(ProcessLookupError):   # the watchdog ends it as well
                    os.kill(pid, signal.SIGCONT)
        until(lambda: workers.joins(lost, stopped_at), f"{lost} joined again", timeout_s=HEALED_S)
        healed_at = now()
        until(lambda: load.all_at_once(healed_at), "all permits are in use again", timeout_s=HEALED_S)
    assert workers.forgotten_at(lost, stopped_at) > gone_at, "the ledger freed permits of sandboxes that lived"
    powerless = workers.without_authority(late, continued_at)
    starts = [effect for line in powerless for effect in line["effects"]
              if effect["type"] in {"StartInvocation", "RefuseStart"}]
    assert starts, f"a start came late; all there was: {powerless}, the last before: {workers.events(late)[-40:]}"
    assert {start.get("reason") for start in starts} == {"NO_AUTHORITY"}, "and was refused for certain"
    judge(workers, load)
