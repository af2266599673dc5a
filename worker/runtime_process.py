"""The runtime process of one sandbox: started, heard, killed, started again.

Owns what a process tells in order: it asked for an event, it answered, it failed, it ended. Refuses to know invocations
and why it is killed. A sandbox outlives its processes: after a kill the next one finds /tmp as it was.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from chassis.clock import Clock
from chassis.process import Tasks
from worker.function_output import FunctionOutput
from worker.runtime_api.answers import Event
from worker.runtime_api.session import RuntimeSession
from worker.sandbox.driver import DriverEnded, Output, ProcessExit, Sandbox, SandboxGone

FLOOD_PAUSE_S = 0.01
SETTLE_CHUNKS = 32

# ---------------------------------------------------------------- what is heard


@dataclass(frozen=True, slots=True)
class AskedNext:
    at: float


@dataclass(frozen=True, slots=True)
class Responded:
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Oversized:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    error_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class InitFailed:
    error_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone."""

    ending: ProcessExit


@dataclass(frozen=True, slots=True)
class Gone:
    """The whole sandbox went, by itself: nothing of it runs any more, and nothing of it will."""

    message: str


@dataclass(frozen=True, slots=True)
class TimeUp:
    pass


@dataclass(frozen=True, slots=True)
class Doomed:
    """The sandbox is about to be destroyed."""


Signal = AskedNext | Responded | Oversized | Failed | InitFailed | Ended | Gone | TimeUp | Doomed


class StreamSink:
    """Where a streamed result goes while it arrives: replaced per invocation."""

    def chunk(self, data: bytes) -> None:
        raise AssertionError("a streamed piece that nobody asked for")


class RuntimeProcess:
    """Implements ``RuntimeEvents``. One task at a time calls ``hear``."""

    def __init__(self, *, sandbox: Sandbox, output: FunctionOutput, clock: Clock, tasks: Tasks) -> None:
        self.session = RuntimeSession(self)
        self.sandbox = sandbox
        self.output = output
        self.up = False                     # a process runs that asked for an event
        self.started_at = 0.0
        self.loaded_at: float | None = None  # the runtime said that it is about to load the function
        self.sink = StreamSink()
        self._clock = clock
        self._tasks = tasks
        self._signals: deque[Signal] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._number = 0                    # of the process: what an older one still says is not heard
        self._readers: list[asyncio.Task[None]] = []
        self._chunks: Output | None = None  # of the newest process
        self._dirty = False                 # a process was started and not killed since

    def now(self) -> float:
        return self._clock.monotonic()

    async def start(self) -> None:
        """Starts a process. Raises InvalidEntrypoint, SandboxFault, SandboxGone."""
        if self._dirty:
            await self.kill()  # it ended by itself: what it left behind goes as well
        self._number += 1
        self._signals.clear()
        self.session.restart()
        self.loaded_at = None
        self.started_at = self._clock.monotonic()
        self._chunks = chunks = await self.sandbox.start()
        self._dirty = True
        self._readers = [
            self._tasks.start(self._read(chunks), name=f"output of {self.sandbox.spec.sandbox}"),
            self._tasks.start(self._watch(self._number), name=f"end of {self.sandbox.spec.sandbox}"),
        ]

    async def kill(self) -> None:
        """Ends every process of the sandbox, whatever state they are in. Raises SandboxFault."""
        self.up = False
        self._number += 1
        await self.sandbox.kill()
        self._dirty = False
        if self._readers:
            # Their ends follow from the kill: output is whole once they have returned.
            await asyncio.wait(self._readers, timeout=1.0)
        self.session.restart()
        self._signals.clear()

    async def hear(self, timeout_s: float | None) -> Signal:
        """The next signal; TimeUp after ``timeout_s`` seconds."""
        if self._signals:
            return self._signals.popleft()
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        # A timer that wakes the waiter costs a third of asyncio.timeout, twice in each invocation.
        timer = loop.call_later(timeout_s, _settle, waiting) if timeout_s is not None else None
        try:
            await waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()
        return self._signals.popleft() if self._signals else TimeUp()

    def deliver(self, event: Event, *, streaming: bool) -> bool:
        """Hands an event out; False when the process is no longer there to take it."""
        if not self.session.ready:
            return False
        self._signals.clear()
        self.session.deliver(event, streaming=streaming)
        return True

    def doom(self) -> None:
        self._put(Doomed())

    def settle_output(self) -> None:
        """Reads what was printed before: a pipe is read in its own time, the Runtime API in another.

        A pipe holds 64 KiB, so that the chunks are few; what prints on and on in the background is not waited for.
        """
        for _ in range(SETTLE_CHUNKS):
            chunk = self._chunks.read_now() if self._chunks is not None else b""
            if not chunk:
                return
            self.output.feed(chunk)

    # ------------------------------------------------------------ RuntimeEvents

    def loaded(self) -> None:
        if self.loaded_at is None:
            self.loaded_at = self._clock.monotonic()

    def asked_next(self) -> None:
        self._put(AskedNext(self._clock.monotonic()))

    def responded(self, body: bytes, content_type: str) -> None:
        self._put(Responded(body, content_type))

    def streamed(self, chunk: bytes) -> None:
        self.sink.chunk(chunk)

    def oversized(self) -> None:
        self._put(Oversized())

    def failed(self, error_type: str, body: bytes) -> None:
        self._put(Failed(error_type, body))

    def init_failed(self, error_type: str, body: bytes) -> None:
        self._put(InitFailed(error_type, body))

    # ------------------------------------------------------------ small

    def _put(self, signal: Signal) -> None:
        self._signals.append(signal)
        if self._waiting is not None:
            _settle(self._waiting)

    async def _read(self, chunks: Output) -> None:
        async for chunk in chunks:
            self.output.feed(chunk)
            # A process that prints without end must not keep the loop to itself, nor (past its budget) a whole core.
            await asyncio.sleep(FLOOD_PAUSE_S if self.output.exhausted else 0)

    async def _watch(self, number: int) -> None:
        signal: Signal
        try:
            signal = Ended(await self.sandbox.exited())
        except DriverEnded:
            return  # it may run on: nobody is told that it ended
        except SandboxGone as gone:
            signal = Gone(gone.message)
        if number == self._number:
            self.up = False
            self._put(signal)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
