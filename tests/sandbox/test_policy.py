"""What needs no root: the groups' layout on v2, v1 and hybrid hosts, the system call list, the requests' validation."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.sandbox import cgroups, procfiles, requests, seccomp
from worker.sandbox.cgroups import Cgroups, Layout
from worker.sandbox.settings import SpawnerConfig

MB = 1 << 20

# What the kernel puts into a new group.
V2_FILES = ("cgroup.procs", "cgroup.freeze", "cgroup.kill", "cgroup.events", "cgroup.subtree_control", "memory.max",
            "memory.swap.max", "memory.events", "memory.peak", "cpu.max", "pids.max")


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that behaves like a v2 mount: new groups have their files, and removing one takes them along."""
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name in V2_FILES:
            (Path(path) / name).write_text("")

    def remove(path: str) -> None:
        for name in V2_FILES:
            (Path(path) / name).unlink(missing_ok=True)
        rmdir(path)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    return tmp_path


def test_v2_limits_and_paths(v2: Path) -> None:
    layout = cgroups.detect(f"30 23 0:26 / {v2} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    assert layout.missing() == []
    groups = Cgroups(layout, "w1")
    groups.open()
    assert (v2 / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (v2 / "labda-w1/cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    group = groups.create("s1", 256)
    top = v2 / "labda-w1/s1"
    assert (top / "memory.max").read_text() == str(256 * MB)
    assert (top / "memory.swap.max").read_text() == "0"
    assert (top / "pids.max").read_text() == "1024"
    assert (top / "cpu.max").read_text() == "100000 100000"     # boosted at first
    (top / "cpu.max").write_text("")    # a plain file keeps the rest of a longer text
    group.limit_cpu(boosted=False)
    assert (top / "cpu.max").read_text().split() == ["14471", "100000"]
    assert group.join_files == []
    assert group.born_in == str(top)
    assert group.run_directory == f"{top}/run"
    assert group.run_file == f"{top}/run/cgroup.procs"
    assert group.freeze_file == f"{top}/run/cgroup.freeze"
    assert group.peak_file == f"{top}/memory.peak"
    (top / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    group.begin_oom_watch()
    assert not group.oom_killed()
    (top / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    assert group.oom_killed()
    assert group.remove()
    assert not top.exists()
    groups.close()
    assert not (v2 / "labda-w1").exists()


def test_an_earlier_incarnations_groups_are_cleared(v2: Path) -> None:
    layout = Layout(v2=str(v2), v2_controllers=frozenset({"memory", "cpu", "pids"}))
    first = Cgroups(layout, "w1")
    first.open()
    first.create("s1", 128)
    Cgroups(layout, "w1").open()
    assert not (v2 / "labda-w1/s1").exists()


def test_hybrid_takes_limits_from_v1_and_the_freezer_from_v2(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("\n")
    lines = [f"33 30 0:29 / {tmp_path}/{name} rw - cgroup cgroup rw,{name}\n" for name in ("memory", "pids", "freezer")]
    lines.append(f"33 30 0:29 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n")
    lines.append(f"34 30 0:30 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n")
    layout = cgroups.detect("".join(lines))
    assert layout.missing() == []
    assert layout.freezer == "v2"
    assert layout.home("memory") == f"{tmp_path}/memory"
    assert layout.home("cpu") == f"{tmp_path}/cpu,cpuacct"
    assert layout.home("devices") == ""


def test_what_is_missing_is_named() -> None:
    layout = cgroups.detect("33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    assert layout.missing() == ["cpu", "pids", "freezer"]
    with pytest.raises(cgroups.CgroupsMissing, match="cpu, pids, freezer"):
        Cgroups(layout, "w")


@pytest.mark.parametrize(("memory_mb", "quota", "boosted"), [
    (128, 7235, 100_000), (1769, 100_000, 100_000), (3538, 200_000, 200_000), (10240, 578_858, 578_858),
])
def test_cpu_follows_memory(memory_mb: int, quota: int, boosted: int) -> None:
    assert cgroups.cpu_quota_us(memory_mb, boosted=False) == quota
    assert cgroups.cpu_quota_us(memory_mb, boosted=True) == boosted


def test_every_group_of_calls_has_a_reason() -> None:
    assert len(seccomp.load()["allow"]) > 10        # load() itself refuses a group without one
    for section in ("allow", "check"):
        profile = seccomp.load()
        for group, reason in ((profile[section][0], "because"), (profile[section][-1], None)):
            if reason is None:
                del group["reason"]
            else:
                group["reason"] = reason
            with pytest.raises(seccomp.BadProfile, match=profile[section][0]["name"]):
                seccomp.check_reasons(profile)


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = 0xC000003E) -> int:
    """Runs a filter as the kernel would: the few instructions that the assembler uses."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(arguments + (0,) * 6)[:6])
    at = accumulator = 0
    while True:
        code, true, false, constant = struct.unpack_from("HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("I", data, constant)[0]
            case 0x06:
                return int(constant)
            case 0x54:
                accumulator &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += true if accumulator == constant else false
            case 0x35:
                at += true if accumulator >= constant else false
            case 0x45:
                at += true if accumulator & constant else false
            case _:
                raise AssertionError(hex(code))


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_program_says_what_the_list_says(machine: str, arch: int) -> None:
    profile = seccomp.load()
    program = seccomp.compile_profile(profile, machine)
    table = seccomp.numbers(machine)
    allowed = {table[name] for group in profile["allow"] for name in group["calls"] if name in table}
    checked = {table[check["call"]] for check in profile["check"]}
    absent = {table[name] for name in profile["absent"]["calls"]}
    allow, eperm, enosys, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    for number in range(max(table.values()) + 1):
        if number not in checked:
            expected = allow if number in allowed else enosys if number in absent else eperm
            assert verdict(program, number, arch=arch) == expected, number
    assert verdict(program, 5000, arch=arch) == enosys
    assert verdict(program, 0x40000001, arch=arch) == kill
    assert verdict(program, 1, arch=0x40000003) == kill
    clone, socket_call, ioctl = table["clone"], table["socket"], table["ioctl"]
    assert verdict(program, clone, (0x3D0F00,), arch) == allow      # a thread
    assert verdict(program, clone, (0x10000011,), arch) == eperm
    assert verdict(program, socket_call, (2, 1 | 0o2000000), arch) == allow
    assert verdict(program, socket_call, (2, 3), arch) == eperm
    assert verdict(program, socket_call, (16, 3), arch) == eperm
    assert verdict(program, ioctl, (0, 0x5412), arch) == eperm
    assert verdict(program, ioctl, (0, 0x541B), arch) == allow


def test_a_call_may_be_listed_once() -> None:
    profile = seccomp.load()
    profile["allow"][0]["calls"].append("clone")
    with pytest.raises(seccomp.BadProfile, match="clone"):
        seccomp.compile_profile(profile, "x86_64")


@pytest.mark.parametrize("message", [
    {"op": "reboot"}, {"op": ["create"]}, {"op": "kill", "sandbox": "a/b"}, {"op": "kill", "sandbox": "a" * 41},
    {"op": "kill", "sandbox": "a", "more": 1}, {"op": "kill"}, {"op": "has_code", "sha256": "A" * 64},
    {"op": "limit_cpu", "sandbox": "a", "boosted": 1},
    {"op": "start", "sandbox": "a", "handler": "h\0", "environment": {}},
    {"op": "start", "sandbox": "a", "handler": "h", "environment": {"A=B": "c"}},
    {"op": "start", "sandbox": "a", "handler": "h", "environment": {"A": "\0"}},
    {"op": "start", "sandbox": "a", "handler": "h", "environment": {"A": "x" * 70_000}},
    {"op": "unpack", "sha256": "0" * 64, "size_bytes_max": True, "entries_max": 1},
])
def test_requests_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(requests.RequestRefused):
        requests.parse({"id": 1, **message}, 1 if message["op"] == "unpack" else 0)


def test_a_good_request_passes() -> None:
    request = requests.parse({"id": 3, "op": "kill", "sandbox": "s-1"}, 0)
    assert (request.id, request.op, request.sandbox) == (3, "kill", "s-1")
    with pytest.raises(requests.RequestRefused, match="descriptors"):
        requests.parse({"id": 3, "op": "kill", "sandbox": "s-1"}, 1)


def test_proc_files_show_the_functions_size() -> None:
    texts = procfiles.render("processor\t: 7\nmodel name\t: X\ncpu cores\t: 64", 10240)
    assert texts["cpuinfo"].count("processor") == 6
    assert "cpu cores\t: 6" in texts["cpuinfo"]
    assert texts["meminfo"].splitlines()[0] == "MemTotal:       10485760 kB"


def test_settings_refuse_what_cannot_be() -> None:
    good = {"name": "w", "state_dir": "/s", "runtimes_dir": "/r", "uid_base": 200_000}
    again = SpawnerConfig.from_json(SpawnerConfig(**good, agent_owned=("/x",)).to_json())  # type: ignore[arg-type]
    assert again.agent_owned == ("/x",)
    for change in ({"name": "../w"}, {"state_dir": "s"}, {"uid_base": 0}, {"sandboxes_max": 0}, {"agent_uid": 0}):
        with pytest.raises(ValueError, match="must"):
            SpawnerConfig(**{**good, **change})  # type: ignore[arg-type]


def test_the_spawner_is_made_of_the_standard_library_and_its_own_modules() -> None:
    # The rules for archives are shared with who takes uploads: standard library only, they too.
    code = ("import sys; import worker.sandbox.spawner_process\n"
            "others = [n for n in sys.modules if n.split('.')[0] in {'grpc', 'chassis', 'protos', 'asyncio'}]\n"
            "print([n for n in others if n not in {'chassis', 'chassis.archive'}])")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=Path(__file__).resolve().parents[2])
    assert answer.stdout.strip() == "[]"
