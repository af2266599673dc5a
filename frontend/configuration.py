"""From a request's fields to a function's configuration.

Owns the checks that the model can't express: runtimes, handler, environment variables, names (reference sections 1.3,
1.7, 4.3), and which request field sets which field of the configuration. Refuses to know states and storage.
"""

import json
from collections.abc import Mapping
from typing import Any

from frontend.api.errors import ApiError, invalid_parameter
from frontend.api.model import Model
from frontend.api.validation import Violation, as_error
from frontend.functions import Configuration
from frontend.identifiers import NAME_CHARACTERS_MAX

ENVIRONMENT_BYTES_MAX = 4096
VARIABLE_CHARACTERS_MAX = 256   # of a name, as sandboxes take it

# Set by the platform and not for customers to set (section 4.3; AWS_ACCESS_KEY as well).
RESERVED_VARIABLES = frozenset({
    "_HANDLER", "_X_AMZN_TRACE_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
    "AWS_LAMBDA_MAX_CONCURRENCY", "AWS_LAMBDA_METADATA_API", "AWS_LAMBDA_METADATA_TOKEN",
})

# Runtimes that AWS no longer lets anybody create functions with: data, extended as AWS retires more.
RETIRED_RUNTIMES = frozenset({
    "nodejs", "nodejs4.3", "nodejs4.3-edge", "nodejs6.10", "nodejs8.10", "nodejs10.x", "nodejs12.x", "nodejs14.x",
    "java8", "python2.7", "python3.6", "python3.7", "dotnetcore1.0", "dotnetcore2.0", "dotnetcore2.1", "dotnetcore3.1",
    "go1.x", "ruby2.5", "ruby2.7", "provided",
})

# Request field -> field of the configuration, for those that are copied as they are.
_PLAIN: Mapping[str, str] = {
    "Role": "role",
    "Runtime": "runtime",
    "Handler": "handler",
    "Description": "description",
    "Timeout": "timeout_s",
    "MemorySize": "memory_mb",
}


def new_configuration(request: Mapping[str, Any], model: Model, runtimes: frozenset[str]) -> Configuration:
    """The configuration of a function to be created. Raises ApiError."""
    for name in ("Runtime", "Handler"):
        if request.get(name) is None:
            raise invalid_parameter(f"{name} is mandatory for functions created with deployment packages.")
    return Configuration(**configuration_changes(request, model, runtimes))


def configuration_changes(
    request: Mapping[str, Any], model: Model, runtimes: frozenset[str]
) -> dict[str, Any]:
    """The fields that a request sets; what it leaves out stays (section 8.5). Raises ApiError."""
    changes = {ours: request[theirs] for theirs, ours in _PLAIN.items() if theirs in request}
    if "\0" in changes.get("handler", ""):
        raise _unreachable("handler", "Handler")
    if "runtime" in changes:
        check_runtime(changes["runtime"], model, runtimes)
    if "EphemeralStorage" in request:
        changes["tmp_mb"] = request["EphemeralStorage"]["Size"]
    variables = request.get("Environment", {}).get("Variables")
    if variables is not None:
        check_environment(variables)
        changes["environment"] = variables
    return changes


def check_runtime(runtime: str, model: Model, runtimes: frozenset[str]) -> None:
    """Raise ApiError unless AWS has the runtime, still lets functions be made with it, and a worker here has it."""
    known = model.runtimes
    if runtime not in known:
        raise invalid_parameter(
            f"Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: "
            f"[{', '.join(known)}] or be a valid ARN",
            detail={"runtimes": sorted(runtimes)},
        )
    if runtime in RETIRED_RUNTIMES:
        raise invalid_parameter(
            f"The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda functions. "
            "We recommend you use a supported runtime while creating or updating functions.",
            detail={"runtimes": sorted(runtimes)},
        )
    if runtime not in runtimes:
        has = ", ".join(sorted(runtimes)) or "none (no worker is registered)"
        raise invalid_parameter(
            f"The runtime {runtime} is not on any worker of this region, which has: {has}.",
            detail={
                "runtimes": sorted(runtimes),
                "remedy": "Use one of these, or install the interpreter on the workers' hosts.",
            },
        )


def check_environment(variables: Mapping[str, str]) -> None:
    """Raise ApiError for reserved names, for more than 4,096 bytes, and for what no process can be given."""
    reserved = [name for name in variables if name in RESERVED_VARIABLES]
    if reserved:
        raise invalid_parameter(
            "Lambda was unable to configure your environment variables because the environment variables you have "
            "provided contains reserved keys that are currently not supported for modification. Reserved keys used in "
            f"this request: {', '.join(reserved)}"
        )
    for name, text in variables.items():
        if "\0" in text:
            raise _unreachable(f"environment variable {name}", f"Environment.Variables.{name}")
        if len(name) > VARIABLE_CHARACTERS_MAX:
            raise invalid_parameter(
                f"The environment variable {name[:40]}... has a name of {len(name)} characters, "
                f"{VARIABLE_CHARACTERS_MAX} at most are possible.",
                detail={"field": "Environment.Variables", "limit": VARIABLE_CHARACTERS_MAX, "value": len(name)},
            )
    measured = json.dumps(dict(variables), separators=(",", ":"), ensure_ascii=False)
    size = len(measured.encode("utf-8", "surrogatepass"))
    if size > ENVIRONMENT_BYTES_MAX:
        raise invalid_parameter(
            "Lambda was unable to configure your environment variables because the environment variables you have "
            f"provided exceeded the 4KB limit. String measured: {measured}",
            detail={"limit_bytes": ENVIRONMENT_BYTES_MAX, "measured_bytes": size},
        )


def _unreachable(what: str, field: str) -> ApiError:
    """A process is started with texts that end at the first NUL."""
    return invalid_parameter(
        f"The {what} has a NUL character, which a process can't be given.",
        detail={"field": field, "remedy": "Leave it out, or encode the value, in base64 for instance."},
    )


def check_new_name(text: str, name: str, qualifier: str | None) -> None:
    """Raise ApiError unless ``text`` (as sent) can name a new function."""
    if qualifier is not None:
        raise invalid_parameter(
            f"The function name {text} has the qualifier {qualifier}: a function is created without one."
        )
    if len(name) > NAME_CHARACTERS_MAX:
        constraint = f"Member must have length less than or equal to {NAME_CHARACTERS_MAX}"
        sentence = as_error([Violation("functionName", f"'{text}'", constraint)]).message
        raise ApiError("InvalidParameterValueException", 400, sentence)
