"""The agent of one host: performs what the core orders, and tells the core what happened.

Owns the joints: sandbox lives by id, invocations under way, streams and links by number. Decides nothing (``core``),
parses nothing (edges), and holds no privileges (the driver's spawner does).
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

import structlog

from chassis.clock import Clock
from chassis.machine import Driver, Trace
from chassis.process import Tasks
from protos import worker_pb2
from worker import messages as m
from worker.core import WorkerCore
from worker.invocation import InvocationOrder
from worker.invoke_stream import InvokeStream, StreamReply
from worker.logs import FunctionLogs
from worker.recording import Recording
from worker.sandbox.driver import SandboxDriver
from worker.sandbox_life import Code, SandboxLife
from worker.timing import Timing
from worker.translation import start as start_event

_Frame = worker_pb2.InvokeFrame
_log = structlog.get_logger(__name__)


class Counting(Protocol):
    """The streams to the ledger's members."""

    def acknowledge(self, effect: m.AcknowledgeFence) -> None: ...

    def report_end(self, effect: m.ReportEnd) -> None: ...

    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Under:
    """An invocation under way."""

    order: InvocationOrder
    reply: StreamReply
    frontend: str


class Agent:
    """``connect`` gives it what it speaks to; then ``feed`` may be called."""

    def __init__(
        self, core: WorkerCore, *, driver: SandboxDriver, logs: FunctionLogs, timing: Timing, rng: random.Random,
        clock: Clock, tasks: Tasks, log_bytes_per_invocation: int, end_process: Callable[[], None],
        trace: Trace | None = None, check: bool = False, parameters: Mapping[str, object] | None = None,
        observe: Callable[[m.Event, Sequence[m.Effect]], None] | None = None,
    ) -> None:
        """``parameters``: what the core was made of, for its trace."""
        self.core = core
        self.lives: dict[str, SandboxLife] = {}
        self.drained = asyncio.Event()
        self._driver = driver
        self._logs = logs
        self._timing = timing
        self._rng = rng
        self._clock = clock
        self._tasks = tasks
        self._log_bytes = log_bytes_per_invocation
        self._end_process = end_process
        self._under: dict[str, _Under] = {}
        self._asked: dict[tuple[int, str], _Under] = {}     # while the core decides
        self._streams: dict[int, InvokeStream] = {}
        self._recording = Recording(trace, clock) if trace is not None else None
        self._stream_of: dict[str, InvokeStream] = {}       # a frontend's newest
        self._managers: dict[int, Callable[[m.TellManager], None]] = {}
        self._code: Code | None = None
        self._counting: Counting | None = None
        self._load: Callable[[m.LoadChanged], None] = lambda _: None
        self._machine: Driver[m.Event, m.Effect] = Driver(
            core, clock=clock, perform=self._perform, trace=trace, check=check, observe=observe, parameters=parameters
        )
        self.feed = self._machine.feed

    def connect(self, *, code: Code, counting: Counting, load: Callable[[m.LoadChanged], None]) -> None:
        self._code, self._counting, self._load = code, counting, load

    # ------------------------------------------------------------ managers

    def manager_opened(self, link: int, tell: Callable[[m.TellManager], None]) -> None:
        self._managers[link] = tell

    def manager_closed(self, link: int) -> None:
        del self._managers[link]
        self.feed(m.ManagerGone(link=link))

    # ------------------------------------------------------------ frontends

    def stream_opened(self, stream: InvokeStream) -> None:
        self._streams[stream.number] = stream

    def stream_closed(self, stream: InvokeStream) -> None:
        del self._streams[stream.number]
        if self._stream_of.get(stream.frontend) is stream:
            del self._stream_of[stream.frontend]
        stream.close()

    def hello(self, stream: InvokeStream) -> list[str]:
        older = self._stream_of.get(stream.frontend)
        self._stream_of[stream.frontend] = stream
        if older is not None and older is not stream:
            older.close()
            older.cut()
        return sorted(i for i, under in self._under.items() if under.frontend == stream.frontend)

    def start(
        self, stream: InvokeStream, invocation: str, start: worker_pb2.InvokeFrame.Start, payload: bytes
    ) -> None:
        now = self._clock.monotonic()
        life = self.lives.get(start.reservation.sandbox)
        order = InvocationOrder(
            invocation=invocation, account=start.function.account, function=start.function.function,
            version=start.function.version,
            timeout_s=min(float(life.order.settings.timeout_s), self.core.run_cap_s) if life else 0.0,
            payload=payload, invoked_arn=start.invoked_arn, trace_id=start.trace_id,
            client_context=start.client_context, cognito_identity=start.cognito_identity, log_tail=start.log_tail,
            streaming=start.streaming, accepted_at=now,
        )
        recording = self._recording
        reply = StreamReply(stream, invocation) if recording is None else recording.reply(stream, invocation, payload)
        key = (stream.number, invocation)
        self._asked[key] = _Under(order, reply, stream.frontend)
        self.feed(start_event(invocation, start, stream=stream.number, now=now))
        self._asked.pop(key, None)

    def withdraw(self, stream: InvokeStream, invocation: str, reason: m.Refusal, detail: str) -> None:
        self.feed(m.StartWithdrawn(
            stream=stream.number, invocation=invocation, reason=reason, detail=detail, cause=invocation
        ))

    # ------------------------------------------------------------ effects

    def _perform(self, effect: m.Effect) -> None:  # noqa: C901  # one case per effect
        assert self._counting is not None, "connect() comes first"
        match effect:
            case m.StartInvocation():
                under = self._asked.pop((effect.stream, effect.invocation))
                self._under[effect.invocation] = under
                self._tasks.start(
                    self.lives[effect.sandbox].invoke(under.order, under.reply), name=f"invoke {effect.invocation}"
                )
            case m.RefuseStart():
                self._refuse(effect)
            case m.TellEnd():
                self._end(effect.invocation)
            case m.TellManager():
                tell = self._managers.get(effect.link)
                if tell is not None:
                    tell(effect)
            case m.BuildSandbox():
                self._build(effect)
            case m.DestroySandbox():
                life = self.lives[effect.sandbox]
                life.doom()     # in this turn: a build that fails in the next one says no more of it
                self._tasks.start(self._destroy(life, effect), name=f"destroy {effect.sandbox}")
            case m.AcknowledgeFence():
                self._counting.acknowledge(effect)
            case m.ReportEnd():
                self._counting.report_end(effect)
            case m.Authorise():
                self._driver.authorise(effect.until, effect.grace_s)
            case m.LoadChanged():
                self._load(effect)
            case m.LeaveCounting():
                self._counting.leave()
            case m.Drained():
                self.drained.set()
            case m.EndProcess():
                _log.error("this worker must end", reason=effect.reason)
                self._end_process()
            case _:
                assert_never(effect)

    def _refuse(self, effect: m.RefuseStart) -> None:
        stream = self._streams.get(effect.stream)
        if stream is None:
            return
        if (effect.stream, effect.invocation) in self._asked:
            stream.replies.pop(effect.invocation, None)
        reason = _Frame.NeverStarted.Reason.ValueType(effect.reason.value)
        stream.put(_Frame(
            invocation=effect.invocation, never_started=_Frame.NeverStarted(reason=reason, detail=effect.detail)
        ))
        _log.info(
            "start refused", cause=effect.invocation, reason=effect.reason.name, detail=effect.detail,
            frontend=stream.frontend,
        )

    def _end(self, invocation: str) -> None:
        """To the stream that started it, or to the frontend's newer one: its permit waits for this."""
        under = self._under.pop(invocation)
        if not under.reply.stream.closed:
            under.reply.end()
            return
        newer = self._stream_of.get(under.frontend)
        if newer is not None:
            newer.put(_Frame(invocation=invocation, end=_Frame.End()))

    def _build(self, effect: m.BuildSandbox) -> None:
        assert self._code is not None, "connect() comes first"
        life = SandboxLife(
            effect, driver=self._driver, code=self._code, logs=self._logs, timing=self._timing, rng=self._rng,
            tasks=self._tasks, feed=self.feed, log_bytes_per_invocation=self._log_bytes,
        )
        self.lives[effect.sandbox] = life
        self._tasks.start(self._live(life), name=f"build {effect.sandbox}")

    async def _live(self, life: SandboxLife) -> None:
        await life.build()
        if life.failed:
            del self.lives[life.order.sandbox]

    async def _destroy(self, life: SandboxLife, effect: m.DestroySandbox) -> None:
        await life.destroy()
        del self.lives[effect.sandbox]
        _log.info("sandbox gone", cause=effect.cause, sandbox=effect.sandbox, reason=effect.reason)
        self.feed(m.SandboxGone(sandbox=effect.sandbox, cause=effect.cause))
