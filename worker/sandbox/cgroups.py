"""Control groups of sandboxes: memory, cpu, processes, devices, freezer, on v2, v1 and hybrid hosts.

Owns where a worker's groups lie, what is written into them and how they are removed. Every worker has a parent group of
its own (labda-NAME), below which each sandbox has one. Process 1 of a sandbox lives in the sandbox's group, what it
starts lives in the group `run` below the freezer's, so that freezing and killing the tenant leaves process 1 alone.

Refuses to know about processes: attaching is done by the child itself, through the files named by `join_files`
(on v1 the child's "0" into `tasks` takes a fraction of a millisecond; the parent's write to `cgroup.procs` takes the
kernel-wide lock's grace period, 5 to 15 ms).
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Literal

MB = 1 << 20
PERIOD_US = 100_000
MEMORY_MB_PER_VCPU = 1769  # the documented size at which a function has one vCPU
PROCESSES_MAX = 1024
_DEVICES = ("c 1:3 rw", "c 1:5 rw", "c 1:7 rw", "c 1:8 rw", "c 1:9 rw")  # null zero full random urandom

Freezer = Literal["v2", "v1", "none"]


class CgroupsMissing(OSError):
    """This host's control groups lack what a sandbox needs; the text says what."""


def cpu_quota_us(memory_mb: int, *, boosted: bool) -> int:
    """CPU time per 100 ms period for a function of this size; boosted: at least one vCPU."""
    quota = max(1000, memory_mb * PERIOD_US // MEMORY_MB_PER_VCPU)
    return max(quota, PERIOD_US) if boosted else quota


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each controller is mounted: directories, "" where there is none."""

    v2: str = ""                            # the v2 mount, with or without controllers
    v2_controllers: frozenset[str] = frozenset()
    v1: dict[str, str] = field(default_factory=dict)    # controller -> mount directory

    def home(self, controller: str) -> str:
        """The hierarchy that offers this controller; "" if none does."""
        return self.v2 if controller in self.v2_controllers else self.v1.get(controller, "")

    @property
    def freezer(self) -> Freezer:
        return "v2" if self.v2 else "v1" if "freezer" in self.v1 else "none"

    def missing(self) -> list[str]:
        """Controllers that a sandbox needs and this host doesn't offer."""
        wanted = [name for name in ("memory", "cpu", "pids") if not self.home(name)]
        return wanted + (["freezer"] if self.freezer == "none" else [])


def detect(mountinfo: str) -> Layout:
    """Reads the layout from the text of /proc/self/mountinfo."""
    v2, controllers, v1 = "", frozenset[str](), dict[str, str]()
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        where = before.split()[4]
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind == "cgroup2":
            v2 = where
            with contextlib.suppress(OSError):
                controllers = frozenset(_read(f"{where}/cgroup.controllers").split())
        elif kind == "cgroup":
            for option in options.split(","):
                if option in {"memory", "cpu", "pids", "devices", "freezer"}:
                    v1[option] = where
    return Layout(v2=v2, v2_controllers=controllers, v1=v1)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _counter(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


class Cgroups:
    """One worker's groups."""

    def __init__(self, layout: Layout, name: str) -> None:
        if layout.missing():
            raise CgroupsMissing(0, f"no cgroup controller for {', '.join(layout.missing())} on this host")
        self.layout = layout
        self.parent = f"labda-{name}"
        roots = {layout.home(name) for name in ("memory", "cpu", "pids", "devices")}
        roots.add(layout.v2 if layout.freezer == "v2" else layout.v1["freezer"])
        self._roots = sorted(roots - {""})
        self._freezer_root = layout.v2 if layout.freezer == "v2" else layout.v1["freezer"]

    def open(self) -> None:
        """Makes the parent groups, after killing and removing what an earlier incarnation left in them."""
        for root in self._roots:
            if os.path.isdir(f"{root}/{self.parent}"):
                self._clear(f"{root}/{self.parent}")
            else:
                os.mkdir(f"{root}/{self.parent}", 0o755)
            if root == self.layout.v2:
                self._delegate(root)

    def close(self) -> None:
        """Removes the parent groups, killing what is left in them."""
        for root in self._roots:
            path = f"{root}/{self.parent}"
            if os.path.isdir(path):
                self._clear(path)
                _remove(path)

    def create(self, sandbox: str, memory_mb: int) -> "SandboxGroup":
        """Makes a sandbox's groups with its limits, CPU boosted. On an OSError nothing is left."""
        group = SandboxGroup(self.layout, self.parent, sandbox, memory_mb, self._roots, self._freezer_root)
        try:
            group.make()
        except OSError:
            group.remove()
            raise
        return group

    def _delegate(self, root: str) -> None:
        wanted = " ".join(f"+{name}" for name in ("memory", "cpu", "pids") if name in self.layout.v2_controllers)
        if not wanted:
            return
        try:
            _write(f"{root}/cgroup.subtree_control", wanted)
        except OSError:
            # Inside a container the mount's top is no root group: it may not have both processes and controllers.
            leaf = f"{root}/labda-main"
            with contextlib.suppress(FileExistsError):
                os.mkdir(leaf, 0o755)
            for pid in _read(f"{root}/cgroup.procs").split():
                with contextlib.suppress(OSError):
                    _write(f"{leaf}/cgroup.procs", pid)
            _write(f"{root}/cgroup.subtree_control", wanted)
        _write(f"{root}/{self.parent}/cgroup.subtree_control", wanted)

    def _clear(self, path: str) -> None:
        deadline = time.monotonic() + 5
        while True:
            _kill_tree(path)
            left = [name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]
            if not left:
                return
            for name in left:
                with contextlib.suppress(OSError):
                    _remove(f"{path}/{name}")
            if time.monotonic() > deadline:
                raise CgroupsMissing(0, f"{path} still holds {', '.join(sorted(left))} after 5 s of killing")
            time.sleep(0.005)


def _kill_tree(path: str) -> None:
    """Thaws and kills every process below (v2 in one write; v1 one by one, so call it until it is empty)."""
    for directory, _, files in os.walk(path):
        with contextlib.suppress(OSError):
            if "cgroup.kill" in files:
                _write(f"{directory}/cgroup.kill", "1")
            else:
                for pid in _read(f"{directory}/cgroup.procs").split():
                    os.kill(int(pid), signal.SIGKILL)
            if "freezer.state" in files:
                _write(f"{directory}/freezer.state", "THAWED")


def _remove(path: str) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


class SandboxGroup:
    """One sandbox's groups in every hierarchy."""

    def __init__(
        self, layout: Layout, parent: str, sandbox: str, memory_mb: int, roots: list[str], freezer_root: str,
    ) -> None:
        self._layout = layout
        self._memory_mb = memory_mb
        self._paths = {root: f"{root}/{parent}/{sandbox}" for root in roots}
        self._run = f"{self._paths[freezer_root]}/run"
        self._memory = self._paths[layout.home("memory")]
        self._memory_v2 = "memory" in layout.v2_controllers
        self._oom_seen = 0

    def make(self) -> None:
        for path in self._paths.values():
            os.mkdir(path, 0o755)
        os.mkdir(self._run, 0o755)
        size = str(self._memory_mb * MB)
        if self._memory_v2:
            _write(f"{self._memory}/memory.max", size)
            with contextlib.suppress(FileNotFoundError):  # absent where the kernel has no swap accounting
                _write(f"{self._memory}/memory.swap.max", "0")
        else:
            _write(f"{self._memory}/memory.limit_in_bytes", size)
            with contextlib.suppress(FileNotFoundError):
                _write(f"{self._memory}/memory.memsw.limit_in_bytes", size)
        _write(f"{self._paths[self._layout.home('pids')]}/pids.max", str(PROCESSES_MAX))
        devices = self._layout.home("devices")
        if devices:
            _write(f"{self._paths[devices]}/devices.deny", "a")
            for line in _DEVICES:
                _write(f"{self._paths[devices]}/devices.allow", line)
        self.limit_cpu(boosted=True)

    @property
    def join_files(self) -> list[str]:
        """Into each of these the child that becomes process 1 writes "0"; it is born into `born_in` already."""
        return [f"{path}/tasks" for root, path in self._paths.items() if root != self._layout.v2]

    @property
    def born_in(self) -> str:
        """Directory of the v2 group that process 1 is made in; "" if there is no v2."""
        return self._paths.get(self._layout.v2, "")

    @property
    def run_directory(self) -> str:
        """Directory of the v2 group that started processes are made in; "" if the freezer is v1's."""
        return self._run if self._layout.freezer == "v2" else ""

    def delegate(self, host_uid: int) -> None:
        """Lets process 1, which has this id on the host, make processes in `run`. The tenant has another id."""
        if self._layout.freezer == "v2":
            os.chown(f"{self.born_in}/cgroup.procs", host_uid, host_uid)
            os.chown(f"{self._run}/cgroup.procs", host_uid, host_uid)

    @property
    def run_file(self) -> str:
        """Into this each started process writes "0"."""
        return f"{self._run}/{'cgroup.procs' if self._layout.freezer == 'v2' else 'tasks'}"

    @property
    def freeze_file(self) -> str:
        return f"{self._run}/{'cgroup.freeze' if self._layout.freezer == 'v2' else 'freezer.state'}"

    @property
    def frozen_file(self) -> str:
        """Where the reached state is read: `cgroup.events` ("frozen 1") or `freezer.state` ("FROZEN")."""
        return f"{self._run}/{'cgroup.events' if self._layout.freezer == 'v2' else 'freezer.state'}"

    @property
    def peak_file(self) -> str:
        """Highest memory use in bytes."""
        return f"{self._memory}/{'memory.peak' if self._memory_v2 else 'memory.max_usage_in_bytes'}"

    def limit_cpu(self, *, boosted: bool) -> None:
        quota = cpu_quota_us(self._memory_mb, boosted=boosted)
        path = self._paths[self._layout.home("cpu")]
        if "cpu" in self._layout.v2_controllers:
            _write(f"{path}/cpu.max", f"{quota} {PERIOD_US}")
        else:
            _write(f"{path}/cpu.cfs_period_us", str(PERIOD_US))
            _write(f"{path}/cpu.cfs_quota_us", str(quota))

    def thaw(self) -> None:
        _write(self.freeze_file, "0" if self._layout.freezer == "v2" else "THAWED")

    def begin_oom_watch(self) -> None:
        self._oom_seen = self._oom_kills()

    def oom_killed(self) -> bool:
        """Whether the kernel killed for want of memory in here since begin_oom_watch()."""
        return self._oom_kills() > self._oom_seen

    def _oom_kills(self) -> int:
        name = "memory.events" if self._memory_v2 else "memory.oom_control"
        return _counter(_read(f"{self._memory}/{name}"), "oom_kill")

    def remove(self) -> bool:
        """Removes every group; False while the kernel still counts a dying process in one."""
        done = True
        for path in (self._run, *self._paths.values()):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                done = False
        return done
