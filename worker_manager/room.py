"""Room for new sandboxes: which worker takes one, what goes to make room, and whose turn it is when there is none.

Owns who waits for room, what is promised to whom, and the two bounds of a worker: its memory, and how many sandboxes
start there at a time. Starting a runtime costs a host a tenth of a second of CPU, serving a warm request a hundredth of
that: a host that starts as many as are asked for at three times its capacity does nothing else. Decides, and leaves the
doing to ``supply``. Refuses to know who waits for which sandbox.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from worker_manager.config import PoolConfig
from worker_manager.leases import Lease
from worker_manager.messages import FunctionKey
from worker_manager.sandboxes import Sandbox, Sandboxes, State

MEMORY_MB_MIN = 128     # the smallest function's


@dataclass(frozen=True, slots=True, kw_only=True)
class Sacrifice:
    """What goes on one worker: idle sandboxes at once, lingering ones when their holder has let go."""

    worker: str
    idle: tuple[Sandbox, ...]
    lingering: tuple[Sandbox, ...]


class Room:
    """``leases`` is the supply's own table: a worker that isn't in it has no room."""

    def __init__(self, sandboxes: Sandboxes, leases: dict[str, Lease], config: PoolConfig) -> None:
        self._sandboxes = sandboxes
        self._leases = leases
        self._config = config
        self._waiting: dict[str, Sandbox] = {}              # for any worker, oldest first
        self._promised: dict[str, dict[str, Sandbox]] = {}  # by worker on which something goes for them

    # ------------------------------------------------------------ who waits

    @property
    def waiting(self) -> int:
        """Sandboxes without room, those included for which something goes already."""
        return len(self._waiting) + sum(map(len, self._promised.values()))

    def holds_back(self, function: FunctionKey) -> bool:
        """Whether its further requests wait for a sandbox that comes free, or for those that are placed already."""
        placing = 0
        for sandbox in self._sandboxes.placing(function):
            if sandbox.name in self._waiting or sandbox.room_on:
                return True
            placing += 1
        return placing >= self._config.placing_max

    def is_short(self, function: FunctionKey) -> bool:
        """Whether one of its sandboxes waits for memory, so that more requests get only what comes free."""
        return any(one.short and self.waits(one) for one in self._sandboxes.placing(function))

    def wait(self, sandbox: Sandbox) -> None:
        self._waiting[sandbox.name] = sandbox

    def promise(self, sandbox: Sandbox, worker: str) -> None:
        """What goes on this worker goes for this one."""
        self._waiting.pop(sandbox.name, None)
        sandbox.room_on = worker
        self._promised.setdefault(worker, {})[sandbox.name] = sandbox

    def leave(self, sandbox: Sandbox) -> None:
        """It waits no more, whatever comes of it."""
        self._waiting.pop(sandbox.name, None)
        if sandbox.room_on:
            promised = self._promised[sandbox.room_on]
            del promised[sandbox.name]
            if not promised:
                del self._promised[sandbox.room_on]
            sandbox.room_on = ""

    def waits(self, sandbox: Sandbox) -> bool:
        return sandbox.name in self._waiting or bool(sandbox.room_on)

    def promised(self, worker: str) -> list[Sandbox]:
        return list(self._promised.get(worker, {}).values())

    def queue(self) -> list[Sandbox]:
        """Who waits for any worker: of the account that has the least first, then the oldest."""
        if len(self._waiting) < 2:
            return list(self._waiting.values())
        accounts, functions = self._uses()
        return sorted(
            self._waiting.values(),
            key=lambda one: (accounts.get(one.function.account, 0), functions.get(one.function, 0)),
        )

    # ------------------------------------------------------------ what a worker can take

    def fits(self, sandbox: Sandbox, lease: Lease) -> bool:
        return lease.memory_free_mb - self._promised_mb(lease.worker) >= sandbox.memory_mb

    def may_start(self, worker: str, now: float) -> bool:
        """A start that takes longer than ``starting_s`` waits for its own init more than for the host: not counted."""
        begun = sum(
            1 for sandbox in self._sandboxes.of_worker(worker)
            if sandbox.state is State.STARTING and sandbox.started_at > now - self._config.starting_s
        )
        return begun < self._config.starting_max

    def any_place(self, workers: Iterable[Lease], now: float) -> bool:
        """Whether anything at all could be started anywhere."""
        return any(
            lease.memory_free_mb - self._promised_mb(lease.worker) >= MEMORY_MB_MIN
            and self.may_start(lease.worker, now)
            for lease in workers
        )

    def sacrifice(self, sandbox: Sandbox, able: Iterable[Lease]) -> Sacrifice | None:
        """The longest idle sandboxes of one worker, and lingering ones where that isn't enough."""
        best: tuple[int, Lease] | None = None
        for lease in sorted(able, key=lambda one: one.worker):
            possible_mb = self._coming_free_mb(lease) + sum(one.memory_mb for one in self._spare(lease.worker))
            if possible_mb >= sandbox.memory_mb and (best is None or possible_mb > best[0]):
                best = possible_mb, lease
        if best is None:
            return None
        lease = best[1]
        missing_mb = sandbox.memory_mb - self._coming_free_mb(lease)
        chosen: list[Sandbox] = []
        for victim in self._spare(lease.worker):
            if missing_mb <= 0:
                break
            missing_mb -= victim.memory_mb
            chosen.append(victim)
        return Sacrifice(
            worker=lease.worker, idle=tuple(one for one in chosen if one.state is State.IDLE),
            lingering=tuple(one for one in chosen if one.state is not State.IDLE),
        )

    def _spare(self, worker: str) -> Iterator[Sandbox]:
        for sandbox in self._sandboxes.longest_idle():
            if sandbox.worker == worker:
                yield sandbox
        for sandbox in self._sandboxes.of_worker(worker):
            if self._sandboxes.lingers(sandbox):
                yield sandbox

    # ------------------------------------------------------------ who has the better claim

    def claimant(self, free: Sandbox, *, wanted: bool) -> Sandbox | None:
        """Who gets the room of a sandbox that has come free, instead of its own function's requests (``wanted``).

        Where those wait too, only who would still have no more than they: their account, or within one account their
        function. So shares become equal and stay so, and nothing is destroyed back and forth.
        """
        lease = self._leases[free.worker]
        for one in self._promised.get(free.worker, {}).values():
            if self._coming_free_mb(lease) < 0 and (not wanted or free.making_room or self._has_less(one, free)):
                return one
        for one in self.queue():
            if one.function == free.function or not one.short or lease.memory_mb < one.memory_mb:
                continue
            if one.runtime not in lease.runtimes or lease.worker in one.tried:
                continue
            if not wanted or self._has_less(one, free):
                return one
        return None

    def _has_less(self, one: Sandbox, free: Sandbox) -> bool:
        accounts, functions = self._uses()
        mine, theirs = one.function, free.function
        if mine.account != theirs.account:
            return accounts.get(mine.account, 0) + one.memory_mb <= accounts[theirs.account] - free.memory_mb
        return functions.get(mine, 0) + one.memory_mb <= functions[theirs] - free.memory_mb

    def _uses(self) -> tuple[dict[str, int], dict[FunctionKey, int]]:
        """Memory by account and by function: what is on workers, and what is promised there."""
        accounts: dict[str, int] = {}
        functions: dict[FunctionKey, int] = {}
        for sandbox in self._sandboxes.by_name.values():
            if (sandbox.worker or sandbox.room_on) and not sandbox.goes:
                key = sandbox.function
                accounts[key.account] = accounts.get(key.account, 0) + sandbox.memory_mb
                functions[key] = functions.get(key, 0) + sandbox.memory_mb
        return accounts, functions

    # ------------------------------------------------------------ sums

    def _promised_mb(self, worker: str) -> int:
        return sum(sandbox.memory_mb for sandbox in self._promised.get(worker, {}).values())

    def _coming_free_mb(self, lease: Lease) -> int:
        """Free once everything has gone that goes, less what is promised; below 0: more has to go."""
        going = sum(
            item.memory_mb for item in self._sandboxes.of_worker(lease.worker)
            if item.goes or (item.state is State.RECALLED and item.making_room)
        )
        return lease.memory_free_mb + going - self._promised_mb(lease.worker)

    def check(self) -> None:
        for sandbox in self._waiting.values():
            assert sandbox.state is State.PLACING, f"{sandbox} waits for room"
            assert not sandbox.room_on, f"{sandbox} waits for room and has some promised"
        for worker, promised in self._promised.items():
            for sandbox in promised.values():
                assert sandbox.state is State.PLACING, f"{sandbox} has room promised"
                assert sandbox.room_on == worker, f"{sandbox} has room promised on {worker} and {sandbox.room_on}"
