"""Invoke through real HTTP: bytes untouched, headers, refusals before a permit, and whatever goes wrong inside."""

import base64
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from frontend.api import invoke_operation
from frontend.api.errors import ApiError
from tests.frontend_api.test_functions_api import ARN, error_of
from tests.frontend_api.world import ACCOUNT, REGION, ROLE, Served, archive, served

MB_6 = 6_291_456


def invoke(client: Any, **arguments: Any) -> dict[str, Any]:
    """The answer with its payload read: an unread one keeps its connection."""
    answer = client.invoke(**arguments)
    answer["Payload"] = answer["Payload"].read()
    return dict(answer)


@pytest.fixture
def echo(make: Any) -> str:
    make("echo")
    return "echo"


@pytest.mark.parametrize("payload", [b'{"b" : 1,\n "a":[ ]}', b"null", b'"text"', b" 7 ", b"1" * 5000, '"ü"'.encode()])
def test_payload_bytes_are_not_touched(client: Any, echo: str, payload: bytes) -> None:
    answer = invoke(client, FunctionName=echo, Payload=payload)
    assert answer["Payload"] == payload
    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "$LATEST"
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["content-type"] == "application/json"
    assert headers["x-amzn-remapped-content-length"] == "0"
    assert headers["x-amzn-trace-id"].startswith("Root=1-")
    assert "Lineage=1:" in headers["x-amzn-trace-id"]
    assert "date" in headers
    assert "FunctionError" not in answer
    assert "LogResult" not in answer


def test_the_request_id_is_the_one_that_the_data_path_sees(client: Any, echo: str, api: Served) -> None:
    answer = invoke(client, FunctionName=echo)
    request = api.world.invoker.requests[-1]
    assert answer["ResponseMetadata"]["RequestId"] == request.request_id
    assert request.payload == b"{}"
    assert (request.account, request.qualifier, request.invoked_arn) == (ACCOUNT, None, ARN + "echo")


def test_the_invoked_arn_keeps_the_qualifier_as_asked(client: Any, echo: str, api: Served) -> None:
    invoke(client, FunctionName=echo, Qualifier="$LATEST")
    assert api.world.invoker.requests[-1].invoked_arn == ARN + "echo:$LATEST"
    invoke(client, FunctionName=f"{ARN}echo:$LATEST")
    assert api.world.invoker.requests[-1].qualifier == "$LATEST"
    assert error_of(client.invoke, FunctionName=echo, Qualifier="2")["message"] == f"Function not found: {ARN}echo:2"


def test_log_tail_and_client_context(client: Any, echo: str, api: Served) -> None:
    context = base64.b64encode(b'{"custom": {"a": 1}}').decode()
    answer = invoke(client, FunctionName=echo, LogType="Tail", ClientContext=context)
    assert api.world.invoker.requests[-1].client_context == '{"custom": {"a": 1}}'
    assert base64.b64decode(answer["LogResult"]) == b"START\n" + "\u00e9".encode() * 3000, "the worker has cut it"
    assert error_of(client.invoke, FunctionName=echo, ClientContext="%%%")["code"] == "InvalidRequestContentException"


def test_the_limit_of_a_client_context_is_of_what_the_function_gets(client: Any, echo: str, api: Served) -> None:
    """3,583 bytes of JSON, 4,780 of base64."""
    most = json.dumps("x" * 3581)
    invoke(client, FunctionName=echo, ClientContext=base64.b64encode(most.encode()).decode())
    assert api.world.invoker.requests[-1].client_context == most
    more = base64.b64encode(json.dumps("x" * 3582).encode()).decode()
    error = error_of(client.invoke, FunctionName=echo, ClientContext=more)
    assert (error["status"], error["code"]) == (400, "InvalidRequestContentException")
    assert error["message"] == (
        "Client context must be at most 3583 bytes of JSON before it is encoded in base64, it has 3584."
    )


def test_what_a_streaming_handler_answered_is_no_json(client: Any, make: Any) -> None:
    make("streaming")
    answer = client.invoke(FunctionName="streaming", Payload=b"{}")
    assert answer["ResponseMetadata"]["HTTPHeaders"]["content-type"] == "application/octet-stream"


def test_a_function_error_is_a_200(client: Any, make: Any) -> None:
    make("failing")
    answer = invoke(client, FunctionName="failing", Payload=b"{}")
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")


def test_dry_run_runs_nothing(client: Any, echo: str, api: Served) -> None:
    before = len(api.world.invoker.requests)
    answer = invoke(client, FunctionName=echo, InvocationType="DryRun")
    assert answer["StatusCode"] == 204
    assert "ExecutedVersion" not in answer
    assert len(api.world.invoker.requests) == before
    assert error_of(client.invoke, FunctionName="nobody", InvocationType="DryRun")["status"] == 404


def test_event_is_refused_by_name(client: Any, echo: str) -> None:
    error = error_of(client.invoke, FunctionName=echo, InvocationType="Event")
    assert error["message"] == "InvocationType with the value Event is not honoured by labda yet."
    error = error_of(client.invoke, FunctionName=echo, InvocationType="Soon")
    assert error["message"] == (
        "1 validation error detected: Value 'Soon' at 'invocationType' failed to satisfy constraint: "
        "Member must satisfy enum value set: [Event, RequestResponse, DryRun]"
    )
    assert "TenantId" in error_of(client.invoke, FunctionName=echo, TenantId="t")["message"]


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"NaN", b"{} {}", b"-Infinity", b"[" * 100_000, b"'a'"])
def test_a_payload_that_is_not_json(client: Any, echo: str, api: Served, payload: bytes) -> None:
    before = len(api.world.invoker.requests)
    error = error_of(client.invoke, FunctionName=echo, Payload=payload)
    assert (error["status"], error["code"]) == (400, "InvalidRequestContentException")
    assert error["message"].startswith(
        "Could not parse request body into json: Could not parse payload into json: "
    )
    assert len(api.world.invoker.requests) == before


def test_six_megabytes_pass_and_one_byte_more_does_not(client: Any, echo: str) -> None:
    payload = b'"' + b"x" * (MB_6 - 2) + b'"'
    assert invoke(client, FunctionName=echo, Payload=payload)["Payload"] == payload
    error = error_of(client.invoke, FunctionName=echo, Payload=payload + b" ")
    assert (error["status"], error["code"]) == (413, "RequestTooLargeException")
    assert error["message"] == (
        "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)"
    )


def test_a_throttle(client: Any, make: Any) -> None:
    make("throttled")
    error = error_of(client.invoke, FunctionName="throttled")
    assert (error["status"], error["code"], error["message"]) == (429, "TooManyRequestsException", "Rate Exceeded.")
    assert error["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert error["retryAfterSeconds"] == "1"


def test_unavailable_and_broken_insides(client: Any, make: Any) -> None:
    make("unavailable")
    make("broken")
    error = error_of(client.invoke, FunctionName="unavailable")
    assert (error["status"], error["code"]) == (503, "ServiceUnavailableException")
    error = error_of(client.invoke, FunctionName="broken")
    assert (error["status"], error["code"]) == (500, "ServiceException")
    assert "secret" not in json.dumps(error)


def test_what_the_end_of_a_frontend_cuts_off_is_told_so() -> None:
    with ThreadPoolExecutor(1) as pool:
        with served() as ending:
            client = ending.client()
            client.create_function(
                FunctionName="endless", Runtime="python3.11", Role=ROLE, Handler="handler.main",
                Code={"ZipFile": archive()},
            )
            client.get_waiter("function_active_v2").wait(
                FunctionName="endless", WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
            )
            told = pool.submit(error_of, client.invoke, FunctionName="endless")
            deadline = time.monotonic() + 60
            while not ending.world.invoker.requests:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        error = told.result(60)
    assert (error["status"], error["code"]) == (500, "ServiceException")
    assert "whether its work was done is not known" in error["message"]


def raw(
    api: Served, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and document of a request as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    found = {key.lower(): value for key, value in answer.getheaders()}
    document = json.loads(answer.read())
    connection.close()
    return answer.status, found, document


def test_without_a_signature(api: Served) -> None:
    status, headers, document = raw(api, "POST", "/2015-03-31/functions/echo/invocations", b"{}")
    assert status == 403
    assert headers["x-amzn-errortype"] == "MissingAuthenticationTokenException"
    assert headers["content-type"] == "application/json"
    assert len(headers["x-amzn-requestid"]) == 36
    assert document == {"message": "Missing Authentication Token"}


def signed(api: Served, method: str, path: str) -> dict[str, str]:
    """The headers of a signed request without a body."""
    key = api.world.key()
    request = botocore.awsrequest.AWSRequest(method, api.url + path)
    credentials = botocore.credentials.Credentials(key.key_id, key.secret)
    botocore.auth.SigV4Auth(credentials, "lambda", REGION).add_auth(request)
    return dict(request.headers)


def test_detail_is_an_extra_member(api: Served, make: Any) -> None:
    make("throttled-too")
    path = "/2015-03-31/functions/throttled-too/invocations"
    status, _, document = raw(api, "POST", path, headers=signed(api, "POST", path))
    assert status == 429
    assert document["message"] == "Rate Exceeded."
    assert document["Detail"]["limit"] == 0


def test_an_unknown_path_is_404_for_who_may_ask(api: Served) -> None:
    path = "/2015-03-31/nothing"
    status, headers, document = raw(api, "GET", path, headers=signed(api, "GET", path))
    assert status == 404
    assert headers["x-amzn-errortype"] == "UnknownOperationException"
    assert path in document["message"]
    assert raw(api, "GET", path)[0] == 403


@pytest.mark.parametrize(("method", "path"), [
    ("PATCH", "/2015-03-31/functions/echo"), ("DELETE", "/2015-03-31/functions/echo/invocations"),
    ("GET", "/2015-03-31/functions/echo/invocations"), ("POST", "/2014-11-13/functions/echo/invocations"), ("GET", "/"),
])
def test_a_wrong_method_or_path_is_told(api: Served, method: str, path: str) -> None:
    status, headers, document = raw(api, method, path, headers=signed(api, method, path))
    assert (status, headers["x-amzn-errortype"]) == (404, "UnknownOperationException")
    assert document["message"] == f"No operation of the Lambda API has the address {method} {path}"
    assert "remedy" in document["Detail"]


def test_another_spelling_of_the_address_is_not_invoke(api: Served) -> None:
    path = "/2015-03-31/functions/echo/invocations/"
    assert raw(api, "POST", path, headers=signed(api, "POST", path))[0] == 404


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Root=1-5759e988-bd862e3fe1be46a994272793", True),
        ("Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=1:a87bd80c:0", True),
        ("Root=nonsense", False),
        ("Root=1-5759e988-bd862e3fe1be46a994272793" + ";x" * 1000, False),
    ],
)
def test_the_trace_is_passed_on_and_completed(api: Served, echo: str, sent: str, kept: bool) -> None:
    path = f"/2015-03-31/functions/{echo}/invocations"
    headers = {**signed(api, "POST", path), "X-Amzn-Trace-Id": sent}
    trace = raw(api, "POST", path, headers=headers)[1]["x-amzn-trace-id"]
    assert trace.startswith(sent) is kept
    assert [part.partition("=")[0] for part in trace.split(";")] == ["Root", "Parent", "Sampled", "Lineage"]
    assert api.world.invoker.requests[-1].trace_id == trace


def test_before_its_first_listing_a_frontend_serves_nothing(api: Served, client: Any, echo: str) -> None:
    functions = api.world.functions
    kept = functions._valid_until
    functions._valid_until = float("-inf")
    try:
        error = error_of(client.invoke, FunctionName=echo)
    finally:
        functions.serve_until(kept)
    assert (error["status"], error["code"]) == (503, "ServiceUnavailableException")


@pytest.mark.parametrize("body", [b"", b"[1, 2.5e3, null]", b'{"a": "\\ud800"}'])
def test_json_is_accepted(body: bytes) -> None:
    invoke_operation.check_payload(body)


def test_size_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(ApiError) as caught:
        invoke_operation.check_payload(b"x" * (MB_6 + 1))
    assert caught.value.status == 413


def test_where_the_time_went_is_told_to_who_asks(client: Any, echo: str) -> None:
    assert "x-labda-phases" not in invoke(client, FunctionName=echo)["ResponseMetadata"]["HTTPHeaders"]

    def ask(request: Any, **_: Any) -> None:
        request.headers.add_header("x-labda-explain", "1")

    client.meta.events.register("before-sign.lambda.Invoke", ask)
    assert invoke(client, FunctionName=echo)["ResponseMetadata"]["HTTPHeaders"]["x-labda-phases"] == "permit=0.25,run=2"
