"""A function as the API shows it: FunctionConfiguration and its relatives (reference section 8.2).

Owns which keys are present when. Refuses to change anything.
"""

import base64
import enum
import hashlib
from typing import Any

from frontend.functions import FunctionRecord, Phase
from frontend.identifiers import LATEST, PARTITION, function_arn


class Shown(enum.Enum):
    """Where a configuration is shown; lists leave out states and the runtime's version."""

    SINGLE = "single"
    LIST = "list"


def configuration(
    record: FunctionRecord, region: str, *, shown: Shown = Shown.SINGLE, qualifier: str | None = None
) -> dict[str, Any]:
    """FunctionConfiguration. ``qualifier`` is what was asked for, it is in the ARN then."""
    kept = record.configuration
    output: dict[str, Any] = {
        "FunctionName": record.name,
        "FunctionArn": function_arn(region, record.account, record.name, qualifier),
        "Runtime": kept.runtime,
        "Role": kept.role,
        "Handler": kept.handler,
        "CodeSize": record.code.size_bytes,
        "Description": kept.description,
        "Timeout": kept.timeout_s,
        "MemorySize": kept.memory_mb,
        "LastModified": record.last_modified,
        "CodeSha256": base64.b64encode(bytes.fromhex(record.code.sha256)).decode(),
        "Version": LATEST,
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": record.revision_id,
        "PackageType": "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": kept.tmp_mb},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{record.name}"},
    }
    if kept.environment is not None:
        output["Environment"] = {"Variables": dict(kept.environment)}
    if shown is Shown.SINGLE:
        output["RuntimeVersionConfig"] = {"RuntimeVersionArn": runtime_version_arn(kept.runtime, region)}
        output.update(state(record.phase))
    return output


def state(phase: Phase) -> dict[str, str]:
    """The State members. AWS uses the words about creation for updates as well."""
    match phase:
        case Phase.CREATING:
            return {
                "State": "Pending",
                "StateReason": "The function is being created.",
                "StateReasonCode": "Creating",
            }
        case Phase.ACTIVE:
            return {"State": "Active", "LastUpdateStatus": "Successful"}
        case Phase.UPDATING:
            return {
                "State": "Active",
                "LastUpdateStatus": "InProgress",
                "LastUpdateStatusReason": "The function is being created.",
                "LastUpdateStatusReasonCode": "Creating",
            }


def runtime_version_arn(runtime: str, region: str) -> str:
    """Names the runtime; AWS's digits stand for a build, ours for the runtime's name."""
    digest = hashlib.sha256(f"labda runtime {runtime}".encode()).hexdigest()
    return f"arn:{PARTITION}:lambda:{region}::runtime:{digest}"
