"""What a command owes is put back when it dies: real processes, killed for real."""

import asyncio
import json
import signal
import subprocess
import sys

from labda.chaos.guard import Guard

DEADLINE_S = 60.0
COMMAND = """
import asyncio, sys
from labda.chaos.guard import Guard

async def main():
    guard = await Guard.open()
    await guard.owe("one", ["touch", sys.argv[1] + "/one"])
    await guard.owe("two", ["touch", sys.argv[1] + "/two"])
    await guard.paid("two")
    print("broken", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_what_is_owed_is_put_back_though_the_command_was_killed(tmp_path):
    for number in (signal.SIGKILL, signal.SIGINT):
        folder = tmp_path / number.name
        folder.mkdir()
        command = subprocess.Popen([sys.executable, "-c", COMMAND, str(folder)], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
        try:
            assert command.stdout is not None
            with command.stdout:
                assert command.stdout.readline() == "broken\n"
            command.send_signal(number)
        finally:
            command.kill()
            command.wait(DEADLINE_S)
        await until((folder / "one").exists)
        assert not (folder / "two").exists()


async def test_nothing_is_done_when_all_was_put_back(tmp_path):
    guard = await Guard.open()
    await guard.owe("one", ["touch", str(tmp_path / "one")])
    await guard.paid("one")
    await guard.close()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_comes_first_and_a_failure_stops_nobody(tmp_path):
    log = tmp_path / "log"
    owed = [
        ("a", ["sh", "-c", f"echo a >> {log}"]), ("b", ["/nowhere"]),
        ("c", ["sh", "-c", f"echo c >> {log}; exit 3"]),
    ]
    lines = "".join(json.dumps({"owe": key, "argv": argv}) + "\n" for key, argv in owed)
    done = subprocess.run([sys.executable, "-m", "labda.chaos.guard"], input=lines, text=True, capture_output=True,
                          check=False, timeout=DEADLINE_S)
    assert log.read_text().split() == ["c", "a"]
    assert done.returncode
    assert "/nowhere" in done.stderr
