"""The agent as the spawner's unprivileged child."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox.conftest import PROBE, ROOT, RUNTIMES, left_behind, missing, zipped
from worker.sandbox.settings import SpawnerConfig

AGENT = """
import asyncio, hashlib, json, os, socket, sys, tempfile
from worker.sandbox.driver import SandboxSpec, UnpackLimits
from worker.sandbox.native import NativeDriver

async def main():
    driver = NativeDriver(socket.socket(fileno=int(sys.argv[1])))
    await driver.start()
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    data = os.read(int(sys.argv[2]), 1 << 20)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        code = hashlib.sha256(data).hexdigest()
        await driver.unpack(file, code, UnpackLimits())
    sandbox = await driver.create(SandboxSpec(
        sandbox="one", runtime="python3.11", code=code, memory_mb=128, tmp_mb=16,
        environment={"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}, handler="app.handler"))
    await sandbox.freeze()
    await sandbox.thaw()
    def writable(path):
        try:
            open(path + "/probe", "w").close()
        except OSError:
            return False
        return True
    print(json.dumps({"uid": os.getuid(), "caps": [status[c].strip() for c in ("CapPrm", "CapEff", "CapBnd")],
        "nnp": status["NoNewPrivs"].strip(), "root": sorted(os.listdir("/")), "etc": os.path.exists("/etc/shadow"),
        "own": writable(sys.argv[3]), "code": writable("worker"),
        "owners": sorted({os.stat("/proc/" + p).st_uid for p in os.listdir("/proc") if p.isdigit()}),
        "pid": os.getpid()}), flush=True)
    if sys.argv[4] == "stay":
        await asyncio.sleep(100)
    await driver.close()
    sys.exit(7)

asyncio.run(main())
"""

LAUNCHER = """
import sys
from worker.sandbox import spawner
from worker.sandbox.settings import SpawnerConfig
config = SpawnerConfig.from_json(open(sys.argv[1]).read())
fd = int(sys.argv[2])
argv = [sys.executable, "-c", sys.argv[3], "{fd}", str(fd), config.agent_owned[0], sys.argv[4]]
sys.exit(spawner.run(config, argv, [fd]))
"""


@pytest.fixture
def launch(tmp_path: Path):
    lacking = missing()
    if lacking:
        pytest.skip(f"sandboxes need {lacking}")
    config = SpawnerConfig(name=f"launch-{os.getpid()}", state_dir=str(tmp_path / "state"), runtimes_dir=str(RUNTIMES),
                           uid_base=1_600_000_000, sandboxes_max=4, agent_owned=(str(tmp_path / "agent"),))
    (tmp_path / "config.json").write_text(config.to_json())
    started: list[subprocess.Popen[str]] = []

    def start(mode: str) -> subprocess.Popen[str]:
        reader, writer = os.pipe()
        os.write(writer, zipped({"app.py": PROBE}))
        os.close(writer)
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path / "config.json"), str(reader), AGENT, mode],
            pass_fds=[reader], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        os.close(reader)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    assert left_behind(config.name) == []


def test_the_agent_has_no_privileges_and_drives_sandboxes(launch) -> None:
    process = launch("go")
    out, _ = process.communicate(timeout=20)
    seen = json.loads(out)
    assert process.returncode == 7      # the agent's own
    assert seen["uid"] == 64000
    assert {int(text, 16) for text in seen["caps"]} == {0}
    assert seen["nnp"] == "1"
    assert not seen["etc"]
    assert not {"boot", "home", "srv", "sys", "var"} & set(seen["root"])
    assert seen["own"]
    assert not seen["code"]
    assert seen["owners"] == [64000]       # other workers' agents may share the id; nobody else is seen


@pytest.mark.parametrize("victim", ["agent", "spawner"])
def test_either_ones_death_ends_both(launch, victim: str) -> None:
    process = launch("stay")
    agent = json.loads(process.stdout.readline())["pid"]
    if victim == "agent":
        os.kill(agent, signal.SIGKILL)
        assert process.wait(10) == 128 + signal.SIGKILL
        return
    process.kill()
    process.communicate(timeout=10)     # ends when the agent, which holds the other end of the pipe, is gone as well
    launch("go").communicate(timeout=20)    # the next incarnation sweeps the groups


def test_sigterm_reaches_the_agent(launch) -> None:
    process = launch("stay")
    process.stdout.readline()
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
