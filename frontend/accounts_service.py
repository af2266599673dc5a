"""The service Accounts: what operators ask of a frontend, in protobuf.

Owns the translation. The rules are ``auth/accounts.py``'s and ``auth/issuing.py``'s.
"""

import random

from chassis.clock import Clock
from chassis.rpc import Caller, Handlers
from frontend.auth.accounts import Account, AccountBook
from frontend.auth.issuing import KeyIssuer
from frontend.auth.keys import AccessKey, KeyRing
from protos import frontend_pb2, frontend_rpc


class AccountsService:
    """Any frontend of the region answers."""

    def __init__(
        self, accounts: AccountBook, issuer: KeyIssuer, ring: KeyRing, *, clock: Clock, rng: random.Random
    ) -> None:
        self._accounts = accounts
        self._issuer = issuer
        self._ring = ring
        self._clock = clock
        self._rng = rng

    def serve(self, handlers: Handlers) -> None:
        handlers.unary(frontend_rpc.CREATE_ACCOUNT, self._create_account)
        handlers.unary(frontend_rpc.LIST_ACCOUNTS, self._list_accounts)
        handlers.unary(frontend_rpc.CREATE_KEY, self._create_key)
        handlers.unary(frontend_rpc.LIST_KEYS, self._list_keys)
        handlers.unary(frontend_rpc.REVOKE_KEY, self._revoke_key)
        handlers.unary(frontend_rpc.HAS_KEY, self._has_key)

    async def _create_account(
        self, request: frontend_pb2.CreateAccountRequest, _caller: Caller
    ) -> frontend_pb2.Account:
        account_id = request.id or f"{self._rng.randrange(10**11, 10**12)}"
        account = Account(id=account_id, name=request.name, created=self._clock.wall())
        await self._accounts.add(account)
        return _account(account)

    async def _list_accounts(
        self, _request: frontend_pb2.ListAccountsRequest, _caller: Caller
    ) -> frontend_pb2.ListAccountsAnswer:
        return frontend_pb2.ListAccountsAnswer(accounts=map(_account, await self._accounts.all()))

    async def _create_key(
        self, request: frontend_pb2.CreateKeyRequest, _caller: Caller
    ) -> frontend_pb2.CreateKeyAnswer:
        now, token = self._clock.wall(), ""
        if request.session:
            key, token = await self._issuer.create_session(request.account, request.duration_s, now)
        else:
            key = await self._issuer.create(request.account, now)
        return frontend_pb2.CreateKeyAnswer(key=_key(key), secret=key.secret, session_token=token)

    async def _list_keys(self, request: frontend_pb2.ListKeysRequest, _caller: Caller) -> frontend_pb2.ListKeysAnswer:
        return frontend_pb2.ListKeysAnswer(keys=map(_key, await self._issuer.keys(request.account)))

    async def _revoke_key(self, request: frontend_pb2.RevokeKeyRequest, _caller: Caller) -> frontend_pb2.Key:
        return _key(await self._issuer.revoke(request.key_id, self._clock.wall()))

    async def _has_key(self, request: frontend_pb2.HasKeyRequest, _caller: Caller) -> frontend_pb2.HasKeyAnswer:
        return frontend_pb2.HasKeyAnswer(known=self._ring.known(request.key_id) is not None)


def _account(account: Account) -> frontend_pb2.Account:
    return frontend_pb2.Account(id=account.id, name=account.name, created=account.created, root=account.root)


def _key(key: AccessKey) -> frontend_pb2.Key:
    return frontend_pb2.Key(
        key_id=key.key_id, account=key.account, created=key.created, expires=key.expires or 0.0
    )
