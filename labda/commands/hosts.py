"""``labda hosts``: workers' hosts, who believes what of them and until when; an operator's word that one is dead."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from labda import given
from labda.refusal import Refusal, Status
from labda.region import Node, opened, wait
from labda.state import State
from labda.target import also_here
from protos import common_pb2, counting_pb2, worker_manager_pb2

Managers = Mapping[str, worker_manager_pb2.DescribeAnswer]
Host = counting_pb2.ListHostsAnswer.Host

_NO_LEADER = (
    "no member of counting leads, so that nobody can say which workers it believes, or be told: `labda status` shows "
    "which members are up, a majority has to be"
)
WHAT_IT_DOES = """\
{host} ({az}) is {health}; its worker's incarnation is {incarnation}, {heard}.
To declare it dead is to swear that nothing runs there any more: it is switched off, or destroyed.
  - The permits of what ran there are free at once, and not by {evicted_by} at the latest. If it lives after all, more
    may run than limits allow.
  - This incarnation never starts anything again: renewals and joins of it are refused. A worker that is started there
    is another incarnation, and welcome.
"""
IF_HEARD = """\
  - It is connected to counting right now. It will be told, kill what it runs, and be started anew by its supervisor.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")
    actions = parser.add_subparsers(dest="action", metavar="declare-dead")
    declare = actions.add_parser("declare-dead", help="an operator's word that a host is dead: its permits come back")
    declare.add_argument("host", type=given.name("HOST"), metavar="HOST",
                         help="as `labda hosts` names it, or the name of its worker")
    declare.add_argument("--yes", action="store_true", help="don't ask")
    declare.add_argument("--force", action="store_true", help="also a host whose worker is connected right now")
    declare.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable")
    also_here(declare)


def run(options: argparse.Namespace) -> int:
    if options.action == "declare-dead":
        report = asyncio.run(declare_dead(options.state, options.host, force=options.force, sure=options.yes))
        text = (
            f"declared   {report['host']} dead, incarnation {report['incarnation']}\n" if report["changed"] else
            f"unchanged  incarnation {report['incarnation']} of {report['host']} was out of the ledger for good\n"
        )
        sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else text)
        return Status.OK
    hosts = asyncio.run(collect(options.state))
    sys.stdout.write(json.dumps(hosts, indent=2) + "\n" if options.json else render(hosts, time.time()))
    return Status.OK


async def collect(state: State) -> list[dict[str, Any]]:
    """Every host, as ``--json`` prints it. Raises Refusal without a cluster, or a leader of its ledger."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        known, managers = await asyncio.gather(region.hosts(), region.managers())
        workers = [node for node in region.nodes if node.service == "worker"]
    if known is None:
        raise Refusal(_NO_LEADER, Status.REFUSED)
    return describe(workers, known.hosts, managers)


async def declare_dead(state: State, named: str, *, force: bool, sure: bool) -> dict[str, Any]:
    """Raises Refusal: it isn't known, it is heard from, or the operator thought better of it."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        known, managers = await asyncio.gather(region.hosts(), region.managers())
        if known is None:
            raise Refusal(_NO_LEADER, Status.REFUSED)
        workers = [node for node in region.nodes if node.service == "worker"]
        found = find(describe(workers, known.hosts, managers), named)
        if found["heard"] and not force:
            raise Refusal(
                f"{found['host']} is not dead: its worker {found['incarnation']} is connected to counting right now. "
                "If its permits have to come back all the same, --force has it told, and it kills what it runs",
                Status.REFUSED,
            )
        if not sure:
            await asyncio.to_thread(_confirm, found)
        # The one that was shown: what has come to life there meanwhile isn't meant.
        answer = await region.declare_dead(
            common_pb2.Incarnation(host=found["host"], nonce=int(found["incarnation"], 16)), force=force
        )
    if answer is None:
        raise Refusal(
            f"{_NO_LEADER}. Whether {found['host']} was declared dead is not known: say it again", Status.FAILED
        )
    if answer.HasField("refused"):
        raise Refusal(f"{found['host']} was not declared dead: {answer.refused.message}", Status.REFUSED)
    return {"host": found["host"], "incarnation": found["incarnation"], "changed": answer.declared.changed}


def find(hosts: Sequence[dict[str, Any]], named: str) -> dict[str, Any]:
    """The host whose worker is a member of the ledger. Raises Refusal."""
    found = [host for host in hosts if named in (host["host"], host["worker"])]
    if not found:
        there = ", ".join(host["host"] for host in hosts) or "none"
        raise Refusal(f"there is no host {named}: there are {there}", Status.REFUSED)
    if not found[0]["incarnation"]:
        raise Refusal(
            f"counting has no worker of {named}: it has left, or is gone already, and nothing waits for it",
            Status.REFUSED,
        )
    return found[0]


def describe(workers: Sequence[Node], known: Sequence[Host], managers: Managers) -> list[dict[str, Any]]:
    """One entry per host that placement or the ledger knows, by AZ and name."""
    members = {host.incarnation.host: host for host in known if host.member}
    declared = {host.incarnation.host: host for host in known if not host.member}
    leases = {lease.worker: (name, lease) for name, answer in managers.items() for lease in answer.workers}
    by_host = {node.host: node for node in workers}
    entries = []
    for name in sorted({*by_host, *members, *declared}):
        node, member, dead = by_host.get(name), members.get(name), declared.get(name)
        manager, lease = leases.get(node.node if node is not None else "", ("", None))
        entries.append({
            "host": name, "az": node.az if node else "", "worker": node.node if node else "",
            "incarnation": _hex(member.incarnation.nonce) if member else "",
            "health": node.health if node else "unknown to placement",
            "manager": manager, "lease": lease.lease if lease else None,
            "lease_ends": lease.hard_end if lease else None,
            "sandboxes": node.capacity.sandboxes if node else None,
            "memory_mb": node.capacity.memory_mb if node else None,
            "memory_free_mb": node.capacity.memory_free_mb if node else None,
            "heard": bool(member and member.heard),
            "authority_until": member.authority_until if member else None,
            "evicted_by": member.evicted_by if member else None,
            "owes": list(member.owes) if member else [],
            "declared_dead": (
                {"incarnation": _hex(dead.incarnation.nonce), "at": dead.declared_dead_at} if dead else None
            ),
        })
    return sorted(entries, key=lambda entry: (entry["az"], entry["host"]))


def _hex(nonce: int) -> str:
    return f"{nonce:016x}"


# ---------------------------------------------------------------- for people


def _confirm(host: Mapping[str, Any]) -> None:
    """Raises Refusal unless the operator types the host's name."""
    heard = "connected to counting" if host["heard"] else "not connected to counting"
    text = WHAT_IT_DOES + (IF_HEARD if host["heard"] else "")
    sys.stderr.write(text.format(
        host=host["host"], az=host["az"] or "AZ unknown", health=host["health"], incarnation=host["incarnation"],
        heard=heard, evicted_by=_at(host["evicted_by"]),
    ))
    sys.stderr.write(f"Type {host['host']} to declare it dead: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != host["host"]:
        raise Refusal(
            f"{host['host']} was not declared dead: its name was not typed (--yes doesn't ask)", Status.REFUSED
        )


def render(hosts: Sequence[Mapping[str, Any]], now: float) -> str:
    lines = [
        f"{'host':<16}{'az':<6}{'incarnation':<18}{'health':<12}{'sandboxes':<11}{'free MB':<10}{'lease':<26}counting"
    ]
    for host in hosts:
        lease = f"{host['lease']} {host['manager']} {_at(host['lease_ends'])}" if host["lease"] is not None else "none"
        free = "-" if host["memory_free_mb"] is None else f"{host['memory_free_mb']:,}"
        sandboxes = "-" if host["sandboxes"] is None else host["sandboxes"]
        lines.append(
            f"{host['host']:<16}{host['az']:<6}{host['incarnation'] or '-':<18}{host['health']:<12}{sandboxes:<11}"
            f"{free:<10}{lease:<26}{_counting(host, now)}"
        )
        if host["owes"]:
            lines.append(f"{'':<16}has not said yet what it runs of {', '.join(host['owes'])}")
    if not hosts:
        lines.append("none: no worker has registered")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _counting(host: Mapping[str, Any], now: float) -> str:
    dead = host["declared_dead"]
    was = f"{dead['incarnation']} was declared dead at {_at(dead['at'])}" if dead else ""
    if not host["incarnation"]:
        return was or "not a member"
    starts = f"may start until {_at(host['authority_until'])}" if host["authority_until"] > now else "may start nothing"
    said = starts if host["heard"] else f"SILENT, {starts}, evicted by {_at(host['evicted_by'])}"
    return f"{said}; {was}" if was else said


def _at(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
