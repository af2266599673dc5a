"""AWS Signature Version 4, the client's side, for the few requests that the command itself makes.

botocore's own signer costs 0.2 s of imports at each command. The frontend verifies what this makes, and the tests
compare it with botocore's.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from labda.state import Credentials

SERVICE = "lambda"


def sign(
    credentials: Credentials,
    *,
    region: str,
    method: str,
    host: str,
    path: str,
    query: str = "",
    headers: Mapping[str, str],
    body: bytes,
    at: datetime,
) -> dict[str, str]:
    """The request's headers with ``host``, ``x-amz-date`` and ``authorization``.

    ``path`` is as sent (encoded once); ``query`` is as sent and sorted by the caller. All given headers are signed.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/{SERVICE}/aws4_request"
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed |= {"host": host, "x-amz-date": stamp}
    names = ";".join(sorted(signed))
    canonical = "\n".join([
        method,
        quote(path, safe="/-_.~"),  # encoded once more: every service but S3 signs the path so
        query,
        *(f"{name}:{signed[name]}" for name in sorted(signed)),
        "",
        names,
        hashlib.sha256(body).hexdigest(),
    ])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = b"AWS4" + credentials.secret.encode()
    for part in (stamp[:8], region, SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**signed, "authorization": authorization}
