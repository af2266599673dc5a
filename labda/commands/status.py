"""``labda status``: what runs, where, how it is; one screen."""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from labda.commands.deploy import open_api
from labda.overview import lines as overview_lines
from labda.overview import overview, rate
from labda.refusal import Refusal, Status
from labda.region import Node, opened, wait
from labda.scrape import Scrape, scrape
from labda.state import State
from protos import common_pb2, counting_pb2, worker_manager_pb2

Managers = Mapping[str, worker_manager_pb2.DescribeAnswer]
_RUNNING = ("reserved",)   # states of a sandbox at its manager that hold an invocation, or linger for the next
ATTEMPTS = 3
RATE_S = 0.5    # between the two looks that say how many invokes there are per second


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    report = asyncio.run(collect(options.state, rates=not options.json))
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(render(report))
    ill = any(process["health"] != "serving" for process in report["processes"])
    return Status.FAILED if ill else Status.OK


async def collect(state: State, *, rates: bool = False) -> dict[str, Any]:
    """The report, as ``--json`` prints it; ``rates``: with what changes per second, which takes half a second.

    Raises Refusal when no cluster runs.
    """
    cluster = state.cluster()
    async with opened(state, cluster["placements"]) as region:
        await wait(region, state)
        nodes = region.nodes
        alive = [node for node in nodes if node.health != "dead"]
        began = time.monotonic()
        pools, members, managers, scrapes = await asyncio.gather(
            region.pools(), region.counting_members(), region.managers(), scrape(alive, state)
        )
    numbers = overview(scrapes)
    try:
        configurations = await asyncio.to_thread(_functions, state)
    except Refusal:
        configurations = None  # no frontend answers: what else is known is still worth seeing
    if rates:
        await asyncio.sleep(began + RATE_S - time.monotonic())
        later = overview(await scrape([node for node in alive if node.service == "frontend"], state))
        numbers["per_s"] = rate(numbers, later, time.monotonic() - began)
    return {
        "endpoint": cluster["endpoint"], "region": cluster["region"], "version": cluster["version"],
        "processes": [_process(node, members) for node in nodes],
        "workers": [_worker(node, managers, scrapes) for node in nodes if node.service == "worker"],
        "margins": [
            {"az": margin.az, "margin_mb": margin.margin_mb, "manager": margin.manager}
            for margin in region.directory.margins
        ],
        "pools": [_pool(status) for status in pools.pools] if pools is not None else None,
        "numbers": numbers,
        "account": cluster["account"], "functions": _join(configurations, cluster["account"], pools, managers),
    }


def _functions(state: State) -> list[dict[str, Any]]:
    """Tried again over another connection: the first may have led to the one frontend that stands still."""
    for attempt in range(ATTEMPTS):
        api = open_api(state)
        try:
            return list(api.functions())
        except Refusal:
            if attempt == ATTEMPTS - 1:
                raise
        finally:
            api.close()
    raise AssertionError("no attempt was made")


def _process(node: Node, members: counting_pb2.ListMembersAnswer | None) -> dict[str, Any]:
    """``votes`` is said of counting only: None where its leader can't be asked."""
    votes = None
    if node.service == "counting" and members is not None:
        votes = any(one.member == node.node and one.state == members.VOTES for one in members.members)
    return {
        "service": node.service, "node": node.node, "az": node.az, "host": node.host, "pid": node.pid,
        "address": node.address, "http": node.http, "metrics": node.metrics, "health": node.health, "role": node.role,
        "votes": votes, "detail": dict(node.detail),
    }


def _worker(node: Node, managers: Managers, scrapes: Sequence[Scrape]) -> dict[str, Any]:
    held = [(name, lease) for name, answer in managers.items() for lease in answer.workers if lease.worker == node.node]
    manager, lease = held[0] if held else ("", None)
    slots = next((one.by("labda_worker_slots", "state") for one in scrapes if one.node.node == node.node), {})
    return {
        "node": node.node, "az": node.az, "host": node.host, "manager": manager,
        "lease": lease.lease if lease else None,
        "lease_ends": lease.hard_end if lease else None,
        "sandboxes": {state: int(count) for state, count in slots.items()} or {"?": node.capacity.sandboxes},
        "memory_mb": node.capacity.memory_mb, "memory_free_mb": node.capacity.memory_free_mb,
        "runtimes": list(node.capacity.runtimes),
    }


def _pool(status: counting_pb2.ListPoolsAnswer.PoolStatus) -> dict[str, Any]:
    return {
        "account": status.pool.account, "function": status.pool.function,
        "kind": common_pb2.Pool.Kind.Name(status.pool.kind).lower(), "limit": status.limit,
        "granted": status.granted, "in_use": sum(holder.in_use for holder in status.holders),
        "throttled": status.throttled,
        "holders": [
            {"frontend": holder.session.frontend, "size": holder.size, "in_use": holder.in_use, "state": holder.state}
            for holder in status.holders
        ],
    }


def _join(
    configurations: Sequence[Mapping[str, Any]] | None,
    account: str,
    pools: counting_pb2.ListPoolsAnswer | None,
    managers: Managers,
) -> list[dict[str, Any]]:
    """Functions of the root account, with what runs and what may run at most. Of other accounts, whose keys alone may
    list them: those that have sandboxes or a reservation; their runtime and memory are None."""
    sandboxes: dict[tuple[str, str], Counter[str]] = {}
    for answer in managers.values():
        for entry in answer.functions:
            at = entry.function.account, entry.function.function
            sandboxes.setdefault(at, Counter()).update(dict(entry.sandboxes))
    reserved: dict[tuple[str, str], int] = {}
    rest: dict[str, int] = {}
    for status in pools.pools if pools is not None else ():
        if status.pool.kind == common_pb2.Pool.RESERVED:
            reserved[status.pool.account, status.pool.function] = status.limit
        elif status.pool.kind == common_pb2.Pool.UNRESERVED:
            rest[status.pool.account] = status.limit
    known = {(account, found["FunctionName"]): found for found in configurations or ()}
    others = sorted(at for at in {*sandboxes, *reserved} if at[0] != account)
    functions = []
    for owner, name in [*known, *others]:
        found = known.get((owner, name), {})
        counts = sandboxes.get((owner, name), Counter())
        # By the managers' word: what a frontend last told the ledger of its block may be a while ago.
        running = sum(count for state, count in counts.items() if state.lower() in _RUNNING)
        functions.append({
            "account": owner, "name": name, "runtime": found.get("Runtime"), "memory_mb": found.get("MemorySize"),
            "running": running, "limit": reserved.get((owner, name), rest.get(owner)),
            "limit_kind": "reserved" if (owner, name) in reserved else "account's unreserved rest",
            "sandboxes": dict(counts),
        })
    return functions


# ---------------------------------------------------------------- for people


def render(report: Mapping[str, Any]) -> str:
    processes = report["processes"]
    azs = sorted({process["az"] for process in processes})
    lines = [f"{report['endpoint']}   labda {report['version']}, {report['region']}", ""]
    width = max([30, *(len(_word(process)) + 2 for process in processes)])
    lines.append(f"{'':<16}" + "".join(f"{az:<{width}}" for az in azs).rstrip())
    for service in ("frontend", "counting", "worker_manager", "placement"):
        lines += _rows(service.replace("_", " "), processes, azs, width, service)
    lines += _worker_rows(report["workers"], azs, width)
    lines += _margin_row(report["margins"], azs, width)
    lines += ["", *overview_lines(report["numbers"])]
    names = [_name(function, report["account"]) for function in report["functions"]]
    wide = max([28, *(len(name) + 2 for name in names)])
    lines += ["", f"{'function':<{wide}}{'runtime':<18}{'running/limit':<16}sandboxes"]
    for name, function in zip(names, report["functions"], strict=True):
        used = f"{function['running']}/{'?' if function['limit'] is None else function['limit']}"
        states = ", ".join(f"{count} {state}" for state, count in sorted(function["sandboxes"].items()) if count)
        lines.append(f"{name:<{wide}}{function['runtime'] or '':<18}{used:<16}{states or 'none'}")
    if not report["functions"]:
        lines.append("none yet: labda deploy DIR")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _name(function: Mapping[str, Any], account: str) -> str:
    return str(function["name"]) if function["account"] == account else f"{function['account']}/{function['name']}"


def _rows(
    title: str, processes: Sequence[Mapping[str, Any]], azs: Sequence[str], width: int, service: str
) -> list[str]:
    columns = {az: [_word(p) for p in processes if p["service"] == service and p["az"] == az] for az in azs}
    height = max(len(column) for column in columns.values())
    return [
        f"{title if row == 0 else '':<16}"
        + "".join(f"{columns[az][row] if row < len(columns[az]) else '':<{width}}" for az in azs)
        for row in range(height)
    ]


def _word(process: Mapping[str, Any]) -> str:
    said: list[str] = [process["role"]] if process["role"] else []
    if process["votes"] is False:   # a removed member goes on following, and counts for nothing
        said = ["no vote"]
    if process["health"] != "serving":
        said.append(process["health"].upper())
    return f"{process['node']} ({', '.join(said)})" if said else str(process["node"])


def _worker_rows(workers: Sequence[Mapping[str, Any]], azs: Sequence[str], width: int) -> list[str]:
    columns = {az: [worker for worker in workers if worker["az"] == az] for az in azs}
    lines = []
    for row in range(max(len(column) for column in columns.values())):
        cells = [columns[az][row] if row < len(columns[az]) else None for az in azs]
        lines.append(f"{'host' if row == 0 else '':<16}" + "".join(f"{c['host'] if c else '':<{width}}" for c in cells))
        lines.append(f"{'':<16}" + "".join(f"{_sandboxes(cell) if cell else '':<{width}}" for cell in cells))
    return lines


def _margin_row(margins: Sequence[Mapping[str, Any]], azs: Sequence[str], width: int) -> list[str]:
    """What the loss of each AZ would leave in the others; with workers in one AZ only there is nothing to say."""
    found = {margin["az"]: margin["margin_mb"] for margin in margins}
    if not found:
        return []
    return [f"{'if it is lost':<16}" + "".join(f"{_margin(found.get(az)):<{width}}" for az in azs)]


def _margin(margin_mb: int | None) -> str:
    if margin_mb is None:
        return ""
    return f"  {margin_mb:,} MB to spare" if margin_mb >= 0 else f"  SHORT BY {-margin_mb:,} MB: add workers"


def _sandboxes(worker: Mapping[str, Any]) -> str:
    states = " ".join(f"{count} {state}" for state, count in sorted(worker["sandboxes"].items()) if count)
    return f"  {states or 'no sandbox'}, {worker['memory_free_mb']:,} MB free"
