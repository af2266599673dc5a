"""What a cluster of containers is founded on: authorities, keys, tokens, and who is handed what.

    ca/                 certificate and key of three authorities, which stay with the operator: root (the region's),
                        stores (servers of the stores and their clients), peers (store members among themselves)
    owners.json         user ids that the containers read their files as
    root.json           access key of the first account, for the operator
    data.key            encrypts secrets in the store and signs code tickets; frontends have it too
    enrolment/NODE.json a node's record as founding writes it into the store: of its token only the hash
    tls/                certificates and keys of the operator, for the region and for the stores
    nodes/NODE/         what that node's container sees: root.pem, token; of placements their intermediate instead of a
                        token; of frontends data.key; of both the stores' root and a certificate for the stores
    prometheus/         root.pem, and a certificate that reads metrics and opens nothing else
    stores/NODE/        a store member's certificates: server.pem for its clients, whose root is ca.pem; peer.pem for
                        the other members, whose root is peer-ca.pem, so that no client passes for a member

Owns that layout. Nothing that is there is made again, except for certificates that are past half of their time; what a
changed topology lacks is added. Refuses to know addresses, configuration files and containers.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509

from chassis.certificates import Authority, Tls, over_half, write_private
from chassis.rpc import Caller
from chassis.tokens import NODE, Token
from labda.refusal import Refusal, Status
from labda.state import State
from labda.topology import Member
from placement import node_record
from placement.node_record import NodeRecord, with_token
from storage.cipher import Cipher
from storage.faults import Conflict
from storage.interfaces import MetadataStore

ACCOUNT = "000000000000"
OPERATOR = Member(service="operator", node="operator", az="az1", host="operator")
AUTHORITIES = {"root": "labda root CA", "stores": "labda stores CA", "peers": "labda store peers CA"}
STORE_CLIENTS = frozenset({"frontend", "placement"})    # services that hold a certificate for the stores
LOOPBACK = "127.0.0.1"
TOKEN_LEFT_S = 3600.0   # a token that founding hands over is good for at least so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """Host user ids that containers read their files as. Only root can give files away; others keep them."""

    services: int = 64_000
    spawner: int = 0        # a worker's privileged part, which has no right to read other users' files
    stores: int = 64_000


@dataclass(frozen=True, slots=True)
class Made:
    """What one ``init`` added."""

    founded: bool               # the authorities are new
    nodes: tuple[str, ...]      # nodes that got a token or an intermediate, or had its certificate made anew
    stores: tuple[str, ...]


def init(
    root: Path, members: Sequence[Member], stores: Sequence[str], *, owners: Owners | None = None,
    token_s: float = node_record.TOKEN_S,
) -> Made:
    """Makes what is missing below ``root``. ``stores``: names of the store members, which are their DNS names too.

    Raises Refusal for a directory that lacks the key of what it was founded with, and for impossible names.
    """
    for name in (*(member.node for member in members), *stores):
        if not NODE.fullmatch(name):
            raise Refusal(f"{name!r} is no name for a node: it becomes a DNS name ({NODE.pattern})", Status.USAGE)
    founded = not (root / "ca" / "root.pem").exists()
    for folder in (root, root / "ca", root / "tls", root / "enrolment"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owners = _owners(root, owners)
    region, vault, peers = (authority(root, name) for name in AUTHORITIES)
    _operator(root, region, vault)
    _prometheus(root / "prometheus", region, owners)
    _secrets(root)
    made = [m.node for m in members if _node(root, m, region, vault, owners, token_s)]
    kept = [name for name in stores if _store(root / "stores" / name, name, vault, peers, owners)]
    return Made(founded, tuple(made), tuple(kept))


def refresh(root: Path) -> Made:
    """``init`` with the topology that is there."""
    members = [
        Member(service=record.service, node=record.node, az=record.az, host=record.host)
        for record in records(root) if record.service != OPERATOR.service
    ]
    return init(root, members, sorted(path.name for path in (root / "stores").glob("*")))


def authority(root: Path, name: str) -> Authority:
    """One of AUTHORITIES; made where it never was. Raises Refusal when its key is elsewhere.

    Its file holds every certificate that is trusted, and first the one that signs (``labda.cluster.rotation``).
    """
    folder = root / "ca"
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    if not certificate.exists():
        # The key is written first: without the certificate both are made again.
        Authority.create(AUTHORITIES[name]).save(folder, name)
    if not key.exists():
        raise Refusal(f"{key} is missing: bring the root's key for as long as something is issued", Status.HOST)
    return Authority.load(folder, name, root=certificate)


def new_token(root: Path, who: Member, *, before: NodeRecord | None, token_s: float) -> tuple[Token, NodeRecord]:
    """For a node that is to join (again), with the record that makes it good once the region has it."""
    token = Token.draw(who.node, (root / "ca" / "root.pem").read_bytes())
    caller = Caller(service=who.service, node=who.node, az=who.az, host=who.host)
    return token, with_token(before, caller, digest=token.digest, expires=time.time() + token_s)


def _hand_token(root: Path, member: Member, token_s: float) -> NodeRecord:
    """A node's first token. Its record goes last: a token without one is worth nothing, and is made again."""
    token, record = new_token(root, member, before=None, token_s=token_s)
    put_token(root, token)
    write_private(root / "enrolment" / f"{member.node}.json", record.encode())
    return record


def put_token(root: Path, token: Token) -> None:
    """Into its node's folder, for whom the folder is."""
    folder = root / "nodes" / token.node
    write_private(folder / "token", token.text.encode())
    give(folder, folder.stat().st_uid)


def renew_intermediate(root: Path, placement: Member, enrolment: int) -> None:
    """A new one for a placement that was replaced or revoked; the old one is refused once its number is revoked."""
    folder = root / "nodes" / placement.node
    authority(root, "root").intermediate(placement.node, enrolment).save(folder, "intermediate")
    give(folder, folder.stat().st_uid)


def records(root: Path) -> list[NodeRecord]:
    """What founding writes into the store, by node."""
    return [NodeRecord.decode(path.read_bytes()) for path in sorted((root / "enrolment").glob("*.json"))]


async def found(root: Path, metadata: MetadataStore) -> tuple[str, ...]:
    """Writes the records that the store lacks; nothing that is there is changed. Returns the nodes that were new.

    A token that has run out before the region was founded is replaced in the node's folder. Raises StorageFault; what
    was written stays, and a second call goes on.
    """
    new = []
    there = {record.key for record in (await metadata.list(node_record.PREFIX)).records}
    for record in records(root):
        key = node_record.key_of(record.node)
        if key in there:
            continue
        if record.token and record.expires < time.time() + TOKEN_LEFT_S:
            member = Member(service=record.service, node=record.node, az=record.az, host=record.host)
            record = _hand_token(root, member, node_record.TOKEN_S)  # noqa: PLW2901 - the one that counts from here on
        try:
            await metadata.put(key, record.encode(), expected=0)
        except Conflict:
            continue    # somebody else founds too
        new.append(record.node)
    return tuple(new)


# ---------------------------------------------------------------- who is handed what


def _owners(root: Path, owners: Owners | None) -> Owners:
    """Those of the last time, unless others are named."""
    state = State(root)
    if owners is None:
        found = state.read("owners.json")
        owners = Owners(**found) if found is not None else Owners()
    if state.read("owners.json") != asdict(owners):
        state.write("owners.json", asdict(owners))
    return owners


def _operator(root: Path, region: Authority, vault: Authority) -> None:
    record = root / "enrolment" / "operator.json"
    if not record.exists():
        write_private(record, NodeRecord(
            node=OPERATOR.node, service=OPERATOR.service, az=OPERATOR.az, host=OPERATOR.host
        ).encode())
    if _is_due(root / "tls" / "operator.pem", region):
        certify_operator(root, NodeRecord.decode(record.read_bytes()).enrolment)
    if _is_due(root / "tls" / "stores-operator.pem", vault):
        _put(root / "tls", "stores-operator", vault.issue_plain("operator"))


def certify_operator(root: Path, enrolment: int) -> None:
    """The root itself signs for the operator: no placement has to be there."""
    identity = Caller(
        service=OPERATOR.service, node=OPERATOR.node, az=OPERATOR.az, host=OPERATOR.host, enrolment=enrolment
    )
    _put(root / "tls", "operator", authority(root, "root").issue(identity))


def _prometheus(folder: Path, region: Authority, owners: Owners) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    _show(folder / "root.pem", region.root)
    if _is_due(folder / "client.pem", region):
        identity = Caller(service="prometheus", node="prometheus", az="az1", host="prometheus")
        _put(folder, "client", region.issue(identity))
    give(folder, owners.services)


def _secrets(root: Path) -> None:
    from frontend.auth.keys import new_key  # noqa: PLC0415 - slow to import, and needed once

    Cipher.open(root / "data.key")
    state = State(root)
    if state.read("root.json") is None:
        key = new_key(ACCOUNT, random.SystemRandom(), time.time())
        state.write("root.json", {
            "account": key.account, "access_key_id": key.key_id, "secret_access_key": key.secret,
        })


def _node(
    root: Path, member: Member, region: Authority, vault: Authority, owners: Owners, token_s: float
) -> bool:
    """Whether anything was made."""
    folder = root / "nodes" / member.node
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _show(folder / "root.pem", region.root)
    record = root / "enrolment" / f"{member.node}.json"
    if member.service == "placement":
        if not record.exists():
            write_private(record, NodeRecord(
                node=member.node, service=member.service, az=member.az, host=member.host
            ).encode())
        made = _is_due(folder / "intermediate.pem", region)
        if made:
            number = NodeRecord.decode(record.read_bytes()).enrolment
            region.intermediate(member.node, number).save(folder, "intermediate")
    else:
        made = not record.exists()
        if made:
            _hand_token(root, member, token_s)
    if member.service == "frontend":
        _show(folder / "data.key", (root / "data.key").read_bytes())
    if member.service in STORE_CLIENTS:
        made |= _client(folder / "stores", member.service, vault)
    give(folder, owners.spawner if member.service == "worker" else owners.services)
    return made


def _client(folder: Path, name: str, vault: Authority) -> bool:
    """The stores know a client by its certificate's common name, which is its service."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _show(folder / "ca.pem", vault.root)
    due = _is_due(folder / "client.pem", vault)
    if due:
        _put(folder, "client", vault.issue_plain(name))
    return due


def _store(folder: Path, name: str, vault: Authority, peers: Authority, owners: Owners) -> bool:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = False
    for issuer, root, own in ((vault, "ca", "server"), (peers, "peer-ca", "peer")):
        _show(folder / f"{root}.pem", issuer.root)
        if _is_due(folder / f"{own}.pem", issuer):
            _put(folder, own, issuer.issue_plain(name, hosts=(name, "localhost", LOOPBACK)))
            made = True
    give(folder, owners.stores)
    return made


def give(folder: Path, uid: int) -> None:
    """Makes a user the owner of a folder and what is in it, where this process may."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)


def _show(path: Path, content: bytes) -> None:
    """A file with this content, replaced only by another content: containers have it open."""
    if not path.exists() or path.read_bytes() != content:
        write_private(path, content)


def _put(folder: Path, name: str, tls: Tls) -> None:
    """The key first: a certificate that is there has its key."""
    write_private(folder / f"{name}.key", tls.key)
    write_private(folder / f"{name}.pem", tls.certificate)


def _is_due(path: Path, issuer: Authority) -> bool:
    """Whether a certificate is to be made: it never was, it is another authority's, or half of its time is over."""
    if not path.exists():
        return True
    found = x509.load_pem_x509_certificate(path.read_bytes())
    return not issuer.issued(found) or over_half(found, time.time())
