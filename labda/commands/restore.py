"""``labda restore``: what a backup holds, into stores that no service uses, of either target."""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from labda import given
from labda.commands.backup import identity_of
from labda.refusal import Refusal, Status
from labda.state import State

if TYPE_CHECKING:
    from storage.backup import Summary


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=given.path("FILE"), metavar="FILE",
                        help="what `labda backup` wrote, of this cluster or another")
    parser.add_argument("--yes", action="store_true", help="replace what the stores hold")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    began = time.monotonic()
    given.file(options.file, "what `labda backup` wrote")   # before the state directory is made
    with state.stores_to_itself():
        try:
            restored = asyncio.run(_restore(options))
        except OSError as error:
            raise Refusal(f"{options.file} can't be read: {error.strerror or error}", Status.USAGE) from error
    if options.json:
        sys.stdout.write(json.dumps({"file": str(options.file), **asdict(restored)}) + "\n")
    else:
        sys.stdout.write(
            f"restored   {restored.records} records as of revision {restored.revision}, {restored.blobs} code archives "
            f"({restored.size_bytes / 1e6:.1f} MB were new) in {time.monotonic() - began:.1f} s\n"
        )
    return Status.OK


async def _restore(options: argparse.Namespace) -> "Summary":
    from frontend.auth.keys import is_mark  # noqa: PLC0415 - as below
    from storage.backup import restore  # noqa: PLC0415 - imports what stores need

    stores = options.state.stores()
    try:
        return await restore(
            stores, options.file, identity_of(options.state), replace=options.yes, join=_join, stays=is_mark
        )
    finally:
        await stores.close()


def _join(archived: bytes, stored: bytes) -> bytes:
    """The newer of two records of a node, with what either of them revoked.

    A first key that only one knows is what the node goes on with until the newer token is used.
    """
    from placement.node_record import NodeRecord  # noqa: PLC0415

    both = [NodeRecord.decode(value) for value in (archived, stored)]
    newest = max(both, key=lambda record: (record.enrolment, record.used_at))
    key = newest.key or next((record.key for record in both if record.key), "")
    return replace(newest, key=key, revoked=max(record.revoked for record in both)).encode()
