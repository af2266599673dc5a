"""The values that name things in the ledger: pools, sessions, worker incarnations.

Owns their identity and order, nothing else; refuses to know limits, messages and time.
"""

from dataclasses import dataclass
from enum import IntEnum


class PoolKind(IntEnum):
    """Which of the account's disjoint pools (architecture: counting, rule 1). Numbers are those of common.proto."""

    UNRESERVED = 1
    RESERVED = 2
    PROVISIONED = 3


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pool:
    """One pool of concurrency permits. `function` is empty for the account's unreserved rest."""

    account: str
    kind: PoolKind
    function: str = ""
    qualifier: str = ""

    def __str__(self) -> str:
        if self.kind is PoolKind.UNRESERVED:
            return f"{self.account}/*"
        tail = f":{self.qualifier}" if self.qualifier else ""
        return f"{self.account}/{self.function}{tail}"


def unreserved(account: str) -> Pool:
    return Pool(account=account, kind=PoolKind.UNRESERVED)


def reserved(account: str, function: str) -> Pool:
    return Pool(account=account, kind=PoolKind.RESERVED, function=function)


def provisioned(account: str, function: str, qualifier: str) -> Pool:
    return Pool(account=account, kind=PoolKind.PROVISIONED, function=function, qualifier=qualifier)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Session:
    """A frontend incarnation as the ledger knows it; epochs of one frontend only grow."""

    frontend: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.frontend}#{self.epoch}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Incarnation:
    """A worker incarnation: host id and boot nonce. Another incarnation of the host is another member."""

    host: str
    nonce: int

    def __str__(self) -> str:
        return f"{self.host}@{self.nonce}"
