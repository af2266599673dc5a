"""Access keys: who a key belongs to, and its secret.

Owns the key records in the metadata store (the secret encrypted, of a session token only the digest), this frontend's
watched copy of them, the making of new keys, and the judgement of a session token. Refuses to know signatures and HTTP.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import string
import time
from dataclasses import dataclass
from typing import Any, Protocol

from chassis.clock import Clock
from storage.faults import StorageFault
from storage.interfaces import Listing, MetadataStore

from . import refused

PREFIX = "keys/"
FORMAT = 1
TOKEN_CHARACTERS = 128
# Guessing key ids costs the store next to nothing: each unknown one is asked for at most once in so long, and all of
# them so often in that time. A new key comes by the watch, or by the next listing: asking is for the moment before.
UNKNOWN_S = 1.0
UNKNOWN_MAX = 10_000
LOOK_UPS_MAX = 50
CATCH_UP_S = 0.5
PATIENCE_STEPS = 5


class Cipher(Protocol):
    """Encryption at rest. ``record`` is the key of the record that the text belongs to, and is bound to it."""

    def encrypt(self, plain: bytes, record: str) -> bytes: ...

    def decrypt(self, encrypted: bytes, record: str) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """One access key of an account. ``repr`` keeps the secret to itself.

    A temporary key has the SHA-256 of its session token and a time at which it ends (Unix seconds).
    """

    key_id: str
    account: str
    secret: str
    created: float
    token_sha256: str = ""
    expires: float | None = None

    def __repr__(self) -> str:
        return f"AccessKey(key_id={self.key_id!r}, account={self.account!r})"

    @property
    def temporary(self) -> bool:
        return self.expires is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What is left of a revoked key: its id is never used again, and nobody puts it back by mistake.

    ``expires`` is the end that a temporary key had.
    """

    key_id: str
    account: str
    at: float
    expires: float | None = None


def new_key(account: str, rng: random.Random, now: float) -> AccessKey:
    """A new pair in AWS's form; ``now`` in Unix seconds. ``rng`` is ``random.SystemRandom()`` outside of tests."""
    return AccessKey(key_id=_new_id("AKIA", rng), account=account, secret=_draw(rng, 40), created=now)


def new_session(account: str, rng: random.Random, now: float, duration_s: float) -> tuple[AccessKey, str]:
    """A temporary key and its session token, of which only the digest is kept."""
    token = _draw(rng, TOKEN_CHARACTERS)
    key = AccessKey(
        key_id=_new_id("ASIA", rng), account=account, secret=_draw(rng, 40), created=now,
        token_sha256=hashlib.sha256(token.encode()).hexdigest(), expires=now + duration_s,
    )
    return key, token


def check_token(key: AccessKey, token: str | None, now: float) -> None:
    """Judge a request's session token; ``now`` in Unix seconds. Raises ApiError (403).

    Only who has the token is told that it expired.
    """
    if key.expires is None:
        if token is not None:
            raise refused.wrong_token(f"The access key {key.key_id} is a long-term key: it has no session token.")
        return
    if token is None:
        raise refused.wrong_token(f"The access key {key.key_id} is temporary: send its session token too.")
    digest = hashlib.sha256(token.encode("latin-1", "replace")).hexdigest()
    if not hmac.compare_digest(digest, key.token_sha256):
        raise refused.wrong_token(f"The session token isn't that of the access key {key.key_id}.")
    if now >= key.expires:
        raise refused.expired_token(key.key_id, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.expires)))


def _new_id(prefix: str, rng: random.Random) -> str:
    return prefix + "".join(rng.choices(string.ascii_uppercase + "234567", k=16))


def _draw(rng: random.Random, characters: int) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits + "+/", k=characters))


# ---- records


def encode(content: AccessKey | Revoked, cipher: Cipher) -> bytes:
    document: dict[str, Any] = {"format": FORMAT, "account": content.account}
    if content.expires is not None:
        document["expires"] = content.expires
    if isinstance(content, Revoked):
        document["revoked"] = content.at
        return json.dumps(document).encode()
    secret = cipher.encrypt(content.secret.encode(), PREFIX + content.key_id)
    document |= {"secret": base64.b64encode(secret).decode(), "created": content.created}
    if content.temporary:
        document["token_sha256"] = content.token_sha256
    return json.dumps(document).encode()


def decode(key: str, value: bytes, cipher: Cipher) -> AccessKey | Revoked:
    """Raises ValueError for a format that this release doesn't know, CipherFault for a secret of another key file."""
    document = json.loads(value)
    if document["format"] != FORMAT:
        raise ValueError(f"{key} is kept in format {document['format']}, this release reads {FORMAT}: upgrade labda")
    key_id, account = key.removeprefix(PREFIX), document["account"]
    if "revoked" in document:
        return Revoked(key_id=key_id, account=account, at=document["revoked"], expires=document.get("expires"))
    secret = cipher.decrypt(base64.b64decode(document["secret"]), key)
    return AccessKey(
        key_id=key_id, account=account, secret=secret.decode(), created=document["created"],
        token_sha256=document.get("token_sha256", ""), expires=document.get("expires"),
    )


def is_mark(key: str, value: bytes) -> bool:
    """Whether a record of the store is what is left of a revoked key. A mark has no secret, so nothing is opened."""
    if not key.startswith(PREFIX):
        return False
    try:
        document = json.loads(value)
    except ValueError:
        return False
    return isinstance(document, dict) and "revoked" in document


async def store_key(metadata: MetadataStore, cipher: Cipher, key: AccessKey) -> None:
    """Write a new key. Raises Conflict when the id is taken, also by a key that was revoked."""
    await metadata.put(PREFIX + key.key_id, encode(key, cipher), expected=0)


class KeyRing:
    """The keys that this frontend knows. Filled from a watch (``apply``), asked on every request.

    Everything that comes carries the store's revision, and what is older than what is there changes nothing: an answer
    that was on its way while its key was revoked doesn't bring the key back.
    """

    def __init__(self, metadata: MetadataStore, cipher: Cipher) -> None:
        self._metadata = metadata
        self._cipher = cipher
        self._keys: dict[str, AccessKey] = {}
        self._revisions: dict[str, int] = {}     # of every record seen, revoked ones too
        self._unknown: dict[str, float] = {}
        self._look_ups = 0                       # since _counted_at
        self._counted_at = float("-inf")
        self._listed_at = float("-inf")          # monotonic seconds, from before the last listing was asked for
        self._listing: asyncio.Task[Listing] | None = None
        self._cut_off = False                    # the last attempt to list failed

    def known(self, key_id: str) -> AccessKey | None:
        """The key if this frontend already has it: no storage on the warm path."""
        return self._keys.get(key_id)

    def age_s(self, monotonic: float) -> float:
        """For how long a key that is known here may have been revoked."""
        return monotonic - self._listed_at

    async def relist(self, clock: Clock) -> Listing:
        """Hear from the store which keys there are. Raises StorageFault."""
        before = clock.monotonic()
        patience = asyncio.create_task(self._lose_patience(), name="patience with the store")
        try:
            listing = await self._metadata.list(PREFIX)
        except StorageFault:
            self._cut_off = True
            raise
        finally:
            patience.cancel()
        self.replace(listing)
        self._listed_at = max(self._listed_at, before)
        self._cut_off = False
        return listing

    async def _lose_patience(self) -> None:
        """A store that hangs is noticed before any request has to wait for it.

        In steps: a process that was stopped meanwhile has taken at most one of them when it goes on.
        """
        for _ in range(PATIENCE_STEPS):
            await asyncio.sleep(CATCH_UP_S / PATIENCE_STEPS)
        self._cut_off = True

    async def catch_up(self, clock: Clock) -> None:
        """After a silence: this process stood still, or the store is away. Waits for 0.5 s at most, and only once.

        A frontend that was stopped would else take a key for good that was revoked meanwhile.
        """
        if self._cut_off:
            return
        if self._listing is None:
            self._listing = asyncio.create_task(self.relist(clock), name="list keys after a silence")
            self._listing.add_done_callback(self._caught_up)
        await asyncio.wait({self._listing}, timeout=CATCH_UP_S)
        if self._listing is not None:
            self._cut_off = True

    def _caught_up(self, listing: "asyncio.Task[Listing]") -> None:
        self._listing = None
        if not listing.cancelled():
            listing.exception()  # the attempt was noted as failed

    async def find(self, key_id: str, now: float) -> AccessKey | None:
        """The key, asking the store for one that isn't known here; ``now`` in monotonic seconds."""
        key = self._keys.get(key_id)
        if key is not None:
            return key
        if not key_id.isalnum() or not key_id.isascii() or len(key_id) > 128:
            return None
        if self._unknown.get(key_id, -UNKNOWN_S) > now - UNKNOWN_S or not self._may_look_up(now):
            return None
        record = await self._metadata.get(PREFIX + key_id)
        if record is not None:
            self.apply(record.key, record.value, record.revision)
        if key_id not in self._keys:
            if len(self._unknown) >= UNKNOWN_MAX:
                self._unknown.clear()
            self._unknown[key_id] = now
        return self._keys.get(key_id)

    def _may_look_up(self, now: float) -> bool:
        if now >= self._counted_at + UNKNOWN_S:
            self._counted_at, self._look_ups = now, 0
        self._look_ups += 1
        return self._look_ups <= LOOK_UPS_MAX

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Take over one change of the watched prefix; None as the value is a deletion."""
        key_id = key.removeprefix(PREFIX)
        if revision <= self._revisions.get(key_id, 0):
            return
        content = None if value is None else decode(key, value, self._cipher)
        self._unknown.pop(key_id, None)
        self._revisions[key_id] = revision
        if isinstance(content, AccessKey):
            self._keys[key_id] = content
        else:
            self._keys.pop(key_id, None)

    def replace(self, listing: Listing) -> None:
        """Take over a whole listing: what isn't in it is gone, unless it came after it."""
        listed = {record.key.removeprefix(PREFIX) for record in listing.records}
        for key_id, revision in list(self._revisions.items()):
            if key_id not in listed and revision <= listing.revision:
                del self._revisions[key_id]
                self._keys.pop(key_id, None)
        for record in listing.records:
            self.apply(record.key, record.value, record.revision)

    def all(self) -> list[AccessKey]:
        """Every key, for the check at the start."""
        return list(self._keys.values())
