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
from frontend.configuration import check_runtime, configuration_changes
from frontend.packages import DIRECTORY_BYTES_MAX, check_archive
from tests.frontend_api.test_codec import sample
from tests.frontend_api.test_functions_api import error_of
from tests.frontend_api.world import ROLE, RUNTIMES, Served, archive


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
    assert len(served) == 17
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
    for runtime in ("cobol85", "python3.7", "nodejs22.x"):
        with pytest.raises(ApiError) as caught:
            check_runtime(runtime, load(), RUNTIMES)
        assert isinstance(caught.value.detail, dict)
        assert caught.value.detail["runtimes"] == ["provided.al2023", "python3.11"], "those that this region has"
    error = error_of(client.create_function, **creation(Runtime="nodejs22.x"))
    assert "which has: provided.al2023, python3.11." in error["message"]


OUT_OF_RANGE: list[tuple[dict[str, Any], str, str, str]] = [
    ({"Timeout": 0}, "0", "timeout", "greater than or equal to 1"),
    ({"Timeout": 901}, "901", "timeout", "less than or equal to 900"),
    ({"MemorySize": 127}, "127", "memorySize", "greater than or equal to 128"),
    ({"MemorySize": 10_241}, "10241", "memorySize", "less than or equal to 10240"),
    ({"EphemeralStorage": {"Size": 511}}, "511", "ephemeralStorage.size", "greater than or equal to 512"),
    ({"EphemeralStorage": {"Size": 10_241}}, "10241", "ephemeralStorage.size", "less than or equal to 10240"),
]


@pytest.mark.parametrize(
    ("changes", "value", "path", "bound"), OUT_OF_RANGE, ids=[f"{case[2]} {case[1]}" for case in OUT_OF_RANGE]
)
def test_values_out_of_range(
    api: Served, make: Any, changes: dict[str, Any], value: str, path: str, bound: str
) -> None:
    unchecked = api.client(config={"parameter_validation": False})
    make("ranged")
    broken = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must have value {bound}"
    sentence = f"1 validation error detected: {broken}"
    for operation, parameters in (
        (unchecked.create_function, creation(**changes)),
        (unchecked.update_function_configuration, {"FunctionName": "ranged", **changes}),
    ):
        error = error_of(operation, **parameters)
        assert (error["status"], error["code"], error["message"]) == (400, "ValidationException", sentence)


@pytest.mark.parametrize(("handler", "constraint"), [
    ("a b", r"Member must satisfy regular expression pattern: [^\s]+"),
    ("h" * 129, "Member must have length less than or equal to 128"),
])
def test_handlers_that_can_not_be_right(client: Any, handler: str, constraint: str) -> None:
    """Any other string is stored, as AWS does: whether the module has it is known when it is loaded."""
    error = error_of(client.create_function, **creation(Handler=handler))
    assert (error["status"], error["code"]) == (400, "ValidationException")
    assert error["message"] == (
        f"1 validation error detected: Value '{handler}' at 'handler' failed to satisfy constraint: {constraint}"
    )


def test_an_unknown_function_is_told_by_every_operation(client: Any) -> None:
    arn = "arn:aws:lambda:us-east-1:000000000000:function:nobody"
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (client.invoke, {}, f"{arn}:$LATEST"),
        (client.get_function, {}, arn),
        (client.get_function_configuration, {}, arn),
        (client.update_function_code, {"ZipFile": archive()}, arn),
        (client.update_function_configuration, {"Timeout": 3}, arn),
        (client.put_function_concurrency, {"ReservedConcurrentExecutions": 1}, f"{arn}:$LATEST"),
        (client.delete_function, {}, arn),
    ]
    for operation, parameters, shown in calls:
        error = error_of(operation, FunctionName="nobody", **parameters)
        assert (error["status"], error["code"]) == (404, "ResourceNotFoundException")
        assert error["message"] == f"Function not found: {shown}"


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


def test_what_can_not_reach_a_process_is_not_stored(client: Any, make: Any) -> None:
    """Every invoke of it would fail, and only a worker's log would say why."""
    make("reached")
    named = {"Variables": {"GOOD": "y", "SPOILT": "x\0y"}}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"Environment": named}, "The environment variable SPOILT has a NUL character", "Environment.Variables.SPOILT"),
        ({"Handler": "app\0.main"}, "The handler has a NUL character", "Handler"),
        ({"Environment": {"Variables": {"N" * 257: "x"}}}, "has a name of 257 characters", "Environment.Variables"),
    ]
    for changes, said, field in cases:
        with pytest.raises(ApiError) as caught:
            configuration_changes(changes, load(), RUNTIMES)
        assert isinstance(caught.value.detail, dict)
        assert caught.value.detail["field"] == field
        for operation, parameters in (
            (client.create_function, creation(**changes)),
            (client.update_function_configuration, {"FunctionName": "reached", **changes}),
        ):
            error = error_of(operation, **parameters)
            assert (error["status"], error["code"]) == (400, "InvalidParameterValueException")
            assert said in error["message"]
    assert "Environment" not in client.get_function_configuration(FunctionName="reached")
    client.update_function_configuration(FunctionName="reached", Environment={"Variables": {"N" * 256: "x"}})


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


def packed_by(method: int) -> bytes:
    data = bytearray(archive())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 10, method)
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


def unix(name: str, mode: int, content: bytes = b"x") -> Any:
    """An entry as Unix packers make it."""

    def change(made: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo(name)
        entry.create_system = 3
        entry.external_attr = mode << 16
        made.writestr(entry, content)

    return change


def overlapping() -> bytes:
    """Two entries of the directory for the same bytes."""
    data = packed(lambda made: made.writestr("one", "y" * 1000))
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    directory, tail = data[start:end], bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 2, 2, 2 * len(directory))
    return data[:start] + directory + directory.replace(b"one", b"two") + bytes(tail)


def below_a_link(made: zipfile.ZipFile) -> None:
    unix("d", 0o120777, b".")(made)
    unix("d/x", 0o100644)(made)


UNZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."
# What is sent, the entry that the answer names, and a word of its reason.
ARCHIVES: dict[str, tuple[bytes, str, str]] = {
    "not a zip": (b"no zip at all", "", "no readable zip"),
    "cut": (archive()[:-30], "", "no readable zip"),
    "traversal": (packed(lambda made: made.writestr("../evil", "x")), "../evil", "leads out"),
    "absolute": (packed(lambda made: made.writestr("/etc/evil", "x")), "/etc/evil", "absolute"),
    "backslashes": (packed(lambda made: made.writestr("..\\evil", "x")), "..\\evil", "leads out"),
    "symlink out": (packed(unix("l", 0o120777, b"../../etc/passwd")), "l", "leads out"),
    "absolute symlink": (packed(unix("l", 0o120777, b"/etc/passwd")), "l", "leads out"),
    "below a symlink": (packed(below_a_link), "d/x", "no directory"),
    "device": (packed(unix("dev", 0o020666)), "dev", "device"),
    "pipe": (packed(unix("pipe", 0o010666)), "pipe", "device"),
    "setuid": (packed(unix("su", 0o104755)), "su", "setuid"),
    "encrypted": (encrypted(), "handler.py", "encrypted"),
    "unknown compression": (packed_by(99), "handler.py", "method 99"),
    "overlapping": (overlapping(), "", "overlaps"),
    "long name": (packed(lambda made: made.writestr("n" * 300, "x")), "n" * 80, "too long"),
    "too many entries": (directory_too_large(), "", "package fewer files"),
}


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_wrong_archives_are_refused_at_the_upload(name: str) -> None:
    data, entry, reason = ARCHIVES[name]
    with pytest.raises(ApiError) as caught:
        check_archive(data)
    error = caught.value
    assert (error.code, error.status, error.message) == ("InvalidParameterValueException", 400, UNZIP)
    detail = error.detail
    assert isinstance(detail, dict)
    assert detail["field"] == "ZipFile"
    assert reason in detail["reason"]
    if name != "overlapping":   # either of the two
        assert detail.get("entry", "") == entry


def test_a_wrong_archive_changes_nothing(client: Any, make: Any, api: Served) -> None:
    before = make("kept", Code={"ZipFile": archive()})["CodeSha256"]
    error = error_of(client.update_function_code, FunctionName="kept", ZipFile=b"no zip at all")
    assert (error["status"], error["code"], error["message"]) == (400, "InvalidParameterValueException", UNZIP)
    assert client.get_function_configuration(FunctionName="kept")["CodeSha256"] == before
    error = error_of(client.create_function, **creation(Code={"ZipFile": overlapping()}))
    assert error["message"] == UNZIP
    assert error_of(client.get_function, FunctionName="refused")["code"] == "ResourceNotFoundException"


def test_an_archive_without_files() -> None:
    with pytest.raises(ApiError) as caught:
        check_archive(packed(lambda _made: None))
    assert caught.value.message == "Uploaded file must be a non-empty zip"


def test_archives_that_are_too_large() -> None:
    with pytest.raises(ApiError) as caught:
        check_archive(bytes(52_428_801))
    assert (caught.value.code, caught.value.status) == ("RequestEntityTooLargeException", 413)
    assert caught.value.message == "Zipped size must be smaller than 52428800 bytes"
    assert caught.value.detail == {"field": "ZipFile", "value_bytes": 52_428_801, "limit_bytes": 52_428_800}
    with pytest.raises(ApiError) as caught:
        check_archive(bomb())
    assert (caught.value.code, caught.value.status) == ("InvalidParameterValueException", 400)
    assert caught.value.message == "Unzipped size must be smaller than 262144000 bytes"
    assert caught.value.detail == {"field": "ZipFile", "value_bytes": 262_144_000, "limit_bytes": 262_144_000}


def test_good_archives_pass() -> None:
    check_archive(archive())
    check_archive(archive({"a/b/c.py": "", "..hidden": "", "d/": ""}))
    check_archive(packed(unix("bin/run", 0o100755)))
    check_archive(packed(lambda made: (unix("lib/a", 0o100644)(made), unix("b", 0o120777, b"lib/a")(made))))


def test_a_request_body_that_is_too_large(client: Any, api: Served) -> None:
    error = error_of(client.create_function, **creation(Code={"ZipFile": bytes(52_700_000)}))
    assert (error["status"], error["code"]) == (413, "RequestEntityTooLargeException")
    assert error["message"] == "Request must be smaller than 70167211 bytes for the CreateFunction operation"
    error = error_of(client.create_function, **creation(Code={"ZipFile": bytes(52_428_801)}))
    assert error["message"] == "Zipped size must be smaller than 52428800 bytes"
