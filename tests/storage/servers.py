"""Three members of a store as processes of this host, with TLS and users, for as long as a test module needs them.

Owns starting, pausing, killing and ending them, whatever becomes of the tests. The programs are what set-up put into
`.stores/bin`; without them the tests skip and say so.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.certificates import Authority, Tls, write_private
from chassis.faults import Fault, FaultCode
from chassis.grpc_network import connect_foreign
from protos.etcd_pb2 import RangeRequest
from protos.etcd_rpc import RANGE
from storage.faults import StorageFault
from storage.members import Ports, etcd_arguments, nats_configuration
from storage.nats_client import NatsClient, NatsSettings
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".stores" / "bin"
LOOPBACK = "127.0.0.1"
START_S = 60.0
AZS = ("az1", "az2", "az3")


def program(name: str) -> Path:
    path = PROGRAMS / name
    if not path.exists():
        said = PROGRAMS.parent / "missing"
        why = said.read_text().strip() if said.exists() else "`make stores` installs it"
        pytest.skip(f"{name} is missing ({why})")
    return path




class Authorities:
    """What `labda cluster init` makes for the stores."""

    def __init__(self) -> None:
        self.clients = Authority.create("labda stores CA")
        self.peers = Authority.create("labda store peers CA")

    def client(self, name: str) -> Tls:
        return self.clients.issue_plain(name)

    def write_member(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        for issuer, authority, own in ((self.clients, "ca", "server"), (self.peers, "peer-ca", "peer")):
            tls = issuer.issue_plain(name, hosts=(name, "localhost", LOOPBACK))
            (folder / f"{authority}.pem").write_bytes(tls.authority)
            (folder / f"{own}.pem").write_bytes(tls.certificate)
            write_private(folder / f"{own}.key", tls.key)


class Trio:
    """Three members, by name. They end with their process group, also when this process is killed."""

    def __init__(self, kind: str, folder: Path, authorities: Authorities | None = None) -> None:
        self.folder = folder
        self.authorities = authorities or Authorities()
        self.names = [f"{kind}-{az}" for az in AZS]
        ports = free_ports(6)
        self.ports = {
            name: Ports(client=ports[2 * at], peer=ports[2 * at + 1]) for at, name in enumerate(self.names)
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in self.names:
            self.authorities.write_member(folder / name / "tls", name)

    @property
    def addresses(self) -> list[str]:
        return [f"{LOOPBACK}:{ports.client}" for ports in self.ports.values()]

    def command(self, name: str) -> list[str]:
        raise NotImplementedError

    def start(self, name: str) -> None:
        with (self.folder / name / "log").open("ab") as log:
            # setpriv: a member must not outlive a test run that was killed.
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command(name)], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def start_all(self) -> None:
        for name in self.names:
            self.start(name)

    async def ready(self) -> None:
        """Waits until the members answer. A member that ended says why in its log."""
        for name in self.names:
            async with asyncio.timeout(START_S):
                while not await self.answers(name):
                    assert self.processes[name].poll() is None, self.log(name)[-2000:]
                    await asyncio.sleep(0.05)

    async def answers(self, name: str) -> bool:
        raise NotImplementedError

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.kill()
        process.wait()

    @contextlib.contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        for name in names:
            os.kill(self.processes[name].pid, signal.SIGSTOP)
        try:
            for name in names:
                _wait_until_stopped(self.processes[name].pid)
            yield
        finally:
            for name in names:
                os.kill(self.processes[name].pid, signal.SIGCONT)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text(errors="replace")


def _wait_until_stopped(pid: int) -> None:
    """The signal is taken by one thread, and on a busy host the others go on until that one gets a processor."""
    deadline = time.monotonic() + START_S
    while any(_state(task) not in "Tt" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} doesn't stop"
        time.sleep(0.005)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


class EtcdTrio(Trio):
    def __init__(self, folder: Path) -> None:
        self.program = program("etcd")
        self.joining: set[str] = set()
        super().__init__("etcd", folder)

    def command(self, name: str) -> list[str]:
        arguments = etcd_arguments(
            name, files=self.folder / name / "tls", data=self.folder / name / "data", listen=LOOPBACK,
            hosts=dict.fromkeys(self.names, LOOPBACK), ports=self.ports, joining=name in self.joining,
        )
        # What was written outlives `kill -9` also where it isn't synced, and the tests kill nothing harder.
        return [str(self.program), *arguments, "--unsafe-no-fsync"]

    async def control(self, *words: str) -> str:
        """`etcdctl` as the operator: what it prints. Members that know each other for less than 5 s refuse changes."""
        async with asyncio.timeout(START_S):
            while (said := await asyncio.to_thread(self._control, *words)).returncode != 0:
                assert "unhealthy cluster" in said.stderr, said.stderr
                await asyncio.sleep(0.2)
        return said.stdout

    def _control(self, *words: str) -> "subprocess.CompletedProcess[str]":
        folder = self.folder / "operator"
        if not folder.exists():
            folder.mkdir()
            tls = self.authorities.client("operator")
            for name, content in (("ca.pem", tls.authority), ("client.pem", tls.certificate), ("client.key", tls.key)):
                (folder / name).write_bytes(content)
        return subprocess.run(
            [str(program("etcdctl")), f"--endpoints={','.join(self.addresses)}", f"--cacert={folder / 'ca.pem'}",
             f"--cert={folder / 'client.pem'}", f"--key={folder / 'client.key'}", *words],
            capture_output=True, text=True, check=False, timeout=30,
        )

    async def answers(self, name: str) -> bool:
        tls = self.authorities.client("operator")
        channel = connect_foreign(f"{LOOPBACK}:{self.ports[name].client}", tls, name=name)
        try:
            # Something that needs a leader: a read of nothing.
            await channel.call(RANGE, RangeRequest(key=b"any", count_only=True), timeout_s=5.0)
        except Fault as fault:
            return fault.code is FaultCode.DENIED or "user name" in fault.message
        finally:
            await channel.close()
        return True


class NatsTrio(Trio):
    def __init__(self, folder: Path, authorities: Authorities | None = None) -> None:
        self.program = program("nats-server")
        super().__init__("nats", folder, authorities)

    def command(self, name: str) -> list[str]:
        configuration = self.folder / name / "nats.conf"
        configuration.write_text(nats_configuration(
            name, files=self.folder / name / "tls", data=self.folder / name / "data", listen=LOOPBACK,
            hosts=dict.fromkeys(self.names, LOOPBACK), ports=self.ports, synced=False,
        ))
        return [str(self.program), "--config", str(configuration)]

    async def answers(self, name: str) -> bool:
        """Whether JetStream has a leader, as this member sees it."""
        client = NatsClient(
            [f"{LOOPBACK}:{self.ports[name].client}"], self.authorities.client("operator"),
            NatsSettings(answer_s=5.0, attempt_s=2.0),
        )
        try:
            return "error" not in await client.api("INFO", {}, until=client.until())
        except StorageFault:
            return False
        finally:
            await client.close()


class Proxy:
    """Between one client and one member: passes bytes, or holds back what the member answers, or refuses.

    What it held back is passed on afterwards, as by a network that hung.
    """

    def __init__(self, address: str) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._open = True
        listening = socket.create_server((LOOPBACK, 0))
        self.address = f"{LOOPBACK}:{listening.getsockname()[1]}"
        self._serving = asyncio.ensure_future(asyncio.start_server(self._accept, sock=listening))

    def hold_answers(self) -> None:
        self._answering.clear()

    def refuse(self) -> None:
        """Cuts what is connected and lets nobody connect."""
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        self._open = True
        self._answering.set()

    async def close(self) -> None:
        self.restore()
        self.refuse()
        (await self._serving).close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also of a task that was cancelled before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            back, forth = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, forth}
        self._writers |= both
        try:
            await asyncio.gather(self._pass(reader, forth), self._pass(back, writer, self._answering))
        except OSError:
            pass  # either end has gone: so does the other
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, when: asyncio.Event | None = None
    ) -> None:
        while content := await reader.read(65536):
            if when is not None:
                await when.wait()
            writer.write(content)
            await writer.drain()
        raise ConnectionResetError
