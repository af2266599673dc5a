"""``labda account``: who has functions here. The region's operator makes accounts; their ids are part of every ARN."""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from labda import given
from labda.accounts import Accounts
from labda.refusal import Refusal, Status
from labda.region import opened, wait
from labda.state import State
from labda.target import also_here

CONCURRENCY_MAX = 100_000


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|list")
    create = actions.add_parser("create", help="a new account")
    create.add_argument("name", type=given.name("NAME"), metavar="NAME",
                        help="letters, digits, points, dashes and underscores")
    create.add_argument("--id", type=given.name("--id"), metavar="DIGITS", help="12 digits (default: drawn)")
    create.add_argument("--concurrency", type=int, metavar="N", help="invocations at a time (default: 1000)")
    listing = actions.add_parser("list", help="all accounts")
    for action in (create, listing):
        action.add_argument("--json", action="store_true", help="machine-readable")
        also_here(action)


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    if options.action == "create":
        made = asyncio.run(create(state, options.name, options.id or "", options.concurrency))
        text = f"account    {made['name']} ({made['id']}), {_concurrency(made)}\n"
        _print(options, made, text + f"its keys   labda key create --account {made['name']}{state.words}\n")
    else:
        found = asyncio.run(collect(state))
        _print(options, found, render(found))
    return Status.OK


async def create(state: State, name: str, account_id: str, concurrency: int | None) -> dict[str, Any]:
    """Raises Refusal. The limit is set last: an account that nobody could make has none."""
    if concurrency is not None and not 1 <= concurrency <= CONCURRENCY_MAX:
        raise Refusal(f"--concurrency is {concurrency}, it must be between 1 and {CONCURRENCY_MAX}", Status.USAGE)
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        accounts = Accounts(region)
        made = await accounts.create(name, account_id)
        if concurrency is not None:
            try:
                await accounts.set_limit(made.id, concurrency)
            except Refusal as refusal:
                raise Refusal(
                    f"account {made.name} ({made.id}) was made, its limit was not set: {refusal.message}",
                    refusal.status,
                ) from refusal
        return {
            "id": made.id, "name": made.name, "created": made.created, "root": made.root,
            "concurrency": await accounts.limit(made.id),
        }


async def collect(state: State) -> list[dict[str, Any]]:
    """All accounts, by name. Raises Refusal."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        accounts = Accounts(region)
        found = await accounts.all()
        now = time.time()
        keys = Counter(key.account for key in await accounts.keys() if key.expires == 0 or key.expires > now)
        limits = await asyncio.gather(*(accounts.limit(account.id) for account in found))
    return [
        {
            "id": account.id, "name": account.name, "created": account.created, "root": account.root,
            "keys": keys[account.id], "concurrency": limit,
        }
        for account, limit in zip(found, limits, strict=True)
    ]


def render(accounts: list[dict[str, Any]]) -> str:
    lines = [f"{'account':<32}{'id':<16}{'concurrency':<14}{'keys':<8}created"]
    for account in accounts:
        limit = "?" if account["concurrency"] is None else account["concurrency"]
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(account["created"]))
        lines.append(f"{account['name']:<32}{account['id']:<16}{limit:<14}{account['keys']:<8}{created}")
    return "\n".join(lines) + "\n"


def _concurrency(account: dict[str, Any]) -> str:
    limit = account["concurrency"]
    return "concurrency not known: the ledger doesn't answer" if limit is None else f"concurrency {limit}"


def _print(options: argparse.Namespace, report: Any, text: str) -> None:
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else text)
