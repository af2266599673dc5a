"""A region's trust on loopback: a root, placements that issue, one store in memory, and whoever knocks."""

import contextlib
import random
import time
from typing import Any

from chassis import open_network, proofs
from chassis.certificates import Authority, new_key
from chassis.clock import SystemClock
from chassis.config import EnrolmentConfig, IssuerConfig
from chassis.enrolment import Enrolment, Given, OwnIssuer
from chassis.metrics import Metrics
from chassis.rpc import Caller, Handlers
from chassis.tokens import Token
from placement import node_record
from placement.node_record import NodeRecord, with_token
from placement.trust import Trust
from protos import enrolment_pb2, enrolment_rpc
from storage.memory import MemoryMetadata

WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="host-az1-1")
OPERATOR = Caller(service="operator", node="operator", az="az1", host="operator")


class ShiftedClock(SystemClock):
    """The host's clocks, set forward by hand."""

    def __init__(self):
        self.ahead_s = 0.0

    def wall(self):
        return super().wall() + self.ahead_s

    def monotonic(self):
        return super().monotonic() + self.ahead_s


class Placement:
    """What of a placement has to do with trust."""

    def __init__(self, region, name, directory="", **settings):
        self.clock = ShiftedClock()
        self.metrics = Metrics()
        self.authority = region.root.intermediate(name)
        self.config = IssuerConfig(**{"certificate": "", "key": "", "listen": "127.0.0.1:0"} | settings)
        caller = Caller(service="placement", node=name, az="az1", host=name)
        self.own = OwnIssuer(caller, self.authority, self.config, SystemClock(), random.SystemRandom())
        self.credentials = self.own.start()
        self.trust = Trust(
            self.config, authority=self.authority, credentials=self.credentials, metadata=region.store,
            clock=self.clock, metrics=self.metrics, directory=directory,
        )
        self.handlers = Handlers()

    async def start(self):
        await self.trust.start(self.handlers)

    async def close(self):
        await self.trust.close()
        await self.own.close()

    async def as_operator(self, method, request):
        handle: Any = self.handlers.by_path[method.path].handle
        return await handle(request, OPERATOR)

    @property
    def outcomes(self):
        counted = self.metrics.families["labda_placement_certificates_total"].read()
        return {" ".join(labels): count for labels, count in counted.items() if count}


class Region:
    """Use as a context. Every node's first token is in ``tokens`` once ``add`` was called."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.root = Authority.create()
        self.store = MemoryMetadata(SystemClock())
        self.placements = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        for placement in self.placements:
            await placement.close()

    async def placement(self, name="placement-az1", **settings):
        placement = Placement(self, name, **settings)
        self.placements.append(placement)
        await placement.start()
        return placement

    async def add(self, who=WORKER, *, lasts_s=100.0):
        """A token for a node, as the operator founds it."""
        token = Token.draw(who.node, self.root.pem)
        key = node_record.key_of(who.node)
        found = await self.store.get(key)
        before = NodeRecord.decode(found.value) if found else None
        record = with_token(before, who, digest=token.digest, expires=time.time() + lasts_s)
        await self.store.put(key, record.encode(), expected=None)
        return token

    async def record(self, node=WORKER.node):
        found = await self.store.get(node_record.key_of(node))
        assert found is not None
        return NodeRecord.decode(found.value)

    def process(self, who=WORKER, *, token="", root=None, clock=None, directory=None):
        """The process side, as a service starts it."""
        config = EnrolmentConfig(
            authority="", directory=str(directory or self.tmp_path / who.node),
            seeds=tuple(placement.trust.address for placement in self.placements),
        )
        given = Given(authority=root or self.root.pem, token=token.text if token else "")
        return Enrolment(who, config, given, clock or SystemClock(), random.SystemRandom())

    def read(self, chain, now=None):
        return proofs.read(chain, self.root.pem, time.time() if now is None else now)

    # ------------------------------------------------------------ knocking by hand

    async def enrol(self, token, placement, *, key=None, node=None, request=None):
        return (await open_network.call(
            placement.trust.address, "placement", enrolment_rpc.ENROL,
            enrolment_pb2.EnrolRequest(
                node=node or token.node, secret=token.secret, request=request or proofs.request(key or new_key())
            ),
            roots=self.root.pem, timeout_s=60,
        )).chain

    async def renew(self, chain, old, placement, *, key=None, first=None, **changed):
        """``first``: the node's first key; None: the old one is, of a certificate that its token bought."""
        request, first = proofs.request(key or new_key()), first or old
        fields = {
            "certificate": chain, "request": request, "proof": proofs.prove(old, request),
            "first_key": proofs.spelled(first.public_key()), "first_proof": proofs.prove(first, request),
        }
        return (await open_network.call(
            placement.trust.address, "placement", enrolment_rpc.RENEW, enrolment_pb2.RenewRequest(**fields | changed),
            roots=self.root.pem, timeout_s=60,
        )).chain


@contextlib.asynccontextmanager
async def ended(*processes):
    """Processes whose renewals end with the test."""
    try:
        yield
    finally:
        for process in processes:
            await process.close()
