"""Settings of a worker manager.

Owns the numbers and the relations between them. ``PoolConfig`` is what the core decides by.
"""

from dataclasses import dataclass, field

from chassis.config import NodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    linger_s: float = 0.05              # for how long after an END the frontend may start again without asking
    pass_on_s: float = 0.3              # for how long a frontend's own go first where requests wait for a sandbox
    release_grace_s: float = 0.2        # on top, for its Release to arrive; then the reservation is taken back
    unstarted_s: float = 5.0            # a reservation under which nothing began by then is taken back
    idle_s: float = 600.0               # idle sandboxes are destroyed after this
    idle_max: int = 1000                # idle sandboxes kept at most; the longest idle goes first
    waiting_per_function_max: int = 2000
    waiting_max: int = 10_000
    patience_s: float = 3.0             # where there is no room for more, nobody waits whose turn comes later than this
    placing_max: int = 16               # new sandboxes of one function that look for a worker at a time
    starting_max: int = 2               # sandboxes that start on one worker at a time
    starting_s: float = 1.0             # a start that takes longer waits for its own init, and isn't counted any more
    room_s: float = 2.0                 # a function without any sandbox waits this long for room, then it is refused
    functions_max: int = 20_000         # functions whose revisions are known; the one not named for longest goes first
    scaling_burst: int = 1000           # new sandboxes per function at once
    scaling_per_s: float = 100.0        # and refilled at this rate: 1,000 per 10 s
    settle_s: float = 2.0               # after becoming active, requests wait for the first workers this long

    def __post_init__(self) -> None:
        if not 0 <= self.linger_s <= 1:
            raise ValueError(f"linger_s is {self.linger_s}, it must lie between 0 and 1: it holds sandboxes back")
        if not 0 <= self.pass_on_s <= 1:
            raise ValueError(f"pass_on_s is {self.pass_on_s}, it must lie between 0 and 1: others wait so long")
        if self.unstarted_s <= self.linger_s + self.release_grace_s:
            raise ValueError("unstarted_s must be longer than linger_s and release_grace_s together")
        if self.scaling_burst < 1 or self.scaling_per_s <= 0:
            raise ValueError("scaling_burst must be at least 1 and scaling_per_s above 0")
        if self.placing_max < 1 or self.starting_max < 1 or min(self.starting_s, self.room_s, self.patience_s) <= 0:
            raise ValueError("placing_max and starting_max must be at least 1; starting_s, room_s, patience_s above 0")
        if self.functions_max < 1:
            raise ValueError(f"functions_max is {self.functions_max}, it must be at least 1")
        if not 0 < self.waiting_per_function_max <= self.waiting_max:
            raise ValueError("waiting_per_function_max must lie between 1 and waiting_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """A worker manager's configuration file: [node], [pool], deadlines towards placement."""

    node: NodeConfig
    pool: PoolConfig = field(default_factory=PoolConfig)
    place_s: float = 0.2                # deadline of one Place call; after it the manager ranks by itself
