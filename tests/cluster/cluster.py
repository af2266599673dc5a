"""A real embedded cluster for tests: started by the command a person types, driven by real clients, then inspected.

Owns the process and the looking for what it left behind. Every wait has a deadline.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError

from labda.children import parent
from labda.commands.status import collect
from labda.launch import cluster_id
from labda.refusal import Refusal
from labda.state import State
from tests.cluster.operators import Operator

ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
ROLE = "arn:aws:iam::000000000000:role/tests"
RUNTIME = f"python3.{sys.version_info.minor}"
START_S = 60.0      # for a command, and for the end of a cluster
SETTLE_S = 60.0     # no claim: what has to happen at all may take so long on a machine that has more to do
HEALED_S = 120.0    # a process that was killed again and again is started after 30 s at most, and then has to start
Seen = TypeVar("Seen")
# One attempt: a test sees what the first request got.
ONCE = Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=60, max_pool_connections=64)


@dataclass(frozen=True)
class Footprint:
    """What one cluster has on its host. Other clusters on the same machine have their own."""

    processes: frozenset[int]
    namespaces: frozenset[str]      # of its processes, apart from the test's own
    sockets: frozenset[str]         # that its processes listen on: inode numbers
    mounts: frozenset[str]          # seen from outside, below its state directory
    cgroups: frozenset[str]
    loops: frozenset[str]           # loop devices whose image lies in its state directory
    taken_at: int                   # clock ticks since boot

    @classmethod
    def of(cls, cluster: "Cluster") -> "Footprint":
        family = cluster.family()
        root = str(cluster.root)
        return cls(
            processes=frozenset(family),
            namespaces=frozenset(n for pid in family for n in _namespaces(pid)) - frozenset(_namespaces(os.getpid())),
            sockets=frozenset(s for pid in family for s in _sockets(pid)) & _listening(),
            mounts=frozenset(
                fields[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
                if (fields := line.split())[4].startswith(root)
            ),
            cgroups=frozenset(
                str(path) for pattern in ("", "*/") for path in Path("/sys/fs/cgroup").glob(
                    f"{pattern}labda-{cluster_id(State(cluster.root))}-*"
                )
            ),
            loops=frozenset(
                backing.read_text().strip() for backing in Path("/sys/block").glob("loop*/loop/backing_file")
                if backing.read_text().startswith(root)
            ),
            taken_at=int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")),
        )

    def left(self, cluster: "Cluster") -> dict[str, list[str]]:
        """What is still there of this footprint, by kind; namespaces and sockets also when somebody else holds them.

        The kernel gives a namespace's number again: only who was there at the time can hold one of then.
        """
        now = Footprint.of(cluster)
        everywhere = {n for pid, _ in _parents() if _started(pid) <= self.taken_at for n in _namespaces(pid)}
        found: dict[str, Iterable[Any]] = {
            "processes": now.processes, "namespaces": self.namespaces & everywhere,
            "sockets": self.sockets & _listening(), "mounts": now.mounts, "cgroups": now.cgroups,
            "loop devices": now.loops,
        }
        return {kind: sorted(map(str, items)) for kind, items in found.items() if items}


class Cluster:
    """One state directory and what runs on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output: list[str] = []
        self.operator = Operator()
        self._process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        """``labda up`` in the foreground, without a terminal; returns when it says that it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "labda", "up", "--state", str(self.root), "--listen", "127.0.0.1:0", "--check",
             *arguments],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:  # the command gives up by itself after a minute
            self.output.append(line)
            if line.startswith("SIGTERM ends everything"):
                return
        self.stop()
        raise AssertionError("the cluster did not start:\n" + "".join(self.output) + self.last_words())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and waits; returns its exit status."""
        assert self._process is not None
        self.operator.close()
        if self._process.poll() is None:
            self._process.send_signal(number)
        rest, _ = self._process.communicate(timeout=START_S)
        self.output.append(rest)
        return self._process.returncode

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def last_words(self) -> str:
        """The end of every process's log, for a failure."""
        logs = sorted((self.root / "logs").glob("*.log"))
        return "\n".join(f"--- {log.stem}\n" + "\n".join(log.read_text().splitlines()[-5:]) for log in logs)

    def labda(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = START_S
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the command on this cluster."""
        return subprocess.run(
            [sys.executable, "-m", "labda", *arguments, "--state", str(self.root)], cwd=ROOT, capture_output=True,
            text=True, timeout=timeout_s, check=False, input=stdin or "",
        )

    def told(self, *arguments: str) -> Any:
        """What a command that only looks says with ``--json``, once it finds who can answer it."""
        def answer() -> str:
            said = self.labda(*arguments, "--json")
            return said.stdout if said.returncode == 0 else ""
        return json.loads(until_some(answer, f"labda {' '.join(arguments)} is answered"))

    def environment(self) -> dict[str, str]:
        """What ``eval "$(labda env)"`` sets."""
        lines = self.labda("env").stdout.splitlines()
        return dict(line.removeprefix("export ").replace("''", "").split("=", 1) for line in lines)

    def status(self) -> dict[str, Any]:
        """What ``labda status --json`` prints, once somebody leads the ledger and answers for placement."""
        def whole() -> dict[str, Any]:
            report = self.operator.run(collect(State(self.root)))
            return report if report["pools"] is not None else {}
        return until_some(whole, "the cluster says how it is")

    def function(self, name: str) -> dict[str, Any]:
        """Its row of the report, once a frontend answers with what there is."""
        return until_some(lambda: _named(self.status()["functions"], "name", name), f"{name} is told of")

    def pool(self, name: str) -> dict[str, Any]:
        """The function's own, likewise."""
        return until_some(lambda: _named(self.status()["pools"], "function", name), f"the pool of {name} is told of")

    def processes(self, service: str) -> list[dict[str, Any]]:
        return [process for process in self.status()["processes"] if process["service"] == service]

    def client(self, *, endpoint: str = "", key: tuple[str, str] | None = None, config: Config = ONCE) -> Any:
        """boto3's Lambda client, as anybody makes it. The caller closes it."""
        known = self.environment()
        key_id, secret = key or (known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])
        session = boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret, region_name=REGION)
        return session.client("lambda", endpoint_url=endpoint or known["AWS_ENDPOINT_URL"], config=config)

    def pids(self) -> dict[str, int]:
        """Of everything that the supervisor started, by node."""
        return {entry["node"]: entry["pid"] for entry in json.loads((self.root / "processes.json").read_text())}

    def family(self) -> set[int]:
        """Every living process that names this state directory or descends from one that does."""
        parents = dict(_parents())
        named = {pid for pid in parents if str(self.root) in _command(pid)} - {os.getpid()}
        return named | {pid for pid in parents if any(ancestor in named for ancestor in _ancestors(pid, parents))}

    def await_healthy(self) -> None:
        """Until every process serves again, each under the pid that the supervisor knows."""
        def healthy() -> bool:
            pids = self.pids()
            nodes = self.status()["processes"]
            return len(nodes) == len(pids) and all(
                node["health"] == "serving" and pids.get(node["node"]) in {node["pid"], parent(node["pid"])}
                for node in nodes
            )
        until(healthy, "all processes serve again", timeout_s=HEALED_S)


class Functions:
    """Makes functions for one test and deletes them afterwards."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._names: list[str] = []

    def make(self, source: str, *, handler: str = "app.handler", name: str = "", **settings: Any) -> str:
        """Creates one from the source of ``app.py`` and returns its name once it serves."""
        name = name or f"f-{uuid.uuid4().hex[:12]}"
        fields: dict[str, Any] = {"Runtime": RUNTIME, "Timeout": 30, **settings}
        self._names.append(name)
        with contextlib.suppress(self.client.exceptions.ResourceConflictException):  # an attempt's answer was lost
            answered(
                self.client.create_function, FunctionName=name, Role=ROLE, Handler=handler,
                Code={"ZipFile": archive({"app.py": source})}, **fields,
            )
        self.settle(name)
        return name

    def settle(self, name: str) -> None:
        """Until the newest revision serves; whichever frontend is asked has heard of it by then."""
        def settled() -> bool:
            found = answered(self.client.get_function_configuration, FunctionName=name)
            return bool(found["State"] == "Active" and found["LastUpdateStatus"] == "Successful")
        until(settled, f"{name} serves")

    def call(self, name: str, event: Any = None, **parameters: Any) -> "Result":
        return call(self.client, name, event, **parameters)

    def close(self) -> None:
        for name in self._names:
            with contextlib.suppress(self.client.exceptions.ResourceNotFoundException):  # the test deleted it
                answered(self.client.delete_function, FunctionName=name)


@dataclass(frozen=True)
class Result:
    """One invocation's outcome."""

    payload: Any
    error: str | None
    response: Mapping[str, Any]


def answered(operation: Callable[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    """What a client's operation answers, asked again where nobody did: who would have may just have been killed.

    For what is not a test's matter, and may be done twice.
    """
    def answer() -> dict[str, Any]:
        try:
            return operation(**parameters)
        except (ConnectTimeoutError, EndpointConnectionError, HTTPClientError):
            return {}
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise
            return {}
    return until_some(answer, f"{operation.__name__} is answered")


def call(client: Any, name: str, event: Any = None, **parameters: Any) -> Result:
    response = client.invoke(FunctionName=name, Payload=json.dumps(event), **parameters)
    body = response["Payload"].read()
    return Result(json.loads(body) if body else None, response.get("FunctionError"), response)


def served(client: Any, name: str, event: Any = None) -> "Result":
    """The outcome of an invocation, asked for again while it is throttled or nobody answers.

    A permit is free again only after the answer, when the sandbox has ended its work.
    """
    def outcome() -> Result | None:
        try:
            return call(client, name, event)
        except (ConnectTimeoutError, EndpointConnectionError, HTTPClientError):
            return None
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in {429, 503}:
                raise
            return None
    found = until_some(outcome, f"{name} serves", timeout_s=HEALED_S)
    assert found is not None, "the first that is something"
    return found


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """A zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100755 << 16
            out.writestr(entry, content)
    return buffer.getvalue()


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = SETTLE_S) -> float:
    """Polls; returns after how many seconds it held. Fails with ``what`` at the deadline, as `until_some` does."""
    began = time.monotonic()
    until_some(condition, what, timeout_s=timeout_s)
    return time.monotonic() - began


def until_some(look: Callable[[], Seen], what: str, *, timeout_s: float = SETTLE_S) -> Seen:
    """Polls; the first thing that is not empty: to look again would find another. Fails with ``what`` at the deadline.

    A command that is refused meanwhile, because who would answer has just been killed, says "not yet".
    """
    began, refusal = time.monotonic(), ""
    while True:
        try:
            if seen := look():
                return seen
        except Refusal as not_yet:
            refusal = f" ({not_yet})"
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s:g} s: {what}{refusal}"
        time.sleep(0.05)


def _named(rows: Iterable[dict[str, Any]], member: str, name: str) -> dict[str, Any]:
    return next((row for row in rows if row[member] == name), {})


# ---------------------------------------------------------------- the host


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _namespaces(pid: int) -> Iterator[str]:
    for kind in ("net", "mnt", "pid", "user"):
        try:
            yield str(Path(f"/proc/{pid}/ns/{kind}").readlink())
        except OSError:
            continue  # it ended meanwhile


def _sockets(pid: int) -> Iterator[str]:
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = str(descriptor.readlink())
            except OSError:
                continue
            if name.startswith("socket:["):
                yield name.removeprefix("socket:[").removesuffix("]")
    except OSError:
        return  # it ended meanwhile


def _listening() -> frozenset[str]:
    """Inode numbers of listening TCP sockets."""
    return frozenset(
        fields[9] for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A"
    )


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
        if state not in "ZX":
            yield int(entry.name), int(parent)


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid in parents and pid != parents[pid]:
        pid = parents[pid]
        yield pid


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
