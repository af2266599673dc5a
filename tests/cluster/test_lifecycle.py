"""A function's life by boto3 with its own waiters, and what the API tells about it."""

import base64
import contextlib
import hashlib
import json
import urllib.request

import pytest
from botocore.exceptions import ClientError

from tests.cluster.cluster import ROLE, RUNTIME, archive, call, until

ONE = "def handler(event, context):\n    return {'one': event, 'version': context.function_version}\n"
TWO = "def handler(event, context):\n    return {'two': event}\n"


def test_life(client):
    name, code = "life", archive({"app.py": ONE})
    made = client.create_function(
        FunctionName=name, Runtime=RUNTIME, Role=ROLE, Handler="app.handler", Code={"ZipFile": code},
        Environment={"Variables": {"COLOUR": "blue"}}, Tags={"team": "a"},
    )
    assert made["State"] == "Pending"
    assert made["CodeSha256"] == base64.b64encode(hashlib.sha256(code).digest()).decode()
    client.get_waiter("function_active_v2").wait(FunctionName=name)
    found = client.get_function(FunctionName=name)
    assert found["Tags"] == {"team": "a"}
    with urllib.request.urlopen(found["Code"]["Location"], timeout=30) as download:
        assert download.read() == code
    assert call(client, name, {"a": 1}).payload == {"one": {"a": 1}, "version": "$LATEST"}

    updated = client.update_function_code(FunctionName=name, ZipFile=archive({"app.py": TWO}))
    assert updated["LastUpdateStatus"] == "InProgress"
    client.get_waiter("function_updated_v2").wait(FunctionName=name)
    assert call(client, name, 2).payload == {"two": 2}

    client.update_function_configuration(FunctionName=name, MemorySize=256, Timeout=7, Description="x")
    client.get_waiter("function_updated_v2").wait(FunctionName=name)
    now = client.get_function_configuration(FunctionName=name)
    assert (now["MemorySize"], now["Timeout"], now["Description"]) == (256, 7, "x")
    assert name in [entry["FunctionName"] for entry in client.list_functions()["Functions"]]

    client.delete_function(FunctionName=name)
    until(lambda: is_unknown(client, name), "it is gone")   # at once, unless a frontend is silent at that moment
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        call(client, name)


def is_unknown(client, name):
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        client.get_function(FunctionName=name)
        return False
    return True


def test_invoke_details(functions):
    source = (
        "def handler(event, context):\n"
        "    print('said', event)\n"
        "    return {'client': context.client_context.custom if context.client_context else None,\n"
        "            'arn': context.invoked_function_arn, 'id': context.aws_request_id,\n"
        "            'left': context.get_remaining_time_in_millis(), 'memory': context.memory_limit_in_mb}\n"
    )
    name = functions.make(source)
    context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    result = functions.call(name, {"x": 1}, LogType="Tail", ClientContext=context)
    assert result.error is None
    assert result.payload["client"] == {"k": "v"}
    assert result.payload["arn"].endswith(f":function:{name}")
    assert result.payload["id"] == result.response["ResponseMetadata"]["RequestId"]
    assert 0 < result.payload["left"] <= 30_000
    assert result.payload["memory"] == "128"
    assert result.response["ExecutedVersion"] == "$LATEST"
    log = base64.b64decode(result.response["LogResult"]).decode()
    identity = result.payload["id"]
    assert f"START RequestId: {identity} Version: $LATEST" in log
    assert "said {'x': 1}" in log
    assert f"END RequestId: {identity}" in log
    assert "Init Duration:" in log
    assert functions.call(name, Qualifier="$LATEST").response["StatusCode"] == 200
    assert functions.call(name, InvocationType="DryRun").response["StatusCode"] == 204


def test_sandboxes_are_reused_and_keep_their_state(cluster, functions):
    name = functions.make("n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    return n\n")
    for number in range(1, 5):
        assert functions.call(name).payload == number
        until(lambda: cluster.function(name)["running"] == 0, "its sandbox is idle")


def test_environment_variables_reach_the_function(functions):
    name = functions.make(
        "import os\ndef handler(event, context):\n    return dict(os.environ)\n",
        Environment={"Variables": {"COLOUR": "blue", "EMPTY": "", "UMLAUT": "größe"}},
    )
    seen = functions.call(name).payload
    assert (seen["COLOUR"], seen["EMPTY"], seen["UMLAUT"]) == ("blue", "", "größe")
    assert seen["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert seen["AWS_EXECUTION_ENV"] == f"AWS_Lambda_{RUNTIME}"
    assert seen["_HANDLER"] == "app.handler"
    assert seen["LAMBDA_TASK_ROOT"] == "/var/task"
    assert seen["AWS_REGION"] == "us-east-1"


def test_concurrency_settings(functions, client):
    name = functions.make(ONE)
    before = client.get_account_settings()["AccountLimit"]
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=7)
    try:
        assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 7
        assert client.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 7}
        now = client.get_account_settings()["AccountLimit"]
        assert now["UnreservedConcurrentExecutions"] == before["UnreservedConcurrentExecutions"] - 7
        with pytest.raises(client.exceptions.InvalidParameterValueException, match="below its minimum value of"):
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=901)
    finally:
        client.delete_function_concurrency(FunctionName=name)
    assert client.get_account_settings()["AccountLimit"] == before


def test_tags(functions, client):
    name = functions.make(ONE)
    arn = client.get_function_configuration(FunctionName=name)["FunctionArn"]
    client.tag_resource(Resource=arn, Tags={"a": "1", "b": "2"})
    client.untag_resource(Resource=arn, TagKeys=["a"])
    assert client.list_tags(Resource=arn)["Tags"] == {"b": "2"}
    assert "CodeSigningConfigArn" not in client.get_function_code_signing_config(FunctionName=name)


def test_what_is_not_there_yet_is_refused_by_name(functions, client):
    name = functions.make(ONE)
    with pytest.raises(ClientError, match="InvocationType"):
        client.invoke(FunctionName=name, InvocationType="Event", Payload=b"{}")
    with pytest.raises(ClientError, match="Layers"):
        client.update_function_configuration(
            FunctionName=name, Layers=["arn:aws:lambda:us-east-1:000000000000:layer:l:1"]
        )
    with pytest.raises(ClientError):
        client.create_alias(FunctionName=name, Name="live", FunctionVersion="$LATEST")


def test_stale_revision_is_refused(functions, client):
    name = functions.make(ONE)
    with pytest.raises(client.exceptions.PreconditionFailedException):
        client.update_function_configuration(FunctionName=name, Timeout=5, RevisionId="0" * 8)


def test_the_functions_own_boto3_wins(functions):
    name = functions.make("import boto3\ndef handler(event, context):\n    return boto3.__version__\n", MemorySize=1769)
    assert functions.call(name).payload.startswith("1.")
    own = "def handler(event, context):\n    import boto3\n    return boto3.MINE\n"
    functions.client.update_function_code(
        FunctionName=name, ZipFile=archive({"app.py": own, "boto3/__init__.py": "MINE = 'own'\n"})
    )
    functions.settle(name)
    assert functions.call(name).payload == "own"


def test_provided_runtime(functions, client):
    bootstrap = (
        "#!/bin/sh\n"
        "while true; do\n"
        '  headers="$(mktemp)"\n'
        '  event=$(curl -sS -D "$headers" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next")\n'
        "  id=$(grep -i '^lambda-runtime-aws-request-id:' \"$headers\" | tr -d '\\r' | cut -d' ' -f2)\n"
        '  curl -sS -o /dev/null -d "{\\"echo\\": $event, \\"handler\\": \\"$_HANDLER\\"}" '
        '"http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"\n'
        "done\n"
    )
    name = "provided"
    client.create_function(
        FunctionName=name, Runtime="provided.al2023", Role=ROLE, Handler="anything", Timeout=30,
        Code={"ZipFile": archive({"bootstrap": bootstrap})},
    )
    try:
        functions.settle(name)
        assert functions.call(name, {"a": 1}).payload == {"echo": {"a": 1}, "handler": "anything"}
    finally:
        client.delete_function(FunctionName=name)
