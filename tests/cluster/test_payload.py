"""Payloads at their limit, in and out, and one byte beyond."""

import json

import pytest
from botocore.exceptions import ClientError

IN_MAX = 6_291_456
OUT_MAX = 6_291_556
ECHO = "def handler(event, context):\n    return len(event)\n"
BIG = "def handler(event, context):\n    return 'x' * (event - 2)\n"  # two quotes around it


def test_request_of_six_megabytes_and_one_byte_more(functions, client):
    name = functions.make(ECHO, MemorySize=512)
    text = json.dumps("x" * (IN_MAX - 2)).encode()
    assert len(text) == IN_MAX
    response = client.invoke(FunctionName=name, Payload=text)
    assert json.loads(response["Payload"].read()) == IN_MAX - 2
    with pytest.raises(ClientError) as refused:
        client.invoke(FunctionName=name, Payload=text[:-1] + b'x"')
    assert refused.value.response["Error"]["Code"] == "RequestTooLargeException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert str(IN_MAX) in refused.value.response["Error"]["Message"]


def test_response_of_six_megabytes_and_one_byte_more(functions, client):
    name = functions.make(BIG, MemorySize=512)
    response = client.invoke(FunctionName=name, Payload=str(OUT_MAX).encode())
    assert len(response["Payload"].read()) == OUT_MAX
    assert "FunctionError" not in response
    result = functions.call(name, OUT_MAX + 1)
    assert result.error == "Unhandled"
    assert result.payload == {
        "errorMessage": f"Response payload size exceeded maximum allowed payload size ({OUT_MAX} bytes).",
        "errorType": "Function.ResponseSizeTooLarge",
    }
    assert functions.call(name, 10).payload == "x" * 8


def test_a_body_that_is_no_json_is_refused(functions, client):
    name = functions.make(ECHO)
    with pytest.raises(ClientError, match="Could not parse request body into json"):
        client.invoke(FunctionName=name, Payload=b"{")


def test_an_empty_body_is_an_empty_event(functions, client):
    name = functions.make("def handler(event, context):\n    return event\n")
    assert client.invoke(FunctionName=name)["Payload"].read() == b"{}"


def test_a_big_body_stalls_nobody(functions, client):
    """Small invokes go on while big ones pass over the same streams."""
    from concurrent.futures import ThreadPoolExecutor

    big, small = functions.make(BIG, MemorySize=512), functions.make(ECHO)
    with ThreadPoolExecutor(8) as pool:
        bodies = [pool.submit(functions.call, big, 5_000_000) for _ in range(4)]
        lengths = [pool.submit(functions.call, small, [1, 2, 3]) for _ in range(20)]
        assert {length.result().payload for length in lengths} == {3}
        assert {len(body.result().payload) for body in bodies} == {4_999_998}
