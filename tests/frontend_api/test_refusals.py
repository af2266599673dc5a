"""What is refused, and that it is refused by name: values not honoured yet, wrong archives, reserved names, sizes."""

import io
import struct
import zipfile
from typing import Any

import botocore
import pytest

from frontend.api.errors import ApiError
from frontend.api.honoured import RULES
from frontend.api.model import load
from frontend.api.operations import OPERATIONS
from frontend.packages import DIRECTORY_BYTES_MAX, check_archive
from tests.frontend_api.test_codec import sample
from tests.frontend_api.test_functions_api import error_of
from tests.frontend_api.world import ROLE, Served, archive


def creation(**changes: Any) -> dict[str, Any]:
    return {
        "FunctionName": "refused",
        "Runtime": "python3.11",
        "Role": ROLE,
        "Handler": "handler.main",
        "Code": {"ZipFile": archive()},
        **changes,
    }


LAYER = "arn:aws:lambda:us-east-1:000000000000:layer:name:1"
NOT_HONOURED: list[tuple[str, dict[str, Any]]] = [
    ("Publish", {"Publish": True}),
    ("Layers", {"Layers": [LAYER]}),
    ("VpcConfig", {"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}}),
    ("Code.S3Bucket", {"Code": {"S3Bucket": "bucket", "S3Key": "key"}}),
    ("PackageType", {"PackageType": "Image"}),
    ("Code.ImageUri", {"Code": {"ImageUri": "image"}}),
    ("DeadLetterConfig", {"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:q"}}),
    ("KMSKeyArn", {"KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/k"}),
    ("TracingConfig.Mode", {"TracingConfig": {"Mode": "Active"}}),
    ("SnapStart.ApplyOn", {"SnapStart": {"ApplyOn": "PublishedVersions"}}),
    ("LoggingConfig.LogFormat", {"LoggingConfig": {"LogFormat": "JSON"}}),
    ("LoggingConfig.LogGroup", {"LoggingConfig": {"LogGroup": "mine"}}),
    ("Architectures", {"Architectures": ["arm64"]}),
]


@pytest.mark.parametrize(("field", "changes"), NOT_HONOURED, ids=[field for field, _ in NOT_HONOURED])
def test_what_is_not_honoured_is_refused_by_name(client: Any, field: str, changes: dict[str, Any]) -> None:
    error = error_of(client.create_function, **creation(**changes))
    assert error["code"] == "InvalidParameterValueException"
    assert error["message"].startswith(f"{field} with the value ")
    assert error["message"].endswith(" is not honoured by labda yet.")


def test_documented_defaults_are_accepted(client: Any, make: Any) -> None:
    make(
        "defaults", Publish=False, PackageType="Zip", Architectures=["x86_64"], TracingConfig={"Mode": "PassThrough"},
        SnapStart={"ApplyOn": "None"}, Layers=[], VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
        LoggingConfig={"LogFormat": "Text", "LogGroup": "/aws/lambda/defaults"},
    )


def test_every_rule_names_a_member_of_the_model() -> None:
    """A field that botocore renames must not slip through."""
    model = load()
    for operation, rules in RULES.items():
        for rule in rules:
            shape = model.operations[operation].request
            for name in rule.path.split("."):
                assert shape is not None
                shape = shape.members[name].shape


def test_every_configuration_field_is_either_kept_or_ruled() -> None:
    """A new field of the model is refused or honoured, never stored and ignored: this test names it."""
    kept = {
        "FunctionName", "Runtime", "Role", "Handler", "Description", "Timeout", "MemorySize", "EphemeralStorage",
        "Environment", "Tags", "Code", "RevisionId", "ZipFile", "DryRun",
    }
    model = load()
    for operation in ("CreateFunction", "UpdateFunctionConfiguration", "UpdateFunctionCode"):
        ruled = {rule.path.split(".")[0] for rule in RULES[operation]}
        shape = model.operations[operation].request
        assert shape is not None
        assert shape.members.keys() - kept - ruled == set()


def test_every_other_operation_says_that_it_is_not_there_yet(client: Any) -> None:
    served = {*OPERATIONS, "Invoke"}
    others = load().operations.keys() - served
    assert len(served) == 16
    for name in sorted(others):
        shape = load().operations[name].request
        method = getattr(client, botocore.xform_name(name))
        error = error_of(method, **(sample(shape) if shape else {}))
        assert (error["status"], error["code"]) == (400, "InvalidRequestContentException"), name
        assert error["message"] == f"{name} is not there yet in labda."


def test_retired_unknown_and_absent_runtimes(client: Any) -> None:
    error = error_of(client.create_function, **creation(Runtime="python3.7"))
    assert error["message"] == (
        "The runtime parameter of python3.7 is no longer supported for creating or updating AWS Lambda functions. "
        "We recommend you use a supported runtime while creating or updating functions."
    )
    error = error_of(client.create_function, **creation(Runtime="cobol85"))
    assert error["code"] == "InvalidParameterValueException"
    assert error["message"].startswith(
        "Value cobol85 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [nodejs, "
    )
    assert error["message"].endswith("] or be a valid ARN")
    error = error_of(client.create_function, **creation(Runtime="nodejs22.x"))
    assert "which has: provided.al2023, python3.11." in error["message"]


def test_names_that_are_too_long_or_qualified(client: Any) -> None:
    error = error_of(client.create_function, **creation(FunctionName="x" * 65))
    assert error["code"] == "InvalidParameterValueException"
    assert error["message"] == (
        f"1 validation error detected: Value '{'x' * 65}' at 'functionName' failed to satisfy constraint: "
        "Member must have length less than or equal to 64"
    )
    for name in ("x:1", "x" * 141, "a b"):
        error = error_of(client.create_function, **creation(FunctionName=name))
        assert error["code"] == "InvalidParameterValueException"
    assert error_of(client.get_function, FunctionName="a b")["code"] == "ValidationException"


def test_environment_variables(client: Any) -> None:
    error = error_of(client.create_function, **creation(Environment={"Variables": {"AWS_REGION": "x", "GOOD": "y"}}))
    assert error["message"].endswith("Reserved keys used in this request: AWS_REGION")
    error = error_of(client.create_function, **creation(Environment={"Variables": {"KEY": "v" * 4096}}))
    assert error["message"] == (
        "Lambda was unable to configure your environment variables because the environment variables you have provided "
        'exceeded the 4KB limit. String measured: {"KEY":"' + "v" * 4096 + '"}'
    )


def packed(change: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        change(made)
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(archive())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


def bomb() -> bytes:
    data = bytearray(archive())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 262_144_000)
    return bytes(data)


def directory_too_large() -> bytes:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    directory = entry * (DIRECTORY_BYTES_MAX // len(entry) + 1)
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHII", 1, 1, len(directory), 0) + bytes(2)
    return directory + end


UNZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "not a zip": (b"no zip at all", UNZIP),
    "cut": (archive()[:-30], UNZIP),
    "traversal": (packed(lambda made: made.writestr("../evil", "x")), UNZIP),
    "absolute": (packed(lambda made: made.writestr("/etc/evil", "x")), UNZIP),
    "backslashes": (packed(lambda made: made.writestr("..\\evil", "x")), UNZIP),
    "encrypted": (encrypted(), UNZIP),
    "too many entries": (directory_too_large(), UNZIP),
    "empty": (packed(lambda _made: None), "Uploaded file must be a non-empty zip"),
    "too large unzipped": (bomb(), "Unzipped size must be smaller than 262144000 bytes"),
}


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_wrong_archives(name: str) -> None:
    data, message = ARCHIVES[name]
    with pytest.raises(ApiError) as caught:
        check_archive(data)
    assert (caught.value.code, caught.value.message) == ("InvalidParameterValueException", message)


def test_an_archive_that_is_too_large() -> None:
    with pytest.raises(ApiError) as caught:
        check_archive(bytes(52_428_801))
    assert (caught.value.code, caught.value.status) == ("RequestEntityTooLargeException", 413)
    assert caught.value.message == "Zipped size must be smaller than 52428800 bytes"


def test_good_archives_pass() -> None:
    check_archive(archive())
    check_archive(archive({"a/b/c.py": "", "..hidden": "", "d/": ""}))


def test_a_request_body_that_is_too_large(client: Any, api: Served) -> None:
    error = error_of(client.create_function, **creation(Code={"ZipFile": bytes(52_700_000)}))
    assert (error["status"], error["code"]) == (413, "RequestEntityTooLargeException")
    assert error["message"] == "Request must be smaller than 70167211 bytes for the CreateFunction operation"
    error = error_of(client.create_function, **creation(Code={"ZipFile": bytes(52_428_801)}))
    assert error["message"] == "Zipped size must be smaller than 52428800 bytes"
