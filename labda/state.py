"""The state directory of one embedded cluster: what lies where, who may read it, and that one cluster uses it.

    version             format of this directory; a newer one is refused
    lock                held (flock) by the supervisor, whose pid is in it
    root.json           access key of the first account, for its owner alone
    data.key            encrypts secrets in the store and signs code tickets, for its owner alone
    ca/ tls/            the cluster's CA; one certificate and key per process
    config/NODE.toml    what each process was told
    nodes/NODE/         what a process keeps: journals, code caches, logs of functions
    store/              metadata, code, lease records
    logs/NODE.log       what each process wrote (what is over 16 MB goes to NODE.log.1), and supervisor.log
    cluster.json        addresses of what runs, for other commands
    processes.json      pids with their start times, so that leftovers of a crash are found
    control.sock        what other commands may ask of the supervisor (``labda.control``)
    chaos/TIME/         histories of `labda chaos run`

Owns the layout. Refuses to know what the services put into their folders.
"""

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from labda.refusal import Refusal, Status

if TYPE_CHECKING:
    from storage.open import Stores

VERSION = 1
_PROJECT = Path(__file__).resolve().parent.parent


def default_state() -> Path:
    """A checkout keeps its cluster inside itself, an installed labda in the system's place for such data."""
    if (_PROJECT / "Makefile").exists():
        return _PROJECT / ".labda"
    return Path("/var/lib/labda")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The root access key. ``repr`` keeps the secret to itself."""

    account: str
    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials(account={self.account!r}, key_id={self.key_id!r})"


@dataclass(frozen=True, slots=True)
class State:
    """Paths below one root."""

    root: Path

    @property
    def default(self) -> Path:
        return default_state()

    @property
    def words(self) -> str:
        """What makes a command mean this cluster, with a blank in front; empty for the default one."""
        target = "" if self.target == "embedded" else f" --target {self.target}"
        return target + ("" if self.root == self.default else f" --state {shlex.quote(str(self.root))}")

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def target(self) -> str:
        """Which kind of cluster it is of (``labda.target``)."""
        return "embedded"

    @property
    def where_logs_are(self) -> str:
        """Of the cluster's processes, for people."""
        return f"in {self.root / 'logs'}"

    @property
    def end_command(self) -> str:
        """What ends the cluster and keeps what it stored."""
        return "labda down"

    @property
    def resolver(self) -> Callable[[str], str] | None:
        """From registered addresses to ones that this host reaches; None where they are the same."""
        return None

    @property
    def authority(self) -> Path:
        return self.root / "ca" / "ca.pem"

    @property
    def data_key(self) -> Path:
        return self.root / "data.key"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def certificate(self, node: str) -> Path:
        return self.root / "tls" / f"{node}.pem"

    def key(self, node: str) -> Path:
        return self.root / "tls" / f"{node}.key"

    def config(self, node: str) -> Path:
        return self.root / "config" / f"{node}.toml"

    def node(self, node: str) -> Path:
        return self.root / "nodes" / node

    def raft(self, node: str) -> Path:
        """A counting member's journal and dump."""
        return self.node(node) / "raft"

    def clock_offset(self, node: str) -> Path:
        """By how much its wall clock is off, in a cluster whose clocks can be moved."""
        return self.node(node) / "clock-offset"

    def log(self, node: str) -> Path:
        return self.root / "logs" / f"{node}.log"

    # ------------------------------------------------------------ small records

    def read(self, name: str) -> Any:
        """A JSON file of the directory, or None when it isn't there."""
        try:
            return json.loads((self.root / name).read_text())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise Refusal(f"{self.root / name} belongs to another user: run labda as its owner", Status.HOST) from error
        except ValueError as error:
            raise Refusal(f"{self.root / name} is damaged ({error}): remove it and start again") from error

    def write(self, name: str, value: Any) -> None:
        """Replaces a JSON file, whole or not at all; readable by its owner only."""
        scratch = self.root / (name + ".new")
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self.root / name)

    def credentials(self) -> Credentials:
        """Raises Refusal when no cluster was ever started here."""
        found = self.read("root.json")
        if found is None:
            raise Refusal(
                f"there is no cluster in {self.root}: start one with `labda up --state {self.root}`", Status.NO_CLUSTER
            )
        return Credentials(found["account"], found["access_key_id"], found["secret_access_key"])

    def cluster(self) -> dict[str, Any]:
        """What runs now. Raises Refusal when nothing does."""
        found: dict[str, Any] | None = self.read("cluster.json")
        if found is None or self.holder() is None:
            raise Refusal(
                f"no cluster runs in {self.root}: start one with `labda up --state {self.root}`, or name its state "
                "directory with --state", Status.NO_CLUSTER,
            )
        return found

    # ------------------------------------------------------------ one cluster at a time

    def prepare(self) -> None:
        """Makes the folders. Raises Refusal for a directory that a newer version wrote."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in ("ca", "tls", "config", "nodes", "store", "logs"):
                (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise Refusal(
                f"can't make the state directory {self.root} ({error.strerror}): name another with --state", Status.HOST
            ) from error
        (self.root / "tls").chmod(0o700)
        self.check_version()
        (self.root / "version").write_text(f"{VERSION}\n")

    def check_version(self) -> None:
        path = self.root / "version"
        found = path.read_text().strip() if path.exists() else str(VERSION)
        if not found.isdigit() or int(found) > VERSION:
            raise Refusal(
                f"{self.root} was written by a newer labda (format {found}, this one knows up to {VERSION}): "
                "upgrade labda, or name another directory with --state"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory for this process. Raises Refusal, naming who has it."""
        with (self.root / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise Refusal(
                    f"a cluster already runs in {self.root} (pid {file.read().strip() or 'unknown'}): end it with "
                    f"`labda down --state {self.root}`, or name another directory with --state"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def stores(self) -> "Stores":
        """Opens the cluster's stores with the operator's rights. Raises StorageFault; Refusal where there is none."""
        from chassis.clock import SystemClock  # noqa: PLC0415 - most commands open none
        from storage.open import open_store  # noqa: PLC0415

        return open_store(f"sqlite://{quote(str(self.store))}", SystemClock())

    @contextlib.contextmanager
    def stores_to_itself(self) -> Iterator[None]:
        """No service uses the stores meanwhile: what it remembers would be newer than they are. Raises Refusal."""
        self.prepare()
        with self.lock():
            yield

    def holder(self) -> int | None:
        """Pid of the supervisor that holds the directory, None when nobody does."""
        try:
            with (self.root / "lock").open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read().strip()
                    return int(text) if text.isdigit() else -1
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise Refusal(f"{self.root} belongs to another user: run labda as its owner", Status.HOST) from error
        return None
