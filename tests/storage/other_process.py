"""Another process that uses the same SQLite file: `increment PATH TIMES`, or `write PATH` until it is killed."""

import asyncio
import sys
from pathlib import Path

from chassis.clock import SystemClock
from storage.sqlite import SqliteMetadata
from tests.storage.contract import increment


async def main(task: str, path: str, *rest: str) -> None:
    store = SqliteMetadata(Path(path), SystemClock())
    if task == "increment":
        await increment(store, "n", int(rest[0]))
    else:
        await asyncio.gather(*(write(store, lane) for lane in range(4)))
    await store.close()


async def write(store: SqliteMetadata, lane: int) -> None:
    """Print each key with its revision once it was acknowledged."""
    number = 0
    while True:
        key = f"k/{lane}-{number}"
        revision = await store.put(key, b"x" * 500, expected=0)
        sys.stdout.write(f"{key} {revision}\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
