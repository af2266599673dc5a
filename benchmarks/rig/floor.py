"""The floor under every figure of an invoke: an HTTP front that drives runtimes itself, and nothing else.

    python -m benchmarks.rig.floor PYTHON PROCESSES FOLDER

uvicorn with a raw ASGI application, no authentication, no services, no sandboxes: as many official runtime interface
clients (awslambdaric) as there are HTTP clients at most, each on a Runtime API of this very process. Prints the port
once all of them wait for an event, and lives until its standard input ends.
"""

import asyncio
import itertools
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from worker.runtime_api.answers import Event
from worker.runtime_api.session import RuntimeSession

RUNTIMES = Path(__file__).resolve().parents[2] / ".runtimes"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:floor"
DEADLINE_MS = 9_999_999_999_000


class Runtime:
    """One runtime process's side of the floor: it waits in ``idle`` or answers one request. ``RuntimeEvents``."""

    def __init__(self, floor: "Floor") -> None:
        self.session = RuntimeSession(self)
        self.answer: asyncio.Future[bytes] | None = None
        self._floor = floor

    def loaded(self) -> None:
        """The first event tells as much."""

    def asked_next(self) -> None:
        self._floor.ready(self)

    def responded(self, body: bytes, content_type: str) -> None:
        assert self.answer is not None
        self.answer.set_result(body)

    def streamed(self, chunk: bytes) -> None:
        raise AssertionError("the floor streams nothing")

    def oversized(self) -> None:
        raise AssertionError("the floor's results are small")

    def failed(self, error_type: str, body: bytes) -> None:
        raise AssertionError(f"the floor's function failed: {error_type} {body!r}")

    def init_failed(self, error_type: str, body: bytes) -> None:
        raise AssertionError(f"the floor's function can't be loaded: {error_type} {body!r}")


class Floor:
    """The ASGI application."""

    def __init__(self) -> None:
        self._idle: deque[Runtime] = deque()
        self._waiting: deque[asyncio.Future[Runtime]] = deque()
        self._numbers = itertools.count(1)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def ready(self, runtime: Runtime) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(runtime)
                return
        self._idle.append(runtime)

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        loop = asyncio.get_running_loop()
        message = await receive()
        body: bytes = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        if self._idle:
            runtime = self._idle.pop()
        else:
            waiter: asyncio.Future[Runtime] = loop.create_future()
            self._waiting.append(waiter)
            runtime = await waiter
        runtime.answer = loop.create_future()
        number = f"00000000-0000-4000-8000-{next(self._numbers):012x}"
        runtime.session.deliver(Event(request_id=number, deadline_ms=DEADLINE_MS, invoked_arn=ARN, body=body))
        answer = await runtime.answer
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def environment(python: str, port: int, folder: str) -> dict[str, str]:
    """What a sandbox's process is told, as far as the client reads it."""
    runtime = RUNTIMES / python / "root/var/runtime"
    return {
        "PATH": "/usr/bin:/bin", "LANG": "en_US.UTF-8", "PYTHONPATH": f"{runtime}:{folder}",
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}", "_HANDLER": "app.handler", "LAMBDA_TASK_ROOT": folder,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{python}", "AWS_REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_NAME": "floor",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    }


async def serve(python: str, processes: int, folder: str) -> None:
    loop = asyncio.get_running_loop()
    floor = Floor()
    children: list[subprocess.Popen[bytes]] = []
    servers = []
    try:
        for _ in range(processes):
            runtime = Runtime(floor)
            runtime.session.restart()
            server = await loop.create_server(runtime.session.connection, "127.0.0.1", 0)
            servers.append(server)
            port = server.sockets[0].getsockname()[1]
            interpreter = RUNTIMES / python / "root/var/lang/bin" / python
            children.append(subprocess.Popen(  # noqa: ASYNC220 - before anything is served
                [str(interpreter), "-m", "awslambdaric", "app.handler"],
                env=environment(python, port, folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            ))
        while floor.idle < processes:
            assert all(child.poll() is None for child in children), "a runtime of the floor ended"
            await asyncio.sleep(0.02)
        front = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            floor, http="httptools", ws="none", lifespan="off", loop="none", access_log=False, log_config=None,
        )
        http = uvicorn.Server(config)
        serving = asyncio.create_task(http.serve(sockets=[front]))
        sys.stdout.write(f"{front.getsockname()[1]}\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)
        http.should_exit = http.force_exit = True
        await serving
    finally:
        for child in children:
            child.kill()
            child.wait()
        for server in servers:
            server.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
