"""``python -m counting --config FILE``: one member. With ``--init`` it makes the files of a member that never was,
and ends."""

import os
import random
import sys
from pathlib import Path

from chassis import config, process
from chassis.certificates import Tls
from chassis.clock import SystemClock
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.machine import open_trace
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService


def main() -> int:
    arguments = [argument for argument in sys.argv if argument != "--init"]
    path = process.config_path(arguments, "python -m counting [--init]")
    try:
        settings = config.load(CountingConfig, Path(path))
        if "--init" in sys.argv:
            member.create(Path(settings.directory), settings.node.node)
            return 0
    except (Fault, OSError) as error:
        sys.stderr.write(f"counting: {error}\n")
        return 1

    async def start() -> CountingService:
        network = GrpcNetwork(Tls.read(settings.node.tls))
        service = CountingService(
            settings, network=network, clock=SystemClock(), generator=random.SystemRandom(), pid=os.getpid(),
            trace=open_trace(settings.node.trace, settings.node.node),
        )
        return await service.start()

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
