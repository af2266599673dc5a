"""``labda backup``: functions, code, accounts and keys of a cluster in one file, while its stores can be read."""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from labda import given
from labda.refusal import Refusal, Status
from labda.state import State

if TYPE_CHECKING:
    from storage.backup import Identity


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=given.path("FILE"), metavar="FILE",
                        help="the backup; one that is there is replaced")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    from storage.backup import Summary, back_up  # noqa: PLC0415 - imports what stores need

    state: State = options.state
    state.credentials()     # or there is no cluster to be saved
    began = time.monotonic()
    with contextlib.suppress(OSError):      # who may not look is told so by whoever writes it
        if options.file.is_dir() or not options.file.parent.is_dir():
            why = "is a folder" if options.file.is_dir() else f"can't be there: {options.file.parent} is no folder"
            raise Refusal(f"{options.file} {why}: name a file that can be written", Status.USAGE)

    async def work() -> Summary:
        stores = state.stores()
        try:
            return await back_up(stores, options.file, identity_of(state), now=time.time())
        finally:
            await stores.close()

    try:
        made = asyncio.run(work())
    except OSError as error:
        raise Refusal(f"{options.file} can't be written: {error.strerror or error}", Status.HOST) from error
    if options.json:
        sys.stdout.write(json.dumps({"file": str(options.file), **asdict(made)}) + "\n")
    else:
        sys.stdout.write(
            f"saved      {made.records} records as of revision {made.revision}, {made.blobs} code archives "
            f"({made.size_bytes / 1e6:.1f} MB) in {time.monotonic() - began:.1f} s\n"
            f"keep       {state.data_key} apart from it: its secrets are sealed with that key\n"
        )
    for sha256 in made.left_out:
        sys.stderr.write(f"labda: left out {sha256}: the store's copy is corrupt, deploy that code again\n")
    return Status.FAILED if made.left_out else Status.OK


def identity_of(state: State) -> "Identity":
    """Of the cluster of a state directory, as backups name it."""
    from chassis.tokens import fingerprints  # noqa: PLC0415
    from storage.backup import Identity  # noqa: PLC0415
    from storage.cipher import Cipher  # noqa: PLC0415

    return Identity(
        cluster=fingerprints(state.authority.read_bytes())[0] if state.authority.exists() else "",
        data_key=Cipher.open(state.data_key).key_id if state.data_key.exists() else "missing",
    )
