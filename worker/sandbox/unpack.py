"""The confined child that unpacks one archive: no network, no file system but its target, an id of its own.

What parses a tenant's zip must be assumed taken over by it: this process can write below its target directory, and
tell its parent a size or a refusal, and nothing else. It is forked with the two descriptors for that (children.py),
and ends when it has spoken. Everything it needs is imported before the fork, for there is no
file system to import from afterwards.
"""

import encodings.cp437  # noqa: F401 - names of old archives; could not be imported once confined
import hashlib
import json
import os
import resource
import zipfile
from dataclasses import dataclass
from typing import Any, NoReturn

from chassis.archive import Refused, plan
from worker.sandbox import archive, linux

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacking:
    """One archive and where it goes."""

    source: int             # the archive, open for reading, from the agent
    sha256: str             # what its content must hash to, hex
    target: str             # an empty directory, owned by `uid`
    uid: int
    size_bytes_max: int
    entries_max: int
    report: int             # pipe: one JSON object
    filter: bytes           # the sandbox's seccomp program
    last_capability: int    # the kernel's highest: it can't be read once there is no /proc


def run(order: Unpacking) -> NoReturn:
    """Unpacks, reports {"size"} or {"refused", "entry"} or {"failed"}, and exits."""
    answer: dict[str, object]
    try:
        _confine(order)
        answer = {"size": _unpack(order)}
    except Refused as refusal:
        answer = {"refused": refusal.message, "entry": refusal.entry[:1000]}
    except (OSError, MemoryError, RecursionError, OverflowError, ValueError) as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    os.write(order.report, json.dumps(answer).encode())
    os._exit(0)


def _confine(order: Unpacking) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):        # the worker's log, perhaps its terminal
        os.dup2(null, fd)
    os.close(null)
    linux.unshare(
        linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    )
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.bind(order.target, order.target, linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.enter_root(order.target)
    # Bounds in case a check misses something: memory, one file's size, descriptors, processor time.
    for kind, bound in (
        (resource.RLIMIT_AS, 2 << 30), (resource.RLIMIT_FSIZE, order.size_bytes_max), (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, 120), (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, bound))
    os.setgroups([])
    linux.drop_bounding_set(order.last_capability)
    os.setresgid(order.uid, order.uid, order.uid)
    os.setresuid(order.uid, order.uid, order.uid)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)      # a change of ids clears it
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.set_filter(order.filter)


def _unpack(order: Unpacking) -> int:
    # Hash and keep one and the same bytes: the agent could write to its file in between.
    digest = hashlib.sha256()
    kept = os.fdopen(os.memfd_create("archive", os.MFD_CLOEXEC), "w+b")
    at = 0
    while chunk := os.pread(order.source, _CHUNK, at):
        at += len(chunk)
        if at > order.size_bytes_max:
            raise Refused(f"zipped it is already over the limit of {order.size_bytes_max} bytes")
        digest.update(chunk)
        kept.write(chunk)
    if digest.hexdigest() != order.sha256:
        raise Refused(f"its SHA-256 is {digest.hexdigest()}, not {order.sha256}")
    kept.seek(0)
    os.umask(0)
    try:
        opened = zipfile.ZipFile(kept)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Refused(f"it is no readable zip archive: {error}") from None
    with opened:
        wanted = plan(opened, root=archive.TASK, size_bytes_max=order.size_bytes_max, entries_max=order.entries_max)
        return archive.write(opened, wanted, size_bytes_max=order.size_bytes_max)


def read_report(reader: int) -> dict[str, Any]:
    """The child's one answer, checked: it may have been taken over by what it parsed."""
    data = os.read(reader, 8192)
    try:
        answer = json.loads(data)
    except ValueError:
        return {"failed": "the unpacking child ended without an answer (out of memory or time)"}
    match answer:
        case {"size": int(size)} if 0 <= size <= 1 << 34:
            return {"size": size}
        case {"refused": str(message), "entry": str(entry)}:
            return {"refused": message, "entry": entry}
        case {"failed": str(message)}:
            return {"failed": message}
    return {"failed": "the unpacking child gave an impossible answer"}
