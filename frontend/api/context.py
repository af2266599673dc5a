"""What every operation gets: the services it may use and the request it answers.

Owns these two values and the look-ups that most operations begin with. Refuses to know single operations.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chassis.clock import Clock
from frontend.auth.links import CodeLinks
from frontend.functions import FunctionRecord, Phase, WrongPhase
from frontend.identifiers import Target, resolve

from .errors import ApiError, conflict, function_not_found, invalid_parameter, stale_revision
from .model import Model
from .ports import Blobs, Functions, Ids, Invoker, Limits, Runtimes, Settling


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything outside the API itself."""

    region: str
    model: Model
    clock: Clock
    ids: Ids
    links: CodeLinks
    functions: Functions
    settling: Settling
    blobs: Blobs
    limits: Limits
    invoker: Invoker
    runtimes: Runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One authenticated, parsed and validated request. ``base_url`` is how the client reached us."""

    operation: str
    request_id: str
    account: str
    parameters: Mapping[str, Any]
    base_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A result by the model's member names; ``status`` where the real one differs from the model's."""

    result: Mapping[str, Any]
    status: int | None = None


Handler = Callable[[Services, Request], Awaitable[Answer]]

ON_FUNCTIONS_ONLY = (
    "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. "
    "Please specify either a function name or an unqualified function ARN."
)


def target_of(services: Services, request: Request) -> Target:
    """The function that the request names. Raises ApiError as section 1.3 orders."""
    return resolve(
        request.parameters["FunctionName"],
        request.parameters.get("Qualifier"),
        account=request.account,
        region=services.region,
        action=request.operation,
    )


def unqualified_target(services: Services, request: Request) -> Target:
    """The function for an operation that versions and aliases don't have."""
    target = target_of(services, request)
    if target.qualifier is not None:
        raise invalid_parameter(ON_FUNCTIONS_ONLY)
    return target


def mutable_target(services: Services, request: Request) -> Target:
    """The function for an update: without a qualifier, or $LATEST."""
    target = target_of(services, request)
    if not target.latest:
        raise invalid_parameter(ON_FUNCTIONS_ONLY)
    return target


async def existing(services: Services, target: Target, *, arn: str | None = None) -> FunctionRecord:
    """The function, from the store. Raises ResourceNotFoundException naming ``arn``, else the ARN as asked."""
    record = await services.functions.get(target.account, target.name) if target.latest else None
    if record is None:
        raise function_not_found(arn or target.arn)
    return record


def guard_revision(record: FunctionRecord, revision_id: str | None) -> None:
    """Raise PreconditionFailedException when the client saw another state. Wins over other guards."""
    if revision_id is not None and revision_id != record.revision_id:
        raise stale_revision()


def guard_phase(record: FunctionRecord, arn: str) -> None:
    """Raise ResourceConflictException while the function is being created or updated."""
    if record.phase is not Phase.ACTIVE:
        raise busy(record.phase, arn)


def busy(phase: Phase, arn: str) -> ApiError:
    if phase is Phase.CREATING:
        return conflict(
            "The operation cannot be performed at this time. "
            "The function is currently in the following state: Pending"
        )
    return conflict(
        f"The operation cannot be performed at this time. An update is in progress for resource: {arn}"
    )


async def change(
    services: Services, target: Target, how: Callable[[FunctionRecord], FunctionRecord]
) -> tuple[FunctionRecord, int]:
    """Change the function by compare-and-swap; the new record and the store's revision. Raises ApiError."""
    try:
        done = await services.functions.change(target.account, target.name, how)
    except WrongPhase as error:
        raise busy(error.phase, target.unqualified_arn) from None
    if done is None:
        raise function_not_found(target.arn)
    return done
