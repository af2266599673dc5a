"""``labda limits``: who may run how much, who does, who is waited for and why; one screen."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from labda.refusal import Refusal, Status
from labda.region import opened, wait
from labda.state import State
from protos import common_pb2, counting_pb2

POOLS_MAX = 30      # on one screen; --json has them all

PoolStatus = counting_pb2.ListPoolsAnswer.PoolStatus
Proofs = counting_pb2.ListPoolsAnswer.Proofs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable, and every pool")


def run(options: argparse.Namespace) -> int:
    report = asyncio.run(collect(options.state))
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else render(report))
    return Status.OK


async def collect(state: State) -> dict[str, Any]:
    """The report, as ``--json`` prints it. Raises Refusal without a cluster, or a leader of its ledger."""
    cluster = state.cluster()
    async with opened(state, cluster["placements"]) as region:
        await wait(region, state)
        answer = await region.pools()
    if answer is None:
        raise Refusal(
            "no member of counting leads, so that nobody can say what is granted: `labda status` shows which of them "
            "are up, a majority has to be", Status.REFUSED,
        )
    return {
        "refusals_since": answer.leads_since, **proofs(answer.proofs),
        "pools": [describe(status) for status in answer.pools],
    }


def proofs(said: Proofs) -> dict[str, Any]:
    """What the leader did to learn which permits are free, since it leads; and what of it isn't over."""
    return {
        "recall_rounds": {"begun": said.rounds, "under_way": said.rounds_open},
        "fenced_frontends": {"by_reason": dict(sorted(said.fenced.items())), "not_yet_counted": said.uncounted},
        "evicted_workers": dict(sorted(said.evicted.items())),
    }


def describe(status: PoolStatus) -> dict[str, Any]:
    """One pool. ``running`` is what live frontends told with their newest heartbeat and what workers counted."""
    live = [holder for holder in status.holders if holder.state == "live"]
    gone = [holder for holder in status.holders if holder.state != "live"]
    return {
        "account": status.pool.account, "function": status.pool.function,
        "kind": common_pb2.Pool.Kind.Name(status.pool.kind).lower(), "limit": status.limit,
        "granted": status.granted, "running": sum(holder.in_use for holder in status.holders),
        "waiting": status.waiting,
        "frontends": {
            holder.session.frontend: {"running": holder.in_use, "idle": holder.size - holder.in_use} for holder in live
        },
        "draining": [
            {
                "frontend": holder.session.frontend, "epoch": holder.session.epoch, "permits": holder.size,
                "counted": holder.state == "counted", "waits_for": list(holder.waits_for), "until": holder.until,
            }
            for holder in gone
        ],
        "pending_change": {
            "charged": status.charged,
            "outstanding": [{"frontend": part.node, "until": part.until} for part in status.outstanding],
        },
        "refusals": dict(sorted(status.refusals.items())),
        "rounds": {"begun": status.rounds, "waits_for": list(status.round_waits_for)},
    }


# ---------------------------------------------------------------- for people


def render(report: Mapping[str, Any]) -> str:
    pools: Sequence[Mapping[str, Any]] = report["pools"]
    shown = sorted(pools, key=_rest)[:POOLS_MAX]
    since = _at(report["refusals_since"])
    lines = [f"{'pool':<30}{'limit':>7}{'granted':>9}{'running':>9}{'waiting':>9}{'rounds':>8}   refused since {since}"]
    for pool in sorted(shown, key=lambda pool: (pool["account"], pool["kind"] != "unreserved", pool["function"])):
        lines += _pool(pool)
    if not pools:
        lines.append("none yet: no limit was set and nothing was invoked")
    if len(pools) > len(shown):
        lines.append(f"{len(pools) - len(shown)} more pools, at rest: labda limits --json")
    lines.append(f"since {since}   {_proofs(report)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _rest(pool: Mapping[str, Any]) -> bool:
    """Whether nothing happens in it: such pools give way to others."""
    return not (pool["granted"] or pool["waiting"] or pool["refusals"] or pool["pending_change"]["outstanding"])


def _pool(pool: Mapping[str, Any]) -> list[str]:
    name = pool["function"] or f"{pool['account']} unreserved"
    refused = ", ".join(f"{count:,} {reason}" for reason, count in pool["refusals"].items())
    numbers = f"{pool['limit']:>7,}{pool['granted']:>9,}{pool['running']:>9,}{pool['waiting']:>9,}"
    numbers += f"{pool['rounds']['begun']:>8,}"
    lines = [f"{name:<30}{numbers}   {refused or '-'}"]
    lines += [
        f"  {frontend:<20}{held['running']} running, {held['idle']} idle"
        for frontend, held in pool["frontends"].items()
    ]
    if pool["rounds"]["waits_for"]:
        lines.append(f"  {'recall round':<20}waits for {', '.join(pool['rounds']['waits_for'])}")
    for part in pool["draining"]:
        how = "still running there" if part["counted"] else "not yet counted"
        waits = f", waits for {', '.join(part['waits_for'])}" if part["waits_for"] else ""
        lines.append(
            f"  {part['frontend']:<20}gone: {part['permits']} {how}{waits}, free by {_at(part['until'])} at the latest"
        )
    change = pool["pending_change"]
    if change["charged"]:
        lines.append(f"  {'changed limits':<20}{change['charged']} permits of other pools count here until they end")
    return lines + [
        f"  {'changed limits':<20}{part['frontend']} is to acknowledge it, binds by {_at(part['until'])} at the latest"
        for part in change["outstanding"]
    ]


def _proofs(report: Mapping[str, Any]) -> str:
    rounds, fenced, evicted = report["recall_rounds"], report["fenced_frontends"], report["evicted_workers"]
    under_way = f", {rounds['under_way']:,} under way" if rounds["under_way"] else ""
    uncounted = f", {fenced['not_yet_counted']:,} not yet counted" if fenced["not_yet_counted"] else ""
    return (
        f"recall rounds {rounds['begun']:,}{under_way}; frontends fenced {_sum(fenced['by_reason'])}{uncounted}; "
        f"workers evicted {_sum(evicted)}"
    )


def _sum(counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    return f"{sum(counts.values()):,}" + (f" ({parts})" if parts else "")


def _at(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
