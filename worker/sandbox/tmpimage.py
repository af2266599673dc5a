"""/tmp of a sandbox: a sparse ext4 image of exactly the configured size on a loop device, else a tmpfs.

An image's pages are written to disk and don't count as the function's memory, as a tmpfs's would: 512 MB of files in
a tmpfs kill a function of 128 MB. One template per size is formatted once and copied (its data is a few hundred KB);
the copy has no name any more once it is attached, so that nothing of a tenant's files stays after the last close.
"""

import os
import shutil

from worker.sandbox import linux

MB = 1 << 20


def find_mkfs() -> str:
    """Path of mkfs.ext4, "" if this host has none."""
    return shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""


def usable() -> bool:
    """Whether images work here: loop devices and mkfs.ext4 are there."""
    return os.path.exists("/dev/loop-control") and bool(find_mkfs())


def make_template(directory: str, tmp_mb: int) -> str:
    """Formats the template of this size unless it is there; returns its path. Takes some 30 ms the first time."""
    final = f"{directory}/tmp-{tmp_mb}.img"
    if os.path.exists(final):
        return final
    unfinished = f"{final}.new"
    # The inode tables take 1/64 of the data and the bitmaps less; what is offered is never under the documented size.
    size = (tmp_mb * MB * 103 // 100 + 4 * MB) & ~0xFFF
    with open(unfinished, "wb") as file:
        file.truncate(size)
    features = "^has_journal,^resize_inode,sparse_super2,^metadata_csum,uninit_bg"
    arguments = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-i", "16384", "-O", features,
                 "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", unfinished]
    pid = os.posix_spawn(find_mkfs(), arguments, {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
                         file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise OSError(5, f"mkfs.ext4 for a /tmp of {tmp_mb} MB failed with status {status}")
    os.rename(unfinished, final)
    return final


def copy_sparse(source: str, target: int) -> None:
    """Copies only the data of `source` into the empty file open at `target`, which gets the same size."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        os.ftruncate(target, size)
        at = 0
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == 6:  # ENXIO: only a hole is left
                    return
                raise
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            while begin < at:
                copied = os.copy_file_range(fd, target, at - begin, begin, begin)
                if copied == 0:
                    raise OSError(5, f"{source} became shorter while it was copied")
                begin += copied
    finally:
        os.close(fd)


def mount_image(template: str, directory: str, target: str, owner: int) -> str:
    """Copies, attaches and mounts; returns the loop device. Called in the sandbox's own mount namespace, so that
    the device lets go when the namespace ends."""
    image = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        copy_sparse(template, image)
        device, held = linux.attach_loop(image, label(owner))
    finally:
        os.close(image)
    try:
        linux.mount(device, target, "ext4", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME, "noinit_itable")
    finally:
        os.close(held)
    os.rmdir(f"{target}/lost+found")
    _give(target, owner)
    return device


def label(owner: int) -> str:
    """What a sandbox's loop device is known by: host ids are of one living sandbox at a time."""
    return f"labda-{owner}"


def mount_memory(tmp_mb: int, target: str, owner: int) -> None:
    """The fallback: counts as the function's memory."""
    linux.mount("tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size={tmp_mb}m,nr_inodes={tmp_mb * 64}")
    _give(target, owner)


def _give(target: str, owner: int) -> None:
    os.chown(target, owner, owner)
    os.chmod(target, 0o1777)
