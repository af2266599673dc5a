"""The kernel calls that Python 3.11 doesn't offer: mounts, namespaces, prctl, loop devices, links, an alarm.

Owns argument types and errno handling, nothing else: no policy about what is mounted or dropped. Standard library
only; works in a freshly forked child (everything is resolved at import).
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE = 1024, 4096, 16384, 1 << 18
MNT_DETACH = 2

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP = 1, 4, 24, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2

LOOP_GET_STATUS64, LOOP_CTL_GET_FREE = 0x4C05, 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
_TFD_TIMER_ABSTIME = 1

_libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.syscall.restype = ctypes.c_long
_python = ctypes.PyDLL(None, use_errno=True)    # keeps the interpreter's lock over the call
_python.syscall.restype = ctypes.c_long
_CLONE3, _CLONE_PIDFD, _CLONE_INTO_CGROUP = 435, 0x1000, 0x200000000
_CLOSE_RANGE, _DESCRIPTOR_MAX = 436, 0xFFFFFFFF
_pivot_root_number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2); raises OSError."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None,
        ),
        f"mount {source} on {target}",
    )


def bind(source: str, target: str, flags: int) -> None:
    """Binds `source`; the new mount gets `flags` (MS_RDONLY and the like) in the second call that it takes."""
    mount(source, target, "", MS_BIND)
    if flags:
        mount("", target, "", MS_REMOUNT | MS_BIND | flags)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2); raises OSError."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def enter_root(root: str) -> None:
    """Makes the mount point `root` this mount namespace's root and lets go of the old one (pivot_root(2), the
    documented way without a second directory)."""
    os.chdir(root)
    _check(_libc.syscall(_pivot_root_number, b".", b"."), f"pivot_root {root}")
    umount(".", MNT_DETACH)
    os.chdir("/")


def unshare(flags: int) -> None:
    """unshare(2); raises OSError."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def fork_into(flags: int, group: int = -1) -> tuple[int, int]:
    """Forks with clone3(2): into new namespaces (`flags`), and into the v2 group whose directory is open as `group`.

    Returns the child's pid and a pidfd of it, made in one step so that no child is without; (0, -1) in the child.
    Joining a v2 group afterwards would wait for a kernel-wide lock (5 to 18 ms). Only for a process with a single
    thread: what os.fork does for Python itself is done, the C library's handlers are not run.
    """
    arguments, pidfd = (ctypes.c_uint64 * 11)(), ctypes.c_int(-1)
    arguments[0], arguments[1] = flags | _CLONE_PIDFD, ctypes.addressof(pidfd)
    arguments[4] = 17       # exit_signal: SIGCHLD
    if group >= 0:
        arguments[0], arguments[10] = arguments[0] | _CLONE_INTO_CGROUP, group
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _python.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return int(pid), pidfd.value


def close_all_but(kept: Iterable[int]) -> None:
    """Closes every descriptor of this process that isn't in `kept`."""
    first = 0
    for fd in (*sorted(set(kept)), _DESCRIPTOR_MAX + 1):
        if first < fd:
            _check(
                _libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(fd - 1), ctypes.c_uint(0)),
                "close_range",
            )
        first = fd + 1


def end_with_parent(witness: int) -> None:
    """Has the kernel kill this process when its parent ends, and ends it now if the parent has ended already.

    `witness` is an end of a pipe or socket whose other end the parent holds: getppid(2) says 0 in a new pid namespace,
    whether the parent lives or not. A process closes its descriptors before its children get their signal.
    """
    prctl(PR_SET_PDEATHSIG, 9)
    poll = select.poll()
    poll.register(witness, 0)       # an error or a hang-up is told in any case
    if poll.poll(0):
        os._exit(1)


def boottime() -> float:
    """Seconds since boot, going on while the host sleeps: the clock of leases and authorities."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Alarm:
    """A descriptor that is readable from an instant of boottime() on, also after the host slept over it (timerfd)."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        _check(min(self.fd, 0), "timerfd_create")

    def set(self, at: float) -> None:
        """Forgets what it was set to before."""
        whole = int(at)
        setting = struct.pack("=4q", 0, 0, whole, max(1, int((at - whole) * 1e9)))    # interval, value
        _check(_libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, setting, None), "timerfd_settime")

    def clear(self) -> None:
        """It rang, or was set anew before it did."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument; raises OSError."""
    _check(_libc.prctl(option, argument, 0, 0, 0), f"prctl {option}")


def set_filter(program: bytes) -> None:
    """Installs a BPF program as this process's seccomp filter; needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(fprog, len(fprog))
    _check(
        _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(holder), 0, 0), "seccomp filter",
    )


def last_capability() -> int:
    """Number of the kernel's highest capability."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def drop_bounding_set(last: int) -> None:
    """Takes every capability from the bounding set, so that no exec can bring one back."""
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability)


def bring_up_loopback() -> None:
    """Sets `lo` up in the current network namespace (SIOCSIFFLAGS)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))  # IFF_UP | IFF_RUNNING


def attach_loop(image: int, label: str) -> tuple[str, int]:
    """Attaches an open image file to a free loop device that lets go of it after its last unmount and close.

    `label` (63 bytes) is what loop_holds() knows it by.

    Returns the device's path and an open descriptor of it, which keeps it alive until it is mounted.
    """
    with open("/dev/loop-control", "rb+", buffering=0) as control:
        for _ in range(64):  # another process may take the free one first
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = loop_node(number)
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52 of it), 8 reserved words.
            config = bytearray(304)
            struct.pack_into("I", config, 0, image)
            struct.pack_into("I", config, 8 + 52, LO_FLAGS_AUTOCLEAR)
            struct.pack_into("63s", config, 8 + 56, label.encode())
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(fd)
                if error.errno != 16:  # EBUSY
                    raise
                continue
            return device, fd
    raise OSError(16, "no free loop device in 64 attempts")


def loop_node(number: int) -> str:
    """Path of the device's node. A container's /dev shows only what was there when it was made, if that: made anew."""
    device = f"/dev/loop{number}"
    if not os.path.exists(device):
        with open(f"/sys/block/loop{number}/dev", encoding="ascii") as file:
            major, minor = file.read().split(":")
        with contextlib.suppress(FileExistsError):  # another sandbox's child was faster
            os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    return device


def loop_holds(device: str, label: str) -> bool:
    """Says whether what was attached to this loop device under `label` is attached still."""
    status = bytearray(232)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
    except OSError as error:
        if error.errno == 6:  # ENXIO: nothing is attached
            return False
        raise
    finally:
        os.close(fd)
    return bytes(status[56:119]).rstrip(b"\0") == label.encode()
