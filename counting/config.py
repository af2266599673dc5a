"""What one member of counting is told at its start: the file of ``--config``, read once."""

from dataclasses import dataclass, field

from chassis.config import NodeConfig
from counting.raft.patience import election_least_s


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingConfig:
    """Sections [node], [members] and the plain settings.

    [members] has node id = "host:port" of every member, this one included: where it serves Raft to the others. They are
    who votes while the log doesn't say it (``labda counting add`` and ``remove`` have it said), and for one that joins
    whom it tries.
    """

    node: NodeConfig
    directory: str                      # journal and dump of this member; made once by --init
    members: dict[str, str] = field(default_factory=dict)
    raft_listen: str = ""               # host:port, where it isn't what the others dial
    heartbeat_s: float = 0.2            # of the Raft leader: at rest, it is what a member costs
    election_min_s: float = 0.65        # a follower stands for election after this much silence at least,
    election_max_s: float = 1.0         # and after this much at most
    compact_entries: int = 5_000        # of the log, then its state is dumped and what came before is cut off
    suspect_s: float = 3.0              # a silent frontend's permits are fenced and counted
    recall_s: float = 0.5               # a holder that doesn't answer a recall by then is silent: 503, not 429
    unproven_s: float = 10.0            # a request waits so long for a permit or a proof, then it gets a 503
    put_s: float = 10.0                 # a change of limits answers by then, whoever is outstanding
    authority_s: float = 120.0          # a worker may start functions for this long after its last renewal
    grace_s: float = 30.0               # by authority + longest timeout + this a silent worker's sandboxes are gone
    drift: float = 0.01                 # bound of clock drift, as a share
    clock_offset_file: str = ""         # the wall clock is off by what it holds, for experiments; empty: the host's

    def __post_init__(self) -> None:
        if self.node.node not in self.members:
            raise ValueError(f"members has no entry for this node, {self.node.node}: it lists every member")
        if not self.heartbeat_s > 0:
            raise ValueError(f"heartbeat_s is {self.heartbeat_s}, it must be above 0")
        least = election_least_s(self.heartbeat_s)
        if not self.election_min_s > least:
            raise ValueError(
                f"election_min_s is {self.election_min_s}, it must be above {least} where heartbeat_s is "
                f"{self.heartbeat_s}, or members depose leaders that are alive"
            )
        if not self.election_max_s > self.election_min_s:
            raise ValueError(
                f"election_max_s is {self.election_max_s}, it must be above election_min_s, {self.election_min_s}, or "
                f"members stand for election all at once"
            )
        if self.compact_entries < 2:
            raise ValueError(f"compact_entries is {self.compact_entries}: a log keeps two entries at least")
        if not 1.0 <= self.grace_s <= 120.0:
            raise ValueError(f"grace_s is {self.grace_s}, allowed are 1 to 120: half of it is for destroying sandboxes")
        if not self.authority_s <= 3600.0:
            raise ValueError(f"authority_s is {self.authority_s}, a worker believes 3600 at most")
        if not self.recall_s < self.unproven_s:
            raise ValueError(f"unproven_s ({self.unproven_s}) must be above recall_s ({self.recall_s}), for one round")
        if not self.recall_s < self.suspect_s < self.authority_s:
            raise ValueError(
                f"recall_s {self.recall_s} < suspect_s {self.suspect_s} < authority_s {self.authority_s} must hold"
            )
