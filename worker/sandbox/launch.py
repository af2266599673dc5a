"""Starts the worker's agent as an unprivileged child of the spawner, in a root that shows it only what it needs.

Owns how privileges go: a mount namespace with the interpreter, the code, a few files of /etc and the agent's own
directories; an unprivileged id, no capabilities, no_new_privs; an end together with the spawner's. The network stays
the host's: the agent serves gRPC. Everything that tenants send is parsed behind this line.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from worker.sandbox import linux
from worker.sandbox.settings import SpawnerConfig

_ETC = ("hosts", "resolv.conf", "nsswitch.conf", "passwd", "group", "localtime", "ssl", "ld.so.cache", "gai.conf")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SYSTEM = ("usr", "bin", "lib", "lib64", "sbin")
_READ_ONLY = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_CHANNEL = "{fd}"


def fork_agent(
    config: SpawnerConfig, mount_point: str, argv: Sequence[str], channel: socket.socket, pass_fds: Sequence[int],
) -> int:
    """Starts `argv` (an absolute path first; "{fd}" stands for the number of the channel); returns its pid.

    `pass_fds` stay open in it under their numbers. What fails before exec is said on stderr, and the child ends with
    status 127.
    """
    give(config)
    pid = os.fork()
    if pid:
        return pid
    try:
        _become_agent(config, mount_point, argv, channel, pass_fds)
    except OSError as error:
        sys.stderr.write(f"agent: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def give(config: SpawnerConfig) -> None:
    """Makes the agent's user the owner of its directories and what is in them."""
    for top in config.agent_owned:
        os.makedirs(top, 0o700, exist_ok=True)
        for directory, _, files in os.walk(top):
            for path in (directory, *(f"{directory}/{name}" for name in files)):
                os.chown(path, config.agent_uid, config.agent_uid, follow_symlinks=False)


def _become_agent(
    config: SpawnerConfig, mount_point: str, argv: Sequence[str], channel: socket.socket, pass_fds: Sequence[int],
) -> NoReturn:
    spawner = os.getppid()
    os.set_inheritable(channel.fileno(), True)
    for fd in pass_fds:
        os.set_inheritable(fd, True)
    directory = os.getcwd()
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    compose(config, mount_point)
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setgroups([])
    linux.drop_bounding_set(linux.last_capability())
    os.setresgid(config.agent_uid, config.agent_uid, config.agent_uid)
    os.setresuid(config.agent_uid, config.agent_uid, config.agent_uid)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)     # after the change of ids, which clears it
    if os.getppid() != spawner:
        os._exit(0)     # it ended before the line above
    words = [word.replace(_CHANNEL, str(channel.fileno())) for word in argv]
    os.execv(words[0], words)


def visible(config: SpawnerConfig) -> dict[str, bool]:
    """Paths that the agent sees -> whether it may write there."""
    paths = {f"/{name}": False for name in _SYSTEM}
    paths |= {f"/etc/{name}": False for name in _ETC}
    code = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    code = [path for path in code if path != "/"]    # a process started in / without -P: nothing of ours lies there
    for path in (sys.prefix, sys.base_prefix, *code, *config.agent_readable):
        paths[path] = False
    paths |= dict.fromkeys(config.agent_owned, True)
    return {_place(path, paths): writable for path, writable in paths.items()}


def _place(path: str, shown: Iterable[str]) -> str:
    """Where `path` leads to in the agent's root.

    What is shown of a directory shows the symbolic links in it too. A mount at such a link would follow it out of the
    new root, so that it goes to where the link leads (a virtual environment that several checkouts share).
    """
    names = path.split("/")
    for count in range(2, len(names) + 1):
        at, rest = "/".join(names[:count]), names[count:]
        seen = any(at.startswith(f"{other}/") for other in shown) or (at in shown and bool(rest))
        if seen and os.path.islink(at):
            onward = os.path.join(os.path.dirname(at), os.readlink(at), *rest)
            return _place(os.path.normpath(onward), shown)
    return path


def compose(config: SpawnerConfig, root: str) -> None:
    """Puts the agent's root together at `root` and enters it."""
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=16m,mode=755")
    for path, writable in sorted(visible(config).items()):
        if not os.path.exists(path):
            continue
        target = f"{root}{path}"
        if os.path.islink(path) and path.count("/") == 1:       # /lib -> usr/lib
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, 0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            if not os.path.exists(target):
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        linux.bind(path, target, linux.MS_NOSUID | linux.MS_NODEV if writable else _READ_ONLY)
    for name in ("dev", "proc", "tmp"):
        os.makedirs(f"{root}/{name}", 0o755, exist_ok=True)
    os.chmod(f"{root}/tmp", 0o1777)
    for name in _DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        linux.bind(f"/dev/{name}", f"{root}/dev/{name}", linux.MS_NOSUID | linux.MS_NOEXEC)
    linux.mount(
        "proc", f"{root}/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "hidepid=2",
    )
    linux.enter_root(root)
