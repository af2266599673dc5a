"""The older incarnation of a worker on this host: killed, and seen gone, before a new one begins.

Counting takes the join of a new incarnation as proof that nothing of the older one runs (architecture, rule 7). The
kernel kills an agent when its spawner dies, and so it nearly always finds nobody; this is the proof, and the remedy
for a spawner or an agent that was stopped. What sandboxes are left is seen to by their groups (cgroups.py), after this.

Owns two files below the state directory: `lock`, held (flock) as long as a spawner lives, or a child that is to become
a sandbox's process 1 and isn't in the sandbox's groups yet, and `incarnation`, which names spawner and agent. Standard
library only.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time

_GONE_S = 5.0
_POLL_S = 0.005


class PredecessorLives(OSError):
    """It could not be killed within some seconds: a process hangs in the kernel, or somebody starts it again."""


def replace(directory: str, boot: str) -> "Tenure":
    """Ends the older incarnation of this state directory, and holds it from here on. Raises PredecessorLives.

    `boot` is the kernel's boot id: pids of another boot mean nothing.
    """
    lock = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _GONE_S
    killed: set[int] = set()
    while True:
        alive = _recorded(directory, boot)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= alive
        if not alive and _taken(lock):
            break
        if time.monotonic() > deadline:
            os.close(lock)
            raise PredecessorLives(16, f"an older incarnation in {directory} doesn't end: pids {sorted(alive)}")
        time.sleep(_POLL_S)
    if killed:
        sys.stderr.write(f"spawner: killed the older incarnation here: pids {sorted(killed)}\n")
    tenure = Tenure(directory, boot, lock)
    tenure.name(os.getpid())
    return tenure


class Tenure:
    """This incarnation's hold on the state directory. It ends with the process."""

    def __init__(self, directory: str, boot: str, lock: int) -> None:
        self._path = f"{directory}/incarnation"
        self._boot = boot
        self.lock = lock
        self._processes: list[tuple[int, int]] = []

    def name(self, pid: int) -> None:
        """One more process that a successor has to kill."""
        started = _started(pid)
        if started is None:
            return      # it has ended already
        self._processes.append((pid, started))
        unfinished = f"{self._path}.new"
        with open(unfinished, "w", encoding="ascii") as file:
            json.dump({"boot": self._boot, "processes": self._processes}, file)
        os.rename(unfinished, self._path)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _recorded(directory: str, boot: str) -> set[int]:
    """Pids of the older incarnation that live."""
    try:
        with open(f"{directory}/incarnation", encoding="ascii") as file:
            record = json.load(file)
    except (FileNotFoundError, ValueError):     # never written, or half, by a crash of the host: another boot's
        return set()
    if record["boot"] != boot:
        return set()
    return {pid for pid, started in record["processes"] if pid != os.getpid() and _started(pid) == started}


def _started(pid: int) -> int | None:
    """When a living process was started, in clock ticks since boot: with its pid that names it. None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
