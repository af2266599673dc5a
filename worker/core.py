"""The host's slots: who may create, start and destroy on this worker. Pure: events and the time in, effects out.

Owns the arbitration (architecture: "The worker arbitrates"): lease numbers, sequences, memory, fences, authority.
Refuses to know how a sandbox is built, what an invocation's payload is, and the other workers.
"""

from typing import assert_never

from worker import messages as m
from worker.admission import Authority, Barred, Fences
from worker.slots import RUNNING, TRANSITIONS, Slot, SlotState

Reason = m.Refusal


class WorkerCore:
    """State of one worker incarnation. ``lease_margin_s``: how long an Adopt may have been on its way."""

    def __init__(
        self, *, incarnation: m.Incarnation, memory_mb: int, sandboxes_max: int, runtimes: tuple[str, ...],
        timeout_cap_s: int = 900, lease_margin_s: float = 2.0, bar_s: float = 60.0, bars_max: int = 200_000,
    ) -> None:
        self.incarnation = incarnation
        self.memory_mb = memory_mb
        self.runtimes = runtimes
        self.slots: dict[str, Slot] = {}
        self.runs: dict[str, Slot] = {}           # by invocation id
        self.lease = 0                            # the highest number seen
        self.manager = ""
        self.lease_deadline = float("-inf")       # own view of the lease's hard end, never later than the real one
        self.run_cap_s = float("inf")             # of what starts under this lease, whatever the function's timeout
        self.fences = Fences()
        self.authority = Authority()
        self.barred = Barred(keep_s=bar_s, limit=bars_max)
        self.draining = False                     # the process ends
        self._sandboxes_max = sandboxes_max
        self._timeout_cap_s = timeout_cap_s
        self._lease_margin_s = lease_margin_s
        self._link = 0                            # the manager's stream; 0: none
        self._lease_draining = False
        self._returning = False
        self._left = False
        self._used_mb = 0
        self._unapplied_ends: dict[str, m.Block] = {}
        self._last_start: tuple[float, float, int, int] | None = None
        self._effects: list[m.Effect] = []

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:  # noqa: C901  # one case per event
        match event:
            case m.StartAsked():
                self._start(event, now)
            case m.ResultOut():
                self._slot_of(event.sandbox, event.invocation).step(event, now)
            case m.InvocationEnded():
                self._ended(event, now)
            case m.StartWithdrawn():
                self._refuse(event.stream, event.invocation, event.reason, event.detail, now)
            case m.Adopt():
                self._adopt(event, now)
            case m.Create() | m.Destroy() | m.Raise() | m.Drain() | m.Return():
                self._order(event, now)
            case m.ManagerGone():
                self._link = 0 if event.link == self._link else self._link
            case m.SandboxBuilt() | m.InitDone() | m.ResetBegun() | m.BuildFailed():
                self._progress(event, now)
            case m.SandboxBroken():
                self._retire(self.slots[event.sandbox], event, event.reason, now, asked=False)
            case m.SandboxGone():
                self._gone(event, now)
            case m.Joined() | m.Fenced() | m.AuthorityRenewed() | m.EndApplied() | m.Evicted():
                self._counting(event)
            case m.DrainSelf():
                self._drain_self(event, now)
            case _:
                assert_never(event)
        effects, self._effects = self._effects, []
        return effects

    # ------------------------------------------------------------ starts

    def _start(self, event: m.StartAsked, now: float) -> None:
        refusal = self._refusal(event, now)
        if refusal is not None:
            self._refuse(event.stream, event.invocation, refusal[0], refusal[1], now)
            return
        slot = self.slots[event.sandbox]
        slot.step(event, now)
        slot.sequence = slot.started = event.sequence
        slot.invocation, slot.block, slot.stream = event.invocation, event.block, event.stream
        slot.served.add(event.function)
        self.runs[event.invocation] = slot
        self.barred.add(event.invocation, now)
        self._last_start = (now, self.lease_deadline, event.lease, self.lease)
        self._do(m.StartInvocation(
            stream=event.stream, sandbox=slot.sandbox, invocation=event.invocation, cause=event.invocation
        ))
        self._tell(
            m.Busy(sandbox=slot.sandbox, sequence=slot.sequence, invocation=event.invocation), event.invocation
        )

    def _refusal(self, event: m.StartAsked, now: float) -> tuple[Reason, str] | None:  # noqa: C901  # one rule per line
        """The first rule that forbids this start."""
        slot = self.slots.get(event.sandbox)
        if event.invocation in self.barred or event.invocation in self.runs:
            return Reason.BARRED, f"{event.invocation} was refused or started here before"
        if event.incarnation != self.incarnation:
            return Reason.WRONG_INCARNATION, f"this is incarnation {self.incarnation.nonce} of {self.incarnation.host}"
        if self.draining:
            return Reason.DRAINING, "this worker is ending"
        missing = self.authority.missing(now)
        if missing:
            return Reason.NO_AUTHORITY, missing
        if self.fences.cover(event.block.session):
            return Reason.FENCED, f"session {event.block.session.epoch} of {event.block.session.frontend} is fenced"
        if event.lease != self.lease:
            return Reason.STALE_LEASE, f"lease {event.lease}, this worker is held under {self.lease}"
        if now >= self.lease_deadline:
            return Reason.STALE_LEASE, f"lease {self.lease} has ended"
        if now >= event.deadline:
            return Reason.SHED, "its deadline had passed before it could begin"
        if slot is None:
            return Reason.UNKNOWN_SANDBOX, f"no sandbox {event.sandbox} here"
        if slot.function != event.function:
            return Reason.WRONG_FUNCTION, f"{slot.sandbox} serves {slot.function.function} at {slot.function.revision}"
        if event.sequence < slot.sequence:
            return Reason.STALE_SEQUENCE, f"sequence {event.sequence}, {slot.sandbox} is at {slot.sequence}"
        if slot.running:
            return Reason.BUSY, f"{slot.sandbox} runs {slot.invocation}"
        if not TRANSITIONS.allows(slot.state, m.StartAsked):
            reason = Reason.DRAINING if slot.state is SlotState.DRAINING else Reason.BUSY
            return reason, f"{slot.sandbox} is {slot.state.value}"
        return None

    def _refuse(self, stream: int, invocation: str, reason: Reason, detail: str, now: float) -> None:
        self.barred.add(invocation, now)
        self._do(m.RefuseStart(stream=stream, invocation=invocation, reason=reason, detail=detail, cause=invocation))

    def _ended(self, event: m.InvocationEnded, now: float) -> None:
        slot = self._slot_of(event.sandbox, event.invocation)
        slot.step(event, now)
        block, stream = slot.block, slot.stream
        slot.invocation, slot.block, slot.stream = "", None, 0
        del self.runs[event.invocation]
        self.barred.add(event.invocation, now)
        self._do(m.TellEnd(stream=stream, invocation=event.invocation, cause=event.invocation))
        if block is not None and self.fences.cover(block.session):
            self._unapplied_ends[event.invocation] = block
            self._do(m.ReportEnd(link=0, block=block, invocation=event.invocation, cause=event.invocation))
        if slot.state is SlotState.DRAINING:
            self._destroy(slot, event.cause)
        else:
            self._tell(m.Idle(sandbox=slot.sandbox, sequence=slot.sequence), event.invocation)
        self._leave_if_quiet(event.cause)

    # ------------------------------------------------------------ the manager

    def _adopt(self, event: m.Adopt, now: float) -> None:
        again = event.lease == self.lease and event.manager == self.manager and not self._returning
        if event.lease <= self.lease and not again:
            self._stale(event.link, event.lease, event.cause)
            return
        former = (self._link, self.lease) if self._link and not again else None
        if not again:
            self._lease_draining = self._returning = False
        self.lease, self.manager, self._link = event.lease, event.manager, event.link
        if former is not None and former[0] != event.link:
            self._stale(*former, event.cause)   # it may not know, and would lend what is refused here
        self.lease_deadline = now + event.lasts_s - min(self._lease_margin_s, event.lasts_s / 10)
        self.run_cap_s = event.timeout_cap_s
        inventory = m.Inventory(
            sandboxes=tuple(slot.status() for slot in self.slots.values()), memory_mb=self.memory_mb,
            memory_free_mb=self.memory_free_mb,
        )
        self._tell(inventory, event.cause)

    def _order(self, event: m.Create | m.Destroy | m.Raise | m.Drain | m.Return, now: float) -> None:
        if event.lease != self.lease or event.link != self._link:
            self._stale(event.link, event.lease, event.cause)
            return
        match event:
            case m.Create():
                self._create(event, now)
            case m.Destroy():
                slot = self.slots.get(event.sandbox)
                if slot is None:
                    self._tell(m.Gone(sandbox=event.sandbox, reason="no such sandbox here"), event.cause)
                else:
                    self._retire(slot, event, event.reason, now)
            case m.Raise():
                self._raise(event)
            case m.Drain():
                self._lease_draining = True
            case m.Return():
                self._lease_draining = self._returning = True
                self._retire_all("the lease is over", event.cause, now, asked=True)
                self._returned_if_empty(event.cause)
            case _:
                assert_never(event)

    def _create(self, event: m.Create, now: float) -> None:
        reason = self._no_capacity(event, now)
        if reason:
            news = m.NoCapacity(sandbox=event.sandbox, reason=reason, memory_free_mb=self.memory_free_mb)
            self._tell(news, event.cause)
            return
        slot = Slot(
            sandbox=event.sandbox, function=event.function, memory_mb=event.settings.memory_mb, sequence=event.sequence
        )
        slot.story.tell(now, event)
        self.slots[event.sandbox] = slot
        self._used_mb += slot.memory_mb
        self._do(m.BuildSandbox(
            sandbox=event.sandbox, function=event.function, settings=event.settings, ticket=event.ticket,
            on_demand=event.on_demand, cause=event.cause,
        ))
        self._load_changed(event.cause)

    def _no_capacity(self, event: m.Create, now: float) -> str:
        settings, missing = event.settings, self.authority.missing(now)
        if self.draining or self._lease_draining:
            return "the worker drains"
        if missing:
            return missing
        if now >= self.lease_deadline:
            return f"lease {self.lease} has ended"
        if event.sandbox in self.slots:
            return f"there is a sandbox {event.sandbox} already"
        if settings.runtime not in self.runtimes:
            return f"runtime {settings.runtime} is not on this worker, which has {', '.join(self.runtimes)}"
        if settings.timeout_s > self._timeout_cap_s:
            return f"a timeout of {settings.timeout_s} s is over this worker's cap of {self._timeout_cap_s} s"
        if settings.memory_mb > self.memory_free_mb:
            return f"{settings.memory_mb} MB wanted, {self.memory_free_mb} of {self.memory_mb} MB free"
        if len(self.slots) >= self._sandboxes_max:
            return f"{len(self.slots)} sandboxes are the most that this worker holds"
        return ""

    def _raise(self, event: m.Raise) -> None:
        slot = self.slots.get(event.sandbox)
        if slot is None:
            self._tell(m.Gone(sandbox=event.sandbox, reason="no such sandbox here"), event.cause)
            return
        if event.used and (slot.running or slot.started < event.used):
            kept = m.Raised(sandbox=slot.sandbox, sequence=event.sequence, busy=slot.running, kept=True)
            self._tell(kept, event.cause)
            return
        slot.sequence = max(slot.sequence, event.sequence)
        self._tell(m.Raised(sandbox=slot.sandbox, sequence=slot.sequence, busy=slot.running), event.cause)

    # ------------------------------------------------------------ sandboxes

    def _progress(self, event: m.SandboxBuilt | m.InitDone | m.ResetBegun | m.BuildFailed, now: float) -> None:
        slot = self.slots[event.sandbox]
        slot.step(event, now)
        if isinstance(event, m.InitDone) and slot.state is SlotState.IDLE:
            self._tell(m.Ready(sandbox=slot.sandbox, sequence=slot.sequence, phases=event.phases), event.cause)
        elif isinstance(event, m.BuildFailed):
            news: m.ManagerNews = m.CreateFailed(
                sandbox=slot.sandbox, error_type=event.error_type, message=event.message
            )
            self._remove(slot, news, event.cause)

    def _retire(
        self, slot: Slot, event: m.Destroy | m.SandboxBroken, reason: str, now: float, *, asked: bool = True
    ) -> None:
        """No more starts; what runs finishes (invariant 12), then the sandbox goes. ``asked``: the manager knows."""
        slot.step(event, now)
        slot.reason = slot.reason or reason
        if not slot.running:
            if not asked and not slot.destroying:
                # Now, not only when it has gone: the manager would offer it until then, and starts be refused.
                self._tell(m.Going(sandbox=slot.sandbox, reason=slot.reason), event.cause)
            self._destroy(slot, event.cause)

    def _retire_all(self, reason: str, cause: str, now: float, *, asked: bool) -> None:
        for slot in self.slots.values():
            order = m.Destroy(link=self._link, lease=self.lease, sandbox=slot.sandbox, reason=reason, cause=cause)
            self._retire(slot, order, reason, now, asked=asked)

    def _destroy(self, slot: Slot, cause: str) -> None:
        if not slot.destroying:
            slot.destroying = True
            self._do(m.DestroySandbox(sandbox=slot.sandbox, reason=slot.reason, cause=cause))

    def _gone(self, event: m.SandboxGone, now: float) -> None:
        slot = self.slots[event.sandbox]
        slot.step(event, now)
        assert not slot.running, f"{slot.sandbox} is gone while {slot.invocation} runs on it"
        self._remove(slot, m.Gone(sandbox=slot.sandbox, reason=slot.reason), event.cause)

    def _remove(self, slot: Slot, news: m.ManagerNews, cause: str) -> None:
        del self.slots[slot.sandbox]
        self._used_mb -= slot.memory_mb
        self._tell(news, cause)
        self._load_changed(cause)
        self._returned_if_empty(cause)
        if self.draining and not self.slots:
            self._do(m.Drained(cause=cause))

    def _returned_if_empty(self, cause: str) -> None:
        if self._returning and not self.slots:
            self._tell(m.Returned(), cause)

    # ------------------------------------------------------------ counting

    def _counting(self, event: m.Joined | m.Fenced | m.AuthorityRenewed | m.EndApplied | m.Evicted) -> None:
        match event:
            case m.Joined():
                for session in event.watermarks:
                    self.fences.raise_to(session)
                self.authority.joined = True
                for invocation, block in self._unapplied_ends.items():
                    self._do(m.ReportEnd(link=event.link, block=block, invocation=invocation, cause=event.cause))
            case m.Fenced():
                self.fences.raise_to(event.session)
                self._do(m.AcknowledgeFence(
                    link=event.link, session=event.session, running=self.running(event.session), cause=event.cause
                ))
            case m.AuthorityRenewed():
                self.authority.renew(event.until)
                self._do(m.Authorise(until=event.until, grace_s=event.grace_s, cause=event.cause))
            case m.EndApplied():
                self._unapplied_ends.pop(event.invocation, None)
            case m.Evicted():
                self.authority.evicted = True
                self._do(m.EndProcess(reason="counting evicted this incarnation", cause=event.cause))
            case _:
                assert_never(event)

    def running(self, session: m.Session | None = None) -> tuple[m.Running, ...]:
        """What runs; of one session, or of all."""
        found: dict[tuple[m.Block, str], list[str]] = {}
        for invocation, slot in self.runs.items():
            if slot.block is not None and session in (None, slot.block.session):
                found.setdefault((slot.block, slot.function.function), []).append(invocation)
        return tuple(
            m.Running(block=block, function=function, invocations=tuple(sorted(ids)))
            for (block, function), ids in sorted(found.items())
        )

    def _drain_self(self, event: m.DrainSelf, now: float) -> None:
        if self.draining:
            return
        self.draining = True
        self._retire_all("the worker ends", event.cause, now, asked=False)
        self._leave_if_quiet(event.cause)
        if not self.slots:
            self._do(m.Drained(cause=event.cause))

    def _leave_if_quiet(self, cause: str) -> None:
        if self.draining and not self.runs and not self._left:
            self._left = True
            self._do(m.LeaveCounting(cause=cause))

    # ------------------------------------------------------------ small

    @property
    def memory_idle_mb(self) -> int:
        """Of sandboxes that nothing runs on."""
        return sum(slot.memory_mb for slot in self.slots.values() if slot.state is SlotState.IDLE)

    @property
    def memory_free_mb(self) -> int:
        return self.memory_mb - self._used_mb

    def _slot_of(self, sandbox: str, invocation: str) -> Slot:
        slot = self.slots[sandbox]
        assert slot.invocation == invocation, f"{sandbox} runs {slot.invocation or 'nothing'}, not {invocation}"
        return slot

    def _do(self, effect: m.Effect) -> None:
        self._effects.append(effect)

    def _tell(self, news: m.ManagerNews, cause: str) -> None:
        """News for a manager that is away are dropped: it adopts again and gets the inventory."""
        if self._link:
            self._do(m.TellManager(link=self._link, lease=self.lease, news=news, cause=cause))

    def _stale(self, link: int, lease: int, cause: str) -> None:
        self._do(m.TellManager(link=link, lease=lease, news=m.StaleLease(highest=self.lease), cause=cause))

    def _load_changed(self, cause: str) -> None:
        self._do(m.LoadChanged(memory_free_mb=self.memory_free_mb, sandboxes=len(self.slots), cause=cause))

    def check(self) -> None:
        """Invariants 7, 8, 10, 11, 12 (docs/invariants.md), and the accounts of memory."""
        running = [slot for slot in self.slots.values() if slot.running]
        # 7: one invocation per slot and one slot per invocation.
        assert {slot.invocation: slot for slot in running} == self.runs, "7: runs and slots differ"
        assert len(running) == len(self.runs), "7: two slots run one invocation"
        for slot in self.slots.values():
            assert slot.state is not SlotState.GONE, f"{slot.sandbox} is gone and kept"
            assert slot.running or slot.state not in RUNNING, f"7: {slot.sandbox} is {slot.state.name} of nothing"
            assert not (slot.running and slot.state in {SlotState.STARTING, SlotState.INIT, SlotState.IDLE})
            assert slot.served <= {slot.function}, f"8: {slot.sandbox} served {slot.served}"
            assert not (slot.running and slot.destroying), f"12: {slot.sandbox} is destroyed while it runs"
        if self._last_start is not None:
            at, deadline, lease, highest = self._last_start
            assert lease == highest, f"10: started under lease {lease} at {highest}"
            assert at < deadline, f"11: started at {at}, the lease ended at {deadline}"
        # 5 is the first line of `_refusal`: an id that runs, ran or was refused never starts again.
        assert self._used_mb == sum(slot.memory_mb for slot in self.slots.values()), "memory"
        assert 0 <= self._used_mb <= self.memory_mb, "memory"
