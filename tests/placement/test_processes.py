"""Real processes over gRPC: a placement and two managers start, find each other, hand over, and end cleanly."""

import asyncio
import signal
import subprocess
import sys

import pytest

from chassis import config
from chassis.certificates import Authority, TlsFiles
from chassis.clock import SystemClock
from chassis.config import NodeConfig
from chassis.credentials import Credentials
from chassis.directory import Directory
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller
from placement.config import PlacementConfig
from protos import placement_pb2
from tests.ports import free_port
from worker_manager.config import ManagerConfig


class Processes:
    """Starts ``python -m SERVICE`` as NODE with a certificate of its own."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.authority = Authority.create()
        (tmp_path / "ca.pem").write_bytes(self.authority.pem)
        self.seed = f"127.0.0.1:{free_port()}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __call__(self, service, node):
        tmp_path = self.tmp_path
        caller = Caller(service=service, node=node, az="az1", host="h1")
        tls = self.authority.issue(caller)
        (tmp_path / f"{node}.pem").write_bytes(tls.certificate)
        (tmp_path / f"{node}.key").write_bytes(tls.key)
        settings = NodeConfig(
            service=service, node=node, az="az1", host="h1", placement=(self.seed,), check=True,
            listen=self.seed if service == "placement" else "127.0.0.1:0",
            tls=TlsFiles(authority=str(tmp_path / "ca.pem"), certificate=str(tmp_path / f"{node}.pem"),
                         key=str(tmp_path / f"{node}.key")),
        )
        whole = (
            PlacementConfig(node=settings, store=f"sqlite://{tmp_path}/store") if service == "placement"
            else ManagerConfig(node=settings)
        )
        file = tmp_path / f"{node}.toml"
        file.write_text(config.dump(whole))
        with (tmp_path / f"{node}.log").open("a") as log:
            self.running[node] = subprocess.Popen(
                [sys.executable, "-m", service, "--config", str(file)], stdout=log, stderr=log
            )
        return self.running[node]


@pytest.fixture
def spawn(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    for process in processes.running.values():
        process.kill()
        process.wait()


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_processes_find_each_other_hand_over_and_end(spawn):
    placement = spawn("placement", "placement-az1")
    first = spawn("worker_manager", "manager-az1")
    operator = Caller(service="operator", node="operator", az="az1", host="h1")
    directory = Directory(
        network=GrpcNetwork(Credentials.fixed(spawn.authority.issue(operator))), clock=SystemClock(),
        seeds=(spawn.seed,),
        node=placement_pb2.Node(node="operator", service="operator", az="az1", host="h1"),
    )
    directory.start()
    try:
        def role(node):
            return directory.nodes[node].role if node in directory.nodes else "unknown"

        await until(lambda: role("placement-az1") == "active")
        await until(lambda: role("manager-az1") == "active")
        assert "operator" not in directory.nodes
        spawn("worker_manager", "manager-az2")
        await until(lambda: role("manager-az2") == "standby")
        first.send_signal(signal.SIGKILL)
        await until(lambda: role("manager-az2") == "active")
        # Placement is killed and started again: it leads under a higher term, from its own store.
        term = directory.term
        placement.send_signal(signal.SIGKILL)
        placement.wait()
        again = spawn("placement", "placement-az1")
        await until(lambda: directory.term > term)
        await until(lambda: role("manager-az2") == "active")
        again.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(again.wait, 60) == 0
    finally:
        await directory.close()
