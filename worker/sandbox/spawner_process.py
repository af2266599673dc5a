"""The spawner's process: its ground, the agent as its child, and the end of both.

    python -m worker.sandbox.spawner_process --config FILE --socket-fd N

Owns in which order things begin (the older incarnation is gone, then the host's ground, then the agent) and end.
Refuses to know requests and sandboxes (spawner.py). Standard library only: every sandbox is forked from this process.
"""

import argparse
import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from worker.sandbox import launch, wire
from worker.sandbox.host import Host
from worker.sandbox.settings import SpawnerConfig
from worker.sandbox.spawner import Spawner

_AGENT_END_S = 5.0
DESCRIPTORS_PER_SANDBOX = 40    # the agent's: freezer, its state, peak, output, listener, 32 to the Runtime API
OTHER_DESCRIPTORS = 2048        # frontends' streams, archives, logs
EXIT_UNFIT = 78             # EX_CONFIG: this host can't do it, starting again won't help


def run(config: SpawnerConfig, agent_argv: Sequence[str], pass_fds: Sequence[int] = ()) -> int:
    """Becomes the spawner of this process and starts the agent as its unprivileged child; returns the agent's status
    (128 + N if signal N ended it).

    `agent_argv` begins with an absolute path; "{fd}" in it becomes the number of the agent's end of the socket, which
    it gives to NativeDriver(socket.socket(fileno=N)). SIGTERM is passed on to the agent. When the agent ends, however
    it ends, everything is taken away; when this process ends, the agent is killed. Call it before any thread is made.
    """
    try:
        host = Host(config)
        host.open()
    except OSError as error:
        sys.stderr.write(f"spawner: {error}\n")
        return EXIT_UNFIT
    allow_descriptors(config.sandboxes_max)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = launch.fork_agent(config, host.mount_point, agent_argv, theirs, pass_fds)
    assert host.tenure is not None, "open() took it"
    host.tenure.name(pid)
    for fd in pass_fds:
        os.close(fd)

    def signal_agent(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, lambda number, _frame: signal_agent(number))
    with ours:
        _live(host, ours, end_agent=lambda: signal_agent(signal.SIGKILL))
    return _end_of(pid)


def allow_descriptors(sandboxes: int) -> None:
    """Lets this process and the agent, which inherits it, have what so many sandboxes need; as much of it as the host
    allows. What is over a smaller limit is refused sandbox by sandbox."""
    needed = sandboxes * DESCRIPTORS_PER_SANDBOX + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in {soft, hard} or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):       # without CAP_SYS_RESOURCE, or over fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        sys.stderr.write(
            f"spawner: {sandboxes} sandboxes may need {needed} descriptors, and a process may have {hard} here: raise "
            "the hard limit (ulimit -Hn) or lower sandboxes_max\n"
        )


def _end_of(pid: int) -> int:
    """Waits for the agent, which has nothing left to do, and kills it if it takes longer than that should."""
    with os.fdopen(os.pidfd_open(pid), "rb", buffering=0) as pidfd, selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        if not selector.select(_AGENT_END_S):
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status      # as shells say it


def serve(config: SpawnerConfig, channel: socket.socket) -> int:
    """Runs a spawner on this end of the socket, the agent being someone else's child; returns the exit status."""
    try:
        host = Host(config)
        host.open()
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(channel, {"event": "unfit", "message": str(error)})
        sys.stderr.write(f"spawner: {error}\n")
        return EXIT_UNFIT
    _live(host, channel, end_agent=lambda: None)    # its parent's to end: it sees the socket close
    return 0


def _live(host: Host, channel: socket.socket, *, end_agent: Callable[[], None]) -> None:
    gc.freeze()     # what is here now stays: children don't copy these pages by collecting them
    gc.disable()    # nothing here makes cycles that matter; a collection would copy pages in every child
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # a terminal's ^C goes to the agent, whose end ends this
    try:
        wire.send(channel, {"event": "ready"})
    except ConnectionError:     # the agent ended at once
        host.close()
        return
    Spawner(host, channel, end_agent).run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.sandbox.spawner_process")
    parser.add_argument("--config", required=True)
    parser.add_argument("--socket-fd", required=True, type=int)
    options = parser.parse_args(arguments)
    with open(options.config, encoding="utf-8") as file:
        config = SpawnerConfig.from_json(file.read())
    with socket.socket(fileno=options.socket_fd) as channel:
        os.set_inheritable(channel.fileno(), False)
        return serve(config, channel)


if __name__ == "__main__":
    sys.exit(main())
