"""``python -m worker`` as it is run: spawner, unprivileged agent, gRPC with certificates, SIGTERM."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chassis.certificates import Authority, Tls, TlsFiles, write_private
from chassis.clock import SystemClock
from chassis.config import NodeConfig, dump
from chassis.credentials import Credentials
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller
from protos import worker_pb2, worker_rpc
from tests.ports import free_port
from tests.worker.region import Frame, Region, caller
from tests.worker.test_native import ROOT, RUNTIME, archive, ready
from worker.config import WorkerConfig

pytestmark = pytest.mark.usefixtures("needs_root")

DEADLINE_S = 60.0


class ProcessRegion(Region):
    """A region over gRPC whose worker is a process of its own."""

    def __init__(self) -> None:
        super().__init__(SystemClock(), archive=archive())
        self.authority = Authority.create()
        self.state = Path(tempfile.mkdtemp(prefix="labda-worker-"))
        self.process: subprocess.Popen[bytes]

    def streams(self, caller: Caller) -> FramedNetwork:
        return FramedNetwork(Credentials.fixed(self.authority.issue(caller)))

    def network(self, caller: Caller) -> GrpcNetwork:
        return GrpcNetwork(Credentials.fixed(self.authority.issue(caller)))

    async def __aenter__(self):
        await self.serve("127.0.0.1:0", "127.0.0.1:0")
        address = f"127.0.0.1:{free_port()}"
        config = self.state / "worker.toml"
        config.write_text(dump(self.config(address)))
        self.process = subprocess.Popen([sys.executable, "-m", "worker", "--config", str(config)], cwd=ROOT)
        try:
            await self.listening(address)
            await self.meet(address)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc):
        if self.process.poll() is None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, DEADLINE_S)
        for server in self.servers:
            await server.close(0)
        shutil.rmtree(self.state)

    @property
    def trace(self) -> str:
        return (self.state / "trace.ndjson").read_text()

    def may_start(self) -> bool:
        return '"type":"AuthorityRenewed"' in self.trace

    async def listening(self, address: str) -> None:
        host, port = address.split(":")
        async with asyncio.timeout(DEADLINE_S):
            while self.process.poll() is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return
                await asyncio.sleep(0.02)
        pytest.fail(f"the worker ended with status {self.process.returncode}")

    def config(self, address: str) -> WorkerConfig:
        files = {name: str(self.state / f"{name}.pem") for name in ("authority", "certificate", "key")}
        tls: Tls = self.authority.issue(caller("worker"))
        for name, path in files.items():
            write_private(Path(path), getattr(tls, name))
        node = NodeConfig(
            service="worker", node="worker-1", az="az1", host="h1", listen=address, placement=(), check=True,
            tls=TlsFiles(**files), trace=str(self.state / "trace.ndjson"),
        )
        return WorkerConfig(
            node=node, counting={"counting-1": self.servers[0].address}, memory_mb=1024,
            state_dir=str(self.state / "worker"), runtimes_dir=str(ROOT / ".runtimes"),
            name=f"test-{os.getpid()}-{random.randrange(10_000)}", sandboxes_max=20,
            uid_base=3_000_000 + os.getpid() % 10_000 * 100,
        )

    @property
    def agent(self) -> int:
        """Pid of the agent: the spawner's child with the spawner's own network and pid namespace."""
        own = Path("/proc/self/ns/pid").readlink()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if Path(f"/proc/{pid}/ns/pid").readlink() == own)


@pytest.fixture
async def region():
    if not (ROOT / ".runtimes" / RUNTIME).is_dir():
        pytest.skip(f"no runtime {RUNTIME}: make setup builds it")
    async with ProcessRegion() as region:
        yield region


async def test_an_invoke_through_the_process_and_its_end(region):
    await ready(region, "count")
    assert (await region.invoke("i1")).json["runs"] == 1
    assert (await region.invoke("i2")).json["runs"] == 2

    status = Path(f"/proc/{region.agent}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"64000"}
    assert fields["CapEff"] == fields["CapPrm"] == fields["CapBnd"] == "0000000000000000"
    assert fields["NoNewPrivs"] == "1"

    channel = region.network(caller("operator")).connect(region.address, service="worker")
    request = worker_pb2.LogsRequest(account="000000000000", function="hello")
    lines = [line async for answer in channel.fetch(worker_rpc.LOGS, request, timeout_s=30) for line in answer.lines]
    await channel.close()
    assert [line.message.split(" ")[0] for line in lines] == [
        "INIT_START", "START", "run", "END", "REPORT", "START", "run", "END", "REPORT"
    ]

    region.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(region.process.wait, DEADLINE_S) == 0
    assert any(message.HasField("leave") for message in region.ledger.heard)
    assert region.trace.count('"type":"StartAsked"') == 2
    assert not list(Path("/sys/fs/cgroup").glob(f"**/labda-test-{os.getpid()}-*"))


async def test_an_agent_out_of_descriptors_ends_with_all_its_sandboxes_and_says_no_more(region):
    """The answer to a create can't reach it then. Of what runs it knows nothing, and so it tells no end (rule 3)."""
    await ready(region, "sleep")
    await region.client.send(Frame(invocation="i1", start=region.start(payload=b"600")))
    async with asyncio.timeout(DEADLINE_S):
        while '"type":"StartInvocation"' not in region.trace:
            await asyncio.sleep(0.01)
    # What is open stays so. As the agent's user: root needs a capability for it, which not every host gives.
    subprocess.run(
        ["prlimit", f"--pid={region.agent}", "--nofile=4:4"], check=True, user=64000, group=64000, extra_groups=[],
    )
    await region.create("s2", runtime=RUNTIME)
    assert await asyncio.to_thread(region.process.wait, DEADLINE_S) == 1
    assert not list(Path("/sys/fs/cgroup").glob(f"**/labda-test-{os.getpid()}-*"))
    assert '"type":"InvocationEnded"' not in region.trace


async def test_sigterm_lets_what_runs_finish(region):
    await ready(region, "sleep")
    await region.client.send(Frame(invocation="i1", start=region.start(payload=b"1")))
    async with asyncio.timeout(DEADLINE_S):
        while '"type":"StartInvocation"' not in region.trace:
            await asyncio.sleep(0.01)
    region.process.send_signal(signal.SIGTERM)
    assert (await region.client.answer("i1")).json == "slept"
    assert await asyncio.to_thread(region.process.wait, DEADLINE_S) == 0
