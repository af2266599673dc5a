"""The life of a worker under this manager's lease: granted, adopted, drained, returned.

Owns what a lease's events do to it and to the sandboxes there. ``supply`` owns who is served by which sandbox.
"""

from typing import assert_never

from worker_manager.config import PoolConfig
from worker_manager.leases import Lease, LeaseState
from worker_manager.messages import (
    Connect,
    Disconnect,
    DrainWorker,
    Granted,
    HandOver,
    Inventory,
    Leave,
    Lost,
    ReturnWorker,
    SandboxFacts,
    StaleLease,
    TellReturned,
    Tick,
    WorkerAway,
    WorkerEvent,
    WorkerReturned,
)
from worker_manager.sandboxes import Sandbox, State
from worker_manager.supply import Supply

INVENTORY_STATES = {
    "starting": State.STARTING, "idle": State.IDLE, "busy": State.RESERVED, "draining": State.LEAVING,
}


class Tenure:
    def __init__(self, supply: Supply, config: PoolConfig) -> None:
        self.supply = supply
        self._config = config
        self._leaving = False

    def handle(self, event: WorkerEvent, now: float) -> None:
        lease = self.supply.leases.get(event.worker)
        if isinstance(event, Granted):
            self._granted(event, lease, now)
            return
        if lease is None or lease.number != event.lease:
            return  # of a lease that is over
        match event:
            case Inventory():
                self._adopted(lease, event, now)
            case WorkerAway():
                lease.connected = False
                lease.move(WorkerAway, now)
                self.expect_workers(now)
                self.supply.worker_gone(lease.worker, now)
            case StaleLease():
                # Another has it, or it was returned and the word was lost with the stream, or the number is too low
                # for this worker: placement ignores this where it knows better, and grants the next number where not.
                self._give_back(lease, StaleLease, now, cause="stale")
            case HandOver():
                self._give_back(lease, HandOver, now, cause=event.cause)
            case Lost():
                self._end(lease, Lost, now, cause=event.reason)
            case WorkerReturned():
                if lease.state is LeaseState.RETURNING:
                    self._give_back(lease, WorkerReturned, now, cause="lease")
            case _:
                assert_never(event)

    def _granted(self, event: Granted, known: Lease | None, now: float) -> None:
        if known is not None:
            if event.lease <= known.number:
                return  # said again
            self._end(known, Granted, now, cause="replaced")
        if self._leaving:
            self.supply.out.append(TellReturned(worker=event.worker, lease=event.lease, cause="drain"))
            return
        lease = self.supply.leases[event.worker] = Lease(event, now)
        self.expect_workers(now)
        self.supply.timers.set(("lease", lease.worker), lease.drain_at)
        self.supply.out.append(Connect(
            worker=lease.worker, address=lease.address, lease=lease.number, lasts_until=lease.hard_end,
            timeout_cap_s=event.drain_s, cause=event.cause,
        ))

    def _adopted(self, lease: Lease, event: Inventory, now: float) -> None:
        """The worker's inventory is the truth. Rights given under this very number may still be used: taken back."""
        again, lease.adopted, lease.connected = lease.adopted, True, True
        lease.nonce, lease.runtimes = event.nonce, frozenset(event.runtimes)
        lease.invoke_address = event.invoke_address
        lease.memory_mb, lease.memory_free_mb = event.memory_mb, event.memory_free_mb
        self.supply.worker_gone(lease.worker, now)
        lease.move(Inventory, now)
        found = [self._adopt_sandbox(lease, facts) for facts in event.sandboxes]
        for sandbox in found:
            if sandbox.state is State.IDLE and again:
                self.supply.take_back(sandbox, now)
            elif sandbox.state is State.IDLE:
                self.supply.offer(sandbox, now)
        if lease.state is LeaseState.DRAINING:
            self.supply.out.append(DrainWorker(worker=lease.worker, cause="lease"))
            self.return_if_empty(lease.worker, now)
        elif lease.state is LeaseState.RETURNING:
            self.supply.out.append(ReturnWorker(worker=lease.worker, cause="lease"))
        self.supply.cover_all(now)

    def _adopt_sandbox(self, lease: Lease, facts: SandboxFacts) -> Sandbox:
        sandbox = Sandbox(facts.sandbox, facts.function, facts.memory_mb, INVENTORY_STATES[facts.state])
        sandbox.worker = lease.worker
        sandbox.sequence = sandbox.held = facts.sequence
        sandbox.busy = sandbox.released = facts.state == "busy"
        self.supply.sandboxes.add(sandbox)
        return sandbox

    def _drain(self, lease: Lease, now: float) -> None:
        """The lease ends: nothing new, idle sandboxes go, kept ones are taken back, what runs finishes."""
        if not lease.adopted:
            self._give_back(lease, WorkerReturned, now, cause="lease")
            return
        lease.move(DrainWorker, now)
        self.supply.out.append(DrainWorker(worker=lease.worker, cause="lease"))
        for sandbox in self.supply.sandboxes.of_worker(lease.worker):
            if sandbox.state is State.IDLE:
                self.supply.destroy(sandbox, "the worker's lease ends", now)
            elif sandbox.state is State.RESERVED and not sandbox.busy:
                # Whoever got it a moment ago is on the way with a start, which is worth a moment of the drain.
                self.supply.take_back(sandbox, now, gently=True)
        self.supply.room_freed(lease.worker, now)
        self.return_if_empty(lease.worker, now)
        self.supply.timers.set(("lease", lease.worker), lease.hard_end)

    def return_if_empty(self, worker: str, now: float) -> None:
        lease = self.supply.leases.get(worker)
        empty = lease is not None and lease.connected and not self.supply.sandboxes.of_worker(worker)
        if lease is not None and empty and lease.state is LeaseState.DRAINING:
            lease.move(ReturnWorker, now)
            self.supply.out.append(ReturnWorker(worker=worker, cause="lease"))

    def _give_back(self, lease: Lease, event: type, now: float, *, cause: str) -> None:
        self.supply.out.append(TellReturned(worker=lease.worker, lease=lease.number, cause=cause))
        self._end(lease, event, now, cause=cause)

    def _end(self, lease: Lease, event: type, now: float, *, cause: str) -> None:
        lease.move(event, now)
        self.expect_workers(now)
        self.supply.worker_gone(lease.worker, now)
        del self.supply.leases[lease.worker]
        self.supply.timers.drop(("lease", lease.worker))
        self.supply.out.append(Disconnect(worker=lease.worker, lease=lease.number, cause=cause))

    def leave(self, now: float) -> None:
        """Workers are handed over as they are: the next manager adopts them with their sandboxes."""
        self._leaving = True
        for lease in list(self.supply.leases.values()):
            self._give_back(lease, Leave, now, cause="drain")

    def expect_workers(self, now: float) -> None:
        self.supply.settles_until = now + self._config.settle_s
        self.supply.timers.set(("settle",), self.supply.settles_until)

    def lease_due(self, worker: str, now: float) -> None:
        lease = self.supply.leases.get(worker)
        if lease is None:
            return
        if now >= lease.hard_end:
            self._end(lease, Tick, now, cause="hard end")
        elif now < lease.drain_at:
            self.supply.timers.set(("lease", worker), lease.drain_at)
        elif lease.state in (LeaseState.JOINING, LeaseState.USABLE, LeaseState.AWAY):
            self._drain(lease, now)
        else:
            self.supply.timers.set(("lease", worker), lease.hard_end)
