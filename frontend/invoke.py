"""One synchronous invoke, from top to bottom: permit, reservation, start, answer.

Owns the order of the steps, the one retry of what certainly never ran, and the canonical log line. Refuses to know how
permits are had (core.py), where sandboxes are (the managers) and what a function does.
"""

import asyncio
from dataclasses import dataclass

import structlog

from chassis.clock import Clock
from frontend.admission import Admission
from frontend.api.ports import InvokeAnswer, InvokeRequest, Unavailable
from frontend.linger import Held, Lingering
from frontend.peers.flight import Answered, Flight, NotStarted
from frontend.peers.workers import Workers
from frontend.permits import Block
from frontend.phases import Phases
from frontend.reserving import Reserving
from frontend.retries import RetryBudget
from protos import common_pb2, worker_pb2

_log = structlog.get_logger(__name__)

# After an invocation with one of these the sandbox serves the next one; after others it is being reset or replaced.
_REUSABLE = frozenset({"success", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how long a request waits for what, in seconds; its own deadline comes first."""

    permit_s: float = 3.0      # without a leader of the ledger, or while others hold everything
    answer_s: float = 15.0     # beyond timeout and deadline: past it something is wrong at the worker


class FunctionInvoker:
    """``frontend.api.ports.Invoker``."""

    def __init__(
        self,
        *,
        clock: Clock,
        node: str,
        admission: Admission,
        reserving: Reserving,
        workers: Workers,
        lingering: Lingering,
        patience: Patience,
    ) -> None:
        self._clock = clock
        self._node = node
        self._admission = admission
        self._reserving = reserving
        self._workers = workers
        self._lingering = lingering
        self._patience = patience
        self._budget = RetryBudget()

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        """Runs it. Raises Throttled, Unavailable, or Fault, whose ``definite`` says whether it may have run."""
        phases = Phases(self._clock)
        self._budget.earn()
        outcome = "cancelled"
        try:
            answered = await self._attempts(request, phases)
            outcome = answered.result.status or "success"
        except Exception as error:
            outcome = type(error).__name__.lower()
            raise
        finally:
            self._tell(request, phases, outcome)
        result = answered.result
        return InvokeAnswer(
            payload=answered.payload,
            function_error=answered.function_error or None,
            executed_version=result.executed_version or request.function.version,
            log_tail=result.log_tail if request.log_tail else None,
            phases=phases.shown(),
        )

    async def _attempts(self, request: InvokeRequest, phases: Phases) -> Answered:
        """A start that was refused for certain is tried once more, with a fresh permit and a fresh reservation."""
        outcome = await self._attempt(request, phases, request.request_id, fresh=False)
        if isinstance(outcome, NotStarted) and outcome.reason != "SHED" and self._budget.take():
            _log.info("start refused", cause=request.request_id, reason=outcome.reason, detail=outcome.detail)
            # The refusal barred the first id at that worker for good: "#2" is the same request's second start.
            outcome = await self._attempt(request, phases, f"{request.request_id}#2", fresh=True)
        if isinstance(outcome, Answered):
            return outcome
        raise Unavailable(
            f"The function was not started: {outcome.reason.lower()} ({outcome.detail}).",
            {"reason": outcome.reason, "remedy": "try again; nothing was started"},
        )

    async def _attempt(
        self, request: InvokeRequest, phases: Phases, invocation: str, *, fresh: bool
    ) -> Answered | NotStarted:
        record = request.function
        block = self._admission.try_permit(request.account, record.name)
        if block is None:
            deadline = min(request.deadline, self._clock.monotonic() + self._patience.permit_s)
            block = await self._admission.permit(
                request.account, record.name, cause=request.request_id, deadline=deadline
            )
        phases.permit()
        try:
            key = (record.account, record.name, record.version, record.revision)
            held = None if fresh else self._lingering.take(key)
            if held is None:
                got = await self._reserving.reserve(request, invocation, phases)
                if isinstance(got, Answered):
                    self._admission.give(block, record.name)
                    return got  # the sandbox could not be made, and the function's caller is told as by the function
                held = got
        except BaseException:
            self._admission.give(block, record.name)
            raise
        phases.reserved()
        return await self._run(request, phases, invocation, block, held)

    async def _run(
        self, request: InvokeRequest, phases: Phases, invocation: str, block: Block, held: Held
    ) -> Answered | NotStarted:
        """From here on only the worker's word frees the permit (rule 3)."""
        name = request.function.name

        def over(flight: Flight) -> None:
            self._admission.give(block, name)
            result = flight.result
            if flight.ended and result is not None and result.status in _REUSABLE:
                self._lingering.keep(held)
            else:
                self._lingering.let_go(held)

        now = self._clock.monotonic()
        flight = Flight(
            invocation, held.reservation, self._start(request, block, held, now), request.payload, over=over,
            answer_by=request.deadline + request.function.configuration.timeout_s + self._patience.answer_s,
        )
        self._workers.start(flight)
        try:
            outcome = await flight.answer
        except asyncio.CancelledError:
            self._workers.cancel(flight)
            raise
        if isinstance(outcome, Answered):
            phases.answered(outcome.result)
        return outcome

    def _start(
        self, request: InvokeRequest, block: Block, held: Held, now: float
    ) -> worker_pb2.InvokeFrame.Start:
        record = request.function
        return worker_pb2.InvokeFrame.Start(
            reservation=held.reservation,
            block=self._block_id(block),
            generation=block.generation,
            function=common_pb2.FunctionId(
                account=record.account, function=record.name, version=record.version, revision=record.revision
            ),
            deadline_s=max(0.0, request.deadline - now),   # 0: the worker sheds it
            invoked_arn=request.invoked_arn,
            trace_id=request.trace_id,
            client_context=request.client_context or "",
            log_tail=request.log_tail,
        )

    def _block_id(self, block: Block) -> common_pb2.BlockId:
        if not isinstance(block.wire, common_pb2.BlockId):
            pool = block.pool
            block.wire = common_pb2.BlockId(
                session=common_pb2.Session(frontend=self._node, epoch=block.epoch),
                pool=common_pb2.Pool(
                    account=pool.account, function=pool.function, qualifier=pool.qualifier,
                    kind=common_pb2.Pool.Kind.ValueType(int(pool.kind)),
                ),
            )
        return block.wire

    def _tell(self, request: InvokeRequest, phases: Phases, outcome: str) -> None:
        """The canonical line of one invocation (house style: logs)."""
        _log.info(
            "invocation", cause=request.request_id, account=request.account, function=request.function.name,
            cold=phases.cold, queued_ms=phases.queued_ms(), ran_ms=round(phases.ran_ms, 3), outcome=outcome,
            phases=phases.shown(),
        )

