"""The ledger as bytes and back: what a dump holds and what a member that fell far behind is sent.

JSON, ordered, so that equal ledgers give equal bytes (tests and operators compare members by it).
Refuses to know files (raft/dump.py).
"""

import json
from typing import Any

from counting.accounts import Account
from counting.commands import DECLARING, PROVISIONING, Run
from counting.ledger import Ledger
from counting.sessions import Block, Death, Member, SessionRecord, SessionState
from counting.words import Incarnation, Pool, PoolKind, Session

FORMAT = 4
"""It grows with the command language. A ledger that never saw a version is written as before: an older member may be
sent it."""


def dump(ledger: Ledger) -> bytes:
    """Equal ledgers give equal bytes."""
    plain: dict[str, Any] = {
        "format": min(FORMAT, ledger.version),
        "time": ledger.time,
        "accounts": {name: _account(account, ledger.version) for name, account in sorted(ledger.accounts.items())},
        "sessions": [[*_session(s), _record(r)] for s, r in sorted(ledger.sessions.items())],
        "epochs": dict(sorted(ledger.epochs.items())),
        "fences": dict(sorted(ledger.fences.items())),
        "members": {host: [m.nonce, m.timeout_cap_s] for host, m in sorted(ledger.members.items())},
        "gone": {host: sorted(nonces) for host, nonces in sorted(ledger.gone.items())},
    }
    if ledger.version >= DECLARING:
        plain["declared"] = {host: [death.nonce, death.at] for host, death in sorted(ledger.declared.items())}
    return json.dumps(plain, separators=(",", ":")).encode()


def load(data: bytes) -> Ledger:
    """The ledger that `dump` wrote. Raises ValueError for a format that this build doesn't know."""
    plain = json.loads(data)
    if plain["format"] > FORMAT:
        raise ValueError(f"a ledger dump is of format {plain['format']}, this build reads up to {FORMAT}: upgrade it")
    ledger = Ledger()
    ledger.version = plain["format"]
    ledger.time = plain["time"]
    ledger.accounts = {name: _to_account(item) for name, item in plain["accounts"].items()}
    for frontend, epoch, record in plain["sessions"]:
        ledger.sessions[Session(frontend=frontend, epoch=epoch)] = _to_record(record)
    ledger.epochs = plain["epochs"]
    ledger.fences = plain["fences"]
    ledger.members = {host: Member(nonce=n, timeout_cap_s=cap) for host, (n, cap) in plain["members"].items()}
    ledger.gone = {host: set(nonces) for host, nonces in plain["gone"].items()}
    ledger.declared = {host: Death(nonce=nonce, at=at) for host, (nonce, at) in plain.get("declared", {}).items()}
    return ledger


def _pool(pool: Pool) -> list[Any]:
    return [pool.account, int(pool.kind), pool.function, pool.qualifier]


def _to_pool(item: list[Any]) -> Pool:
    account, kind, function, qualifier = item
    return Pool(account=account, kind=PoolKind(kind), function=function, qualifier=qualifier)


def _session(session: Session) -> list[Any]:
    return [session.frontend, session.epoch]


def _to_session(item: list[Any]) -> Session:
    return Session(frontend=item[0], epoch=item[1])


def _account(account: Account, version: int) -> dict[str, Any]:
    plain = {
        "limit": account.limit,
        "reserved": dict(sorted(account.reserved.items())),
        "generation": account.generation,
        "generations": [[_pool(pool), g] for pool, g in sorted(account.generations.items())],
        "granted": [[_pool(pool), n] for pool, n in sorted(account.granted.items())],
        "crossing": {
            function: [[_session(s), n] for s, n in sorted(moved.items())]
            for function, moved in sorted(account.crossing.items())
        },
    }
    if version > 1:
        plain["requests"] = [[request, *applied] for request, applied in account.requests.items()]  # oldest first
    if version >= PROVISIONING:
        plain["provisioned"] = [[_pool(pool), n] for pool, n in sorted(account.provisioned.items())]
    return plain


def _to_account(item: dict[str, Any]) -> Account:
    return Account(
        limit=item["limit"], reserved=item["reserved"], generation=item["generation"],
        generations={_to_pool(pool): g for pool, g in item["generations"]},
        granted={_to_pool(pool): n for pool, n in item["granted"]},
        crossing={f: {_to_session(s): n for s, n in moved} for f, moved in item["crossing"].items()},
        provisioned={_to_pool(pool): n for pool, n in item.get("provisioned", ())},
        requests={request: (generation, changed) for request, generation, changed in item.get("requests", ())},
    )


def _record(record: SessionRecord) -> dict[str, Any]:
    return {
        "nonce": record.nonce,
        "state": int(record.state),
        "applied": record.applied,
        "blocks": [[_pool(pool), block.size, block.generation] for pool, block in sorted(record.blocks.items())],
        "need": [[i.host, i.nonce] for i in sorted(record.need)],
        "runs": sorted(
            [[_pool(r.pool), r.function, r.invocation, r.incarnation.host, r.incarnation.nonce] for r in record.runs]
        ),
    }


def _to_record(item: dict[str, Any]) -> SessionRecord:
    return SessionRecord(
        nonce=item["nonce"], state=SessionState(item["state"]), applied=item["applied"],
        blocks={_to_pool(pool): Block(size=size, generation=g) for pool, size, g in item["blocks"]},
        need={Incarnation(host=host, nonce=nonce) for host, nonce in item["need"]},
        runs={
            Run(pool=_to_pool(pool), function=f, invocation=i, incarnation=Incarnation(host=host, nonce=nonce))
            for pool, f, i, host, nonce in item["runs"]
        },
    )
