"""One sandbox as the spawner sees it: its process 1, its groups, and the talk with process 1.

Owns the stages of a sandbox's life and the packets of init.c. Refuses to know about the agent: outcomes are handed to
the spawner through `Outcome` values.
"""

import array
import contextlib
import enum
import json
import os
import signal
import socket
import struct
from dataclasses import dataclass, field

from worker.sandbox import linux, tmpimage, wire
from worker.sandbox.cgroups import SandboxGroup


class Stage(enum.Enum):
    FORKED = "forked"           # the child composes the root
    MAPPED = "mapped"           # its ids are mapped; it executes init
    READY = "ready"             # init waits for orders
    DYING = "dying"             # killed; waiting for the last process, mounts and groups to go
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """Process 1 is ready; the listener is the caller's now."""

    listener: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """It could not be built; it is dying by itself."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Outcome of an order to start; errno 0 means that it runs."""

    errno: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The runtime process ended."""

    code: int | None
    signal: int | None
    oom: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """Outcome of an order to kill: only process 1 is left."""


Outcome = Born | Failed | Started | Exited | Emptied


@dataclass(slots=True, kw_only=True)
class Living:
    """Mutable; owned by the spawner's loop."""

    sandbox: str
    slot: int
    host_uid: int
    code: str
    command: tuple[str, ...]        # of a managed runtime; empty: bootstrap
    group: SandboxGroup
    control: socket.socket
    pid: int
    pidfd: int
    stage: Stage = Stage.FORKED
    listener: int = -1
    loop_device: str = ""
    create_request: int | None = None
    start_request: int | None = None
    kill_requests: list[int] = field(default_factory=list)
    destroy_requests: list[int] = field(default_factory=list)
    remove_deadline: float = 0.0
    failure: str = ""               # why it could not be built, or ended by itself

    def receive(self) -> Outcome | None:
        """Takes one packet of the child or of init. None: nothing for the spawner to tell. Raises EOFError."""
        if self.stage is Stage.FORKED:
            return self._receive_birth()
        try:
            packet = self.control.recv(wire.BYTES_MAX)      # of five bytes, or words of a child that failed
        except BlockingIOError:
            return None
        except ConnectionResetError:
            packet = b""
        if not packet:
            raise EOFError(self.sandbox)
        kind, value = packet[:1], struct.unpack("i", packet[1:5])[0]
        if kind == b"R" and self.stage is Stage.MAPPED:
            self.stage = Stage.READY
            listener, self.listener = self.listener, -1
            return Born(listener=listener)
        if kind == b"s":
            return Started(errno=value)
        if kind == b"x":
            signalled = os.WIFSIGNALED(value)
            return Exited(
                code=None if signalled else os.WEXITSTATUS(value),
                signal=os.WTERMSIG(value) if signalled else None,
                oom=self.group.oom_killed(),
            )
        if kind == b"k":
            return Emptied()
        if packet[:1] == b"{":      # the child failed after the mapping
            return Failed(message=str(json.loads(packet).get("failed", "unknown")))
        raise EOFError(self.sandbox)

    def _receive_birth(self) -> Outcome | None:
        try:
            received = wire.receive(self.control)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            received = None
        if received is None:
            raise EOFError(self.sandbox)
        message, fds = received
        if "born" not in message or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            return Failed(message=str(message.get("failed", "the child spoke out of turn")))
        self.listener, self.loop_device = fds[0], message["born"]
        for kind in ("uid", "gid"):
            # Two ids: root (process 1 alone) and the tenant. Everything else is nobody.
            with open(f"/proc/{self.pid}/{kind}_map", "w", encoding="ascii") as file:
                file.write(f"0 {self.host_uid} 1\n993 {self.host_uid + 1} 1\n")
        self.stage = Stage.MAPPED
        self.control.send(b"mapped", socket.MSG_NOSIGNAL)
        return None

    def order_start(self, candidates: list[str], arguments: list[str], environment: list[str], output: int) -> None:
        """Sends the order; Started follows. `output` stays the caller's."""
        os.fchown(output, self.host_uid + 1, self.host_uid + 1)     # so that /dev/stdout can be opened again
        self.group.begin_oom_watch()
        strings = b"".join(os.fsencode(text) + b"\0" for text in (*candidates, *arguments, *environment))
        head = struct.pack("=cBBH", b"S", len(candidates), len(arguments), len(environment))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [output]))]
        self.control.sendmsg([head + strings], rights, socket.MSG_NOSIGNAL)

    def order_kill(self) -> None:
        """Kills what runs in it, frozen or not; Emptied follows.

        Process 1 kills, not `cgroup.kill`: after that, Linux 6.18 kills whatever is made in the group by clone3.
        """
        self.control.send(b"K", socket.MSG_NOSIGNAL)
        self.group.thaw()

    def end(self) -> None:
        """Kills process 1, and with it everything in its pid namespace."""
        self.stage = Stage.DYING
        with contextlib.suppress(OSError):
            self.group.thaw()       # a v1 freezer holds back even SIGKILL
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def collect(self) -> None:
        """Reaps process 1 after its pidfd became readable, and closes what the spawner held of it."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.control.close()
        if self.listener >= 0:
            os.close(self.listener)
            self.listener = -1

    def remove(self) -> bool:
        """Removes the groups and looks for the loop device; True once nothing is left."""
        held = bool(self.loop_device) and linux.loop_holds(self.loop_device, tmpimage.label(self.host_uid))
        return self.group.remove() and not held
