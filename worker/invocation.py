"""One invocation on one sandbox, from the event's hand-over until nothing of it runs any more. Reads top to bottom.

Owns the order of things: result, then reset or the runtime's next ``next``, then END and REPORT, then the end. Refuses
to know permits, leases and streams: ``Reply`` takes the result to whoever asked, ``feed`` tells the core.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from worker import failures
from worker import messages as m
from worker.failures import Failure
from worker.initialisation import Init, InitOutcome, initialise
from worker.platform_lines import Lines, Report
from worker.runtime_api.answers import Event
from worker.runtime_process import (
    AskedNext,
    Doomed,
    Ended,
    Failed,
    Gone,
    InitFailed,
    Oversized,
    Responded,
    RuntimeProcess,
    StreamSink,
    TimeUp,
)
from worker.sandbox.driver import SandboxFault
from worker.timing import Timing

_log = structlog.get_logger(__name__)

_ORDINARY = frozenset({"success", "error"})     # error: the handler's own exception


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationOrder:
    """What a frontend asked for. ``invocation`` may be "ID#n": the n-th start of request ID, after refused ones."""

    invocation: str
    account: str
    function: str
    version: str
    timeout_s: float
    payload: bytes
    invoked_arn: str
    trace_id: str = ""
    client_context: str = ""
    cognito_identity: str = ""
    log_tail: bool = False
    streaming: bool = False
    accepted_at: float = 0.0        # monotonic

    @property
    def request_id(self) -> str:
        return self.invocation.partition("#")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the client gets. ``reported``: the status in REPORT, where a handler's own exception counts as success."""

    body: bytes
    content_type: str = "application/json"
    function_error: bool = False
    status: str = "success"
    reported: str = "success"
    error_type: str = ""
    reset: bool = False             # the processes must go before anything else runs
    streamed: bool = False          # the body has gone out already


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    duration_ms: float
    billed_ms: int
    memory_peak_mb: int
    cold: bool
    phases: m.ColdPhases
    run_ms: float
    status: str
    error_type: str
    executed_version: str
    log_tail: bytes = b""


class Reply(Protocol):
    """The way back to one invocation's frontend. Never blocks: a slow frontend is the stream's business."""

    def respond(self, body: bytes, *, content_type: str, function_error: bool) -> None: ...

    def chunk(self, data: bytes) -> int:
        """A piece of a streamed response. Returns how many bytes wait to be sent."""
        ...

    def finish_stream(self) -> None: ...

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Calls back once, when few bytes wait."""
        ...

    def result(self, result: Result) -> None: ...


@dataclass(slots=True)
class Environment:
    """What outlives an invocation on its sandbox."""

    process: RuntimeProcess
    lines: Lines
    timing: Timing
    memory_mb: int
    function: m.FunctionId
    runs: int = 0
    init: Init | None = None        # of the init phase; set aside for the first invocation
    phases: m.ColdPhases = field(default_factory=m.ColdPhases)
    peak_mb: int = 0


class _Sink(StreamSink):
    """Passes a streamed result on and holds the runtime back when the frontend is slow."""

    def __init__(self, process: RuntimeProcess, reply: Reply) -> None:
        self._process = process
        self._reply = reply
        self.used = False

    def chunk(self, data: bytes) -> None:
        self.used = True
        if self._reply.chunk(data) > 1024 * 1024:
            self._process.session.pause(paused=True)
            self._reply.when_drained(lambda: self._process.session.pause(paused=False))


async def invoke(
    env: Environment, order: InvocationOrder, reply: Reply, feed: Callable[[m.Event], None]
) -> None:
    """Runs it. Every way out feeds ResultOut, then InvocationEnded; a failing driver is fed as SandboxBroken.

    Raises SandboxFault, without InvocationEnded, where what runs can be neither killed nor destroyed.
    """
    clock, process, output = env.timing.clock, env.process, env.process.output
    sandbox, cause = process.sandbox.spec.sandbox, order.invocation
    first, env.runs = env.runs == 0, env.runs + 1
    init, env.init = env.init, None
    output.begin(keep_tail=first)
    output.say(env.lines.start(clock.wall(), order.request_id))
    began = clock.monotonic()
    sink = process.sink = _Sink(process, reply)
    try:
        outcome = await _run(env, order, init, sink, began)
    except SandboxFault as fault:
        outcome = _platform_failure(order, fault)
    ran_s = _capped(clock.monotonic() - began, order, outcome)
    # Init counts, and is billed, where it succeeded before the first invocation.
    init_ms = init.duration_ms if init is not None and init.outcome is InitOutcome.READY else None

    if not outcome.streamed:
        reply.respond(outcome.body, content_type=outcome.content_type, function_error=outcome.function_error)
    else:
        reply.finish_stream()
    early = not order.log_tail  # a tail needs what is logged until the end; the payload never waits for it
    if early:
        reply.result(_result(env, order, outcome, ran_s, init_ms, cold=first))
    feed(m.ResultOut(sandbox=sandbox, invocation=order.invocation, cause=cause))

    outcome = await _end(env, order, outcome, began, feed)
    ran_s = _capped(clock.monotonic() - began, order, outcome)
    process.settle_output()
    output.finish()
    env.peak_mb = await _peak_mb(env)
    report = Report(
        request_id=order.request_id, duration_ms=ran_s * 1000, memory_peak_mb=env.peak_mb, init_ms=init_ms,
        status=outcome.reported, error_type=outcome.error_type,
    )
    ended = m.InvocationEnded(sandbox=sandbox, invocation=order.invocation, cause=cause)
    if early:   # a permit, and perhaps a request, wait for the end: for its lines nobody does
        feed(ended)
    output.say(env.lines.end(order.request_id))
    output.say(env.lines.report(clock.wall(), report))
    if not early:
        reply.result(_result(env, order, outcome, ran_s, init_ms, cold=first, tail=output.tail()))
        feed(ended)
    _tell(env, order, outcome, ran_s, began, cold=first)


async def _run(
    env: Environment, order: InvocationOrder, init: Init | None, sink: _Sink, began: float
) -> Outcome:
    """From the event's hand-over to its result."""
    process, clock = env.process, env.timing.clock
    if init is not None and init.failure_body is not None and not process.up:
        # The init that this invocation caused failed in the function's own words: that is its result.
        return Outcome(
            body=init.failure_body, function_error=True, status="error", reported="error", error_type=init.error_type,
            reset=True,
        )
    if not process.up:
        failed = await _suppressed_init(env, order)
        if failed is not None:
            return failed
    left_s = began + order.timeout_s - clock.monotonic()
    event = Event(
        request_id=order.request_id, deadline_ms=int((clock.wall() + left_s) * 1000), invoked_arn=order.invoked_arn,
        trace_id=order.trace_id, client_context=order.client_context, cognito_identity=order.cognito_identity,
        body=order.payload,
    )
    if not process.deliver(event, streaming=order.streaming):
        return await _died(env, order)
    match await process.hear(left_s):
        case Responded(body=body, content_type=content_type):
            return Outcome(body=body, content_type=content_type, streamed=sink.used)
        case Failed(error_type=error_type, body=body):
            return Outcome(
                body=body or failures.truncated(order.request_id).payload(), function_error=True, status="error",
                error_type=error_type, streamed=sink.used,
            )
        case Oversized():
            return Outcome(
                body=failures.TOO_LARGE, function_error=True, status="error", error_type=failures.TOO_LARGE_TYPE,
                streamed=sink.used,
            )
        case TimeUp():
            return _failed(failures.timed_out(order.request_id, order.timeout_s), streamed=sink.used)
        case Ended(ending=ending):
            return _failed(failures.exited(order.request_id, ending), streamed=sink.used)
        case Gone(message=message):
            return _failed(failures.platform(order.request_id, message), streamed=sink.used)
        case Doomed() | AskedNext() | InitFailed() as signal:
            # What runs is never killed by an order to destroy, and the Runtime API refuses the other two here.
            raise AssertionError(f"{signal} while {order.invocation} runs")


async def _suppressed_init(env: Environment, order: InvocationOrder) -> Outcome | None:
    """Init inside the invocation, under the function's timeout: after a failed init, or after a reset."""
    init = await initialise(env.process, order.timeout_s)
    assert init is not None, "a sandbox is destroyed only when nothing runs on it"
    env.process.output.say(env.lines.init_report(
        env.timing.clock.wall(), duration_ms=init.duration_ms, phase="invoke", status=init.status,
        error_type=init.error_type,
    ))
    match init.outcome:
        case InitOutcome.READY:
            await env.process.sandbox.limit_cpu(boosted=False)
            return None
        case InitOutcome.TIMEOUT:
            return _failed(failures.timed_out(order.request_id, order.timeout_s))
        case InitOutcome.EXITED:
            assert init.ending is not None, "an exit has an ending"
            return _failed(failures.exited(order.request_id, init.ending))
        case InitOutcome.ERROR:
            body = init.failure_body or b""
            return Outcome(
                body=body, function_error=True, status="error", reported="error", error_type=init.error_type, reset=True
            )
        case InitOutcome.NO_ENTRYPOINT:
            return _failed(failures.invalid_entrypoint(order.request_id, init.message))


async def _died(env: Environment, order: InvocationOrder) -> Outcome:
    """The process left between its last answer and this event."""
    match await env.process.hear(1.0):
        case Ended(ending=ending):
            return _failed(failures.exited(order.request_id, ending))
        case Gone(message=message):
            return _failed(failures.platform(order.request_id, message))
        case _:
            return _failed(failures.platform(order.request_id, "the runtime no longer asks for events"))


async def _end(
    env: Environment, order: InvocationOrder, outcome: Outcome, began: float, feed: Callable[[m.Event], None]
) -> Outcome:
    """Until nothing of the invocation runs: the runtime asks again, or its processes are killed.

    Raises SandboxFault where nobody can say so: then it counts as running until this process ends (invariant 1).
    """
    process, clock = env.process, env.timing.clock
    sandbox = process.sandbox.spec.sandbox
    if not outcome.reset:
        match await process.hear(max(0.0, began + order.timeout_s - clock.monotonic())):
            case AskedNext():
                return outcome
            case TimeUp():
                outcome = _late(outcome, failures.timed_out(order.request_id, order.timeout_s))
            case Ended(ending=ending):
                outcome = _late(outcome, failures.exited(order.request_id, ending))
            case Gone(message=message):
                outcome = _late(outcome, failures.platform(order.request_id, message))
            case signal:
                outcome = _late(outcome, failures.platform(order.request_id, f"{type(signal).__name__} after the end"))
    feed(m.ResetBegun(sandbox=sandbox, cause=order.invocation))
    try:
        await process.kill()
    except SandboxFault as fault:
        feed(m.SandboxBroken(sandbox=sandbox, reason=fault.message, cause=order.invocation))
        # The end frees a permit (counting, rule 3): it waits until the whole sandbox was seen gone. Where that fails
        # too, this raises and no end is ever told; the permit is free when this worker is evicted.
        await process.sandbox.destroy()
    return outcome


def _late(outcome: Outcome, failure: Failure) -> Outcome:
    """A failure after the result: the client keeps what it has, the report tells."""
    return Outcome(
        body=outcome.body, content_type=outcome.content_type, function_error=outcome.function_error,
        status=outcome.status, reported=failure.status, error_type=failure.error_type, reset=True,
    )


def _failed(failure: Failure, *, streamed: bool = False) -> Outcome:
    return Outcome(
        body=failure.payload(), function_error=True, status=failure.status, reported=failure.status,
        error_type=failure.error_type, reset=True, streamed=streamed,
    )


def _platform_failure(order: InvocationOrder, fault: SandboxFault) -> Outcome:
    return _failed(failures.platform(order.request_id, fault.message))


def _capped(seconds: float, order: InvocationOrder, outcome: Outcome) -> float:
    """A timeout is noticed a moment after it passed: nobody is billed for our moment."""
    return min(seconds, order.timeout_s) if outcome.reported == "timeout" else seconds


async def _peak_mb(env: Environment) -> int:
    try:
        return max(env.peak_mb, await env.process.sandbox.memory_peak_mb())
    except SandboxFault:
        return env.peak_mb


def _result(
    env: Environment, order: InvocationOrder, outcome: Outcome, ran_s: float, init_ms: float | None, *, cold: bool,
    tail: bytes = b"",
) -> Result:
    report = Report(request_id="", duration_ms=ran_s * 1000, memory_peak_mb=0, init_ms=init_ms)
    return Result(
        duration_ms=ran_s * 1000, billed_ms=report.billed_ms, memory_peak_mb=env.peak_mb, cold=cold,
        phases=env.phases if cold else m.ColdPhases(), run_ms=ran_s * 1000, status=outcome.status,
        error_type=outcome.error_type, executed_version=order.version, log_tail=tail,
    )


def _tell(
    env: Environment, order: InvocationOrder, outcome: Outcome, ran_s: float, began: float, *, cold: bool
) -> None:
    """The worker's own line: of what did not simply run. The canonical one, of each invocation, is the frontend's."""
    if outcome.status in _ORDINARY and outcome.reported in _ORDINARY:
        return
    phases: dict[str, float] = {}
    if cold:
        known = env.phases
        phases = {
            "code": round(known.code_ms, 2), "sandbox": round(known.sandbox_ms, 2),
            "runtime": round(known.runtime_ms, 2), "init": round(known.init_ms, 2), "run": round(ran_s * 1000, 2),
        }
    _log.info(
        "invocation", cause=order.invocation, account=order.account, function=order.function,
        sandbox=env.process.sandbox.spec.sandbox, cold=cold, queued_ms=round((began - order.accepted_at) * 1000, 3),
        ran_ms=round(ran_s * 1000, 3), outcome=outcome.status, error_type=outcome.error_type, phases=phases,
    )
