"""Log lines where there is no room for them: lost, counted, and told; nobody's request fails for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.logs import LogLines
from tests.small_disk import small_disk

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
import structlog
from chassis import logs, process

logs.configure(service="test", node="n1")
log = structlog.get_logger("test")
log.info("first")
for turn in sys.stdin:
    for number in range(500):
        log.info("line", number=number, text="x" * 100)
    print("done", flush=True)
process.leave(0)
"""


def test_a_full_disk_loses_lines_and_no_process(tmp_path):
    with small_disk(tmp_path / "disk", size_mb=1) as disk:
        path = disk.path / "log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )
        try:
            turn(process)
            disk.fill()
            turn(process)
            disk.empty()
            turn(process)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}") and line[0] == "{"]
        said = [line["event"] for line in lines]
        assert said[0] == "first"
        (lost,) = [line["lines"] for line in lines if line["event"] == "log lines lost"]
        assert 1500 - lost <= said.count("line") <= 1500 - lost + 1
        assert said[-500:] == ["line"] * 500


def turn(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_what_is_no_text_is_written_all_the_same(tmp_path):
    with (tmp_path / "log").open("w") as file:
        LogLines(file).write("a \udc80 b\n")
    assert (tmp_path / "log").read_text() == "a \\udc80 b\n"


@pytest.mark.parametrize("value", ["\udc80", 2**70, {7: "seven"}, Path("/x")])
def test_what_json_does_not_know_is_shown_all_the_same(tmp_path, value):
    program = (
        "import structlog; from pathlib import PosixPath; from chassis import logs; "
        f"logs.configure(service='test', node='n1'); structlog.get_logger().info('odd', value={value!r})"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    (line,) = said.splitlines()
    assert json.loads(line)["event"] == "odd"
    assert "value" in json.loads(line)
