"""Three real counting processes over gRPC with mutual TLS on loopback: for the edge test and the benchmark."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from chassis import config
from chassis.certificates import Authority, TlsFiles, write_private
from chassis.config import NodeConfig
from chassis.credentials import Credentials
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller
from counting.config import CountingConfig
from protos import counting_pb2, counting_rpc
from tests.counting.client import Client
from tests.counting.region import OPERATOR, A, counting
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
END_S = 60.0


class Processes:
    """Started by ``start``; ``close`` ends what is left and waits for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create()
        nodes = [counting(n).node for n in (1, 2, 3)]
        addresses = [f"127.0.0.1:{port}" for port in free_ports(9)]
        self.addresses = dict(zip(nodes, addresses[:3], strict=True))
        self.raft = dict(zip(nodes, addresses[3:6], strict=True))
        self.metrics = dict(zip(nodes, addresses[6:], strict=True))
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def network(self, caller: Caller) -> GrpcNetwork:
        return GrpcNetwork(Credentials.fixed(self.authority.issue(caller)))

    def prepare(self, n: int) -> Path:
        caller = counting(n)
        folder = self.directory / caller.node
        folder.mkdir(parents=True, exist_ok=True)   # a test may have put a disk of its own there
        tls = self.authority.issue(caller)
        files = TlsFiles(**{name: str(folder / f"{name}.pem") for name in ("authority", "certificate", "key")})
        for name in ("authority", "certificate", "key"):
            write_private(Path(getattr(files, name)), getattr(tls, name))
        settings = CountingConfig(
            node=NodeConfig(
                service="counting", node=caller.node, az=caller.az, host=caller.host,
                listen=self.addresses[caller.node], placement=(), tls=files, metrics_listen=self.metrics[caller.node],
            ),
            directory=str(folder / "raft"), members=self.raft,
        )
        path = folder / "counting.toml"
        path.write_text(config.dump(settings))
        subprocess.run(
            [sys.executable, "-m", "counting", "--config", str(path), "--init"], check=True, cwd=ROOT
        )
        return path

    def launch(self, n: int) -> None:
        name = counting(n).node
        path = self.directory / name / "counting.toml"
        log = (self.directory / name / "log").open("ab")
        self.running[name] = subprocess.Popen(
            [sys.executable, "-m", "counting", "--config", str(path)], cwd=ROOT, stderr=log
        )
        log.close()

    def start(self) -> "Processes":
        for n in (1, 2, 3):
            self.prepare(n)
        for n in (1, 2, 3):
            self.launch(n)
        return self

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait(END_S)

    async def set_limit(self, client: Client, limit: int) -> None:
        """By whom this client holds to be the leader, as soon as somebody leads."""
        request = counting_pb2.SetAccountLimitRequest(account=A, limit=limit)
        async with asyncio.timeout(END_S):
            while not await self._sets_limit(client.leader, request):
                await asyncio.sleep(0.05)

    async def _sets_limit(self, leader: str, request: counting_pb2.SetAccountLimitRequest) -> bool:
        if leader not in self.running:
            return False
        channel = self.network(OPERATOR).connect(self.addresses[leader], service="counting")
        try:
            answer = await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=12)
        except Fault:
            return False    # it ended, or nobody follows it any more
        finally:
            await channel.close()
        return answer.WhichOneof("outcome") == "generation"

    def cpu_s(self, name: str) -> float:
        """User and system time of a process so far."""
        fields = Path(f"/proc/{self.running[name].pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> dict[str, int]:
        """Ends all by SIGTERM; returns their exit statuses."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        statuses = {}
        for name, process in self.running.items():
            try:
                statuses[name] = process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[name] = process.wait(END_S)
        self.running = {}
        return statuses
