"""The accounts of a region: ids, names, and which one is the root account.

Owns their record in the metadata store. Refuses to know keys and functions, and limits: the ledger is their home.

All accounts are one record, changed by compare-and-swap: so that neither an id nor a name is ever given twice.
"""

import json
import re
from dataclasses import asdict, dataclass

from chassis.faults import Fault, FaultCode
from storage.faults import Conflict
from storage.interfaces import MetadataStore

KEY = "registry/accounts"
FORMAT = 1
ACCOUNTS_MAX = 1000     # of 150 bytes each, in a record of at most 1 MiB
ATTEMPTS_MAX = 20
NAME_CHARACTERS_MAX = 63

_ID = re.compile(r"\d{12}", re.ASCII)
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``created`` in Unix seconds."""

    id: str
    name: str
    created: float
    root: bool = False


class AccountBook:
    """Reads go to the store each time: this is for operators, not for requests."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata

    async def all(self) -> list[Account]:
        """By name."""
        return (await self._read())[0]

    async def find(self, name_or_id: str) -> Account:
        """The account; empty: the root account. Raises Fault (not found)."""
        for account in await self.all():
            if name_or_id in {account.id, account.name} or (not name_or_id and account.root):
                return account
        what = f"no account {name_or_id}" if name_or_id else "no root account"
        raise Fault(
            f"there is {what}: `labda account list` shows what there is, `labda account create` makes one",
            code=FaultCode.NOT_FOUND, definite=True,
        )

    async def add(self, account: Account) -> None:
        """Raises Fault: invalid, conflict (the id or the name is taken), exhausted."""
        _check(account)
        for _ in range(ATTEMPTS_MAX):
            accounts, revision = await self._read()
            _check_free(account, accounts)
            document = {"format": FORMAT, "accounts": [asdict(each) for each in [*accounts, account]]}
            try:
                await self._metadata.put(KEY, json.dumps(document).encode(), expected=revision)
            except Conflict:
                continue
            return
        raise Fault(f"accounts change too often, {ATTEMPTS_MAX} attempts failed: try again", definite=True)

    async def _read(self) -> tuple[list[Account], int]:
        record = await self._metadata.get(KEY)
        if record is None:
            return [], 0
        document = json.loads(record.value)
        if document["format"] != FORMAT:
            raise Fault(
                f"{KEY} is kept in format {document['format']}, this release reads {FORMAT}: upgrade labda",
                code=FaultCode.INTERNAL, definite=True,
            )
        accounts = [Account(**each) for each in document["accounts"]]
        return sorted(accounts, key=lambda account: account.name), record.revision


def _check(account: Account) -> None:
    if not _ID.fullmatch(account.id):
        raise _invalid(f"an account's id has 12 digits, {account.id!r} has not")
    if len(account.name) > NAME_CHARACTERS_MAX:
        raise _invalid(
            f"an account's name has {NAME_CHARACTERS_MAX} characters at most, the one that begins with "
            f"{account.name[:20]!r} has {len(account.name)}: choose a shorter one"
        )
    if not _NAME.fullmatch(account.name):
        raise _invalid(
            f"{account.name!r} is no name for an account: 1 to 63 letters, digits, points, dashes and underscores "
            "are, beginning with a letter"
        )


def _check_free(account: Account, accounts: list[Account]) -> None:
    for other in accounts:
        if account.id == other.id or account.name == other.name:
            same = f"id {account.id}" if account.id == other.id else f"name {account.name}"
            raise Fault(
                f"an account with the {same} exists ({other.name}, {other.id}): choose another",
                code=FaultCode.CONFLICT, definite=True,
            )
        if account.root and other.root:
            raise Fault(f"there is a root account already: {other.id}", code=FaultCode.CONFLICT, definite=True)
    if len(accounts) >= ACCOUNTS_MAX:
        raise Fault(
            f"the region has {len(accounts)} accounts, it may have {ACCOUNTS_MAX}: use one that there is",
            code=FaultCode.EXHAUSTED, definite=True,
        )


def _invalid(message: str) -> Fault:
    return Fault(message, code=FaultCode.INVALID, definite=True)
