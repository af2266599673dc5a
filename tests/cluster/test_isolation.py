"""What a function sees and can't do, from inside its sandbox."""

import pytest

LOOK = '''
import json, os, pathlib, resource, socket, subprocess

def read(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError as error:
        return error.__class__.__name__

def write(path):
    try:
        pathlib.Path(path).write_text("x")
        return "written"
    except OSError as error:
        return os.strerror(error.errno)

def connect(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
        return "connected"
    except OSError as error:
        return error.__class__.__name__

def handler(event, context):
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    return {
        "uid": os.getuid(), "gid": os.getgid(), "cwd": os.getcwd(),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "effective": status["CapEff"].strip(), "bounding": status["CapBnd"].strip(),
        "no_new_privs": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
        "interfaces": [line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]],
        "root": sorted(os.listdir("/")),
        "writes": {path: write(path) for path in ("/var/task/x", "/var/runtime/x", "/opt/x", "/etc/x", "/x", "/tmp/x")},
        "shadow": read("/etc/shadow"), "kcore": read("/proc/kcore"), "sysrq": write("/proc/sysrq-trigger"),
        "memory_kb": int(read("/proc/meminfo").split()[1]),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
        "internet": connect("1.1.1.1", 53), "metadata": connect("169.254.169.254", 80),
        "peers": [connect("127.0.0.1", port) for port in event["ports"]],
        "user": read("/etc/passwd"),
        "tmp_bytes": os.statvfs("/tmp").f_bavail * os.statvfs("/tmp").f_frsize,
    }
'''


@pytest.fixture(scope="module")
def seen(cluster, client):
    """One look from inside, for all tests here."""
    from tests.cluster.cluster import Functions

    functions = Functions(client)
    ports = [int(process["address"].rsplit(":", 1)[1]) for process in cluster.status()["processes"]]
    ports += [int(process["metrics"].rsplit(":", 1)[1]) for process in cluster.status()["processes"]]
    ports.append(int(cluster.environment()["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    try:
        result = functions.call(functions.make(LOOK), {"ports": ports})
    finally:
        functions.close()
    assert result.error is None, result.payload
    return result.payload


def test_it_is_nobody_special(seen):
    assert (seen["uid"], seen["gid"]) != (0, 0)
    assert "sbx_user1051" in seen["user"]
    assert seen["cwd"] == "/var/task"
    assert int(seen["effective"], 16) == 0
    assert int(seen["bounding"], 16) == 0
    assert seen["no_new_privs"] == "1"
    assert seen["seccomp"] == "2"


def test_it_sees_its_own_processes_only(seen):
    assert len(seen["processes"]) <= 3


def test_only_tmp_is_writable(seen):
    writable = {path for path, outcome in seen["writes"].items() if outcome == "written"}
    assert writable == {"/tmp/x"}
    assert seen["tmp_bytes"] == pytest.approx(538_333_184, rel=0.03)  # what AWS gives for 512 MB


def test_the_hosts_files_are_not_there(seen):
    assert seen["shadow"] == "FileNotFoundError"
    assert not {"home", "root", "work", "boot", "srv"} & set(seen["root"])
    assert seen["kcore"] in {"", "PermissionError", "FileNotFoundError"}
    assert seen["sysrq"] != "written"


def test_memory_shows_the_sandboxs_own_size(seen):
    assert seen["memory_kb"] == 128 * 1024


def test_the_network_is_its_own_loopback(seen):
    assert seen["interfaces"] == ["lo"]
    assert seen["internet"] != "connected"
    assert seen["metadata"] != "connected"
    assert "connected" not in seen["peers"]


def test_limits(seen):
    assert seen["nofile"] == [1024, 1024]
    assert seen["core"][0] == 0


def test_two_functions_share_nothing(functions):
    write = functions.make(
        "import os, pathlib\ndef handler(event, context):\n    pathlib.Path('/tmp/secret').write_text('s')\n"
        "    return sorted(os.listdir('/tmp'))\n"
    )
    look = functions.make("import os\ndef handler(event, context):\n    return sorted(os.listdir('/tmp'))\n")
    assert functions.call(write).payload == ["secret"]
    assert functions.call(look).payload == []
