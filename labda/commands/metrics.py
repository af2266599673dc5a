"""``labda metrics``: where every process serves its numbers, and what they are.

Without an option, one table of targets. ``--targets`` prints them as Prometheus' file_sd wants them: write that to the
file that ``deploy/prometheus/prometheus.yml`` names, or serve it to http_sd.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from labda import given
from labda.refusal import Refusal, Status
from labda.region import Node, opened, wait
from labda.scrape import Scrape, fetch, scrape, way
from labda.state import State

JOB = "labda"


def arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--targets", action="store_true", help="addresses and labels, as Prometheus' file_sd reads them")
    form.add_argument("--json", action="store_true", help="every sample of every process")
    form.add_argument("--node", type=given.name("--node"), metavar="NODE",
                      help="what this process serves, as it stands there")


def run(options: argparse.Namespace) -> int:
    return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    nodes = await known(options.state)
    if options.targets:
        sys.stdout.write(json.dumps(targets(nodes), indent=2) + "\n")
        return Status.OK
    if options.node:
        sys.stdout.write(await _text(nodes, options.node, options.state))
        return Status.OK
    scrapes = await scrape(nodes, options.state)
    if options.json:
        sys.stdout.write(json.dumps([_plain(one) for one in scrapes], indent=2) + "\n")
    else:
        sys.stdout.write(render(scrapes, scheme=way(options.state).scheme))
    return Status.FAILED if any(one.error for one in scrapes) else Status.OK


async def known(state: State) -> list[Node]:
    """Every process that placement knows and that is not dead. Raises Refusal when no cluster runs."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        return [node for node in region.nodes if node.health != "dead"]


def targets(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """One group per process: who it is comes from the target, not from each of its samples."""
    return [
        {
            "targets": [node.metrics],
            "labels": {"job": JOB, "service": node.service, "node": node.node, "az": node.az, "host": node.host},
        }
        for node in nodes if node.metrics
    ]


async def _text(nodes: Sequence[Node], name: str, state: State) -> str:
    node = next((node for node in nodes if node.node == name), None)
    if node is None or not node.metrics:
        serving = ", ".join(node.node for node in nodes if node.metrics) or "nobody"
        raise Refusal(f"{name} serves no metrics; {serving} does", Status.USAGE)
    try:
        return await fetch(node, way(state))
    except (OSError, ValueError) as error:
        raise Refusal(f"{name} at {node.metrics} doesn't answer: {error}", Status.FAILED) from error


def _plain(one: Scrape) -> dict[str, Any]:
    return {
        "node": one.node.node, "service": one.node.service, "az": one.node.az, "address": one.node.metrics,
        "error": one.error or None,
        "samples": [
            {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
            for samples in one.samples.values() for sample in samples
        ],
    }


def render(scrapes: Sequence[Scrape], *, scheme: str = "http") -> str:
    lines = [f"{'process':<20}{'metrics':<38}{'samples':>8}{'memory':>10}{'cpu':>10}{'fds':>6}"]
    for one in scrapes:
        if one.error:
            lines.append(f"{one.node.node:<20}{one.error}")
            continue
        samples = sum(len(samples) for samples in one.samples.values())
        memory_mb = one.sum("process_resident_memory_bytes") / (1 << 20)
        lines.append(
            f"{one.node.node:<20}{f'{scheme}://{one.node.metrics}/metrics':<38}{samples:>8}{memory_mb:>7.0f} MB"
            f"{one.sum('process_cpu_seconds_total'):>8.1f} s{one.sum('process_open_fds'):>6.0f}"
        )
    return "\n".join(lines) + "\n"
