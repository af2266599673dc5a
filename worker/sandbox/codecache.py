"""The worker's store of unpacked code, addressed by the archive's SHA-256.

Owns the directory: STATE/code/SHA/task holds the files, STATE/code/SHA/size their sum. An entry appears by one rename
after it was written, so that a crash of the worker leaves either all or an `incoming-` directory, which is swept at
start. What a crash of the host leaves is not looked at: the cache belongs to one boot of the kernel and starts empty
in the next, which costs a download and saves every cold start a sync to disk (measured: 370 ms). Code that a sandbox
uses is never evicted; of the rest the least recently used goes first.
"""

import os
import re
import shutil

SHA256 = re.compile(r"[0-9a-f]{64}")
_BOOT = "boot-"


class CodeCache:
    """Belongs to the spawner; not safe for two at once."""

    def __init__(self, directory: str, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._sizes: dict[str, int] = {}        # in order of last use, oldest first
        self._users: dict[str, int] = {}
        self._incoming = 0

    def open(self, boot: str) -> None:
        """Sweeps what a crash left and counts what is there. `boot` is the kernel's boot id."""
        os.makedirs(self._directory, 0o700, exist_ok=True)
        if not os.path.exists(f"{self._directory}/{_BOOT}{boot}"):
            shutil.rmtree(self._directory)
            os.makedirs(f"{self._directory}/{_BOOT}{boot}", 0o700)
        found: list[tuple[float, str, int]] = []
        for name in os.listdir(self._directory):
            if name == f"{_BOOT}{boot}":
                continue
            path = f"{self._directory}/{name}"
            try:
                with open(f"{path}/size", encoding="ascii") as file:
                    size = int(file.read())
                if not SHA256.fullmatch(name):
                    raise ValueError(name)
                found.append((os.stat(path).st_mtime, name, size))
            except (OSError, ValueError):
                shutil.rmtree(path, ignore_errors=True)
        self._sizes = {name: size for _, name, size in sorted(found)}

    def size_of(self, sha256: str) -> int | None:
        """Bytes of this code, None if it isn't here."""
        return self._sizes.get(sha256)

    def path_of(self, sha256: str) -> str:
        return f"{self._directory}/{sha256}/task"

    def hold(self, sha256: str) -> None:
        """Keeps this code from eviction until release(), once per hold."""
        self._users[sha256] = self._users.get(sha256, 0) + 1
        self._sizes[sha256] = self._sizes.pop(sha256)

    def release(self, sha256: str) -> None:
        self._users[sha256] -= 1
        if not self._users[sha256]:
            del self._users[sha256]

    def begin(self, owner: int) -> str:
        """Makes a directory to unpack into; returns its path. Ends in commit() or abandon()."""
        self._incoming += 1
        path = f"{self._directory}/incoming-{self._incoming}"
        os.mkdir(path, 0o700)
        os.mkdir(f"{path}/task", 0o755)
        os.chown(f"{path}/task", owner, owner)
        return path

    def commit(self, path: str, sha256: str, size: int) -> list[str]:
        """Gives the unpacked code its name; returns directories that the caller removes, out of the cache already."""
        with open(f"{path}/size", "w", encoding="ascii") as file:
            file.write(str(size))
        os.chown(f"{path}/task", 0, 0)
        os.rename(path, f"{self._directory}/{sha256}")
        self._sizes[sha256] = size
        return self._evict(keep=sha256)

    def _evict(self, keep: str) -> list[str]:
        evicted: list[str] = []
        for sha256 in list(self._sizes):
            if sum(self._sizes.values()) <= self._bytes_max:
                break
            if sha256 == keep or sha256 in self._users:
                continue
            self._incoming += 1
            away = f"{self._directory}/evicted-{self._incoming}"
            os.rename(f"{self._directory}/{sha256}", away)
            del self._sizes[sha256]
            evicted.append(away)
        return evicted
