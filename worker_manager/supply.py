"""Sandboxes for requests: reuse, take back, make: the decisions between a waiting request and a worker.

Owns which sandbox serves whom and when a new one is made. Refuses to know roles, owners and a lease's life (``core``).
The rule against storms: a function's sandboxes that are coming (being placed, starting, taken back) are never more than
its waiting requests asked for, and whichever comes free first serves the oldest.
"""

from worker_manager import leases as worker_leases
from worker_manager.config import PoolConfig
from worker_manager.leases import Lease, LeaseState
from worker_manager.messages import (
    AskPlacement,
    Create,
    CreateFailed,
    Destroy,
    Effect,
    FunctionKey,
    Gone,
    NoCapacity,
    Phases,
    Placed,
    Raise,
    Ready,
    Recall,
    Refused,
    Reserve,
    Reserved,
    WorkerAway,
)
from worker_manager.sandboxes import Sandbox, Sandboxes, State
from worker_manager.timers import Timers
from worker_manager.waiting import ScalingRate, Waiter, Waiting

ATTEMPTS_MAX = 3  # sandboxes that may vanish while starting before the request is refused
TimerKey = tuple[str, ...]


class Supply:
    def __init__(self, config: PoolConfig) -> None:
        self.sandboxes = Sandboxes()
        self.waiting = Waiting(config)
        self.leases: dict[str, Lease] = {}
        self.unusable: frozenset[str] = frozenset()     # workers that drain or are silent, by placement's word
        self.rate = ScalingRate(config)
        self.timers: Timers[TimerKey] = Timers()
        self.out: list[Effect] = []                     # of the event that is being handled
        self.settles_until = float("-inf")              # workers are expected: requests wait instead of being refused
        self._config = config
        self._newest: dict[tuple[str, str, str], int] = {}
        self._deleted: dict[tuple[str, str], int] = {}
        self._room: dict[str, dict[str, Sandbox]] = {}  # by worker: placed there as soon as idle ones have gone

    # ------------------------------------------------------------ requests

    def serve(self, event: Reserve, now: float) -> None:
        self.note_revision(event.function, now)
        idle = self._idle(event.function)
        if idle is not None:
            self._take(idle, event, now)
            return
        if self.waiting.get(event.frontend, event.cause) is not None:
            return
        waiter = Waiter(event, now)
        full = self.waiting.full(event.function)
        if full or event.deadline_s <= 0:
            why = full or "its deadline passed on the way here"
            self.out.append(_refused(waiter, "SHED", f"{why}: try again later"))
            return
        self.waiting.add(waiter)
        self.timers.set(("waiter", event.frontend, event.cause), waiter.deadline_at)
        self.cover(event.function, now)

    def refuse(self, waiter: Waiter, reason: str, message: str, *, error_type: str = "") -> None:
        self.waiting.remove(waiter)
        self.out.append(_refused(waiter, reason, message, error_type=error_type))

    def cover(self, function: FunctionKey, now: float) -> None:
        """As many sandboxes are coming as requests wait: kept ones are taken back before new ones are made."""
        while (waiter := self.waiting.oldest(function)) is not None and (idle := self._idle(function)) is not None:
            self.waiting.remove(waiter)
            self._take(idle, waiter.event, now)
        while self.waiting.count(function) > self.sandboxes.coming(function):
            kept = self.sandboxes.lingering(function)
            if kept is not None:
                self.take_back(kept, now)
                continue
            uncovered = self._uncovered(function)
            if uncovered is None or not self._make(uncovered, now):
                return

    def cover_all(self, now: float) -> None:
        for function in self.waiting.functions():
            self.cover(function, now)

    def _idle(self, function: FunctionKey) -> Sandbox | None:
        """The most recently used one on a worker that answers."""
        return next((item for item in self.sandboxes.idle(function) if self._reachable(item.worker)), None)

    def _uncovered(self, function: FunctionKey) -> Waiter | None:
        for waiter in reversed(self.waiting.of_function(function)):
            made = self.sandboxes.get(waiter.sandbox)
            if made is None or made.state not in (State.PLACING, State.STARTING):
                return waiter
        return None

    # ------------------------------------------------------------ existing sandboxes

    def offer(self, sandbox: Sandbox, now: float, phases: Phases | None = None) -> None:
        """Nobody has a right on it now. ``phases``: it has just become ready."""
        sandbox.holder, sandbox.cause, sandbox.released, sandbox.idle_since = "", "", False, now
        lease = self.leases[sandbox.worker]
        if lease.state in (LeaseState.DRAINING, LeaseState.RETURNING):
            self.destroy(sandbox, "the worker's lease ends", now)
            self.cover(sandbox.function, now)  # who waited for it gets another, elsewhere
            return
        waiter = self.waiting.oldest(sandbox.function)
        if waiter is not None and self._reachable(sandbox.worker):
            self.waiting.remove(waiter)
            self._take(sandbox, waiter.event, now, phases)
        elif self.outdated(sandbox.function):
            self.destroy(sandbox, "an older revision", now)
        else:
            self.timers.set(("sandbox", sandbox.name), now + self._config.idle_s)
            while self.sandboxes.idle_count > self._config.idle_max:
                self.destroy(next(self.sandboxes.longest_idle()), "more idle sandboxes than are kept", now)

    def _take(self, sandbox: Sandbox, event: Reserve, now: float, phases: Phases | None = None) -> None:
        if phases is None:
            sandbox.sequence += 1        # each holder has its own; the first has the one it was made with
        sandbox.held = sandbox.sequence
        sandbox.holder, sandbox.cause, sandbox.reserved_at, sandbox.idle_since = event.frontend, event.cause, now, None
        crowded = self.waiting.count(sandbox.function) > 0 or self.outdated(sandbox.function)
        sandbox.linger_s = 0.0 if crowded else self._config.linger_s
        self.sandboxes.move(sandbox, Reserved, now)
        self.timers.set(("sandbox", sandbox.name), now + self._config.unstarted_s)
        lease = self.leases[sandbox.worker]
        self.out.append(Reserved(
            frontend=event.frontend, cause=event.cause, worker=lease.worker, address=lease.address, host=lease.host,
            nonce=lease.nonce, lease=lease.number, sandbox=sandbox.name, sequence=sandbox.sequence,
            linger_s=sandbox.linger_s, cold=phases is not None, phases=phases or Phases(),
        ))

    def take_back(self, sandbox: Sandbox, now: float) -> None:
        """Raises the sequence: the worker tells whether the holder was faster. The recall saves the holder a try."""
        self.sandboxes.move(sandbox, Raise, now)
        sandbox.sequence += 1
        self.out.append(Raise(
            worker=sandbox.worker, sandbox=sandbox.name, sequence=sandbox.sequence, cause=sandbox.cause
        ))
        if sandbox.holder:
            self.out.append(Recall(
                frontend=sandbox.holder, sandbox=sandbox.name, sequence=sandbox.held, cause=sandbox.cause
            ))

    def destroy(self, sandbox: Sandbox, reason: str, now: float) -> None:
        """Only an idle one: nothing is killed."""
        self.sandboxes.move(sandbox, Destroy, now)
        self.out.append(Destroy(worker=sandbox.worker, sandbox=sandbox.name, reason=reason, cause=reason))

    def _reachable(self, worker: str) -> bool:
        lease = self.leases.get(worker)
        return lease is not None and lease.usable and worker not in self.unusable

    # ------------------------------------------------------------ new sandboxes

    def _make(self, waiter: Waiter, now: float) -> bool:
        """Begins one for this request, or refuses it. False: neither, workers are still expected."""
        event = waiter.event
        usable = [lease for lease in self.leases.values() if self._reachable(lease.worker)]
        able = [lease for lease in usable if event.runtime in lease.runtimes]
        if not able and now < self.settles_until:
            return False
        if not usable:
            self.refuse(waiter, "NO_CAPACITY", "this manager leases no worker that answers: start a worker or wait")
        elif not able:
            known = ", ".join(sorted({runtime for lease in usable for runtime in lease.runtimes})) or "none"
            self.refuse(waiter, "UNKNOWN_RUNTIME", f"no worker has the runtime {event.runtime}; there are {known}")
        elif waiter.attempts >= ATTEMPTS_MAX:
            message = f"{ATTEMPTS_MAX} sandboxes were lost while they started"
            self.refuse(waiter, "CREATE_FAILED", message, error_type="Sandbox.Lost")
        elif not self.rate.try_take(event.function, now):
            self.refuse(waiter, "SCALING_RATE", (
                f"{event.function.function} got {self._config.scaling_burst} new sandboxes and gains "
                f"{self._config.scaling_per_s:g} per second: try again in a second"
            ))
        else:
            self._place(waiter, able, now)
        return True

    def _place(self, waiter: Waiter, able: list[Lease], now: float) -> None:
        event = waiter.event
        name = f"{event.sandbox}-{waiter.attempts}" if waiter.attempts else event.sandbox
        waiter.attempts += 1
        waiter.sandbox = name
        sandbox = Sandbox(name, event.function, event.memory_mb, State.PLACING)
        sandbox.holder, sandbox.cause, sandbox.order = event.frontend, event.cause, event.order
        sandbox.runtime, sandbox.az = event.runtime, event.az
        sandbox.asked_at, sandbox.deadline_at = now, waiter.deadline_at
        self.sandboxes.add(sandbox)
        self.out.append(AskPlacement(
            sandbox=name, function=event.function, memory_mb=event.memory_mb, runtime=event.runtime, az=event.az,
            workers=tuple(sorted(lease.worker for lease in able)),
            same=tuple(sorted(self._spread(event.function).items())), cause=event.cause,
        ))

    def placed(self, event: Placed, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox)
        if sandbox is None or sandbox.state is not State.PLACING or sandbox.ranking is not None:
            return
        sandbox.place_ms = (now - sandbox.asked_at) * 1000
        sandbox.ranking, sandbox.refusal = list(event.workers or ()), event.refusal
        self.try_next(sandbox, now)

    def try_next(self, sandbox: Sandbox, now: float) -> None:
        """Placement's ranking first, then our own: our count of a worker's room is newer than placement's."""
        able = {
            lease.worker: lease
            for lease in self.leases.values()
            if self._reachable(lease.worker) and sandbox.runtime in lease.runtimes and lease.worker not in sandbox.tried
        }
        same = self._spread(sandbox.function)
        theirs = worker_leases.respread(sandbox.ranking or (), able, same)
        for worker in [*theirs, *worker_leases.rank(able.values(), az=sandbox.az, same=same)]:
            lease = able[worker]
            if lease.memory_free_mb - self._promised_mb(worker) >= sandbox.memory_mb:
                self._create(sandbox, lease, now)
                return
        if self._make_room(sandbox, able, now):
            return
        missing = sandbox.refusal or f"{sandbox.memory_mb} MB fit on none of {len(able)} workers: add workers"
        self._give_up(sandbox, missing, now)

    def _create(self, sandbox: Sandbox, lease: Lease, now: float) -> None:
        assert lease.state is LeaseState.USABLE, f"invariant 12: {lease.worker} is {lease.state.value}"
        self.sandboxes.seat(sandbox, lease.worker)
        self.sandboxes.move(sandbox, Placed, now)
        lease.memory_free_mb -= sandbox.memory_mb
        self.out.append(Create(
            worker=lease.worker, sandbox=sandbox.name, function=sandbox.function, sequence=sandbox.sequence,
            deadline_s=max(0.0, sandbox.deadline_at - now), order=sandbox.order, cause=sandbox.cause,
        ))

    def _make_room(self, sandbox: Sandbox, able: dict[str, Lease], now: float) -> bool:
        """Destroys the longest idle sandboxes of one worker for this one; it is created when they have gone."""
        best: tuple[int, str] | None = None
        for worker in sorted(able):
            idle_mb = sum(item.memory_mb for item in self.sandboxes.of_worker(worker) if item.state is State.IDLE)
            possible_mb = self._coming_free_mb(able[worker]) + idle_mb
            if possible_mb >= sandbox.memory_mb and (best is None or possible_mb > best[0]):
                best = possible_mb, worker
        if best is None:
            return False
        worker = best[1]
        missing_mb = sandbox.memory_mb - self._coming_free_mb(able[worker])
        for victim in [item for item in self.sandboxes.longest_idle() if item.worker == worker]:
            if missing_mb <= 0:
                break
            missing_mb -= victim.memory_mb
            self.destroy(victim, f"room for {sandbox.function.function}", now)
        sandbox.room_on = worker
        self._room.setdefault(worker, {})[sandbox.name] = sandbox
        return True

    def room_freed(self, worker: str, now: float) -> None:
        """Something of this worker has gone, or the worker has: those who were promised its room go on."""
        for sandbox in list(self._room.get(worker, {}).values()):
            lease = self.leases.get(worker)
            usable = lease is not None and self._reachable(worker)
            if lease is not None and usable and lease.memory_free_mb < sandbox.memory_mb:
                continue
            self._unpromise(sandbox)
            if lease is not None and usable:
                self._create(sandbox, lease, now)
            else:
                self.try_next(sandbox, now)

    def _unpromise(self, sandbox: Sandbox) -> None:
        promised = self._room[sandbox.room_on]
        del promised[sandbox.name]
        if not promised:
            del self._room[sandbox.room_on]
        sandbox.room_on = ""

    def _promised_mb(self, worker: str) -> int:
        return sum(sandbox.memory_mb for sandbox in self._room.get(worker, {}).values())

    def _coming_free_mb(self, lease: Lease) -> int:
        ending = sum(
            item.memory_mb for item in self.sandboxes.of_worker(lease.worker) if item.state is State.DRAINING
        )
        return lease.memory_free_mb + ending - self._promised_mb(lease.worker)

    def _spread(self, function: FunctionKey) -> dict[str, int]:
        same: dict[str, int] = {}
        for sandbox in self.sandboxes.of_function(function):
            if sandbox.worker:
                same[sandbox.worker] = same.get(sandbox.worker, 0) + 1
        return same

    # ------------------------------------------------------------ ends

    def no_capacity(self, event: NoCapacity, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None or sandbox.state is not State.STARTING:
            return
        self.leases[event.worker].memory_free_mb = event.memory_free_mb
        self.sandboxes.seat(sandbox, "")
        self.sandboxes.move(sandbox, NoCapacity, now)
        sandbox.tried.add(event.worker)
        sandbox.refusal = f"{event.worker}: {event.reason}"
        self.try_next(sandbox, now)

    def create_failed(self, event: CreateFailed, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None or sandbox.state is not State.STARTING:
            return
        waiter = self.waiting.get(sandbox.holder, sandbox.cause)
        self._remove(sandbox, CreateFailed, now)
        if waiter is not None:
            self.refuse(waiter, "CREATE_FAILED", event.message, error_type=event.error_type)
        self.cover(sandbox.function, now)
        self.room_freed(event.worker, now)

    def ready(self, event: Ready, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None or sandbox.state is not State.STARTING:
            return
        self.sandboxes.move(sandbox, Ready, now)
        phases = event.phases
        self.offer(sandbox, now, Phases(
            place_ms=sandbox.place_ms, code_ms=phases.code_ms, sandbox_ms=phases.sandbox_ms,
            runtime_ms=phases.runtime_ms, init_ms=phases.init_ms,
        ))

    def gone(self, event: Gone, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None:
            return
        self._remove(sandbox, Gone, now)
        self.cover(sandbox.function, now)
        self.room_freed(event.worker, now)

    def worker_gone(self, worker: str, now: float) -> None:
        """Its sandboxes are nobody's here any more; those who waited for them go elsewhere."""
        functions = set()
        for sandbox in self.sandboxes.of_worker(worker):
            functions.add(sandbox.function)
            self.sandboxes.move(sandbox, WorkerAway, now)
        self.room_freed(worker, now)
        for function in sorted(functions):
            self.cover(function, now)

    def _remove(self, sandbox: Sandbox, event: type, now: float) -> None:
        lease = self.leases[sandbox.worker]
        lease.memory_free_mb = min(lease.memory_mb, lease.memory_free_mb + sandbox.memory_mb)
        self.sandboxes.move(sandbox, event, now)

    def _give_up(self, sandbox: Sandbox, message: str, now: float) -> None:
        waiter = self.waiting.get(sandbox.holder, sandbox.cause)
        self.sandboxes.move(sandbox, Refused, now)
        if waiter is not None:
            self.refuse(waiter, "NO_CAPACITY", message)
        self.cover(sandbox.function, now)

    # ------------------------------------------------------------ revisions

    def outdated(self, function: FunctionKey) -> bool:
        newest = self._newest.get((function.account, function.function, function.version), 0)
        deleted = self._deleted.get((function.account, function.function), -1)
        return function.revision < newest or function.revision <= deleted

    def note_revision(self, function: FunctionKey, now: float) -> None:
        key = (function.account, function.function, function.version)
        if function.revision > self._newest.get(key, 0):
            self._newest[key] = function.revision
            self._retire(function.account, function.function, now)

    def forget(self, function: FunctionKey, now: float) -> None:
        """The function was deleted at this revision (0: whatever it was)."""
        key = (function.account, function.function)
        known = [newest for (*names, _), newest in self._newest.items() if tuple(names) == key]
        self._deleted[key] = function.revision or max(known, default=0)
        self.rate.forget(*key)
        self._retire(*key, now)

    def _retire(self, account: str, name: str, now: float) -> None:
        for function in self.sandboxes.functions():
            if (function.account, function.function) == (account, name) and self.outdated(function):
                for sandbox in list(self.sandboxes.idle(function)):
                    self.destroy(sandbox, "an older revision", now)
                while (kept := self.sandboxes.lingering(function)) is not None:
                    self.take_back(kept, now)


def _refused(waiter: Waiter, reason: str, message: str, *, error_type: str = "") -> Refused:
    return Refused(
        frontend=waiter.event.frontend, cause=waiter.event.cause, reason=reason, message=message, error_type=error_type
    )
