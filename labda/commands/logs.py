"""``labda logs``: what a function logged, from every worker that ran it, in order of time."""

import argparse
import asyncio
import sys

from chassis.faults import Fault
from labda import given
from labda.accounts import Accounts
from labda.commands.deploy import open_api
from labda.commands.invoke import lines_of
from labda.refusal import Refusal, Status
from labda.region import Node, Region, opened, wait
from labda.state import State
from protos import worker_pb2

REDIAL_S = 1.0

Line = worker_pb2.LogLines.Line


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=given.name("NAME"), metavar="NAME", help="of the function")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--account", type=given.name("--account"), metavar="NAME|ID",
                        help="whose function it is (default: the root account's)")


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    root = state.cluster()["account"]
    if options.account is None and options.follow:
        try:
            there = _exists(state, options.name)
        except Refusal as refusal:
            if refusal.status is not Status.NO_CLUSTER:
                raise
            there = True    # without frontends logs are wanted most, and workers have them
        if not there:
            raise Refusal(f"there is no function {options.name}: `labda status` lists them", Status.REFUSED)
    printed = asyncio.run(show(state, options.name, account=options.account or root, follow=options.follow))
    if printed:
        return Status.OK
    if options.account is not None:     # whether it is there, only that account's own keys can ask
        raise Refusal(
            f"account {options.account} has no log of a function {options.name}: it is not there, or never ran",
            Status.REFUSED,
        )
    if not _exists(state, options.name):
        raise Refusal(f"there is no function {options.name} and no log of one: `labda status` lists them",
                      Status.REFUSED)
    return Status.OK


async def show(state: State, name: str, *, account: str, follow: bool) -> int:
    """Prints the lines; returns how many. ``account``: its name or id. Raises Refusal where there is none such.

    Asked of the workers under the operator's certificate, which opens the logs of every account.
    """
    cluster = state.cluster()
    async with opened(state, cluster["placements"]) as region:
        await wait(region, state)
        owner = account if account == cluster["account"] else await _id_of(region, account)
        workers = region.directory.of_service("worker")
        request = worker_pb2.LogsRequest(account=owner, function=name)
        if follow:
            if owner != cluster["account"] and not any(
                await asyncio.gather(*(_collect(region, worker, request) for worker in workers))
            ):
                sys.stderr.write(f"labda: nothing was logged yet by a function {name} of account {account}: waiting\n")
            await asyncio.gather(*(_follow(region, worker, owner, name) for worker in workers))
        found = await asyncio.gather(*(_collect(region, worker, request) for worker in workers))
    lines = sorted((line for part in found for line in part), key=lambda line: line.at_ms)
    for line in lines:
        _print(line)
    return len(lines)


async def _id_of(region: Region, account: str) -> str:
    known = await Accounts(region).all()
    found = next((one.id for one in known if account in (one.id, one.name)), None)
    if found is None:
        raise Refusal(
            f"there is no account {account}: `labda account list` shows {', '.join(one.name for one in known)}",
            Status.REFUSED,
        )
    return found


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
    text = lines_of(line.message)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def _exists(state: State, name: str) -> bool:
    api = open_api(state)
    try:
        return api.function(name) is not None
    finally:
        api.close()
