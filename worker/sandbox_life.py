"""One sandbox's life: code, sandbox, init; then invocations one after the other, frozen between them; then the end.

Owns the order of a cold start and its measured phases, freezing, and destruction. Refuses to know why it is created or
destroyed: the core orders, ``feed`` tells it what happened.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from chassis.faults import Fault
from chassis.process import Tasks
from worker import messages as m
from worker.environment import environment, log_stream
from worker.function_output import FunctionOutput
from worker.initialisation import InitOutcome, initialise
from worker.invocation import Environment, InvocationOrder, Reply, invoke
from worker.logs import FunctionLogs
from worker.platform_lines import Lines
from worker.runtime_process import RuntimeProcess
from worker.sandbox.driver import BadArchive, CodeMissing, Sandbox, SandboxDriver, SandboxFault, SandboxSpec
from worker.timing import Timing

_log = structlog.get_logger(__name__)


class Code(Protocol):
    """Where archives come from."""

    async def ensure(self, ticket: m.Ticket) -> None:
        """Returns once the driver has the code unpacked. Raises Fault, SandboxFault."""
        ...


class SandboxLife:
    """Lives as long as its slot. ``build``, ``invoke`` and ``destroy`` run in tasks of the agent's."""

    def __init__(
        self, order: m.BuildSandbox, *, driver: SandboxDriver, code: Code, logs: FunctionLogs, timing: Timing,
        rng: random.Random, tasks: Tasks, feed: Callable[[m.Event], None], log_bytes_per_invocation: int,
    ) -> None:
        self.order = order
        self._driver = driver
        self._code = code
        self._timing = timing
        self._rng = rng
        self._tasks = tasks
        self._feed = feed
        self._env: Environment | None = None
        self._sandbox: Sandbox | None = None
        self._process: RuntimeProcess | None = None
        self._built = asyncio.Event()
        self._doomed = False
        self.failed = False         # no sandbox came of it
        self._freeze_timer: asyncio.TimerHandle | None = None
        self._freezing: asyncio.Task[None] | None = None
        clock = timing.clock
        self._stream = log_stream(order.function, order.settings, wall=clock.wall(), rng=rng)
        key = (order.function.account, order.function.function)

        def emit(text: str) -> None:
            logs.append(key, at_ms=int(clock.wall() * 1000), stream=self._stream, message=text)

        self._output = FunctionOutput(
            emit, budget_bytes=log_bytes_per_invocation, whole_records=order.settings.log_format == "JSON"
        )
        init_type = "on-demand" if order.on_demand else "provisioned-concurrency"
        self._lines = Lines(order.function, order.settings, init_type=init_type)

    # ------------------------------------------------------------ cold start

    async def build(self) -> None:
        try:
            await self._build()
        finally:
            self._built.set()

    async def _build(self) -> None:
        order, clock = self.order, self._timing.clock
        began = clock.monotonic()
        try:
            await self._code.ensure(order.ticket)
            fetched = clock.monotonic()
            process = await self._create()
        except BadArchive as fault:
            await self._fail("InvalidZipFileException", f"{fault.message} (entry {fault.entry!r})")
            return
        except (Fault, SandboxFault) as fault:
            await self._fail("Sandbox.CreateFailed", fault.message)
            return
        created = clock.monotonic()
        if self._doomed:
            return
        self._feed(m.SandboxBuilt(sandbox=order.sandbox, cause=order.cause))
        self._output.say(self._lines.init_start(clock.wall()))
        limit_s = self._timing.init_limit_s(on_demand=order.on_demand, timeout_s=order.settings.timeout_s)
        try:
            init = await initialise(process, limit_s)
        except SandboxFault as fault:
            self._broken(fault.message)
            return
        if init is None or self._doomed:
            return
        phases = m.ColdPhases(
            code_ms=(fetched - began) * 1000, sandbox_ms=(created - fetched) * 1000, runtime_ms=init.runtime_ms,
            init_ms=init.init_ms,
        )
        self._env = Environment(
            process=process, lines=self._lines, timing=self._timing, memory_mb=order.settings.memory_mb,
            function=order.function, init=init, phases=phases,
        )
        ready = init.outcome is InitOutcome.READY
        if not ready or not order.on_demand:
            process.settle_output()
            self._output.finish()
            self._output.say(self._lines.init_report(
                clock.wall(), duration_ms=init.duration_ms, phase="init", status=init.status,
                error_type=init.error_type,
            ))
        # Ready is told before the quota is set: the first event still waits for both (``invoke``).
        self._feed(m.InitDone(sandbox=order.sandbox, phases=phases, cause=order.cause))
        if ready:
            await self._guarded(process.sandbox.limit_cpu(boosted=False))
        self._freeze_later()

    async def _create(self) -> RuntimeProcess:
        order = self.order
        spec = SandboxSpec(
            sandbox=order.sandbox, runtime=order.settings.runtime, code=order.settings.code_sha256,
            memory_mb=order.settings.memory_mb, tmp_mb=order.settings.tmp_mb, handler=order.settings.handler,
            environment=environment(
                order.function, order.settings, stream=self._stream, on_demand=order.on_demand, rng=self._rng
            ),
        )
        try:
            sandbox = await self._driver.create(spec)
        except CodeMissing:  # evicted between the two steps
            await self._code.ensure(order.ticket)
            sandbox = await self._driver.create(spec)
        self._sandbox = sandbox
        process = RuntimeProcess(
            sandbox=sandbox, output=self._output, clock=self._timing.clock, tasks=self._tasks
        )
        await sandbox.serve(process.session.connection)
        self._process = process
        return process

    async def _fail(self, error_type: str, message: str) -> None:
        """Definite: whatever there is of the sandbox goes before it is said."""
        _log.warning("create failed", cause=self.order.cause, sandbox=self.order.sandbox, error_type=error_type,
                     message=message)
        if self._sandbox is not None:
            await self._sandbox.destroy()
        if not self._doomed:
            self.failed = True
            self._feed(m.BuildFailed(
                sandbox=self.order.sandbox, error_type=error_type, message=message, cause=self.order.cause
            ))

    # ------------------------------------------------------------ invocations

    async def invoke(self, order: InvocationOrder, reply: Reply) -> None:
        await self._built.wait()
        await self._thaw()
        env = self._env
        assert env is not None, f"{self.order.sandbox} was told ready without an environment"
        await invoke(env, order, reply, self._feed)
        self._freeze_later()

    def _freeze_later(self) -> None:
        if not self._doomed:
            loop = asyncio.get_running_loop()
            self._freeze_timer = loop.call_later(self._timing.freeze_after_s, self._freeze)

    def _freeze(self) -> None:
        self._freeze_timer = None
        if self._sandbox is not None and not self._doomed:
            self._freezing = self._tasks.start(
                self._guarded(self._sandbox.freeze()), name=f"freeze {self.order.sandbox}"
            )

    async def _thaw(self) -> None:
        if self._freeze_timer is not None:
            self._freeze_timer.cancel()
            self._freeze_timer = None
        if self._freezing is not None:
            await self._freezing
            self._freezing = None
            assert self._sandbox is not None, "only a sandbox is frozen"
            await self._guarded(self._sandbox.thaw())

    # ------------------------------------------------------------ the end

    def doom(self) -> None:
        """It will be destroyed: from now on only that is said of it. The core orders it only when nothing runs."""
        self._doomed = True
        if self._env is None and self._process is not None:
            self._process.doom()

    async def destroy(self) -> None:
        """Waits until nothing is left of what is doomed."""
        await self._built.wait()
        if self._freeze_timer is not None:
            self._freeze_timer.cancel()
        if self._sandbox is not None:
            await self._sandbox.destroy()

    async def _guarded(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await call
        except (SandboxFault, TimeoutError) as fault:
            self._broken(str(fault) or "it could not be frozen in time")

    def _broken(self, reason: str) -> None:
        if not self._doomed:
            _log.error("sandbox broken", sandbox=self.order.sandbox, reason=reason)
            self._feed(m.SandboxBroken(sandbox=self.order.sandbox, reason=reason, cause=self.order.cause))
