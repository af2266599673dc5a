"""Signature Version 4, header form, verified on the server (reference section 9).

Owns parsing of the Authorization header, the canonical request over raw bytes, the signature and the errors of section
9.4. Refuses to know where keys are kept and what a request means. Verification has two steps, so that a request that
can't be right is refused before its body is read: ``begin`` judges everything but the signature, ``finish`` that.
"""

import calendar
import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn
from urllib.parse import quote_from_bytes, unquote_to_bytes

from frontend.api.errors import ApiError

ALGORITHM = b"AWS4-HMAC-SHA256"
SERVICE = "lambda"
TERMINATOR = "aws4_request"
SKEW_S = 300
DERIVED_KEYS_MAX = 4096

# Headers that say what is asked: changing one must break the signature. AWS's strictness here isn't documented.
_MUST_BE_SIGNED = b"x-amz-"
_UNRESERVED = "-_.~"
_AMZ_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)

MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
INVALID_TOKEN = "The security token included in the request is invalid"  # noqa: S105 - AWS's text, not a secret

RawHeaders = Sequence[tuple[bytes, bytes]]


class Credential(NamedTuple):
    """The Credential parameter, taken apart."""

    key_id: str
    date: str
    region: str
    service: str
    terminator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a request says of its own signing. Nothing of it is proved."""

    credential: Credential
    signed_headers: tuple[bytes, ...]
    signature: bytes
    amz_date: str
    has_token: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A claim in scope and in time, with the key that has to have made the signature."""

    claim: Claim
    signing_key: bytes


class Verifier:
    """Verifies requests to one region. Derived keys are cached per key, secret and date."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._derived: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    def begin(self, claim: Claim, secret: str, now: float) -> Begun:
        """Judge scope and time; ``now`` in Unix seconds. Raises ApiError (403)."""
        if claim.has_token:
            # Long-term keys have no session token, so that whatever was sent is wrong.
            raise _refused("UnrecognizedClientException", INVALID_TOKEN)
        self._check_scope(claim)
        _check_time(claim.amz_date, now)
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
            raise _refused("InvalidSignatureException", wrong)

    def _key(self, credential: Credential, secret: str) -> bytes:
        at = (credential.key_id, secret, credential.date)
        key = self._derived.get(at)
        if key is None:
            key = signing_key(secret, credential.date, self._region)
            self._derived[at] = key
            if len(self._derived) > DERIVED_KEYS_MAX:
                self._derived.popitem(last=False)
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
        raise _refused("InvalidSignatureException", MISMATCH, detail="X-Amz-Content-SHA256 isn't the body's SHA-256.")
    if b"host" not in signed or any(name not in values for name in signed):
        raise _refused("InvalidSignatureException", MISMATCH, detail="A signed header is missing, or Host.")
    for name in values:
        if name.startswith(_MUST_BE_SIGNED) and name not in signed:
            raise _refused(
                "InvalidSignatureException", MISMATCH, detail=f"The header {name.decode('latin-1')} isn't signed."
            )
    canonical = b"\n".join((
        method.encode(),
        canonical_path(raw_path),
        canonical_query(query),
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
        raise _refused("InvalidSignatureException", MISMATCH)


def signing_key(secret: str, date: str, region: str) -> bytes:
    """The key derived for one day, region and service."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, SERVICE, TERMINATOR):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# ---- what the client claims


def read_claim(headers: RawHeaders) -> Claim:
    """The claim in the headers. Raises ApiError: MissingAuthenticationToken or IncompleteSignature."""
    authorization = amz_date = http_date = b""
    has_token = False
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == b"authorization":
            authorization = value.strip()
        elif name == b"x-amz-date":
            amz_date = value.strip()
        elif name == b"date":
            http_date = value.strip()
        elif name == b"x-amz-security-token":
            has_token = True
    if not authorization:
        raise _refused("MissingAuthenticationTokenException", "Missing Authentication Token")
    date = amz_date.decode("latin-1") or _from_http_date(http_date.decode("latin-1"))
    algorithm, _, rest = authorization.partition(b" ")
    parameters = _parameters(rest) if algorithm == ALGORITHM else {}
    if not (date and {b"Credential", b"Signature", b"SignedHeaders"} <= parameters.keys()):
        _incomplete(authorization, parameters, date)
    if not _AMZ_DATE.fullmatch(date):
        raise _refused(
            "IncompleteSignatureException",
            f"Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601",
        )
    return Claim(
        credential=_credential(parameters[b"Credential"].decode("latin-1")),
        signed_headers=tuple(parameters[b"SignedHeaders"].lower().split(b";")),
        signature=parameters[b"Signature"],
        amz_date=date,
        has_token=has_token,
    )


def _parameters(text: bytes) -> dict[bytes, bytes]:
    found = {}
    for part in text.split(b","):
        name, _, value = part.strip().partition(b"=")
        if value:
            found[name] = value
    return found


def _incomplete(authorization: bytes, parameters: dict[bytes, bytes], date: str) -> NoReturn:
    missing = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if name.encode() not in parameters
    ]
    if not date:
        missing.append("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    shown = authorization.decode("latin-1")
    raise _refused("IncompleteSignatureException", f"{' '.join(missing)} Authorization={shown}")



def _credential(text: str) -> Credential:
    parts = text.split("/")
    if len(parts) != 5:
        raise _refused(
            "IncompleteSignatureException",
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, "
            f"got '{text}'",
        )
    return Credential(*parts)


def _from_http_date(text: str) -> str:
    """The Date header in the basic ISO form; some clients already send it so."""
    if not text or _AMZ_DATE.fullmatch(text):
        return text
    try:
        return time.strftime("%Y%m%dT%H%M%SZ", time.strptime(text, "%a, %d %b %Y %H:%M:%S GMT"))
    except ValueError:
        return ""


def _check_time(amz_date: str, now: float) -> None:
    try:
        at = _seconds(amz_date)
    except ValueError:
        raise _refused(
            "IncompleteSignatureException",
            f"Date must be in ISO-8601 'basic format'. Got '{amz_date}'. See http://en.wikipedia.org/wiki/ISO_8601",
        ) from None
    if at < now - SKEW_S:
        raise _refused(
            "InvalidSignatureException",
            f"Signature expired: {amz_date} is now earlier than {basic(now - SKEW_S)} ({basic(now)} - 5 min.)",
        )
    if at > now + SKEW_S:
        raise _refused(
            "InvalidSignatureException",
            f"Signature not yet current: {amz_date} is still later than {basic(now + SKEW_S)} ({basic(now)} + 5 min.)",
        )


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


def canonical_query(query: bytes) -> bytes:
    """The pairs decoded and encoded again with the unreserved characters, sorted by name and value."""
    if not query:
        return b""
    pairs = []
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            pairs.append((_encoded(name), _encoded(value)))
    return b"&".join(name + b"=" + value for name, value in sorted(pairs))


def _encoded(text: bytes) -> bytes:
    return quote_from_bytes(unquote_to_bytes(text), safe=_UNRESERVED).encode()


def _refused(code: str, message: str, *, detail: str | None = None) -> ApiError:
    return ApiError(code, 403, message, detail=detail)


def unknown_key(key_id: str) -> ApiError:
    """The answer for an access key that no account has."""
    detail = f"No account has the access key {key_id}."
    return _refused("UnrecognizedClientException", INVALID_TOKEN + ".", detail=detail)
