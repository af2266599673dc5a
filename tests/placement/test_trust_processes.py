"""Real processes that know nothing but a token.

They join, their certificates of seconds rotate under load, they come back after all had expired, and a revoked one is
out. That it is within two seconds is asserted in virtual time (tests/simulation/test_enrolment.py).
"""

import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import sys
import time

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from chassis import config
from chassis.certificates import Tls, TlsFiles, key_pem
from chassis.clock import SystemClock
from chassis.config import EnrolmentConfig, IssuerConfig, NodeConfig
from chassis.credentials import Credentials
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork
from chassis.keeping import Keep
from labda.cluster import membership, rotation, trust
from labda.refusal import Refusal
from labda.state import State
from labda.topology import Member
from placement.config import FleetConfig, PlacementConfig
from protos import enrolment_pb2, enrolment_rpc, placement_pb2, placement_rpc, worker_manager_pb2, worker_manager_rpc
from storage.open import open_store
from tests.placement.test_processes import until
from tests.ports import free_port
from worker_manager.config import ManagerConfig

LIFETIME_S = 6.0
START_S = 60.0     # on a busy machine
PLACEMENTS = ("placement-az1", "placement-az2")
MANAGER = "manager-az1"


def member(service, node):
    return Member(service=service, node=node, az="az1", host=f"host-{node}")


class FoundedState(State):
    """Where commands look: what `labda cluster init` made, and the placements' addresses."""

    @property
    def authority(self):
        return self.root / "ca" / "root.pem"

    def cluster(self):
        return json.loads((self.root / "placements.json").read_text())


class Cluster:
    """Founded like a cluster of containers; its processes run on this host and share one SQLite store."""

    def __init__(self, root):
        self.root = root
        self.store = f"sqlite://{root}/store"
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in (*PLACEMENTS, MANAGER)}
        self.enrolment = {name: f"127.0.0.1:{free_port()}" for name in PLACEMENTS}
        self.running = {}
        self.lifetime_s = LIFETIME_S
        members = [*(member("placement", name) for name in PLACEMENTS), member("worker_manager", MANAGER)]
        trust.init(root, members, (), owners=trust.Owners(services=0, stores=0))

    async def found(self):
        stores = open_store(self.store, SystemClock())
        await trust.found(self.root, stores.metadata)
        await stores.close()

    @property
    def state(self):
        addresses = [self.addresses[name] for name in PLACEMENTS]
        (self.root / "placements.json").write_text(json.dumps({"placements": addresses}))
        return FoundedState(self.root)

    def start(self, service, node, fleet=None):
        folder = self.root / "nodes" / node
        issuer = None
        if service == "placement":
            issuer = IssuerConfig(
                certificate=str(folder / "intermediate.pem"), key=str(folder / "intermediate.key"),
                listen=self.enrolment[node], lifetime_s=self.lifetime_s,
            )
        settings = NodeConfig(
            service=service, node=node, az="az1", host=f"host-{node}", listen=self.addresses[node], check=True,
            placement=tuple(self.addresses[name] for name in PLACEMENTS), drain_s=1.0,
            enrolment=EnrolmentConfig(
                authority=str(folder / "root.pem"), directory=str(self.root / "kept" / node),
                token_file="" if issuer else str(folder / "token"), seeds=tuple(self.enrolment.values()), issuer=issuer,
            ),
        )
        whole = (
            PlacementConfig(node=settings, store=self.store, fleet=fleet or FleetConfig()) if service == "placement"
            else ManagerConfig(node=settings)
        )
        file = self.root / f"{node}.toml"
        file.write_text(config.dump(whole))
        with self.log(node).open("a") as log:
            self.running[node] = subprocess.Popen(
                [sys.executable, "-m", service, "--config", str(file)], stdout=log, stderr=log
            )

    def is_of_who_signs(self, node):
        """Whether the certificate that it keeps is of the root that signs now."""
        kept = (self.root / "kept" / node / "identity.pem").read_bytes()
        intermediate = x509.load_pem_x509_certificates(kept[kept.index(b"-----BEGIN CERTIFICATE"):])[-1]
        signs, *_ = x509.load_pem_x509_certificates((self.root / "ca" / "root.pem").read_bytes())
        with contextlib.suppress(InvalidSignature, ValueError):
            intermediate.verify_directly_issued_by(signs)
            return True
        return False

    def start_all(self, fleet=None):
        for name in PLACEMENTS:
            self.start("placement", name, fleet)
        self.start("worker_manager", MANAGER)

    def end(self, number=signal.SIGTERM):
        for process in self.running.values():
            process.send_signal(number)
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def log(self, node):
        return self.root / f"{node}.log"

    def lines(self, node, event):
        found = [json.loads(line) for line in self.log(node).read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def network(self):
        files = TlsFiles(
            authority=str(self.root / "ca" / "root.pem"), certificate=str(self.root / "tls" / "operator.pem"),
            key=str(self.root / "tls" / "operator.key"),
        )
        return GrpcNetwork(Credentials.fixed(Tls.read(files)))

    async def shown(self, node):
        """The certificate that a process shows at a new handshake."""
        host, port = self.addresses[node].split(":")
        context = ssl.create_default_context(cafile=str(self.root / "ca" / "root.pem"))
        context.load_cert_chain(self.root / "tls" / "operator.pem", self.root / "tls" / "operator.key")
        context.set_alpn_protocols(["h2"])
        service = "placement" if node in PLACEMENTS else "worker-manager"
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=f"{service}.labda")
        certificate = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.transport.abort()
        return certificate


@pytest.fixture
async def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    await cluster.found()
    try:
        yield cluster
    finally:
        cluster.end(signal.SIGKILL)


@contextlib.asynccontextmanager
async def watching(cluster):
    """The region as the operator sees it."""
    directory = Directory(
        network=cluster.network(), clock=SystemClock(), seeds=tuple(cluster.addresses[name] for name in PLACEMENTS),
        node=placement_pb2.Node(node="operator", service="operator", az="az1", host="operator"),
    )
    directory.start()
    try:
        yield directory
    finally:
        await directory.close()


def health(directory, node):
    return directory.nodes[node].health if node in directory.nodes else "unknown"


async def test_certificates_rotate_under_load_and_processes_come_back_after_all_expired(cluster):
    cluster.start_all()
    async with watching(cluster) as directory:
        await until(lambda: all(health(directory, node) == "serving" for node in cluster.addresses), START_S)
        serials = {node: {(await cluster.shown(node)).serial_number} for node in cluster.addresses}
        began, calls, seen = time.monotonic(), 0, set()
        channel = cluster.network().connect(cluster.addresses[MANAGER], service="worker_manager", node=MANAGER)
        terms = {directory.term}
        # Until all have had three certificates; on a busy machine that, and the load, take as long as they take.
        while (
            time.monotonic() - began < 2.5 * LIFETIME_S or calls <= 200 or any(len(had) < 3 for had in serials.values())
        ):
            assert time.monotonic() - began < START_S, (calls, serials)
            await channel.call(worker_manager_rpc.DESCRIBE, worker_manager_pb2.DescribeRequest(), timeout_s=30)
            calls += 1
            seen |= {node.health for node in directory.nodes.values()}
            terms.add(directory.term)
            if calls % 20 == 0:
                for node, known in serials.items():
                    known.add((await cluster.shown(node)).serial_number)
            await asyncio.sleep(0.01)
        await channel.close()
    assert seen <= {"serving", "suspected"}, "a busy machine may be slow, but nobody is lost"
    assert len(terms) == 1, "nobody lost the lead"
    # Everybody stops for longer than any certificate lives. Nothing but the kept one, expired, is there then.
    cluster.end()
    (cluster.root / "nodes" / MANAGER / "token").unlink()
    await asyncio.sleep(LIFETIME_S + 0.5)
    cluster.start_all()
    async with watching(cluster) as directory:
        await until(lambda: health(directory, MANAGER) == "serving", START_S)
    assert cluster.lines(MANAGER, "the kept certificate has expired, asking for another")
    assert len(cluster.lines(MANAGER, "enrolled")) == 1


async def test_a_revoked_process_is_out_and_comes_back_by_a_new_token(cluster):
    cluster.start_all()
    async with watching(cluster) as directory:
        await until(lambda: all(health(directory, node) == "serving" for node in cluster.addresses), START_S)
        done = await membership.revoke(cluster.state, MANAGER)
        assert done.enrolment == 1
        kept = Keep(cluster.root / "kept" / MANAGER).read()
        assert kept is not None
        root = (cluster.root / "ca" / "root.pem").read_bytes()
        stolen = Tls(authority=root, certificate=kept.chain, key=key_pem(kept.key))
        for name in PLACEMENTS:
            thief = GrpcNetwork(Credentials.fixed(stolen)).connect(cluster.addresses[name], service="placement")
            await until_refused(thief)
            await thief.close()
        await until(lambda: health(directory, MANAGER) in {"suspected", "dead", "unknown"}, START_S)
        await until(lambda: cluster.lines(MANAGER, "the certificate isn't renewed"), START_S)
        # A new token for the replaced node, and a new process.
        cluster.running[MANAGER].kill()
        cluster.running[MANAGER].wait()
        made = await membership.token(cluster.state, MANAGER)
        assert made.enrolment == 2
        assert (cluster.root / "nodes" / MANAGER / "token").read_text() == made.token
        cluster.start("worker_manager", MANAGER)
        await until(lambda: health(directory, MANAGER) == "serving", START_S)


async def until_refused(thief):
    """The revoked certificate opens nothing any more, and the refusal says why."""
    deadline = time.monotonic() + START_S
    while True:
        assert time.monotonic() < deadline, "still let in"
        try:
            await thief.call(placement_rpc.PLACE, placement_pb2.PlaceRequest(manager=MANAGER), timeout_s=5)
        except Fault as fault:
            if "was revoked" in fault.message:
                return
        await asyncio.sleep(0.02)


async def test_a_leader_that_hangs_keeps_no_revocation_from_anybody(cluster):
    """Nobody leads, and nobody will before the hung one's time is over: the one that stands by tells the region."""
    cluster.start_all(FleetConfig(leadership_s=10 * START_S))   # it isn't over while this test runs
    async with watching(cluster) as directory:
        await until(lambda: all(health(directory, node) == "serving" for node in cluster.addresses), START_S)
        leader, other = directory.leader, next(name for name in PLACEMENTS if name != directory.leader)
        cluster.running[leader].send_signal(signal.SIGSTOP)
        channel = cluster.network().connect(cluster.addresses[other], service="placement")
        await channel.call(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node=MANAGER), timeout_s=30)
        await channel.close()
        await until(lambda: directory.revoked == {MANAGER: 1}, START_S)
        term = directory.term
        cluster.running[leader].send_signal(signal.SIGCONT)
    assert term == 1, "it wasn't a new leader who told"


async def test_a_revoked_placement_loses_what_it_issued_and_comes_back_with_a_new_intermediate(cluster):
    cluster.start("placement", PLACEMENTS[0])
    cluster.start("worker_manager", MANAGER)    # only the first placement is there to issue its certificate
    async with watching(cluster) as directory:
        await until(lambda: health(directory, MANAGER) == "serving", START_S)
        cluster.start("placement", PLACEMENTS[1])
        await until(lambda: health(directory, PLACEMENTS[1]) == "serving", START_S)
        await shows(cluster, MANAGER, f"labda {PLACEMENTS[0]} CA 1")
        await membership.revoke(cluster.state, PLACEMENTS[0])
        await shows(cluster, MANAGER, f"labda {PLACEMENTS[1]} CA 1")
        made = await membership.token(cluster.state, PLACEMENTS[0])
        assert (made.enrolment, made.token) == (2, "")
        cluster.running[PLACEMENTS[0]].kill()
        cluster.running[PLACEMENTS[0]].wait()
        cluster.start("placement", PLACEMENTS[0])
        await shows(cluster, PLACEMENTS[0], f"labda {PLACEMENTS[0]} CA 2")
        await until(lambda: all(health(directory, node) == "serving" for node in cluster.addresses), START_S)


async def test_the_root_is_replaced_without_an_end_to_anything_but_what_is_restarted(cluster):
    """Three steps, each with a rolling restart, while somebody who has nothing to do with it goes on.

    Certificates last for a day. The manager is restarted before the placements: what it gets then is of the old root.
    """
    cluster.lifetime_s = 86_400.0
    cluster.start_all()
    calls = 0
    for step in (None, rotation.Step.ANNOUNCED, rotation.Step.SWITCHED, rotation.Step.DROPPED):
        if step is not None:
            assert rotation.rotate(cluster.root, "root", {}) is step
        for node in reversed(cluster.addresses) if step is not None else ():
            process = cluster.running[node]
            process.terminate()
            await asyncio.to_thread(process.wait)
            cluster.start("placement" if node in PLACEMENTS else "worker_manager", node)
            async with watching(cluster) as directory:      # as the operator of now: with the files as they are now
                await until(lambda: all(health(directory, name) == "serving" for name in cluster.addresses), START_S)
                calls += 1
        async with watching(cluster) as directory:
            await until(lambda: all(health(directory, name) == "serving" for name in cluster.addresses), START_S)
        await until(lambda: cluster.is_of_who_signs(MANAGER), START_S)
    assert calls == 9
    [root] = x509.load_pem_x509_certificates((cluster.root / "ca" / "root.pem").read_bytes())
    assert root.subject.rfc4514_string() == "CN=labda root CA 2"
    await shows(cluster, MANAGER, (await cluster.shown(MANAGER)).issuer.rfc4514_string().removeprefix("CN="))


async def test_a_stolen_certificate_of_the_operators_ends_with_a_new_one(cluster):
    cluster.start("placement", PLACEMENTS[0])
    stolen = cluster.network()
    async with watching(cluster) as directory:
        await until(lambda: health(directory, PLACEMENTS[0]) == "serving", START_S)
        made = await membership.token(cluster.state, "operator")
        assert (made.enrolment, made.token, made.folder) == (2, "", cluster.root / "tls")
    thief = stolen.connect(cluster.addresses[PLACEMENTS[0]], service="placement")
    await until_refused(thief)
    await thief.close()
    assert (await membership.token(cluster.state, "operator")).enrolment == 3
    with pytest.raises(Refusal, match="worker-az9-9 is no node of"):
        await membership.token(cluster.state, "worker-az9-9")
    with pytest.raises(Refusal, match="worker-az9-9 is no node of this region"):
        await membership.revoke(cluster.state, "worker-az9-9")


async def shows(cluster, node, issuer):
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(OSError):      # it isn't up yet
                if (await cluster.shown(node)).issuer.rfc4514_string() == f"CN={issuer}":
                    return
            await asyncio.sleep(0.05)


async def test_a_process_with_a_token_that_is_no_good_says_so_and_ends(cluster):
    for name in PLACEMENTS:
        cluster.start("placement", name)
    wrong, _ = trust.new_token(cluster.root, member("worker_manager", MANAGER), before=None, token_s=60.0)
    (cluster.root / "nodes" / MANAGER / "token").write_text(wrong.text)
    cluster.start("worker_manager", MANAGER)
    assert await asyncio.to_thread(cluster.running[MANAGER].wait, START_S) == 1
    [line] = cluster.lines(MANAGER, "can't start")
    assert "labda cluster token manager-az1" in line["fault"]
    assert wrong.secret not in cluster.log(MANAGER).read_text()
    refusals = [line for name in PLACEMENTS for line in cluster.lines(name, "certificate refused")]
    # It may ask the next one where the first was slow.
    assert {(line["for_node"], line["peer"].rsplit(":", 1)[0]) for line in refusals} == {(MANAGER, "ipv4:127.0.0.1")}


async def test_a_process_that_waits_for_its_certificate_can_be_ended(cluster):
    cluster.start("worker_manager", MANAGER)
    await until(lambda: cluster.log(MANAGER).exists() and cluster.lines(MANAGER, "no certificate yet, asking again"),
                START_S)
    process = cluster.running[MANAGER]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, START_S) == 0
