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
    Going,
    Gone,
    NoCapacity,
    Phases,
    Placed,
    Raise,
    Raised,
    Ready,
    Recall,
    Refused,
    Reserve,
    Reserved,
    Retired,
    WorkerAway,
)
from worker_manager.revisions import Revisions
from worker_manager.room import Room
from worker_manager.sandboxes import Sandbox, Sandboxes, State, StillRuns
from worker_manager.timers import TimerKey, Timers
from worker_manager.waiting import ScalingRate, Waiter, Waiting

ATTEMPTS_MAX = 3  # sandboxes that may vanish while starting before the request is refused


class Supply:
    def __init__(self, config: PoolConfig) -> None:
        self.sandboxes = Sandboxes()
        self.timers: Timers[TimerKey] = Timers()
        self.waiting = Waiting(config, self.timers)
        self.leases: dict[str, Lease] = {}
        self.unusable: frozenset[str] = frozenset()     # workers that drain or are silent, by placement's word
        self.rate = ScalingRate(config)
        self.out: list[Effect] = []                     # of the event that is being handled
        self.settles_until = float("-inf")              # workers are expected: requests wait instead of being refused
        self._config = config
        self.revisions = Revisions(config.functions_max)
        self.room = Room(self.sandboxes, self.leases, config)

    # ------------------------------------------------------------ requests

    def serve(self, event: Reserve, now: float) -> None:
        self.note_revision(event.function, now)
        objection = self.revisions.objection(event)
        if objection:
            self.out.append(_refused(Waiter(event, now), "REVISED", objection))
            return
        idle = self._idle(event.function)
        if idle is not None:
            self._take(idle, event, now)
            return
        if self.waiting.get(event.frontend, event.cause) is not None:
            return
        waiter = Waiter(event, now)
        full = self.waiting.full(event.function)
        if not full and self.room.holds_back(event.function):
            full = self.waiting.too_long(event.function, now, growing=not self.room.is_short(event.function))
        if full or event.deadline_s <= 0:
            why = full or "its deadline passed on the way here"
            self.out.append(_refused(waiter, "SHED", f"{why}: try again later"))
            return
        gives_way = self.waiting.gives_way(event.function)
        if gives_way is not None:
            self.refuse(gives_way, "SHED", (
                f"{len(self.waiting)} requests wait at this manager (waiting_max {self._config.waiting_max}), most of "
                f"them of account {gives_way.event.function.account}: try again later"
            ))
        self.waiting.add(waiter)
        self.cover(event.function, now)

    def refuse(self, waiter: Waiter, reason: str, message: str, *, error_type: str = "") -> None:
        self.waiting.remove(waiter)
        self.out.append(_refused(waiter, reason, message, error_type=error_type))

    def cover(self, function: FunctionKey, now: float) -> None:
        """As many sandboxes are coming as requests wait: kept ones are taken back before new ones are made."""
        while self._cover_one(function, now):
            pass

    def _cover_one(self, function: FunctionKey, now: float) -> bool:
        """Sees to one of those who wait, or says that nothing is left to do."""
        waiter, idle = self.waiting.oldest(function), self._idle(function)
        if waiter is not None and idle is not None:
            self.waiting.remove(waiter)
            self._take(idle, waiter.event, now)
            return True
        waiting, kept = self.waiting.count(function), self.sandboxes.lingering(function)
        if kept is not None and waiting > self.sandboxes.recalled(function):
            self.take_back(kept, now, gently=True)  # sooner here than one that starts, even if that one is coming
            return True
        if waiting <= self.sandboxes.coming(function):
            return False
        kept = self.sandboxes.perhaps_kept(function, waiter.event.frontend) if waiter is not None else None
        if kept is not None:
            self.take_back(kept, now, gently=True)
            return True
        if self.room.holds_back(function):
            return False
        uncovered = self._uncovered(function)
        return uncovered is not None and self._make(uncovered, now)

    def cover_all(self, now: float) -> None:
        """Accounts take turns: room that is left goes round, instead of to whose function comes first."""
        self.waiting.in_turns(lambda function: self._cover_one(function, now))

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
        claimant = self.room.claimant(sandbox, wanted=waiter is not None)
        sandbox.making_room = False
        if claimant is not None:
            self.room.promise(claimant, sandbox.worker)
            self.destroy(sandbox, f"room for {claimant.function.function}", now)
            self.cover(sandbox.function, now)
        elif waiter is not None and self._reachable(sandbox.worker):
            self.waiting.remove(waiter)
            self._take(sandbox, waiter.event, now, phases)
        elif self.outdated(sandbox.function):
            self.destroy(sandbox, "an older revision", now)
        else:
            self.timers.set(("sandbox", sandbox.name), now + self._config.idle_s)
            while self.sandboxes.idle_count > self._config.idle_max:
                self.destroy(next(self.sandboxes.longest_idle()), "more idle sandboxes than are kept", now)
            if waiter is not None:  # it was taken back for somebody, and its worker has fallen silent meanwhile
                self.cover(sandbox.function, now)

    def _take(self, sandbox: Sandbox, event: Reserve, now: float, phases: Phases | None = None) -> None:
        if phases is None:
            sandbox.sequence += 1        # each holder has its own; the first has the one it was made with
        self.waiting.pace.count(event.function, now)
        sandbox.held = sandbox.sequence
        sandbox.holder, sandbox.cause, sandbox.reserved_at, sandbox.idle_since = event.frontend, event.cause, now, None
        crowded = self.waiting.count(sandbox.function) > 0
        sandbox.linger_s = 0.0 if crowded else self._config.linger_s
        # The way through this manager costs more than a short run: in a crowd the holder's own requests go first for a
        # moment, so that what is overloaded gets faster, not slower.
        pass_on_s = self._config.pass_on_s if self.waiting.waits_at(event.frontend, event.function) else 0.0
        sandbox.pass_on_until = now + pass_on_s if pass_on_s else float("-inf")
        self.sandboxes.move(sandbox, Reserved, now)
        self.timers.set(("sandbox", sandbox.name), now + self._config.unstarted_s)
        lease = self.leases[sandbox.worker]
        self.out.append(Reserved(
            frontend=event.frontend, cause=event.cause, worker=lease.worker, address=lease.invoke_address,
            host=lease.host, nonce=lease.nonce, lease=lease.number, sandbox=sandbox.name, sequence=sandbox.sequence,
            linger_s=sandbox.linger_s, pass_on_s=pass_on_s, cold=phases is not None, phases=phases or Phases(),
        ))

    def take_back(self, sandbox: Sandbox, now: float, *, gently: bool = False) -> None:
        """Raises the sequence: the worker tells whether the holder was faster. The recall saves the holder a try.

        ``gently``: only where the holder keeps it without using it; it is recalled once the worker has said so.
        """
        self.sandboxes.move(sandbox, Raise, now)
        sandbox.sequence += 1
        sandbox.gently = gently
        self.out.append(Raise(
            worker=sandbox.worker, sandbox=sandbox.name, sequence=sandbox.sequence,
            used=sandbox.held if gently else 0, cause=sandbox.cause,
        ))
        if not gently:
            self._recall(sandbox)

    def taken_back(self, sandbox: Sandbox, now: float) -> None:
        if sandbox.gently:
            self._recall(sandbox)
        self.sandboxes.move(sandbox, Raised, now)
        self.offer(sandbox, now)

    def not_taken(self, sandbox: Sandbox, now: float) -> None:
        """Its holder uses it, or is about to, and may go on: the sequence was not raised."""
        sandbox.sequence -= 1
        self.sandboxes.move(sandbox, StillRuns, now)
        if not sandbox.busy:
            self.timers.set(("sandbox", sandbox.name), sandbox.reserved_at + self._config.unstarted_s)
        self.kept_running(sandbox, now)

    def _recall(self, sandbox: Sandbox) -> None:
        if sandbox.holder:
            self.out.append(Recall(
                frontend=sandbox.holder, sandbox=sandbox.name, sequence=sandbox.held, cause=sandbox.cause
            ))

    def kept_running(self, sandbox: Sandbox, now: float) -> None:
        """Its holder was faster than the recall: it comes back when the run ends, and others look elsewhere."""
        if sandbox.making_room:
            sandbox.making_room = False
            for one in self.room.promised(sandbox.worker):
                self._look_again(one, now)
        self.cover(sandbox.function, now)

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
        self.cover(sandbox.function, now)  # others were held back while this one was placed

    def try_next(self, sandbox: Sandbox, now: float) -> None:
        """Placement's ranking first, then our own: our count of a worker's room is newer than placement's."""
        able = {
            lease.worker: lease
            for lease in self.leases.values()
            if self._reachable(lease.worker) and sandbox.runtime in lease.runtimes and lease.worker not in sandbox.tried
        }
        same = self._spread(sandbox.function)
        theirs = worker_leases.respread(sandbox.ranking or (), able, same)
        ranked = [able[worker] for worker in [*theirs, *worker_leases.rank(able.values(), az=sandbox.az, same=same)]]
        roomy = [lease for lease in ranked if self.room.fits(sandbox, lease)]
        sandbox.short = not roomy
        for lease in roomy:
            if self.room.may_start(lease.worker, now):
                self._create(sandbox, lease, now)
                return
        if roomy:
            self.timers.set(("starts",), now + self._config.starting_s)
        elif self._make_room(sandbox, able, now):
            return
        elif not any(lease.memory_mb >= sandbox.memory_mb for lease in ranked):
            missing = sandbox.refusal or f"{sandbox.memory_mb} MB fit on none of {len(able)} workers: add workers"
            self._give_up(sandbox, missing, now)
            return
        self.room.wait(sandbox)
        self.timers.set(("room", sandbox.name), now + self._config.room_s)

    def _create(self, sandbox: Sandbox, lease: Lease, now: float) -> None:
        assert lease.state is LeaseState.USABLE, f"invariant 12: {lease.worker} is {lease.state.value}"
        self.sandboxes.seat(sandbox, lease.worker)
        self.sandboxes.move(sandbox, Placed, now)
        sandbox.started_at = now
        lease.memory_free_mb -= sandbox.memory_mb
        self.out.append(Create(
            worker=lease.worker, sandbox=sandbox.name, function=sandbox.function, sequence=sandbox.sequence,
            deadline_s=max(0.0, sandbox.deadline_at - now), order=sandbox.order, cause=sandbox.cause,
        ))
        self._keep_reserve(now)

    def _keep_reserve(self, now: float) -> None:
        """What runs may use what the loss of an AZ would need: no request is refused for what hasn't happened. What
        only waits to be used may not: the longest idle sandboxes go."""
        if not self.sandboxes.idle_count:
            return
        going_mb = sum(one.memory_mb for one in self.sandboxes.by_name.values() if one.goes)
        missing_mb = worker_leases.reserve_missing_mb(self.leases.values(), going_mb)
        for victim in list(self.sandboxes.longest_idle()) if missing_mb else ():
            if missing_mb <= 0:
                return
            missing_mb -= victim.memory_mb
            self.destroy(victim, "room for the loss of an AZ", now)

    def _make_room(self, sandbox: Sandbox, able: dict[str, Lease], now: float) -> bool:
        """Idle sandboxes of one worker go, kept ones are taken back to go; this one is created when they have gone."""
        sacrifice = self.room.sacrifice(sandbox, able.values())
        if sacrifice is None:
            return False
        self.room.promise(sandbox, sacrifice.worker)
        self.timers.set(("room", sandbox.name), now + self._config.room_s)
        for victim in sacrifice.idle:
            self.destroy(victim, f"room for {sandbox.function.function}", now)
        for victim in sacrifice.lingering:
            victim.making_room = True
            self.take_back(victim, now)
        return True

    def room_freed(self, worker: str, now: float) -> None:
        """Something of this worker goes, has gone or is ready, or the worker has gone: those who wait for room look
        again."""
        for sandbox in self.room.promised(worker):
            lease = self.leases.get(worker)
            if lease is None or not self._reachable(worker):
                self._look_again(sandbox, now)
            elif lease.memory_free_mb < sandbox.memory_mb:
                continue
            elif self.room.may_start(worker, now):
                self.room.leave(sandbox)
                self._create(sandbox, lease, now)
                self.cover(sandbox.function, now)
            else:
                self.timers.set(("starts",), now + self._config.starting_s)
        self._look_for_room(now)

    def _look_for_room(self, now: float) -> None:
        """Those who wait for any worker, the account that has the least first."""
        for sandbox in self.room.queue():
            if not self.room.any_place((lease for lease in self.leases.values() if lease.usable), now):
                self.timers.set(("starts",), now + self._config.starting_s)
                return
            if self.room.waits(sandbox):  # and wasn't served meanwhile
                self._look_again(sandbox, now)

    def _look_again(self, sandbox: Sandbox, now: float) -> None:
        """Unless all of its function's requests have others on their way."""
        self.room.leave(sandbox)
        if self.waiting.count(sandbox.function) < self.sandboxes.coming(sandbox.function):
            self.sandboxes.move(sandbox, Refused, now)
        else:
            self.try_next(sandbox, now)
        self.cover(sandbox.function, now)  # its further requests waited behind it

    def room_due(self, name: str, now: float) -> None:
        """It has waited long enough: where its function has sandboxes, its requests are served as those come free."""
        sandbox = self.sandboxes.get(name)
        if sandbox is None or not self.room.waits(sandbox):
            return
        if self._spread(sandbox.function) or not self.waiting.count(sandbox.function):
            self._look_again(sandbox, now)
        else:
            self.room.leave(sandbox)
            waited_s = self._config.room_s
            message = f"{sandbox.memory_mb} MB came free on none of {len(self.leases)} workers within {waited_s:g} s"
            for waiter in self.waiting.of_function(sandbox.function):
                self.refuse(waiter, "NO_CAPACITY", f"{message}: add workers, or let callers back off")
            self.sandboxes.move(sandbox, Refused, now)

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
        # Of when it answered: what was ordered after this one is still on its way there.
        on_its_way_mb = sum(one.memory_mb for one in self.sandboxes.ordered_after(sandbox))
        self.leases[event.worker].memory_free_mb = event.memory_free_mb - on_its_way_mb
        self.sandboxes.seat(sandbox, "")
        self.sandboxes.move(sandbox, NoCapacity, now)
        sandbox.tried.add(event.worker)
        sandbox.refusal = f"{event.worker}: {event.reason}"
        self.try_next(sandbox, now)

    def create_failed(self, event: CreateFailed, now: float) -> None:
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None or sandbox.state not in (State.STARTING, State.LEAVING):
            return
        # Who waited for one that was leaving already waits for another.
        starting = sandbox.state is State.STARTING
        waiter = self.waiting.get(sandbox.holder, sandbox.cause) if starting else None
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
        self.room_freed(event.worker, now)

    def going(self, event: Going, now: float) -> None:
        """Nobody gets it any more. What would be created in its room is refused until it has gone."""
        sandbox = self.sandboxes.get(event.sandbox, event.worker)
        if sandbox is None:
            return
        self.sandboxes.move(sandbox, Going, now)
        self.cover(sandbox.function, now)
        self.room_freed(event.worker, now)

    def gone(self, event: Gone, now: float) -> None:
        sandbox, lease = self.sandboxes.get(event.sandbox, event.worker), self.leases.get(event.worker)
        if sandbox is not None:
            self._remove(sandbox, Gone, now)
            self.cover(sandbox.function, now)
        elif lease is not None:
            # A worker of the release before says Gone of what breaks too, and counts it in its refusals until now.
            lease.memory_free_mb = lease.memory_mb - self.sandboxes.memory_mb(lease.worker)
        self.room_freed(event.worker, now)

    def worker_gone(self, worker: str, now: float) -> None:
        """Its sandboxes are nobody's here any more; those who waited for them go elsewhere."""
        functions = set()
        for sandbox in self.sandboxes.of_worker(worker):
            functions.add(sandbox.function)
            self._end(sandbox, WorkerAway, now)
        self.room_freed(worker, now)
        for function in sorted(functions):
            self.cover(function, now)

    def _remove(self, sandbox: Sandbox, event: type, now: float) -> None:
        lease = self.leases[sandbox.worker]
        lease.memory_free_mb = min(lease.memory_mb, lease.memory_free_mb + sandbox.memory_mb)
        self._end(sandbox, event, now)

    def _end(self, sandbox: Sandbox, event: type, now: float) -> None:
        self.sandboxes.move(sandbox, event, now)
        self.timers.drop(("sandbox", sandbox.name))

    def _give_up(self, sandbox: Sandbox, message: str, now: float) -> None:
        waiter = self.waiting.get(sandbox.holder, sandbox.cause)
        self.sandboxes.move(sandbox, Refused, now)
        if waiter is not None:
            self.refuse(waiter, "NO_CAPACITY", message)
        self.cover(sandbox.function, now)

    # ------------------------------------------------------------ revisions

    def outdated(self, function: FunctionKey) -> bool:
        return self.revisions.outdated(function)

    def note_revision(self, function: FunctionKey, now: float) -> None:
        if self.revisions.learn(function):
            self._retire(function.account, function.function, now)

    def forget(self, function: FunctionKey, now: float) -> None:
        """The function was deleted at this revision (0: whatever it was)."""
        self.revisions.forget(function)
        self.rate.forget(function.account, function.function)
        self._retire(function.account, function.function, now)

    def _retire(self, account: str, name: str, now: float) -> None:
        """Nobody keeps a right to start on what is outdated, not even one given a moment ago; what runs, finishes."""
        for function in [*self.sandboxes.functions(), *self.waiting.functions()]:
            if (function.account, function.function) == (account, name) and self.outdated(function):
                for waiter in self.waiting.of_function(function):
                    self.refuse(waiter, "REVISED", f"a newer revision of {name} is served")
                for sandbox in self.sandboxes.of_function(function):
                    if sandbox.state is State.IDLE:
                        self.destroy(sandbox, "an older revision", now)
                    elif sandbox.state is State.RESERVED and sandbox.startable:
                        self.take_back(sandbox, now)

    def answer_retired(self, now: float) -> None:
        """Tells who waits for the end of older revisions. Not while workers are expected: they may bring some."""
        for asker in self.revisions.askers():
            concerned = [function for function in self.sandboxes.functions() if Revisions.concerns(asker, function)]
            startable = [item for name in concerned for item in self.sandboxes.of_function(name) if item.startable]
            for sandbox in startable:
                if sandbox.state is State.RESERVED:     # adopted since then
                    self.take_back(sandbox, now)
            if not startable and now >= self.settles_until:
                self.revisions.drop(asker.frontend, asker.cause)
                self.out.append(Retired(frontend=asker.frontend, cause=asker.cause))


def _refused(waiter: Waiter, reason: str, message: str, *, error_type: str = "") -> Refused:
    return Refused(
        frontend=waiter.event.frontend, cause=waiter.event.cause, reason=reason, message=message, error_type=error_type
    )
