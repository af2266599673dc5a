"""Getting a reservation of a sandbox from the function's manager.

Owns which manager is asked, what its refusals mean for the client, and for how long a region in motion is given time to
settle. A reservation starts nothing, so that asking again is always safe.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Protocol

from chassis.clock import Clock
from chassis.faults import Fault
from frontend.api.invoke_operation import MARGIN_S
from frontend.api.ports import InvokeRequest, Throttled, Unavailable
from frontend.functions import FunctionRecord
from frontend.linger import FunctionKey, Held, Lender, Lingering
from frontend.peers.flight import Answered
from frontend.peers.managers import Manager, Managers
from frontend.phases import Phases
from frontend.retries import RetryBudget, used_up
from frontend.tickets import Tickets
from protos import common_pb2, worker_manager_pb2, worker_pb2

_Refused = worker_manager_pb2.ManagerReply.Refused

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 0.5
# A worker that died is back, or its room is elsewhere, within this; a region that is full stays full for longer.
SETTLE_S = 4.0
HOPS_MAX = 3        # from one manager to the one that it names, without a pause: maps agree within a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this frontend is."""

    region: str
    az: str


class Copy(Protocol):
    """This frontend's copy of the metadata."""

    @property
    def sure(self) -> bool: ...

    def newest(self, record: FunctionRecord) -> FunctionRecord | None: ...


class Reserving:
    """Asks managers for reservations."""

    def __init__(
        self, *, clock: Clock, place: Place, managers: Managers, lingering: Lingering, tickets: Tickets, copy: Copy,
        budget: RetryBudget,
    ) -> None:
        self._clock = clock
        self._place = place
        self._managers = managers
        self._lingering = lingering
        self._tickets = tickets
        self._copy = copy
        self._budget = budget

    async def reserve(self, request: InvokeRequest, invocation: str, phases: Phases) -> Held | Answered | None:
        """A reservation to start under, or the answer that a function gives whose sandbox can't be made.

        None: the manager serves a newer revision, and by now so does this frontend.

        Raises Throttled (scaling rate) and Unavailable. Who is cancelled leaves the sandbox that starts to others.
        """
        remaining_s = max(0.0, request.deadline - self._clock.monotonic())
        try:
            async with asyncio.timeout(remaining_s):
                return await self._until_settled(request, invocation, phases)
        except TimeoutError:
            raise Unavailable(
                "No sandbox was ready before the request's deadline.",
                {
                    "limit": "time for permit, place, code and init beyond the function's timeout",
                    "value": f"{MARGIN_S:g} s", "counter": f"sandboxes of {request.function.name}",
                    "remedy": "try again: a sandbox that was starting is kept for the next request",
                },
            ) from None

    async def _until_settled(
        self, request: InvokeRequest, invocation: str, phases: Phases
    ) -> Held | Answered | None:
        record, asked = request.function, self._clock.monotonic()
        # While no manager answers nothing is known to be missing but time, and of that the request has what its
        # function doesn't need: managers and placements are replaced within seconds, whole AZs' as well.
        give_up, limit_s = request.deadline - record.configuration.timeout_s, MARGIN_S
        hops = 0
        pause_s = PAUSE_S_MIN
        manager: Manager | None = None
        while True:
            manager = manager or self._managers.owner(record.account, record.name)
            why = "no worker manager is active"
            if manager is not None:
                try:
                    got = await self._asked(manager, request, invocation, phases)
                except Fault as fault:
                    why = fault.message
                else:
                    if isinstance(got, Held):
                        return got
                    if got.reason == _Refused.NOT_MINE and got.owner != manager.node:
                        manager = self._managers.find(got.owner)
                        hops += 1
                        if manager is not None and hops <= HOPS_MAX:
                            continue
                    why = self._judge(request, got)
                    if got.reason == _Refused.CREATE_FAILED:
                        return _failed(got)
                    if got.reason == _Refused.NO_CAPACITY:
                        give_up, limit_s = min(give_up, asked + SETTLE_S), SETTLE_S
                        self._pay(record, why)
            if self._copy.newest(record) is not record:
                return None
            if self._clock.monotonic() >= give_up:
                raise Unavailable(
                    f"No sandbox can be had for {record.name}: {why}.",
                    {
                        "limit": "time for the region to settle", "value": f"{limit_s:g} s", "reason": why,
                        "remedy": "try again; `labda status` shows workers, their memory and the managers",
                    },
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            manager = None

    async def _asked(
        self, manager: Manager, request: InvokeRequest, invocation: str, phases: Phases
    ) -> "Held | _Refused":
        """What the manager reserved or refused, or what this frontend passed on meanwhile. Raises Fault."""
        link = self._managers.link(manager)
        with self._lingering.asking(sandbox_key(request.function)) as answer:
            asked = link.reserve(invocation, self._ask(request), answer)
            del answer      # as in ``asking``
            reply = await asked
        if isinstance(reply, Held):
            return reply
        if reply.HasField("reserved"):
            return self._held(request.function, reply.reserved, link, phases)
        refused: _Refused = reply.refused
        return refused

    def _pay(self, record: FunctionRecord, why: str) -> None:
        """For another try at a full region, which rarely helps. Raises Unavailable when too many were tried.

        A region in motion (no manager, another owner) costs nothing: those waits are few, one per permit, and each asks
        at growing pauses.
        """
        if not self._budget.take():
            raise Unavailable(f"No sandbox can be had for {record.name}: {why}.", used_up())

    def _ask(self, request: InvokeRequest) -> worker_manager_pb2.FrontendRequest.Reserve:
        record = request.function
        return worker_manager_pb2.FrontendRequest.Reserve(
            function=function_id(record),
            config=function_config(record, self._place.region),
            ticket=self._tickets.issue(record.code.sha256, record.code.size_bytes),
            deadline_s=max(0.0, request.deadline - self._clock.monotonic()),
            az=self._place.az,
            unsure=not self._copy.sure,
        )

    def _held(
        self, record: FunctionRecord, reserved: worker_manager_pb2.ManagerReply.Reserved, lender: Lender,
        phases: Phases,
    ) -> Held:
        if reserved.cold:
            phases.made(reserved.phases)
        held = Held(sandbox_key(record), reserved.reservation, lender, reserved.linger_s, reserved.pass_on_s)
        self._lingering.hold(held)
        return held

    def _judge(self, request: InvokeRequest, refused: "_Refused") -> str:
        """Why another try may help. Raises what no other try would change."""
        reason = _Refused.Reason.Name(refused.reason)
        name = request.function.name
        match refused.reason:
            case _Refused.SCALING_RATE:
                raise Throttled("FunctionInvocationRateLimitExceeded", {
                    "limit": "new sandboxes per function", "value": "1000 in 10 s",
                    "counter": f"new sandboxes of {name}", "message": refused.message,
                    "remedy": "ramp up more slowly, or keep sandboxes warm",
                }, retry_after_s=1)
            case _Refused.SHED:
                raise Unavailable(
                    f"{name} was not started: {refused.message or 'too many requests wait for a sandbox'}.",
                    {
                        "limit": "requests that wait for a sandbox", "reason": reason, "message": refused.message,
                        "counter": f"requests that wait for a sandbox of {name}",
                        "remedy": "let callers back off; nothing was started",
                    },
                )
            case _Refused.UNKNOWN_RUNTIME:
                raise Unavailable(
                    f"No worker of this region has the runtime {request.function.configuration.runtime}.",
                    {"reason": reason, "message": refused.message, "remedy": "`labda status` lists runtimes"},
                    retry_after_s=5,
                )
            case _Refused.REVISED if not self._copy.sure:
                raise Unavailable(
                    f"{name} was not started: {refused.message}.",
                    {"reason": reason, "remedy": (
                        "try again: another frontend may answer; this one can't reach the metadata store"
                    )},
                )
            case _:
                return refused.message or reason.lower()


def sandbox_key(record: FunctionRecord) -> FunctionKey:
    return record.account, record.name, record.version, record.revision


def _failed(refused: "_Refused") -> Answered:
    """The sandbox could not be made: the function's caller sees that as a function error (reference section 4.6)."""
    payload = json.dumps({"errorType": refused.error_type, "errorMessage": refused.message}, separators=(",", ":"))
    result = worker_pb2.InvokeFrame.Result(status="failure", error_type=refused.error_type, cold=True)
    return Answered(payload=payload.encode(), function_error="Unhandled", result=result)


def function_id(record: FunctionRecord) -> common_pb2.FunctionId:
    return common_pb2.FunctionId(
        account=record.account, function=record.name, version=record.version, revision=record.revision
    )


def function_config(record: FunctionRecord, region: str) -> worker_pb2.FunctionConfig:
    """What a worker has to know to make a sandbox of the function."""
    configuration = record.configuration
    return worker_pb2.FunctionConfig(
        arn=f"arn:aws:lambda:{region}:{record.account}:function:{record.name}",
        runtime=configuration.runtime,
        handler=configuration.handler,
        memory_mb=configuration.memory_mb,
        timeout_s=configuration.timeout_s,
        tmp_mb=configuration.tmp_mb,
        code_sha256=record.code.sha256,
        code_size=record.code.size_bytes,
        environment=dict(configuration.environment or {}),
        log_format="Text",
        log_group=f"/aws/lambda/{record.name}",
        region=region,
    )
