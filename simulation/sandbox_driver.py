"""Sandboxes in memory: ``worker.sandbox.driver``'s interface with coroutines for processes.

Owns a small runtime that speaks HTTP/1.1 to the worker's real Runtime API over an in-memory connection, and a table of
handlers by name. Time is the event loop's, so that a simulated sandbox takes virtual seconds. Nothing here confines
anything.
"""

import asyncio
import contextvars
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from simulation.pipe import connect
from worker.sandbox.driver import (
    BadArchive,
    CodeMissing,
    ProcessExit,
    RuntimeApiServer,
    Sandbox,
    SandboxFault,
    SandboxGone,
    SandboxSpec,
    UnpackedCode,
    UnpackLimits,
)
from worker.sandbox.watchdog import Watchdog

API = "/2018-06-01"
PEAK_MB = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTimes:
    """Seconds that the pieces of a cold start take."""

    unpack_s: float = 0.002
    create_s: float = 0.005
    runtime_s: float = 0.040
    init_s: float = 0.002
    freeze_s: float = 0.0001
    kill_s: float = 0.001


class ProcessEnds(Exception):
    """A handler ends its process."""

    def __init__(self, *, code: int | None = None, signal: int | None = None, oom: bool = False) -> None:
        super().__init__("the process ends")
        self.ending = ProcessExit(code=code, signal=signal, oom=oom)


class InitRaises(Exception):
    """A handler's module can't be loaded."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(slots=True, kw_only=True)
class Invocation:
    """What a handler gets besides the event: its headers, where it may print, and the sandbox's /tmp."""

    headers: Mapping[str, str]
    sandbox: "MemorySandbox"

    def print(self, text: str) -> None:
        self.sandbox.output(text.encode())


Handler = Callable[[bytes, Invocation], Awaitable[bytes]]


async def echo(event: bytes, invocation: Invocation) -> bytes:
    return event


async def error(event: bytes, invocation: Invocation) -> bytes:
    raise ValueError("on purpose")


async def sleep(event: bytes, invocation: Invocation) -> bytes:
    """Sleeps the event's number of seconds."""
    seconds = float(json.loads(event))
    await asyncio.sleep(seconds)
    return json.dumps({"slept": seconds}).encode()


async def end_process(event: bytes, invocation: Invocation) -> bytes:
    """Ends the process with the event's number as its status."""
    raise ProcessEnds(code=int(json.loads(event)))


async def run_out_of_memory(event: bytes, invocation: Invocation) -> bytes:
    raise ProcessEnds(signal=9, oom=True)


async def big(event: bytes, invocation: Invocation) -> bytes:
    """A JSON string, quotes included, of the event's number of bytes."""
    return b'"' + b"x" * (int(json.loads(event)) - 2) + b'"'


async def say(event: bytes, invocation: Invocation) -> bytes:
    """Prints the event."""
    invocation.print(json.loads(event))
    return b"null"


HANDLERS: dict[str, Handler] = {
    "echo": echo, "error": error, "sleep": sleep, "exit": end_process, "oom": run_out_of_memory, "big": big, "say": say,
}
# What happens while the function is loaded, by handler name: seconds that it takes, or how it fails.
INITS: dict[str, float | Exception] = {
    "slow_init": 11.0,
    "init_error": InitRaises("Runtime.ImportModuleError", "Unable to import module 'init_error': No module named 'x'"),
    "init_exit": ProcessEnds(code=3),
}


class MemorySandbox:
    """One sandbox. ``started`` counts its processes; ``tmp`` outlives them."""

    def __init__(self, driver: "MemoryDriver", spec: SandboxSpec) -> None:
        self._driver = driver
        self._spec = spec
        self._accept: Callable[[], asyncio.Protocol] | None = None
        self._agent = contextvars.copy_context()    # whoever asks for a sandbox serves it
        self._process: asyncio.Task[ProcessExit] | None = None
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._running = asyncio.Event()
        self._running.set()
        self.tmp: dict[str, bytes] = {}
        self.started = 0
        self.boosted = False
        self.destroyed = False

    @property
    def spec(self) -> SandboxSpec:
        return self._spec

    @property
    def frozen(self) -> bool:
        return not self._running.is_set()

    async def serve(self, protocol_factory: Callable[[], asyncio.Protocol]) -> RuntimeApiServer:
        assert self._accept is None, "serve is called once"
        self._accept = protocol_factory
        return self

    def close(self) -> None:
        self._accept = None

    async def start(self) -> "QueuedOutput":
        self._alive()
        assert self._process is None or self._process.done(), "one process at a time"
        self.started += 1
        self._chunks = asyncio.Queue()
        self._process = asyncio.get_running_loop().create_task(
            self._run(self._chunks), name=f"in {self._spec.sandbox}", context=self._driver.context()
        )
        return QueuedOutput(self._chunks)

    async def exited(self) -> ProcessExit:
        process = self._process
        assert process is not None, "nothing was started"
        ending = await asyncio.shield(process)
        if self.destroyed:
            raise SandboxGone(f"{self._spec.sandbox} was destroyed")
        return ending

    async def limit_cpu(self, *, boosted: bool) -> None:
        self._alive()
        self.boosted = boosted

    async def freeze(self) -> None:
        self._alive()
        await asyncio.sleep(self._driver.times.freeze_s)
        self._running.clear()

    async def thaw(self) -> None:
        self._alive()
        await asyncio.sleep(self._driver.times.freeze_s)
        self._running.set()

    async def memory_peak_mb(self) -> int:
        return min(PEAK_MB, self._spec.memory_mb)

    async def kill(self) -> None:
        self._alive()
        await self._end()

    async def destroy(self) -> None:
        if not self.destroyed:
            self.destroyed = True
            await self._end()
            self._driver.sandboxes.pop(self._spec.sandbox, None)

    def output(self, data: bytes) -> None:
        self._chunks.put_nowait(data)

    def _alive(self) -> None:
        if self.destroyed:
            raise SandboxGone(f"{self._spec.sandbox} was destroyed")

    async def _end(self) -> None:
        self._running.set()
        if self._process is not None:
            self._process.cancel()
            await asyncio.wait([self._process])
        await asyncio.sleep(self._driver.times.kill_s)

    # ------------------------------------------------------------ the process

    async def _run(self, chunks: asyncio.Queue[bytes | None]) -> ProcessExit:
        try:
            return await self._runtime()
        except ProcessEnds as end:
            return end.ending
        except ConnectionError:
            return ProcessExit(code=1, signal=None, oom=False)
        except asyncio.CancelledError:
            return ProcessExit(code=None, signal=9, oom=False)
        finally:
            chunks.put_nowait(None)

    async def _runtime(self) -> ProcessExit:
        """What a Lambda runtime does: load the function, then ask, run and answer for ever."""
        name = self._spec.handler.rsplit(".", 1)[-1]
        await asyncio.sleep(self._driver.times.runtime_s)
        client = _Client(self)
        await client.request("GET", f"{API}/ping")
        load = INITS.get(name, self._driver.times.init_s)
        if isinstance(load, ProcessEnds):
            return load.ending
        if isinstance(load, InitRaises):
            await client.request("POST", f"{API}/runtime/init/error", _error(load.error_type, str(load), ""), {
                "Lambda-Runtime-Function-Error-Type": load.error_type
            })
            return ProcessExit(code=1, signal=None, oom=False)
        assert isinstance(load, float), f"init of {name} is {load!r}"
        await asyncio.sleep(load)
        handler = self._driver.handlers.get(name, echo)
        while True:
            _, headers, event = await client.request("GET", f"{API}/runtime/invocation/next")
            request_id = headers["lambda-runtime-aws-request-id"]
            path = f"{API}/runtime/invocation/{request_id}"
            try:
                result = await handler(event, Invocation(headers=headers, sandbox=self))
            except ProcessEnds:
                raise
            except Exception as fault:  # noqa: BLE001  # a handler's own: the runtime reports whatever it is
                kind = type(fault).__name__
                await client.request("POST", f"{path}/error", _error(kind, str(fault), request_id), {
                    "Lambda-Runtime-Function-Error-Type": f"Runtime.{kind}"
                })
            else:
                await client.request("POST", f"{path}/response", result)

    def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        if self._accept is None:
            raise ConnectionRefusedError("no Runtime API is served")
        return connect(protocol, self._accept(), self._agent.copy())

    async def unfrozen(self) -> None:
        await self._running.wait()


def _error(kind: str, message: str, request_id: str) -> bytes:
    return json.dumps(
        {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": []}
    ).encode()


class QueuedOutput:
    """driver.Output over a queue; None ends it."""

    def __init__(self, chunks: "asyncio.Queue[bytes | None]") -> None:
        self._chunks = chunks
        self._ended = False

    def __aiter__(self) -> "QueuedOutput":
        return self

    async def __anext__(self) -> bytes:
        chunk = None if self._ended else await self._chunks.get()
        if chunk is None:
            self._ended = True
            raise StopAsyncIteration
        return chunk

    def read_now(self) -> bytes:
        if self._ended or self._chunks.empty():
            return b""
        chunk = self._chunks.get_nowait()
        if chunk is None:
            self._chunks.put_nowait(None)  # for whoever iterates
        return chunk or b""


class _Client(asyncio.Protocol):
    """The runtime's HTTP client: one connection, one request at a time."""

    def __init__(self, sandbox: MemorySandbox) -> None:
        self._sandbox = sandbox
        self._reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
        self._transport = sandbox.dial(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.feed_eof()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        await self._sandbox.unfrozen()
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1:9001", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            answered = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                answered[name.lower()] = value.strip()
            payload = await self._reader.readexactly(int(answered.get("content-length", "0")))
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the Runtime API hung up") from None
        await self._sandbox.unfrozen()
        return int(head[0].split(" ")[1]), answered, payload


class MemoryDriver:
    """``SandboxDriver`` without an operating system. ``sandboxes`` are those alive, for tests to look at.

    ``on_expired`` is called when the watchdog lost patience: it must end the whole worker, as a spawner would. What
    isn't the agent's own, sandboxes and the watchdog, runs in a ``context`` of its own.
    """

    def __init__(
        self, *, handlers: Mapping[str, Handler] | None = None, times: MemoryTimes | None = None,
        runtimes: Sequence[str] = ("provided.al2023", "python3.11"),
        timeout_cap_s: float = 900.0, on_expired: Callable[[], None] = lambda: None,
        context: Callable[[], contextvars.Context] = contextvars.copy_context,
    ) -> None:
        self.context = context
        self.handlers = {**HANDLERS, **(handlers or {})}
        self.times = times or MemoryTimes()
        self.sandboxes: dict[str, MemorySandbox] = {}
        self.unpacked: dict[str, int] = {}
        self._runtimes = tuple(sorted(runtimes))
        self._watchdog = Watchdog(timeout_cap_s=timeout_cap_s)
        self._alarm: asyncio.TimerHandle | None = None
        self._on_expired = on_expired

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        self._mute()
        for sandbox in list(self.sandboxes.values()):
            await sandbox.destroy()

    def authorise(self, until: float, grace_s: float) -> None:
        self._watchdog.renew(until, grace_s, self._now())
        due = self._watchdog.due
        assert due is not None, "it was renewed above"
        self._mute()
        self._alarm = asyncio.get_running_loop().call_at(due, self._on_expired, context=self.context())

    def _mute(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def runtimes(self) -> Sequence[str]:
        return self._runtimes

    async def has_code(self, sha256: str) -> bool:
        return sha256 in self.unpacked

    async def unpack(self, archive: BinaryIO, sha256: str, limits: UnpackLimits) -> UnpackedCode:
        archive.seek(0)
        data = archive.read()
        await asyncio.sleep(self.times.unpack_s)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadArchive(f"the archive's SHA-256 is not {sha256}", entry="")
        if len(data) > limits.size_bytes:
            raise BadArchive(f"{len(data)} bytes are over {limits.size_bytes}", entry="")
        self.unpacked[sha256] = len(data)
        return UnpackedCode(sha256=sha256, size_bytes=len(data))

    async def create(self, spec: SandboxSpec) -> Sandbox:
        missing = self._watchdog.missing(self._now())
        if missing:
            raise SandboxFault(missing, definite=True)
        if spec.code not in self.unpacked:
            raise CodeMissing(spec.code)
        await asyncio.sleep(self.times.create_s)
        sandbox = MemorySandbox(self, spec)
        self.sandboxes[spec.sandbox] = sandbox
        return sandbox
