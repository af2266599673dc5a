"""Functions through real HTTP with the real client: states, revisions, outputs, errors, two accounts."""

import base64
import concurrent.futures
import hashlib
import re
import urllib.error
import urllib.request
from functools import partial
from typing import Any

import botocore.exceptions
import pytest

from tests.frontend_api.world import ACCOUNT, OTHER_ACCOUNT, REGION, ROLE, Served, archive

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"


def error_of(call: Any, **arguments: Any) -> dict[str, Any]:
    """The parsed error of a call that has to fail, with status and further members."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return {
        "code": response["Error"]["Code"],
        "message": response["Error"]["Message"],
        "status": response["ResponseMetadata"]["HTTPStatusCode"],
        **{key: value for key, value in response.items() if key not in {"Error", "ResponseMetadata"}},
    }


def settled(client: Any, name: str) -> dict[str, Any]:
    client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500})
    return dict(client.get_function_configuration(FunctionName=name))


def test_created_pending_then_active(client: Any, make: Any) -> None:
    created = make("states", MemorySize=256, Timeout=7, Description="what it does")
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert created["State"] == "Pending"
    assert created["StateReason"] == "The function is being created."
    assert created["StateReasonCode"] == "Creating"
    assert "LastUpdateStatus" not in created
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", created["LastModified"])
    now = client.get_function_configuration(FunctionName="states")
    assert (now["State"], now["LastUpdateStatus"]) == ("Active", "Successful")
    assert "StateReason" not in now
    assert now["RevisionId"] != created["RevisionId"]
    assert now["LastModified"] == created["LastModified"]


def test_the_output_has_what_aws_always_returns(client: Any, make: Any) -> None:
    make("output")
    now = client.get_function_configuration(FunctionName="output")
    now.pop("ResponseMetadata")
    assert re.fullmatch(r"[0-9a-f-]{36}", now.pop("RevisionId"))
    now.pop("LastModified")
    assert now.pop("RuntimeVersionConfig")["RuntimeVersionArn"].startswith(f"arn:aws:lambda:{REGION}::runtime:")
    assert now == {
        "FunctionName": "output",
        "FunctionArn": ARN + "output",
        "Runtime": "python3.11",
        "Role": ROLE,
        "Handler": "handler.main",
        "CodeSize": len(archive()),
        "Description": "",
        "Timeout": 3,
        "MemorySize": 128,
        "CodeSha256": base64.b64encode(hashlib.sha256(archive()).digest()).decode(),
        "Version": "$LATEST",
        "TracingConfig": {"Mode": "PassThrough"},
        "PackageType": "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/output"},
        "State": "Active",
        "LastUpdateStatus": "Successful",
    }


def test_every_form_of_the_name_finds_it(client: Any, make: Any) -> None:
    make("forms")
    partial = f"{ACCOUNT}:function:forms"
    for name in ("forms", "function:forms", partial, ARN + "forms", f"{REGION}:{partial}"):
        assert client.get_function(FunctionName=name)["Configuration"]["FunctionArn"] == ARN + "forms"
    for arguments in ({"FunctionName": "forms:$LATEST"}, {"FunctionName": "forms", "Qualifier": "$LATEST"}):
        got = client.get_function_configuration(**arguments)
        assert got["FunctionArn"] == ARN + "forms:$LATEST"
    error = error_of(client.get_function, FunctionName="forms:$LATEST", Qualifier="1")
    assert error["message"] == "The derived qualifier from the function name does not match the specified qualifier."
    error = error_of(client.get_function, FunctionName=ARN.replace(REGION, "eu-west-1") + "forms")
    assert error["message"] == "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"
    assert error_of(client.get_function, FunctionName="forms", Qualifier="7")["message"] == (
        f"Function not found: {ARN}forms:7"
    )


def test_the_code_downloads_from_its_location(client: Any, make: Any, api: Served) -> None:
    make("download")
    location = client.get_function(FunctionName="download")["Code"]["Location"]
    assert location.startswith(api.url + "/labda/code/")
    with urllib.request.urlopen(location) as answer:
        assert answer.read() == archive()
    forged = re.sub(r"expires=(\d+)", lambda m: f"expires={int(m[1]) + 1}", location)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(forged)
    assert caught.value.code == 403
    caught.value.close()


def test_updates_of_code(client: Any, make: Any) -> None:
    make("code")
    before = client.get_function_configuration(FunctionName="code")
    new = archive({"handler.py": "new = 1\n"})
    dry = client.update_function_code(FunctionName="code", ZipFile=new, DryRun=True)
    assert dry["CodeSize"] == len(new)
    assert client.get_function_configuration(FunctionName="code")["CodeSha256"] == before["CodeSha256"]
    stale = error_of(client.update_function_code, FunctionName="code", ZipFile=new, RevisionId="0")
    assert (stale["code"], stale["status"]) == ("PreconditionFailedException", 412)
    updated = client.update_function_code(FunctionName="code", ZipFile=new, RevisionId=before["RevisionId"])
    assert (updated["State"], updated["LastUpdateStatus"]) == ("Active", "InProgress")
    assert updated["LastUpdateStatusReason"] == "The function is being created."
    assert updated["LastModified"].endswith(".000+0000")
    done = settled(client, "code")
    assert done["LastUpdateStatus"] == "Successful"
    assert len({before["RevisionId"], updated["RevisionId"], done["RevisionId"]}) == 3


def test_updates_of_configuration_keep_what_is_left_out(client: Any, make: Any) -> None:
    make("configured", Environment={"Variables": {"AA": "1"}}, Description="d", Timeout=9)
    client.update_function_configuration(
        FunctionName="configured", MemorySize=512, EphemeralStorage={"Size": 1024}, Layers=[], KMSKeyArn="",
        DeadLetterConfig={"TargetArn": ""}, VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
    )
    now = settled(client, "configured")
    assert (now["MemorySize"], now["Timeout"], now["Description"]) == (512, 9, "d")
    assert now["EphemeralStorage"] == {"Size": 1024}
    assert now["Environment"] == {"Variables": {"AA": "1"}}
    client.update_function_configuration(FunctionName="configured", Environment={"Variables": {}}, Description="")
    now = settled(client, "configured")
    assert now["Environment"] == {"Variables": {}}
    assert now["Description"] == ""


def test_updates_wait_for_each_other(client: Any, make: Any, api: Served) -> None:
    """A frontend that holds a lease and doesn't acknowledge keeps the update in progress; then it is done."""
    make("slow")
    api.run(api.world.metadata.acknowledge("frontend-2", 0, 60))
    try:
        client.update_function_configuration(FunctionName="slow", Timeout=5)
        error = error_of(client.update_function_configuration, FunctionName="slow", Timeout=6)
        assert (error["code"], error["status"]) == ("ResourceConflictException", 409)
        assert error["message"] == (
            f"The operation cannot be performed at this time. An update is in progress for resource: {ARN}slow"
        )
        assert client.invoke(FunctionName="slow", Payload=b"1")["Payload"].read() == b"1"
        client.tag_resource(Resource=ARN + "slow", Tags={"still": "allowed"})
    finally:
        api.run(api.world.metadata.acknowledge("frontend-2", 0, 0))
    assert settled(client, "slow")["Timeout"] == 5


def test_a_function_being_created_can_be_deleted_and_not_invoked(client: Any, api: Served) -> None:
    api.run(api.world.metadata.acknowledge("frontend-2", 0, 60))
    try:
        client.create_function(
            FunctionName="unborn", Runtime="python3.11", Role=ROLE, Handler="h.m", Code={"ZipFile": archive()}
        )
        for error in (
            error_of(client.invoke, FunctionName="unborn"),
            error_of(client.update_function_configuration, FunctionName="unborn", Timeout=1),
        ):
            assert error["code"] == "ResourceConflictException"
            assert error["message"] == (
                "The operation cannot be performed at this time. "
                "The function is currently in the following state: Pending"
            )
    finally:
        api.run(api.world.metadata.acknowledge("frontend-2", 0, 0))
    assert client.delete_function(FunctionName="unborn")["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_deletion(client: Any, make: Any, api: Served) -> None:
    make("gone")
    assert error_of(client.delete_function, FunctionName="gone", Qualifier="$LATEST")["message"] == (
        "$LATEST version cannot be deleted without deleting the function."
    )
    assert error_of(client.delete_function, FunctionName="gone", Qualifier="live")["message"] == (
        "Deletion of aliases is not currently supported."
    )
    assert client.delete_function(FunctionName="gone", Qualifier="3")["ResponseMetadata"]["HTTPStatusCode"] == 204
    client.put_function_concurrency(FunctionName="gone", ReservedConcurrentExecutions=5)
    first = api.world.functions.cached(ACCOUNT, "gone")
    client.delete_function(FunctionName="gone")
    error = error_of(client.get_function, FunctionName="gone")
    assert (error["code"], error["status"]) == ("ResourceNotFoundException", 404)
    assert error["message"] == f"Function not found: {ARN}gone"
    assert error_of(client.invoke, FunctionName="gone")["message"] == f"Function not found: {ARN}gone:$LATEST"
    assert (ACCOUNT, "gone") not in api.world.limits.reserved
    make("gone")
    second = api.world.functions.cached(ACCOUNT, "gone")
    assert first is not None
    assert second is not None
    assert second.revision > first.revision  # invariant 8: no sandbox of the first serves the second


def test_the_same_name_twice(client: Any, make: Any) -> None:
    make("twice")
    error = error_of(
        client.create_function, FunctionName="twice", Runtime="python3.11", Role=ROLE, Handler="h.m",
        Code={"ZipFile": archive()},
    )
    assert (error["code"], error["status"], error["message"]) == (
        "ResourceConflictException", 409, "Function already exist: twice",
    )


def test_of_many_simultaneous_creations_one_wins(api: Served, client: Any) -> None:
    def attempt(_: int) -> str:
        try:
            client.create_function(
                FunctionName="raced", Runtime="python3.11", Role=ROLE, Handler="h.m", Code={"ZipFile": archive()}
            )
        except botocore.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        return "created"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    assert sorted(results) == ["ResourceConflictException"] * 7 + ["created"]
    client.delete_function(FunctionName="raced")


def test_lists_are_paged_and_leave_out_states(api: Served, make: Any) -> None:
    account = api.client(OTHER_ACCOUNT)
    for number in range(5):
        account.create_function(
            FunctionName=f"listed-{number}", Runtime="python3.11", Role=ROLE, Handler="h.m", Code={"ZipFile": archive()}
        )
    try:
        page = account.list_functions(MaxItems=2)
        assert [each["FunctionName"] for each in page["Functions"]] == ["listed-0", "listed-1"]
        assert not {"State", "LastUpdateStatus", "RuntimeVersionConfig"} & page["Functions"][0].keys()
        pages = account.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
        everything = pages.build_full_result()
        assert [each["FunctionName"] for each in everything["Functions"]] == [f"listed-{n}" for n in range(5)]
        versions = account.list_functions(FunctionVersion="ALL")["Functions"]
        assert all(each["FunctionArn"].endswith(":$LATEST") for each in versions)
        usage = account.get_account_settings()["AccountUsage"]
        assert usage == {"FunctionCount": 5, "TotalCodeSize": 5 * len(archive())}
        assert error_of(account.list_functions, Marker="?")["code"] == "InvalidParameterValueException"
        assert error_of(account.list_functions, MasterRegion="ALL")["code"] == "InvalidParameterValueException"
    finally:
        for number in range(5):
            account.delete_function(FunctionName=f"listed-{number}")


def test_the_only_version_is_latest(client: Any, make: Any) -> None:
    arn = make("versions")["FunctionArn"]
    answer = client.list_versions_by_function(FunctionName="versions", MaxItems=10_000)     # as Terraform asks
    assert [(one["Version"], one["FunctionArn"]) for one in answer["Versions"]] == [("$LATEST", f"{arn}:$LATEST")]
    assert "State" not in answer["Versions"][0]
    assert "NextMarker" not in answer
    listed = partial(error_of, client.list_versions_by_function)
    assert listed(FunctionName="versions", Marker="more")["code"] == "InvalidParameterValueException"
    assert listed(FunctionName="versions:1")["code"] == "InvalidParameterValueException"
    assert listed(FunctionName="nobody")["code"] == "ResourceNotFoundException"


def test_two_accounts_never_see_each_other(client: Any, other: Any, make: Any) -> None:
    make("private", Tags={"a": "b"})
    assert error_of(other.get_function, FunctionName="private")["code"] == "ResourceNotFoundException"
    assert other.list_functions()["Functions"] == []
    for call, arguments in (
        (other.get_function, {"FunctionName": ARN + "private"}),
        (other.invoke, {"FunctionName": ARN + "private"}),
        (other.delete_function, {"FunctionName": ARN + "private"}),
        (other.update_function_configuration, {"FunctionName": ARN + "private", "Timeout": 1}),
        (other.list_tags, {"Resource": ARN + "private"}),
        (other.put_function_concurrency, {"FunctionName": ARN + "private", "ReservedConcurrentExecutions": 0}),
    ):
        error = error_of(call, **arguments)
        assert (error["code"], error["status"]) == ("AccessDeniedException", 403)
    assert error_of(other.get_function, FunctionName=ARN + "absent")["code"] == "AccessDeniedException"


def test_tags(client: Any, make: Any) -> None:
    make("tagged", Tags={"one": "1"})
    arn = ARN + "tagged"
    before = client.get_function_configuration(FunctionName="tagged")
    client.tag_resource(Resource=arn, Tags={"two": "2", "one": "eins"})
    assert client.list_tags(Resource=arn)["Tags"] == {"one": "eins", "two": "2"}
    client.untag_resource(Resource=arn, TagKeys=["one", "absent"])
    assert client.get_function(FunctionName="tagged")["Tags"] == {"two": "2"}
    after = client.get_function_configuration(FunctionName="tagged")
    assert after["RevisionId"] != before["RevisionId"]
    assert after["LastModified"] == before["LastModified"]
    error = error_of(client.tag_resource, Resource=arn, Tags={f"t{n}": "" for n in range(50)})
    assert error["message"] == "Number of tags exceeds resource tag limit."
    error = error_of(client.tag_resource, Resource=arn + ":1", Tags={"a": "b"})
    assert error["message"] == (
        "Tags on function aliases and versions are not supported. Please specify a function ARN."
    )
    assert error_of(client.list_tags, Resource=ARN + "nobody")["message"] == f"Function not found: {ARN}nobody"
    client.untag_resource(Resource=arn, TagKeys=["two"])
    assert client.list_tags(Resource=arn)["Tags"] == {}
    assert "Tags" not in client.get_function(FunctionName="tagged")


def test_reserved_concurrency(client: Any, make: Any) -> None:
    make("reserved")
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName="reserved")
    before = client.get_function_configuration(FunctionName="reserved")
    put = client.put_function_concurrency(FunctionName="reserved", ReservedConcurrentExecutions=900)
    assert put["ReservedConcurrentExecutions"] == 900
    after = client.get_function_configuration(FunctionName="reserved")
    assert after["RevisionId"] != before["RevisionId"]
    client.put_function_concurrency(FunctionName="reserved", ReservedConcurrentExecutions=900)
    assert client.get_function_configuration(FunctionName="reserved")["RevisionId"] == after["RevisionId"]
    assert client.get_function(FunctionName="reserved")["Concurrency"] == {"ReservedConcurrentExecutions": 900}
    limit = client.get_account_settings()["AccountLimit"]
    assert (limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"]) == (1000, 100)
    error = error_of(client.put_function_concurrency, FunctionName="reserved", ReservedConcurrentExecutions=901)
    assert error["message"] == (
        "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below "
        "its minimum value of [100]."
    )
    error = error_of(client.put_function_concurrency, FunctionName="reserved:1", ReservedConcurrentExecutions=1)
    assert error["message"].startswith("This operation is permitted on Lambda functions only.")
    error = error_of(client.put_function_concurrency, FunctionName="nobody", ReservedConcurrentExecutions=1)
    assert error["message"] == f"Function not found: {ARN}nobody:$LATEST"
    for _ in range(2):
        gone = client.delete_function_concurrency(FunctionName="reserved")
        assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName="reserved")


def test_code_signing_is_answered_without_a_configuration(client: Any, make: Any) -> None:
    make("unsigned")
    answer = client.get_function_code_signing_config(FunctionName="unsigned")
    assert answer["FunctionName"] == "unsigned"
    assert "CodeSigningConfigArn" not in answer


def test_a_revision_is_kept_encrypted(client: Any, make: Any, api: Served) -> None:
    make("secretive", Environment={"Variables": {"TOKEN": "in plain sight"}})
    kept = api.run(api.world.metadata.get(f"accounts/{ACCOUNT}/functions/secretive"))
    assert kept is not None
    assert b"plain sight" not in kept.value
    assert b"TOKEN" not in kept.value
    found = client.get_function_configuration(FunctionName="secretive")
    assert found["Environment"] == {"Variables": {"TOKEN": "in plain sight"}}


def test_an_unknown_key_and_a_wrong_secret(api: Served) -> None:
    key = api.world.key()
    error = error_of(api.connect("AKIANOBODY", key.secret).list_functions)
    assert (error["status"], error["code"], error["message"]) == (
        403, "UnrecognizedClientException", "The security token included in the request is invalid.",
    )
    error = error_of(api.connect(key.key_id, "wrong").list_functions)
    assert error["code"] == "InvalidSignatureException"
    error = error_of(api.connect(key.key_id, key.secret, region_name="eu-west-1").list_functions)
    assert error["message"] == "Credential should be scoped to a valid region. "
