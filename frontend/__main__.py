"""``python -m frontend --config FILE``: one frontend as a process of its own.

Owns what only a real process has: sockets, the host's clock and randomness, the stores' files.
"""

import asyncio
import os
import random
import resource
import sys
from functools import partial
from pathlib import Path

from chassis import config as files
from chassis import metrics_server, process
from chassis.addresses import is_loopback
from chassis.clock import SystemClock
from chassis.config import ConfigFault
from chassis.credentials import Credentials
from chassis.enrolment import credentials_of
from chassis.faults import Fault, FaultCode
from chassis.framed_network import FramedNetwork
from chassis.grpc_network import GrpcNetwork
from chassis.machine import open_trace
from chassis.metrics import Metrics
from chassis.process import Tasks
from frontend.api.model import load
from frontend.auth.well_known import WellKnownSecret, refuse_well_known
from frontend.config import FrontendConfig
from frontend.http_server import HttpServer
from frontend.metrics import measure_http
from frontend.published import Published
from frontend.service import FrontendService, World
from storage.cipher import Cipher
from storage.open import Stores, open_store

VERSION = "0.1"
OTHER_DESCRIPTORS = 512   # of the store, the peers, logs, and connections that are being refused


class Frontend:
    """The running process: its service, its HTTP edge, its stores."""

    def __init__(self, config: FrontendConfig, service: FrontendService, http: HttpServer, stores: Stores) -> None:
        self._config = config
        self._service = service
        self._http = http
        self._stores = stores
        self._tasks = Tasks()

    async def listen(self, credentials: Credentials) -> str:
        """Its own address and the shared one; returns the former. Plain HTTP on loopback only. Raises Fault."""
        config = self._config
        own = await self._http.listen(
            config.http, credentials=None if is_loopback(config.http) else credentials
        )
        if not config.listen:
            return own
        try:
            refuse_well_known(config.listen, self._service.ring.all())
        except WellKnownSecret as refused:
            raise Fault(str(refused), code=FaultCode.DENIED, definite=True) from refused
        shown = None if is_loopback(config.listen) else credentials
        if config.http_tls is not None:
            published = Published(config.http_tls)
            self._tasks.start(published.follow(), name="the endpoint's certificate")
            shown = published.credentials
        await self._http.listen(config.listen, shared=True, credentials=shown)
        return own

    async def drain(self) -> None:
        """Says so, then stops listening, so that others get what comes; then lets what runs finish."""
        notice_s = self._config.notice_s
        self._service.health.leave()
        await asyncio.sleep(notice_s)
        self._http.stop_listening()
        await self._service.drain(partial(self._http.finish, self._config.node.drain_s - notice_s))
        await self._tasks.cancel()
        await self._stores.close()


def open_world(config: FrontendConfig, credentials: Credentials, metrics: Metrics) -> tuple[World, Stores]:
    """What a process has: clock, randomness, stores, keys. Blocks for milliseconds. Raises Fault."""
    clock, rng = SystemClock(), random.SystemRandom()
    try:
        stores = open_store(config.store, clock, blobs=config.blobs, tls=config.store_tls)
        cipher = Cipher.open(Path(config.key_file))
        data_key = Path(config.key_file).read_bytes()
    except (ValueError, OSError) as error:
        raise Fault(f"the store {config.store} can't be opened: {error}", code=FaultCode.INVALID) from error
    network = GrpcNetwork(credentials, health_socket=config.node.health_socket)
    world = World(
        network=network, streams=FramedNetwork(credentials), clock=clock, rng=rng,
        metadata=stores.metadata, blobs=stores.blobs, cipher=cipher, data_key=data_key, model=load(),
        nonce=rng.getrandbits(63), trace=open_trace(config.node.trace, config.node.node), metrics=metrics,
    )
    return world, stores


def allow_descriptors(connections: int) -> None:
    """Lets the process have that many connections. Raises Fault where the host doesn't allow it."""
    needed = connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in {soft, hard} or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))  # root may raise the hard limit too
    except (ValueError, OSError) as error:
        raise Fault(
            f"http_limits.connections_max is {connections}, which needs {needed} descriptors, and this process may "
            f"have {hard}: raise the hard limit (ulimit -Hn) or lower connections_max",
            code=FaultCode.INVALID, definite=True,
        ) from error


async def start(config: FrontendConfig) -> Frontend:
    clock = SystemClock()
    credentials = await credentials_of(config.node, clock, random.SystemRandom())
    world, stores = open_world(config, credentials, await metrics_server.serve(config.node, clock, credentials))
    service = FrontendService(config, world)
    await service.start()
    allow_descriptors(config.http_limits.connections_max)
    http = HttpServer(service.application, config.http_limits)
    measure_http(world.metrics, http)
    frontend = Frontend(config, service, http, stores)
    own = await frontend.listen(credentials)
    await service.register(config.node.reached(own), os.getpid(), VERSION)
    return frontend


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
