"""From a shape to ``compose.yaml``: made for people to read.

Owns what each container is given: image, networks, privileges, files, labels. Refuses to know what is in the files
(``node_files``) and who starts the containers (``engine``).
"""

import json
from collections.abc import Iterable
from pathlib import Path

from labda.cluster import shape as names
from labda.cluster.shape import Shape
from labda.topology import Member
from storage.members import Ports, etcd_arguments
from worker.sandbox.doctor import CAPABILITIES

# A worker's container holds its agent, its spawner and page cache besides the sandboxes.
WORKER_EXTRA_MB = 512
STOP_S = 15                     # for what has nothing to finish
AFTER_DRAIN_S = 20              # for what comes after a drain
# Retransmissions of the endpoint's: 3 s. HAProxy's own tcp-ut is for servers that are written as addresses.
UNANSWERED = 2

_HEAD = """\
# The cluster in containers. Rendered by `labda cluster render` from topology.toml: change that, not this.
#
# {azs} AZs, each with a network of its own, share the network `region`: an AZ is cut off by taking its containers off
# that. Every container has its files (configuration, root certificate, one-time token) from the host at /etc/labda,
# read-only, and a volume at /var/lib/labda for what it keeps. `make cluster` makes the files and starts everything.
# By hand: LABDA_STATE=/absolute/path/of/.labda-compose docker compose -f deploy/compose/compose.yaml ps
name: {project}

# What all containers share. The root file system is read-only; nobody gains privileges.
x-container: &container
  restart: unless-stopped
  init: true
  read_only: true
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  pull_policy: never
  logging: {{driver: json-file, options: {{max-size: 8m, max-file: "2"}}}}

# The five services. Health is gRPC health, asked over a socket in the container.
x-service: &service
  <<: *container
  image: labda:local
  user: "64000:64000"
  tmpfs: ["/run/labda:uid=64000,gid=64000,mode=700", /tmp]
  stop_grace_period: {stop_s}s
  healthcheck: {{test: [CMD, labda, health, {run}/health.sock], interval: 30s, timeout: 5s, retries: 2}}

# A worker's spawner builds sandboxes: root with these capabilities, and the system calls of a list of our own, since an
# engine's own list refuses pivot_root. Its cgroup namespace is its own, so that all it makes ends with the container.
x-worker: &worker
  <<: *service
  user: "0:0"
  cgroup: private
  cap_add: [{capabilities}]
  security_opt: ["no-new-privileges:true", "seccomp=seccomp-worker.json", "apparmor=unconfined"]
  devices: [/dev/loop-control]
  device_cgroup_rules: ["b 7:* rmw"]
  tmpfs: [/run, /tmp]
  mem_limit: {worker_mb}m
  healthcheck: {{test: [CMD, labda, health, {kept}/agent/health.sock], interval: 30s, timeout: 5s, retries: 2}}

x-etcd: &etcd
  <<: *container
  image: labda-etcd:local
  healthcheck:
    {{test: [CMD, bash, -c, {etcd_health}], interval: 30s, timeout: 5s, retries: 2}}

x-nats: &nats
  <<: *container
  image: labda-nats:local
  command: [--config, {config}/nats.conf]
  tmpfs: [/tmp]
  healthcheck:
    {{test: [CMD, bash, -c, {nats_health}], interval: 30s, timeout: 5s, retries: 2}}

services:
"""

_ENDPOINT = """\
  # ------------------------------------------------------------ region

  # Requests of which no byte was sent go to another frontend; all others are the client's to repeat.
  endpoint:
    <<: *container
    build: {{<<: *build, target: endpoint}}
    image: labda-endpoint:local
    container_name: {project}-endpoint
    hostname: endpoint
    ports: ["{listen}:{port}"]
    networks: [public, region]
    volumes: ["{state}/endpoint:/etc/labda:ro"]
    tmpfs: [/tmp]
    sysctls: {{net.ipv4.tcp_retries2: {unanswered}}}     # what a frontend doesn't acknowledge within 3 s is lost
    healthcheck:
      {{test: [CMD, bash, -c, {health}], interval: 30s, timeout: 5s, retries: 2}}
    labels: {{labda.service: endpoint, labda.node: endpoint}}

  # docker compose --profile prometheus up prometheus
  prometheus:
    <<: *container
    profiles: [prometheus]
    build: {{<<: *build, target: prometheus}}
    image: labda-prometheus:local
    container_name: {project}-prometheus
    hostname: prometheus
    networks: [public, region]
    ports: ["127.0.0.1:{prometheus}:{prometheus}"]
    volumes: ["{state}/prometheus:/etc/labda:ro", "prometheus:/var/lib/labda"]
    labels: {{labda.service: prometheus, labda.node: prometheus}}

"""

_NEW, _NEW_OR = "cluster-state=new", "cluster-state=${LABDA_ETCD_STATE:-new}"
STATE = "${LABDA_STATE:-../../.labda-compose}"


def render(shape: Shape) -> str:
    """The whole file."""
    head = _HEAD.format(
        azs=len(shape.azs), project=shape.project, run=names.RUN_DIR, kept=names.KEPT_DIR, config=names.CONFIG_DIR,
        stop_s=STOP_S, capabilities=", ".join(CAPABILITIES), worker_mb=shape.worker_memory_mb + WORKER_EXTRA_MB,
        etcd_health=_asks(names.ETCD_MONITOR, "/health"), nats_health=_asks(names.NATS_MONITOR, "/healthz"),
    )
    build = "x-build: &build {context: ../.., dockerfile: deploy/compose/Dockerfile, network: host}\n\n"
    parts = [head.replace("services:\n", build + "services:\n")]
    parts.append(_ENDPOINT.format(
        project=shape.project, listen=shape.endpoint, port=names.ENDPOINT, state=STATE, prometheus=names.PROMETHEUS,
        health=_asks(names.ENDPOINT_MONITOR, "/health"), unanswered=UNANSWERED,
    ))
    built: set[str] = set()
    for az in shape.azs:
        parts.append(f"  # ------------------------------------------------------------ {az}\n\n")
        parts += [_store(shape, kind, az, built) for kind in names.STORES if f"{kind}-{az}" in shape.stores(kind)]
        parts += [_service(shape, member, built) for member in shape.members if member.az == az]
    parts.append(_foot(shape))
    return "".join(parts)


def _service(shape: Shape, member: Member, built: set[str]) -> str:
    more = [f"command: [serve, {member.service}]"]
    if member.service in names.DRAINS:
        more.append(f"stop_grace_period: {names.DRAIN_S + AFTER_DRAIN_S:.0f}s")
    return _container(
        shape, member.node, "worker" if member.service == "worker" else "service", member.az, member.service,
        member.host, f"nodes/{member.node}", target="labda", built=built, more=more,
    )


def _store(shape: Shape, kind: str, az: str, built: set[str]) -> str:
    name, more = f"{kind}-{az}", []
    if kind == "etcd":
        more = ["command:", *(f"  - {argument}" for argument in etcd_command(shape, name))]
    return _container(
        shape, name, kind, az, kind, f"control-{az}", f"stores/{name}", target=kind, built=built, more=more,
    )


def etcd_command(shape: Shape, name: str) -> list[str]:
    ports = Ports(client=names.ETCD, peer=names.ETCD_PEER)
    members = shape.stores("etcd")
    arguments = etcd_arguments(
        name, files=Path(names.CONFIG_DIR), data=Path(names.KEPT_DIR, "etcd"), listen="0.0.0.0",  # noqa: S104 - a container's
        hosts={member: member for member in members}, ports=dict.fromkeys(members, ports),
    )
    # A member that joins a cluster which is there is told so once: labda cluster replace.
    arguments = [argument.replace(_NEW, _NEW_OR) for argument in arguments]
    return [*arguments, f"--listen-metrics-urls=http://127.0.0.1:{names.ETCD_MONITOR}"]


def _container(
    shape: Shape, name: str, kind: str, az: str, service: str, host: str, files: str, *, target: str, built: set[str],
    more: Iterable[str],
) -> str:
    lines = [f"<<: *{kind}"]
    if target not in built:     # one image for all containers of its kind, built once
        built.add(target)
        lines.append(f"build: {{<<: *build, target: {target}}}")
    lines += [
        f"container_name: {shape.project}-{name}",
        f"hostname: {name}",
        *more,
        f"networks: [{az}, region]",
        f'volumes: ["{STATE}/{files}:{names.CONFIG_DIR}:ro", "{name}:{names.KEPT_DIR}"]',
        f"labels: {{labda.az: {az}, labda.service: {service}, labda.host: {host}, labda.node: {name}}}",
    ]
    return f"  {name}:\n" + "".join(f"    {line}\n" for line in lines) + "\n"


def _foot(shape: Shape) -> str:
    lines = ["networks:", "  # No way out of these: containers need none, and functions have no network at all."]
    lines += [f"  {name}: {{internal: true}}" for name in ("region", *shape.azs)]
    lines += ["  public: {}      # of what is published to this host", "", "volumes:"]
    nodes = [name for kind in names.STORES for name in shape.stores(kind)]
    nodes += [member.node for member in shape.members]
    lines += [f"  {name}:" for name in (*nodes, "prometheus")]
    return "\n".join(lines) + "\n"


def _asks(port: int, path: str) -> str:
    """A question over HTTP without a client in the image, as a YAML string."""
    script = (
        f"exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && "
        "read -r -t 4 line <&3 && [[ $$line == *' 200 '* ]]"
    )
    return json.dumps(script)
