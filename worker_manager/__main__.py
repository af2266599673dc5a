"""``python -m worker_manager --config FILE``: one worker manager process."""

import os
import random
import sys
from pathlib import Path

from chassis import config, metrics_server, process
from chassis.clock import SystemClock
from chassis.enrolment import credentials_of
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.machine import open_trace
from worker_manager.config import ManagerConfig
from worker_manager.service import ManagerService


def main() -> int:
    path = process.config_path(sys.argv, "python -m worker_manager")
    try:
        settings = config.load(ManagerConfig, Path(path))
        trace = open_trace(settings.node.trace, settings.node.node)
    except (Fault, OSError) as error:
        sys.stderr.write(f"worker_manager: {error}\n")
        return 1

    async def start() -> ManagerService:
        clock, rng = SystemClock(), random.SystemRandom()
        credentials = await credentials_of(settings.node, clock, rng)
        network = GrpcNetwork(credentials, health_socket=settings.node.health_socket)
        service = ManagerService(
            settings, network=network, clock=clock, rng=rng, pid=os.getpid(),
            trace=trace, metrics=await metrics_server.serve(settings.node, clock, credentials),
        )
        await service.start()
        return service

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
