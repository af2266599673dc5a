"""What the spawner has ready before the first sandbox: directories, programs, filter, groups, runtimes.

Owns the composition of every path below the state directory and the making of process 1's program where it is missing.
"""

import fcntl
import json
import os
import shutil
from dataclasses import dataclass

from worker.sandbox import cgroup_mounts, cgroups, codecache, linux, predecessor, procfiles, seccomp, tmpimage
from worker.sandbox.settings import SpawnerConfig

_HERE = os.path.dirname(os.path.abspath(__file__))
INIT = f"{_HERE}/bin/init"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class HostUnfit(OSError):
    """This host lacks something that sandboxes need; the text says what and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One directory that deploy/make_runtimes.py built."""

    name: str
    root: str
    command: tuple[str, ...]    # the managed runtime's program and its arguments; empty: the function's bootstrap


def read_runtimes(directory: str) -> dict[str, Runtime]:
    """The usable runtimes by name; a directory that is none is passed over."""
    found: dict[str, Runtime] = {}
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    for name in names:
        try:
            with open(f"{directory}/{name}/runtime.json", encoding="utf-8") as file:
                content = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[name] = Runtime(name=name, root=f"{directory}/{name}/root", command=tuple(content["command"]))
    return found


def make_init() -> None:
    """Compiles process 1's program if it is missing or older than its source. Raises HostUnfit."""
    source = f"{_HERE}/init.c"
    if os.path.exists(INIT) and os.stat(INIT).st_mtime >= os.stat(source).st_mtime:
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise HostUnfit(2, "no C compiler for the sandbox's process 1; get one with: apt-get install gcc libc6-dev")
    os.makedirs(os.path.dirname(INIT), exist_ok=True)
    unfinished = f"{INIT}.{os.getpid()}"
    arguments = [compiler, "-O2", "-Wall", "-static", "-o", unfinished, source]
    pid = os.posix_spawn(compiler, arguments, dict(os.environ))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise HostUnfit(5, f"compiling {source} failed; it needs a C library for -static (libc6-dev)")
    os.chmod(unfinished, 0o755)
    os.rename(unfinished, INIT)


class Host:
    """The spawner's ground. open() before anything else."""

    def __init__(self, config: SpawnerConfig) -> None:
        self.config = config
        self.runtimes = read_runtimes(config.runtimes_dir)
        self.cache = codecache.CodeCache(f"{config.state_dir}/code", config.code_cache_bytes_max)
        self.mount_point = f"{config.state_dir}/root"
        self.tmp_directory = f"{config.state_dir}/tmp"
        self.cgroups: cgroups.Cgroups   # made by open()
        self.images = tmpimage.usable()
        self.filter = seccomp.compile_profile(seccomp.load(), os.uname().machine)
        self.filter_fd = self.init_fd = -1
        self.last_capability = linux.last_capability()
        self.tenure: predecessor.Tenure | None = None

    @property
    def lock(self) -> int:
        """Descriptor of the lock that says to a successor that this incarnation, or a child of it, lives."""
        assert self.tenure is not None, "open() took it"
        return self.tenure.lock

    @property
    def unpack_uid(self) -> int:
        """Host id of the child that unpacks: the pair after the last sandbox's."""
        return self.config.uid_base + 2 * self.config.sandboxes_max

    def open(self) -> None:
        """Kills and removes what an older incarnation left, then prepares. Raises OSErrors that say what is wrong."""
        if os.geteuid() != 0:
            raise HostUnfit(1, "sandboxes need root: namespaces, mounts and cgroups are made by the spawner")
        if not self.runtimes:
            raise HostUnfit(2, f"no runtime in {self.config.runtimes_dir}; build them with: make setup")
        make_init()
        for directory in (self.config.state_dir, self.mount_point, self.tmp_directory, self._proc_directory):
            os.makedirs(directory, 0o700, exist_ok=True)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        self.tenure = predecessor.replace(self.config.state_dir, boot)
        layout = cgroup_mounts.writable(f"{self.config.state_dir}/cgroup")
        self.cgroups = cgroups.Cgroups(layout, self.config.name)
        self.cgroups.open()
        self.cache.open(boot)
        self.init_fd = os.open(INIT, os.O_RDONLY | os.O_CLOEXEC)
        self.filter_fd = os.memfd_create("filter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(self.filter_fd, self.filter)
        # Every sandbox's process 1 gets a descriptor of this one file, and reads its tenant's filter from it.
        fcntl.fcntl(self.filter_fd, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        self.cgroups.close()

    def proc_files(self, memory_mb: int) -> str:
        directory = f"{self._proc_directory}/{memory_mb}"
        procfiles.write_shown(directory, memory_mb)
        return directory

    def tmp_template(self, tmp_mb: int) -> str:
        return tmpimage.make_template(self.tmp_directory, tmp_mb) if self.images else ""

    @property
    def _proc_directory(self) -> str:
        return f"{self.config.state_dir}/proc"
