"""One synchronous invoke, from top to bottom: permit, reservation, start, answer.

Owns the order of the steps, the one retry of what certainly never ran, and the canonical log line. Refuses to know how
permits are had (core.py), where sandboxes are (the managers) and what a function does.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from chassis.clock import Clock
from frontend.admission import Admission
from frontend.api.body import Disconnected
from frontend.api.ports import Deleted, InvokeAnswer, InvokeRequest, Unavailable
from frontend.counts import InvokeCounts
from frontend.departure import WhileThere
from frontend.functions import FunctionRecord
from frontend.linger import Held, Lingering
from frontend.peers.flight import Answered, Flight, NotStarted
from frontend.peers.workers import Workers
from frontend.permits import Block
from frontend.phases import Phases
from frontend.reserving import Reserving, sandbox_key
from frontend.retries import RetryBudget, used_up
from protos import common_pb2, worker_pb2

_log = structlog.get_logger(__name__)

# After an invocation with one of these the sandbox serves the next one; after others it is being reset or replaced.
_REUSABLE = frozenset({"success", "error"})

# The worker's word that this frontend's session is lost, which it may not have heard itself yet.
FENCED = "FENCED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how long a request waits for what, in seconds; its own deadline comes first."""

    permit_s: float = 30.0     # without a leader of the ledger, or while others hold everything
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
        newest: Callable[[FunctionRecord], FunctionRecord | None],
        budget: RetryBudget,
        patience: Patience,
    ) -> None:
        self._clock = clock
        self._node = node
        self._admission = admission
        self._reserving = reserving
        self._workers = workers
        self._lingering = lingering
        self._newest = newest
        self._patience = patience
        self.counts = InvokeCounts()
        self.budget = budget

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        """Raises Throttled, Unavailable, Deleted, or Fault, whose ``definite`` says whether it may have run."""
        phases = Phases(self._clock)
        self.budget.earn()
        outcome = "cancelled"
        try:
            answered = await self._attempts(request, phases)
            outcome = answered.result.status or "success"
            self.counts.answered(outcome)
            self.counts.took(phases)
        except BaseException as error:
            if isinstance(error, Exception):
                outcome = type(error).__name__.lower()
            self.counts.failed(error)
            raise
        finally:
            # After the answer has gone out: nobody waits for a log line.
            asyncio.get_running_loop().call_soon(self._tell, request, phases, outcome)
        result = answered.result
        return InvokeAnswer(
            payload=answered.payload,
            content_type=answered.content_type,
            function_error=answered.function_error or None,
            executed_version=result.executed_version or request.function.version,
            log_tail=result.log_tail if request.log_tail else None,
            phases=phases.shown(),
        )

    async def _attempts(self, request: InvokeRequest, phases: Phases) -> Answered:
        """A start that was refused for certain is tried once more, with a fresh permit and a fresh reservation."""
        outcome = await self._attempt(request, phases, request.request_id, fresh=False)
        detail: Mapping[str, object] = {"remedy": "try again; nothing was started"}
        if isinstance(outcome, NotStarted) and outcome.reason != "SHED":
            if self.budget.take():
                _log.info("start refused", cause=request.request_id, reason=outcome.reason, detail=outcome.detail)
                # The refusal barred the first id at that worker for good: "#2" is the same request's second start.
                outcome = await self._attempt(request, phases, f"{request.request_id}#2", fresh=True)
            else:
                detail = used_up()
        if isinstance(outcome, Answered):
            return outcome
        raise Unavailable(
            f"The function was not started: {outcome.reason.lower()} ({outcome.detail}).",
            {"reason": outcome.reason, **detail},
        )

    async def _attempt(
        self, request: InvokeRequest, phases: Phases, invocation: str, *, fresh: bool
    ) -> Answered | NotStarted:
        record = request.function
        block = self._admission.try_permit(request.account, record.name)
        if block is not None:
            phases.permit()
            if not fresh and self._newest(record) is record:
                held = self._lingering.take(sandbox_key(record))
                if held is not None:
                    phases.reserved(held.reservation)
                    return await self._run(request, phases, invocation, block, held)
        there = WhileThere(request.gone)
        async with there:
            block, request, got = await self._wait(request, phases, invocation, block, fresh=fresh)
        if isinstance(got, Answered):
            return got  # the sandbox could not be made, and the function's caller is told as by the function
        if there.left:  # in the very turn in which it was served
            self._admission.give(block, record.name)
            self._lingering.let_go(got)
            raise Disconnected
        phases.reserved(got.reservation)
        return await self._run(request, phases, invocation, block, got)

    async def _wait(
        self, request: InvokeRequest, phases: Phases, invocation: str, block: Block | None, *, fresh: bool
    ) -> tuple[Block, InvokeRequest, Held | Answered]:
        """For a permit, unless one is here, and for a sandbox. Who is cancelled, or refused, leaves nothing taken."""
        name = request.function.name
        if block is None:
            deadline = min(request.deadline, self._clock.monotonic() + self._patience.permit_s)
            block = await self._admission.permit(request.account, name, cause=request.request_id, deadline=deadline)
            phases.permit()
        try:
            request, got = await self._sandbox(request, phases, invocation, fresh=fresh)
        except BaseException:
            self._admission.give(block, name)
            raise
        if isinstance(got, Answered):
            self._admission.give(block, name)
        return block, request, got

    async def _sandbox(
        self, request: InvokeRequest, phases: Phases, invocation: str, *, fresh: bool
    ) -> tuple[InvokeRequest, Held | Answered]:
        """A sandbox of the revision that this frontend serves now: an update may come while a request waits.

        Between this frontend's acknowledgement of a revision and its next Start of an older one lies no await.
        """
        while True:
            request = self._renewed(request)
            record = request.function
            got: Held | Answered | None = None
            if not fresh:
                key = sandbox_key(record)
                got = self._lingering.take(key) or await self._lingering.soon(key)
            got = got or await self._reserving.reserve(request, invocation, phases)
            if got is not None and self._newest(record) is record:
                return request, got
            if isinstance(got, Held):
                self._lingering.let_go(got)

    def _renewed(self, request: InvokeRequest) -> InvokeRequest:
        """The request for the newest revision, with that one's timeout. Raises Deleted."""
        record = request.function
        newest = self._newest(record)
        if newest is None:
            raise Deleted(record.name)
        if newest is record:
            return request
        longer_s = newest.configuration.timeout_s - record.configuration.timeout_s
        return replace(request, function=newest, deadline=request.deadline + longer_s)

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
            if not flight.ended and outcome.result.status in _REUSABLE:
                self._lingering.ends(held)
        elif outcome.reason == FENCED:
            self._admission.fenced(block)
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
            worker=phases.worker, sandbox=phases.sandbox, phases=phases.shown(),
        )

