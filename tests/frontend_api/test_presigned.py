"""Presigned URLs made by botocore, verified by us, then each thing that must break them."""

import calendar
import datetime
import hashlib
import time
import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from frontend.api.errors import ApiError
from frontend.auth import refused as texts
from frontend.auth.claims import EXPIRES_S_MAX, read_claim
from frontend.auth.sigv4 import Verifier, finish
from tests.frontend_api.world import Served

KEY_ID, SECRET = "AKIAQQQQQQQQQQQQQQQQ", "s" * 40
NOW = calendar.timegm((2026, 9, 13, 14, 10, 42))
HOST = "127.0.0.1:9000"
WEEK_S = 604_800


class Presigned:
    """One presigned request as it travels: raw path, raw query, headers, body."""

    def __init__(self, method: str = "GET", url: str = "/2015-03-31/functions/f", **changes: Any) -> None:
        request = botocore.awsrequest.AWSRequest(
            method=method, url=f"http://{HOST}{url}", headers=changes.get("headers", {})
        )
        signer = botocore.auth.SigV4QueryAuth(
            botocore.credentials.Credentials(KEY_ID, SECRET, changes.get("token")), changes.get("service", "lambda"),
            changes.get("region", "us-east-1"), expires=changes.get("expires", 3600),
        )
        signer.add_auth(request)
        path, _, query = request.url.removeprefix(f"http://{HOST}").partition("?")
        self.method, self.path, self.query, self.body = method, path.encode(), query.encode(), b""
        self.headers = [(k.lower().encode(), str(v).encode()) for k, v in request.headers.items()]
        self.headers.append((b"host", HOST.encode()))

    def parameter(self, name: str, value: str | None) -> "Presigned":
        """Replace a parameter of the query, or take it out."""
        kept = [part for part in self.query.split(b"&") if not part.startswith(name.encode() + b"=")]
        if value is not None:
            kept.append(f"{name}={quote(value, safe='')}".encode())
        self.query = b"&".join(kept)
        return self

    def verify(self, now: float = NOW) -> None:
        begun = Verifier("us-east-1").begin(read_claim(self.headers, self.query), SECRET, now)
        finish(begun, self.method, self.path, self.query, self.headers, hashlib.sha256(self.body).hexdigest())


@pytest.fixture
def _at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore reads its clock itself."""
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None))


fixed = pytest.mark.usefixtures("_at_that_time")
ARN = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af"


def refusal(request: Presigned, **verify: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        request.verify(**verify)
    assert caught.value.status == 403
    return caught.value


@fixed
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/2015-03-31/functions/f"),
        ("GET", f"/2015-03-31/functions/{ARN}/configuration?Qualifier=%24LATEST"),
        ("DELETE", f"/2017-03-31/tags/{ARN}?tagKeys=b&A=%20x&b"),
        ("POST", "/2015-03-31/functions/f/invocations"),
    ],
)
def test_what_botocore_presigns_is_accepted(method: str, url: str) -> None:
    Presigned(method, url).verify()
    Presigned(method, url, token="a/b+c=").verify()


@fixed
def test_signed_headers_have_to_be_sent() -> None:
    request = Presigned("POST", "/2015-03-31/functions/f/invocations", headers={"X-Amz-Log-Type": "Tail"})
    request.verify()
    request.headers = [(b"host", HOST.encode())]
    assert refusal(request).message == texts.MISMATCH


@fixed
@pytest.mark.parametrize("expires", [1, 60, 90, 3600, EXPIRES_S_MAX])
def test_it_is_good_until_its_end(expires: int) -> None:
    Presigned(expires=expires).verify(now=NOW + expires)
    Presigned(expires=expires).verify(now=NOW - 299)
    error = refusal(Presigned(expires=expires), now=NOW + expires + 1)
    assert error.code == "InvalidSignatureException"
    assert (error.message or "").startswith("Signature expired: 20260913T141042Z is now earlier than 20260913T141043Z")


@fixed
def test_the_texts_of_time() -> None:
    assert refusal(Presigned(expires=600), now=NOW + 660).message == (
        "Signature expired: 20260913T141042Z is now earlier than 20260913T141142Z (20260913T142142Z - 10 min.)"
    )
    assert refusal(Presigned(expires=90), now=NOW + 100).message == (
        "Signature expired: 20260913T141042Z is now earlier than 20260913T141052Z (20260913T141222Z - 90 sec.)"
    )
    assert refusal(Presigned(expires=WEEK_S), now=NOW - 360).message == (
        "Signature not yet current: 20260913T141042Z is still later than 20260913T140942Z (20260913T140442Z + 5 min.)"
    )


@fixed
@pytest.mark.parametrize(
    ("expires", "message"),
    [
        ("0", "X-Amz-Expires must be at least 1"),
        ("-1", "X-Amz-Expires must be non-negative"),
        ("an hour", "X-Amz-Expires should be a number"),
        ("1e3", "X-Amz-Expires should be a number"),
        ("9" * 5000, "X-Amz-Expires should be a number"),
        (
            "604801",
            (
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less "
                "than 604800 seconds"
            ),
        ),
    ],
)
def test_a_malformed_lifetime(expires: str, message: str) -> None:
    error = refusal(Presigned().parameter("X-Amz-Expires", expires))
    assert (error.code, error.message) == ("IncompleteSignatureException", message)


@fixed
@pytest.mark.parametrize(
    "name", ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature",
             "X-Amz-SignedHeaders"],
)
def test_a_missing_parameter_is_named(name: str) -> None:
    error = refusal(Presigned().parameter(name, None))
    assert (error.code, error.message) == (
        "IncompleteSignatureException",
        f"AWS query-string parameters must include '{name}'. Re-examine the query-string parameters.",
    )


@fixed
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("X-Amz-Algorithm", "AWS4-ECDSA-P256-SHA256", "IncompleteSignatureException"),
        ("X-Amz-Credential", f"{KEY_ID}/20260913/us-east-1", "IncompleteSignatureException"),
        ("X-Amz-Date", "yesterday", "IncompleteSignatureException"),
        ("X-Amz-Date", "20261301T000000Z", "InvalidSignatureException"),
        ("X-Amz-Credential", f"{KEY_ID}/20260913/eu-west-1/lambda/aws4_request", "InvalidSignatureException"),
        ("X-Amz-Expires", "3601", "InvalidSignatureException"),
        ("X-Amz-Signature", "0" * 64, "InvalidSignatureException"),
        ("X-Amz-SignedHeaders", "date", "InvalidSignatureException"),
        ("X-Amz-Security-Token", "added", "InvalidSignatureException"),
        ("Qualifier", "added", "InvalidSignatureException"),
    ],
)
def test_whatever_is_changed_breaks_it(name: str, value: str, code: str) -> None:
    assert refusal(Presigned().parameter(name, value)).code == code


@fixed
def test_a_parameter_twice_and_two_forms_at_once_are_refused() -> None:
    twice = Presigned()
    twice.query += b"&X%2DAmz-Signature=" + b"0" * 64
    assert (refusal(twice).message or "").endswith("must not include 'X-Amz-Signature' twice.")
    both = Presigned()
    both.headers.append((b"authorization", b"AWS4-HMAC-SHA256 Credential=x"))
    assert (refusal(both).message or "").startswith("Only one auth mechanism allowed")


@fixed
def test_a_body_that_was_not_signed_breaks_it() -> None:
    request = Presigned("POST", "/2015-03-31/functions/f/invocations")
    request.body = b"{}"
    assert refusal(request).message == texts.MISMATCH


# ---- over HTTP


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_any_operation_can_be_presigned(api: Served, client: Any, make: Any) -> None:
    make("presigned")
    got = client.generate_presigned_url("get_function_configuration", Params={"FunctionName": "presigned"})
    status, body = fetch(got)
    assert (status, b'"FunctionName": "presigned"' in body or b'"FunctionName":"presigned"' in body) == (200, True)
    listed = client.generate_presigned_url("list_functions", Params={"MaxItems": 5}, ExpiresIn=WEEK_S)
    assert fetch(listed)[0] == 200
    invoke = client.generate_presigned_url("invoke", Params={"FunctionName": "presigned"})
    assert fetch(invoke, "POST") == (200, b"{}")
    assert fetch(invoke)[0] == 403, "another method"
    assert fetch(invoke.replace("functions/presigned", "functions/other"), "POST")[0] == 403


def test_one_that_is_over_is_refused(client: Any) -> None:
    url = client.generate_presigned_url("list_functions", ExpiresIn=1)
    deadline = time.monotonic() + 60
    while (answer := fetch(url))[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer[0] == 403
    assert b"Signature expired: " in answer[1]
