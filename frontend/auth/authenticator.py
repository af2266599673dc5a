"""Who asks: from a request's headers to an account.

Owns the order of the judgements (reference section 9.2): form, key, scope and time before the body is read; signature
after it. Refuses to know what is asked.
"""

from dataclasses import dataclass

from chassis.clock import Clock

from .keys import KeyRing
from .sigv4 import Begun, RawHeaders, Verifier, finish, read_claim, unknown_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """An account that a request claims to come from. Not proved before ``prove``."""

    account: str
    begun: Begun


class Authenticator:
    """Authenticates requests to one region."""

    def __init__(self, keys: KeyRing, region: str, clock: Clock) -> None:
        self._keys = keys
        self._verifier = Verifier(region)
        self._clock = clock

    async def claim(self, headers: RawHeaders) -> Claimed:
        """Judge everything that needs no body. Raises ApiError (403), or a storage fault for an unknown key."""
        claim = read_claim(headers)
        key_id = claim.credential.key_id
        key = self._keys.known(key_id) or await self._keys.find(key_id, self._clock.monotonic())
        if key is None:
            raise unknown_key(key_id)
        return Claimed(account=key.account, begun=self._verifier.begin(claim, key.secret, self._clock.wall()))


def prove(
    claimed: Claimed, method: str, raw_path: bytes, query: bytes, headers: RawHeaders, body_sha256: str
) -> str:
    """The account, proved by the signature over the raw request. Raises ApiError (403)."""
    finish(claimed.begun, method, raw_path, query, headers, body_sha256)
    return claimed.account
