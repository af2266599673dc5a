"""The agent on real sandboxes: the official awslambdaric inside, the native driver and its spawner below."""

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from chassis.clock import SystemClock
from tests.worker.region import Frame, Region
from worker.sandbox.native import NativeDriver
from worker.sandbox.settings import SpawnerConfig

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = f"python{sys.version_info.major}.{sys.version_info.minor}"
APP = '''
import os, time, sys
runs = 0

def echo(event, context):
    return event

def count(event, context):
    global runs
    runs += 1
    print("run", runs)
    return {
        "runs": runs, "id": context.aws_request_id, "arn": context.invoked_function_arn,
        "left_ms": context.get_remaining_time_in_millis(), "tmp": sorted(os.listdir("/tmp")),
        "trace": os.environ.get("_X_AMZN_TRACE_ID"), "task": os.getcwd(),
    }

def error(event, context):
    raise ValueError("on purpose")

def sleep(event, context):
    open("/tmp/slept", "w").close()
    time.sleep(event)
    return "slept"

def end(event, context):
    os._exit(event)

def segfault(event, context):
    import ctypes
    ctypes.string_at(0)

def oom(event, context):
    return len(bytearray(400 * 1024 * 1024))

def big(event, context):
    return "x" * (event - 2)

def background(event, context):
    import threading
    threading.Thread(target=lambda: [print("x" * 1000) for _ in iter(int, 1)], daemon=True).start()
    return "started"

def flood(event, context):
    for _ in range(event):
        print("x" * 1023)
'''

pytestmark = pytest.mark.usefixtures("needs_root")


def archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        info = zipfile.ZipInfo("app.py")
        info.external_attr = 0o644 << 16
        file.writestr(info, APP)
    return data.getvalue()


@contextlib.asynccontextmanager
async def native_region(**config):
    """A worker with a spawner of its own; nothing is left of either."""
    if not (ROOT / ".runtimes" / RUNTIME).is_dir():
        pytest.skip(f"no runtime {RUNTIME}: make setup builds it")
    state = Path(tempfile.mkdtemp(prefix="labda-worker-"))
    name = f"test-{os.getpid()}-{random.randrange(10_000)}"
    settings = SpawnerConfig(
        name=name, state_dir=str(state), runtimes_dir=str(ROOT / ".runtimes"),
        uid_base=1_000_000 + os.getpid() % 10_000 * 200, sandboxes_max=20,
    )
    (state / "spawner.json").write_text(settings.to_json())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        spawner = subprocess.Popen(  # once, before anything else runs on this loop
            [sys.executable, "-m", "worker.sandbox.spawner_process", "--config", str(state / "spawner.json"),
             "--socket-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        async with Region(
            SystemClock(), driver=NativeDriver(ours), archive=archive(), scratch=tempfile.TemporaryFile, **config
        ) as region:
            yield region
    finally:
        ours.close()
        spawner.wait(60)
        shutil.rmtree(state)


async def ready(region, handler, sandbox="s1", timeout_s=30, **config):
    return await region.ready(sandbox, handler=handler, runtime=RUNTIME, timeout_s=timeout_s, **config)


async def test_cold_and_warm():
    async with native_region() as region:
        cold = await ready(region, "count")
        assert cold.phases.runtime_ms + cold.phases.init_ms > 5
        answer = await region.invoke("id-1", payload=b"{}", log_tail=True, trace_id="Root=1-abc")
        assert answer.json | {"left_ms": 0} == {
            "runs": 1, "id": "id-1", "arn": "arn:aws:lambda:us-east-1:000000000000:function:hello", "left_ms": 0,
            "tmp": [], "trace": "Root=1-abc", "task": "/var/task",
        }
        assert 0 < answer.json["left_ms"] <= 30_000
        tail = answer.result.log_tail.decode().splitlines()
        assert [line.split(" ")[0] for line in tail] == ["INIT_START", "START", "run", "END", "REPORT"]
        assert "Max Memory Used: " in tail[-1]
        assert 1 < answer.result.memory_peak_mb < 128
        warm = await region.invoke("id-2", payload=b"{}", log_tail=True)
        assert (warm.json["runs"], warm.json["trace"], warm.result.cold) == (2, None, False)
        assert warm.result.log_tail.decode().splitlines()[1] == "run 2"


async def test_timeout_keeps_tmp_and_loses_globals():
    async with native_region() as region:
        await ready(region, "sleep", timeout_s=4)   # within which the next one starts the runtime anew
        answer = await region.invoke("i1", payload=b"30")
        assert answer.json == {
            "errorType": "Sandbox.Timedout", "errorMessage": "RequestId: i1 Error: Task timed out after 4.00 seconds"
        }
        assert (await region.invoke("i2", payload=b"0")).json == "slept"


async def test_how_a_process_can_end():
    async with native_region() as region:
        await ready(region, "end")
        answer = await region.invoke("i1", payload=b"12")
        assert answer.json["errorMessage"] == "RequestId: i1 Error: Runtime exited with error: exit status 12"
        answer = await region.invoke("i2", payload=b"0")
        assert answer.json["errorMessage"] == "RequestId: i2 Error: Runtime exited without providing a reason"
        await ready(region, "segfault", "s2")
        answer = await region.invoke("i3", sandbox="s2")
        assert answer.json["errorMessage"].endswith("i3 Error: Runtime exited with error: signal: segmentation fault")
        await ready(region, "oom", "s3")
        answer = await region.invoke("i4", sandbox="s3", log_tail=True)
        assert answer.json == {
            "errorType": "Runtime.OutOfMemory",
            "errorMessage": "RequestId: i4 Error: Runtime exited with error: signal: killed",
        }
        assert b"Max Memory Used: 128 MB\tInit" in answer.result.log_tail
        assert answer.result.log_tail.endswith(b"Status: error\tError Type: Runtime.OutOfMemory\n")


async def test_handlers_that_fail():
    async with native_region() as region:
        await ready(region, "error")
        answer = await region.invoke("i1")
        assert answer.error == "Unhandled"
        assert answer.json["errorType"] == "ValueError"
        assert answer.json["requestId"] == "i1"
        assert answer.json["stackTrace"][0].startswith('  File "/var/task/app.py", line ')
        await ready(region, "nothing", "s2")
        answer = await region.invoke("i2", sandbox="s2")
        assert answer.json == {
            "errorType": "Runtime.HandlerNotFound", "errorMessage": "Handler 'nothing' missing on module 'app'",
            "requestId": "", "stackTrace": [],
        }


async def test_payload_of_six_megabytes_each_way_and_one_byte_more():
    async with native_region() as region:
        await ready(region, "echo", memory_mb=512, timeout_s=30)
        payload = json.dumps("x" * (6 * 1024 * 1024 - 2)).encode()
        answer = await region.send_whole("i1", payload)
        assert answer.body == payload
        await ready(region, "big", "s2", memory_mb=512, timeout_s=30)
        assert len((await region.invoke("i2", sandbox="s2", payload=b"6291556")).body) == 6291556
        answer = await region.invoke("i3", sandbox="s2", payload=b"6291557")
        assert answer.json["errorType"] == "Function.ResponseSizeTooLarge"
        answer = await region.invoke("i4", sandbox="s2", payload=b"100", log_tail=True)
        assert len(answer.body) == 100
        assert b"INIT_REPORT" not in answer.result.log_tail  # the environment was kept


async def test_a_flood_of_output_is_cut_and_hurts_nobody():
    async with native_region(log_bytes_per_invocation=1 << 20) as region:
        await ready(region, "flood", timeout_s=60, memory_mb=1024)
        answer = await region.invoke("i1", payload=b"3000", log_tail=True)
        assert b"bytes of output dropped: one invocation may log 1048576 bytes" in answer.result.log_tail


async def test_what_prints_on_in_the_background_holds_nothing_up():
    async with native_region(log_bytes_per_invocation=64 << 20) as region:
        await ready(region, "background", memory_mb=1000)
        for number in range(3):
            async with asyncio.timeout(60):     # or else the function's own time limit ends it
                assert (await region.invoke(f"i{number}")).json == "started"


async def test_destroyed_while_it_runs_nothing_is_left():
    async with native_region() as region:
        await ready(region, "sleep")
        await region.client.send(Frame(invocation="i1", start=region.start(payload=b"1")))
        async with asyncio.timeout(60):
            while "i1" not in region.worker.agent.core.runs:
                await asyncio.sleep(0.01)
        await region.worker.drain()
        assert (await region.client.answer("i1")).json == "slept"
        assert region.worker.agent.lives == {}
