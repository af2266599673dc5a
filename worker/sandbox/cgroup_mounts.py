"""Control groups in a container: mounts of the spawner's own, whose top is the container's group.

A container engine shows the groups read-only, and on hybrid hosts not all of them. A container with a cgroup namespace
of its own may mount every hierarchy again: its top is then the container's group, so that whatever is made below goes
with the container, however that ends. In the host's namespace the top would be the host's: that is refused.

Owns these mounts. Refuses to know what is made below them (cgroups.py). On a host, where the groups are writable,
nothing is mounted.
"""

import errno
import os

from worker.sandbox import linux
from worker.sandbox.cgroups import CgroupsMissing, Layout, detect

_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_WANTED = frozenset({"memory", "cpu", "pids", "devices", "freezer"})
SHARED = "this container shares the host's cgroup namespace, so that its groups would outlive it"
REMEDY = "give it a cgroup namespace of its own (docker run --cgroupns=private; in a compose file, cgroup: private)"


def writable(directory: str) -> Layout:
    """The layout to work with: the host's as it is, or what is mounted below `directory` now. Raises OSError."""
    layout = detect(mountinfo())
    if not is_read_only(layout):
        return layout
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for name, kind, options in hierarchies(file.read()):
            _mount(f"{directory}/{name}", kind, options)
    own = detect(mountinfo())
    if shows_host(own):
        raise CgroupsMissing(1, f"{SHARED}: {REMEDY}")
    return own


def mountinfo() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def is_read_only(layout: Layout) -> bool:
    """Whether groups can't be made here as things are: the hierarchies are mounted read-only, or not at all."""
    homes = [home for home in (layout.v2, *layout.v1.values()) if home]
    return not homes or any(os.statvfs(home).f_flag & os.ST_RDONLY for home in homes)


def hierarchies(memberships: str) -> list[tuple[str, str, str]]:
    """(name, file system, mount options) of each hierarchy that sandboxes use, from the text of /proc/self/cgroup."""
    found = []
    for line in memberships.splitlines():
        number, controllers, _ = line.split(":", 2)
        if number == "0":
            found.append(("unified", "cgroup2", ""))
        elif _WANTED & set(controllers.split(",")):
            found.append((controllers, "cgroup", controllers))      # those that share a hierarchy are mounted together
    return found


def shows_host(layout: Layout) -> bool:
    """Whether the top of a hierarchy is the machine's: only there v2 has no type and v1 has a release agent."""
    if layout.v2 and not os.path.exists(f"{layout.v2}/cgroup.type"):
        return True
    return any(os.path.exists(f"{home}/release_agent") for home in layout.v1.values())


def _mount(target: str, kind: str, options: str) -> None:
    os.makedirs(target, 0o755, exist_ok=True)
    if os.path.ismount(target):
        return      # by a spawner of this container that ended before
    try:
        linux.mount(kind, target, kind, _FLAGS, options)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return      # a kernel without v2: what a sandbox lacks then is said by Layout.missing()
        raise
