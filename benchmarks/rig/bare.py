"""The reference for cold starts: the interpreter with its interface client, started bare, until it asks for an event.

The same files as in a sandbox, and the Runtime API of this very process; no sandbox, no limits, no fetch of code.
"""

import asyncio
import time
from pathlib import Path

from benchmarks.rig.floor import RUNTIMES, environment
from worker.runtime_api.session import RuntimeSession


class _Waits:
    """``RuntimeEvents`` until the first event is asked for."""

    def __init__(self) -> None:
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def loaded(self) -> None:
        """The first event tells as much."""

    def asked_next(self) -> None:
        if not self.asked.done():
            self.asked.set_result(None)

    def responded(self, body: bytes, content_type: str) -> None:
        raise AssertionError("nothing was asked")

    def streamed(self, chunk: bytes) -> None:
        raise AssertionError("nothing was asked")

    def oversized(self) -> None:
        raise AssertionError("nothing was asked")

    def failed(self, error_type: str, body: bytes) -> None:
        raise AssertionError("nothing was asked")

    def init_failed(self, error_type: str, body: bytes) -> None:
        self.asked.set_exception(AssertionError(f"the function can't be loaded: {error_type} {body!r}"))


async def start(runtime: str, folder: Path) -> float:
    """Seconds from the start of one such process to its first question, with ``folder``/app.py as the function."""
    waits = _Waits()
    session = RuntimeSession(waits)
    session.restart()
    server = await asyncio.get_running_loop().create_server(session.connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        str(RUNTIMES / runtime / "root/var/lang/bin" / runtime), "-m", "awslambdaric", "app.handler",
        env=environment(runtime, port, str(folder)), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30.0):
            await waits.asked
        return time.monotonic() - began
    finally:
        process.kill()
        await process.wait()
        server.close()


def starts(runtime: str, folder: Path, count: int) -> list[float]:
    """``count`` of them at once."""
    async def together() -> list[float]:
        return await asyncio.gather(*(start(runtime, folder) for _ in range(count)))

    return asyncio.run(together())
