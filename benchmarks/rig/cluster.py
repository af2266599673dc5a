"""A cluster to measure: ``labda up`` on a state directory of its own, and signed requests for it.

Nothing is scaled or switched off: what is measured is what a person gets from the same command.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from benchmarks.rig.client import Client
from benchmarks.rig.load import Request
from benchmarks.rig.processes import groups
from labda.api import Code
from labda.signing import sign
from labda.state import Credentials, State

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = f"python3.{sys.version_info.minor}"
# The least that a function can do: what is measured is the way there and back.
SOURCE = "def handler(event, context):\n    return event\n"


class Cluster:
    """``with Cluster() as cluster``: up within, gone after it, whatever happens."""

    def __init__(self, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="labda-bench-")
        self._arguments = arguments
        self.state = State(Path(self._folder.name) / "state")
        self.said: list[tuple[float, str]] = []     # what the last start printed, each with seconds since the command

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def up(self) -> None:
        """``labda up``; again after ``down``, on what is in the state directory by then."""
        command = self._command("up", "--detach", "--listen", "127.0.0.1:0", *self._arguments)
        began = time.monotonic()
        self.said = []
        with tempfile.TemporaryFile("w+") as complaints, subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process:
            assert process.stdout is not None
            self.said += [(time.monotonic() - began, line.rstrip("\n")) for line in process.stdout]
            if process.wait():
                complaints.seek(0)
                raise SystemExit(f"labda up failed: {complaints.read()}")
        self._cluster = self.state.cluster()
        self.api = self.client()

    def down(self) -> None:
        if hasattr(self, "api"):
            self.api.close()
        self.labda("down")

    def close(self) -> None:
        self.down()
        self._folder.cleanup()

    def labda(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self._command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "labda", *arguments, "--state", str(self.state.root)]

    @property
    def endpoint(self) -> str:
        endpoint: str = self._cluster["endpoint"]
        return endpoint

    def client(self, credentials: Credentials | None = None) -> Client:
        """Another connection; of the root account unless ``credentials`` say otherwise. Whoever asks closes it."""
        return Client(self.endpoint, credentials or self.state.credentials(), self._cluster["region"])

    def account(self, name: str) -> Credentials:
        """A new account and a key of it."""
        def said(*arguments: str) -> dict[str, str]:
            found = self.labda(*arguments, "--json")
            if found.returncode:
                raise SystemExit(f"labda {' '.join(arguments)} failed: {found.stderr}")
            answer: dict[str, str] = json.loads(found.stdout)
            return answer

        made = said("account", "create", name)
        key = said("key", "create", "--account", name)
        return Credentials(made["id"], key["access_key_id"], key["secret_access_key"])

    # ------------------------------------------------------------ functions

    def deploy(self, name: str, *, source: str = SOURCE, memory_mb: int = 128, timeout_s: int = 10) -> None:
        self.api.deploy(
            Code(name=name, runtime=RUNTIME, handler="app.handler", memory_mb=memory_mb, timeout_s=timeout_s,
                 archive=archive(source)),
            lambda _: None,
        )
        answer = self.api.invoke(name, b"{}")
        assert "x-amz-function-error" not in answer.headers, answer.body   # its errors would count as answers

    def workers(self) -> list[str]:
        return sorted(node for node in self._started() if node.startswith("worker-"))

    def has_code(self, worker: str, code: bytes) -> bool:
        """Whether it has unpacked this archive."""
        return any(self.state.node(worker).glob(f"**/{hashlib.sha256(code).hexdigest()}"))

    def request(self, name: str, body: bytes = b"{}", credentials: Credentials | None = None) -> Request:
        """A signed Invoke. Its signature is good for five minutes."""
        return signed_invoke(
            credentials or self.state.credentials(), self.endpoint, name, body, region=self._cluster["region"]
        )

    # ------------------------------------------------------------ processes

    def groups(self) -> dict[str, list[int]]:
        """Pids by what they are (``processes.groups``)."""
        holder = self.state.holder()
        assert holder is not None, "the cluster runs"
        return groups(self._started(), holder)

    def pids(self) -> list[int]:
        """Of every process that belongs to it."""
        return [pid for pids in self.groups().values() for pid in pids]

    def _started(self) -> dict[str, int]:
        return {entry["node"]: entry["pid"] for entry in self.state.read("processes.json")}


def signed_invoke(credentials: Credentials, endpoint: str, name: str, body: bytes, *, region: str) -> Request:
    """An Invoke, signed now."""
    path = f"/2015-03-31/functions/{name}/invocations"
    headers = sign(
        credentials, region=region, method="POST", host=urlsplit(endpoint).netloc, path=path,
        headers={"content-type": "application/json"}, body=body, at=datetime.now(UTC),
    )
    headers["Host"] = headers.pop("host")   # wrk adds one unless it finds this spelling
    return Request(url=endpoint + path, headers=headers, body=body)


def service_of(group: str) -> str:
    """"frontend-az1-1" -> "frontends", "worker-az1-1 (agent)" -> "agents": groups of one kind are added up."""
    kind = re.split(r"-az\d", group)[0]
    if group.endswith("(agent)"):
        return "agents"
    return {"worker": "spawners", "frontend": "frontends", "manager": "managers"}.get(kind, kind)


def archive(source: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        entry = zipfile.ZipInfo("app.py", (2026, 1, 1, 0, 0, 0))
        entry.external_attr = 0o100644 << 16
        out.writestr(entry, source)
    return buffer.getvalue()
