"""Protobuf messages to the core's values and back.

Owns the translation, so that the core knows no protobuf. A message that can't be right is a Fault.
"""

from collections.abc import Iterator

from chassis.faults import Fault, FaultCode
from protos import common_pb2, placement_pb2, worker_manager_pb2, worker_pb2
from worker_manager import messages
from worker_manager.messages import (
    AskPlacement,
    Create,
    Destroy,
    DrainWorker,
    Event,
    FunctionKey,
    Inventory,
    Order,
    Phases,
    Raise,
    Recall,
    Refused,
    Reserve,
    Reserved,
    Retired,
    ReturnWorker,
    SandboxFacts,
)
from worker_manager.tenure import INVENTORY_STATES


def key_of(function: common_pb2.FunctionId) -> FunctionKey:
    return FunctionKey(
        account=function.account, function=function.function, version=function.version, revision=function.revision
    )


def function_id(function: FunctionKey) -> common_pb2.FunctionId:
    return common_pb2.FunctionId(
        account=function.account, function=function.function, version=function.version, revision=function.revision
    )


# ---------------------------------------------------------------- frontends


def frontend_event(request: worker_manager_pb2.FrontendRequest, frontend: str, drawn: str) -> Event | None:
    """One request of a frontend; None for its Hello. ``drawn`` names the sandbox that may be made for it."""
    cause = request.invocation
    match request.WhichOneof("request"):
        case "hello":
            return None
        case "reserve":
            reserve = request.reserve
            return Reserve(
                frontend=frontend, cause=cause, function=key_of(reserve.function), memory_mb=reserve.config.memory_mb,
                runtime=reserve.config.runtime, deadline_s=reserve.deadline_s, az=reserve.az, sandbox=drawn,
                unsure=reserve.unsure,
                order=Order(
                    config=reserve.config.SerializeToString(), ticket=reserve.ticket.SerializeToString()
                ),
            )
        case "cancel":
            return messages.Cancel(frontend=frontend, cause=cause, served=request.cancel.served)
        case "release":
            return messages.Release(
                frontend=frontend, sandbox=request.release.sandbox, sequence=request.release.sequence, cause=cause
            )
        case "revised":
            revised = request.revised
            return messages.Revised(
                function=key_of(revised.function), deleted=revised.deleted, vouched=revised.vouched, frontend=frontend,
                cause=cause,
            )
        case unknown:
            raise Fault(f"a request of no known kind: {unknown}", code=FaultCode.INVALID, definite=True)


def reply_of(effect: Reserved | Refused | Retired | Recall) -> worker_manager_pb2.ManagerReply:
    reply = worker_manager_pb2.ManagerReply(invocation=effect.cause)
    match effect:
        case Reserved():
            reply.reserved.linger_s = effect.linger_s
            reply.reserved.pass_on_s = effect.pass_on_s
            reply.reserved.cold = effect.cold
            reply.reserved.reservation.CopyFrom(common_pb2.Reservation(
                worker=effect.worker, address=effect.address, lease=effect.lease, sandbox=effect.sandbox,
                incarnation=common_pb2.Incarnation(host=effect.host, nonce=effect.nonce), sequence=effect.sequence,
            ))
            if effect.cold:
                reply.reserved.phases.CopyFrom(worker_pb2.ColdPhases(
                    place_ms=effect.phases.place_ms, code_ms=effect.phases.code_ms,
                    sandbox_ms=effect.phases.sandbox_ms, runtime_ms=effect.phases.runtime_ms,
                    init_ms=effect.phases.init_ms,
                ))
        case Refused():
            reply.refused.CopyFrom(worker_manager_pb2.ManagerReply.Refused(
                reason=worker_manager_pb2.ManagerReply.Refused.Reason.Value(effect.reason), version=effect.version,
                owner=effect.owner, error_type=effect.error_type, message=effect.message,
            ))
        case Retired():
            reply.retired.SetInParent()
        case Recall():
            reply.recall.CopyFrom(worker_manager_pb2.ManagerReply.Recall(
                sandbox=effect.sandbox, sequence=effect.sequence
            ))
    return reply


# ---------------------------------------------------------------- workers


def order_of(
    effect: Create | Destroy | Raise | DrainWorker | ReturnWorker, lease: int
) -> worker_pb2.ManagerOrder:
    order = worker_pb2.ManagerOrder(lease=lease)
    match effect:
        case Create():
            order.create.CopyFrom(worker_pb2.ManagerOrder.Create(
                sandbox=effect.sandbox, function=function_id(effect.function), sequence=effect.sequence,
                config=worker_pb2.FunctionConfig.FromString(effect.order.config),
                ticket=worker_pb2.CodeTicket.FromString(effect.order.ticket), cause=effect.cause,
                deadline_s=effect.deadline_s, on_demand=True,
            ))
        case Destroy():
            order.destroy.CopyFrom(worker_pb2.ManagerOrder.Destroy(sandbox=effect.sandbox, reason=effect.reason))
        case Raise():
            raised = worker_pb2.ManagerOrder.Raise(
                sandbox=effect.sandbox, sequence=effect.sequence, used=effect.used
            )
            getattr(order, "raise").CopyFrom(raised)  # a keyword of the language, and the field's name
        case DrainWorker():
            order.drain.SetInParent()
        case ReturnWorker():
            getattr(order, "return").SetInParent()
    return order


def worker_events(event: worker_pb2.WorkerEvent, worker: str) -> Iterator[Event]:
    """What a worker says, under the lease number that it says it for. Raises Fault for what isn't in the protocol."""
    if event.HasField("uses"):
        for use in event.uses.uses:
            if use.invocation:
                yield messages.Busy(
                    worker=worker, sandbox=use.sandbox, sequence=use.sequence, cause=use.invocation
                )
            else:
                yield messages.Idle(worker=worker, sandbox=use.sandbox, sequence=use.sequence)
    else:
        yield _worker_event(event, worker)


def _worker_event(event: worker_pb2.WorkerEvent, worker: str) -> Event:
    match event.WhichOneof("event"):
        case "inventory":
            return _inventory(event.inventory, worker)
        case "stale_lease":
            return messages.StaleLease(worker=worker, lease=event.lease, highest=event.stale_lease.highest)
        case "no_capacity":
            refused = event.no_capacity
            return messages.NoCapacity(
                worker=worker, sandbox=refused.sandbox, reason=refused.reason, memory_free_mb=refused.memory_free_mb
            )
        case "create_failed":
            failed = event.create_failed
            return messages.CreateFailed(
                worker=worker, sandbox=failed.sandbox, error_type=failed.error_type, message=failed.message
            )
        case "ready":
            ready = event.ready
            return messages.Ready(worker=worker, sandbox=ready.sandbox, sequence=ready.sequence, phases=Phases(
                code_ms=ready.phases.code_ms, sandbox_ms=ready.phases.sandbox_ms,
                runtime_ms=ready.phases.runtime_ms, init_ms=ready.phases.init_ms,
            ))
        case _:
            return _end_event(event, worker)


def _end_event(event: worker_pb2.WorkerEvent, worker: str) -> Event:
    match event.WhichOneof("event"):
        case "gone":
            kind = messages.Going if event.gone.going else messages.Gone
            return kind(worker=worker, sandbox=event.gone.sandbox, reason=event.gone.reason)
        case "raised":
            raised = event.raised
            return messages.Raised(
                worker=worker, sandbox=raised.sandbox, sequence=raised.sequence, busy=raised.busy,
                kept=raised.kept,
            )
        case "returned":
            return messages.WorkerReturned(worker=worker, lease=event.lease)
        case unknown:
            raise Fault(f"{worker} sent an event of no known kind: {unknown}", code=FaultCode.INVALID)


def _inventory(inventory: worker_pb2.WorkerEvent.Inventory, worker: str) -> Inventory:
    for status in inventory.sandboxes:
        if status.state not in INVENTORY_STATES:
            known = ", ".join(INVENTORY_STATES)
            raise Fault(
                f"{worker} says that {status.sandbox} is {status.state!r}, there are {known}", code=FaultCode.INVALID
            )
    return Inventory(
        worker=worker, lease=inventory.lease, nonce=inventory.incarnation.nonce, memory_mb=inventory.memory_mb,
        memory_free_mb=inventory.memory_free_mb, runtimes=tuple(inventory.runtimes),
        invoke_address=inventory.invoke_address,
        sandboxes=tuple(
            SandboxFacts(
                sandbox=status.sandbox, function=key_of(status.function), sequence=status.sequence,
                state=status.state, memory_mb=status.memory_mb,
            )
            for status in inventory.sandboxes
        ),
    )


# ---------------------------------------------------------------- placement


def placement_event(order: placement_pb2.LeaseOrder) -> Event:
    match order.WhichOneof("order"):
        case "granted":
            granted = order.granted
            return messages.Granted(
                worker=granted.worker, address=granted.address, host=granted.host, az=granted.az,
                lease=granted.lease, soft_end_s=granted.soft_end_s, hard_end_s=granted.hard_end_s,
                drain_s=granted.drain_s, az_reserve=granted.az_reserve,
            )
        case "lost":
            return messages.Lost(worker=order.lost.worker, lease=order.lost.lease, reason=order.lost.reason)
        case "hand_over":
            return messages.HandOver(worker=order.hand_over.worker, lease=order.hand_over.lease)
        case "role":
            return messages.RoleGiven(active=order.role.active, term=order.role.term)
        case unknown:
            raise Fault(f"placement sent an order of no known kind: {unknown}", code=FaultCode.INVALID)


def place_request(effect: AskPlacement, manager: str) -> placement_pb2.PlaceRequest:
    return placement_pb2.PlaceRequest(
        manager=manager, account=effect.function.account, function=effect.function.function,
        memory_mb=effect.memory_mb, runtime=effect.runtime, az=effect.az, workers=effect.workers,
        same=dict(effect.same),
    )
