"""From a forked child of the spawner to process 1 of a sandbox: joins its groups, makes its namespaces, composes its
root, and executes init.

Owns the order of these steps. The user namespace comes last, on purpose: mounts, network and the rest then belong to
the host's user namespace, and no capability inside the sandbox, not even process 1's, counts for them.

Runs in a process that was forked from the single-threaded spawner into a new pid namespace (children.py), and never
returns.
"""

import fcntl
import os
import socket
from dataclasses import dataclass
from typing import NoReturn

from worker.sandbox import linux, procfiles, tmpimage, wire

RUNTIME_API_PORT = 9001
TENANT = 993        # uid and gid of sbx_user1051 inside
DEVICES = ("null", "zero", "full", "random", "urandom")
_READ_ONLY = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """Everything that the child needs; all paths are composed by the spawner."""

    mount_point: str            # an empty directory: where the new root is put together
    root: str                   # the runtime's prepared root
    code: str                   # unpacked code
    proc_files: str             # directory of procfiles.SHOWN for this size
    tmp_template: str           # image template; "" for a tmpfs
    tmp_directory: str          # where image copies live, nameless
    tmp_mb: int
    host_uid: int               # host id of the sandbox's root; the tenant's is the next one
    join_files: tuple[str, ...]
    run_file: str
    run_directory: str          # v2 group of what is started; "" if there is none
    control: int                # SEQPACKET socket to the spawner
    filter: int                 # compiled seccomp program
    init: int                   # the program of process 1


def run(birth: Birth) -> NoReturn:
    """Becomes the sandbox's process 1, or says why not and exits."""
    with socket.socket(fileno=birth.control) as control:
        try:
            _become(birth, control)
        except OSError as error:
            wire.send(control, {"failed": str(error)})
        finally:
            os._exit(1)


def _become(birth: Birth, control: socket.socket) -> NoReturn:
    join_files = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in birth.join_files]
    run_file = os.open(birth.run_file, os.O_WRONLY | os.O_CLOEXEC)
    run_directory = -1
    if birth.run_directory:
        run_directory = os.open(birth.run_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    socket.sethostname("localhost")
    linux.bring_up_loopback()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", RUNTIME_API_PORT))
    listener.listen(128)
    device = compose(birth)
    # Only now: the devices group refuses loop devices, and what the steps before need is not the function's memory.
    for fd in join_files:
        os.write(fd, b"0")
    linux.unshare(linux.CLONE_NEWCGROUP)
    linux.unshare(linux.CLONE_NEWUSER)
    wire.send(control, {"born": device}, [listener.fileno()])
    listener.close()
    if control.recv(16) != b"mapped":
        raise OSError(104, "the spawner went away")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _execute(birth, run_file, run_directory)


def compose(birth: Birth) -> str:
    """Puts the root together and enters it; returns the loop device of /tmp ("" for a tmpfs)."""
    root = birth.mount_point
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.bind(birth.root, root, _READ_ONLY)
    linux.bind(birth.code, f"{root}/var/task", _READ_ONLY)
    device = ""
    if birth.tmp_template:
        device = tmpimage.mount_image(birth.tmp_template, birth.tmp_directory, f"{root}/tmp", birth.host_uid)
    else:
        tmpimage.mount_memory(birth.tmp_mb, f"{root}/tmp", birth.host_uid)
    for name in DEVICES:
        linux.bind(f"/dev/{name}", f"{root}/dev/{name}", linux.MS_NOSUID | linux.MS_NOEXEC)
    proc = f"{root}/proc"
    linux.mount("proc", proc, "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "hidepid=2")
    for name in procfiles.SHOWN:
        linux.bind(f"{birth.proc_files}/{name}", f"{proc}/{name}", _READ_ONLY | linux.MS_NOEXEC)
    for name in procfiles.MASKED_FILES:
        if os.path.exists(f"{proc}/{name}"):
            linux.bind("/dev/null", f"{proc}/{name}", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NOEXEC)
    for name in procfiles.MASKED_DIRECTORIES:
        if os.path.isdir(f"{proc}/{name}"):
            linux.bind(f"{root}/var/empty", f"{proc}/{name}", _READ_ONLY | linux.MS_NOEXEC)
    linux.bind(f"{proc}/sys", f"{proc}/sys", _READ_ONLY | linux.MS_NOEXEC)
    linux.enter_root(root)
    return device


def _execute(birth: Birth, run_file: int, run_directory: int) -> NoReturn:
    # init expects the control socket at 3; first everything above, so that no copy overwrites another's source.
    wanted = [birth.control, birth.filter, run_file, *([run_directory] if run_directory >= 0 else []), birth.init]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in wanted]
    program = 2 + len(high)
    for target, fd in enumerate(high, start=3):
        os.dup2(fd, target, inheritable=target < program)
    os.execve(program, ["init", "4", str(TENANT), *(str(fd) for fd in range(5, program))], {})
