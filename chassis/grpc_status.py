"""The one table between faults and gRPC's status codes, read both ways.

Whether the work certainly did not happen (``Fault.definite``) travels in the trailing metadata.
"""

from typing import Any

import grpc

from chassis.faults import Fault, FaultCode
from protos.rpc import Method

STATUS: dict[FaultCode, grpc.StatusCode] = {
    FaultCode.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    FaultCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    FaultCode.CONFLICT: grpc.StatusCode.ABORTED,
    FaultCode.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    FaultCode.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FaultCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    FaultCode.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    FaultCode.INTERNAL: grpc.StatusCode.INTERNAL,
    FaultCode.CANCELLED: grpc.StatusCode.CANCELLED,
}
_CODE: dict[grpc.StatusCode, FaultCode] = {status: code for code, status in STATUS.items()} | {
    grpc.StatusCode.UNIMPLEMENTED: FaultCode.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: FaultCode.DENIED,
    grpc.StatusCode.UNKNOWN: FaultCode.INTERNAL,
    grpc.StatusCode.FAILED_PRECONDITION: FaultCode.CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: FaultCode.INVALID,
}
DEFINITE = "labda-definite"  # trailing metadata: the peer says that the work certainly did not happen


def fault_of_call(error: grpc.aio.AioRpcError, method: Method[Any, Any], peer: str) -> Fault:
    return fault_from(error.code(), error.details(), is_definite(error.trailing_metadata()), method, peer)


def fault_from(
    status: grpc.StatusCode, text: str | None, definite: bool, method: Method[Any, Any], peer: str
) -> Fault:
    code = _CODE.get(status, FaultCode.UNAVAILABLE)
    return Fault(f"{method.name} at {peer}: {text or status.name.lower()}", code=code, definite=definite)


def is_definite(metadata: Any) -> bool:
    return any(key == DEFINITE for key, _ in metadata or ())


async def abort(context: Any, fault: Fault) -> None:
    """Ends a call that is being served with the fault as its status."""
    if context.done():
        return
    trailing = ((DEFINITE, "1"),) if fault.definite else ()
    await context.abort(STATUS[fault.code], fault.message, trailing)
