"""The agent's process: started by the spawner, without privileges, in a root of its own.

    python -m worker.agent_process --channel-fd N --handover-fd N [--trace-fd N]

Owns putting the agent together from what it was handed. Its user may write below ``STATE/agent`` only.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from chassis import metrics_server, process
from chassis.certificates import Tls
from chassis.clock import Clock, SystemClock
from chassis.config import NodeConfig, parse
from chassis.credentials import Credentials
from chassis.enrolment import Given, credentials_of
from chassis.faults import Fault
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.machine import trace_to
from worker.config import WorkerConfig
from worker.logs import RotatedFiles
from worker.sandbox.native import NativeDriver
from worker.service import WorkerService


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.agent_process")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--handover-fd", type=int, required=True)
    parser.add_argument("--trace-fd", type=int)
    options = parser.parse_args()
    try:
        with os.fdopen(options.handover_fd, "rb") as file:
            handover = json.load(file)
        settings = parse(WorkerConfig, handover["config"], handover["path"])
        folder = Path(settings.state_dir) / "agent"
        for name in ("logs", "scratch"):
            (folder / name).mkdir(exist_ok=True)
    except (Fault, OSError) as error:
        sys.stderr.write(f"worker: {error}\n")
        return 1
    trace = None
    if options.trace_fd is not None:
        trace = trace_to(options.trace_fd, settings.node.node)

    def scratch() -> BinaryIO:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=folder / "scratch"))

    async def start() -> WorkerService:
        # Here, because the driver belongs to the process's event loop.
        driver = NativeDriver(socket.socket(fileno=options.channel_fd), leave_at_once)
        clock, rng = SystemClock(), random.SystemRandom()
        credentials = await credentials_handed(settings.node, handover, clock, rng)
        network = GrpcNetwork(credentials, health_socket=settings.node.health_socket)
        service = WorkerService(
            settings, network=network, streams=FramedNetwork(credentials), driver=driver,
            clock=clock, rng=rng,
            log_files=RotatedFiles(folder / "logs", file_bytes_max=settings.log_file_bytes_max), scratch=scratch,
            end_process=lambda: signal.raise_signal(signal.SIGTERM), trace=trace,
            metrics=await metrics_server.serve(settings.node, clock, credentials),
            pid=os.getppid(),  # a worker is known by its spawner, which is the process that a supervisor sees
        )
        return await service.start()

    return process.run(settings.node, start)


def leave_at_once(reason: str) -> NoReturn:
    """Ends this process without another word to anybody: of what runs in sandboxes that it can't reach, it could only
    say what it doesn't know. The next incarnation joins when all of them were seen gone (counting, rules 3 and 5)."""
    sys.stderr.write(f"worker: {reason}; the agent ends\n")
    sys.stderr.flush()
    os._exit(1)


async def credentials_handed(
    node: NodeConfig, handover: dict[str, Any], clock: Clock, rng: random.Random
) -> Credentials:
    """From what the spawner read. A certificate of its own the agent gets, keeps and renews by itself. Raises Fault."""
    if node.enrolment is None:
        return Credentials.fixed(Tls(**{name: pem.encode() for name, pem in handover["tls"].items()}))
    given = Given(authority=handover["authority"].encode(), token=handover["token"])
    return await credentials_of(node, clock, rng, given=given)


if __name__ == "__main__":
    sys.exit(main())
