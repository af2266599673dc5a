"""The spawner's children: forked with the descriptors that they are given and no others, and gone when it is gone.

What a child of the spawner inherits would be worth taking it over: the agent's socket with every tenant's requests, the
control sockets of all sandboxes, the lock by which a successor knows that nobody is left. So everything else is closed
before a child does anything.

Owns how a child begins, and the children that work for the code cache until they end or are killed. Refuses to know
what a child is for (unpack.py, birth.py).
"""

import contextlib
import os
import selectors
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from worker.sandbox import linux


def fork(work: Callable[[], object], *, witness: int, keep: Iterable[int] = (), group: int = -1) -> tuple[int, int]:
    """Forks `work` as process 1 of a new pid namespace, in a v2 group; returns its pid as seen from here, and a pidfd.

    `witness` (see linux.end_with_parent), `keep` and 0 to 2 stay open in it. Raises OSError, and there is no child.
    """
    pid, pidfd = linux.fork_into(linux.CLONE_NEWPID, group)
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            linux.close_all_but((0, 1, 2, witness, *keep))
            linux.end_with_parent(witness)
            work()
        finally:
            os._exit(1)     # whatever happened: there must never be a second spawner
    return pid, pidfd


def kill(pidfd: int) -> None:
    """Kills a child, and with it everything in its pid namespace. It stays to be reaped."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


class Children:
    """The children that work for the code cache. Each has a pipe, by which it says that it is done, or what came of it.

    A child is killed when it has said something: what it parsed may have taken it over, and a child that went on, or
    paused, would keep whoever waits for its end. Nothing here waits: an end is heard of through the selector.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._living: list[_Child] = []

    def __len__(self) -> int:
        return len(self._living)

    def start(self, work: Callable[[int], object], then: Callable[[int], None], *, keep: Iterable[int] = ()) -> None:
        """Forks `work`, which gets the writing end; once all of the child is gone, `then` gets the reading end.

        Raises OSError, and there is no child.
        """
        with contextlib.ExitStack() as undo:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, reader)
            try:
                pid, pidfd = fork(lambda: work(writer), witness=writer, keep=keep)
            finally:
                os.close(writer)
            undo.callback(end_now, pid, pidfd)
            child = _Child(pid=pid, pidfd=pidfd, reader=reader, then=then)
            self._selector.register(reader, selectors.EVENT_READ, lambda _: self._on_said(child))
            undo.callback(self._selector.unregister, reader)
            self._selector.register(pidfd, selectors.EVENT_READ, lambda _: self._on_ended(child))
            self._living.append(child)
            undo.pop_all()

    def kill_all(self) -> None:
        for child in self._living:
            kill(child.pidfd)

    def _on_said(self, child: "_Child") -> None:
        if child not in self._living:
            return      # its end was heard of in the same turn
        child.silent = False
        self._selector.unregister(child.reader)
        kill(child.pidfd)

    def _on_ended(self, child: "_Child") -> None:
        self._living.remove(child)
        self._selector.unregister(child.pidfd)
        if child.silent:
            self._selector.unregister(child.reader)
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        try:
            child.then(child.reader)
        finally:
            os.close(child.reader)


@dataclass(slots=True, kw_only=True, eq=False)
class _Child:
    pid: int
    pidfd: int
    reader: int
    then: Callable[[int], None]
    silent: bool = True


def end_now(pid: int, pidfd: int) -> None:
    """Takes back a child that has only just begun."""
    kill(pidfd)
    os.waitpid(pid, 0)
    os.close(pidfd)
