"""Signature Version 4 verified on the server (reference section 9), for the header form and for presigned URLs.

Owns scope, time, the canonical request over raw bytes, and the signature. Refuses to know where keys are kept and what
a request means. Verification has two steps, so that a request that can't be right is refused before its body is read:
``begin`` judges everything but the signature, ``finish`` that.
"""

import calendar
import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from . import refused
from .claims import ALGORITHM, SIGNATURE, Claim, Credential, RawHeaders

SERVICE = "lambda"
TERMINATOR = "aws4_request"
SKEW_S = 300
DERIVED_KEYS_MAX = 4096

# Headers that say what is asked: changing one must break the signature. AWS's strictness here isn't documented.
_MUST_BE_SIGNED = b"x-amz-"
_UNRESERVED = "-_.~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A claim in scope and in time, with the key that has to have made the signature."""

    claim: Claim
    signing_key: bytes


class Verifier:
    """Verifies requests to one region. Derived keys are cached per key, secret and date: the 4,096 last used."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._derived: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    def begin(self, claim: Claim, secret: str, now: float) -> Begun:
        """Judge scope and time; ``now`` in Unix seconds. Raises ApiError (403)."""
        self._check_scope(claim)
        _check_time(claim, now)
        return Begun(claim=claim, signing_key=self._key(claim.credential, secret))

    def _check_scope(self, claim: Claim) -> None:
        credential = claim.credential
        wrong = ""
        if credential.region != self._region:
            wrong += "Credential should be scoped to a valid region. "
        if credential.service != SERVICE:
            wrong += f"Credential should be scoped to correct service: '{SERVICE}'. "
        if credential.terminator != TERMINATOR:
            wrong += (
                f"Credential should be scoped with a valid terminator: '{TERMINATOR}', "
                f"not '{credential.terminator}'. "
            )
        if credential.date != claim.amz_date[:8]:
            wrong += (
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
                f"'{credential.date}' != '{claim.amz_date[:8]}', from '{claim.amz_date}'."
            )
        if wrong:
            raise refused.invalid_signature(wrong)

    def _key(self, credential: Credential, secret: str) -> bytes:
        at = (credential.key_id, secret, credential.date)
        key = self._derived.get(at)
        if key is None:
            key = signing_key(secret, credential.date, self._region)
            self._derived[at] = key
            if len(self._derived) > DERIVED_KEYS_MAX:
                self._derived.popitem(last=False)
        else:
            self._derived.move_to_end(at)
        return key


def finish(
    begun: Begun, method: str, raw_path: bytes, query: bytes, headers: RawHeaders, body_sha256: str
) -> None:
    """Compare the signature with ours over the raw request. Raises ApiError (403) when they differ.

    ``body_sha256`` is computed from the body as received. A hash that the client declared has to equal it: the
    constants for unsigned and streamed payloads aren't accepted.
    """
    claim = begun.claim
    values: dict[bytes, bytes] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.lower(), b" ".join(raw_value.split())
        values[name] = values[name] + b"," + value if name in values else value
    declared = values.get(b"x-amz-content-sha256", b"").decode("latin-1")
    signed = claim.signed_headers
    if declared and declared != body_sha256:
        raise refused.mismatch("X-Amz-Content-SHA256 isn't the body's SHA-256.")
    if b"host" not in signed or any(name not in values for name in signed):
        raise refused.mismatch("A signed header is missing, or Host.")
    for name in values:
        if name.startswith(_MUST_BE_SIGNED) and name not in signed:
            raise refused.mismatch(f"The header {name.decode('latin-1')} isn't signed.")
    canonical = b"\n".join((
        method.encode(),
        canonical_path(raw_path),
        canonical_query(query, without=b"" if claim.expires_s is None else SIGNATURE),
        *(name + b":" + values[name] for name in signed),
        b"",
        b";".join(signed),
        body_sha256.encode(),
    ))
    to_sign = b"\n".join((
        ALGORITHM,
        claim.amz_date.encode(),
        "/".join(claim.credential[1:]).encode(),
        hashlib.sha256(canonical).hexdigest().encode(),
    ))
    ours = hmac.digest(begun.signing_key, to_sign, "sha256").hex().encode()
    if not hmac.compare_digest(ours, claim.signature):
        raise refused.mismatch()


def signing_key(secret: str, date: str, region: str) -> bytes:
    """The key derived for one day, region and service."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, SERVICE, TERMINATOR):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# ---- time


def _check_time(claim: Claim, now: float) -> None:
    amz_date = claim.amz_date
    try:
        at = _seconds(amz_date)
    except ValueError:
        raise refused.malformed_date(amz_date) from None
    good_for_s = SKEW_S if claim.expires_s is None else claim.expires_s
    if at < now - good_for_s:
        raise refused.invalid_signature(
            f"Signature expired: {amz_date} is now earlier than {basic(now - good_for_s)} "
            f"({basic(now)} - {_span(good_for_s)})"
        )
    if at > now + SKEW_S:
        raise refused.invalid_signature(
            f"Signature not yet current: {amz_date} is still later than {basic(now + SKEW_S)} "
            f"({basic(now)} + {_span(SKEW_S)})"
        )


def _span(seconds: int) -> str:
    return f"{seconds} sec." if seconds % 60 else f"{seconds // 60} min."


def _seconds(amz_date: str) -> int:
    """Unix seconds of a date in the basic ISO form. strptime would cost 8 us of each request."""
    year, month, day = int(amz_date[:4]), int(amz_date[4:6]), int(amz_date[6:8])
    hour, minute, second = int(amz_date[9:11]), int(amz_date[11:13]), int(amz_date[13:15])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61 and year):
        raise ValueError(amz_date)
    return calendar.timegm((year, month, day, hour, minute, second))


def basic(seconds: float) -> str:
    """Unix seconds in the basic ISO form."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


# ---- canonical forms


def canonical_path(raw_path: bytes) -> bytes:
    """The path as received, dot segments and double slashes taken out, percent-encoded once more."""
    parts: list[bytes] = []
    for part in raw_path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    if not parts:
        return b"/"
    path = b"/" + b"/".join(parts)
    if raw_path.endswith(b"/"):
        path += b"/"
    return quote_from_bytes(path, safe="/~").encode()


def canonical_query(query: bytes, *, without: bytes = b"") -> bytes:
    """The pairs decoded and encoded again with the unreserved characters, sorted by name and value.

    ``without``: a name that is left out. A presigned URL's signature doesn't sign itself.
    """
    if not query:
        return b""
    pairs = []
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            pairs.append((_encoded(name), _encoded(value)))
    if without:
        pairs = [pair for pair in pairs if pair[0] != without]
    return b"&".join(name + b"=" + value for name, value in sorted(pairs))


def _encoded(text: bytes) -> bytes:
    return quote_from_bytes(unquote_to_bytes(text), safe=_UNRESERVED).encode()
