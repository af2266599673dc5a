"""The embedded cluster's supervisor: starts every process, waits until the region serves, keeps it so, takes it down.

Owns the order of things and what is said about them. Processes are ``labda.children``'s, files ``labda.launch``'s; what
is healthy is what the region's own view says, which the supervisor follows as an operator like any other.
"""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chassis.addresses import is_loopback
from labda import endpoint, launch, leftovers
from labda.children import ENDED_WELL, Child, Children, end_leftovers, identify, parent
from labda.console import ENDS, Console
from labda.control import Control
from labda.recording import Recording
from labda.refusal import Refusal
from labda.region import Region, opened
from labda.state import State
from labda.topology import DRAIN_ORDER, Topology
from labda.version import VERSION

if TYPE_CHECKING:
    from labda.chaos.proxy import Proxy

READY_S = 60.0
STARTS_MAX = 3              # a process that ended this often before the region served will not serve
DRAIN_S = 8.0               # longer than a process's own drain_s: it gives up first
LIVE_S = 1.0
HTTP_S = 2.0
LEFTOVER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``labda up`` was asked for."""

    topology: Topology
    listen: str
    runtimes: Path
    deploy: Sequence[Path] = ()
    check: bool = False
    trace: bool = False
    record: Path | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    time_scale: float = 1.0
    breakable: bool = False     # the links of counting's members go through a proxy, and their clocks can be moved


class Supervisor:
    """One start of one cluster, inside ``asyncio.run``."""

    def __init__(self, state: State, options: Options, console: Console) -> None:
        self._state = state
        self._options = options
        self._console = console
        self._members = {member.node: member for member in options.topology.members()}
        self._children = Children(environment=launch.environment(), observe=self._on_child)
        self._proxy: Proxy | None = None
        self._control = Control(state, self._children, drain_s=DRAIN_S)
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurried: list[str] = []   # who still ran when the end was asked for twice
        self._hurry = False
        self._draining = False
        self.served = False         # it came to serve, even if it ended since

    async def run(self) -> None:
        """Until SIGINT, SIGTERM, or SIGHUP of a terminal that closes.

        Raises Refusal when the cluster can't be started; nothing is left then either.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        began = time.monotonic()
        self._end_leftovers()
        with endpoint.reserve(self._options.listen) as held:
            plan = self._plan(held)
            recording = self._record()
            self._children.adopt()
            try:
                await self._live(plan, began)
            finally:
                await self._drain()
                if self._proxy is not None:
                    await self._proxy.close()
                (self._state.root / "cluster.json").unlink(missing_ok=True)
                if recording is not None:
                    self._write(recording)

    # ------------------------------------------------------------ start

    def _plan(self, held: socket.socket) -> launch.Plan:
        launch.check_store(self._state)
        host, _ = endpoint.parse(self._options.listen)
        listen = endpoint.render(host, held.getsockname()[1])
        seeds = launch.find_seeds(self._state, self._options.topology)
        plan = launch.Plan(
            state=self._state, topology=self._options.topology, listen=listen, runtimes=self._options.runtimes,
            seeds=seeds, breakable=self._options.breakable, detours=self._detours(seeds), check=self._options.check,
            trace=self._options.trace or self._options.record is not None, changes=self._options.changes,
            time_scale=self._options.time_scale,
        )
        launch.write(plan)
        return plan

    def _detours(self, seeds: Mapping[str, str]) -> Mapping[tuple[str, str], str]:
        if not self._options.breakable:
            return {}
        from labda.chaos.proxy import Proxy  # noqa: PLC0415 - most clusters have none

        self._proxy = self._control.proxy = Proxy(launch.routes(self._options.topology, seeds))
        return self._proxy.addresses

    def _record(self) -> Recording | None:
        """Before any process writes a line."""
        if self._options.record is None:
            return None
        recording = Recording(
            self._options.record, self._state, self._members, time_scale=self._options.time_scale
        )
        recording.begin()
        return recording

    def _write(self, recording: Recording) -> None:
        self._console.live("recording  what the processes traced")
        lost = [child.name for child in self._children.by_name.values() if child.ended != ENDED_WELL]
        try:
            count = recording.write(lost)
        except OSError as error:
            self._console.line("weak", f"{self._options.record} not written: {error.strerror}")
            return
        self._console.line("recorded", f"{count:,} records: labda chaos check {self._options.record}")

    async def _live(self, plan: launch.Plan, began: float) -> None:
        if self._proxy is not None:
            await self._proxy.start()
        for member in self._members.values():
            self._children.start(member.node, launch.command(member, self._state), self._state.log(member.node))
        credentials = await launch.root_credentials(plan)  # while the processes start
        async with opened(self._state, plan.placements) as region:
            region.directory.observe(lambda _: self._changed.set())
            if not await self._await_ready(region):
                return
            authority = "" if is_loopback(plan.listen) else str(self._state.authority)
            runtimes = sorted({r for node in region.nodes for r in node.capacity.runtimes})
            self._state.write("cluster.json", {
                "endpoint": endpoint.url(plan.listen), "authority": authority, "region": plan.region,
                "account": credentials.account, "placements": list(plan.placements), "runtimes": runtimes,
                "version": VERSION, "time_scale": plan.time_scale, "breakable": self._options.breakable,
            })
            await self._control.start()
            self.served = True
            topology = self._options.topology
            self._console.line(
                f"labda {VERSION}", f"{_count(topology.azs, 'AZ')}, "
                f"{_count(topology.azs * topology.workers_per_az, 'worker')}, {' '.join(runtimes)}",
                f"ready in {time.monotonic() - began:.1f} s",
            )
            await self._deploy()
            labda, aws = _reachable("labda"), _reachable("aws")
            self._console.line("use it", f'eval "$({labda} env{self._state.words})"; {aws} lambda list-functions')
            self._console.plain("^C ends everything" if self._console.terminal else ENDS)
            self._console.release()
            async for _ in self._ticks():
                if self._console.terminal:
                    self._console.live(await self._status(region))

    async def _await_ready(self, region: Region) -> bool:
        """Until the region serves; False when it was told to stop before. Raises Refusal."""
        deadline = time.monotonic() + READY_S
        while not self._stop.is_set():
            missing = await self._missing(region)
            if not missing:
                return True
            serving = len(self._members) - len(missing)
            self._console.live(f"starting   {serving} of {len(self._members)} serve; waiting for {missing[0]}")
            failed = next((c for c in self._children.by_name.values() if c.starts >= STARTS_MAX), None)
            if failed is not None or time.monotonic() > deadline:
                name = failed.name if failed else missing[0].split(" ")[0]
                raise Refusal(f"{name} doesn't start: {self._last_words(name)} (log: {self._state.log(name)})")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._changed.wait()
        return False

    async def _missing(self, region: Region) -> list[str]:
        """What the region still lacks, in words that begin with a process's name."""
        nodes = {node.node: node for node in region.nodes}
        pids = self._children.pids()
        missing = [
            name for name in self._members
            if name not in nodes or nodes[name].health != "serving" or not _is(nodes[name].pid, pids.get(name))
        ]
        if missing:
            return missing
        for service, role in (("counting", "leader"), ("placement", "active"), ("worker_manager", "active")):
            of_service = [node for node in region.nodes if node.service == service]
            if not any(node.role == role for node in of_service):
                return [f"{of_service[0].node} (no {service} is {role} yet)"]
        for node in region.nodes:
            if node.service == "frontend" and not await _answers(node.http):
                return [f"{node.node} (its HTTP address)"]
        held = {lease.worker for answer in (await region.managers()).values() for lease in answer.workers}
        return [f"{name} (not leased yet)" for name in self._members if self._of(name, "worker") and name not in held]

    def _of(self, name: str, service: str) -> bool:
        return self._members[name].service == service

    async def _deploy(self) -> None:
        """The examples of this start: in a thread, because the supervisor goes on watching meanwhile."""
        from labda.commands import deploy  # noqa: PLC0415 - most starts deploy nothing

        for path in self._options.deploy:
            shown = asyncio.ensure_future(asyncio.to_thread(deploy.demonstrate, self._state, path, self._console))
            stopped = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait([shown, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not shown.done():  # told to end: the thread's request breaks when the frontends go
                shown.add_done_callback(lambda ended: ended.exception())
                return
            shown.result()

    # ------------------------------------------------------------ while it runs

    async def _ticks(self) -> AsyncIterator[None]:
        while not self._stop.is_set():
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIVE_S):
                    await self._stop.wait()

    async def _status(self, region: Region) -> str:
        nodes = [node for node in region.nodes if node.node in self._members]
        serving = sum(node.health == "serving" for node in nodes)
        managers = await region.managers()
        sandboxes = sum(
            sum(worker.sandboxes.values()) for answer in managers.values() for worker in answer.workers
        )
        ill = [f"{node.node} {node.health}" for node in nodes if node.health != "serving"]
        text = f"{serving} of {len(self._members)} processes serve, {_count(sandboxes, 'sandbox')}"
        return text + (f"   {', '.join(ill)}" if ill else "")

    def _on_child(self, child: Child) -> None:
        self._changed.set()
        if not self._draining:
            self._remember(identify(self._children.pids()))
        if self.served and not self._draining:
            if child.process is None:
                self._console.line("ended", f"{child.name} ({child.ended})")
            else:
                self._console.line("restarted", f"{child.name} (start {child.starts}, pid {child.pid})")

    def _remember(self, processes: list[dict[str, Any]]) -> None:
        """For who comes after a supervisor that was killed: a full disk must not end the one that lives."""
        try:
            self._state.write("processes.json", processes)
        except OSError as error:
            self._console.line("weak", f"{self._state.root / 'processes.json'} not written: {error.strerror}")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry = True  # asked twice: whoever still drains is killed
            alive = [child for child in self._children.by_name.values() if child.process is not None]
            self._hurried = self._hurried or [child.name for child in alive]
            for child in alive:
                self._children.kill(child)
        self._stop.set()
        self._changed.set()

    # ------------------------------------------------------------ end

    async def _drain(self) -> None:
        self._draining = True
        began = time.monotonic()
        await self._control.close()
        killed: list[str] = []
        for service in DRAIN_ORDER:
            names = [name for name in self._members if self._of(name, service)]
            self._console.live(f"ending     {service}")
            late = await self._children.stop(names, grace_s=0.0 if self._hurry else DRAIN_S)
            killed += [name for name in late if name not in self._hurried]
        await self._children.stop_orphans()
        leftovers.sweep(self._state)
        self._remember([])
        await asyncio.to_thread(leftovers.move_back, self._state)
        for name in killed:
            self._console.line("killed", f"{name} did not end within {DRAIN_S:.0f} s (log: {self._state.log(name)})")
        if self._hurried:
            self._console.line("killed", f"{', '.join(self._hurried)}: the end was asked for twice")
        self._console.line("ended", f"{_count(len(self._members), 'process')}", f"in {time.monotonic() - began:.1f} s")

    def _end_leftovers(self) -> None:
        """What a supervisor that was killed left behind: its processes end by themselves, this waits for them."""
        left = end_leftovers(self._state.read("processes.json") or [], grace_s=LEFTOVER_S)
        leftovers.move_back(self._state)
        left += leftovers.sweep(self._state)  # of workers that are not part of this start, too
        if left:
            self._console.line("ended", f"left from a cluster that was killed: {', '.join(left)}")

    def _last_words(self, name: str) -> str:
        """The newest log line of a process, for the sentence that says why it doesn't start."""
        child = self._children.by_name[name]
        with contextlib.suppress(FileNotFoundError):
            lines = self._state.log(name).read_text(errors="replace").strip().splitlines()
            if lines:
                return f"{child.ended or 'still starting'}, its last words: {lines[-1][-400:]}"
        return child.ended or "still starting, it said nothing"


async def _answers(address: str) -> bool:
    """Whether an HTTP server listens at host:port and answers anything but 503."""
    if not address:
        return False
    host, port = endpoint.parse(address.removeprefix("http://").rstrip("/"))
    try:
        async with asyncio.timeout(HTTP_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.startswith(b"HTTP/1.1 ") and not status.startswith(b"HTTP/1.1 503")


def _is(pid: int, child: int | None) -> bool:
    """Whether a process that registered is our child's present life. A worker's agent is our child's child."""
    return child is not None and (pid == child or parent(pid) == child)


def _reachable(program: str) -> str:
    """How a person can call a program of this environment: by its name if that works, else by its path."""
    if shutil.which(program) is not None:
        return program
    return str(Path(sys.executable).parent / program)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun[-1] in "sx" else "s")
    return f"{number} {noun if number == 1 else plural}"


def supervise(state: State, options: Options, console: Console) -> bool:
    """Blocks until the cluster was ended; whether it had come to serve before. Raises Refusal."""
    state.prepare()
    with state.lock():
        supervisor = Supervisor(state, options, console)
        asyncio.run(supervisor.run())
        return supervisor.served


def pids(state: State) -> list[dict[str, Any]]:
    """What the supervisor last wrote about its processes."""
    found: list[dict[str, Any]] = state.read("processes.json") or []
    return found
