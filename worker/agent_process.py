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
from typing import BinaryIO, cast

from chassis import process
from chassis.certificates import Tls
from chassis.clock import SystemClock
from chassis.config import parse
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.machine import Trace
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
    tls = Tls(**{name: pem.encode() for name, pem in handover["tls"].items()})
    trace = None
    if options.trace_fd is not None:
        trace = Trace(os.fdopen(options.trace_fd, "a", buffering=1), settings.node.node)

    def scratch() -> BinaryIO:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=folder / "scratch"))

    async def start() -> WorkerService:
        # Here, because the driver belongs to the process's event loop.
        driver = NativeDriver(socket.socket(fileno=options.channel_fd))
        service = WorkerService(
            settings, network=GrpcNetwork(tls), driver=driver, clock=SystemClock(), rng=random.SystemRandom(),
            log_files=RotatedFiles(folder / "logs", file_bytes_max=settings.log_file_bytes_max), scratch=scratch,
            end_process=lambda: signal.raise_signal(signal.SIGTERM), trace=trace,
            pid=os.getppid(),  # a worker is known by its spawner, which is the process that a supervisor sees
        )
        return await service.start()

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
