"""``python -m placement --config FILE``: one placement process."""

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
from placement.config import PlacementConfig
from placement.service import PlacementService
from placement.trust import open_trust
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
        trace = open_trace(settings.node.trace, settings.node.node)
    except (Fault, OSError) as error:
        sys.stderr.write(f"placement: {error}\n")
        return 1

    async def start() -> Placement:
        clock, rng = SystemClock(), random.SystemRandom()
        credentials = await credentials_of(settings.node, clock, rng)
        metrics = await metrics_server.serve(settings.node, clock, credentials)
        try:
            stores = open_store(settings.store, clock, tls=settings.store_tls)
        except (ValueError, OSError) as error:
            raise Fault(f"the store {settings.store} can't be opened: {error}", definite=True) from error
        network = GrpcNetwork(credentials, health_socket=settings.node.health_socket)
        service = PlacementService(
            settings, network=network, clock=clock, rng=rng, leases=stores.leases, pid=os.getpid(),
            trace=trace, metrics=metrics,
            trust=open_trust(settings.node, credentials, metadata=stores.metadata, clock=clock, metrics=metrics),
        )
        await service.start()
        return Placement(service, stores)

    return process.run(settings.node, start)


if __name__ == "__main__":
    sys.exit(main())
