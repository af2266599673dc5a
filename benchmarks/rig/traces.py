"""What a cluster leaves on its host besides memory: mounts, namespaces, control groups, loop devices, files.

Owns the counting, from /proc, /sys and the state directory. Only what belongs to this cluster is counted: other
clusters on the machine don't matter.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from labda.launch import cluster_id
from labda.state import State
from worker.sandbox.cgroups import detect

_NAMESPACE = re.compile(r"(mnt|pid|net|ipc|uts|cgroup|user|time):\[\d+\]")


def traces(state: State, pids: Iterable[int]) -> dict[str, float]:
    """Counts by name; of files in MB by place in the state directory, and the longest of the services' logs apart."""
    namespaces, mounts = _namespaces(pids)
    return {
        "mounts": float(mounts), "namespaces": float(len(namespaces)), "cgroups": float(_cgroups(state)),
        "loops": float(_loops(state)), "longest service log": max(map(_mb, (state.root / "logs").glob("*.log"))),
        **_files(state.root),
    }


def _namespaces(pids: Iterable[int]) -> tuple[set[str], int]:
    """Those that its processes are in or hold open; and the mounts in all of them together."""
    found: set[str] = set()
    mounts = 0
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):      # it has ended meanwhile
            mine = str((folder / "ns/mnt").readlink())
            if mine not in found:
                mounts += (folder / "mountinfo").read_text().count("\n")
            found.update(str(entry.readlink()) for entry in (folder / "ns").iterdir())
            found.update(link for link in _links(folder / "fd") if _NAMESPACE.fullmatch(link))
    return found, mounts


def _links(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):      # closed meanwhile
            yield str(entry.readlink())


def _cgroups(state: State) -> int:
    """Groups of its workers and everything below them, in every hierarchy."""
    layout = detect(Path("/proc/self/mountinfo").read_text())
    homes = {home for home in (layout.v2, *layout.v1.values()) if home}
    tops = [path for home in homes for path in Path(home).glob(f"labda-{cluster_id(state)}-*")]
    return sum(1 for top in tops for _ in os.walk(top))


def _loops(state: State) -> int:
    """Loop devices over files of the state directory."""
    count = 0
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            count += path.read_text().startswith(str(state.root))
    return count


def _files(root: Path) -> dict[str, float]:
    """MB on the disk by place, without the services' logs; what lies below nodes/ added up over all nodes."""
    found: dict[str, float] = {}
    for folder, below, names in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        if parts == ("logs",):
            continue
        kind = "/".join(parts[2:4]) if parts[:1] == ("nodes",) else "/".join(parts[:1])
        for name in (*names, *below):
            found[f"{kind} files"] = found.get(f"{kind} files", 0.0) + _mb(Path(folder, name))
    return {name: mb for name, mb in found.items() if name not in (" files", "tls files", "ca files", "config files")}


def _mb(path: Path) -> float:
    """On the disk; 0 when it has gone."""
    try:
        return path.lstat().st_blocks / 2048
    except OSError:
        return 0.0
