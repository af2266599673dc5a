"""What a worker's agent may ask of sandboxes: the interface of every driver (native, memory, later microvm).

Owns the words between the agent and a driver: the specification of a sandbox, how a runtime process ended,
the faults. Refuses to know how a sandbox is built: no sockets, descriptors, paths or namespaces appear, so
that a simulation can offer the same interface from memory.

The life of a sandbox, as the agent drives it:

    sandbox = await driver.create(spec)         # namespaces, cgroups, root, /tmp; nothing of the tenant runs
    server = await sandbox.serve(protocol)      # the Runtime API at 127.0.0.1:9001, seen from inside only
    await sandbox.limit_cpu(boosted=True)
    output = await sandbox.start()              # the runtime process; read `output` until it ends
    ending = await sandbox.exited()             # waits; one task usually sits here
    await sandbox.kill()                        # reset: the processes go, /tmp stays; then start() again
    await sandbox.destroy()

`start` may be called again after the process ended or after `kill`. `kill` and `destroy` thaw a sandbox
as far as needed. `destroy` may be called at any time, more than once, and ends a pending `exited`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from chassis.faults import Fault, FaultCode

# Where the Runtime API answers inside every sandbox: the agent puts this into AWS_LAMBDA_RUNTIME_API.
RUNTIME_API_ADDRESS = "127.0.0.1:9001"

# Section 10 of the limits: 250 MB unzipped, as bytes.
CODE_SIZE_BYTES_MAX = 262_144_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Everything that is fixed for a sandbox's life."""

    sandbox: str  # the sandbox's id, [a-z0-9-]{1,40}, unique on this worker
    runtime: str  # "python3.11", "provided.al2023", ...: one of the driver's runtimes()
    code: str  # SHA-256 (hex) of the archive, unpacked before by unpack()
    memory_mb: int  # hard limit of all processes, swap included
    tmp_mb: int  # usable size of /tmp
    environment: Mapping[str, str]  # the runtime process's complete environment; nothing is added to it
    handler: str  # the runtime's argument ("app.handler"); provided.* runtimes read _HANDLER instead


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExit:
    """How the runtime process ended: exactly one of `code` and `signal` is set."""

    code: int | None  # exit status 0 to 255
    signal: int | None  # number of the signal that ended it, 9 for kill() and for the OOM killer
    oom: bool  # the kernel killed something in this sandbox for want of memory since the last start()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """Bounds of one archive's content."""

    size_bytes: int = CODE_SIZE_BYTES_MAX  # sum of the unpacked files
    entries: int = 100_000  # files and directories


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedCode:
    """Code that lies unpacked and verified in the driver's cache."""

    sha256: str
    size_bytes: int  # sum of the unpacked files


class SandboxFault(Fault):
    """A driver could not do what it was asked. `definite`: nothing was created, started or changed."""

    code = FaultCode.UNAVAILABLE


class BadArchive(SandboxFault):
    """The archive is refused before anything of it was kept; `entry` names the offender ("" if it is the
    whole)."""

    code = FaultCode.INVALID

    def __init__(self, message: str, *, entry: str) -> None:
        super().__init__(message, definite=True)
        self.entry = entry


class CodeMissing(SandboxFault):
    """create(): the code isn't in the cache (never unpacked, or evicted since): fetch and unpack() it
    again."""

    code = FaultCode.NOT_FOUND

    def __init__(self, sha256: str) -> None:
        super().__init__(f"code {sha256} is not in this worker's cache; unpack it first", definite=True)
        self.sha256 = sha256


class InvalidEntrypoint(SandboxFault):
    """start(): a provided.* sandbox has no executable bootstrap; the message is the documented one without
    its request id ("Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]")."""

    code = FaultCode.INVALID

    def __init__(self, message: str) -> None:
        super().__init__(message, definite=True)


class SandboxGone(SandboxFault):
    """The sandbox was destroyed, or ended by itself, before or while the call ran."""

    def __init__(self, message: str) -> None:
        super().__init__(message, definite=False)


class DriverEnded(SandboxGone):
    """The driver itself is gone, and with it whoever could say whether anything of the sandbox still runs."""


class Output(Protocol):
    """What one runtime process prints, stdout and stderr joined, in chunks of at most 64 KiB."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Ends when the last process that holds it is gone."""
        ...

    def read_now(self) -> bytes:
        """What was printed before this call and not yet read, at most one chunk; empty when that is nothing."""
        ...


class RuntimeApiServer(Protocol):
    """What serve() gives back: closing it ends listening and every open connection's accepting side."""

    def close(self) -> None: ...


class Sandbox(Protocol):
    """One (account, function, version, revision) for life, at most one runtime process at a time."""

    @property
    def spec(self) -> SandboxSpec: ...

    async def serve(self, protocol_factory: Callable[[], asyncio.Protocol]) -> RuntimeApiServer:
        """Accepts connections made inside the sandbox to RUNTIME_API_ADDRESS. Called once, before start(); it
        lasts over kill() and restarts, until destroy() or close()."""
        ...

    async def start(self) -> Output:
        """Starts the runtime process and returns its output. Not reading it blocks the sandbox's writes, nothing
        else.

        Raises InvalidEntrypoint; SandboxFault (definite) if the process could not be started; SandboxGone.
        """
        ...

    async def exited(self) -> ProcessExit:
        """Waits until the current (or last) runtime process has ended. Any number of waiters. Raises
        SandboxGone once nothing of the sandbox runs any more, destroyed or not; DriverEnded where that is not known."""
        ...

    async def limit_cpu(self, *, boosted: bool) -> None:
        """Boosted (init): at least one vCPU. Else the quota of memory_mb: 1769 MB are one vCPU, 100 ms
        period."""
        ...

    async def freeze(self) -> None:
        """Returns once every process of the sandbox stands still."""
        ...

    async def thaw(self) -> None: ...

    async def memory_peak_mb(self) -> int:
        """Highest memory use of all processes together over the sandbox's life, rounded up, at most
        memory_mb."""
        ...

    async def kill(self) -> None:
        """Kills every process and returns once they are gone. The sandbox, its /tmp and its listener stay."""
        ...

    async def destroy(self) -> None:
        """Takes everything away and returns once processes, mounts, cgroups and /tmp were seen gone.
        Idempotent."""
        ...


class SandboxDriver(Protocol):
    """A worker's one driver. All methods belong to one event loop."""

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Destroys every sandbox that is left, then lets go of the driver's own resources. Idempotent."""
        ...

    def authorise(self, until: float, grace_s: float) -> None:
        """This worker may start invocations until then (boot-time clock, seconds). Without authority in force no
        sandbox is created; by `until` + the longest timeout + `grace_s` all are destroyed, whatever the agent does."""
        ...

    def runtimes(self) -> Sequence[str]:
        """Names of the runtimes that this host offers, sorted; known after start()."""
        ...

    async def unpack(self, archive: BinaryIO, sha256: str, limits: UnpackLimits) -> UnpackedCode:
        """Checks that `archive` (a seekable real file, read from its beginning) has this SHA-256 (hex),
        unpacks it in confinement, keeps the result read-only. Already there: returns at once. Concurrent
        calls for one hash join.

        Raises BadArchive; SandboxFault (definite) if there is no room or the host failed.
        """
        ...

    async def has_code(self, sha256: str) -> bool: ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Builds a sandbox in which nothing runs yet. Its code can't be evicted while it lives.

        Raises CodeMissing; SandboxFault with `definite` set when nothing is left of it.
        """
        ...
