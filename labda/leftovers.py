"""What a cluster that was killed may leave on its host apart from processes: the control groups of its workers.

Owns their removal, and the moving back of files that an experiment left on a small disk. A worker removes its own
groups when it ends; one that is killed together with its sandboxes can't, and its next start sweeps them. This is for
clusters that don't start again, or start again with fewer workers. Mounts and loop devices need nobody: they end with
the mount namespaces of the sandboxes' processes.
"""

from pathlib import Path

from labda.launch import cluster_id
from labda.state import State
from worker.sandbox.cgroups import Cgroups, CgroupsMissing, detect

_MARK = "labda-"    # worker.sandbox.cgroups names a worker's groups so


def sweep(state: State) -> list[str]:
    """Removes every control group of this cluster's workers, killing what is left in them. Returns their names."""
    layout = detect(Path("/proc/self/mountinfo").read_text())
    if layout.missing():
        return []   # no worker can have run here
    homes = {home for home in (layout.v2, *layout.v1.values()) if home}
    names = sorted({path.name for home in homes for path in Path(home).glob(f"{_MARK}{cluster_id(state)}-*")})
    for name in names:
        try:
            Cgroups(layout, name.removeprefix(_MARK)).close()
        except CgroupsMissing:
            continue    # a process that can't be killed yet: its groups stay, and the next sweep meets them again
    return names


def move_back(state: State) -> None:
    """Files of counting's members that are on a small disk (`labda.chaos.small_disk`). None of them runs meanwhile."""
    moved = [path for path in (state.root / "nodes").glob("*/raft") if path.is_symlink()]
    if moved:
        from labda.chaos import small_disk  # noqa: PLC0415 - after an experiment only

        for path in moved:
            small_disk.move_back(path)
