"""State directory, public address, topology, command line: what is refused says what to do."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from labda import endpoint
from labda.__main__ import COMMANDS, main
from labda.api import Answer
from labda.commands import invoke, logs
from labda.console import Console
from labda.phases import describe, parse
from labda.refusal import Refusal, Status
from labda.state import State
from labda.target import COMPOSE, EMBEDDED, state_of
from labda.topology import Topology
from protos import worker_pb2
from storage.sqlite_file import METADATA_FILE, SCHEMA_VERSION, prepare


def test_a_directory_serves_one_cluster(tmp_path):
    state = State(tmp_path / "s")
    state.prepare()
    assert state.holder() is None
    with state.lock():
        assert state.holder() == os.getpid()
        program = (
            "from pathlib import Path; from labda.state import State\n"
            f"with State(Path({str(state.root)!r})).lock(): pass"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                               cwd=Path(__file__).parents[2])
        assert f"already runs in {state.root} (pid {os.getpid()})" in other.stderr
    assert state.holder() is None


def test_a_newer_directory_is_refused(tmp_path):
    state = State(tmp_path)
    state.prepare()
    (tmp_path / "version").write_text("2\n")
    with pytest.raises(Refusal, match=r"written by a newer labda \(format 2"):
        state.prepare()


def up(state):
    """`labda up` as a person runs it; it is refused before anything is started."""
    done = subprocess.run(
        [sys.executable, "-m", "labda", "up", "--state", str(state), "--listen", "127.0.0.1:0"], capture_output=True,
        text=True, check=False, cwd=Path(__file__).parents[2], timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("labda: ")
    assert done.stderr.count("\n") == 1
    assert not list((state / "logs").glob("*.log")), "a process was started"
    return done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the host is refused first")
def test_a_state_directory_that_can_not_be_used_is_refused_by_up(tmp_path):
    State(tmp_path).prepare()
    store = tmp_path / "store" / METADATA_FILE
    prepare(store, busy_s=1.0)
    with contextlib.closing(sqlite3.connect(store)) as newer, newer:
        newer.execute("UPDATE store SET schema_version = ?", (SCHEMA_VERSION + 1,))
    assert f"{store} has schema version {SCHEMA_VERSION + 1} and this program knows versions up to" in up(tmp_path)
    store.write_bytes(b"something else" * 1000)
    assert "can't be opened as a metadata store: file is not a database" in up(tmp_path)
    (tmp_path / "version").write_text("2\n")
    assert "written by a newer labda (format 2" in up(tmp_path)
    store.unlink()
    (tmp_path / "version").write_text("1\n")
    with State(tmp_path).lock():
        assert f"a cluster already runs in {tmp_path} (pid {os.getpid()})" in up(tmp_path)


def test_records_are_for_their_owner_only(tmp_path):
    state = State(tmp_path)
    state.write("root.json", {"account": "0", "access_key_id": "a", "secret_access_key": "b"})
    assert (tmp_path / "root.json").stat().st_mode & 0o777 == 0o600
    assert state.credentials().secret == "b"
    (tmp_path / "root.json").write_text("{")
    with pytest.raises(Refusal, match="damaged"):
        state.credentials()


def test_a_port_in_use_names_its_process():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Refusal, match=rf"127.0.0.1:{port} .*by .*\(pid {os.getpid()}\).*--listen"):
            endpoint.reserve(f"127.0.0.1:{port}")
    with endpoint.reserve("127.0.0.1:0") as held, socket.socket() as frontend:
        port = held.getsockname()[1]
        assert port
        frontend.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        frontend.bind(("127.0.0.1", port))
        frontend.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # the held socket doesn't listen: every connection reaches the frontend


def test_a_port_that_another_cluster_has_names_that_cluster(tmp_path):
    """Its frontends are processes like any other, but nobody ends one of them."""
    root = tmp_path / "a b"
    (root / "config").mkdir(parents=True)
    (root / "processes.json").write_text("[]")
    program = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
        "time.sleep(600)"
    )
    frontend = subprocess.Popen(
        [sys.executable, "-c", program, "--config", str(root / "config" / "frontend-az1-1.toml")],
        stdout=subprocess.PIPE, text=True,
    )
    try:
        assert frontend.stdout is not None
        port = frontend.stdout.readline().strip()
        with pytest.raises(Refusal) as refused:
            endpoint.reserve(f"127.0.0.1:{port}")
    finally:
        frontend.kill()
        frontend.communicate()
    assert refused.value.message == (
        f"can't listen on 127.0.0.1:{port} (address already in use, by the cluster in {root}): end it with "
        f"`labda down --state '{root}'`, or choose another address with --listen"
    )


@pytest.mark.parametrize(("listen", "said"), [
    ("192.0.2.1:9000", "--listen names 192.0.2.1, which is no address of this host: name one"),
    ("no host:9000", "--listen names no host, which can't be found ("),
    ("a..b:9000", "--listen names a..b, which can't be found ("),
])
def test_an_address_that_is_not_this_hosts_is_nobodys_to_end(listen, said):
    with pytest.raises(Refusal) as refused:
        endpoint.reserve(listen)
    assert refused.value.message.startswith(said)
    assert "Errno" not in refused.value.message
    assert refused.value.status is Status.USAGE


@pytest.mark.parametrize(
    ("listen", "url"),
    [("127.0.0.1:9000", "http://127.0.0.1:9000"), ("0.0.0.0:80", "https://127.0.0.1:80"),
     ("[::]:80", "https://[::1]:80"), ("10.1.2.3:9000", "https://10.1.2.3:9000"), ("[::1]:1", "http://[::1]:1")],
)
def test_the_url_of_an_address(listen, url):
    assert endpoint.url(listen) == url


@pytest.mark.parametrize("listen", ["9000", "127.0.0.1", ":9000", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_odd_address_is_refused(listen):
    with pytest.raises(Refusal, match="HOST:PORT"):
        endpoint.parse(listen)


@pytest.mark.parametrize(("azs", "members"), [(1, 3), (2, 3), (3, 3), (4, 3), (5, 5), (7, 5), (9, 5)])
def test_counting_has_an_odd_number_of_members(azs, members):
    topology = Topology(azs=azs)
    assert topology.counting_members == members
    names = [member.node for member in topology.members()]
    assert len(names) == len(set(names)) == members + 4 + 2 * azs
    assert {member.az for member in topology.members()} == {f"az{n}" for n in range(1, azs + 1)}


def test_the_default_cluster():
    nodes = {member.node: (member.az, member.host) for member in Topology().members()}
    assert nodes == {
        "counting-az1": ("az1", "control-az1"), "counting-az2": ("az2", "control-az2"),
        "counting-az3": ("az3", "control-az3"), "placement-az1": ("az1", "control-az1"),
        "placement-az2": ("az2", "control-az2"), "manager-az2": ("az2", "control-az2"),
        "manager-az3": ("az3", "control-az3"),
        "frontend-az1-1": ("az1", "control-az1"), "frontend-az2-1": ("az2", "control-az2"),
        "frontend-az3-1": ("az3", "control-az3"),
        "worker-az1-1": ("az1", "host-az1-1"), "worker-az2-1": ("az2", "host-az2-1"),
        "worker-az3-1": ("az3", "host-az3-1"),
    }


@pytest.mark.parametrize("argv", [["up", "--azs", "0"], ["up", "--workers-per-az", "21"], ["up", "--listen", "x"]])
def test_a_wrong_command_line_is_one_sentence(argv, tmp_path, capsys):
    assert main([*argv, "--state", str(tmp_path / "s")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("argv", [["env"], ["status"], ["invoke", "f"], ["logs", "f"]])
def test_without_a_cluster_every_command_says_how_to_start_one(argv, tmp_path, capsys):
    assert main([*argv, "--state", str(tmp_path / "s")]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"labda up --state {tmp_path / 's'}" in said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert COMMANDS[command].split(" ")[-1] in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    "words", [["status"], ["env"], ["deploy", "."], ["up"], ["down"], ["key", "list"]], ids=" ".join
)
@pytest.mark.parametrize("below", ["", "/further"])
def test_a_state_directory_that_is_a_file_is_refused(words, below, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*words, "--state", f"{tmp_path}/file{below}"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"{tmp_path}/file is a file: name a folder with --state\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("scale", ["1/0", "0", "-1", "nan", "1.5", "inf", "x", "1/2/3", ""])
def test_a_time_scale_out_of_its_range_is_told_the_range(scale, tmp_path, capsys):
    assert main(["up", f"--time-scale={scale}", "--state", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert f"--time-scale is {scale!r}, it must be a share above 0 and at most 1" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["", "detached"])
def test_what_up_is_to_deploy_is_read_before_anything_is_made(detach, tmp_path, capsys):
    assert main(["up", *detach, "--deploy", f"{tmp_path}/none", "--state", f"{tmp_path}/s"]) == 2
    assert f"{tmp_path}/none does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the host is refused first")
@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["", "detached"])
def test_a_port_in_use_is_told_before_anything_is_made(detach, tmp_path):
    """In a process of its own: one in which gRPC has threads can't try whether there are namespaces."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = ["up", *detach, "--listen", f"127.0.0.1:{server.getsockname()[1]}", "--state", f"{tmp_path}/s"]
        told = subprocess.run([sys.executable, "-m", "labda", *words], capture_output=True, text=True, check=False)
    assert (told.returncode, "can't listen on" in told.stderr) == (1, True), told.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_backup_that_is_not_there_is_told_before_anything_is_made(tmp_path, capsys):
    assert main(["restore", f"{tmp_path}/none", "--state", f"{tmp_path}/s"]) == 2
    assert f"{tmp_path}/none does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "said"), [
    (["chaos", "check", "{}/none"], "{}/none does not exist: name a history"),
    (["chaos", "check", "{}"], "{} is no file: name a history"),
    (["deploy", "{}/none"], "{}/none does not exist: name a folder or a zip archive"),
    (["invoke", "f", "--payload", "@{}/none"], "can't read the payload from {}/none (No such file or directory)"),
    (["backup", "{}/none/file"], "{}/none/file can't be there: {}/none is no folder"),
    (["backup", "{}"], "{} is a folder: name a file"), (["restore", "{}"], "{} is no file: name what"),
], ids=lambda case: " ".join(case) if isinstance(case, list) else "")
def test_a_file_that_is_not_there_is_the_command_lines_fault(words, said, tmp_path, capsys):
    state = State(tmp_path / "s")
    with state.stores_to_itself():      # what looks for a cluster finds one
        state.write("root.json", {"account": "0", "access_key_id": "a", "secret_access_key": "b"})
        state.write("cluster.json", {"endpoint": "http://127.0.0.1:1", "region": "us-east-1"})
        assert main([*(word.replace("{}", str(tmp_path)) for word in words), "--state", str(state.root)]) == 2
    told = capsys.readouterr().err
    assert said.replace("{}", str(tmp_path)) in told
    assert told.count("\n") == 1
    assert "Errno" not in told


@pytest.mark.parametrize(("text", "said"), [
    ('{"a": 1}\n', "line 1 is no record of a run (it has no 'type')"), ("[]\n", "line 1 is no record of a run ("),
    ('{"node": "x"}\n', "these are not all traces of processes: it has no 'at'"), ("\xff\n", "is no record of a run"),
])
def test_a_file_that_is_no_history_is_told_what_it_lacks(text, said, tmp_path, capsys):
    (tmp_path / "file").write_text(text)
    assert main(["chaos", "check", str(tmp_path / "file")]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Error(" not in told


def test_a_hint_means_the_cluster_that_it_is_about(tmp_path):
    assert state_of(EMBEDDED, None).words == state_of(EMBEDDED, state_of(EMBEDDED, None).root).words == ""
    assert state_of(COMPOSE, None).words == " --target compose"
    assert state_of(EMBEDDED, tmp_path / "a b").words == f" --state '{tmp_path}/a b'"
    assert state_of(COMPOSE, tmp_path).words == f" --target compose --state {tmp_path}"


@pytest.mark.parametrize("payload", [b"[" * 3000 + b"]" * 3000, b"1" * 5000], ids=["deep", "long"])
def test_what_is_json_is_the_apis_to_judge_whatever_this_reader_can_take(payload, tmp_path):
    (tmp_path / "payload.json").write_bytes(payload)
    assert invoke.read_payload(f"@{tmp_path}/payload.json") == payload


def test_a_logs_carriage_returns_are_ends_of_lines(capsys):
    """Runtimes join the lines of one record by them, tracebacks above all."""
    logs._print(worker_pb2.LogLines.Line(message="Traceback:\r  File\r\nKeyError"))
    assert capsys.readouterr().out == "Traceback:\n  File\nKeyError\n"


def test_a_payload_that_is_no_json_is_refused_before_it_is_sent(tmp_path, capsys):
    assert main(["invoke", "f", "--payload", "hello", "--state", str(tmp_path)]) == 2
    assert "not JSON" in capsys.readouterr().err


def test_output_without_a_terminal_is_plain(capsys):
    console = Console()
    console.live("never seen")
    console.line("labda 0.1", "3 AZs", "ready in 3.1 s")
    console.plain("done")
    out = capsys.readouterr().out
    assert out == f"{'labda 0.1  3 AZs':<80}ready in 3.1 s\ndone\n"


def test_a_mirror_whose_reader_went_away_ends_nothing(capsys):
    """`labda up --detach | head -1`: the supervisor speaks to somebody who has gone."""
    reader, writer = os.pipe()
    console = Console(mirror=os.fdopen(writer, "w"))
    console.plain("one")
    os.close(reader)
    console.plain("two")
    console.plain("three")
    console.release()
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_detached_start_goes_on_waiting_when_nobody_reads_it_any_more():
    program = "from labda.commands.up import _say\nfor _ in range(3): _say('line\\n')\nraise SystemExit(7)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 7
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_phases_in_words():
    headers = {"x-labda-phases": "permit=0.01,place=1.2,code=3,sandbox=9,runtime=45,init=2,run=1"}
    assert describe(Answer(200, headers, b"", 0.0612)) == (
        "cold 61 ms (permit 0, place 1, code 3, sandbox 9, runtime 45, init 2, run 1)"
    )
    assert describe(Answer(200, {"x-labda-phases": "permit=0,run=0.5"}, b"", 0.00092)) == "warm 0.9 ms"
    assert parse("") == {}
