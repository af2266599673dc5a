"""Accounts and keys as the command changes them: through any frontend, and limits through the ledger's leader.

Owns those calls, under the operator's certificate. The rules are the frontend's; the store is never opened from here.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from chassis.faults import Fault, FaultCode
from labda.refusal import Refusal, Status
from labda.region import Node, Region
from protos import counting_pb2, counting_rpc, frontend_pb2, frontend_rpc
from protos.rpc import Method

CALL_S = 5.0
LIMIT_S = 12.0      # a limit binds after 10 s at most
BINDS_S = 3.0       # how long to wait until every frontend refuses a revoked key; 2 s is what they promise
POLL_S = 0.05
_ELSEWHERE = frozenset({FaultCode.UNAVAILABLE, FaultCode.TIMEOUT, FaultCode.CANCELLED})

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A key that was revoked for good. ``outstanding``: frontends that didn't say so within ``waited_s``."""

    key: frontend_pb2.Key
    outstanding: list[str]
    waited_s: float


class Accounts:
    """Over an opened region."""

    def __init__(self, region: Region) -> None:
        self._region = region

    async def create(self, name: str, account_id: str) -> frontend_pb2.Account:
        return await self._ask(
            frontend_rpc.CREATE_ACCOUNT, frontend_pb2.CreateAccountRequest(name=name, id=account_id)
        )

    async def all(self) -> Sequence[frontend_pb2.Account]:
        return (await self._ask(frontend_rpc.LIST_ACCOUNTS, frontend_pb2.ListAccountsRequest())).accounts

    async def keys(self, account: str = "") -> Sequence[frontend_pb2.Key]:
        return (await self._ask(frontend_rpc.LIST_KEYS, frontend_pb2.ListKeysRequest(account=account))).keys

    async def create_key(self, account: str, session_s: float | None) -> frontend_pb2.CreateKeyAnswer:
        """``session_s``: for how long a temporary key is good; None for a long-term key."""
        return await self._ask(frontend_rpc.CREATE_KEY, frontend_pb2.CreateKeyRequest(
            account=account, session=session_s is not None, duration_s=session_s or 0.0
        ))

    async def revoke_key(self, key_id: str) -> Revocation:
        """Returns once every frontend refuses the key, or after 3 s."""
        key = await self._ask(frontend_rpc.REVOKE_KEY, frontend_pb2.RevokeKeyRequest(key_id=key_id))
        began = time.monotonic()
        frontends = self._region.directory.of_service("frontend")
        refuse = await asyncio.gather(*(self._refuses(node, key_id) for node in frontends))
        outstanding = [node.node for node, refuses in zip(frontends, refuse, strict=True) if not refuses]
        return Revocation(key=key, outstanding=outstanding, waited_s=time.monotonic() - began)

    async def limit(self, account: str) -> int | None:
        """The account's concurrency limit; None while the ledger has no leader that answers."""
        for node in self._members():
            try:
                answer = await self._call(node, counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account=account))
            except Fault:
                continue
            if not answer.HasField("not_leader"):
                return answer.account_limit
        return None

    async def set_limit(self, account: str, limit: int) -> None:
        """Raises Refusal."""
        request = counting_pb2.SetAccountLimitRequest(account=account, limit=limit)
        for node in self._members():
            try:
                answer = await self._call(node, counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=LIMIT_S)
            except Fault:
                continue
            match answer.WhichOneof("outcome"):
                case "generation":
                    return
                case "below_floor":
                    raise Refusal(
                        f"functions of the account have {answer.below_floor.reserved_elsewhere} reserved, its limit "
                        f"can't be {limit}: reserve less first", Status.REFUSED,
                    )
                case _:
                    continue
        raise Refusal(
            "no leader of the ledger answers: whether the limit was set isn't known, `labda limits` shows it",
            Status.NO_CLUSTER,
        )

    async def _ask(self, method: Method[Request, Response], request: Request) -> Response:
        """Of the first frontend that answers. What may have been done is not asked for again. Raises Refusal."""
        why = "no frontend is registered"
        for node in self._region.directory.of_service("frontend"):
            if not await self._region.serving(node):
                why = f"{node.node} doesn't serve"
                continue
            try:
                return await self._call(node, method, request)
            except Fault as fault:
                why = fault.message.removeprefix(f"{method.name} at {node.node} at {node.address}: ")
                if not fault.definite:
                    raise Refusal(f"whether it was done isn't known ({why}): look before you try again") from fault
                if fault.code not in _ELSEWHERE:
                    raise Refusal(why, Status.REFUSED) from fault
        raise Refusal(f"no frontend answers ({why}): `labda status` shows what is away", Status.NO_CLUSTER)

    async def _refuses(self, node: Node, key_id: str) -> bool:
        deadline = time.monotonic() + BINDS_S
        request = frontend_pb2.HasKeyRequest(key_id=key_id)
        while time.monotonic() < deadline:
            try:
                if not (await self._call(node, frontend_rpc.HAS_KEY, request, timeout_s=BINDS_S)).known:
                    return True
            except Fault:
                pass  # it may be starting again: asked until the deadline
            await asyncio.sleep(POLL_S)
        return False

    def _members(self) -> list[Node]:
        """Of counting, the leader first."""
        return sorted(self._region.directory.of_service("counting"), key=lambda member: member.role != "leader")

    async def _call(
        self, node: Node, method: Method[Request, Response], request: Request, *, timeout_s: float = CALL_S
    ) -> Response:
        return await self._region.call(node, method, request, timeout_s=timeout_s)
