"""Faults: errors that come from the world rather than from a bug.

Owns the vocabulary. Each fault says whether it is ``definite`` (the work certainly did not happen): only definite
faults may be tried again elsewhere without an idempotency key. Refusals are effects and bugs are assertions; neither is
a fault. ``chassis.grpc_network`` holds the one table that maps codes to gRPC's.
"""

import enum


class FaultCode(enum.Enum):
    INVALID = "invalid"              # the request can't be right, now or later
    NOT_FOUND = "not found"
    CONFLICT = "conflict"            # a compare-and-swap or a fence said no
    DENIED = "denied"                # the caller's certificate doesn't open this
    EXHAUSTED = "exhausted"          # a bound was reached: a queue, a size, a disk
    UNAVAILABLE = "unavailable"      # the peer is away, or doesn't serve this now
    TIMEOUT = "timeout"              # a deadline passed
    INTERNAL = "internal"            # the peer had a bug
    CANCELLED = "cancelled"


class Fault(Exception):
    """What went wrong in the world, in one sentence that says what to do where something can be done."""

    code = FaultCode.UNAVAILABLE
    definite = False

    def __init__(self, message: str, *, code: FaultCode | None = None, definite: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if definite is not None:
            self.definite = definite
