"""``python -m worker_manager --config FILE``: one worker manager process."""

import os
import random
import sys
from pathlib import Path

from chassis import config, process
from chassis.certificates import Tls
from chassis.clock import SystemClock
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.machine import Trace
from worker_manager.config import ManagerConfig
from worker_manager.service import ManagerService


def main() -> int:
    path = process.config_path(sys.argv, "python -m worker_manager")
    try:
        settings = config.load(ManagerConfig, Path(path))
        tls = Tls.read(settings.node.tls)
        trace = _trace(settings)
    except (Fault, OSError) as error:
        sys.stderr.write(f"worker_manager: {error}\n")
        return 1

    async def start() -> ManagerService:
        service = ManagerService(
            settings, network=GrpcNetwork(tls), clock=SystemClock(), rng=random.SystemRandom(), pid=os.getpid(),
            trace=trace,
        )
        await service.start()
        return service

    return process.run(settings.node, start)


def _trace(settings: ManagerConfig) -> Trace | None:
    """The event trace, where one is wanted: line by line, so that a killed process leaves all of it."""
    if not settings.node.trace:
        return None
    file = Path(settings.node.trace).open("a", buffering=1)  # noqa: SIM115 - it ends with the process
    return Trace(file, settings.node.node)


if __name__ == "__main__":
    sys.exit(main())
