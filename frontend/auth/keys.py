"""Access keys: who a key belongs to, and its secret.

Owns the key records in the metadata store (the secret encrypted), this frontend's watched copy of them, the making of a
new pair, and the list of secrets that everybody knows. Refuses to know signatures and HTTP.
"""

import base64
import ipaddress
import json
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from storage.interfaces import MetadataStore, Record

PREFIX = "keys/"
# Unknown key ids are asked for in the store at most this often each, so that guessing costs the store nothing.
UNKNOWN_S = 1.0
UNKNOWN_MAX = 10_000

WELL_KNOWN_KEY_IDS = frozenset({
    "AKIAIOSFODNN7EXAMPLE", "AKIAI44QH8DHBEXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AKIDEXAMPLE", "test",
})
WELL_KNOWN_SECRETS = frozenset({
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY",
    "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "test", "testing", "secret", "dummy", "fake", "foo", "bar", "x", "xxx",
    "password", "localstack", "minioadmin", "mock", "none", "accesskey", "secretkey", "secret_key",
})


class Cipher(Protocol):
    """Encryption at rest. ``record`` is the key of the record that the text belongs to, and is bound to it."""

    def encrypt(self, plain: bytes, record: str) -> bytes: ...

    def decrypt(self, encrypted: bytes, record: str) -> bytes: ...


class WellKnownSecret(Exception):
    """A key that everybody knows would be served on an address that others can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """One access key of an account. ``repr`` keeps the secret to itself."""

    key_id: str
    account: str
    secret: str
    created: float

    def __repr__(self) -> str:
        return f"AccessKey(key_id={self.key_id!r}, account={self.account!r})"


def new_key(account: str, rng: random.Random, now: float) -> AccessKey:
    """A new pair in AWS's form; ``now`` in Unix seconds. ``rng`` is ``random.SystemRandom()`` outside of tests."""
    letters = string.ascii_letters + string.digits + "+/"
    return AccessKey(
        key_id="AKIA" + "".join(rng.choices(string.ascii_uppercase + "234567", k=16)),
        account=account,
        secret="".join(rng.choices(letters, k=40)),
        created=now,
    )


def encode(key: AccessKey, cipher: Cipher) -> bytes:
    secret = cipher.encrypt(key.secret.encode(), PREFIX + key.key_id)
    return json.dumps({
        "format": 1, "account": key.account, "secret": base64.b64encode(secret).decode(), "created": key.created,
    }).encode()


def decode(record: Record, cipher: Cipher) -> AccessKey:
    document = json.loads(record.value)
    secret = cipher.decrypt(base64.b64decode(document["secret"]), record.key)
    return AccessKey(
        key_id=record.key.removeprefix(PREFIX),
        account=document["account"],
        secret=secret.decode(),
        created=document["created"],
    )


async def store_key(metadata: MetadataStore, cipher: Cipher, key: AccessKey) -> None:
    """Write a new key. Raises Conflict when the id is taken."""
    await metadata.put(PREFIX + key.key_id, encode(key, cipher), expected=0)


class KeyRing:
    """The keys that this frontend knows. Filled from a watch (``apply``), asked on every request."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher) -> None:
        self._metadata = metadata
        self._cipher = cipher
        self._keys: dict[str, AccessKey] = {}
        self._unknown: dict[str, float] = {}

    def known(self, key_id: str) -> AccessKey | None:
        """The key if this frontend already has it: no storage on the warm path."""
        return self._keys.get(key_id)

    async def find(self, key_id: str, now: float) -> AccessKey | None:
        """The key, asking the store for one that isn't known here; ``now`` in monotonic seconds."""
        key = self._keys.get(key_id)
        if key is not None:
            return key
        if not key_id.isalnum() or not key_id.isascii() or len(key_id) > 128:
            return None
        if self._unknown.get(key_id, -UNKNOWN_S) > now - UNKNOWN_S:
            return None
        record = await self._metadata.get(PREFIX + key_id)
        if record is None:
            if len(self._unknown) >= UNKNOWN_MAX:
                self._unknown.clear()
            self._unknown[key_id] = now
            return None
        return self.apply(record.key, record.value)

    def apply(self, key: str, value: bytes | None) -> AccessKey | None:
        """Take over one change of the watched prefix; None as the value is a deletion."""
        key_id = key.removeprefix(PREFIX)
        self._unknown.pop(key_id, None)
        if value is None:
            self._keys.pop(key_id, None)
            return None
        self._keys[key_id] = decode(Record(key=key, value=value, revision=0), self._cipher)
        return self._keys[key_id]

    def replace(self, records: Iterable[Record]) -> None:
        """Take over a whole listing, after a gap in the watch."""
        self._keys = {record.key.removeprefix(PREFIX): decode(record, self._cipher) for record in records}
        self._unknown.clear()

    def all(self) -> list[AccessKey]:
        """Every key, for the check at the start."""
        return list(self._keys.values())


def refuse_well_known(listen_host: str, keys: Iterable[AccessKey]) -> None:
    """Raise WellKnownSecret if a listed key is public knowledge and ``listen_host`` isn't a loopback address."""
    if _is_loopback(listen_host):
        return
    for key in keys:
        if is_well_known(key):
            raise WellKnownSecret(
                f"access key {key.key_id} of account {key.account} has a well-known id or secret, and {listen_host} "
                "can be reached by others: listen on 127.0.0.1, or delete that key and make a new one"
            )


def is_well_known(key: AccessKey) -> bool:
    return (
        key.key_id in WELL_KNOWN_KEY_IDS
        or key.secret.lower() in {secret.lower() for secret in WELL_KNOWN_SECRETS}
        or key.secret in {key.key_id, key.account}
        or key.secret.endswith("EXAMPLEKEY")
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may resolve to anything
