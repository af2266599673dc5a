"""A host that can't run a cluster: one sentence says what it lacks and the remedy, before anything is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labda import host
from tests.small_disk import small_disk

ROOT = Path(__file__).parents[2]
NOBODY = 65534
# Everything is imported (some of it by the checks themselves) before privileges are given up: nobody may not read this.
AS_NOBODY = f"""
import encodings.ascii, os, sys
from pathlib import Path
import labda.commands.up, labda.supervisor
from labda.__main__ import main
from labda.commands import doctor
doctor.checks(Path(".runtimes"), Path("/"))
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(main(sys.argv[1:]))
"""
WITHOUT_NAMESPACES = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$@"'


def run(argv):
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def refused(done, state):
    """The one sentence of `labda up`; nothing was made."""
    assert done.returncode == 5
    assert done.stderr.startswith("labda: this host can't run labda: ")
    assert done.stderr.count("\n") == 1
    assert not state.exists()
    return done.stderr


def test_without_root(tmp_path):
    _needs_root()
    state = tmp_path / "state"
    said = refused(run([sys.executable, "-c", AS_NOBODY, "up", "--state", str(state)]), state)
    assert f"labda runs as user {NOBODY}: run it as root (sudo)" in said
    shown = run([sys.executable, "-c", AS_NOBODY, "doctor", "--state", str(state)])
    assert shown.returncode == 5
    assert f"missing  root               labda runs as user {NOBODY}" in shown.stdout


def test_without_namespaces(tmp_path):
    """In a user namespace of its own that may make no further mount namespace."""
    _needs_root()
    state = tmp_path / "state"
    labda = [sys.executable, "-m", "labda"]
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", WITHOUT_NAMESPACES, "sh", *labda]
    said = refused(run([*inside, "up", "--state", str(state)]), state)
    assert "namespaces can't be had: a limit of user.max_*_namespaces is reached: allow them" in said
    shown = run([*inside, "doctor", "--state", str(state)])
    assert shown.returncode == 5
    assert "missing  namespaces" in shown.stdout
    assert "ok       root" in shown.stdout


def test_without_room(tmp_path):
    _needs_root()
    with small_disk(tmp_path / "disk", size_mb=8) as disk:
        state = disk.path / "state"
        said = refused(run([sys.executable, "-m", "labda", "up", "--state", str(state)]), state)
    assert "8 MB are free in" in said or "7 MB are free in" in said
    assert "a cluster needs 64 MB to start: free some space, or name a state directory on another disk" in said


def test_little_room_is_weak_and_not_fatal(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "DISK_BYTES_MIN", 1 << 60)
    (disk,) = [check for check in host.checks(tmp_path / "not" / "there" / "yet") if check.name == "disk"]
    assert not disk.ok
    assert not disk.fatal
    assert "sandboxes and code caches need 2 GB" in disk.missing


def _needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
