"""Who asks: from a request's headers and query to an account.

Owns the order of the judgements (reference section 9.2): form, key, session token, scope and time before the body is
read; signature after it. Refuses to know what is asked.
"""

from dataclasses import dataclass

from chassis.clock import Clock
from frontend.api.errors import unavailable

from . import refused
from .claims import RawHeaders, read_claim
from .keys import AccessKey, KeyRing, check_token
from .sigv4 import Begun, Verifier, finish

FRESH_S = 2.0    # keys are listed every second: older is only what a stopped or cut off frontend knows
KEYS_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A key that a request claims to be signed with. Not proved before ``prove``."""

    key: AccessKey
    begun: Begun


class Authenticator:
    """Authenticates requests to one region. ``keys_s``: for how long known keys are taken while the store is away."""

    def __init__(self, keys: KeyRing, region: str, clock: Clock, *, keys_s: float = KEYS_S) -> None:
        self._keys = keys
        self._keys_s = keys_s
        self._verifier = Verifier(region)
        self._clock = clock

    async def claim(self, headers: RawHeaders, query: bytes) -> Claimed:
        """Judge everything that needs no body.

        Raises ApiError (403; 503 when it isn't known for too long which keys were revoked), or a storage fault for an
        unknown key.
        """
        claim = read_claim(headers, query)
        monotonic = self._clock.monotonic()
        if self._keys.age_s(monotonic) > FRESH_S:
            await self._catch_up()
        key_id = claim.credential.key_id
        key = self._keys.known(key_id) or await self._keys.find(key_id, monotonic)
        if key is None:
            raise refused.unknown_key(key_id)
        now = self._clock.wall()
        check_token(key, claim.token, now)
        return Claimed(key=key, begun=self._verifier.begin(claim, key.secret, now))

    async def _catch_up(self) -> None:
        await self._keys.catch_up(self._clock)
        age_s = self._keys.age_s(self._clock.monotonic())
        if age_s > self._keys_s:
            raise unavailable(
                "This frontend can't reach the metadata store, so that it can't know which keys are good.",
                detail={
                    "limit": "keys_s", "value": self._keys_s,
                    "remedy": "Try again: another frontend may answer. The store's health is in `labda status`.",
                },
            )

    async def prove(
        self, claimed: Claimed, method: str, raw_path: bytes, query: bytes, headers: RawHeaders, body_sha256: str
    ) -> str:
        """The account, proved by the signature over the raw request. Raises ApiError (403; 503 as ``claim``).

        A body may take minutes to come, and this process may stand still meanwhile: a key that was revoked since opens
        nothing.
        """
        if self._keys.age_s(self._clock.monotonic()) > FRESH_S:
            await self._catch_up()
        key = claimed.key
        if self._keys.known(key.key_id) is not key:
            raise refused.unknown_key(key.key_id)
        finish(claimed.begun, method, raw_path, query, headers, body_sha256)
        return key.account
