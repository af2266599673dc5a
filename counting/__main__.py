"""``python -m counting --config FILE``: one member. With ``--init`` it makes the files of a member that never was,
and ends; with ``--join`` besides, of one that is no founder of its group."""

import os
import random
import sys
from pathlib import Path

from chassis import config, metrics_server, process
from chassis.clock import OffsetClock, SystemClock
from chassis.enrolment import credentials_of
from chassis.faults import Fault
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.machine import open_trace
from counting.config import CountingConfig
from counting.raft import member
from counting.service import CountingService


def main() -> int:
    arguments = [argument for argument in sys.argv if argument not in {"--init", "--join"}]
    path = process.config_path(arguments, "python -m counting [--init [--join]]")
    try:
        settings = config.load(CountingConfig, Path(path))
        if "--init" in sys.argv:
            joins = "--join" in sys.argv
            if len(settings.members) % 2 == 0 and not joins:
                raise config.ConfigFault(
                    f"members lists {len(settings.members)} founders: one less survives the loss of as many"
                )
            member.create(Path(settings.directory), settings.node.node, joins=joins)
            return 0
    except (Fault, OSError) as error:
        sys.stderr.write(f"counting: {error}\n")
        return 1

    async def start() -> CountingService:
        offset = settings.clock_offset_file
        clock, generator = OffsetClock(Path(offset)) if offset else SystemClock(), random.SystemRandom()
        credentials = await credentials_of(settings.node, clock, generator)
        network = GrpcNetwork(credentials, health_socket=settings.node.health_socket)
        service = CountingService(
            settings, network=network, streams=FramedNetwork(credentials), clock=clock, generator=generator,
            pid=os.getpid(), trace=open_trace(settings.node.trace, settings.node.node),
            metrics=await metrics_server.serve(settings.node, clock, credentials),
        )
        return await service.start()

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
