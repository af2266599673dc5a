"""Getting a reservation of a sandbox from the function's manager.

Owns which manager is asked, what its refusals mean for the client, and for how long a region in motion is given time to
settle. A reservation starts nothing, so that asking again is always safe.
"""

import asyncio
import json
from dataclasses import dataclass

from chassis.clock import Clock
from chassis.faults import Fault
from frontend.api.ports import InvokeRequest, Throttled, Unavailable
from frontend.functions import FunctionRecord
from frontend.linger import Held, Lender, Lingering
from frontend.peers.flight import Answered
from frontend.peers.managers import Manager, Managers
from frontend.phases import Phases
from frontend.tickets import Tickets
from protos import common_pb2, worker_manager_pb2, worker_pb2

_Refused = worker_manager_pb2.ManagerReply.Refused

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 0.5
# A manager or worker that died is back, or replaced, within this; a region that is full stays full for longer.
SETTLE_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this frontend is."""

    region: str
    az: str


class Reserving:
    """Asks managers for reservations."""

    def __init__(
        self, *, clock: Clock, place: Place, managers: Managers, lingering: Lingering, tickets: Tickets
    ) -> None:
        self._clock = clock
        self._place = place
        self._managers = managers
        self._lingering = lingering
        self._tickets = tickets

    async def reserve(self, request: InvokeRequest, invocation: str, phases: Phases) -> Held | Answered:
        """A reservation to start under, or the answer that a function gives whose sandbox can't be made.

        Raises Throttled (scaling rate) and Unavailable. Who is cancelled leaves the sandbox that starts to others.
        """
        remaining_s = max(0.0, request.deadline - self._clock.monotonic())
        try:
            async with asyncio.timeout(remaining_s):
                return await self._until_settled(request, invocation, phases)
        except TimeoutError:
            raise Unavailable(
                "No sandbox was ready before the request's deadline.",
                {"remedy": "try again: a sandbox that was starting is kept for the next request"},
            ) from None

    async def _until_settled(
        self, request: InvokeRequest, invocation: str, phases: Phases
    ) -> Held | Answered:
        record = request.function
        give_up = self._clock.monotonic() + SETTLE_S
        pause_s = PAUSE_S_MIN
        manager: Manager | None = None
        while True:
            manager = manager or self._managers.owner(record.account, record.name)
            why = "no worker manager is active"
            if manager is not None:
                try:
                    link = self._managers.link(manager)
                    reply = await link.reserve(invocation, self._ask(request))
                except Fault as fault:
                    why = fault.message
                else:
                    if reply.HasField("reserved"):
                        return self._held(record, reply.reserved, link, phases)
                    if reply.refused.reason == _Refused.NOT_MINE and reply.refused.owner != manager.node:
                        manager = self._managers.find(reply.refused.owner)
                        if manager is not None and self._clock.monotonic() < give_up:
                            continue
                    why = self._judge(request, reply.refused)
                    if reply.refused.reason == _Refused.CREATE_FAILED:
                        return _failed(reply.refused)
            if self._clock.monotonic() >= give_up:
                raise Unavailable(
                    f"No sandbox can be had for {record.name}: {why}.",
                    {"remedy": "try again; `labda status` shows workers, their memory and the managers"},
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            manager = None

    def _ask(self, request: InvokeRequest) -> worker_manager_pb2.FrontendRequest.Reserve:
        record = request.function
        return worker_manager_pb2.FrontendRequest.Reserve(
            function=function_id(record),
            config=function_config(record, self._place.region),
            ticket=self._tickets.issue(record.code.sha256, record.code.size_bytes),
            deadline_s=max(0.0, request.deadline - self._clock.monotonic()),
            az=self._place.az,
        )

    def _held(
        self, record: FunctionRecord, reserved: worker_manager_pb2.ManagerReply.Reserved, lender: Lender,
        phases: Phases,
    ) -> Held:
        if reserved.cold:
            phases.made(reserved.phases)
        key = (record.account, record.name, record.version, record.revision)
        held = Held(key, reserved.reservation, lender, reserved.linger_s)
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
                    {"reason": reason, "remedy": "let callers back off; nothing was started"},
                )
            case _Refused.UNKNOWN_RUNTIME:
                raise Unavailable(
                    f"No worker of this region has the runtime {request.function.configuration.runtime}.",
                    {"reason": reason, "message": refused.message, "remedy": "`labda status` lists runtimes"},
                    retry_after_s=5,
                )
            case _:
                return refused.message or reason.lower()


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
