"""Reserved concurrency and the account's settings.

Owns these operations. The ledger is the only home of limits: nothing of them is kept here or in function records.
"""

from frontend import functions as pure
from frontend.identifiers import LATEST, Target
from frontend.packages import UNZIPPED_BYTES_MAX, ZIPPED_BYTES_MAX

from .context import Answer, Request, Services, change, existing, unqualified_target
from .errors import ApiError, function_not_found, invalid_parameter
from .function_operations import CODE_BYTES_MAX
from .ports import BelowFloor


async def put_function_concurrency(services: Services, request: Request) -> Answer:
    target = unqualified_target(services, request)
    wanted: int = request.parameters["ReservedConcurrentExecutions"]
    await existing(services, target, arn=f"{target.arn}:{LATEST}")
    try:
        changed = await services.limits.put_reserved(request.account, target.name, wanted)
    except BelowFloor as below:
        raise _below_floor(below, wanted) from None
    if changed:
        await _touched(services, target)
    return Answer(result={"ReservedConcurrentExecutions": wanted})


def _below_floor(below: BelowFloor, wanted: int) -> ApiError:
    limit, others = below.account_limit, below.reserved_elsewhere
    return invalid_parameter(
        "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
        f"below its minimum value of [{below.floor}].",
        detail={
            "limit": limit,
            "reserved_by_others": others,
            "wanted": wanted,
            "free_to_reserve": max(0, limit - below.floor - others),
            "remedy": "Reserve less, or lower another function's reservation.",
        },
    )


async def _touched(services: Services, target: Target) -> None:
    """Rotate RevisionId. A function that was deleted meanwhile keeps no reservation."""
    try:
        await change(services, target, lambda record: pure.touch(record, revision_id=services.ids.uuid()))
    except ApiError as error:
        if error.code == "ResourceNotFoundException":
            await services.limits.put_reserved(target.account, target.name, None)
            raise function_not_found(f"{target.arn}:{LATEST}") from None
        raise


async def get_function_concurrency(services: Services, request: Request) -> Answer:
    target = unqualified_target(services, request)
    await existing(services, target)
    reserved = (await services.limits.get(request.account)).reserved.get(target.name)
    return Answer(result={"ReservedConcurrentExecutions": reserved})


async def delete_function_concurrency(services: Services, request: Request) -> Answer:
    target = unqualified_target(services, request)
    await existing(services, target)
    if await services.limits.put_reserved(request.account, target.name, None):
        await _touched(services, target)
    return Answer(result={})


async def get_account_settings(services: Services, request: Request) -> Answer:
    limits = await services.limits.get(request.account)
    records = await services.functions.list(request.account)
    return Answer(
        result={
            "AccountLimit": {
                "TotalCodeSize": CODE_BYTES_MAX,
                "CodeSizeUnzipped": UNZIPPED_BYTES_MAX,
                "CodeSizeZipped": ZIPPED_BYTES_MAX,
                "ConcurrentExecutions": limits.concurrency,
                "UnreservedConcurrentExecutions": limits.unreserved,
            },
            "AccountUsage": {
                "TotalCodeSize": sum(record.code.size_bytes for record in records),
                "FunctionCount": len(records),
            },
        }
    )
