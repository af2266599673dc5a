"""What the benchmarks measure with, where it could lie: verdicts, groups of processes, what /proc says, wrk's words."""

import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.rig import traces
from benchmarks.rig.growth import Ceiling, Samples, Tolerance
from benchmarks.rig.load import NoLoad, Request, wrk
from benchmarks.rig.machine import Others, busy_s, described
from benchmarks.rig.processes import groups, rollup, spent_s, usage
from benchmarks.rig.samples import percentile
from benchmarks.soak import RULES, SERVED_MIN, served_share, table
from labda.state import State

DEADLINE_S = 60.0
RULE: dict[str, Tolerance | Ceiling] = {"memory": Tolerance(0.1, 4.0), "log": Ceiling(18.0)}


def judged(name, values):
    samples = Samples()
    for n, value in enumerate(values):
        samples.add(n * 5.0, {name: value})
    [verdict] = samples.verdicts(RULE)
    return verdict


# ---------------------------------------------------------------- growth


def test_a_planted_growth_is_found_and_its_rate_told():
    verdict = judged("a memory", [40 + 0.1 * n for n in range(96)])     # 0.1 MB per 5 s
    assert verdict.grew
    assert math.isclose(verdict.per_hour, 72.0)
    assert "GREW" in table([verdict])


def test_what_is_flat_noisy_filled_up_or_shrinking_did_not_grow():
    assert not judged("a memory", [40.0] * 96).grew
    assert not judged("a memory", [40 + 20 * (n % 4 == 0) for n in range(96)]).grew
    assert not judged("a memory", [min(40.0, 2.0 * n) for n in range(96)]).grew, "full within the first quarter"
    assert not judged("a memory", [80 - 0.1 * n for n in range(96)]).grew


def test_a_step_in_the_second_half_is_growth():
    assert judged("a memory", [40.0] * 60 + [60.0] * 36).grew


def test_of_what_comes_and_goes_only_what_is_always_there_can_grow():
    rule = {"memory": Tolerance(0.1, 4.0, lowest=True)}
    bursts, leak = Samples(), Samples()
    for n in range(96):
        burst = 15.0 * (n % (7 if n < 48 else 2) != 0)      # more often in the second half
        bursts.add(n * 1.0, {"a memory": 40.0 + burst})
        leak.add(n * 1.0, {"a memory": 40.0 + burst + 0.1 * n})
    assert [one.grew for one in bursts.verdicts(rule)] == [False]
    assert [one.grew for one in leak.verdicts(rule)] == [True]
    leak.add(96.0, {})      # the process was not there just then
    assert [one.grew for one in leak.verdicts(rule)] == [True]


def test_what_appears_late_is_growth():
    samples = Samples()
    for n in range(40):
        samples.add(float(n), {"a memory": 40.0} | ({"b memory": 9.0} if n > 20 else {}))
    assert [one.name for one in samples.verdicts(RULE) if one.grew] == ["b memory"]


def test_a_ceiling_is_kept_or_broken():
    assert not judged("longest log", [float(n % 17) for n in range(96)]).grew
    assert judged("longest log", [0.3 * n for n in range(96)]).grew


def test_too_few_samples_give_no_verdict():
    with pytest.raises(AssertionError, match="8 are needed"):
        judged("a memory", [1.0] * 7)


def test_a_soak_that_was_refused_is_no_soak():
    assert served_share(Counter({("quick", "200"): 99, ("quick", "503 lag"): 1, ("failing", "503 lag"): 50})) == 0.99
    assert served_share(Counter({("quick-1", "200"): 90, ("quick-2", "0 broke"): 10})) < SERVED_MIN
    assert served_share(Counter()) == 0.0


# ---------------------------------------------------------------- /proc


@pytest.fixture
def child():
    """Starts a Python process and waits until it says that it is ready."""
    with contextlib.ExitStack() as stack:
        def start(source, *arguments):
            process = subprocess.Popen([sys.executable, "-S", "-c", source, *arguments], stdout=subprocess.PIPE)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            return process

        yield start


WAITS = "import sys, time; print('ready', flush=True); time.sleep(600)"
HOLDS = "x = b'x' * (64 << 20); files = [open('/dev/null') for _ in range(50)]\n" + WAITS


def test_memory_and_descriptors_that_a_process_holds_are_seen(child):
    small, big = usage(child(WAITS).pid), usage(child(HOLDS).pid)
    assert 63 * 1024 < big.anonymous_kb - small.anonymous_kb < 70 * 1024
    assert big.pss_kb >= big.anonymous_kb
    assert big.descriptors - small.descriptors == 50
    assert (small.threads, small.processes) == (1, 1)


def test_a_process_that_has_gone_holds_nothing():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert usage(gone.pid) == usage(gone.pid) + usage(gone.pid)
    assert usage(gone.pid).processes == 0


def test_rollup_reads_sizes_and_skips_the_rest():
    text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:   12 kB\nPss:   8 kB\nPss_Anon:  4 kB\n"
    assert rollup(text) == {"Rss": 12, "Pss": 8, "Pss_Anon": 4}


def test_time_of_children_that_ended_is_spent_but_not_a_process_own(child):
    source = (
        "import subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-S', '-c', 'import time\\nwhile time.process_time() < 0.3: pass'])\n" + WAITS
    )
    pid = child(source).pid
    assert spent_s(pid) - usage(pid).cpu_s >= 0.25
    assert usage(pid).cpu_s < 0.25


def test_an_agent_is_told_from_its_spawner_and_both_from_sandboxes(child):
    spawns = (
        "import subprocess, sys\n"
        "for name in ('worker.agent_process', 'sandbox'):\n"
        "    p = subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1], name], stdout=subprocess.PIPE)\n"
        "    p.stdout.readline()\n" + WAITS
    )
    below = "import os; os.environ.pop('x', None)\n" + WAITS
    spawner, frontend = child(spawns, below), child(WAITS)
    try:
        found = groups({"worker-az1-1": spawner.pid, "frontend-az1-1": frontend.pid}, os.getpid())
        assert found["worker-az1-1"] == [spawner.pid]
        [agent], [sandbox] = found["worker-az1-1 (agent)"], found["sandboxes"]
        assert b"agent_process" in Path(f"/proc/{agent}/cmdline").read_bytes()
        assert Path(f"/proc/{sandbox}/cmdline").read_bytes().endswith(b"sandbox\0")
        assert found["supervisor"] == [os.getpid()]
        assert found["frontend-az1-1"] == [frontend.pid]
    finally:
        for pid in Path(f"/proc/{spawner.pid}/task/{spawner.pid}/children").read_text().split():
            os.kill(int(pid), 9)


def test_busy_time_leaves_out_idle_and_waiting():
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert busy_s("cpu  100 20 30 9999 8888 4 5 777 0 0\ncpu0 1 1 1 1 1 1 1\n") == pytest.approx(159 * tick_s)


def test_a_load_of_others_is_noticed_and_one_that_is_measured_is_not(child):
    burns = "import time\nprint('ready', flush=True)\nwhile True: pass"
    process = child(burns)
    known, unknown = Others(lambda: [process.pid]), Others(list)
    began, begun_s = time.monotonic(), spent_s(process.pid)
    while (burnt_s := spent_s(process.pid) - begun_s) < 0.5:
        assert time.monotonic() < began + DEADLINE_S
        time.sleep(0.02)
    burnt_percent = burnt_s / (time.monotonic() - began) * 100     # what it got, on a machine that others load as well
    assert unknown.percent() - known.percent() > burnt_percent / 2
    assert "NOT" in described(10.1, 2)
    assert "NOT" not in described(9.9, 2)


def test_files_of_a_state_directory_are_added_up_by_place(tmp_path):
    state = State(tmp_path)
    state.prepare()
    for node in ("worker-az1-1", "worker-az2-1"):
        folder = state.node(node) / "agent/logs/a-1"
        folder.mkdir(parents=True)
        (folder / "current.ndjson").write_bytes(os.urandom(1 << 20))
    state.log("frontend-az1-1").write_bytes(os.urandom(3 << 20))
    found = traces.traces(state, [os.getpid()])
    assert 2.0 <= found["agent/logs files"] < 2.2
    assert 3.0 <= found["longest service log"] < 3.1
    assert not any("frontend" in name for name in found)
    assert found["mounts"] > 0
    assert found["namespaces"] >= 7
    assert (found["cgroups"], found["loops"]) == (0, 0)
    assert {name.rsplit(" ", 1)[-1] for name in found} <= RULES.keys(), "each has its rule"


# ---------------------------------------------------------------- load


@pytest.fixture
def server():
    """Keeps the bodies of POSTs; every tenth is refused."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            assert self.headers["x-quoted"] == 'a "b" \\c'
            seen.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(429 if len(seen) % 10 == 0 else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield http, seen
        http.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: deploy/debian-packages.sh --bench")
def test_load_sends_the_request_and_tells_refusals_apart(server):
    http, seen = server
    request = Request(
        url=f"http://127.0.0.1:{http.server_port}/", headers={"x-quoted": 'a "b" \\c'}, body=b'{"text": "a\\nb"}'
    )
    measured = wrk(request, clients=2, seconds=1)
    assert set(seen) == {request.body}
    assert measured.requests <= len(seen)
    assert abs(measured.requests / 10 - measured.refused) <= 1
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert measured.requests / 10 < measured.rate < measured.requests * 1.2     # of a second, and of what came on top


def test_load_without_a_server_is_no_measurement():
    with pytest.raises(NoLoad):
        wrk(Request(url="http://127.0.0.1:9/", headers={}), clients=1, seconds=1)


def test_missing_generator_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoLoad, match="--bench --install"):
        wrk(Request(url="http://127.0.0.1:9/", headers={}), clients=1, seconds=1)


def test_percentile_is_a_value_that_was_seen():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([1.0, 5.0], 0.99) == 5.0
