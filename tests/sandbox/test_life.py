"""A sandbox's life through the driver, with real namespaces and the real awslambdaric."""

import asyncio
import contextlib
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandbox.conftest import DEADLINE_S, Ground, left_behind, loops_of, missing, start_ground
from worker.sandbox.driver import CodeMissing, DriverEnded, InvalidEntrypoint, SandboxFault, SandboxGone, SandboxSpec

BOOTSTRAP = """#!/bin/sh
set -eu
API=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
while true; do
  body=$(curl -sS -D /tmp/headers "$API/invocation/next")
  id=$(grep -i lambda-runtime-aws-request-id /tmp/headers | tr -d '[:space:]' | cut -d: -f2)
  curl -sS -o /dev/null -d "$body" "$API/invocation/$id/response"
done
"""


async def test_every_runtime_answers(ground: Ground) -> None:
    for runtime in ground.driver.runtimes():
        if runtime.startswith("provided"):
            made = await ground.running({"bootstrap": BOOTSTRAP}, runtime=runtime, mode=0o755)
            assert await made.invoke({"a": "ü"}) == {"a": "ü"}
        else:
            made = await ground.running(runtime=runtime)
            version = await made.probe("import sys, boto3, ssl, sqlite3; out = list(sys.version_info[:2])")
            assert runtime == f"python{version[0]}.{version[1]}"
        await made.sandbox.destroy()


async def test_runtime_output_reaches_the_agent(ground: Ground) -> None:
    made = await ground.running()
    await made.probe("import os; os.system('echo out; echo err >&2; echo again > /dev/stdout')")
    await made.sandbox.kill()
    assert made.reader is not None
    await made.reader
    assert made.output.decode().split() == ["out", "err", "again"]


async def test_the_functions_own_modules_come_first(ground: Ground) -> None:
    files: dict[str, str | bytes] = {
        "app.py": "import boto3\ndef handler(e, c): return boto3.MINE", "boto3.py": "MINE = 7",
    }
    made = await ground.running(files, environment={"PYTHONPATH": "/tmp/elsewhere"})
    assert await made.invoke({}) == 7
    other = await ground.running()
    path = await other.probe("import sys; out = sys.path")
    assert path[:3] == ["/var/task", "/opt/python/lib/python3.11/site-packages", "/opt/python"]
    assert path[3] == "/var/runtime"


async def test_exit_status_and_signal_are_told(ground: Ground) -> None:
    made = await ground.running()
    await made.send({"code": "import os; os._exit(12)"})
    ending = await made.sandbox.exited()
    assert (ending.code, ending.signal, ending.oom) == (12, None, False)
    await made.start()
    await made.send({"code": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"})
    ending = await made.sandbox.exited()
    assert (ending.code, ending.signal, ending.oom) == (None, 11, False)


async def test_kill_ends_everything_but_tmp(ground: Ground) -> None:
    made = await ground.running()
    await made.probe(
        "import os, subprocess\n"
        "open('/tmp/kept', 'w').write('here')\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; while true; do sleep 1; done'], start_new_session=True)"
    )
    await asyncio.wait_for(made.waiting.get(), DEADLINE_S)  # or its last question would be taken for the next one's
    await made.sandbox.kill()
    ending = await made.sandbox.exited()
    assert ending.signal == signal.SIGKILL
    await made.start()
    out = await made.probe(
        "import os; out = [open('/tmp/kept').read(), [p for p in os.listdir('/proc') if p.isdigit()]]")
    assert out[0] == "here"
    assert len(out[1]) == 1     # itself; process 1 is another user's and not shown


async def test_frozen_processes_stand_still_and_can_be_killed(ground: Ground) -> None:
    made = await ground.running()
    await made.probe(
        "import threading, time\n"
        "def tick():\n"
        "    while True:\n"
        "        open('/tmp/ticks', 'a').write('.'); time.sleep(0.002)\n"
        "threading.Thread(target=tick, daemon=True).start()"
    )
    await made.sandbox.freeze()
    assert made.waiting.qsize() <= 1
    frozen = await _cpu_of(ground, made.sandbox.spec.sandbox)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        assert await _cpu_of(ground, made.sandbox.spec.sandbox) == frozen
    await made.sandbox.thaw()
    assert await made.probe("out = 1") == 1
    await made.sandbox.freeze()
    await made.sandbox.kill()
    assert (await made.sandbox.exited()).signal == signal.SIGKILL
    await made.sandbox.destroy()


async def _cpu_of(ground: Ground, sandbox: str) -> int:
    """Ticks that the sandbox's processes have used, read from the host's /proc."""
    total = 0
    for group in Path("/sys/fs/cgroup").glob(f"*/labda-{ground.config.name}/{sandbox}/run/cgroup.procs"):
        for pid in group.read_text().split():
            total += sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    return total


async def test_missing_bootstrap_is_its_own_fault(ground: Ground) -> None:
    made = await ground.create(runtime="provided.al2023")
    with pytest.raises(InvalidEntrypoint, match="Couldn't find valid bootstrap"):
        await made.start()
    await made.sandbox.destroy()


async def test_exec_wrapper(ground: Ground) -> None:
    files: dict[str, str | bytes] = {
        "app.py": "import os\ndef handler(e, c): return os.environ['WRAPPED']",
        "wrap": "#!/bin/sh\nexport WRAPPED=yes\nexec \"$@\"\n",
    }
    made = await ground.running(files, mode=0o755, environment={"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrap"})
    assert await made.invoke({}) == "yes"
    other = await ground.running(environment={"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/none"})
    assert (await other.sandbox.exited()).code == 127


async def test_faults_are_typed(ground: Ground) -> None:
    spec = SandboxSpec(sandbox="x", runtime="python3.11", code="0" * 64, memory_mb=128, tmp_mb=16, environment={},
                       handler="app.handler")
    with pytest.raises(CodeMissing):
        await ground.driver.create(spec)
    code = (await ground.create()).sandbox.spec.code
    for change in ({"sandbox": "../x"}, {"sandbox": "S"}, {"memory_mb": 0}, {"runtime": "../../etc"},
                   {"runtime": "ruby4"}, {"tmp_mb": 10**9}, {"code": "../" + "0" * 61}):
        fields = {"sandbox": "x", "runtime": "python3.11", "code": code, "memory_mb": 128, "tmp_mb": 16,
                  "environment": {}, "handler": "h", **change}
        with pytest.raises(SandboxFault) as caught:
            await ground.driver.create(SandboxSpec(**fields))  # type: ignore[arg-type]
        assert caught.value.definite, change


async def test_destroy_leaves_nothing(ground: Ground) -> None:
    made = await ground.running()
    await made.probe("import subprocess; subprocess.Popen(['sleep', '1000'])")
    await made.sandbox.freeze()
    await made.sandbox.destroy()
    await made.sandbox.destroy()
    assert [path for path in left_behind(ground.config.name) if "/s-" in path] == []
    assert list(Path("/sys/fs/cgroup").glob(f"*/labda-{ground.config.name}/s-*")) == []
    assert loops_of(ground.config) == []
    assert _children(ground.process.pid) == []
    with pytest.raises(SandboxGone):
        await made.sandbox.freeze()
    with pytest.raises(SandboxGone):
        await made.sandbox.exited()


async def test_a_sandbox_that_ends_by_itself_is_said_to_be_gone_when_nothing_of_it_runs(ground: Ground) -> None:
    made = await ground.running(memory_mb=512)
    await made.probe(
        "import subprocess, sys\n"
        "for _ in range(8):\n"
        "    code = 'import time; kept = bytearray(32 << 20); print(flush=True); time.sleep(1000)'\n"
        "    subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE).stdout.readline()"
    )
    first, = _children(ground.process.pid)
    inside = _children(first)
    inside += [pid for parent in inside for pid in _children(parent)]
    assert len(inside) == 9     # the runtime and what it started
    waiter = asyncio.create_task(made.sandbox.exited())
    os.kill(first, signal.SIGKILL)
    with pytest.raises(SandboxGone) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await waiter
    assert [pid for pid in inside if _alive(pid)] == []
    assert not isinstance(caught.value, DriverEnded)
    await made.sandbox.destroy()
    assert await (await ground.running()).probe("out = 1") == 1


async def test_death_of_the_agent_takes_everything_away(ground: Ground) -> None:
    made = await ground.running()
    await made.probe("out = 1")
    # What a killed agent's socket looks like to the spawner.
    ground.driver._channel.shutdown(2)
    assert await asyncio.to_thread(ground.process.wait, DEADLINE_S) == 0
    assert left_behind(ground.config.name) == []
    assert loops_of(ground.config) == []


async def test_an_agent_that_can_not_take_an_answer_lets_go_of_the_spawner_which_takes_everything_away(
    ground: Ground,
) -> None:
    made = await ground.running()
    reasons: list[str] = []
    ground.driver._end_process = reasons.append
    spec = replace(made.sandbox.spec, sandbox="cut")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))       # no descriptor more; what is open stays so
    try:
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(SandboxGone, match="no room"):
                await ground.driver.create(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(reasons) == 1
    assert ground.driver.ended
    assert await asyncio.to_thread(ground.process.wait, DEADLINE_S) == 0
    assert left_behind(ground.config.name) == []


async def test_a_spawners_death_ends_every_sandbox_and_the_next_one_sweeps(tmp_path: Path) -> None:
    if missing():
        pytest.skip(f"sandboxes need {missing()}")
    name = f"test-swept-{os.getpid()}"
    first = await start_ground(tmp_path / "state", name)
    made = await first.running()
    await made.probe("out = 1")
    pids = _children(first.process.pid)
    assert pids
    waiter = asyncio.create_task(made.sandbox.exited())
    first.process.kill()
    with pytest.raises(DriverEnded):
        async with asyncio.timeout(DEADLINE_S):
            await waiter
    assert first.driver.ended
    await first.driver.close()
    await asyncio.to_thread(first.process.wait, DEADLINE_S)
    second = await start_ground(tmp_path / "state", name)
    assert not [pid for pid in pids if _alive(pid)]
    assert list(Path("/sys/fs/cgroup").glob(f"*/labda-{name}/*/")) == []
    assert await second.driver.has_code(made.sandbox.spec.code)
    await second.driver.close()
    assert await asyncio.to_thread(second.process.wait, DEADLINE_S) == 0
    assert left_behind(name) == []
    assert loops_of(first.config) == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found
