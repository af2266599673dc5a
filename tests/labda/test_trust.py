"""What a cluster is founded on: who is handed what, what a second look changes, and what the store learns."""

import itertools
import os
import stat
import time

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from chassis.certificates import YEAR_S, Authority
from chassis.clock import SystemClock
from chassis.identity import ALLOWED, caller_of
from chassis.rpc import Caller
from chassis.tokens import Token
from labda.__main__ import main
from labda.cluster import trust
from labda.cluster.rotation import Step, rotate
from labda.refusal import Refusal
from labda.topology import Member, Topology
from placement import node_record
from placement.node_record import NodeRecord
from storage.memory import MemoryMetadata

STORES = ("etcd-az1", "nats-az1")
MEMBERS = Topology(azs=1, placements=1, managers=1).members()


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "state"
    trust.init(root, MEMBERS, STORES)
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_who_is_handed_what(root):
    handed = {}
    for node in (root / "nodes").iterdir():
        handed[node.name] = {str(path.relative_to(node)) for path in node.rglob("*") if path.is_file()}
    stores = {"stores/ca.pem", "stores/client.pem", "stores/client.key"}
    assert handed.pop("placement-az1") == {"root.pem", "intermediate.pem", "intermediate.key"} | stores
    assert handed.pop("frontend-az1-1") == {"root.pem", "token", "data.key"} | stores
    assert handed
    for node, names in handed.items():
        assert names == {"root.pem", "token"}, node
    for path in root.rglob("*"):
        if path.suffix in {".key", ".json"} or path.name == "token":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_containers_can_read_their_own_files(tmp_path):
    trust.init(tmp_path, MEMBERS, STORES, owners=trust.Owners(services=4711, spawner=0, stores=4712))
    owner = {path: path.stat().st_uid for path in tmp_path.rglob("*")}
    assert owner[tmp_path / "nodes" / "frontend-az1-1" / "stores" / "client.key"] == 4711
    assert owner[tmp_path / "nodes" / "worker-az1-1" / "token"] == 0
    assert owner[tmp_path / "stores" / "etcd-az1" / "peer.key"] == 4712
    assert owner[tmp_path / "ca" / "root.key"] == os.geteuid()


def test_the_chains(root):
    region, stores = load(root / "ca" / "root.pem"), load(root / "ca" / "stores.pem")
    peers = load(root / "ca" / "peers.pem")
    intermediate = load(root / "nodes" / "placement-az1" / "intermediate.pem")
    intermediate.verify_directly_issued_by(region)
    assert intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert region.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 1
    for name in STORES:
        server, peer = load(root / "stores" / name / "server.pem"), load(root / "stores" / name / "peer.pem")
        server.verify_directly_issued_by(stores)
        peer.verify_directly_issued_by(peers)   # another root: no client passes for a member
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name, "localhost"]
        assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    clients = {
        "frontend": root / "nodes" / "frontend-az1-1" / "stores" / "client.pem",
        "placement": root / "nodes" / "placement-az1" / "stores" / "client.pem",
        "operator": root / "tls" / "stores-operator.pem",
    }
    for name, path in clients.items():
        client = load(path)
        client.verify_directly_issued_by(stores)
        assert client.subject.rfc4514_string() == f"CN={name}"
        uses = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    for path, service in (("tls/operator.pem", "operator"), ("prometheus/client.pem", "prometheus")):
        certificate = load(root / path)
        certificate.verify_directly_issued_by(region)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert caller_of(names.get_values_for_type(x509.UniformResourceIdentifier)[0]).service == service
    assert not any("prometheus" in services for services in ALLOWED.values())


def test_only_hashes_of_tokens_are_kept(root):
    for member in MEMBERS:
        record = NodeRecord.decode((root / "enrolment" / f"{member.node}.json").read_bytes())
        assert record.caller == Caller(
            service=member.service, node=member.node, az=member.az, host=member.host, enrolment=1
        )
        path = root / "nodes" / member.node / "token"
        assert path.exists() == bool(record.token) == (member.service != "placement")
        if path.exists():
            token = Token.parse(path.read_text())
            token.check_root((root / "ca" / "root.pem").read_bytes())
            assert (token.node, token.digest) == (member.node, record.token)
            assert time.time() + 86_000 < record.expires < time.time() + 86_400
            assert token.secret not in "".join(
                content.decode(errors="replace") for name, content in files(root).items()
                if name != f"nodes/{member.node}/token"
            )


def test_a_second_init_changes_nothing_and_a_larger_topology_is_added(root):
    before = files(root)
    made = trust.init(root, MEMBERS, STORES)
    assert (made.founded, made.nodes, made.stores) == (False, (), ())
    assert files(root) == before
    more = (*MEMBERS, Member(service="worker", node="worker-az1-2", az="az1", host="host-az1-2"))
    assert trust.init(root, more, STORES).nodes == ("worker-az1-2",)
    assert before.items() <= files(root).items()


def test_what_is_past_half_of_its_time_is_made_anew(root, monkeypatch):
    before = files(root)
    later = time.time() + 3 * YEAR_S
    monkeypatch.setattr(time, "time", lambda: later)
    made = trust.init(root, MEMBERS, STORES)
    assert set(made.nodes) == {"placement-az1", "frontend-az1-1"}
    assert made.stores == STORES
    changed = {name for name, content in files(root).items() if before.get(name) != content}
    assert {name.rsplit(".", 1)[0] for name in changed} == {
        "tls/operator", "tls/stores-operator", "prometheus/client", "nodes/placement-az1/intermediate",
        *(f"nodes/{node}/stores/client" for node in ("placement-az1", "frontend-az1-1")),
        *(f"stores/{name}/{own}" for name in STORES for own in ("server", "peer")),
    }


def test_an_init_that_was_cut_off_is_finished(root):
    (root / "enrolment" / "worker-az1-1.json").unlink()
    (root / "ca" / "stores.pem").unlink()
    made = trust.init(root, MEMBERS, STORES)
    assert set(made.nodes) == {"worker-az1-1", "placement-az1", "frontend-az1-1"}   # a new stores CA: new clients
    assert made.stores == STORES
    load(root / "stores" / "etcd-az1" / "server.pem").verify_directly_issued_by(load(root / "ca" / "stores.pem"))
    record = NodeRecord.decode((root / "enrolment" / "worker-az1-1.json").read_bytes())
    assert Token.parse((root / "nodes" / "worker-az1-1" / "token").read_text()).digest == record.token


def test_a_root_whose_key_is_elsewhere_is_not_replaced(root):
    (root / "ca" / "root.key").unlink()
    with pytest.raises(Refusal, match=r"root\.key is missing"):
        trust.init(root, MEMBERS, STORES)


def test_an_authority_is_replaced_in_three_steps(root):
    """After each step whoever was restarted and whoever wasn't yet take each other's certificates."""
    shown, trusted = [], []

    def look():
        shown.append(load(root / "nodes" / "placement-az1" / "intermediate.pem"))
        trusted.append(x509.load_pem_x509_certificates((root / "nodes" / "worker-az1-1" / "root.pem").read_bytes()))

    look()
    assert rotate(root, "root", {}) is Step.ANNOUNCED
    look()
    assert rotate(root, "root", {}) is Step.SWITCHED
    look()
    assert rotate(root, "root", {}) is Step.DROPPED
    look()
    assert [len(roots) for roots in trusted] == [1, 2, 2, 1]
    assert shown[0] == shown[1] != shown[2] == shown[3]
    for before, after in itertools.pairwise(range(4)):
        for mine, theirs in ((before, after), (after, before)):
            assert any(issued(root, shown[mine]) for root in trusted[theirs])
    assert not any(issued(root, shown[0]) for root in trusted[3])
    assert issued(trusted[3][0], load(root / "tls" / "operator.pem"))
    assert issued(trusted[3][0], load(root / "prometheus" / "client.pem"))
    names = [certificate.subject.rfc4514_string() for certificate in (trusted[0][0], trusted[3][0])]
    assert names == ["CN=labda root CA", "CN=labda root CA 2"]
    Token.parse((root / "nodes" / "worker-az1-1" / "token").read_text())
    assert not list((root / "ca").glob("*next*"))


def test_no_authority_is_replaced_further_while_a_node_runs_with_what_was_before(root):
    began = time.time()
    assert rotate(root, "root", {"worker-az1-1": began - 60.0}) is Step.ANNOUNCED     # nothing was done before
    before = (root / "ca" / "root.pem").read_bytes()
    started = {"counting-az1": time.time() + 1.0, "worker-az1-1": began - 60.0, "etcd-az1": began - 60.0}
    with pytest.raises(Refusal, match=r"etcd-az1, worker-az1-1 run with .* `labda cluster roll` first"):
        rotate(root, "root", started)
    assert (root / "ca" / "root.pem").read_bytes() == before
    assert rotate(root, "root", dict.fromkeys(started, time.time() + 1.0)) is Step.SWITCHED


def issued(issuer, certificate):
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, InvalidSignature):
        return False
    return True


def test_the_stores_authorities_are_replaced_the_same_way_and_a_step_that_was_cut_off_is_finished(root):
    assert rotate(root, "peers", {}) is Step.ANNOUNCED
    pem = root / "ca" / "peers.pem"
    first, second = x509.load_pem_x509_certificates(pem.read_bytes())
    parts = [one.public_bytes(serialization.Encoding.PEM) for one in (second, first)]
    pem.write_bytes(b"".join(parts))    # cut off in the second step: before its key was put in place
    assert rotate(root, "peers", {}) is Step.SWITCHED
    peer = load(root / "stores" / "etcd-az1" / "peer.pem")
    assert issued(second, peer)
    bundle = x509.load_pem_x509_certificates((root / "stores" / "etcd-az1" / "peer-ca.pem").read_bytes())
    assert bundle == [second, first]
    assert rotate(root, "peers", {}) is Step.DROPPED
    assert load(root / "stores" / "etcd-az1" / "peer.pem") == peer
    with pytest.raises(Refusal, match="there are root, stores, peers"):
        rotate(root, "placement-az1", {})


def test_a_name_that_is_no_dns_name_is_refused(tmp_path):
    with pytest.raises(Refusal, match="'worker_1' is no name for a node"):
        trust.init(tmp_path, [Member(service="worker", node="worker_1", az="az1", host="h1")], STORES)


async def test_founding_writes_what_the_store_lacks_and_replaces_tokens_that_ran_out(root):
    store = MemoryMetadata(SystemClock())
    old = NodeRecord.decode((root / "enrolment" / "worker-az1-1.json").read_bytes())
    expired = NodeRecord(node=old.node, service=old.service, az=old.az, host=old.host, token=old.token, expires=1.0)
    (root / "enrolment" / "worker-az1-1.json").write_bytes(expired.encode())
    used = NodeRecord(node="counting-az1", service="counting", az="az1", host="h", used_at=5.0)
    await store.put(node_record.key_of("counting-az1"), used.encode(), expected=0)
    nodes = {member.node for member in MEMBERS} | {"operator"}
    assert set(await trust.found(root, store)) == nodes - {"counting-az1"}
    assert await trust.found(root, store) == ()
    kept = {record.key: NodeRecord.decode(record.value) for record in (await store.list(node_record.PREFIX)).records}
    assert kept[node_record.key_of("counting-az1")] == used
    fresh = kept[node_record.key_of("worker-az1-1")]
    assert fresh.expires > time.time() + 80_000
    assert Token.parse((root / "nodes" / "worker-az1-1" / "token").read_text()).digest == fresh.token != old.token


def test_the_command(tmp_path, capsys):
    (tmp_path / "topology.toml").write_text("[topology]\nazs = 3\n")
    command = ["cluster", "init", "--state", str(tmp_path / "s"), "--topology", str(tmp_path / "topology.toml")]
    assert main(command) == 0
    assert "founded" in capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == f"unchanged  {tmp_path / 's'}\n"
    (tmp_path / "topology.toml").write_text("az = 1\n")
    assert main(command) == 2
    assert "az is not a setting" in capsys.readouterr().err


def test_an_intermediate_issues_no_authority_and_nothing_outlives_its_issuer():
    root = Authority.create()
    intermediate = root.intermediate("placement-az1")
    tls = intermediate.issue(Caller(service="worker", node="w", az="az1", host="h"), lifetime_s=100 * YEAR_S)
    leaf, above = x509.load_pem_x509_certificates(tls.certificate)
    assert above == intermediate.certificate
    assert leaf.not_valid_after_utc == above.not_valid_after_utc
    assert tls.authority == root.pem
