"""A container's health check: gRPC health over a Unix socket, asked without gRPC."""

import asyncio
import sys
from pathlib import Path

from chassis import health_probe
from chassis.certificates import Authority
from chassis.credentials import Credentials
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller, Handlers

PROBE = Path(health_probe.__file__)


async def test_a_serving_process_says_so_and_a_closed_one_does_not(tmp_path: Path) -> None:
    tls = Authority.create().issue(Caller(service="worker", node="w", az="az1", host="h"))
    path = str(tmp_path / "health.sock")
    server = await GrpcNetwork(Credentials.fixed(tls), health_socket=path).serve("127.0.0.1:0", Handlers())
    try:
        assert await asyncio.to_thread(health_probe.ask, path) == b"\x08\x01"
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", str(PROBE), path)
        assert await process.wait() == 0
    finally:
        await server.close(0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(PROBE), path, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 1
    assert path.encode() in said or said == b"not serving\n"
