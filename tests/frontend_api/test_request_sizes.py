"""Bodies over their limit and bodies in chunks, sent as no SDK sends them: signed by botocore, written by hand."""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from tests.frontend_api.world import REGION, Served

LIMIT = 6_291_456
INVOKE = "/2015-03-31/functions/sizes/invocations"
Send = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def send(api: Served) -> Iterator[Send]:
    """Sends a request whose signature is for ``signed``, and gives status, error type and document."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)

    def sent(
        body: Any = None, *, signed: bytes = b"", path: str = INVOKE, secret: str = "", **headers: str
    ) -> tuple[int, str, dict[str, Any]]:
        key = api.world.key()
        request = botocore.awsrequest.AWSRequest(method="POST", url=api.url + path, data=signed)
        credentials = botocore.credentials.Credentials(key.key_id, secret or key.secret)
        botocore.auth.SigV4Auth(credentials, "lambda", REGION).add_auth(request)
        connection.putrequest("POST", path)
        named = dict(request.headers.items()) | {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in named.items():
            connection.putheader(name, value)
        chunked = headers.get("transfer_encoding") == "chunked"
        connection.endheaders(body, encode_chunked=chunked)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, answer.headers.get("x-amzn-errortype", ""), json.loads(text or b"null")

    yield sent
    connection.close()


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_of_it(send: Send) -> None:
    status, code, document = send(content_length=str(LIMIT + 1), expect="100-continue")
    assert (status, code) == (413, "RequestTooLargeException")
    assert document["message"] == (
        "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)"
    )


def test_a_client_that_sends_it_all_the_same_gets_the_answer(send: Send) -> None:
    for _ in range(2):  # and the connection is good for another request
        assert send(b"x" * (LIMIT + 1), content_length=str(LIMIT + 1))[:2] == (413, "RequestTooLargeException")


def test_a_body_in_chunks_is_counted_while_it_is_read(send: Send, make: Any) -> None:
    make("sizes")
    pieces = [b'"', b"x" * 70_000, b'"']
    echoed = send(iter(pieces), signed=b"".join(pieces), transfer_encoding="chunked")
    assert (echoed[0], len(echoed[2])) == (200, 70_000)
    large = iter([b"x" * 1_000_000] * 7)
    assert send(large, transfer_encoding="chunked")[:2] == (413, "RequestTooLargeException")


def test_what_is_small_by_its_nature_has_a_small_limit(send: Send) -> None:
    for path, name in (
        ("/2017-03-31/tags/arn", "TagResource"), ("/2015-03-31/functions/sizes/nowhere", ""),
    ):
        status, code, document = send(path=path, content_length="1048577", expect="100-continue")
        assert (status, code) == (413, "RequestEntityTooLargeException")
        assert name in document["Message" if "Message" in document else "message"]
    upload = send(path="/2015-03-31/functions", content_length="70167212", expect="100-continue")
    assert upload[:2] == (413, "RequestEntityTooLargeException")


def test_who_is_unknown_is_not_asked_to_go_on(send: Send) -> None:
    status, code, _ = send(content_length="5", expect="100-continue", X_Amz_Security_Token="x")
    assert (status, code) == (403, "UnrecognizedClientException")


def test_a_payload_that_is_not_signed_is_refused(send: Send) -> None:
    for constant in ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        status, code, document = send(b"{}", signed=b"{}", content_length="2", X_Amz_Content_SHA256=constant)
        assert (status, code) == (403, "InvalidSignatureException")
        assert "SHA256" in document["Detail"]
