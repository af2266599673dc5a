"""The agent as the spawner's unprivileged child."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import DEADLINE_S, PROBE, ROOT, RUNTIMES, left_behind, missing, zipped
from worker.sandbox import predecessor
from worker.sandbox.cgroups import Cgroups, detect
from worker.sandbox.settings import SpawnerConfig
from worker.sandbox.spawner_process import DESCRIPTORS_PER_SANDBOX, OTHER_DESCRIPTORS

AGENT = """
import asyncio, hashlib, json, os, resource, socket, sys, tempfile, time
from worker.sandbox.driver import SandboxSpec, UnpackLimits
from worker.sandbox.native import NativeDriver

async def main():
    driver = NativeDriver(socket.socket(fileno=int(sys.argv[1])))
    await driver.start()
    driver.authorise(time.clock_gettime(time.CLOCK_BOOTTIME) + float(sys.argv[5]), 1.0)
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
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "pid": os.getpid()}), flush=True)
    if sys.argv[4] == "stay":
        await asyncio.sleep(100)
    await driver.close()
    sys.exit(7)

asyncio.run(main())
"""

LAUNCHER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from worker.sandbox import spawner_process
from worker.sandbox.settings import SpawnerConfig
config = SpawnerConfig.from_json(open(sys.argv[1]).read())
fd = int(sys.argv[2])
argv = [sys.executable, "-c", sys.argv[3], "{fd}", str(fd), config.agent_owned[0], *sys.argv[4:]]
sys.exit(spawner_process.run(config, argv, [fd]))
"""


class Launched:
    """Launches spawners whose agent is AGENT, all of one host."""

    def __init__(self, folder: Path, config: SpawnerConfig) -> None:
        self._file = folder / "config.json"
        self._started: list[subprocess.Popen[str]] = []
        self.config = config
        self.change()

    def change(self, **changes: Any) -> None:
        self.config = replace(self.config, **changes)
        self._file.write_text(self.config.to_json())

    def __call__(self, mode: str, authority_s: float = 100.0, python: str = sys.executable) -> subprocess.Popen[str]:
        reader, writer = os.pipe()
        os.write(writer, zipped({"app.py": PROBE}))
        os.close(writer)
        process = subprocess.Popen(
            [python, "-c", LAUNCHER, str(self._file), str(reader), AGENT, mode, str(authority_s)],
            pass_fds=[reader], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        os.close(reader)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launched]:
    lacking = missing()
    if lacking:
        pytest.skip(f"sandboxes need {lacking}")
    config = SpawnerConfig(name=f"launch-{os.getpid()}", state_dir=str(tmp_path / "state"), runtimes_dir=str(RUNTIMES),
                           uid_base=1_600_000_000, sandboxes_max=4, timeout_cap_s=1,
                           agent_owned=(str(tmp_path / "agent"),))
    made = Launched(tmp_path, config)
    yield made
    made.close()
    left = left_behind(config.name)
    Cgroups(detect(Path("/proc/self/mountinfo").read_text()), config.name).close()     # of a test that failed
    assert left == []


def test_the_agent_has_no_privileges_and_drives_sandboxes(launch) -> None:
    process = launch("go")
    out, _ = process.communicate(timeout=DEADLINE_S)
    seen = json.loads(out)
    assert process.returncode == 7      # the agent's own
    assert seen["uid"] == 64000
    assert {int(text, 16) for text in seen["caps"]} == {0}
    assert seen["nnp"] == "1"
    assert not seen["etc"]
    assert not {"boot", "home", "srv", "sys", "var"} & set(seen["root"])
    assert seen["own"]
    assert not seen["code"]
    needed = launch.config.sandboxes_max * DESCRIPTORS_PER_SANDBOX + OTHER_DESCRIPTORS
    assert seen["descriptors"] >= min(needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert seen["owners"] == [64000]       # other workers' agents may share the id; nobody else is seen


@pytest.mark.parametrize("victim", ["agent", "spawner"])
def test_either_ones_death_ends_both(launch, victim: str) -> None:
    process = launch("stay")
    agent = json.loads(process.stdout.readline())["pid"]
    if victim == "agent":
        os.kill(agent, signal.SIGKILL)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGKILL
        return
    process.kill()
    process.communicate(timeout=DEADLINE_S)     # ends when the agent, who holds the pipe's other end, is gone too
    launch("go").communicate(timeout=DEADLINE_S)    # the next incarnation sweeps the groups


def test_sigterm_reaches_the_agent(launch) -> None:
    process = launch("stay")
    process.stdout.readline()
    process.terminate()
    assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM


def test_a_virtual_environment_behind_a_symbolic_link_is_found(launch, tmp_path: Path) -> None:
    """As where several checkouts share one: the agent sees the link, and what it leads to."""
    (tmp_path / "shared").symlink_to(sys.prefix)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "venv").symlink_to("../shared")
    launch.change(agent_readable=(str(tmp_path / "checkout"),))
    process = launch("go", python=str(tmp_path / "checkout" / "venv" / "bin" / "python"))
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7
    assert json.loads(out)["own"]


@pytest.mark.parametrize("state", ["stopped", "going on"])
def test_without_authority_everything_ends_whatever_the_agent_does(launch, state: str) -> None:
    """Authority of a few seconds, timeouts of one, a grace of one: nobody is asked, and nothing is left."""
    process = launch("stay", authority_s=4.0)   # within which the agent has to make its sandbox
    agent = json.loads(process.stdout.readline())["pid"]
    if state == "stopped":
        os.kill(agent, signal.SIGSTOP)
    assert sandboxes_of(launch.config.name)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGKILL
    assert left_behind(launch.config.name) == []
    assert predecessor._started(agent) is None


@pytest.mark.parametrize(("agent_gets", "spawner_gets"), [
    (signal.SIGKILL, signal.SIGKILL),
    (signal.SIGSTOP, signal.SIGKILL),
    (signal.SIGSTOP, signal.SIGSTOP),
    (None, signal.SIGSTOP),
    (None, None),
])
def test_a_new_incarnation_begins_when_the_older_one_and_its_sandboxes_are_gone(
    launch, agent_gets: signal.Signals | None, spawner_gets: signal.Signals | None,
) -> None:
    older = launch("stay")
    agent = json.loads(older.stdout.readline())["pid"]
    inside = {int(pid) for group in sandboxes_of(launch.config.name)
              for pid in (group / "cgroup.procs").read_text().split()}
    assert inside, "process 1 of its sandbox"
    for pid, number in ((agent, agent_gets), (older.pid, spawner_gets)):
        if number is not None:
            os.kill(pid, number)
    newer = launch("stay")
    assert json.loads(newer.stdout.readline())["pid"] != agent, "it created a sandbox of the same name"
    assert older.wait(DEADLINE_S) in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert not [pid for pid in {agent, *inside} if predecessor._started(pid) is not None]
    left = {int(pid) for group in sandboxes_of(launch.config.name)
            for pid in (group / "cgroup.procs").read_text().split()}
    assert left
    assert not left & inside
    newer.terminate()
    assert newer.wait(DEADLINE_S) == 128 + signal.SIGTERM


def test_a_predecessor_of_another_boot_or_of_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            for boot, started in (("another", predecessor._started(bystander.pid)), ("this", 1)):
                (tmp_path / "incarnation").write_text(
                    json.dumps({"boot": boot, "processes": [[bystander.pid, started]]}))
                os.close(predecessor.replace(str(tmp_path), "this").lock)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def sandboxes_of(name: str) -> list[Path]:
    return [path for place in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{place}labda-{name}/one")]
