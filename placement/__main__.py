"""``python -m placement --config FILE``: one placement process."""

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
from placement.config import PlacementConfig
from placement.service import PlacementService
from storage.open import Stores, open_store


class Placement:
    """The service together with the store that it has to itself."""

    def __init__(self, service: PlacementService, stores: Stores) -> None:
        self._service = service
        self._stores = stores

    async def drain(self) -> None:
        await self._service.drain()
        await self._stores.close()


def main() -> int:
    path = process.config_path(sys.argv, "python -m placement")
    try:
        settings = config.load(PlacementConfig, Path(path))
        tls = Tls.read(settings.node.tls)
        trace = open_trace(settings.node.trace, settings.node.node)
    except (Fault, OSError) as error:
        sys.stderr.write(f"placement: {error}\n")
        return 1

    async def start() -> Placement:
        clock = SystemClock()
        try:
            stores = open_store(settings.store, clock)
        except ValueError as error:
            raise Fault(str(error), definite=True) from error
        service = PlacementService(
            settings, network=GrpcNetwork(tls), clock=clock, rng=random.SystemRandom(), leases=stores.leases,
            pid=os.getpid(), trace=trace,
        )
        await service.start()
        return Placement(service, stores)

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
