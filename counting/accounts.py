"""An account's limits and what of them is granted: the part of the ledger's state that belongs to one account.

Refuses to know sessions' states and commands; sums are kept beside the blocks so that a grant costs no walk.
"""

from dataclasses import dataclass, field
from typing import assert_never

from counting.words import Pool, PoolKind, Session, reserved, unreserved

ACCOUNT_LIMIT_DEFAULT = 1000
"""Concurrent executions per account and region (Lambda quotas page)."""

UNRESERVED_FLOOR = 100
"""Reservations leave at least this much to functions without one (PutFunctionConcurrency)."""

REQUESTS_MAX = 256
"""Ids of changes that an account remembers, the newest: who asks again does so within seconds."""

WHOLE = -1
"""In `crossing`: the holder hasn't said yet, so its whole block is charged."""


@dataclass(slots=True, kw_only=True)
class Account:
    """`generation` grows with each change of limits; `generations` says at which one each pool last changed.

    `provisioned`: by pool of a function's version, carved from the function's reservation, else from the rest.
    `crossing`: per function with a reservation, how many of its runs the sessions' blocks of the rest still carry.
    `requests`: changes by their request's id, oldest first: the generation, and whether it changed anything.
    """

    limit: int
    reserved: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    generations: dict[Pool, int] = field(default_factory=dict)
    granted: dict[Pool, int] = field(default_factory=dict)
    crossing: dict[str, dict[Session, int]] = field(default_factory=dict)
    provisioned: dict[Pool, int] = field(default_factory=dict)
    requests: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def unreserved(self) -> int:
        return self.limit - self.taken()

    def taken(self) -> int:
        """What functions take out of the rest."""
        beside = sum(count for pool, count in self.provisioned.items() if pool.function not in self.reserved)
        return sum(self.reserved.values()) + beside

    def claim(self, function: str) -> int:
        """What one function takes out of the rest: its reservation, else what is provisioned of it."""
        return self.reserved.get(function, self.carved(function))

    def carved(self, function: str) -> int:
        """What is provisioned of a function's versions, all together."""
        return sum(count for pool, count in self.provisioned.items() if pool.function == function)

    def exists(self, pool: Pool) -> bool:
        """Whether permits of the pool can be asked for at all."""
        match pool.kind:
            case PoolKind.UNRESERVED:
                return True
            case PoolKind.RESERVED:
                return pool.function in self.reserved
            case PoolKind.PROVISIONED:
                return pool in self.provisioned
            case _:
                assert_never(pool.kind)

    def home(self, pool: Pool) -> Pool:
        """Where the pool's permits come from, and where they are charged once it is gone: its function's reservation,
        unless it is that itself or there is none, else the rest."""
        if pool.kind is PoolKind.PROVISIONED and pool.function in self.reserved:
            return reserved(pool.account, pool.function)
        return unreserved(pool.account)

    def ghosts(self, pool: Pool) -> list[Pool]:
        """Pools that are gone and whose permits, as far as they are still out, are charged to this one."""
        return [other for other in self.granted if not self.exists(other) and self.home(other) == pool]

    def granted_of(self, function: str) -> int:
        """Permits out in all pools of a function, those that are gone as well."""
        return sum(count for pool, count in self.granted.items() if pool.function == function)

    def total(self) -> int:
        """Permits out in all of the account's pools."""
        return sum(self.granted.values())

    def add(self, pool: Pool, count: int) -> None:
        total = self.granted.get(pool, 0) + count
        if total:
            self.granted[pool] = total
        else:
            self.granted.pop(pool, None)
            # A pool that is gone and empty needs no generation: an account's generations never come twice.
            if not self.exists(pool):
                self.generations.pop(pool, None)

    def remember(self, request: str, generation: int, changed: bool) -> None:
        """An id that was applied: asked again, it changes nothing."""
        if not request:
            return
        self.requests[request] = (generation, changed)
        while len(self.requests) > REQUESTS_MAX:
            del self.requests[next(iter(self.requests))]

    def uncross(self, session: Session) -> None:
        """The session's block of the rest is empty: nothing of it runs for a moved function."""
        for moved in self.crossing.values():
            moved.pop(session, None)
