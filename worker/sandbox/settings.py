"""The spawner's configuration: what the launcher decides before anything is started. Standard library only."""

import json
import re
from dataclasses import asdict, dataclass

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnerConfig:
    """Read once; every path is absolute."""

    name: str                       # the worker's name: its cgroup is labda-NAME, one per worker on a machine
    state_dir: str                  # code cache, /tmp images; owned by the spawner alone
    runtimes_dir: str               # what deploy/make_runtimes.py built
    uid_base: int                   # first of the 2 * (sandboxes_max + 1) host ids used here; apart from others'
    sandboxes_max: int = 1000       # living sandboxes at once
    agent_uid: int = 64000          # user and group id of the agent
    code_cache_bytes_max: int = 8 << 30     # unpacked code kept; code in use counts and is never evicted
    timeout_cap_s: float = 900.0    # the longest an invocation runs that was started under authority
    agent_owned: tuple[str, ...] = ()       # given to the agent's user at start, readable and writable for it
    agent_readable: tuple[str, ...] = ()    # further paths that the agent sees, read-only

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must match {NAME.pattern}")
        for path in (self.state_dir, self.runtimes_dir, *self.agent_owned, *self.agent_readable):
            if not path.startswith("/"):
                raise ValueError(f"path {path!r} must be absolute")
        if not 100_000 <= self.uid_base <= 4_000_000_000:
            raise ValueError(f"uid_base {self.uid_base} must be between 100000 and 4000000000")
        if not 1 <= self.sandboxes_max <= 10_000:
            raise ValueError(f"sandboxes_max {self.sandboxes_max} must be between 1 and 10000")
        if not 1 <= self.timeout_cap_s <= 900:
            raise ValueError(f"timeout_cap_s {self.timeout_cap_s} must be between 1 and 900")
        if not 1000 <= self.agent_uid < 65534:
            raise ValueError(f"agent_uid {self.agent_uid} must be between 1000 and 65533")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SpawnerConfig":
        """Raises ValueError or TypeError on unknown, missing or impossible fields."""
        fields = json.loads(text)
        for key in ("agent_owned", "agent_readable"):
            if key in fields:
                fields[key] = tuple(fields[key])
        return cls(**fields)
