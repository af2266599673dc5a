"""The native driver: the agent's side of the spawner's socket.

Owns the descriptors that the spawner hands out (listener, freezer, memory peak, output) and the matching of answers to
requests. Refuses to know how sandboxes are built; it has no privileges and asks for everything by id. Freezing,
thawing and reading the memory peak go through descriptors, without the spawner: they are on the path of every invoke.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from chassis.faults import FaultCode
from worker.sandbox import wire
from worker.sandbox.driver import (
    BadArchive,
    CodeMissing,
    DriverEnded,
    InvalidEntrypoint,
    ProcessExit,
    RuntimeApiServer,
    SandboxFault,
    SandboxGone,
    SandboxSpec,
    UnpackedCode,
    UnpackLimits,
)

_FREEZE_TIMEOUT_S = 1.0
_CHUNK = 64 * 1024


class PipeOutput:
    """driver.Output over the pipe that the spawner made."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __aiter__(self) -> "PipeOutput":
        return self

    def read_now(self) -> bytes:
        try:
            return os.read(self._fd, _CHUNK) if self._fd >= 0 else b""
        except BlockingIOError:
            return b""

    async def __anext__(self) -> bytes:
        while self._fd >= 0:
            try:
                chunk = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                await self._readable()
                continue
            if chunk:
                return chunk
            self.close()
        raise StopAsyncIteration

    def close(self) -> None:
        """Lets go of it; the sandbox's later writes fail with EPIPE."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        fd = self._fd
        loop.add_reader(fd, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(fd)

    def __del__(self) -> None:
        self.close()


class NativeSandbox:
    """A sandbox that the spawner built; see driver.Sandbox."""

    def __init__(self, driver: "NativeDriver", spec: SandboxSpec, freezer: str, fds: list[int]) -> None:
        self.spec = spec
        self._driver = driver
        self._freezer = freezer
        self._listener: socket.socket | None = socket.socket(fileno=fds[0])
        self._listener.setblocking(False)
        self._freeze_fd, self._frozen_fd, self._peak_fd = fds[1:]
        self._exit: asyncio.Future[ProcessExit] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._gone: SandboxGone | None = None

    async def serve(self, protocol_factory: Callable[[], asyncio.Protocol]) -> RuntimeApiServer:
        assert self._listener is not None, "serve() is called once"
        listener, self._listener = self._listener, None
        self._server = await asyncio.get_running_loop().create_server(protocol_factory, sock=listener)
        return self._server

    async def start(self) -> PipeOutput:
        self._check()
        if self._exit.done():
            self._exit = asyncio.get_running_loop().create_future()
        return await self._driver.request_start(self.spec)

    async def exited(self) -> ProcessExit:
        return await asyncio.shield(self._exit)

    async def limit_cpu(self, *, boosted: bool) -> None:
        await self._driver.request("limit_cpu", sandbox=self.spec.sandbox, boosted=boosted)

    async def freeze(self) -> None:
        self._check()
        os.pwrite(self._freeze_fd, b"1" if self._freezer == "v2" else b"FROZEN", 0)
        wait_s = 0.0002
        async with asyncio.timeout(_FREEZE_TIMEOUT_S):
            while not self._is_frozen():    # nearly always at once; a process inside a long system call takes longer
                await asyncio.sleep(wait_s)
                wait_s = min(0.02, wait_s * 2)

    async def thaw(self) -> None:
        self._check()
        os.pwrite(self._freeze_fd, b"0" if self._freezer == "v2" else b"THAWED", 0)

    async def memory_peak_mb(self) -> int:
        self._check()
        peak = int(os.pread(self._peak_fd, 64, 0))
        return min(self.spec.memory_mb, -(-peak // (1 << 20)))

    async def kill(self) -> None:
        await self._driver.request("kill", sandbox=self.spec.sandbox)

    async def destroy(self) -> None:
        await self._driver.request("destroy", sandbox=self.spec.sandbox)
        self.let_go(SandboxGone(f"sandbox {self.spec.sandbox} was destroyed"))

    def on_exit(self, ending: ProcessExit) -> None:
        """The spawner's news of the runtime process."""
        if not self._exit.done():
            self._exit.set_result(ending)

    def let_go(self, reason: SandboxGone) -> None:
        """Closes what the agent holds of it; later calls raise `reason`. Idempotent."""
        if self._gone is not None:
            return
        self._gone = reason
        self._driver.forget(self.spec.sandbox)
        for fd in (self._freeze_fd, self._frozen_fd, self._peak_fd):
            os.close(fd)
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.close()
        if not self._exit.done():
            self._exit.set_exception(reason)
            self._exit.exception()      # nobody has to be waiting

    def _check(self) -> None:
        if self._gone is not None:
            raise self._gone

    def _is_frozen(self) -> bool:
        self._check()
        state = os.pread(self._frozen_fd, 256, 0)
        return b"frozen 1" in state if self._freezer == "v2" else state.strip() == b"FROZEN"


class NativeDriver:
    """See driver.SandboxDriver. `channel` is this end of the spawner's SEQPACKET socket.

    ``end_process`` is called, with the reason, when that socket is of no more use before close(): the agent knows
    nothing of its sandboxes from then on, and may say of none that it ended. It has to leave at once.
    """

    def __init__(self, channel: socket.socket, end_process: Callable[[str], None] = lambda _: None) -> None:
        self._channel = channel
        self._end_process = end_process
        self._closing = False
        self._channel.setblocking(False)
        self._next = 0
        self._answers: dict[int, asyncio.Future[tuple[wire.Message, list[int]]]] = {}
        self._outputs: dict[int, int] = {}      # request of start -> descriptor, until its answer comes
        self._sandboxes: dict[str, NativeSandbox] = {}
        self._runtimes: tuple[str, ...] = ()
        self._unsent: list[tuple[wire.Message, list[int]]] = []
        self._end: DriverEnded | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Waits for the spawner. Raises SandboxFault with what this host lacks."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(self._channel, self._on_readable)
        await self._ready
        answer, _ = await self.request("runtimes")
        self._runtimes = tuple(answer["runtimes"])

    async def close(self) -> None:
        self._closing = True
        if self._end is None:
            self._send({"id": self._number(), "op": "close"}, [])
            # The spawner closes its end only after everything is gone.
            while self._end is None:
                await self._next_end()
        self._channel.close()

    @property
    def ended(self) -> bool:
        """Whether the spawner is gone, or leaves, for the socket is closed: every sandbox with it."""
        return self._end is not None

    def authorise(self, until: float, grace_s: float) -> None:
        if self._end is None:
            times = {"until_ms": int(until * 1000), "grace_ms": int(grace_s * 1000)}
            self._send({"id": self._number(), "op": "authority", **times}, [])

    def runtimes(self) -> Sequence[str]:
        return self._runtimes

    async def unpack(self, archive: BinaryIO, sha256: str, limits: UnpackLimits) -> UnpackedCode:
        answer, _ = await self.request(
            "unpack", fds=[archive.fileno()], sha256=sha256,
            size_bytes_max=limits.size_bytes, entries_max=limits.entries,
        )
        return UnpackedCode(sha256=sha256, size_bytes=answer["size"])

    async def has_code(self, sha256: str) -> bool:
        answer, _ = await self.request("has_code", sha256=sha256)
        return answer["size"] is not None

    async def create(self, spec: SandboxSpec) -> NativeSandbox:
        task = asyncio.ensure_future(self.request(
            "create", sandbox=spec.sandbox, sha256=spec.code, runtime=spec.runtime, memory_mb=spec.memory_mb,
            tmp_mb=spec.tmp_mb,
        ))
        try:
            answer, fds = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The sandbox would come to life without an owner: take it back, whatever became of it.
            task.add_done_callback(_close_result)
            if self._end is None:
                self._send({"id": self._number(), "op": "destroy", "sandbox": spec.sandbox}, [])
            raise
        sandbox = NativeSandbox(self, spec, answer["freezer"], fds)
        self._sandboxes[spec.sandbox] = sandbox
        return sandbox

    async def request_start(self, spec: SandboxSpec) -> PipeOutput:
        """Starts the runtime process; for NativeSandbox."""
        number = self._number()
        try:
            await self._ask(number, "start", [], {
                "sandbox": spec.sandbox, "handler": spec.handler, "environment": dict(spec.environment),
            })
        finally:
            fd = self._outputs.pop(number, -1)
            output = PipeOutput(fd)
        return output

    async def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[wire.Message, list[int]]:
        """Sends one request and waits for its answer; raises the fault that it names."""
        return await self._ask(self._number(), op, list(fds), fields)

    def forget(self, sandbox: str) -> None:
        """A destroyed sandbox's news are of no more interest; for NativeSandbox."""
        self._sandboxes.pop(sandbox, None)

    async def _ask(
        self, number: int, op: str, fds: list[int], fields: dict[str, Any],
    ) -> tuple[wire.Message, list[int]]:
        if self._end is not None:
            raise self._end
        answer: asyncio.Future[tuple[wire.Message, list[int]]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            try:
                self._send({"id": number, "op": op, **fields}, fds)
            except wire.BadMessage as error:
                raise SandboxFault(str(error), code=FaultCode.INVALID, definite=True) from None
            message, held = await answer
        finally:
            self._answers.pop(number, None)
        if message["ok"]:
            return message, held
        raise _fault(message, fields)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _send(self, message: wire.Message, fds: list[int]) -> None:
        wire.encode(message)
        # The caller may close its descriptors while the packet still waits.
        self._unsent.append((message, [os.dup(fd) for fd in fds]))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unsent:
            message, fds = self._unsent[0]
            try:
                wire.send(self._channel, message, fds)
            except BlockingIOError:
                loop.add_writer(self._channel, self._flush)
                return
            except OSError as error:
                self._on_end(f"the spawner is gone: {error}")
                return
            self._unsent.pop(0)
            for fd in fds:
                os.close(fd)
        loop.remove_writer(self._channel)

    def _on_readable(self) -> None:
        while self._end is None:
            try:
                received = wire.receive(self._channel)
            except BlockingIOError:
                return
            except OSError as error:
                self._on_end(f"the spawner is gone: {error}")
                return
            except wire.BadMessage as error:
                self._on_end(f"the spawner can't be heard: {error}")
                return
            if received is None:
                self._on_end("the spawner is gone")
                return
            self._on_message(*received)

    def _on_message(self, message: wire.Message, fds: list[int]) -> None:
        if "event" not in message:
            answer = self._answers.get(message["id"])
            if answer is not None and not answer.done():
                answer.set_result((message, fds))
                return
        elif message["event"] == "output" and message["id"] in self._answers:
            self._outputs[message["id"]] = fds[0]
            return
        elif message["event"] == "exited" and message["sandbox"] in self._sandboxes:
            self._sandboxes[message["sandbox"]].on_exit(
                ProcessExit(code=message["code"], signal=message["signal"], oom=message["oom"])
            )
        elif message["event"] == "gone" and message["sandbox"] in self._sandboxes:
            self._sandboxes[message["sandbox"]].let_go(SandboxGone(message["message"]))
        elif self._ready is not None and not self._ready.done():
            if message["event"] == "ready":
                self._ready.set_result(None)
            elif message["event"] == "unfit":
                self._ready.set_exception(SandboxFault(message["message"], definite=True))
        for fd in fds:      # of an answer that nobody waits for any more
            os.close(fd)

    def _on_end(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._channel)
        loop.remove_writer(self._channel)
        self._channel.close()       # a spawner that lives takes every sandbox away then
        if not self._closing:
            self._end_process(reason)
        self._end = DriverEnded(reason)
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(self._end)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._end)
        for sandbox in list(self._sandboxes.values()):
            sandbox.let_go(self._end)

    async def _next_end(self) -> None:
        """Waits until something is to be read, which is how the spawner's end shows."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[wire.Message, list[int]]] = loop.create_future()
        number = self._number()
        self._answers[number] = answer
        try:
            await answer
        except SandboxGone:
            return
        finally:
            del self._answers[number]


def _settle(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _close_result(task: "asyncio.Task[tuple[wire.Message, list[int]]]") -> None:
    if not task.cancelled() and task.exception() is None:
        for fd in task.result()[1]:
            os.close(fd)


def _fault(message: wire.Message, fields: dict[str, Any]) -> SandboxFault:
    """The exception that a refusal stands for."""
    text = message["message"]
    match message["fault"]:
        case "archive":
            entry = message["entry"]
            return BadArchive(f"entry {entry!r}: {text}" if entry else text, entry=entry)
        case "code missing":
            return CodeMissing(fields["sha256"])
        case "entrypoint":
            return InvalidEntrypoint(text)
        case "gone":
            return SandboxGone(text)
        case "request":
            return SandboxFault(text, code=FaultCode.INVALID, definite=True)
        case "leftover":
            return SandboxFault(text, definite=False)
    return SandboxFault(text, definite=True)
