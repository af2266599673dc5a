"""Errors that leave through the public API.

Owns the typed error, AWS's exact texts for the errors that several places raise, and the one table that maps internal
faults to HTTP answers. Refuses to know how an error is written on the wire (codec).
"""

from collections.abc import Mapping
from typing import Any

from chassis.faults import Fault, FaultCode

Detail = Mapping[str, Any] | str


class ApiError(Exception):
    """A refusal or failure as the client sees it.

    ``code`` and ``message`` are AWS's own, exact. ``members`` are further modelled members (``Reason``,
    ``retryAfterSeconds``). ``detail`` goes into the extra JSON member ``Detail`` (invariant 15): which limit, its
    value, the counter, what to do.
    """

    def __init__(
        self, code: str, status: int, message: str | None, *, detail: Detail | None = None, **members: Any
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.code = code
        self.status = status
        self.message = message
        self.detail = detail
        self.members = members


def invalid_parameter(message: str, *, detail: Detail | None = None) -> ApiError:
    return ApiError("InvalidParameterValueException", 400, message, detail=detail)


def validation(message: str) -> ApiError:
    return ApiError("ValidationException", 400, message)


def serialization(message: str) -> ApiError:
    return ApiError("SerializationException", 400, message)


def invalid_content(parser_text: str) -> ApiError:
    """The body of a request that has to be JSON isn't."""
    return ApiError(
        "InvalidRequestContentException", 400, f"Could not parse request body into json: {parser_text}"
    )


def function_not_found(arn: str) -> ApiError:
    return ApiError("ResourceNotFoundException", 404, f"Function not found: {arn}")


def conflict(message: str) -> ApiError:
    return ApiError("ResourceConflictException", 409, message)


def stale_revision() -> ApiError:
    return ApiError(
        "PreconditionFailedException",
        412,
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetFunction/GetAlias API to retrieve the latest Revision Id",
    )


def not_there_yet(operation: str) -> ApiError:
    return ApiError(
        "InvalidRequestContentException",
        400,
        f"{operation} is not there yet in labda.",
        detail={
            "operation": operation,
            "reason": "The operation is in the API's model, but this release of labda doesn't have it.",
            "remedy": "Leave the call out, or turn the feature off in the tool that makes it.",
        },
    )


def unknown_operation(method: str, path: str) -> ApiError:
    return ApiError(
        "UnknownOperationException",
        404,
        f"No operation of the Lambda API has the address {method} {path}",
        detail={"remedy": "Give clients the endpoint's URL without a path: they add the operation's own."},
    )


def throttled(reason: str, *, detail: Detail, retry_after_s: int | None = None) -> ApiError:
    """AWS's 429: the message is exact (with its full stop), which counter said no is in ``Reason`` and ``Detail``."""
    members = {} if retry_after_s is None else {"retryAfterSeconds": str(retry_after_s)}
    return ApiError(
        "TooManyRequestsException", 429, "Rate Exceeded.", detail=detail, Reason=reason, **members
    )


def service_failure(message: str = "An internal error occurred.", *, detail: Detail | None = None) -> ApiError:
    return ApiError("ServiceException", 500, message, detail=detail)


def unavailable(message: str, *, detail: Detail | None = None, retry_after_s: int = 1) -> ApiError:
    """The work certainly did not happen and may be tried again."""
    return ApiError(
        "ServiceUnavailableException", 503, message, detail=detail, retryAfterSeconds=str(retry_after_s)
    )


# Whether a fault may be answered as "try again" depends on its being definite: only then did nothing happen. The SDKs
# retry 500 and 503 alike, but for people and for our own load balancers the difference matters.
_DEFINITE: Mapping[FaultCode, tuple[str, int]] = {
    FaultCode.INVALID: ("InvalidParameterValueException", 400),
    FaultCode.NOT_FOUND: ("ResourceNotFoundException", 404),
    FaultCode.CONFLICT: ("ResourceConflictException", 409),
    FaultCode.DENIED: ("ServiceException", 500),
    FaultCode.EXHAUSTED: ("ServiceUnavailableException", 503),
    FaultCode.UNAVAILABLE: ("ServiceUnavailableException", 503),
    FaultCode.TIMEOUT: ("ServiceUnavailableException", 503),
    FaultCode.INTERNAL: ("ServiceException", 500),
    FaultCode.CANCELLED: ("ServiceUnavailableException", 503),
}


def from_fault(fault: Fault) -> ApiError:
    """The HTTP answer to an internal fault that nobody translated more closely."""
    if not fault.definite:
        return service_failure(
            "The request failed, and whether its work was done is not known.",
            detail={"cause": fault.message, "remedy": "Look at the state before you try again."},
        )
    code, status = _DEFINITE[fault.code]
    if status == 503:
        return unavailable(fault.message, detail={"cause": fault.message, "remedy": "Nothing was done: try again."})
    if status == 500:
        return service_failure(detail={"cause": fault.message})
    return ApiError(code, status, fault.message)
