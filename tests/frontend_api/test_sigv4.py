"""Signatures made by botocore, verified by us, then each thing that must break them."""

import calendar
import hashlib
import time
from collections.abc import Callable
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from frontend.api.errors import ApiError
from frontend.auth import refused as texts
from frontend.auth import sigv4
from frontend.auth.claims import read_claim
from frontend.auth.sigv4 import Verifier, finish

KEY_ID, SECRET = "AKIAQQQQQQQQQQQQQQQQ", "s" * 40
NOW = calendar.timegm((2026, 9, 13, 14, 10, 42))
HOST = "127.0.0.1:9000"


class Signed:
    """One request as it travels: raw path, raw query, headers, body."""

    def __init__(self, method: str, url: str, body: bytes = b"", **changes: Any) -> None:
        headers = changes.get("headers", {})
        request = botocore.awsrequest.AWSRequest(method=method, url=f"http://{HOST}{url}", data=body, headers=headers)
        signer = botocore.auth.SigV4Auth(
            botocore.credentials.Credentials(changes.get("key", KEY_ID), changes.get("secret", SECRET),
                                             changes.get("token")),
            changes.get("service", "lambda"),
            changes.get("region", "us-east-1"),
        )
        signer.add_auth(request)
        prepared = request.prepare()
        path, _, query = prepared.url.removeprefix(f"http://{HOST}").partition("?")
        self.method, self.path, self.query, self.body = method, path.encode(), query.encode(), body
        self.headers = [(k.lower().encode(), str(v).encode()) for k, v in prepared.headers.items()]
        self.headers.append((b"host", HOST.encode()))

    def replace(self, name: bytes, value: bytes | None) -> "Signed":
        self.headers = [(k, v) for k, v in self.headers if k != name]
        if value is not None:
            self.headers.append((name, value))
        return self

    def header(self, name: bytes) -> bytes:
        return next(value for key, value in self.headers if key == name)

    def verify(self, now: float = NOW, secret: str = SECRET) -> None:
        begun = Verifier("us-east-1").begin(read_claim(self.headers), secret, now)
        finish(begun, self.method, self.path, self.query, self.headers, hashlib.sha256(self.body).hexdigest())


@pytest.fixture(autouse=True)
def _at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore reads its clock itself."""
    import datetime

    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None))


ARN = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af"

GOOD: dict[str, Callable[[], Signed]] = {
    "plain": lambda: Signed("GET", "/2015-03-31/functions/f"),
    "empty body": lambda: Signed("POST", "/2015-03-31/functions/f/invocations"),
    "body": lambda: Signed("POST", "/2015-03-31/functions/f/invocations", b'{"a": 1}'),
    "arn in the path": lambda: Signed("GET", f"/2015-03-31/functions/{ARN}/configuration"),
    "qualifier": lambda: Signed("GET", "/2015-03-31/functions/f?Qualifier=%24LATEST"),
    "unsorted query": lambda: Signed("DELETE", f"/2017-03-31/tags/{ARN}?tagKeys=b&tagKeys=a&A=%20x&b"),
    "trailing slash": lambda: Signed("GET", "/2015-03-31/functions/"),
    "double slash and dots": lambda: Signed("GET", "//2015-03-31/./x/../functions//f"),
    "latin header": lambda: Signed("GET", "/x", headers={"X-Amz-Client-Context": "a   b"}),
    "declared hash": lambda: Signed(
        "POST", "/x", b"body", headers={"X-Amz-Content-SHA256": hashlib.sha256(b"body").hexdigest()}
    ),
}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_what_botocore_signs_is_accepted(name: str) -> None:
    GOOD[name]().verify()


def refused(signed: Signed, **verify: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        signed.verify(**verify)
    assert caught.value.status == 403
    return caught.value


def changed(name: str) -> Signed:
    headers = {"X-Amz-Log-Type": "Tail"}
    signed = Signed("POST", "/2015-03-31/functions/f/invocations?Qualifier=a", b"{}", headers=headers)
    match name:
        case "body":
            signed.body = b"[]"
        case "path":
            signed.path = signed.path.replace(b"/f/", b"/g/")
        case "query":
            signed.query = b"Qualifier=b"
        case "method":
            signed.method = "PUT"
        case "host":
            signed.replace(b"host", b"elsewhere")
        case "header":
            signed.replace(b"x-amz-log-type", b"None")
        case "header taken out":
            signed.replace(b"x-amz-log-type", None)
        case "header added":
            signed.replace(b"x-amz-invocation-type", b"DryRun")
        case "declared hash":
            signed.replace(b"x-amz-content-sha256", b"0" * 64)
        case "signature":
            signed.replace(b"authorization", signed.header(b"authorization")[:-64] + b"0" * 64)
    return signed


CHANGES = [
    "body", "path", "query", "method", "host", "header", "header taken out", "header added", "declared hash",
    "signature",
]


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_changed_breaks_the_signature(name: str) -> None:
    error = refused(changed(name))
    assert (error.code, error.message) == ("InvalidSignatureException", texts.MISMATCH)


def test_another_secret() -> None:
    assert refused(Signed("GET", "/x"), secret="other").message == texts.MISMATCH


@pytest.mark.parametrize("seconds", [-299, 299])
def test_five_minutes_of_skew_are_allowed(seconds: int) -> None:
    Signed("GET", "/x").verify(now=NOW + seconds)


def test_six_minutes_old() -> None:
    error = refused(Signed("GET", "/x"), now=NOW + 360)
    assert error.code == "InvalidSignatureException"
    assert error.message == (
        "Signature expired: 20260913T141042Z is now earlier than 20260913T141142Z (20260913T141642Z - 5 min.)"
    )


def test_six_minutes_early() -> None:
    error = refused(Signed("GET", "/x"), now=NOW - 360)
    assert error.message == (
        "Signature not yet current: 20260913T141042Z is still later than 20260913T140942Z (20260913T140442Z + 5 min.)"
    )


def test_another_region_and_service() -> None:
    assert refused(Signed("GET", "/x", region="eu-west-1")).message == (
        "Credential should be scoped to a valid region. "
    )
    assert refused(Signed("GET", "/x", service="s3")).message == (
        "Credential should be scoped to correct service: 'lambda'. "
    )


def test_a_scope_of_another_day() -> None:
    signed = Signed("GET", "/x")
    signed.replace(b"authorization", signed.header(b"authorization").replace(b"/20260913/", b"/20260912/"))
    assert refused(signed).message == (
        "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
        "'20260912' != '20260913', from '20260913T141042Z'."
    )


def test_no_authorization() -> None:
    error = refused(Signed("GET", "/x").replace(b"authorization", None))
    assert (error.code, error.message) == ("MissingAuthenticationTokenException", "Missing Authentication Token")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            b"AWS4-HMAC-SHA256 SignedHeaders=host",
            (
                "Authorization header requires 'Credential' parameter. "
                "Authorization header requires 'Signature' parameter. "
                "Authorization=AWS4-HMAC-SHA256 SignedHeaders=host"
            ),
        ),
        (
            b"AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=1",
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 'a/b/c'",
        ),
    ],
)
def test_an_incomplete_authorization(header: bytes, message: str) -> None:
    error = refused(Signed("GET", "/x").replace(b"authorization", header))
    assert (error.code, error.message) == ("IncompleteSignatureException", message)


def test_without_any_date() -> None:
    error = refused(Signed("GET", "/x").replace(b"x-amz-date", None))
    assert error.code == "IncompleteSignatureException"
    assert (error.message or "").startswith(
        "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. Authorization=AWS4-"
    )


@pytest.mark.parametrize("date", [b"20261301T000000Z", b"yesterday", b"20260913T250000Z"])
def test_a_malformed_date(date: bytes) -> None:
    assert refused(Signed("GET", "/x").replace(b"x-amz-date", date)).code in {
        "IncompleteSignatureException", "InvalidSignatureException",
    }


def test_a_host_that_is_not_signed_is_refused() -> None:
    signed = Signed("GET", "/x")
    authorization = signed.header(b"authorization").replace(b"host;", b"")
    assert refused(signed.replace(b"authorization", authorization)).message == texts.MISMATCH


def test_the_derived_key_is_cached_and_bounded() -> None:
    verifier = Verifier("us-east-1")
    claim = read_claim(Signed("GET", "/x").headers)
    begun = [verifier.begin(claim, SECRET, NOW) for _ in range(2)]
    assert begun[0].signing_key is begun[1].signing_key
    for number in range(sigv4.DERIVED_KEYS_MAX + 10):
        verifier.begin(claim, f"secret {number}", NOW)
    assert len(verifier._derived) == sigv4.DERIVED_KEYS_MAX


def test_dates_are_read_as_the_standard_library_reads_them() -> None:
    for seconds in (0, NOW, 1709210096, 4102444799):
        text = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
        assert sigv4._seconds(text) == seconds
