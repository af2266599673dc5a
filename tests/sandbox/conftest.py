"""Real sandboxes for tests: a spawner of its own per test, and a Runtime API of forty lines."""

import asyncio
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from worker.sandbox import host
from worker.sandbox.driver import RUNTIME_API_ADDRESS, SandboxSpec, UnpackLimits
from worker.sandbox.native import NativeDriver, NativeSandbox, PipeOutput
from worker.sandbox.settings import SpawnerConfig

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ROOT / ".runtimes"
PYTHON = "python3.11"
SPAWNER = ("-m", "worker.sandbox.spawner_process")
DEADLINE_S = 60.0   # for what has to happen at all, on a machine that has more to do

# Runs the source code that the event carries; its variable `out` is the result.
PROBE = """
def handler(event, context):
    scope = {}
    exec(event["code"], scope)
    return scope.get("out")
"""


def missing() -> str:
    """What this host lacks for the tests here, "" if nothing."""
    if os.geteuid() != 0:
        return "root"
    runtimes = host.read_runtimes(str(RUNTIMES))
    if PYTHON not in runtimes:
        return f"the runtime {PYTHON} in {RUNTIMES} (make setup)"
    return ""


def zipped(files: dict[str, str | bytes], mode: int = 0o644) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content)
    return data.getvalue()


class Api(asyncio.Protocol):
    """Answers /next with what `invoke` queues and keeps what comes back."""

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, split, body = self._data.partition(b"\r\n\r\n")
        if not split:
            return
        lines = head.decode().split("\r\n")
        length = next((int(x.split(":")[1]) for x in lines if x.lower().startswith("content-length:")), 0)
        if len(body) < length:
            return
        self._data = body[length:]
        method, path, _ = lines[0].split(" ")
        if method == "GET" and path.endswith("/invocation/next"):
            self._runtime.waiting.put_nowait(self._transport)
            return
        if path.endswith("/ping"):
            self.answer(self._transport, b"pong")
            self._transport.close()
            return
        self._runtime.results.put_nowait((path.rsplit("/", 1)[1], body[:length]))
        self.answer(self._transport, b'{"status":"OK"}', "202 Accepted")

    @staticmethod
    def answer(transport: asyncio.Transport, body: bytes, status: str = "200 OK", more: str = "") -> None:
        transport.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)


class Runtime:
    """One sandbox with its Runtime API and its output."""

    def __init__(self, sandbox: NativeSandbox) -> None:
        self.sandbox = sandbox
        self.waiting: asyncio.Queue[asyncio.Transport] = asyncio.Queue()
        self.results: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.output = b""
        self.reader: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        await self.sandbox.serve(lambda: Api(self))

    async def start(self) -> None:
        output = await self.sandbox.start()
        assert isinstance(output, PipeOutput)
        self.reader = asyncio.create_task(self._read(output))

    async def _read(self, output: PipeOutput) -> None:
        async for chunk in output:
            self.output += chunk

    async def invoke(self, event: Any, timeout_s: float = DEADLINE_S) -> Any:
        """Waits for the runtime, hands it the event, returns its decoded answer."""
        await self.send(event, timeout_s)
        kind, body = await self.result(timeout_s)
        assert kind == "response", (body, self.output)
        return json.loads(body)

    async def send(self, event: Any, timeout_s: float = DEADLINE_S) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                transport = await self.waiting.get()
        except TimeoutError:
            raise AssertionError(f"the runtime didn't ask for an event; it said {self.output!r}") from None
        headers = ("Lambda-Runtime-Aws-Request-Id: one\r\nLambda-Runtime-Deadline-Ms: 99999999999999\r\n"
                   "Lambda-Runtime-Invoked-Function-Arn: arn\r\nContent-Type: application/json\r\n")
        Api.answer(transport, json.dumps(event).encode(), more=headers)

    async def result(self, timeout_s: float = DEADLINE_S) -> tuple[str, bytes]:
        async with asyncio.timeout(timeout_s):
            return await self.results.get()

    async def probe(self, code: str, timeout_s: float = DEADLINE_S) -> Any:
        """Runs source code inside; returns its variable `out`."""
        return await self.invoke({"code": code}, timeout_s)


class Ground:
    """A spawner in a process of its own, and what tests ask of it."""

    def __init__(self, driver: NativeDriver, process: subprocess.Popen[bytes], config: SpawnerConfig) -> None:
        self.driver = driver
        self.process = process
        self.config = config
        self._count = 0

    async def unpack(self, data: bytes, sha256: str = "") -> str:
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            await self.driver.unpack(file, sha256, UnpackLimits())
        return sha256

    async def create(
        self, files: dict[str, str | bytes] | None = None, *, runtime: str = PYTHON, memory_mb: int = 128,
        tmp_mb: int = 16, mode: int = 0o644, environment: dict[str, str] | None = None,
    ) -> Runtime:
        """A sandbox in which nothing runs yet."""
        code = await self.unpack(zipped(files or {"app.py": PROBE}, mode))
        self._count += 1
        variables = {
            "AWS_LAMBDA_RUNTIME_API": RUNTIME_API_ADDRESS, "PYTHONPATH": "/var/runtime", "LANG": "en_US.UTF-8",
            "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin", "LD_LIBRARY_PATH": "/var/lang/lib",
            "LAMBDA_TASK_ROOT": "/var/task", "TZ": ":UTC", **(environment or {}),
        }
        sandbox = await self.driver.create(SandboxSpec(
            sandbox=f"s-{self._count}", runtime=runtime, code=code, memory_mb=memory_mb, tmp_mb=tmp_mb,
            environment=variables, handler="app.handler",
        ))
        made = Runtime(sandbox)
        await made.serve()
        return made

    async def running(self, files: dict[str, str | bytes] | None = None, **options: Any) -> Runtime:
        made = await self.create(files, **options)
        await made.start()
        return made


def left_behind(name: str) -> list[str]:
    """Groups, loop devices and mounts of this worker that still exist."""
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/labda-{name}*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"labda-{name}*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    return found


def loops_of(config: SpawnerConfig) -> list[str]:
    """Loop devices that hold this worker's images."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if config.state_dir in text:
            found.append(text)
    return found


async def start_ground(
    state: Path, name: str = "", *, authority_s: float = 300.0, program: Sequence[str] = SPAWNER, **changes: Any,
) -> Ground:
    """`program`: what Python runs as the spawner, for one whose children are not what they should be."""
    name = name or f"test-{os.getpid()}"
    config = SpawnerConfig(
        name=name, state_dir=str(state), runtimes_dir=str(RUNTIMES), uid_base=1_500_000_000, sandboxes_max=32,
        **changes,
    )
    file = state / "spawner.json"
    state.mkdir(parents=True, exist_ok=True)
    file.write_text(config.to_json())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, *program, "--config", str(file),
             "--socket-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT,
        )
    driver = NativeDriver(ours)
    await driver.start()
    driver.authorise(time.clock_gettime(time.CLOCK_BOOTTIME) + authority_s, 1.0)
    return Ground(driver, process, config)


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    lacking = missing()
    if lacking:
        pytest.skip(f"sandboxes need {lacking}")
    made = await start_ground(tmp_path / "state")
    try:
        yield made
    finally:
        await made.driver.close()
        status = await asyncio.to_thread(made.process.wait, DEADLINE_S)
        assert status == 0
        assert left_behind(made.config.name) == []
        assert loops_of(made.config) == []
