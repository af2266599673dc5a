"""``python -m frontend --config FILE``: one frontend as a process of its own.

Owns what only a real process has: sockets, the host's clock and randomness, the stores' files.
"""

import os
import random
import sys
from functools import partial
from pathlib import Path

from chassis import config as files
from chassis import process
from chassis.certificates import Tls
from chassis.clock import SystemClock
from chassis.config import ConfigFault
from chassis.faults import Fault, FaultCode
from chassis.grpc_network import GrpcNetwork
from chassis.machine import open_trace
from frontend.api.model import load
from frontend.auth.keys import WellKnownSecret, refuse_well_known
from frontend.config import FrontendConfig
from frontend.http_server import HttpServer
from frontend.service import FrontendService, World
from storage.cipher import Cipher
from storage.open import Stores, open_store

VERSION = "0.1"


class Frontend:
    """The running process: its service, its HTTP edge, its stores."""

    def __init__(self, config: FrontendConfig, service: FrontendService, http: HttpServer, stores: Stores) -> None:
        self._config = config
        self._service = service
        self._http = http
        self._stores = stores

    async def drain(self) -> None:
        """Stops listening first, so that the others of the host get what comes; then lets what runs finish."""
        self._http.stop_listening()
        await self._service.drain(partial(self._http.finish, self._config.node.drain_s))
        await self._stores.close()


def open_world(config: FrontendConfig) -> tuple[World, Stores]:
    """What a process has: clock, randomness, stores, keys. Blocks for milliseconds. Raises Fault."""
    clock, rng = SystemClock(), random.SystemRandom()
    try:
        stores = open_store(config.store, clock)
        cipher = Cipher.open(Path(config.key_file))
        data_key = Path(config.key_file).read_bytes()
    except (ValueError, OSError) as error:
        raise Fault(f"the store {config.store} can't be opened: {error}", code=FaultCode.INVALID) from error
    world = World(
        network=GrpcNetwork(Tls.read(config.node.tls)), clock=clock, rng=rng, metadata=stores.metadata,
        blobs=stores.blobs, cipher=cipher, data_key=data_key, model=load(), nonce=rng.getrandbits(63),
        trace=open_trace(config.node.trace, config.node.node),
    )
    return world, stores


async def start(config: FrontendConfig) -> Frontend:
    world, stores = open_world(config)
    service = FrontendService(config, world)
    await service.start()
    http = HttpServer(
        service.application, keep_alive_s=config.keep_alive_s, header_bytes_max=config.header_bytes_max
    )
    own = await http.listen(config.http)
    if config.listen:
        try:
            refuse_well_known(config.listen.rsplit(":", 1)[0], service.ring.all())
        except WellKnownSecret as refused:
            raise Fault(str(refused), code=FaultCode.DENIED, definite=True) from refused
        await http.listen(config.listen, shared=True)
    await service.register(own, os.getpid(), VERSION)
    return Frontend(config, service, http, stores)


def main(argv: list[str]) -> int:
    path = Path(process.config_path(argv, "python -m frontend"))
    try:
        config = files.load(FrontendConfig, path)
    except ConfigFault as fault:
        sys.stderr.write(f"{fault.message}\n")
        return 1
    return process.run(config.node, partial(start, config))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
