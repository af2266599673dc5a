"""What each container reads at /etc/labda besides what ``trust`` makes: configuration.

Owns what each process of a cluster in containers is told. Refuses to know certificates' content and containers.
Everything is written anew at each start, and only where it has changed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from chassis import config
from chassis.addresses import is_loopback
from chassis.certificates import TlsFiles, write_private
from chassis.config import EnrolmentConfig, IssuerConfig, NodeConfig
from counting.config import CountingConfig
from frontend.config import FrontendConfig
from labda import endpoint
from labda.cluster import shape as names
from labda.cluster import trust
from labda.cluster.endpoint_file import CERTIFICATE, haproxy
from labda.cluster.shape import CONFIG_DIR, KEPT_DIR, RUN_DIR, Shape
from labda.topology import Member
from placement.config import FleetConfig, PlacementConfig
from storage.members import Ports, nats_configuration
from worker.config import WorkerConfig
from worker_manager.config import ManagerConfig

ANY = "0.0.0.0"     # noqa: S104 - of a container, on networks that only its peers are on
# The endpoint looks five times in it, and sends a draining frontend nothing more; managers hear of a draining worker.
NOTICE_S = 1.0
AGENT_DIR = f"{KEPT_DIR}/agent"     # the part of a worker's volume that its agent may write to


def write(root: Path, shape: Shape) -> None:
    """Into the folders that ``trust.init`` made below ``root``."""
    owners = trust.Owners()
    for member in shape.members:
        folder = root / "nodes" / member.node
        put(folder / "config.toml", config.dump(settings(shape, member)))
        trust.give(folder, owners.spawner if member.service == "worker" else owners.services)
    for name in shape.stores("nats"):
        folder = root / "stores" / name
        put(folder / "nats.conf", nats(shape, name))
        trust.give(folder, owners.stores)
    _endpoint(root, shape)
    trust.give(root / "endpoint", owners.services)


def _endpoint(root: Path, shape: Shape) -> None:
    folder = root / "endpoint"
    folder.mkdir(mode=0o700, exist_ok=True)
    put(folder / "haproxy.cfg", haproxy(shape))
    put(folder / "root.pem", (root / "ca" / "root.pem").read_text())
    if not is_loopback(shape.endpoint):     # made anew at each start: a start renews it
        tls = trust.authority(root, "root").issue_plain("endpoint", hosts=endpoint.hosts(shape.endpoint))
        put(folder / CERTIFICATE, (tls.certificate + tls.key).decode())


def put(path: Path, text: str) -> None:
    """A file with this content, replaced only by another content: containers have it open."""
    if not path.exists() or path.read_text() != text:
        write_private(path, text.encode())


def settings(shape: Shape, member: Member) -> Any:
    """One process's configuration."""
    worker = member.service == "worker"
    node = NodeConfig(
        service=member.service, node=member.node, az=member.az, host=member.host, listen=f"{ANY}:{names.GRPC}",
        advertise=member.node, placement=shape.addresses("placement"), enrolment=_enrolment(shape, member),
        metrics_listen=f"{ANY}:{names.METRICS}", health_socket=f"{AGENT_DIR if worker else RUN_DIR}/health.sock",
        trace=f"{KEPT_DIR}/trace.ndjson" if shape.trace else "",
    )
    if member.service in names.DRAINS:
        node = replace(node, drain_s=names.DRAIN_S)
    counting = {m.node: f"{m.node}:{names.GRPC}" for m in shape.of("counting")}
    match member.service:
        case "counting":
            return CountingConfig(
                node=node, directory=f"{KEPT_DIR}/raft", raft_listen=f"{ANY}:{names.RAFT}",
                members={m.node: f"{m.node}:{names.RAFT}" for m in shape.of("counting")},
            )
        case "placement":
            return PlacementConfig(
                node=node, store=shape.metadata_url(member.az), store_tls=_STORE_TLS,
                fleet=FleetConfig(managers_active_max=shape.managers_active),
            )
        case "worker_manager":
            return ManagerConfig(node=node)
        case "frontend":
            return FrontendConfig(
                node=node, counting=counting, store=shape.metadata_url(member.az),
                blobs=shape.blobs_url(member.az), store_tls=_STORE_TLS,
                key_file=f"{CONFIG_DIR}/data.key", http=f"{ANY}:{names.HTTP}", notice_s=NOTICE_S,
            )
        case "worker":
            return WorkerConfig(
                node=node, counting=counting, memory_mb=shape.worker_memory_mb, state_dir=KEPT_DIR,
                runtimes_dir=names.RUNTIMES_DIR, invoke_listen=f"{ANY}:{names.INVOKE}", name=member.node,
                uid_base=shape.uid_base(member), notice_s=NOTICE_S,
            )
        case service:
            raise AssertionError(f"no process of {service} is part of a topology")


def nats(shape: Shape, name: str) -> str:
    """One NATS member's configuration; its numbers are for the container's own health check only."""
    members = shape.stores("nats")
    ports = Ports(client=names.NATS, peer=names.NATS_CLUSTER)
    text = nats_configuration(
        name, files=Path(CONFIG_DIR), data=Path(KEPT_DIR, "jetstream"), listen=ANY,
        hosts={member: member for member in members}, ports=dict.fromkeys(members, ports),
    )
    return f'{text}http: "127.0.0.1:{names.NATS_MONITOR}"\n'


_STORE_TLS = TlsFiles(
    authority=f"{CONFIG_DIR}/stores/ca.pem", certificate=f"{CONFIG_DIR}/stores/client.pem",
    key=f"{CONFIG_DIR}/stores/client.key",
)


def _enrolment(shape: Shape, member: Member) -> EnrolmentConfig:
    root = f"{CONFIG_DIR}/root.pem"
    if member.service == "placement":
        return EnrolmentConfig(authority=root, directory=f"{KEPT_DIR}/trust", issuer=IssuerConfig(
            certificate=f"{CONFIG_DIR}/intermediate.pem", key=f"{CONFIG_DIR}/intermediate.key",
            listen=f"{ANY}:{names.ENROLMENT}", lifetime_s=shape.certificate_s,
        ))
    kept = AGENT_DIR if member.service == "worker" else KEPT_DIR
    return EnrolmentConfig(
        authority=root, directory=f"{kept}/identity", token_file=f"{CONFIG_DIR}/token",
        seeds=shape.addresses("placement", names.ENROLMENT),
    )
