"""``labda cluster replace NODE``: a node whose disk is lost comes back with an empty one.

Owns what each kind of node needs for that: a store member another identity or just an empty disk, a service a new
token; a member of counting would be another one, which this command can't decide. Refuses to know how a node is
described (``compose_file``). Container and volume of the node are removed first: whoever calls this says that what was
on it is gone.
"""

import asyncio
import json
from typing import Any

from labda.cluster import membership
from labda.cluster.engine import Engine, docker
from labda.cluster.shape import ETCD, ETCD_PEER
from labda.refusal import Refusal, Status
from labda.target import ContainerState

JOINS = "existing"      # what a member of etcd is told that joins a cluster which is there


def replace(state: ContainerState, engine: Engine, node: str) -> str:
    """Returns what was done, in words. Raises Refusal."""
    form = engine.shape
    services = {member.node: member.service for member in form.members}
    stores = {name: kind for kind in ("etcd", "nats") for name in form.stores(kind)}
    kind = services.get(node) or stores.get(node)
    if kind is None:
        raise Refusal(f"{node} is no node of this cluster: {', '.join([*services, *stores])}", Status.USAGE)
    if kind == "counting":
        raise Refusal(
            f"{node} would vote twice in a term under its old name: write `{node} = 2` under [replaced] of "
            f"{state.root / 'topology.toml'}, then `labda cluster up --no-build`, `labda counting remove {node}` and "
            f"`labda counting add {node}-2` (docs/operations.md)",
            Status.USAGE,
        )
    _remove(engine, node)
    if kind == "etcd":
        _rejoin(state, engine, node)
    elif kind not in stores.values():
        asyncio.run(membership.token(state, node))
    environment = {"LABDA_ETCD_STATE": JOINS} if kind == "etcd" else {}
    engine.compose("up", "--no-build", "--detach", "--no-deps", node, environment=environment)
    return f"{node} is there again, with an empty disk"


def _remove(engine: Engine, node: str) -> None:
    engine.compose("kill", node)        # what it would still have to finish has lost its disk
    engine.compose("rm", "--force", node)
    volume = f"{engine.shape.project}_{node}"
    if volume in docker("volume", "ls", "--format", "{{.Name}}").split():
        docker("volume", "rm", volume)


def _rejoin(state: ContainerState, engine: Engine, node: str) -> None:
    """The others forget the old member and know of a new one: under the old id an empty disk would be a lie."""
    others = [name for name in engine.shape.stores("etcd") if name != node]
    known: list[dict[str, Any]] = json.loads(_etcdctl(state, engine, others, "member", "list", "-w", "json"))["members"]
    address = f"https://{node}:{ETCD_PEER}"
    for member in known:
        if member.get("name") == node or address in member.get("peerURLs", ()):
            _etcdctl(state, engine, others, "member", "remove", f"{member['ID']:x}")
    _etcdctl(state, engine, others, "member", "add", node, f"--peer-urls={address}")


def _etcdctl(state: ContainerState, engine: Engine, members: list[str], *words: str) -> str:
    """As the operator, from a container on the region's network."""
    return docker(
        "run", "--rm", "--user", "0", "--network", f"{engine.shape.project}_region",
        "--volume", f"{state.root / 'ca'}:/ca:ro", "--volume", f"{state.root / 'tls'}:/tls:ro",
        "--entrypoint", "etcdctl", "labda-etcd:local",
        "--endpoints", ",".join(f"https://{name}:{ETCD}" for name in members), "--cacert", "/ca/stores.pem",
        "--cert", "/tls/stores-operator.pem", "--key", "/tls/stores-operator.key", *words,
    )
