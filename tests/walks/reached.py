"""What a 429 is held against: how far a pool was used while the refused request waited (rule 4).

A request counts what was in use when it came, what was taken since, and what is promised to others that wait. Where
that never reached the limit the refusal is false (docs/specs, `False429`). Owns these sums, from the truth that the
walk has and no member of counting; refuses to know rounds and charges, which it would have to believe.
"""

from collections.abc import Callable, Iterable

from counting.ledger import Ledger
from counting.sessions import SessionState
from counting.wire import pool_in
from counting.words import Pool, PoolKind, Session
from frontend.peers.counting import pool_to_wire
from frontend.permits import Pool as FrontendPool
from tests.walks.parts import Admitted, Home, Worker, frontend_name


def ledger_pool(pool: FrontendPool) -> Pool:
    return pool_in(pool_to_wire(pool))


class Reached:
    """Per request that waits, by (frontend's nonce, request): the most that was in use of each pool since it came."""

    def __init__(self, pools: Iterable[Pool], truth: Callable[[], Ledger]) -> None:
        self._pools = tuple(pools)
        self._truth = truth
        self._most: dict[tuple[int, int], dict[Pool, int]] = {}

    def came(self, home: Home, request: int, used: dict[Pool, int]) -> None:
        self._most[home.nonce, request] = dict(used)

    def looked(self, used: dict[Pool, int]) -> None:
        """What is in use now: limits may have moved runs from one pool to another."""
        for most in self._most.values():
            for pool in self._pools:
                most[pool] = max(most[pool], used[pool])

    def taken(self, one: Admitted) -> None:
        for most in self._most.values():
            for pool in self._pools:
                most[pool] += self._counts(one, pool)

    def served(self, home: Home, request: int) -> None:
        self._most.pop((home.nonce, request), None)

    def left(self, home: Home, request: int) -> None:
        """It waits no more. What was on its way for it is idle where it arrives, after others were refused for it."""
        self._most.pop((home.nonce, request), None)
        for pool in self._pools:
            coming = min(1, self._coming(home, pool))
            for most in self._most.values():
                most[pool] += coming

    def judge(self, home: Home, request: int, pool: Pool, limit: int, homes: Iterable[Home]) -> None:
        """Raises AssertionError where the limit was never reached while the request waited."""
        promised = 0
        for other in homes:
            waiting = len(other.requests) - (other is home and request in other.requests)
            promised += min(waiting, self._coming(other, pool))
        most = self._most[home.nonce, request][pool]
        assert most + promised >= limit, (
            f"a false 429: request {request} of frontend {home.number} saw {most} of {pool} in use at most, and "
            f"{promised} promised to others; its limit is {limit}"
        )

    def used(self, held: Iterable[Admitted], homes: Iterable[Home], workers: Iterable[Worker]) -> dict[Pool, int]:
        """Permits that are in use, by the pool that is charged with them."""
        live, draining = SessionState.LIVE, SessionState.DRAINING
        still = [(one, {live, draining}) for one in held]
        still += [(one, {live}) for home in homes for one in home.ends]
        still += [(one, {draining}) for worker in workers for one in worker.unapplied.values()]
        sessions = self._truth().sessions
        states = {session: record.state for session, record in sessions.items()}
        ones = {one.id: one for one, count_in in still if states.get(one.session) in count_in}
        # What is counted is what the ledger knows of it: nobody else holds those permits any more.
        counted = [run for record in sessions.values() if record.state is SessionState.COUNTED for run in record.runs]
        return {
            pool: sum(self._counts(one, pool) for one in ones.values())
            + sum(self._charges(run.pool, run.function, pool) for run in counted)
            for pool in self._pools
        }

    def _coming(self, home: Home, pool: Pool) -> int:
        """Permits of the frontend's block that it doesn't use: on their way to it, or back."""
        session = Session(frontend=frontend_name(home.number), epoch=home.core.epoch)
        stock = next((s for own, s in home.core.stocks.items() if ledger_pool(own) == pool), None)
        return max(0, self._truth()._size(session, pool) - (stock.in_use if stock is not None else 0))

    def _counts(self, one: Admitted, pool: Pool) -> bool:
        return self._charges(ledger_pool(one.pool), one.function, pool)

    def _charges(self, own: Pool, function: str, pool: Pool) -> bool:
        """Whether a run of a function by a permit of `own` uses `pool` up (rule 9)."""
        ledger = self._truth()
        if own == pool or (not ledger.exists(own) and ledger.account(own.account).home(own) == pool):
            return True
        return pool.kind is PoolKind.RESERVED and own.kind is PoolKind.UNRESERVED and pool.function == function
