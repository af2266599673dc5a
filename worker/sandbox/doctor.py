"""What this host offers to sandboxes, checked before anything is started; each lack comes with its remedy.

Owns the checks of the native driver. Tries things rather than reading versions: a kernel may have a feature and a
container or a policy may withhold it. Changes nothing on the host.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from worker.sandbox import cgroup_mounts, cgroups, host, linux, seccomp, tmpimage

# The kernel says "No space left on device" where the number of namespaces is limited.
_LIMIT = "a limit of user.max_*_namespaces is reached"

# What the spawner does with privileges: name -> (number of the capability, what for). A worker's container gets these.
CAPABILITIES = {
    "CHOWN": (0, "files of the agent, of unpacked code and of /tmp get their owners"),
    "DAC_OVERRIDE": (1, "the spawner looks after directories that belong to the agent"),
    "FOWNER": (3, "modes of what belongs to a sandbox's user"),
    "KILL": (5, "ending agents and sandboxes, which run under other ids"),
    "SETGID": (6, "the agent's and the sandboxes' ids"),
    "SETUID": (7, "the agent's and the sandboxes' ids"),
    "SETPCAP": (8, "children lose every capability for good"),
    "NET_ADMIN": (12, "the loopback of a sandbox's network is brought up"),
    "SYS_ADMIN": (21, "namespaces, mounts, control groups, loop devices"),
    "MKNOD": (27, "nodes of loop devices that a container doesn't show"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    fatal: bool         # without it no sandbox runs; else something is weaker or absent, as `missing` says
    missing: str        # what is not there, "" if ok
    remedy: str         # the command or step that gets it, "" if ok


def checks(runtimes_dir: str) -> list[Check]:
    """Everything, most important first. Takes some 30 ms."""
    return [
        _check("root", os.geteuid() == 0, "this user is not root", "run it as root (sudo)"),
        _check("kernel", _kernel() >= (5, 14), f"Linux {os.uname().release} is older than 5.14",
               "upgrade the kernel to 5.14 or later (Debian 12 has 6.1)"),
        _check("machine", os.uname().machine in {"x86_64", "aarch64"}, f"no system call table for {os.uname().machine}",
               "use an x86_64 or aarch64 machine"),
        _capabilities(),
        _tried("namespaces", _try_namespaces,
               "allow them: sysctl -a -r 'user.max_.*_namespaces' shows the limits; a container needs the seccomp "
               "profile deploy/compose/seccomp-worker.json, and no AppArmor profile"),
        _tried("cgroups", _try_cgroups, f"mount -t cgroup2 none /sys/fs/cgroup; a container: {cgroup_mounts.REMEDY}"),
        _tried("seccomp", _try_seccomp, "use a kernel with CONFIG_SECCOMP_FILTER"),
        _compiler(),
        _check("interpreters", bool(_interpreters()), "no python3.10 to python3.15 on this host",
               "apt-get install python3"),
        _runtimes(runtimes_dir),
        _check("loop devices", tmpimage.usable() and _loop_control_opens(),
               "no loop devices or no mkfs.ext4: /tmp becomes a tmpfs and counts as the function's memory",
               "modprobe loop; apt-get install e2fsprogs; a container needs the device /dev/loop-control and the rule "
               "'b 7:* rmw' for its devices", fatal=False),
        _check("swap accounting", _swap_accounted(), "the kernel doesn't count swap for groups: a function may swap",
               "boot with swapaccount=1, or swapoff -a", fatal=False),
    ]


def _check(name: str, ok: bool, missing: str, remedy: str, *, fatal: bool = True) -> Check:
    return Check(name=name, ok=ok, fatal=fatal, missing="" if ok else missing, remedy="" if ok else remedy)


def _tried(name: str, attempt: Callable[[], None], remedy: str) -> Check:
    """Runs `attempt` in a child, which it may leave in any state."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except OSError as error:
            os.write(writer, (_LIMIT if error.errno == errno.ENOSPC else str(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    return _check(name, not said, f"{name} can't be had: {said}", remedy)


def _try_namespaces() -> None:
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWPID
                  | linux.CLONE_NEWCGROUP)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/mnt", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV)
    pid = os.fork()     # the first process of the pid namespace: only it may mount its /proc
    if pid == 0:
        try:
            linux.mount("proc", "/mnt", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "hidepid=2")
            linux.enter_root("/mnt")
            linux.unshare(linux.CLONE_NEWUSER)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, f"/proc with hidepid, pivot_root or a user namespace: {os.strerror(number)}")


def _try_seccomp() -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.set_filter(seccomp.compile_profile(seccomp.load(), os.uname().machine))


def _try_cgroups() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/mnt", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV)
    missing = cgroup_mounts.writable("/mnt").missing()
    if missing:
        raise OSError(errno.ENOENT, f"no controller for {', '.join(missing)}")


def _capabilities() -> Check:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    missing = [name for name, (bit, _) in CAPABILITIES.items() if not effective >> bit & 1]
    said = "; ".join(f"{name}: {CAPABILITIES[name][1]}" for name in missing)
    return _check("capabilities", not missing, f"not there: {said}", f"give them (cap_add: [{', '.join(missing)}])")


def _compiler() -> Check:
    found = os.path.exists(host.INIT) or bool(shutil.which("cc") or shutil.which("gcc"))
    return _check("C compiler", found, "no C compiler to build the sandboxes' process 1",
                  "apt-get install gcc libc6-dev")


def _interpreters() -> list[str]:
    return [name for minor in range(10, 16) if shutil.which(name := f"python3.{minor}")]


def _runtimes(directory: str) -> Check:
    found = [name for name, runtime in host.read_runtimes(directory).items() if os.path.isdir(runtime.root)]
    return _check("runtimes", bool(found), f"no runtime in {directory}", "make setup")


def _loop_control_opens() -> bool:
    try:
        os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _swap_accounted() -> bool:
    with open("/proc/swaps", encoding="ascii") as file:
        if len(file.read().splitlines()) <= 1:
            return True     # no swap, nothing to count
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        layout = cgroups.detect(file.read())
    if "memory" in layout.v2_controllers:
        return True
    return os.path.exists(f"{layout.home('memory')}/memory.memsw.limit_in_bytes")


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()) or 0)
