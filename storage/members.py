"""How the members of the stores are started: the same settings for a cluster of containers, for tests, by hand.

Owns etcd's command line and NATS' configuration file, with the reasons for each setting. Refuses to know where the
programs come from and who runs them.

A member's folder holds what `labda cluster init` made: ca.pem (the clients' authority), server.pem and server.key,
peer-ca.pem (the members' own authority), peer.pem and peer.key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.nats_streams import MAX_PAYLOAD_BYTES, BlobStreams

# Milliseconds: an AZ's loss stalls writes for about a second. Members in farther places need ten times the round trip.
# Heartbeats are most of what a resting member costs; elections come after 500 to 1000 ms whatever these are.
HEARTBEAT_MS = 100
ELECTION_MS = 500
QUOTA_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Of one member: for clients, for the other members, and for its numbers (0: none)."""

    client: int
    peer: int
    monitor: int = 0


def etcd_arguments(
    name: str, *, files: Path, data: Path, listen: str, hosts: Mapping[str, str], ports: Mapping[str, Ports],
    joining: bool = False,
) -> list[str]:
    """The command line of one member. ``hosts`` and ``ports``: of all members, by name; ``listen``: an IP address.

    ``joining``: the cluster is there already and knows of this member (`etcdctl member add`).
    """
    own = ports[name]
    peers = ",".join(f"{other}=https://{host}:{ports[other].peer}" for other, host in hosts.items())
    arguments = {
        "name": name,
        "data-dir": data,
        "listen-client-urls": f"https://{listen}:{own.client}",
        "advertise-client-urls": f"https://{hosts[name]}:{own.client}",
        "listen-peer-urls": f"https://{listen}:{own.peer}",
        "initial-advertise-peer-urls": f"https://{hosts[name]}:{own.peer}",
        "initial-cluster": peers,
        "initial-cluster-token": "labda",
        "initial-cluster-state": "existing" if joining else "new",
        "heartbeat-interval": HEARTBEAT_MS,
        "election-timeout": ELECTION_MS,
        # Clients show a certificate, whose common name is their user.
        "client-cert-auth": "true",
        "trusted-ca-file": files / "ca.pem",
        "cert-file": files / "server.pem",
        "key-file": files / "server.key",
        "peer-client-cert-auth": "true",
        "peer-trusted-ca-file": files / "peer-ca.pem",
        "peer-cert-file": files / "peer.pem",
        "peer-key-file": files / "peer.key",
        # Or the history of changes grows for ever. A watch that is further behind lists again.
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": QUOTA_BYTES,
        # Clients ping a silent member every 2 s; with etcd's default of 5 s it would end their connections for that.
        "grpc-keepalive-min-time": "1s",
        "logger": "zap",
        "log-level": "warn",
    }
    if own.monitor:
        arguments["listen-metrics-urls"] = f"http://{listen}:{own.monitor}"
    return [f"--{option}={value}" for option, value in arguments.items()]


def nats_configuration(
    name: str, *, files: Path, data: Path, listen: str, hosts: Mapping[str, str], ports: Mapping[str, Ports],
    streams: BlobStreams | None = None, synced: bool = True,
) -> str:
    """The configuration file of one member, whose users are frontends and the operator.

    ``synced`` False leaves it to the kernel when what was acknowledged is written to disk: for tests only.
    """
    own = ports[name]
    streams = streams or BlobStreams()
    routes = ", ".join(f'"nats://{host}:{ports[other].peer}"' for other, host in hosts.items() if other != name)
    monitor = f'http: "{listen}:{own.monitor}"' if own.monitor else ""
    return f"""# {name}: written by labda (storage/members.py)
server_name: "{name}"
listen: "{listen}:{own.client}"
{monitor}
max_payload: {MAX_PAYLOAD_BYTES}
max_pending: {64 * 1024 * 1024}
write_deadline: "5s"
ping_interval: "5s"
ping_max: 2

jetstream {{
  store_dir: "{data}"
  # What was acknowledged is on the disks of a majority; the default syncs every two minutes.
  sync_interval: {"always" if synced else "2m"}
}}

# TLS comes before the first word of either side; a client's certificate says which user it is.
tls {{
  cert_file: "{files}/server.pem"
  key_file: "{files}/server.key"
  ca_file: "{files}/ca.pem"
  verify_and_map: true
  handshake_first: true
}}

cluster {{
  name: "labda"
  # One connection per pair, as before 2.10: with a pool of them two members were seen to dial and refuse each other
  # 7,000 times in a minute as duplicates, which cost a tenth of a core.
  pool_size: -1
  listen: "{listen}:{own.peer}"
  # Members tell each other of third ones. By address, else, which no certificate holds: a member that hears of another
  # before it has dialled it by name dials that address again and again, 20 times a second.
  advertise: "{hosts[name]}:{own.peer}"
  # Clients know the members' names, which certificates hold; addresses that servers tell them are no use.
  no_advertise: true
  routes: [{routes}]
  tls {{
    cert_file: "{files}/peer.pem"
    key_file: "{files}/peer.key"
    ca_file: "{files}/peer-ca.pem"
    verify: true
  }}
}}

authorization {{
  users: [
    {_user("frontend", streams.subjects_of_frontends())}
    {_user("operator", [f"{streams.root}.>", "$JS.API.>"])}
  ]
}}
"""


def _user(name: str, publish: Sequence[str]) -> str:
    """Everybody is answered in a place of his own."""
    subjects = ", ".join(f'"{subject}"' for subject in publish)
    return (
        f'{{ user: "CN={name}", permissions: {{ publish: [{subjects}], subscribe: ["_INBOX.{name}.>"] }} }}'
    )
