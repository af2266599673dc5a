"""Fields and values of the model that this release doesn't honour yet.

Owns the one table of them and the refusal, which names field and value: nothing is stored and then ignored. Refuses to
know what the honoured fields mean.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .errors import invalid_parameter


class Rule(NamedTuple):
    """Under ``path`` only ``allowed`` values mean what labda does; ``allowed`` may depend on the function's name."""

    path: str
    allowed: Callable[[Any, str], bool]
    instead: str = "leave it out"


def _only(*values: Any) -> Callable[[Any, str], bool]:
    return lambda value, _name: value in values


def _never(_value: Any, _name: str) -> bool:
    return False


def _empty(value: Any, _name: str) -> bool:
    """Empty objects, lists and texts ask for what labda does without the feature."""
    if isinstance(value, dict):
        return all(_empty(item, _name) or item is False for item in value.values())
    return value in ("", [])


def _default_group(value: Any, name: str) -> bool:
    return bool(value == f"/aws/lambda/{name}")


_CONFIGURATION = (
    Rule("VpcConfig", _empty),
    Rule("DeadLetterConfig", _empty),
    Rule("KMSKeyArn", _empty),
    Rule("TracingConfig.Mode", _only("PassThrough"), "leave it out or give PassThrough"),
    Rule("Layers", _empty, "package the layer's files with the function"),
    Rule("FileSystemConfigs", _empty),
    Rule("ImageConfig", _empty),
    Rule("SnapStart.ApplyOn", _only("None"), "leave it out or give None"),
    Rule("LoggingConfig.LogFormat", _only("Text"), "leave it out or give Text"),
    Rule("LoggingConfig.ApplicationLogLevel", _never),
    Rule("LoggingConfig.SystemLogLevel", _never),
    Rule("LoggingConfig.LogGroup", _default_group, "leave it out: the log group is /aws/lambda/<function name>"),
    Rule("CapacityProviderConfig", _never),
    Rule("DurableConfig", _never),
    Rule("RuntimeConfig", _never),
    Rule("AcceleratorConfig", _never),
)

_CODE = (
    Rule("S3Bucket", _never, "give the archive as ZipFile"),
    Rule("S3Key", _never, "give the archive as ZipFile"),
    Rule("S3ObjectVersion", _never, "give the archive as ZipFile"),
    Rule("S3ObjectStorageMode", _only("COPY")),
    Rule("ImageUri", _never, "give an archive as ZipFile"),
    Rule("SourceKMSKeyArn", _empty),
)

_PUBLISHING = (
    Rule("Publish", _only(False), "leave it out: there is only $LATEST"),
    Rule("PublishTo", _never),
    Rule("Architectures", _only(["x86_64"]), "leave it out or give x86_64"),
)

RULES: Mapping[str, tuple[Rule, ...]] = {
    "CreateFunction": (
        Rule("PackageType", _only("Zip"), "leave it out or give Zip"),
        *(Rule(f"Code.{rule.path}", rule.allowed, rule.instead) for rule in _CODE),
        *_PUBLISHING,
        *_CONFIGURATION,
        Rule("CodeSigningConfigArn", _never),
        Rule("TenancyConfig", _never),
    ),
    "UpdateFunctionCode": (*_CODE, *_PUBLISHING),
    "UpdateFunctionConfiguration": _CONFIGURATION,
    "ListFunctions": (Rule("MasterRegion", _never),),
    "Invoke": (
        Rule("InvocationType", _only("RequestResponse", "DryRun"), "give RequestResponse"),
        Rule("DurableExecutionName", _never),
        Rule("TenantId", _never),
    ),
}


def refuse_unhonoured(operation: str, request: Mapping[str, Any], function_name: str = "") -> None:
    """Raise InvalidParameterValueException for the first field whose value isn't honoured."""
    for rule in RULES.get(operation, ()):
        value = _at(request, rule.path)
        if value is not None and not rule.allowed(value, function_name):
            raise invalid_parameter(
                f"{rule.path} with the value {_shown(value)} is not honoured by labda yet.",
                detail={"field": rule.path, "value": _shown(value), "remedy": rule.instead},
            )


def _at(request: Mapping[str, Any], path: str) -> Any:
    value: Any = request
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
