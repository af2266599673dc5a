"""A worker manager's decisions: who may ask, which workers are held, and what every word of a worker means.

Owns roles and the reading of events; ``supply`` owns which sandbox serves whom, ``tenure`` a lease's life. Refuses to
know payloads, streams, how a sandbox is built.
"""

from typing import assert_never

from chassis.rendezvous import owner_of
from worker_manager.config import PoolConfig
from worker_manager.leases import LeaseState
from worker_manager.messages import (
    Busy,
    Cancel,
    CreateFailed,
    Effect,
    Event,
    FrontendEvent,
    FrontendLeft,
    Going,
    Gone,
    Granted,
    HandOver,
    Idle,
    Inventory,
    Leave,
    Lost,
    NoCapacity,
    Placed,
    Raised,
    Ready,
    Refused,
    RegionSeen,
    Release,
    Reserve,
    Revised,
    RoleGiven,
    SandboxEvent,
    StaleLease,
    Tick,
    WorkerAway,
    WorkerReturned,
)
from worker_manager.sandboxes import STATES, Sandbox, State, StillRuns
from worker_manager.supply import Supply
from worker_manager.tenure import Tenure


class ManagerCore:
    def __init__(self, *, node: str, config: PoolConfig) -> None:
        self.supply = Supply(config)
        self.tenure = Tenure(self.supply, config)
        self.active = False
        self.term = 0
        self.owners: tuple[str, ...] = ()
        self.owners_version = 0
        self._node = node
        self._config = config
        self._leaving = False
        self._settling = False           # workers are expected: some requests wait without a sandbox on its way
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._now = now
        self.supply.out = []
        if self._settling and now >= self.supply.settles_until:
            self._settling = False
            self.supply.cover_all(now)
        match event:
            case Reserve() | Cancel() | Release() | Revised() | FrontendLeft():
                self._handle_frontend(event, now)
            case NoCapacity() | CreateFailed() | Ready() | Idle() | Busy() | Going() | Gone() | Raised():
                self._handle_sandbox(event, now)
            case Inventory() | WorkerAway() | StaleLease() | WorkerReturned() | Granted() | Lost() | HandOver():
                self.tenure.handle(event, now)
            case RoleGiven():
                self._take_role(event, now)
            case RegionSeen():
                self._see_region(event, now)
            case Placed():
                self.supply.placed(event, now)
            case Tick():
                self._tick(now)
            case Leave():
                self._leave(now)
            case _:
                assert_never(event)
        self._settling |= now < self.supply.settles_until
        self.supply.answer_retired(now)
        return self.supply.out

    def wakes_at(self) -> float | None:
        """When the next Tick is due, monotonic seconds."""
        return self.supply.timers.next_at()

    def check(self) -> None:
        """Invariants 7, 8 and 12 (docs/invariants.md) as far as a manager can see them."""
        supply = self.supply
        supply.sandboxes.check()
        supply.waiting.check()
        supply.room.check()
        supply.timers.check()
        self._check_timers()
        for sandbox in supply.sandboxes.by_name.values():
            if sandbox.worker:
                assert sandbox.worker in supply.leases, f"{sandbox} is on a worker that isn't ours"
                lease = supply.leases[sandbox.worker]
                # 12: a draining worker has nothing that waits for work.
                assert not (sandbox.state is State.IDLE and lease.state is LeaseState.DRAINING), f"{sandbox} waits"
        for lease in supply.leases.values():
            assert lease.state is not LeaseState.OVER, f"the lease of {lease.worker} is over and kept"
            # A sandbox has its memory from its Create until its worker says that it has gone.
            taken_mb = supply.sandboxes.memory_mb(lease.worker)
            assert taken_mb + lease.memory_free_mb <= lease.memory_mb, (
                f"{taken_mb} of {lease.memory_mb} MB of {lease.worker} are taken, {lease.memory_free_mb} believed free"
            )
        for function in supply.waiting.functions():
            # Nobody waits without a sandbox on its way to them, unless it waits for room or the workers are on theirs.
            coming = supply.sandboxes.coming(function)
            held_back = supply.room.holds_back(function) or self._now < supply.settles_until
            assert supply.waiting.count(function) <= coming or held_back, (
                f"{supply.waiting.count(function)} wait for {function}, {coming} are coming"
            )

    def _check_timers(self) -> None:
        """Deadlines are of what there is. Those of who looks for room are passed over, ``room_s`` later at most."""
        for key in self.supply.timers:
            match key:
                case ("waiter", frontend, cause):
                    assert self.supply.waiting.get(frontend, cause) is not None, f"{cause} is served and has a timer"
                case ("sandbox", name):
                    assert self.supply.sandboxes.get(name) is not None, f"{name} has gone and has a timer"
                case ("lease", worker):
                    assert worker in self.supply.leases, f"{worker} isn't leased and has a timer"
                case _:
                    pass

    # ------------------------------------------------------------ frontends

    def _handle_frontend(self, event: FrontendEvent, now: float) -> None:
        match event:
            case Reserve():
                refused = self._turn_away(event)
                if refused is not None:
                    self.supply.out.append(refused)
                else:
                    self.supply.serve(event, now)
            case Cancel():
                waiter = self.supply.waiting.get(event.frontend, event.cause)
                if waiter is not None:
                    self.supply.waiting.remove(waiter)
                    if event.served:
                        self.supply.waiting.pace.count(waiter.event.function, now)
                self.supply.revisions.drop(event.frontend, event.cause)
            case Release():
                self._release(event, now)
            case Revised():
                self._revised(event, now)
            case FrontendLeft():
                self._frontend_left(event, now)
            case _:
                assert_never(event)

    def _revised(self, event: Revised, now: float) -> None:
        if event.deleted:
            self.supply.forget(event.function, now)
        else:
            self.supply.note_revision(event.function, now)
            if event.vouched:
                self.supply.revisions.vouch(event.function)
        if event.cause:
            refused = self._turn_away(event)
            if refused is None:
                self.supply.revisions.ask(event)
            else:
                self.supply.out.append(refused)

    def _turn_away(self, event: Reserve | Revised) -> Refused | None:
        if not self.active:
            return Refused(
                frontend=event.frontend, cause=event.cause, reason="NOT_ACTIVE", version=self.owners_version,
                message=f"{self._node} stands by",
            )
        owner = owner_of(self.owners, event.function.account, event.function.function)
        if owner in ("", self._node):
            return None
        return Refused(
            frontend=event.frontend, cause=event.cause, reason="NOT_MINE", version=self.owners_version, owner=owner,
            message=f"{event.function.function} is {owner}'s since version {self.owners_version} of the map",
        )

    def _release(self, event: Release, now: float) -> None:
        sandbox = self.supply.sandboxes.get(event.sandbox)
        if sandbox is None or (sandbox.holder, sandbox.held) != (event.frontend, event.sequence):
            return
        if sandbox.state is State.RESERVED:
            sandbox.released = True
            if not sandbox.busy:
                self.supply.sandboxes.move(sandbox, Release, now)
                self.supply.offer(sandbox, now)

    def _frontend_left(self, event: FrontendLeft, now: float) -> None:
        """What it runs goes on; what it only kept is taken back."""
        self.supply.revisions.drop(event.frontend)
        for waiter in self.supply.waiting:
            if waiter.event.frontend == event.frontend:
                self.supply.waiting.remove(waiter)
        for sandbox in list(self.supply.sandboxes.by_name.values()):
            if sandbox.holder == event.frontend and sandbox.state is State.RESERVED:
                sandbox.holder = ""
                if not sandbox.busy:
                    self.supply.take_back(sandbox, now)

    # ------------------------------------------------------------ sandboxes, by their workers' word

    def _handle_sandbox(self, event: SandboxEvent, now: float) -> None:
        match event:
            case NoCapacity():
                self.supply.no_capacity(event, now)
            case CreateFailed():
                self.supply.create_failed(event, now)
                self.tenure.return_if_empty(event.worker, now)
            case Ready():
                self.supply.ready(event, now)
            case Going():
                self.supply.going(event, now)
            case Gone():
                self.supply.gone(event, now)
                self.tenure.return_if_empty(event.worker, now)
            case Idle() | Busy() | Raised():
                sandbox = self.supply.sandboxes.get(event.sandbox, event.worker)
                # What the worker says of a former holder comes late: the present one has a higher sequence.
                if sandbox is not None and event.sequence >= sandbox.held:
                    self._handle_use(sandbox, event, now)
            case _:
                assert_never(event)

    def _handle_use(self, sandbox: Sandbox, event: Idle | Busy | Raised, now: float) -> None:
        match event:
            case Busy():
                if STATES.allows(sandbox.state, Busy):
                    sandbox.released |= sandbox.state is State.IDLE
                    self.supply.sandboxes.move(sandbox, Busy, now)
                    sandbox.busy, sandbox.idle_since = True, None
            case Idle():
                # Of a short run the worker tells the end only.
                sandbox.busy = False
                if sandbox.state is State.RESERVED:
                    self._came_free(sandbox, now)
            case Raised() if sandbox.state is State.RECALLED and event.sequence >= sandbox.sequence:
                sandbox.busy = event.busy
                if event.kept:
                    self.supply.not_taken(sandbox, now)
                elif event.busy:
                    sandbox.released = True
                    self.supply.sandboxes.move(sandbox, StillRuns, now)
                    self.supply.kept_running(sandbox, now)
                else:
                    self.supply.taken_back(sandbox, now)
            case Raised():
                pass  # of an earlier raise
            case _:
                assert_never(event)

    def _came_free(self, sandbox: Sandbox, now: float) -> None:
        """The holder's run has ended: it may keep the sandbox for the linger, unless somebody needs it."""
        supply = self.supply
        passes_on = now < sandbox.pass_on_until + self._config.release_grace_s  # until its word, on the way already
        goes_on = passes_on or sandbox.linger_s > 0
        if not sandbox.holder or sandbox.released or not goes_on or sandbox.held < sandbox.sequence:
            supply.sandboxes.move(sandbox, Idle, now)
            supply.offer(sandbox, now)
            return
        sandbox.idle_since = now
        closed = supply.leases[sandbox.worker].state is not LeaseState.USABLE or supply.outdated(sandbox.function)
        uncovered = supply.waiting.count(sandbox.function) > supply.sandboxes.recalled(sandbox.function)
        wanted = (uncovered and not passes_on) or supply.room.claimant(sandbox, wanted=False) is not None
        if closed or wanted:
            # The word is a little old: a holder that runs again meanwhile goes on, unless nothing may start here.
            supply.take_back(sandbox, now, gently=not closed)
        else:
            if not passes_on:
                supply.sandboxes.linger(sandbox)
            self.supply.timers.set(("sandbox", sandbox.name), self._taken_back_at(sandbox))

    # ------------------------------------------------------------ role, region, time

    def _take_role(self, event: RoleGiven, now: float) -> None:
        if event.term < self.term:
            return  # of a placement that was replaced
        self.term = event.term
        if event.active and not self.active and not self._leaving:
            self.active = True
            self.supply.revisions.distrust()
            self.tenure.expect_workers(now)
        elif not event.active and self.active:
            self.active = False
            self._refuse_all("NOT_ACTIVE", f"{self._node} stands by now")

    def _see_region(self, event: RegionSeen, now: float) -> None:
        if event.owners != self.owners:
            self.supply.revisions.distrust()
        self.owners, self.owners_version = event.owners, event.owners_version
        self.supply.unusable = event.unusable
        for waiter in self.supply.waiting:
            refused = self._turn_away(waiter.event)
            if refused is not None:
                self.supply.waiting.remove(waiter)
                self.supply.out.append(refused)
        self._turn_askers_away()
        for worker in sorted(event.unusable):
            self.supply.room_freed(worker, now)
        self.supply.cover_all(now)

    def _refuse_all(self, reason: str, message: str) -> None:
        for waiter in self.supply.waiting:
            self.supply.refuse(waiter, reason, message)
        self._turn_askers_away()

    def _turn_askers_away(self) -> None:
        for asker in self.supply.revisions.askers():
            refused = self._turn_away(asker)
            if refused is not None:
                self.supply.revisions.drop(asker.frontend, asker.cause)
                self.supply.out.append(refused)

    def _leave(self, now: float) -> None:
        self._leaving, self.active = True, False
        self._refuse_all("NOT_ACTIVE", f"{self._node} ends")
        self.tenure.leave(now)

    def _tick(self, now: float) -> None:
        for key in list(self.supply.timers.due(now)):
            match key:
                case ("sandbox", name):
                    sandbox = self.supply.sandboxes.get(name)
                    if sandbox is not None:
                        self._sandbox_due(sandbox, now)
                case ("waiter", frontend, cause):
                    waiter = self.supply.waiting.get(frontend, cause)
                    if waiter is not None:
                        self.supply.refuse(waiter, "SHED", (
                            f"no sandbox within {waiter.event.deadline_s:g} s; the one that starts for it is kept"
                        ))
                case ("room", name):
                    self.supply.room_due(name, now)
                case ("starts",):
                    for worker in list(self.supply.leases):
                        self.supply.room_freed(worker, now)
                case ("lease", worker):
                    self.tenure.lease_due(worker, now)
                case _:
                    if now < self.supply.settles_until:
                        self.supply.timers.set(key, self.supply.settles_until)

    def _sandbox_due(self, sandbox: Sandbox, now: float) -> None:
        if sandbox.state is State.IDLE:
            due = (sandbox.idle_since or 0.0) + self._config.idle_s
            if now >= due:
                self.supply.destroy(sandbox, f"idle for {self._config.idle_s:g} s", now)
                return
        elif sandbox.state is State.RESERVED and not sandbox.busy:
            due = self._taken_back_at(sandbox)
            if now >= due:
                self.supply.take_back(sandbox, now)
                return
        else:
            return  # its next event sets the next deadline
        self.supply.timers.set(("sandbox", sandbox.name), due)

    def _taken_back_at(self, sandbox: Sandbox) -> float:
        if sandbox.idle_since is None:
            return sandbox.reserved_at + self._config.unstarted_s
        return sandbox.idle_since + sandbox.linger_s + self._config.release_grace_s
