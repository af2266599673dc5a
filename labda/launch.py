"""From a topology to files that processes can be started from: addresses, certificates, keys, configuration.

Owns what each service is told. Refuses to know how a process is watched (``labda.children``) and what it does.
"""

import contextlib
import hashlib
import os
import random
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chassis import config
from chassis.addresses import is_loopback
from chassis.certificates import Authority, Tls, TlsFiles, write_private
from chassis.clock import SystemClock, write_offset
from chassis.config import NodeConfig
from chassis.rpc import Caller
from counting.config import CountingConfig
from frontend.config import FrontendConfig, HttpTls
from labda import endpoint
from labda.refusal import Refusal, Status
from labda.region import OPERATOR
from labda.state import Credentials, State
from labda.topology import Member, Topology
from placement.config import FleetConfig, PlacementConfig
from storage.faults import StorageFault
from storage.interfaces import MetadataStore
from storage.sqlite_file import METADATA_FILE, prepare
from worker.config import WorkerConfig
from worker_manager.config import ManagerConfig

if TYPE_CHECKING:
    from labda.chaos.proxy import Route

REGION = "us-east-1"
ACCOUNT = "000000000000"
ROOT_NAME = "root"
ENDPOINT = "endpoint"       # whose certificate clients see, where they may be on other hosts
LOOPBACK = "127.0.0.1"
# Below the kernel's range for outgoing connections: a seed that is started again must find its port free.
SEED_PORTS = range(20_000, 32_000)
UIDS_FIRST = 100_000_000
UIDS_PER_WORKER = 2002      # two for each of 1,000 sandboxes, and two more
WORKERS_MAX = 180
CLUSTERS = 5_000
MEMORY_MB_MIN = 1024
STORE_BUSY_S = 2.0
_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One start of a cluster: everything that its processes are told."""

    state: State
    topology: Topology
    listen: str                     # public endpoint, host:port, served by all frontends
    seeds: Mapping[str, str]        # fixed addresses, by ``seed_names``
    runtimes: Path
    region: str = REGION
    time_scale: float = 1.0         # of leases, and with them of how long a function may run
    check: bool = False             # cores check their invariants after every event
    trace: bool = False             # cores record every event
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)     # settings by service, else the defaults
    breakable: bool = False         # clocks can be moved, and links have
    detours: Mapping[tuple[str, str], str] = field(default_factory=dict)    # addresses, by who dials whom there

    @property
    def placements(self) -> tuple[str, ...]:
        return tuple(self.seeds[m.node] for m in self.topology.members() if m.service == "placement")

    @property
    def counting(self) -> dict[str, str]:
        return {m.node: self.seeds[m.node] for m in self.topology.members() if m.service == "counting"}

    @property
    def raft(self) -> dict[str, str]:
        return {m.node: self.seeds[raft(m.node)] for m in self.topology.members() if m.service == "counting"}

    def reached(self, node: str, served: Mapping[str, str]) -> dict[str, str]:
        """The addresses that this process dials for those where nodes serve."""
        return {name: self.detours.get((node, name), address) for name, address in served.items()}

    @property
    def store(self) -> str:
        return f"sqlite://{self.state.store}"


def command(member: Member, state: State) -> list[str]:
    """The same for every service, here and in a container. -P: the working directory, /, is no place for modules."""
    return [sys.executable, "-P", "-m", member.service, "--config", str(state.config(member.node))]


def environment() -> dict[str, str]:
    """All that a process inherits: configuration comes from its file."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/", "LANG": "C.UTF-8", "PYTHONPATH": str(_PROJECT), "PYTHONUNBUFFERED": "1",
    }


def write(plan: Plan) -> None:
    """Certificates, configuration and folders of every process. Made anew at each start, except for the CA."""
    authority = _authority(plan.state)
    members = plan.topology.members()
    for member in members:
        _certify(plan.state, authority, member)
        plan.state.node(member.node).mkdir(exist_ok=True)
        if plan.breakable:
            write_offset(plan.state.clock_offset(member.node), 0.0)
        plan.state.config(member.node).write_text(config.dump(settings(plan, member)))
    _certify(plan.state, authority, Member(service="operator", node=OPERATOR, az="az1", host="operator"))
    if not is_loopback(plan.listen):
        _keep(plan.state, ENDPOINT, authority.issue_plain(ENDPOINT, hosts=endpoint.hosts(plan.listen)))
    _make_counting(plan)


def settings(plan: Plan, member: Member) -> Any:
    """One process's configuration. Raises Refusal for a change that it doesn't allow."""
    try:
        return config.changed(_settings(plan, member), plan.changes.get(member.service, {}))
    except config.ConfigFault as fault:
        raise Refusal(f"--set {member.service}.{fault.message}", Status.USAGE) from fault


def _settings(plan: Plan, member: Member) -> Any:
    fixed = plan.seeds.get(member.node)
    node = NodeConfig(
        service=member.service, node=member.node, az=member.az, host=member.host,
        listen=fixed or f"{LOOPBACK}:0", placement=plan.placements, region=plan.region, check=plan.check,
        trace=str(plan.state.node(member.node) / "trace.ndjson") if plan.trace else "",
        metrics_listen=f"{LOOPBACK}:0",
        tls=TlsFiles(
            authority=str(plan.state.authority), certificate=str(plan.state.certificate(member.node)),
            key=str(plan.state.key(member.node)),
        ),
    )
    folder = plan.state.node(member.node)
    counting = plan.reached(member.node, plan.counting)
    match member.service:
        case "counting":
            members = plan.reached(member.node, plan.raft)
            return CountingConfig(
                node=node, directory=str(plan.state.raft(member.node)), members=members,
                clock_offset_file=str(plan.state.clock_offset(member.node)) if plan.breakable else "",
            )
        case "placement":
            return PlacementConfig(node=node, store=plan.store, fleet=FleetConfig(time_scale=plan.time_scale))
        case "worker_manager":
            return ManagerConfig(node=node)
        case "frontend":
            return FrontendConfig(
                node=node, counting=counting, store=plan.store, listen=plan.listen,
                key_file=str(plan.state.data_key), http=f"{LOOPBACK}:0",
                http_tls=None if is_loopback(plan.listen) else HttpTls(
                    certificate=str(plan.state.certificate(ENDPOINT)), key=str(plan.state.key(ENDPOINT))
                ),
            )
        case "worker":
            return WorkerConfig(
                node=node, counting=counting, memory_mb=worker_memory_mb(plan.topology),
                state_dir=str(folder), runtimes_dir=str(plan.runtimes), uid_base=uid_base(plan, member),
                name=f"{cluster_id(plan.state)}-{member.node}",
            )
        case service:
            raise AssertionError(f"no process of {service} is part of a topology")


def seed_names(topology: Topology) -> list[str]:
    """Who has a fixed address: counting members and placements by node, and where the former serve Raft."""
    nodes = [member for member in topology.members() if member.service in {"counting", "placement"}]
    return [node.node for node in nodes] + [raft(node.node) for node in nodes if node.service == "counting"]


def raft(node: str) -> str:
    """The name of the address where a counting member serves Raft."""
    return f"{node} raft"


def find_seeds(state: State, topology: Topology) -> dict[str, str]:
    """Addresses of the seeds: those of the last start where they are free, else others."""
    before = state.read("seeds.json") or {}
    rng = random.Random(hashlib.sha256(state.name.encode()).digest())  # noqa: S311 - spreads clusters over ports
    taken: set[int] = set()
    seeds: dict[str, str] = {}
    for name in seed_names(topology):
        port = int(before.get(name, "x:0").rsplit(":", 1)[1])
        while port == 0 or port in taken or not _is_free(port):
            port = rng.choice(SEED_PORTS)
        taken.add(port)
        seeds[name] = f"{LOOPBACK}:{port}"
    state.write("seeds.json", seeds)
    return seeds


def routes(topology: Topology, seeds: Mapping[str, str]) -> "list[Route]":
    """Every link of counting's members: from each other, from frontends and from workers."""
    from labda.chaos.proxy import Route  # noqa: PLC0415 - for clusters whose links can be broken

    members = topology.members()
    return [
        Route(dialler=one.node, server=other.node, address=seeds[raft(other.node) if one.service == "counting" else
                                                                 other.node])
        for other in members if other.service == "counting"
        for one in members if one.service in {"counting", "frontend", "worker"} and one != other
    ]


def check_store(state: State) -> None:
    """Raises Refusal for a store that this version can't use: before anything is started, let alone written."""
    path = state.store / METADATA_FILE
    if not path.exists():
        return
    try:
        prepare(path, busy_s=STORE_BUSY_S)
    except StorageFault as fault:
        raise Refusal(fault.message) from fault


async def root_credentials(plan: Plan) -> Credentials:
    """The root account and its key: made at the first start, and put into the store where a lost store lacks them.

    Before any frontend runs: everything later goes through a frontend. A key that was revoked doesn't come back.
    """
    # Slow to import: this runs while the processes start.
    from frontend.auth.keys import new_key  # noqa: PLC0415
    from storage.open import open_store  # noqa: PLC0415

    if plan.state.read("root.json") is None:
        key = new_key(ACCOUNT, random.SystemRandom(), time.time())
        plan.state.write("root.json", {
            "account": key.account, "access_key_id": key.key_id, "secret_access_key": key.secret,
        })
    stores = open_store(plan.store, SystemClock())
    try:
        await keep_root(plan.state, stores.metadata)
    finally:
        await stores.close()
    return plan.state.credentials()


async def keep_root(state: State, metadata: MetadataStore) -> None:
    """Puts the root account and its key into a store that lacks them. A key that was revoked doesn't come back."""
    from frontend.auth.accounts import Account, AccountBook  # noqa: PLC0415 - as above
    from frontend.auth.keys import AccessKey, store_key  # noqa: PLC0415
    from storage.cipher import Cipher  # noqa: PLC0415
    from storage.faults import Conflict  # noqa: PLC0415

    root = state.credentials()
    key = AccessKey(key_id=root.key_id, account=root.account, secret=root.secret, created=time.time())
    book = AccountBook(metadata)
    if not any(account.root for account in await book.all()):
        await book.add(Account(id=key.account, name=ROOT_NAME, created=time.time(), root=True))
    with contextlib.suppress(Conflict):  # it is there: the usual case
        await store_key(metadata, Cipher.open(state.data_key), key)


def cluster_id(state: State) -> str:
    """Tells the clusters of one machine apart: 8 hexadecimal digits of the state directory's path."""
    return hashlib.sha256(state.name.encode()).hexdigest()[:8]


def uid_base(plan: Plan, member: Member) -> int:
    """The first of a range of user ids that no worker of another cluster on this machine uses (very likely)."""
    cluster = int(cluster_id(plan.state), 16) % CLUSTERS
    workers = [other.node for other in plan.topology.members() if other.service == "worker"]
    return UIDS_FIRST + (cluster * WORKERS_MAX + workers.index(member.node)) * UIDS_PER_WORKER


def worker_memory_mb(topology: Topology) -> int:
    """Three quarters of the machine, shared by the pretend hosts."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return max(MEMORY_MB_MIN, total * 3 // 4 // (topology.azs * topology.workers_per_az))


# ---------------------------------------------------------------- certificates and files


def _authority(state: State) -> Authority:
    folder = state.authority.parent
    if (folder / "ca.key").exists():
        return Authority.load(folder)
    authority = Authority.create()
    authority.save(folder)
    return authority


def _certify(state: State, authority: Authority, member: Member) -> None:
    tls = authority.issue(Caller(service=member.service, node=member.node, az=member.az, host=member.host))
    _keep(state, member.node, tls)


def _keep(state: State, name: str, tls: Tls) -> None:
    write_private(state.certificate(name), tls.certificate)
    write_private(state.key(name), tls.key)


def _make_counting(plan: Plan) -> None:
    """A member's files are made once, on purpose: one that lost them must not vote."""
    names = sorted(plan.counting)
    made = plan.state.read("counting.json")
    if made is None:
        from counting.raft import member  # noqa: PLC0415 - needed at the first start only

        for name in names:
            member.create(plan.state.raft(name), name)
        plan.state.write("counting.json", names)
    elif made != names:
        raise Refusal(
            f"{plan.state.root} has counting members {', '.join(made)}, not {', '.join(names)}: start it with the "
            "--azs of its first start, or name another directory with --state", Status.USAGE,
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
