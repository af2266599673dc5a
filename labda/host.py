"""What this host must have before a cluster is started on it, apart from what sandboxes need (``worker.sandbox``).

Owns those checks. Each says what is missing and the command that gets it.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

DISK_BYTES_MIN = 2 << 30
DISK_BYTES_NEEDED = 64 << 20     # journals, certificates, metadata and logs of a cluster that does nothing yet
SHOWN_FILES_MIN = 4096
STORE_PROGRAMS = ("etcd", "nats-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """``fatal``: nothing runs without it. ``missing`` and ``remedy`` are empty when it is there."""

    name: str
    ok: bool
    missing: str = ""
    remedy: str = ""
    fatal: bool = True


def checks(state: Path) -> list[Check]:
    return [
        _check("Linux", sys.platform == "linux", "sandboxes are made of Linux namespaces", "use a Linux machine"),
        _check("root", os.geteuid() == 0, f"labda runs as user {os.geteuid()}", "run it as root (sudo)"),
        _check(
            "Python", sys.version_info >= (3, 11), f"this is Python {sys.version.split()[0]}, 3.11 is needed",
            "apt-get install python3 python3-venv, then make setup",
        ),
        _check(
            "setpriv", shutil.which("setpriv") is not None, "no setpriv, which ends processes with their supervisor",
            "apt-get install util-linux",
        ),
        _check(
            "pidfd", hasattr(os, "pidfd_open"), "the kernel or Python has no pidfd_open", "use Linux 5.3 or later"
        ),
        _disk(state),
        _open_files(),
    ]


def stores(project: Path) -> list[Check]:
    """Members of a cluster's stores, where a checkout is: only its tests start them on the host itself."""
    if not (project / "deploy" / "stores.sh").exists():
        return []
    folder = project / ".stores"
    lacking = [name for name in STORE_PROGRAMS if not (folder / "bin" / name).exists()]
    said = folder / "missing"
    why = said.read_text().strip().replace("\n", "; ") if said.exists() else "set-up didn't run yet"
    return [Check(
        name="stores", ok=not lacking, fatal=False,
        missing=f"no {', '.join(lacking)}, which the stores' tests start ({why})" if lacking else "",
        remedy="deploy/stores.sh" if lacking else "",
    )]


def _check(name: str, ok: bool, missing: str, remedy: str) -> Check:
    return Check(name=name, ok=ok, missing="" if ok else missing, remedy="" if ok else remedy)


def _disk(state: Path) -> Check:
    folder = next(parent for parent in (state, *state.parents) if _seen(parent))
    free = shutil.disk_usage(folder).free
    ok = free >= DISK_BYTES_MIN
    need = "a cluster needs 64 MB to start" if free < DISK_BYTES_NEEDED else "sandboxes and code caches need 2 GB"
    return Check(
        name="disk", ok=ok, fatal=free < DISK_BYTES_NEEDED,
        missing="" if ok else f"{free >> 20:,} MB are free in {folder}: {need}",
        remedy="" if ok else "free some space, or name a state directory on another disk with --state",
    )


def _seen(path: Path) -> bool:
    """Whether it is there, as far as this user may look."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _open_files() -> Check:
    import resource  # noqa: PLC0415 - there is none outside of Unix, where the first check says so

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = hard >= SHOWN_FILES_MIN
    return Check(
        name="open files", ok=ok, fatal=False,
        missing="" if ok else f"at most {hard} open files are allowed per process (now {soft})",
        remedy="" if ok else f"ulimit -n {SHOWN_FILES_MIN}",
    )
