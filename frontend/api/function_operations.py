"""Functions: create, read, list, update, delete.

Owns the order of checks of these operations. Refuses to know how records change (frontend.functions) and are kept.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from frontend import functions as pure
from frontend.configuration import check_new_name, configuration_changes, new_configuration
from frontend.function_output import Shown, configuration
from frontend.functions import Code, FunctionRecord
from frontend.identifiers import LATEST
from frontend.packages import check_archive

from .context import (
    Answer,
    Request,
    Services,
    change,
    existing,
    guard_phase,
    guard_revision,
    mutable_target,
    target_of,
    unqualified_target,
)
from .errors import ApiError, conflict, function_not_found, invalid_parameter
from .honoured import refuse_unhonoured
from .tag_operations import check_tags

PAGE_MAX = 50
# An archive this large may have thousands of entries: they are read off the event loop.
ARCHIVE_BYTES_LARGE = 1_048_576
CODE_BYTES_MAX = 80_530_636_800  # 75 GiB per account


async def create_function(services: Services, request: Request) -> Answer:
    given = request.parameters
    target = target_of(services, request)
    check_new_name(given["FunctionName"], target.name, target.qualifier)
    refuse_unhonoured(request.operation, given, target.name)
    kept = new_configuration(given, services.model, services.runtimes())
    tags = given.get("Tags", {})
    check_tags(tags)
    archive = await _archive(given["Code"])
    if await services.functions.get(request.account, target.name) is not None:
        raise _exists(target.name)
    await _check_room(services, request.account, len(archive))
    code = Code(sha256=await services.blobs.put(archive), size_bytes=len(archive))
    now = services.clock.wall()
    created = await services.functions.create(
        request.account,
        target.name,
        lambda revision: pure.create(
            request.account,
            target.name,
            kept,
            code,
            tags=tags,
            revision=revision,
            now=now,
            revision_id=services.ids.uuid(),
        ),
    )
    if created is None:
        raise _exists(target.name)
    record, stored = created
    services.settling.begin(record, stored)
    return Answer(result=configuration(record, services.region))


def _exists(name: str) -> ApiError:
    return conflict(f"Function already exist: {name}")


async def _archive(code: Mapping[str, Any]) -> bytes:
    """The archive of a request, checked as far as that needs no unpacking."""
    archive: bytes | None = code.get("ZipFile")
    if archive is None:
        raise invalid_parameter("Please provide a source for function code.")
    if len(archive) > ARCHIVE_BYTES_LARGE:
        await asyncio.to_thread(check_archive, archive)
    else:
        check_archive(archive)
    return archive


async def _check_room(services: Services, account: str, more_bytes: int) -> None:
    used = sum(record.code.size_bytes for record in await services.functions.list(account))
    if used + more_bytes > CODE_BYTES_MAX:
        raise ApiError(
            "CodeStorageExceededException",
            400,
            "Code storage limit exceeded.",
            detail={
                "limit_bytes": CODE_BYTES_MAX,
                "used_bytes": used,
                "counter": f"code of account {account}",
                "remedy": "Delete functions that aren't needed.",
            },
        )


async def get_function(services: Services, request: Request) -> Answer:
    target = target_of(services, request)
    record = await existing(services, target)
    link = services.links.make(record.code.sha256, services.clock.wall())
    result: dict[str, Any] = {
        "Configuration": configuration(record, services.region, qualifier=target.qualifier),
        "Code": {"RepositoryType": "S3", "Location": request.base_url + link},
    }
    if target.qualifier is None:
        if record.tags:
            result["Tags"] = dict(record.tags)
        reserved = (await services.limits.get(request.account)).reserved.get(record.name)
        if reserved is not None:
            result["Concurrency"] = {"ReservedConcurrentExecutions": reserved}
    return Answer(result=result)


async def get_function_configuration(services: Services, request: Request) -> Answer:
    target = target_of(services, request)
    record = await existing(services, target)
    return Answer(result=configuration(record, services.region, qualifier=target.qualifier))


async def list_functions(services: Services, request: Request) -> Answer:
    given = request.parameters
    refuse_unhonoured(request.operation, given)
    after = _from_marker(given.get("Marker"))
    size = min(given.get("MaxItems", PAGE_MAX), PAGE_MAX)
    records = [record for record in await services.functions.list(request.account) if record.name > after]
    page = records[:size]
    qualifier = LATEST if given.get("FunctionVersion") == "ALL" else None
    shown = [
        configuration(record, services.region, shown=Shown.LIST, qualifier=qualifier) for record in page
    ]
    more = len(records) > size
    return Answer(result={"Functions": shown, "NextMarker": _marker(page[-1].name) if more else None})


async def list_versions_by_function(services: Services, request: Request) -> Answer:
    """There are no published versions: the list is $LATEST. Terraform takes its last item for the newest version."""
    target = unqualified_target(services, request)
    marker = request.parameters.get("Marker")
    if marker:
        raise _no_marker(marker, request.operation)
    record = await existing(services, target)
    latest = configuration(record, services.region, shown=Shown.LIST, qualifier=LATEST)
    return Answer(result={"Versions": [latest], "NextMarker": None})


def _marker(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _from_marker(marker: str | None) -> str:
    if not marker:
        return ""
    try:
        return base64.b64decode(marker, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise _no_marker(marker, "ListFunctions") from None


def _no_marker(marker: str, operation: str) -> ApiError:
    return invalid_parameter(f"The Marker {marker} is not one that {operation} gave.")


async def update_function_code(services: Services, request: Request) -> Answer:
    given = request.parameters
    target = mutable_target(services, request)
    refuse_unhonoured(request.operation, given, target.name)
    current = await existing(services, target)
    _guard(current, given, target.unqualified_arn)
    archive = await _archive(given)
    if given.get("DryRun"):
        digest = hashlib.sha256(archive).hexdigest()
        would_be = replace(current, code=Code(sha256=digest, size_bytes=len(archive)))
        return Answer(result=configuration(would_be, services.region))
    await _check_room(services, request.account, len(archive) - current.code.size_bytes)
    code = Code(sha256=await services.blobs.put(archive), size_bytes=len(archive))

    def how(record: FunctionRecord) -> FunctionRecord:
        _guard(record, given, target.unqualified_arn)
        return pure.change_code(
            record,
            code,
            now=services.clock.wall(),
            revision_id=services.ids.uuid(),
        )

    record, stored = await change(services, target, how)
    services.settling.begin(record, stored)
    return Answer(result=configuration(record, services.region))


async def update_function_configuration(services: Services, request: Request) -> Answer:
    given = request.parameters
    target = mutable_target(services, request)
    refuse_unhonoured(request.operation, given, target.name)
    current = await existing(services, target)
    # Before the guards: what can't be right in any state is said whatever the state is.
    changes = configuration_changes(given, services.model, services.runtimes())
    _guard(current, given, target.unqualified_arn)

    def how(record: FunctionRecord) -> FunctionRecord:
        _guard(record, given, target.unqualified_arn)
        return pure.change_configuration(
            record,
            changes,
            now=services.clock.wall(),
            revision_id=services.ids.uuid(),
        )

    record, stored = await change(services, target, how)
    services.settling.begin(record, stored)
    return Answer(result=configuration(record, services.region))


def _guard(record: FunctionRecord, given: Mapping[str, Any], arn: str) -> None:
    guard_revision(record, given.get("RevisionId"))
    guard_phase(record, arn)


async def delete_function(services: Services, request: Request) -> Answer:
    target = target_of(services, request)
    name = target.name
    record = await services.functions.get(request.account, name)
    if record is None:
        raise function_not_found(target.arn)
    if target.qualifier == LATEST:
        raise invalid_parameter("$LATEST version cannot be deleted without deleting the function.")
    if target.qualifier is not None:
        if not target.qualifier.isdigit():
            raise invalid_parameter("Deletion of aliases is not currently supported.")
        return Answer(result={}, status=204)  # no such version: nothing to do
    # The reservation goes first: were the ledger away after the record is gone, nobody could remove it any more.
    if name in (await services.limits.get(request.account)).reserved:
        await services.limits.put_reserved(request.account, name, None)
    stored = await services.functions.delete(request.account, name)
    if stored is None:
        raise function_not_found(target.arn)
    await services.settling.deleted(record, stored)
    return Answer(result={}, status=204)


async def get_function_code_signing_config(services: Services, request: Request) -> Answer:
    """There are no code signing configurations; tools ask on every read and take the missing ARN for that."""
    record = await existing(services, target_of(services, request))
    return Answer(result={"FunctionName": record.name})
