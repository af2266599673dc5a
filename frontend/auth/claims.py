"""What a request says of its own signing: in the Authorization header, or in the query of a presigned URL.

Owns parsing of both forms (reference section 9.1) and the refusals of what is missing or malformed. Nothing that is
read here is proved. Refuses to know keys, clocks and signatures.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from . import refused

ALGORITHM = b"AWS4-HMAC-SHA256"
SIGNATURE = b"X-Amz-Signature"
EXPIRES_S_MAX = 604_800   # a presigned URL is good for a week at most: so long is a derived key

RawHeaders = Sequence[tuple[bytes, bytes]]

_AMZ_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_NEEDED_IN_QUERY = (b"X-Amz-Algorithm", b"X-Amz-Credential", SIGNATURE, b"X-Amz-SignedHeaders", b"X-Amz-Date",
                    b"X-Amz-Expires")
_TOKEN = b"X-Amz-Security-Token"
_OF_QUERY = frozenset({*_NEEDED_IN_QUERY, _TOKEN})


class Credential(NamedTuple):
    """The Credential parameter, taken apart."""

    key_id: str
    date: str
    region: str
    service: str
    terminator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a request says of its own signing. ``expires_s`` is None for the header form."""

    credential: Credential
    signed_headers: tuple[bytes, ...]
    signature: bytes
    amz_date: str
    token: str | None = None
    expires_s: int | None = None


def read_claim(headers: RawHeaders, query: bytes = b"") -> Claim:
    """The claim of a request. Raises ApiError: MissingAuthenticationToken or IncompleteSignature."""
    authorization = amz_date = http_date = b""
    token: bytes | None = None
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == b"authorization":
            authorization = value.strip()
        elif name == b"x-amz-date":
            amz_date = value.strip()
        elif name == b"date":
            http_date = value.strip()
        elif name == b"x-amz-security-token":
            token = value.strip()
    in_query = _of_query(query) if query else {}
    if in_query:
        if authorization:
            raise refused.incomplete(
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the Authorization header "
                "should be specified"
            )
        return _presigned(in_query, token)
    if not authorization:
        raise refused.missing()
    date = amz_date.decode("latin-1") or _from_http_date(http_date.decode("latin-1"))
    return _from_header(authorization, date, token)


# ---- the header form


def _from_header(authorization: bytes, date: str, token: bytes | None) -> Claim:
    algorithm, _, rest = authorization.partition(b" ")
    parameters = _parameters(rest) if algorithm == ALGORITHM else {}
    if not (date and {b"Credential", b"Signature", b"SignedHeaders"} <= parameters.keys()):
        _incomplete(authorization, parameters, date)
    if not _AMZ_DATE.fullmatch(date):
        raise refused.malformed_date(date)
    return Claim(
        credential=_credential(parameters[b"Credential"].decode("latin-1")),
        signed_headers=tuple(parameters[b"SignedHeaders"].lower().split(b";")),
        signature=parameters[b"Signature"],
        amz_date=date,
        token=None if token is None else token.decode("latin-1"),
    )


def _parameters(text: bytes) -> dict[bytes, bytes]:
    found = {}
    for part in text.split(b","):
        name, _, value = part.strip().partition(b"=")
        if value:
            found[name] = value
    return found


def _incomplete(authorization: bytes, parameters: Mapping[bytes, bytes], date: str) -> NoReturn:
    missing = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if name.encode() not in parameters
    ]
    if not date:
        missing.append("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    shown = authorization.decode("latin-1")
    raise refused.incomplete(f"{' '.join(missing)} Authorization={shown}")


def _credential(text: str) -> Credential:
    parts = text.split("/")
    if len(parts) != 5:
        raise refused.incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, "
            f"got '{text}'"
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


# ---- the query form


def _of_query(query: bytes) -> dict[bytes, bytes]:
    """The parameters of signing in a query, decoded. Raises ApiError where one is there twice."""
    found: dict[bytes, bytes] = {}
    for part in query.split(b"&"):
        raw_name, _, value = part.partition(b"=")
        name = unquote_to_bytes(raw_name)
        if name not in _OF_QUERY:
            continue
        if name in found:
            raise refused.incomplete(f"AWS query-string parameters must not include '{name.decode()}' twice.")
        found[name] = unquote_to_bytes(value)
    return found


def _presigned(parameters: Mapping[bytes, bytes], token: bytes | None) -> Claim:
    missing = [name.decode() for name in _NEEDED_IN_QUERY if not parameters.get(name)]
    if missing:
        sentences = " ".join(f"AWS query-string parameters must include '{name}'." for name in missing)
        raise refused.incomplete(f"{sentences} Re-examine the query-string parameters.")
    if parameters[b"X-Amz-Algorithm"] != ALGORITHM:
        shown = parameters[b"X-Amz-Algorithm"].decode("latin-1")
        raise refused.incomplete(f"Unsupported AWS 'algorithm': '{shown}'.")
    date = parameters[b"X-Amz-Date"].decode("latin-1")
    if not _AMZ_DATE.fullmatch(date):
        raise refused.malformed_date(date)
    token = parameters.get(_TOKEN, token)
    return Claim(
        credential=_credential(parameters[b"X-Amz-Credential"].decode("latin-1")),
        signed_headers=tuple(parameters[b"X-Amz-SignedHeaders"].lower().split(b";")),
        signature=parameters[SIGNATURE],
        amz_date=date,
        token=None if token is None else token.decode("latin-1"),
        expires_s=_expires(parameters[b"X-Amz-Expires"].decode("latin-1")),
    )


def _expires(text: str) -> int:
    """Seconds. The texts are S3's, the only ones of AWS's that are documented."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise refused.incomplete("X-Amz-Expires should be a number")
    seconds = int(text)
    if seconds < 1:
        raise refused.incomplete(f"X-Amz-Expires must be {'non-negative' if seconds else 'at least 1'}")
    if seconds > EXPIRES_S_MAX:
        raise refused.incomplete(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than "
            f"{EXPIRES_S_MAX} seconds"
        )
    return seconds
