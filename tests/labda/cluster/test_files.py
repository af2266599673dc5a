"""The files of a cluster in containers: what is committed, what each process is told, who is given what."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chassis import config
from counting.config import CountingConfig
from frontend.config import FrontendConfig
from labda.cluster import compose_file, endpoint_file, node_files, scraping, shape
from labda.refusal import Refusal
from labda.topology import Member, Topology
from placement.config import PlacementConfig
from worker.config import WorkerConfig
from worker.sandbox.doctor import CAPABILITIES
from worker_manager.config import ManagerConfig

Services = dict[str, dict[str, Any]]

SHAPE = shape.read(shape.TOPOLOGY)
KINDS = {
    "counting": CountingConfig, "frontend": FrontendConfig, "placement": PlacementConfig, "worker": WorkerConfig,
    "worker_manager": ManagerConfig,
}


@pytest.fixture(scope="module")
def described() -> Services:
    """The services as docker compose understands the committed file."""
    if shutil.which("docker") is None:
        pytest.skip("needs docker compose v2: it reads the file")
    said = subprocess.run(
        ["docker", "compose", "--profile", "*", "-f", str(shape.DEPLOY / "compose.yaml"), "config", "--format", "json"],
        capture_output=True, text=True, check=False, env={**os.environ, "LABDA_STATE": "/state"},
    )
    assert said.returncode == 0, said.stderr
    found: Services = json.loads(said.stdout)["services"]
    return found


def test_the_committed_file_is_what_render_writes() -> None:
    assert (shape.DEPLOY / "compose.yaml").read_text() == compose_file.render(SHAPE), "run: labda cluster render"


def test_each_az_has_its_members_on_its_own_network_and_the_regions(described: Services) -> None:
    for az in ("az1", "az2", "az3"):
        inside = {name: one for name, one in described.items() if one["labels"].get("labda.az") == az}
        services = sorted(one["labels"]["labda.service"] for one in inside.values())
        assert services == sorted([
            "etcd", "nats", "counting", "frontend", "worker_manager", "placement", "worker", "worker",
        ])
        assert all(set(one["networks"]) == {az, "region"} for one in inside.values())
        hosts = [one["labels"]["labda.host"] for one in inside.values() if one["labels"]["labda.service"] == "worker"]
        assert len(set(hosts)) == 2
    assert all({"labda.service", "labda.node"} <= set(one["labels"]) for one in described.values())


def test_nobody_gets_more_than_he_needs(described: Services) -> None:
    for name, one in described.items():
        worker = one["labels"]["labda.service"] == "worker"
        assert not one.get("privileged"), name
        assert one["cap_drop"] == ["ALL"], name
        assert one["read_only"], name
        assert "no-new-privileges:true" in one["security_opt"], name
        assert sorted(one.get("cap_add") or []) == (sorted(CAPABILITIES) if worker else []), name
        assert (one.get("user") == "0:0") == worker, name
        assert all(volume["target"] != "/etc/labda" or volume["read_only"] for volume in one["volumes"]), name
    published = {name for name, one in described.items() if one.get("ports")}
    assert published == {"endpoint", "prometheus"}
    assert all(port["host_ip"] == "127.0.0.1" for name in published for port in described[name]["ports"])


def test_what_drains_is_given_the_time_that_the_longest_function_takes(described: Services) -> None:
    for member in SHAPE.members:
        minutes, seconds = re.findall(r"(?:(\d+)m)?(\d+)s", described[member.node]["stop_grace_period"])[0]
        assert int(minutes or 0) * 60 + int(seconds) > node_files.settings(SHAPE, member).node.drain_s, member.node
    for service in ("frontend", "worker"):
        told = node_files.settings(SHAPE, SHAPE.of(service)[0])
        assert told.node.drain_s > WorkerConfig.__dataclass_fields__["timeout_cap_s"].default, service


def test_the_endpoint_gives_up_what_is_not_acknowledged(described: Services) -> None:
    """Not by HAProxy's tcp-ut, which it ignores for servers that are names."""
    assert described["endpoint"]["sysctls"] == {"net.ipv4.tcp_retries2": "2"}
    assert endpoint_file.haproxy(SHAPE).count("tcp-ut") == 1    # towards clients


@pytest.mark.parametrize("member", SHAPE.members, ids=lambda member: member.node)
def test_every_process_can_read_what_it_is_told(member: Member) -> None:
    told = node_files.settings(SHAPE, member)
    assert config.parse(KINDS[member.service], config.dump(told), "file") == told
    assert told.node.advertise == member.node
    # Only these two hold credentials for the stores.
    assert hasattr(told, "store_tls") == (member.service in {"frontend", "placement"})


def test_a_cluster_that_is_traced_keeps_its_traces() -> None:
    traced = dataclasses.replace(SHAPE, trace=True)
    for member in SHAPE.members:
        assert not node_files.settings(SHAPE, member).node.trace
        assert node_files.settings(traced, member).node.trace == f"{shape.KEPT_DIR}/trace.ndjson"


def test_workers_of_one_machine_share_no_ids() -> None:
    firsts = sorted(SHAPE.uid_base(worker) for worker in SHAPE.of("worker"))
    assert all(later - earlier >= 2002 for earlier, later in pairwise(firsts))


@pytest.mark.parametrize("more", [{"workers_per_az": 20}, {"azs": 9}])
def test_workers_keep_their_ids_when_more_are_added(more: dict[str, int]) -> None:
    larger = dataclasses.replace(SHAPE, topology=dataclasses.replace(SHAPE.topology, **more))
    firsts = {worker.node: larger.uid_base(worker) for worker in larger.of("worker")}
    assert {worker.node: SHAPE.uid_base(worker) for worker in SHAPE.of("worker")}.items() <= firsts.items()
    assert all(later - earlier >= 2002 for earlier, later in pairwise(sorted(firsts.values())))
    assert max(firsts.values()) + 2002 <= 100_000_000, "an embedded cluster's begin there"


def test_the_endpoint_sends_again_only_what_was_not_sent() -> None:
    text = endpoint_file.haproxy(SHAPE)
    assert "retry-on conn-failure\n" in text
    assert "check inter 200ms" in text
    for backend in ("frontends", "unchecked"):
        servers = text.split(f"\nbackend {backend}\n")[1].split("\n\n")[0]
        assert all(f"server {member.node} {member.node}:7003" in servers for member in SHAPE.of("frontend"))


def test_prometheus_asks_everybody() -> None:
    text = scraping.prometheus(SHAPE)
    assert all(member.node in text for member in SHAPE.members)
    assert "worker-manager.labda" in text


def test_an_impossible_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "topology.toml"
    file.write_text("[topology]\nazs = 2\n")
    with pytest.raises(Refusal, match="stores need three members"):
        shape.read(file)


def test_a_counting_member_that_lost_its_files_has_a_successor_of_another_name() -> None:
    later = dataclasses.replace(SHAPE, replaced={"counting-az1": 2})
    assert [member.node for member in later.of("counting")] == ["counting-az1-2", "counting-az2", "counting-az3"]
    told = node_files.settings(later, later.of("counting")[0])
    assert told.members["counting-az1-2"] == f"counting-az1-2:{shape.RAFT}"
    assert "counting-az1" not in told.members
    with pytest.raises(ValueError, match="names a member of counting"):
        dataclasses.replace(SHAPE, replaced={"worker-az1-1": 2})


def test_a_store_member_that_joins_is_told_so_by_the_environment() -> None:
    assert "--initial-cluster-state=${LABDA_ETCD_STATE:-new}" in compose_file.etcd_command(SHAPE, "etcd-az2")


def test_an_endpoint_beyond_this_host_is_https() -> None:
    assert "ssl crt" not in endpoint_file.haproxy(SHAPE)
    assert "ssl crt /etc/labda/endpoint.pem" in endpoint_file.haproxy(
        dataclasses.replace(SHAPE, endpoint="0.0.0.0:443")
    )


def test_a_shape_of_five_azs_has_five_store_members() -> None:
    big = shape.Shape(topology=Topology(azs=5, managers=5, placements=3))
    assert len(big.stores("etcd")) == 5
    assert len(big.of("counting")) == 5
    assert "nats-az5" in compose_file.render(big)
