"""The fleet, decided: who is there, who leads, which manager is active and which workers it holds.

Owns every durable decision of placement. Refuses to know invocations, sandboxes, streams and the store's kind. A
standby hears every node too, so that it can lead at once.
"""

from dataclasses import replace
from typing import assert_never

from placement import reserve, roles
from placement.config import FleetConfig
from placement.leadership import Leadership, Stage
from placement.leases import Chosen, Dropped, Hold, HoldState, TakenOver
from placement.messages import (
    Drain,
    DrawLease,
    Effect,
    Event,
    GiveRole,
    Grant,
    HandOver,
    Heartbeat,
    LeadershipFailed,
    LeadershipRead,
    LeadershipWritten,
    LeaseDrawn,
    ManagerJoined,
    ManagerLeft,
    NodesRevoked,
    Publish,
    ReadRecord,
    RecordFailed,
    RecordRead,
    RecordsFailed,
    RecordsRead,
    RecordUnread,
    RecordWritten,
    Registered,
    RoleChanged,
    StreamClosed,
    TakeAway,
    Tick,
    WorkerReturned,
    WriteRecord,
)
from placement.nodes import Health, Node, Nodes
from placement.ranking import Candidate
from storage.interfaces import LeaseRecord

_OWNERS_VERSIONS_PER_TERM = 1_000_000  # so that the map's version grows over terms too


class PlacementCore:
    def __init__(self, *, node: str, config: FleetConfig) -> None:
        self.nodes = Nodes(config, own=node)
        self.leadership = Leadership(node=node, config=config)
        self.holds: dict[str, Hold] = {}
        self.active: frozenset[str] = frozenset()       # managers
        self.owners: tuple[str, ...] = ()
        self.owners_version = 0
        self.version = 0
        self.revoked: tuple[tuple[str, int], ...] = ()  # carried on in the view, decided by nobody here
        self._config = config
        self._links: dict[str, ManagerJoined] = {}      # managers' lease streams
        self._heard_at: float | None = None             # of the last event
        self._granted: dict[str, int] = {}              # highest number that went out, by worker
        self._led_since = 0.0
        self._balanced_at = float("-inf")               # when a worker was last asked back for another manager
        self._greet: set[str] = set()                   # managers that are to be told their role

    @property
    def is_active(self) -> bool:
        return self.leadership.stage is Stage.ACTIVE

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._notice_stall(now)
        led, was_active = self.leadership.leads, self.is_active
        effects: list[Effect] = []
        changed = self._apply(event, now, effects)
        if isinstance(event, Heartbeat) and not changed:
            return effects      # nearly all there is to handle; what a load changes is seen to at the next tick
        if self.leadership.leads != led:
            effects.append(self._change_role(now))
        if self.is_active:
            changed |= not was_active
            if self.leadership.is_sure(now):    # who was cut off for a while may have a successor by now
                changed |= self._rule(now, effects)
            if changed:
                self.version += 1
                effects.append(Publish(version=self.version, cause=event.cause))
        return effects

    def check(self) -> None:
        """Invariants 9 and 11 (docs/invariants.md) as far as placement can see them."""
        for worker, hold in self.holds.items():
            # 9: numbers only grow, and what is leased has a record that names the holder.
            assert hold.number >= self._granted.get(worker, 0), f"{worker}: number {hold.number} fell"
            if hold.state is HoldState.LEASED:
                assert hold.manager, f"{worker} is leased to nobody"
                assert hold.record is not None, f"{worker} is leased without a record"
                assert hold.record.manager == hold.manager, f"{worker} is {hold.record.manager}'s by its record"
                # 11: the drain fits before the hard end, and a lease is at most 10 h long.
                assert hold.hard_end - hold.soft_end >= self._config.drain_s - 1e-3, f"{worker}: no room to drain"
            if hold.state in (HoldState.DRAWING, HoldState.GRANTING):
                assert hold.manager, f"{worker} is being granted to nobody"
        if not self.leadership.knows_leases:
            assert not self.holds, "it decides about leases that it can't know"
            assert not self.active, "it has active managers that it can't know"

    def candidates(self, manager: str, excluded: frozenset[str]) -> list[Candidate]:
        """The manager's workers, for ``ranking.rank``."""
        found = []
        for hold in self.holds.values():
            node = self.nodes.get(hold.worker)
            if hold.state is HoldState.LEASED and hold.manager == manager and node and hold.worker not in excluded:
                capacity = node.capacity
                found.append(Candidate(
                    worker=hold.worker, az=node.facts.az, host=node.facts.host, usable=node.usable,
                    memory_free_mb=capacity.memory_free_mb if capacity else 0,
                    runtimes=capacity.runtimes if capacity else (),
                    memory_mb=capacity.memory_mb if capacity else 0,
                    memory_idle_mb=capacity.memory_idle_mb if capacity else 0,
                ))
        return found

    def margins(self) -> list[reserve.Margin]:
        """What the loss of each AZ leaves, for people and metrics."""
        managers = sorted({hold.manager for hold in self.holds.values() if hold.state is HoldState.LEASED})
        return reserve.tightest((manager, self.candidates(manager, frozenset())) for manager in managers)

    # ------------------------------------------------------------ events

    def _apply(self, event: Event, now: float, effects: list[Effect]) -> bool:
        """Whether what the view shows may have changed."""
        match event:
            case Registered() | Heartbeat() | StreamClosed():
                return self._apply_node(event, now, effects)
            case ManagerJoined() | ManagerLeft() | WorkerReturned():
                self._apply_manager(event, now, effects)
            case Tick():
                changed = self.nodes.age(now, leads=self.leadership.leads)
                effects += self.leadership.tick(now, holder_gone=self._leader_is_gone())
                if self.leadership.is_sure(now):
                    self._age_leases(now, effects)
                return changed
            case Drain():
                effects += self.leadership.drain(now)
            case LeaseDrawn():
                self._drawn(event, now, effects)
            case LeadershipRead() | LeadershipWritten() | LeadershipFailed():
                effects += self.leadership.handle(event, now)
            case RecordsRead() | RecordsFailed():
                self._records(event, now, effects)
            case RecordWritten() | RecordFailed() | RecordRead() | RecordUnread():
                self._apply_record(event, now, effects)
            case NodesRevoked():
                changed, self.revoked = event.revoked != self.revoked, event.revoked
                return changed
            case _:
                assert_never(event)
        return False

    def _apply_node(self, event: Registered | Heartbeat | StreamClosed, now: float, effects: list[Effect]) -> bool:
        match event:
            case Registered():
                changed = self.nodes.register(event, now)
                if event.facts.service == "worker" and self.leadership.knows_leases:
                    self._worker_seen(event, now, effects)
                return changed
            case Heartbeat():
                return self.nodes.hear(event.node, event.connection, event.load, now)
            case StreamClosed():
                return self.nodes.close(event.node, event.connection, now)
            case _:
                assert_never(event)

    def _apply_manager(
        self, event: ManagerJoined | ManagerLeft | WorkerReturned, now: float, effects: list[Effect]
    ) -> None:
        match event:
            case ManagerJoined():
                self._manager_joined(event, now, effects)
            case ManagerLeft():
                link = self._links.get(event.manager)
                if link is not None and link.connection == event.connection:
                    del self._links[event.manager]
            case WorkerReturned():
                self._returned(event, now, effects)
            case _:
                assert_never(event)

    def _notice_stall(self, now: float) -> None:
        """A process that was stopped must not bury the region when it goes on: its own ticks were missing too."""
        gap_s = now - self._heard_at if self._heard_at is not None else 0.0
        self._heard_at = now
        if gap_s > self._config.stall_s:
            self.nodes.forgive(gap_s)

    def _change_role(self, now: float) -> Effect:
        self._led_since = now
        self.version = 0
        if self.leadership.leads:
            self.nodes.listen(now)
        else:
            self.holds.clear()
            self.active, self.owners = frozenset(), ()
            self._greet.clear()
        self.owners_version = self.leadership.term * _OWNERS_VERSIONS_PER_TERM
        return RoleChanged(active=self.leadership.leads, term=self.leadership.term, cause="leadership")

    # ------------------------------------------------------------ workers and managers

    def _worker_seen(self, event: Registered, now: float, effects: list[Effect]) -> None:
        worker, incarnation = event.facts.node, str(event.facts.nonce)
        hold = self.holds.get(worker)
        if hold is None:
            self.holds[worker] = Hold(worker, incarnation)
            return
        leased_to = hold.record.incarnation if hold.record else ""
        hold.incarnation = incarnation
        if hold.state is HoldState.LEASED and leased_to != incarnation:
            self._take_over(hold, "the worker was started anew", now, effects)

    def _manager_joined(self, event: ManagerJoined, now: float, effects: list[Effect]) -> None:
        self._links[event.manager] = event
        if not self.leadership.knows_leases:
            return  # what it holds is looked at when the records are read
        held = dict(event.held)
        for hold in self.holds.values():
            mine = hold.state is HoldState.LEASED and hold.manager == event.manager and hold.record is not None
            if not mine:
                continue
            number = hold.record.number if hold.record else 0
            if held.get(hold.worker) == number:
                held.pop(hold.worker)
                hold.manager_nonce = event.nonce
            elif hold.manager_nonce == event.nonce:
                held.pop(hold.worker, None)
                self._grant(hold, now, effects)       # the order was lost with the stream before
            else:
                self._take_over(hold, "", now, effects)  # another process: it starts from the workers' inventories
        self._greet.add(event.manager)
        for worker, number in sorted(held.items()):
            effects.append(TakeAway(
                manager=event.manager, worker=worker, lease=number, reason="the lease is another one now",
                cause="hello",
            ))

    def _returned(self, event: WorkerReturned, now: float, effects: list[Effect]) -> None:
        hold, link = self.holds.get(event.worker), self._links.get(event.manager)
        if not self.leadership.knows_leases and link is not None:
            self._links[event.manager] = replace(link, held=link.held - {(event.worker, event.lease)})
            return
        if hold is None or hold.state is not HoldState.LEASED or hold.record is None:
            return
        if hold.manager != event.manager or hold.record.number != event.lease:
            return
        hold.move(WorkerReturned, now)
        hold.returned = event.lease
        old = hold.record
        hold.record = LeaseRecord(
            worker=old.worker, host=old.host, incarnation=old.incarnation, manager="", number=old.number,
            soft_end=old.soft_end, hard_end=old.hard_end, state="returned",
        )
        effects.append(WriteRecord(record=hold.record, expected=hold.revision, cause=event.cause))

    def _role_of(self, manager: str) -> Effect:
        return GiveRole(manager=manager, active=manager in self.active, term=self.leadership.term, cause="role")

    # ------------------------------------------------------------ leases

    def _age_leases(self, now: float, effects: list[Effect]) -> None:
        for hold in self.holds.values():
            if hold.state is HoldState.UNSURE and now - hold.read_at >= self._config.retry_s:
                hold.read_at = now
                effects.append(ReadRecord(worker=hold.worker, cause="retry"))
            if hold.state is not HoldState.LEASED:
                continue
            worker, manager = self.nodes.get(hold.worker), self.nodes.get(hold.manager)
            margin_s = (hold.hard_end - hold.soft_end) * self._config.clock_drift
            if now >= hold.hard_end + margin_s:
                self._take_over(hold, "the lease is over", now, effects)
            elif worker is not None and worker.health is Health.DEAD and hold.manager in self._links:
                self._take_over(hold, "the worker is dead", now, effects)
            elif self._is_gone(manager, now):
                self._take_over(hold, f"{hold.manager} fell silent", now, effects)

    def _leader_is_gone(self) -> bool:
        """Whether who leads by the record is dead by its silence, or back as another process that doesn't lead."""
        leader = self.nodes.get(self.leadership.holder)
        return leader is not None and (leader.health is Health.DEAD or leader.facts.role == "standby")

    def _is_gone(self, manager: Node | None, now: float) -> bool:
        """Whether a holder is dead: seen to be, or never seen for as long as that takes."""
        if manager is None:
            return self.is_active and now - self._led_since >= self._config.settle_s + self._config.takeover_s
        return manager.health is Health.DEAD

    def _take_over(self, hold: Hold, reason: str, now: float, effects: list[Effect]) -> None:
        """Ends a lease without a return: the next one has a higher number, which the worker tells apart."""
        if reason and hold.manager in self._links and hold.record is not None:
            effects.append(TakeAway(
                manager=hold.manager, worker=hold.worker, lease=hold.record.number, reason=reason, cause=reason,
            ))
        hold.free(TakenOver, now)

    def _drawn(self, event: LeaseDrawn, now: float, effects: list[Effect]) -> None:
        hold, node = self.holds.get(event.worker), self.nodes.get(event.worker)
        if hold is None or hold.state is not HoldState.DRAWING:
            return
        able = hold.manager in self.active and hold.manager in self._links and self.leadership.is_sure(now)
        if node is None or not node.usable or not able:
            hold.free(Dropped, now)
            return
        hold.move(LeaseDrawn, now)
        hold.manager_nonce = self._links[hold.manager].nonce
        record = hold.draw(event.fraction, node.facts.host, wall=event.wall, now=now, config=self._config)
        effects.append(WriteRecord(record=record, expected=hold.revision, cause=event.cause))

    def _grant(self, hold: Hold, now: float, effects: list[Effect]) -> None:
        node, link = self.nodes.get(hold.worker), self._links.get(hold.manager)
        if link is None or hold.record is None:
            return  # the manager's next Hello decides
        if node is None or link.nonce != hold.manager_nonce:
            self._take_over(hold, "", now, effects)  # who should have got it has gone, or the worker has
            return
        self._granted[hold.worker] = hold.record.number
        effects.append(Grant(
            manager=hold.manager, worker=hold.worker, address=node.facts.address, host=node.facts.host,
            az=node.facts.az, lease=hold.record.number, soft_end_s=hold.soft_end - now,
            hard_end_s=hold.hard_end - now, drain_s=self._config.drain_s,
            az_reserve=self._config.az_reserve, cause="lease",
        ))

    def _records(self, event: RecordsRead | RecordsFailed, now: float, effects: list[Effect]) -> None:
        if self.leadership.stage is not Stage.LOADING:
            return  # deposed meanwhile, or read twice
        self.leadership.move(type(event), now)
        if isinstance(event, RecordsFailed):
            return
        for stored in event.records:
            hold = Hold(stored.value.worker, "")
            hold.adopt(stored, stored.value.number, wall=event.wall, now=now)
            self.holds[hold.worker] = hold
        for node in self.nodes.of_service("worker"):
            seen = Registered(facts=node.facts, connection=node.connection, cause="loading")
            self._worker_seen(seen, now, effects)
        self.active = frozenset(hold.manager for hold in self.holds.values() if hold.manager)
        for link in list(self._links.values()):
            self._manager_joined(link, now, effects)

    def _apply_record(
        self, event: RecordWritten | RecordFailed | RecordRead | RecordUnread, now: float, effects: list[Effect]
    ) -> None:
        hold = self.holds.get(event.worker)
        if hold is None:
            return  # deposed meanwhile
        match event:
            case RecordWritten() if hold.state is HoldState.GRANTING:
                hold.move(RecordWritten, now)
                hold.revision = event.revision
                self._grant(hold, now, effects)
            case RecordWritten() if hold.state is HoldState.FREEING:
                hold.revision = event.revision
                hold.free(RecordWritten, now)
            case RecordFailed() if hold.state in (HoldState.GRANTING, HoldState.FREEING):
                hold.move(RecordFailed, now)
                hold.read_at = now
                effects.append(ReadRecord(worker=hold.worker, cause=event.fault))
            case RecordRead() if hold.state is HoldState.UNSURE:
                if hold.adopt(event.stored, event.fence, wall=event.wall, now=now):
                    self._grant(hold, now, effects)
            case _:
                pass  # an answer of an earlier term; RecordUnread: looked at again after retry_s

    # ------------------------------------------------------------ rule

    def _rule(self, now: float, effects: list[Effect]) -> bool:
        """Roles, owners and free workers, after each event. Whether the owners changed."""
        before, self.active = self.active, self._choose_active()
        told, self._greet = (before ^ self.active) | self._greet, set()
        effects += [self._role_of(manager) for manager in sorted(told & self._links.keys())]
        held = [
            (hold.manager, node.facts.az)
            for hold in self.holds.values()
            if hold.manager and (node := self.nodes.get(hold.worker)) is not None
        ]
        connected = sorted(self.active & self._links.keys())
        for worker, hold in sorted(self.holds.items()):
            node = self.nodes.get(worker)
            if hold.state is not HoldState.FREE or node is None or not node.usable or not connected:
                continue
            hold.move(Chosen, now)
            hold.manager = roles.choose_manager(node.facts.az, connected, held)
            held.append((hold.manager, node.facts.az))
            effects.append(DrawLease(worker=worker, cause="lease"))
        self._balance(now, connected, effects)
        return self._update_owners()

    def _balance(self, now: float, connected: list[str], effects: list[Effect]) -> None:
        """A manager that became active gets its part of the workers, one after the other, with their sandboxes."""
        leased = [hold for hold in self.holds.values() if hold.state is HoldState.LEASED]
        moving = any(hold.state not in (HoldState.LEASED, HoldState.FREE) for hold in self.holds.values())
        if moving or now < self._balanced_at + self._config.retry_s:
            return
        gone = {hold.manager for hold in leased if hold.manager not in self._links or self._is_leaving(hold.manager)}
        located = {hold: (hold.manager, node.facts.az, node.sandboxes) for hold in leased if hold.manager not in gone
                   and (node := self.nodes.get(hold.worker)) is not None and node.usable}
        giver, az = roles.choose_handover(connected, [(manager, az) for manager, az, _ in located.values()])
        given = [(sandboxes, hold.worker, hold) for hold, (manager, place, sandboxes) in located.items()
                 if (manager, place) == (giver, az)]
        if given:
            hold = min(given)[2]
            self._balanced_at = now
            effects.append(HandOver(
                manager=giver, worker=hold.worker, lease=hold.record.number if hold.record else 0, cause="balance",
            ))

    def _is_leaving(self, manager: str) -> bool:
        node = self.nodes.get(manager)
        return node is not None and node.leaving

    def _choose_active(self) -> frozenset[str]:
        workers: dict[str, int] = {}
        for node in self.nodes.of_service("worker"):
            if node.usable:
                workers[node.facts.az] = workers.get(node.facts.az, 0) + 1
        managers = [node for node in self.nodes.of_service("worker_manager") if not node.leaving]
        able = [node.facts.node for node in managers if node.usable and node.facts.node in self._links]
        keep = [node.facts.node for node in managers if node.health is not Health.DEAD]
        limit = roles.active_limit(workers, self._config.managers_active_max)
        return roles.choose_active(self.active, able, keep, limit)

    def _update_owners(self) -> bool:
        """A manager owns functions from its first worker on; who has none yet would only refuse."""
        holding = {hold.manager for hold in self.holds.values() if hold.state is HoldState.LEASED}
        owners = tuple(sorted(self.active & holding or self.active))
        if owners == self.owners:
            return False
        self.owners = owners
        self.owners_version += 1
        return True
