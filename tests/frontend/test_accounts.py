"""Accounts and keys over a store in memory: the rules, and two frontends that race."""

import asyncio
import random

import pytest

from chassis.clock import SystemClock
from chassis.faults import Fault, FaultCode
from frontend.auth import accounts as book
from frontend.auth import issuing
from frontend.auth.accounts import Account, AccountBook
from frontend.auth.issuing import KeyIssuer
from frontend.auth.keys import PREFIX, KeyRing, store_key
from storage.cipher import Cipher
from storage.faults import Conflict
from storage.memory import MemoryMetadata

NOW = 1_789_000_000.0
ROOT = Account(id="000000000000", name="root", created=NOW, root=True)
BILLING = Account(id="111122223333", name="billing", created=NOW)


class Store:
    """One store with what two frontends make of it."""

    def __init__(self) -> None:
        self.metadata = MemoryMetadata(SystemClock())
        self.cipher = Cipher(b"k" * 32)
        self.book, self.other_book = AccountBook(self.metadata), AccountBook(self.metadata)
        self.issuer = KeyIssuer(self.metadata, self.cipher, self.book, random.Random(3))

    async def records(self) -> list[str]:
        return [record.key.removeprefix(PREFIX) for record in (await self.metadata.list(PREFIX)).records]


@pytest.fixture
async def store() -> Store:
    made = Store()
    await made.book.add(ROOT)
    await made.book.add(BILLING)
    return made


async def fault(what) -> Fault:
    with pytest.raises(Fault) as caught:
        await what
    assert caught.value.definite
    return caught.value


async def test_a_name_that_is_too_long_is_told_with_its_length_and_the_limit(store):
    await store.book.add(Account(id="222222222222", name="a" * 63, created=NOW))
    refused = await fault(store.book.add(Account(id="333333333333", name="b" * 500, created=NOW)))
    assert refused.message == (
        f"an account's name has 63 characters at most, the one that begins with {'b' * 20!r} has 500: "
        "choose a shorter one"
    )


async def test_accounts_are_found_by_id_and_name(store):
    assert [account.name for account in await store.book.all()] == ["billing", "root"]
    assert await store.book.find("billing") == await store.book.find("111122223333") == BILLING
    assert await store.book.find("") == ROOT
    assert (await fault(store.book.find("nobody"))).code is FaultCode.NOT_FOUND


@pytest.mark.parametrize(
    ("account", "code"),
    [
        (Account(id="111122223333", name="another", created=NOW), FaultCode.CONFLICT),
        (Account(id="222222222222", name="billing", created=NOW), FaultCode.CONFLICT),
        (Account(id="222222222222", name="another", created=NOW, root=True), FaultCode.CONFLICT),
        (Account(id="22222222222", name="another", created=NOW), FaultCode.INVALID),
        (Account(id="\u0662" * 12, name="another", created=NOW), FaultCode.INVALID),
        (Account(id="222222222222", name="", created=NOW), FaultCode.INVALID),
        (Account(id="222222222222", name="1st", created=NOW), FaultCode.INVALID),
        (Account(id="222222222222", name="a" * 64, created=NOW), FaultCode.INVALID),
        (Account(id="222222222222", name="a b", created=NOW), FaultCode.INVALID),
    ],
)
async def test_what_is_taken_or_malformed_is_refused(store, account, code):
    assert (await fault(store.book.add(account))).code is code
    assert len(await store.book.all()) == 2


async def test_of_two_frontends_that_add_at_once_none_loses_an_account(store):
    names = [f"team-{number}" for number in range(8)]
    await asyncio.gather(*(
        [store.book, store.other_book][number % 2].add(
            Account(id=f"{number:012d}"[::-1].replace("0", "3"), name=name, created=NOW)
        )
        for number, name in enumerate(names, 1)
    ))
    assert {account.name for account in await store.book.all()} == {"root", "billing", *names}


async def test_there_are_so_many_accounts_and_no_more(store, monkeypatch):
    monkeypatch.setattr(book, "ACCOUNTS_MAX", 2)
    found = await fault(store.book.add(Account(id="222222222222", name="another", created=NOW)))
    assert (found.code, "may have 2" in found.message) == (FaultCode.EXHAUSTED, True)


async def test_keys_are_made_listed_and_revoked_once(store):
    key = await store.issuer.create("billing", NOW)
    root = await store.issuer.create("", NOW)
    assert (key.account, key.key_id[:4], len(key.secret)) == (BILLING.id, "AKIA", 40)
    assert await store.issuer.keys("") == [root, key]
    assert await store.issuer.keys("billing") == [key]
    assert await store.issuer.revoke(key.key_id, NOW) == key
    assert await store.issuer.keys("billing") == []
    assert "it was revoked" in (await fault(store.issuer.revoke(key.key_id, NOW))).message
    for unknown in ("AKIANOBODY", "", "../registry/accounts", "\u0662"):
        assert (await fault(store.issuer.revoke(unknown, NOW))).code is FaultCode.NOT_FOUND


async def test_a_revoked_key_is_not_put_back(store):
    key = await store.issuer.create("billing", NOW)
    await store.issuer.revoke(key.key_id, NOW)
    with pytest.raises(Conflict):
        await store_key(store.metadata, store.cipher, key)
    assert await KeyRing(store.metadata, store.cipher).find(key.key_id, 0.0) is None


async def test_the_last_long_term_key_of_the_root_account_stays(store):
    first = await store.issuer.create("", NOW)
    session, _ = await store.issuer.create_session("", 60.0, NOW)
    await store.issuer.create("billing", NOW)
    assert (await fault(store.issuer.revoke(first.key_id, NOW))).code is FaultCode.CONFLICT
    await store.issuer.revoke(session.key_id, NOW)
    second = await store.issuer.create("", NOW)
    await store.issuer.revoke(first.key_id, NOW)
    assert await store.issuer.keys("root") == [second]


async def test_temporary_keys_have_an_end_and_go_a_day_after_it(store):
    key, token = await store.issuer.create_session("billing", 900.0, NOW)
    revoked, _ = await store.issuer.create_session("billing", 900.0, NOW)
    await store.issuer.revoke(revoked.key_id, NOW)
    assert (key.key_id[:4], key.expires, len(token)) == ("ASIA", NOW + 900, 128)
    over = NOW + 900 + issuing.KEPT_S
    later, _ = await store.issuer.create_session("billing", 900.0, over - 1)
    assert set(await store.records()) == {key.key_id, revoked.key_id, later.key_id}
    last, _ = await store.issuer.create_session("billing", 900.0, over)
    assert set(await store.records()) == {later.key_id, last.key_id}
    for duration_s in (0.5, 129_601.0, float("nan")):
        assert (await fault(store.issuer.create_session("billing", duration_s, NOW))).code is FaultCode.INVALID


async def test_an_account_has_so_many_keys_and_no_more(store, monkeypatch):
    monkeypatch.setattr(issuing, "KEYS_MAX", 2)
    monkeypatch.setattr(issuing, "SESSIONS_MAX", 1)
    for _ in range(2):
        await store.issuer.create("billing", NOW)
    await store.issuer.create_session("billing", 60.0, NOW)
    for made in (store.issuer.create("billing", NOW), store.issuer.create_session("billing", 60.0, NOW)):
        assert (await fault(made)).code is FaultCode.EXHAUSTED
    await store.issuer.create("root", NOW)
    await store.issuer.create_session("billing", 60.0, NOW + 60)
