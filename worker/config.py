"""The worker's configuration file."""

from dataclasses import dataclass

from chassis.config import NodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """``[node]`` and what the host offers. Paths are absolute."""

    node: NodeConfig
    counting: dict[str, str]                # addresses of the ledger's members, by node id: seeds
    memory_mb: int                          # for all sandboxes together
    state_dir: str                          # code cache, images of /tmp, function logs
    runtimes_dir: str                       # what deploy/make_runtimes.py built
    invoke_listen: str = ""                 # host:port of the Invoke streams; empty: node.listen's host, any free port
    name: str = ""                          # of its control groups, unique on this machine; empty: the node's
    uid_base: int = 200_000                 # first host uid of sandboxes; workers of one machine need disjoint ranges
    agent_uid: int = 64_000                 # the agent's user and group, without privileges
    sandboxes_max: int = 1000
    code_cache_bytes_max: int = 8 << 30
    timeout_cap_s: int = 900                # the longest function timeout that is enforced here; declared to counting
    init_s: float = 10.0                    # limit of init on demand
    freeze_after_s: float = 0.02            # idle for this long, then frozen
    notice_s: float = 0.0                   # a draining worker says so, and still starts what was promised before
    renew_s: float = 5.0                    # between renewals of the authority; sooner if counting gives a short one
    log_bytes_per_invocation: int = 16 << 20
    log_file_bytes_max: int = 8 << 20       # per function, twice

    def __post_init__(self) -> None:
        if self.node.service != "worker":
            raise ValueError(f"node.service is {self.node.service!r}, a worker's file says 'worker'")
        if self.memory_mb < 128:
            raise ValueError(f"memory_mb is {self.memory_mb}: the smallest function needs 128")
        if not 1 <= self.timeout_cap_s <= 900:
            raise ValueError(f"timeout_cap_s is {self.timeout_cap_s}, allowed are 1 to 900")
        if not 0 < self.renew_s <= 30:
            raise ValueError(f"renew_s is {self.renew_s}: renew every 30 s at the latest")
        if not 0 <= self.notice_s < self.node.drain_s:
            raise ValueError(f"notice_s is {self.notice_s}, it has to be below node.drain_s ({self.node.drain_s})")
        if not self.counting:
            raise ValueError("counting is empty: name at least one member of the ledger")
        if not 1 <= self.sandboxes_max <= 10_000:
            raise ValueError(f"sandboxes_max is {self.sandboxes_max}, allowed are 1 to 10000")
        enrolment = self.node.enrolment
        if enrolment is not None and not enrolment.directory.startswith(f"{self.state_dir}/agent/"):
            raise ValueError(
                f"node.enrolment.directory is {enrolment.directory!r}, it must lie in {self.state_dir}/agent: the "
                "agent has no right to write elsewhere"
            )
        for name in ("state_dir", "runtimes_dir"):
            if not getattr(self, name).startswith("/"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, an absolute path is needed")
