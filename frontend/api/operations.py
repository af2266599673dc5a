"""Which operation is answered by what. What the model has and the table doesn't is refused as not there yet.

Invoke isn't here: it has a path of its own (``frontend.api.invoke_operation``).
"""

from collections.abc import Mapping

from . import concurrency_operations, function_operations, tag_operations
from .context import Answer, Handler, Request, Services
from .errors import not_there_yet

OPERATIONS: Mapping[str, Handler] = {
    "CreateFunction": function_operations.create_function,
    "GetFunction": function_operations.get_function,
    "GetFunctionConfiguration": function_operations.get_function_configuration,
    "ListFunctions": function_operations.list_functions,
    "ListVersionsByFunction": function_operations.list_versions_by_function,
    "UpdateFunctionCode": function_operations.update_function_code,
    "UpdateFunctionConfiguration": function_operations.update_function_configuration,
    "DeleteFunction": function_operations.delete_function,
    "GetFunctionCodeSigningConfig": function_operations.get_function_code_signing_config,
    "PutFunctionConcurrency": concurrency_operations.put_function_concurrency,
    "GetFunctionConcurrency": concurrency_operations.get_function_concurrency,
    "DeleteFunctionConcurrency": concurrency_operations.delete_function_concurrency,
    "GetAccountSettings": concurrency_operations.get_account_settings,
    "ListTags": tag_operations.list_tags,
    "TagResource": tag_operations.tag_resource,
    "UntagResource": tag_operations.untag_resource,
}


async def perform(services: Services, request: Request) -> Answer:
    """Answer a request. Raises ApiError, or a fault of what the operation used."""
    handler = OPERATIONS.get(request.operation)
    if handler is None:
        raise not_there_yet(request.operation)
    return await handler(services, request)
