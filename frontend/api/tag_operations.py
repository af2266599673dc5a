"""Tags of functions.

Owns these operations and the rules for tags (reference section 8.8). Refuses to know other resources' tags.
"""

from collections.abc import Callable, Mapping

from frontend import functions as pure
from frontend.functions import TAGS_MAX, FunctionRecord
from frontend.identifiers import Target, resolve

from .context import Answer, Request, Services, change, existing
from .errors import ApiError, invalid_parameter


async def list_tags(services: Services, request: Request) -> Answer:
    target = _resource(services, request)
    record = await existing(services, target)
    return Answer(result={"Tags": dict(record.tags)})


async def tag_resource(services: Services, request: Request) -> Answer:
    target = _resource(services, request)
    tags = request.parameters["Tags"]
    if not tags:
        raise invalid_parameter("An error occurred and the request cannot be processed.")
    check_tags(tags)
    await _change(
        services, target, lambda record: pure.tag(record, tags, revision_id=services.ids.uuid())
    )
    return Answer(result={})


async def untag_resource(services: Services, request: Request) -> Answer:
    target = _resource(services, request)
    names = request.parameters["TagKeys"]
    await _change(
        services, target, lambda record: pure.untag(record, names, revision_id=services.ids.uuid())
    )
    return Answer(result={})


async def _change(
    services: Services, target: Target, how: Callable[[FunctionRecord], FunctionRecord]
) -> None:
    try:
        await change(services, target, how)
    except ValueError as error:
        raise invalid_parameter(str(error), detail={"limit": TAGS_MAX, "counter": "tags of the function"}) from None


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise ApiError for too many tags and for names that AWS keeps for itself."""
    if len(tags) > TAGS_MAX:
        raise invalid_parameter(
            "Number of tags exceeds resource tag limit.", detail={"limit": TAGS_MAX, "value": len(tags)}
        )
    kept = [name for name in tags if name.lower().startswith("aws:")]
    if kept:
        raise invalid_parameter(f"Tag keys can't begin with aws:, these do: {', '.join(kept)}")


def _resource(services: Services, request: Request) -> Target:
    """The function behind the resource's ARN. Raises ApiError for other kinds: there are none of them yet."""
    arn = request.parameters["Resource"]
    if ":function:" not in arn:
        kind = "Event source mapping" if ":event-source-mapping:" in arn else "Resource"
        raise ApiError("ResourceNotFoundException", 404, f"{kind} not found: {arn}")
    target = resolve(arn, None, account=request.account, region=services.region, action=request.operation)
    if target.qualifier is not None:
        raise invalid_parameter(
            "Tags on function aliases and versions are not supported. Please specify a function ARN."
        )
    return target
