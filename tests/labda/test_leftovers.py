"""Control groups of a killed cluster go, those of another stay."""

import subprocess
from pathlib import Path

from labda.launch import cluster_id
from labda.leftovers import sweep
from labda.state import State
from worker.sandbox.cgroups import Cgroups, detect


def groups(name: str) -> list[str]:
    return [str(path) for pattern in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{pattern}labda-{name}")]


def test_groups_and_what_runs_in_them_go_but_only_of_this_cluster(needs_root, tmp_path):
    layout = detect(Path("/proc/self/mountinfo").read_text())
    ours, other = State(tmp_path / "ours"), State(tmp_path / "other")
    names = {state: f"{cluster_id(state)}-worker-az1-1" for state in (ours, other)}
    made = {state: Cgroups(layout, name) for state, name in names.items()}
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            for one in made.values():
                one.open()
            group = made[ours].create("abc", 128)
            for file in group.join_files:
                Path(file).write_text(str(process.pid))
            assert groups(names[ours])
            assert sweep(ours) == [f"labda-{names[ours]}"]
            assert process.wait(60) == -9
            assert groups(names[ours]) == []
            assert groups(names[other])
            assert sweep(ours) == []
        finally:
            process.kill()
            for one in made.values():
                one.close()
    assert groups(names[other]) == []
