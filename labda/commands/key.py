"""``labda key``: access keys of accounts. A secret is shown once; a revoked key is refused everywhere within 2 s."""

import argparse
import asyncio
import json
import re
import shlex
import sys
import time
from typing import Any

from labda import given
from labda.accounts import Accounts, Revocation
from labda.refusal import Refusal, Status
from labda.region import opened, wait
from labda.state import State
from labda.target import also_here
from protos import frontend_pb2

_DURATION = re.compile(r"(\d+)([smh])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600}
DURATION = "1h"


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|revoke|list")
    create = actions.add_parser("create", help="a new key; its secret is shown this once")
    create.add_argument("--account", type=given.name("--account"), metavar="NAME|ID",
                        help="whose (default: the root account)")
    create.add_argument("--session", action="store_true", help="a temporary key with a session token")
    create.add_argument("--duration", metavar="TIME",
                        help=f"a temporary key for so long: 90s, 15m, 36h at most (default with --session: {DURATION})")
    create.add_argument("--root", action="store_true", help="a key that labda itself signs with from now on")
    create.add_argument("--env", action="store_true", help="as shell lines for eval")
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("key_id", type=given.name("KEY"), metavar="KEY", help="its id")
    listing = actions.add_parser("list", help="keys and their ends")
    listing.add_argument("--account", type=given.name("--account"), metavar="NAME|ID",
                         help="whose (default: of all accounts)")
    for action in (create, revoke, listing):
        action.add_argument("--json", action="store_true", help="machine-readable")
        also_here(action)


def run(options: argparse.Namespace) -> int:
    match options.action:
        case "create":
            made = asyncio.run(create(options))
            _print(options, made, _environment(made) if options.env else _shown(made))
        case "revoke":
            return _revoke(options)
        case _:
            found = asyncio.run(collect(options.state, options.account or ""))
            _print(options, found, render(found))
    return Status.OK


async def create(options: argparse.Namespace) -> dict[str, Any]:
    """Raises Refusal."""
    session_s = checked(options)
    state: State = options.state
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        answer = await Accounts(region).create_key(options.account or "", session_s)
    if options.root:
        state.write("root.json", {
            "account": answer.key.account, "access_key_id": answer.key.key_id, "secret_access_key": answer.secret,
        })
    return _key(answer.key) | {"secret_access_key": answer.secret, "session_token": answer.session_token or None}


def checked(options: argparse.Namespace) -> float | None:
    """For how long the key is good; None: it is a long-term one. Raises Refusal for options that don't go together."""
    temporary = options.session or options.duration is not None
    if options.root and (temporary or options.account):
        raise Refusal(
            "--root is for a long-term key of the root account: leave --session, --duration and --account out",
            Status.USAGE,
        )
    if options.json and options.env:
        raise Refusal("--json and --env are two forms of the same key: leave one out", Status.USAGE)
    return duration_s(DURATION if options.duration is None else options.duration) if temporary else None


def _revoke(options: argparse.Namespace) -> int:
    done = asyncio.run(revoke(options.state, options.key_id))
    key, outstanding = _key(done.key), done.outstanding
    _print(
        options, key | {"outstanding": outstanding, "bound_s": None if outstanding else round(done.waited_s, 3)},
        f"revoked    {done.key.key_id} of account {done.key.account}\n",
    )
    if outstanding:
        sys.stderr.write(
            f"labda: {', '.join(outstanding)} didn't say that the key is refused there: one that stands still asks the "
            "store before it goes on, one that is cut off from the store takes keys that it knows for keys_s (15 min)\n"
        )
        return Status.FAILED
    return Status.OK


async def revoke(state: State, key_id: str) -> Revocation:
    """Raises Refusal."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        accounts = Accounts(region)
        own = state.credentials()
        # The last key of the root account is the frontend's to keep: its sentence says more.
        if key_id == own.key_id and sum(key.expires == 0 for key in await accounts.keys(own.account)) > 1:
            raise Refusal(
                f"{key_id} is the key that labda itself signs with: `labda key create --root` puts another in its "
                "place, then revoke this one", Status.REFUSED,
            )
        return await accounts.revoke_key(key_id)


async def collect(state: State, account: str) -> list[dict[str, Any]]:
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        return [_key(key) for key in await Accounts(region).keys(account)]


def duration_s(text: str) -> float:
    """``90s``, ``15m``, ``1h`` in seconds. Raises Refusal."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Refusal(f"--duration is {text!r}, a number with its unit is needed, such as 90s, 15m or 1h", Status.USAGE)
    return float(int(found[1]) * _UNIT_S[found[2]])


def render(keys: list[dict[str, Any]]) -> str:
    lines = [f"{'key':<24}{'account':<16}{'created':<20}ends"]
    now = time.time()
    for key in keys:
        ends = "never" if key["expires"] is None else _when(key["expires"])
        if key["expires"] is not None and key["expires"] <= now:
            ends += " (over)"
        lines.append(f"{key['access_key_id']:<24}{key['account']:<16}{_when(key['created']):<20}{ends}")
    return "\n".join(lines) + "\n"


def _key(key: frontend_pb2.Key) -> dict[str, Any]:
    return {
        "access_key_id": key.key_id, "account": key.account, "created": key.created, "expires": key.expires or None,
    }


def _shown(made: dict[str, Any]) -> str:
    lines = [f"key        {made['access_key_id']} of account {made['account']}"]
    if made["expires"] is not None:
        lines[0] += f", until {_when(made['expires'])}"
    lines.append(f"secret     {made['secret_access_key']}   (shown this once)")
    if made["session_token"]:
        lines.append(f"token      {made['session_token']}")
    return "\n".join(lines) + "\n"


def _environment(made: dict[str, Any]) -> str:
    values = {
        "AWS_ACCESS_KEY_ID": made["access_key_id"], "AWS_SECRET_ACCESS_KEY": made["secret_access_key"],
        "AWS_SESSION_TOKEN": made["session_token"] or "",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print(options: argparse.Namespace, report: Any, text: str) -> None:
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else text)
