"""``labda logs``: what a function logged, from every worker that ran it, in order of time."""

import argparse
import asyncio
import sys

from chassis.faults import Fault
from labda import given
from labda.commands.deploy import open_api
from labda.refusal import Refusal, Status
from labda.region import Node, Region, opened, wait
from labda.state import State
from protos import worker_pb2

REDIAL_S = 1.0

Line = worker_pb2.LogLines.Line


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=given.name("NAME"), metavar="NAME", help="of the function")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    printed = asyncio.run(show(options.state, options.name, follow=options.follow))
    if printed == 0 and not _exists(options.state, options.name):
        raise Refusal(f"there is no function {options.name} and no log of one: `labda status` lists them",
                      Status.REFUSED)
    return Status.OK


async def show(state: State, name: str, *, follow: bool) -> int:
    """Prints the lines; returns how many."""
    cluster = state.cluster()
    async with opened(state, cluster["placements"]) as region:
        await wait(region, state)
        workers = region.directory.of_service("worker")
        if follow:
            await asyncio.gather(*(_follow(region, worker, cluster["account"], name) for worker in workers))
        request = worker_pb2.LogsRequest(account=cluster["account"], function=name)
        found = await asyncio.gather(*(_collect(region, worker, request) for worker in workers))
    lines = sorted((line for part in found for line in part), key=lambda line: line.at_ms)
    for line in lines:
        _print(line)
    return len(lines)


async def _collect(region: Region, worker: Node, request: worker_pb2.LogsRequest) -> list[Line]:
    try:
        return [line async for line in region.logs(worker, request)]
    except Fault as fault:
        sys.stderr.write(f"labda: {worker.node} can't be asked ({fault.message}): its lines are missing here\n")
        return []


async def _follow(region: Region, worker: Node, account: str, name: str) -> None:
    """Until cancelled. A worker that comes back is asked for what is newer than its last line."""
    since_ms = 0
    while True:
        node = region.directory.nodes.get(worker.node, worker)
        request = worker_pb2.LogsRequest(account=account, function=name, since_ms=since_ms, follow=True)
        try:
            async for line in region.logs(node, request):
                _print(line)
                since_ms = line.at_ms + 1
        except Fault:
            await asyncio.sleep(REDIAL_S)


def _print(line: Line) -> None:
    sys.stdout.write(line.message if line.message.endswith("\n") else line.message + "\n")
    sys.stdout.flush()


def _exists(state: State, name: str) -> bool:
    api = open_api(state)
    try:
        return api.function(name) is not None
    finally:
        api.close()
