"""What a worker's container is given: the seccomp profile, and groups that end with it."""

import json
from pathlib import Path

from worker.sandbox import cgroup_mounts, cgroups, container_profile, seccomp

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "deploy" / "compose" / "seccomp-worker.json"

HYBRID = """\
9:name=systemd:/docker/3aa4
6:freezer:/docker/3aa4
4:memory:/docker/3aa4
2:cpu,cpuacct:/docker/3aa4
1:blkio:/docker/3aa4
0::/docker/3aa4
"""


def test_the_committed_profile_is_what_the_lists_say() -> None:
    assert COMMITTED.read_text() == container_profile.render(), "run: labda cluster render"


def test_whatever_a_sandbox_may_call_its_container_may() -> None:
    profile = json.loads(COMMITTED.read_text())
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    inside = seccomp.load()
    assert {name for group in inside["allow"] for name in group["calls"]} <= allowed
    assert {check["call"] for check in inside["check"]} <= allowed
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


def test_what_the_kernel_shows_to_few_stays_refused() -> None:
    profile = json.loads(COMMITTED.read_text())
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    refused = {"bpf", "kexec_load", "init_module", "finit_module", "keyctl", "open_by_handle_at", "perf_event_open",
               "process_vm_readv", "ptrace", "reboot", "settimeofday", "swapon", "userfaultfd", "io_uring_setup"}
    assert not allowed & refused


def test_hierarchies_that_share_a_mount_are_mounted_together() -> None:
    assert cgroup_mounts.hierarchies(HYBRID) == [
        ("freezer", "cgroup", "freezer"), ("memory", "cgroup", "memory"), ("cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        ("unified", "cgroup2", ""),
    ]


def test_the_top_of_the_machines_groups_is_known(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "memory").mkdir()
    layout = cgroups.Layout(v2=str(tmp_path / "unified"), v1={"memory": str(tmp_path / "memory")})
    assert cgroup_mounts.shows_host(layout)             # v2 without a type
    (tmp_path / "unified" / "cgroup.type").touch()
    assert not cgroup_mounts.shows_host(layout)
    (tmp_path / "memory" / "release_agent").touch()     # v1's top has one
    assert cgroup_mounts.shows_host(layout)


def test_where_groups_are_writable_nothing_is_mounted(tmp_path: Path, needs_root: None) -> None:
    assert cgroup_mounts.writable(str(tmp_path)) == cgroups.detect(cgroup_mounts.mountinfo())
    assert list(tmp_path.iterdir()) == []
