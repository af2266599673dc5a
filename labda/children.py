"""The supervisor's child processes: start, notice the end, start again, stop.

Owns pids. Refuses to know what a process is for. Children are exec'd (never forked: this process has grpc's threads) by
way of setpriv, so that the kernel ends them when this process is killed; this process adopts what they leave behind
(PR_SET_CHILD_SUBREAPER), so that nothing outlives ``stop``.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PR_SET_CHILD_SUBREAPER = 36
REAP_S = 1.0
ENDED_WELL = "exit status 0"
KILLED_S = 5.0              # how long a killed process may take to be gone: it is in the kernel's hands
LOG_BYTES_MAX = 16 << 20    # a log that is longer is put aside, in the place of what was put aside before

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0


@dataclass(slots=True)
class Backoff:
    """When a process that ended is started again. Seconds throughout.

    At once the first time; then after 1 s, doubled up to 30 s. A process that lived for a minute starts afresh.
    """

    next_s: float = 0.0

    def delay(self, lived_s: float) -> float:
        if lived_s >= STEADY_S:
            self.next_s = 0.0
        now = self.next_s
        self.next_s = min(BACKOFF_MAX_S, max(BACKOFF_FIRST_S, now * 2))
        return now


@dataclass(slots=True)
class Child:
    """One process that should be running. ``starts`` counts; ``ended`` is how it ended last."""

    name: str
    argv: Sequence[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0
    ended: str = ""
    started_at: float = 0.0
    pidfd: int = -1
    backoff: Backoff = field(default_factory=Backoff)
    restart: asyncio.TimerHandle | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    held: bool = False          # it is not started again until it is released

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Children:
    """All of them. ``observe(child)`` is called when one ended or was started again."""

    def __init__(self, *, environment: Mapping[str, str], observe: Callable[[Child], None]) -> None:
        self._environment = dict(environment)
        self._observe = observe
        self.by_name: dict[str, Child] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._elders = descendants(os.getpid())  # lived before: not ours to end, nor is what they start

    def adopt(self) -> None:
        """What children leave behind becomes ours, to be ended by ``stop_orphans``."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._reap()

    def start(self, name: str, argv: Sequence[str], log: Path) -> Child:
        child = Child(name, argv, log)
        self.by_name[name] = child
        self._start(child)
        return child

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.by_name.items() if child.pid is not None}

    async def stop(self, names: Iterable[str], *, grace_s: float) -> list[str]:
        """SIGTERM, then after ``grace_s`` SIGKILL to the process group. Returns the names that had to be killed."""
        children = [self.by_name[name] for name in names if name in self.by_name]
        for child in children:
            child.stopping = True
            if child.restart is not None:
                child.restart.cancel()
            self._signal(child, signal.SIGTERM)
            self._signal_group(child, signal.SIGCONT)   # one that was paused would not hear of it
        killed = await self._await_gone(children, grace_s)
        for child in killed:
            self._signal(child, signal.SIGKILL)
        await self._await_gone(killed, KILLED_S)
        return [child.name for child in killed]

    def kill(self, child: Child) -> None:
        """At once. It is started again unless it is being stopped."""
        self._signal(child, signal.SIGKILL)

    async def kill_all(self, names: Iterable[str]) -> None:
        """At once, all at the same moment. Returns when they are gone; each is started again at once.

        That somebody kills it time and again is no reason to wait longer each time, as it is where it crashes.
        """
        lives = [(child, child.process) for child in (self.by_name[name] for name in names) if child.process]
        for child, _ in lives:
            child.backoff = Backoff()
            self._signal(child, signal.SIGKILL)
        async with asyncio.timeout(KILLED_S):
            for child, life in lives:
                while child.process is life:
                    await child.gone.wait()

    async def hold(self, names: Iterable[str], *, grace_s: float = 0.0) -> None:
        """Ends them, all at the same moment, and starts none of them again until ``release``.

        With ``grace_s`` by SIGTERM first. Returns when they are gone.
        """
        children = [self.by_name[name] for name in names]
        for child in children:
            child.held = True
            if child.restart is not None:
                child.restart.cancel()
                child.restart = None
        for child in children:
            self._signal(child, signal.SIGTERM if grace_s else signal.SIGKILL)
        if grace_s:
            for child in await self._await_gone(children, grace_s):
                self._signal(child, signal.SIGKILL)
        await self._await_gone(children, KILLED_S)

    def release(self, names: Iterable[str]) -> None:
        """Starts what ``hold`` ended, at once; who isn't held is left alone."""
        for child in (self.by_name[name] for name in names):
            if child.held:
                child.held = False
                child.backoff = Backoff()
                if child.process is None and not child.stopping:
                    self._start(child)

    def pause(self, names: Iterable[str]) -> None:
        """SIGSTOP: they are there, keep their connections, and do nothing until ``go_on``."""
        for child in (self.by_name[name] for name in names):
            self._signal_group(child, signal.SIGSTOP)

    def go_on(self, names: Iterable[str]) -> None:
        for child in (self.by_name[name] for name in names):
            self._signal_group(child, signal.SIGCONT)

    async def stop_orphans(self) -> None:
        """Ends what was adopted from children that are gone already."""
        deadline = time.monotonic() + KILLED_S
        while orphans := descendants(os.getpid(), apart_from=self._elders) - set(self.pids().values()):
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap_adopted()
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        if self._reaper is not None:
            self._reaper.cancel()

    # ------------------------------------------------------------ one child

    def _start(self, child: Child) -> None:
        child.restart = None
        child.gone.clear()
        with _log_of(child) as log:
            child.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *child.argv],
                cwd="/", env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )
        child.starts += 1
        child.started_at = time.monotonic()
        child.pidfd = os.pidfd_open(child.process.pid)
        asyncio.get_running_loop().add_reader(child.pidfd, self._on_end, child)
        self._observe(child)

    def _on_end(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.pidfd)
        os.close(child.pidfd)
        assert child.process is not None, "its pidfd was watched"
        group, status = child.process.pid, child.process.wait()
        child.process = None
        child.ended = describe(status)
        child.gone.set()
        # A group leader that was killed leaves its helpers: a new start must not meet them.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        if not child.stopping and not child.held:
            delay_s = child.backoff.delay(time.monotonic() - child.started_at)
            child.restart = loop.call_later(delay_s, self._start, child)
        self._observe(child)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            self._signal_group(child, number)
        elif child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)

    def _signal_group(self, child: Child, number: signal.Signals) -> None:
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)

    async def _await_gone(self, children: list[Child], timeout_s: float) -> list[Child]:
        """Those that are still there after ``timeout_s``."""
        waits = [asyncio.ensure_future(child.gone.wait()) for child in children if child.process]
        if waits:
            _, pending = await asyncio.wait(waits, timeout=timeout_s)
            for wait in pending:
                wait.cancel()
        return [child for child in children if child.process is not None]

    # ------------------------------------------------------------ what was adopted

    def _reap(self) -> None:
        self._reap_adopted()
        for child in self.by_name.values():
            shorten(child.log)
        self._reaper = asyncio.get_running_loop().call_later(REAP_S, self._reap)

    def _reap_adopted(self) -> None:
        """Collects dead orphans. Our own children are left to their pidfds."""
        own = set(self.pids().values())
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in own:
                return
            os.waitpid(found.si_pid, 0)


@contextlib.contextmanager
def _log_of(child: Child) -> Iterator[IO[bytes] | int]:
    """The file for what a child says; nowhere, rather than no child, when none can be opened (a full disk)."""
    shorten(child.log)
    try:
        file = child.log.open("ab")     # appending: what is written after it was shortened begins at its new end
    except OSError:
        yield subprocess.DEVNULL
        return
    with file:
        yield file


def shorten(log: Path) -> None:
    """A log that is too long goes to LOG.1. It is copied, not moved: its process keeps writing to the same file.

    A line that is written between the copy and the cut is lost. On a full disk the copy ends where the room does.
    """
    try:
        if log.stat().st_size <= LOG_BYTES_MAX:
            return
    except OSError:
        return  # not there yet
    with contextlib.suppress(OSError):
        shutil.copyfile(log, log.with_suffix(".log.1"))
    with contextlib.suppress(OSError):
        os.truncate(log, 0)


def describe(status: int) -> str:
    """``Popen.wait``'s status for people."""
    if status == 0:
        return ENDED_WELL
    if status > 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


# ---------------------------------------------------------------- processes by pid


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names one process for good. None: gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def parent(pid: int) -> int | None:
    """None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def descendants(pid: int, *, apart_from: AbstractSet[int] = frozenset()) -> set[int]:
    """Living processes below ``pid``, without those of ``apart_from`` and what is below them."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text()
                state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                if state not in "ZX":
                    below.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    queue = [pid]
    while queue:
        children = [child for child in below.get(queue.pop(), ()) if child not in apart_from]
        found.update(children)
        queue += children
    return found


def identify(pids: Mapping[str, int]) -> list[dict[str, Any]]:
    """For ``processes.json``."""
    return [
        {"node": name, "pid": pid, "ticks": ticks}
        for name, pid in pids.items() if (ticks := start_ticks(pid)) is not None
    ]


def end_leftovers(recorded: Iterable[Mapping[str, Any]], *, grace_s: float) -> list[str]:
    """Ends processes of a cluster whose supervisor is gone; returns their names. They are not our children."""
    alive = [entry for entry in recorded if start_ticks(entry["pid"]) == entry["ticks"]]
    families = {entry["pid"]: descendants(entry["pid"]) for entry in alive}
    for entry in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry["pid"], signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(start_ticks(e["pid"]) == e["ticks"] for e in alive):
        time.sleep(0.02)
    for entry in alive:
        if start_ticks(entry["pid"]) == entry["ticks"]:
            for pid in {entry["pid"], *families[entry["pid"]]}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return [str(entry["node"]) for entry in alive]
