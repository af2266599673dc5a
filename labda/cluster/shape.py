"""The shape of a cluster in containers: what ``deploy/compose/topology.toml`` says, and the names that follow.

Owns names, ports and paths inside containers. Refuses to know files on the host and how a container is started.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

from chassis import config
from labda import endpoint
from labda.refusal import Refusal, Status
from labda.topology import AZS_MAX, Member, Topology

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "compose"
TOPOLOGY = DEPLOY / "topology.toml"

GRPC, ENROLMENT, INVOKE, HTTP, RAFT, METRICS = 7000, 7001, 7002, 7003, 7004, 9100
ETCD, ETCD_PEER, ETCD_MONITOR = 2379, 2380, 2381
NATS, NATS_CLUSTER, NATS_MONITOR = 4222, 6222, 8222
ENDPOINT, ENDPOINT_MONITOR, PROMETHEUS = 9000, 9001, 9090

CONFIG_DIR, KEPT_DIR, RUN_DIR = "/etc/labda", "/var/lib/labda", "/run/labda"
RUNTIMES_DIR = "/opt/labda/runtimes"
STORES = ("etcd", "nats")
# A frontend or worker that is told to end lets what runs finish: the longest function timeout, and its answer's way.
DRAINS, DRAIN_S = frozenset({"frontend", "worker"}), 910.0
# Below the embedded clusters' ids (labda.launch): a worker of one never has a sandbox's id of another.
UIDS_FIRST, UIDS_PER_WORKER = 90_000_000, 2002


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One cluster."""

    project: str = "labda"
    endpoint: str = "127.0.0.1:9000"
    worker_memory_mb: int = 2048
    managers_active: int = 1                # the others stand by; 0: as many as an AZ has workers
    certificate_s: float = 86_400.0         # lifetime of the nodes' certificates
    trace: bool = False                     # every process records what its core does, in trace.ndjson of its volume
    topology: Topology = field(default_factory=lambda: Topology(workers_per_az=2, managers=3, placements=3))
    # Counting members that lost their files, with how manieth of its place each is now: {"counting-az1": 2}. Its
    # successor has a name of its own, counting-az1-2, since under the old one it could vote twice in one term; it
    # gets a vote by `labda counting add`.
    replaced: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.project):
            raise ValueError(f"project is {self.project!r}: lower-case letters, digits and hyphens name a project")
        if self.topology.azs < 3:
            raise ValueError(f"topology.azs is {self.topology.azs}: stores need three members, one per AZ")
        if not 0 <= self.managers_active <= self.topology.managers:
            raise ValueError(
                f"managers_active is {self.managers_active}, there are {self.topology.managers} managers: 0 to so many"
            )
        endpoint.parse(self.endpoint)
        for node, number in self.replaced.items():
            if number < 2 or node not in {member.node for member in self.topology.members() if _counts(member)}:
                raise ValueError(f"replaced.{node} is {number}: it names a member of counting, and the first was 1")

    @property
    def azs(self) -> list[str]:
        return [self.topology.az(index) for index in range(self.topology.azs)]

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(
            dataclasses.replace(member, node=f"{member.node}-{self.replaced[member.node]}")
            if member.node in self.replaced else member
            for member in self.topology.members()
        )

    def of(self, service: str) -> list[Member]:
        return [member for member in self.members if member.service == service]

    def stores(self, kind: str) -> list[str]:
        """Names of the members of etcd or NATS: three, or five where there are so many AZs."""
        return [f"{kind}-{az}" for az in self.azs[: 5 if self.topology.azs >= 5 else 3]]

    def addresses(self, service: str, port: int = GRPC) -> tuple[str, ...]:
        return tuple(f"{member.node}:{port}" for member in self.of(service))

    def metadata_url(self, az: str = "") -> str:
        """The member of this AZ comes first: it is asked first."""
        return "etcd://" + ",".join(f"{name}:{ETCD}" for name in self._nearest("etcd", az))

    def blobs_url(self, az: str = "") -> str:
        return "nats://" + ",".join(f"{name}:{NATS}" for name in self._nearest("nats", az))

    def _nearest(self, kind: str, az: str) -> list[str]:
        return sorted(self.stores(kind), key=lambda name: name != f"{kind}-{az}")

    def uid_base(self, worker: Member) -> int:
        """By its place, not by how many others there are: workers that run keep their ids when more are added."""
        number = int(worker.node.rpartition("-")[2])
        return UIDS_FIRST + ((number - 1) * AZS_MAX + self.azs.index(worker.az)) * UIDS_PER_WORKER


def _counts(member: Member) -> bool:
    return member.service == "counting"


def read(path: Path) -> Shape:
    """Raises Refusal."""
    try:
        return config.load(Shape, path)
    except config.ConfigFault as fault:
        raise Refusal(fault.message, Status.USAGE) from fault
