"""The command's signatures are botocore's."""

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from labda.signing import sign
from labda.state import Credentials

SECRET = "kUj8sPq+W0/2xTzv5nR1yLhG7mBdAeCfJ3iKoN9Q"


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body"),
    [
        ("GET", "/2015-03-31/functions/", "", {}, b""),
        ("GET", "/2015-03-31/functions/", "Marker=a%2Fb%3D", {}, b""),
        ("POST", "/2015-03-31/functions/hello/invocations", "", {"X-Labda-Explain": "1"}, b'{"name": "Ada"}'),
        ("GET", f"/2015-03-31/functions/{quote('arn:aws:lambda:us-east-1:1:function:f', safe='')}/configuration", "",
         {}, b""),
    ],
)
def test_signature_equals_botocores(monkeypatch, method, path, query, headers, body):
    at = datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: at.replace(tzinfo=None))
    url = f"http://127.0.0.1:9000{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    SigV4Auth(BotoCredentials("AKIAEXAMPLE00000000A", SECRET), "lambda", "us-east-1").add_auth(request)
    ours = sign(
        Credentials("000000000000", "AKIAEXAMPLE00000000A", SECRET), region="us-east-1", method=method,
        host="127.0.0.1:9000", path=path, query=query, headers=headers, body=body, at=at,
    )
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]
    assert ours["authorization"] == request.headers["Authorization"]


def test_credentials_keep_their_secret_out_of_logs():
    assert SECRET not in repr(Credentials("0", "AKIA", SECRET))
