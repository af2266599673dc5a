"""The refusals of authentication (reference section 9.4): AWS's texts, all of them 403.

Owns these texts. Refuses to know when they are due.
"""

from frontend.api.errors import ApiError

MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
INVALID_TOKEN = "The security token included in the request is invalid"  # noqa: S105 - AWS's text, not a secret
EXPIRED_TOKEN = "The security token included in the request is expired"  # noqa: S105 - the same


def missing() -> ApiError:
    return _refused("MissingAuthenticationTokenException", "Missing Authentication Token")


def incomplete(message: str) -> ApiError:
    return _refused("IncompleteSignatureException", message)


def malformed_date(date: str) -> ApiError:
    return incomplete(
        f"Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
    )


def invalid_signature(message: str, *, detail: str | None = None) -> ApiError:
    return _refused("InvalidSignatureException", message, detail=detail)


def mismatch(detail: str | None = None) -> ApiError:
    return invalid_signature(MISMATCH, detail=detail)


def unknown_key(key_id: str) -> ApiError:
    """The answer for an access key that no account has, or has no more."""
    detail = f"No account has the access key {key_id}: it never was, or it was revoked."
    return _refused("UnrecognizedClientException", INVALID_TOKEN + ".", detail=detail)


def wrong_token(detail: str) -> ApiError:
    """A session token that is not the key's: AWS's text without the full stop that an unknown key's has."""
    return _refused("UnrecognizedClientException", INVALID_TOKEN, detail=detail)


def expired_token(key_id: str, at: str) -> ApiError:
    detail = f"The temporary access key {key_id} was good until {at}: issue another one."
    return _refused("ExpiredTokenException", EXPIRED_TOKEN, detail=detail)


def _refused(code: str, message: str, *, detail: str | None = None) -> ApiError:
    return ApiError(code, 403, message, detail=detail)
