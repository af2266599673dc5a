"""Making, listing and revoking access keys.

Owns the rules: how many an account may have, for how long a temporary one is good, and which key can't be revoked.
Refuses to know who may ask (the table in ``chassis.identity``: an operator).

A revoked key stays as a mark without its secret. Marks and records of temporary keys go a day after the key's end, when
the next temporary key of the account is made.
"""

import random
from collections.abc import Sequence

from chassis.faults import Fault, FaultCode
from storage.faults import Conflict
from storage.interfaces import MetadataStore, Record

from .accounts import AccountBook
from .keys import PREFIX, AccessKey, Cipher, Revoked, decode, encode, new_key, new_session, store_key

KEYS_MAX = 100              # long-term keys of one account; counted before the write, not exactly
SESSIONS_MAX = 1000         # temporary keys of one account that aren't over
SESSION_S_MAX = 129_600.0   # 36 h, as AWS has it
SESSION_S_MIN = 1.0
KEPT_S = 86_400.0           # whoever uses a key so long after its end is told that it expired, later that it is unknown


class KeyIssuer:
    """Everything here reads the store: this is for operators, not for requests."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher, accounts: AccountBook, rng: random.Random) -> None:
        self._metadata = metadata
        self._cipher = cipher
        self._accounts = accounts
        self._rng = rng

    async def create(self, account: str, now: float) -> AccessKey:
        """A long-term key of an account (id or name; empty: the root account). Raises Fault."""
        owner = (await self._accounts.find(account)).id
        _check_room(await self._of(owner), temporary=False, limit=KEYS_MAX, now=now)
        key = new_key(owner, self._rng, now)
        await store_key(self._metadata, self._cipher, key)
        return key

    async def create_session(self, account: str, duration_s: float, now: float) -> tuple[AccessKey, str]:
        """A temporary key and its session token. Raises Fault."""
        if not SESSION_S_MIN <= duration_s <= SESSION_S_MAX:
            raise Fault(
                f"a temporary key is good for {SESSION_S_MIN:.0f} to {SESSION_S_MAX:.0f} s, not for {duration_s:g} s",
                code=FaultCode.INVALID, definite=True,
            )
        owner = (await self._accounts.find(account)).id
        kept = await self._sweep(await self._of(owner), now)
        _check_room(kept, temporary=True, limit=SESSIONS_MAX, now=now)
        key, token = new_session(owner, self._rng, now, duration_s)
        await store_key(self._metadata, self._cipher, key)
        return key, token

    async def keys(self, account: str) -> list[AccessKey]:
        """The keys of an account (empty: of all), expired ones too, by account and age. Raises Fault."""
        owner = (await self._accounts.find(account)).id if account else ""
        found = [content for _, content in await self._of(owner) if isinstance(content, AccessKey)]
        return sorted(found, key=lambda key: (key.account, key.created, key.key_id))

    async def revoke(self, key_id: str, now: float) -> AccessKey:
        """The key that was; the revocation is durable. Raises Fault: not found, conflict."""
        record = await self._metadata.get(PREFIX + key_id) if key_id.isalnum() and key_id.isascii() else None
        key = None if record is None else decode(record.key, record.value, self._cipher)
        if record is None or not isinstance(key, AccessKey):
            why = "it was revoked" if isinstance(key, Revoked) else "`labda key list` shows what there is"
            raise Fault(f"there is no access key {key_id[:80]}: {why}", code=FaultCode.NOT_FOUND, definite=True)
        await self._keep_one(key)
        mark = Revoked(key_id=key_id, account=key.account, at=now, expires=key.expires)
        await self._metadata.put(record.key, encode(mark, self._cipher), expected=record.revision)
        return key

    async def _keep_one(self, key: AccessKey) -> None:
        """The operator's own commands sign with a key of the root account."""
        roots = {account.id for account in await self._accounts.all() if account.root}
        if key.temporary or key.account not in roots:
            return
        others = [
            other for _, other in await self._of(key.account)
            if isinstance(other, AccessKey) and not other.temporary and other.key_id != key.key_id
        ]
        if not others:
            raise Fault(
                f"{key.key_id} is the last long-term key of the root account {key.account}, which `labda` itself signs "
                "with: make another first, with `labda key create --root`", code=FaultCode.CONFLICT, definite=True,
            )

    async def _of(self, owner: str) -> list[tuple[Record, AccessKey | Revoked]]:
        """The records of one account; empty: of all."""
        listing = await self._metadata.list(PREFIX)
        contents = [(record, decode(record.key, record.value, self._cipher)) for record in listing.records]
        return [(record, content) for record, content in contents if owner in {"", content.account}]

    async def _sweep(
        self, kept: Sequence[tuple[Record, AccessKey | Revoked]], now: float
    ) -> list[tuple[Record, AccessKey | Revoked]]:
        """Delete what is long over; what is left."""
        left = []
        for record, content in kept:
            if content.expires is None or content.expires + KEPT_S > now:
                left.append((record, content))
                continue
            try:
                await self._metadata.delete(record.key, expected=record.revision)
            except Conflict:
                continue  # another frontend sweeps too
        return left


def _check_room(
    kept: Sequence[tuple[Record, AccessKey | Revoked]], *, temporary: bool, limit: int, now: float
) -> None:
    count = sum(
        isinstance(content, AccessKey) and content.temporary == temporary
        and (content.expires is None or content.expires > now)
        for _, content in kept
    )
    if count >= limit:
        kind = "temporary" if temporary else "long-term"
        raise Fault(
            f"the account has {count} {kind} keys, it may have {limit}: revoke one (`labda key list` shows them)",
            code=FaultCode.EXHAUSTED, definite=True,
        )
