"""The replicated ledger of permits: who holds how many of which pool, and who may be given more.

A pure, total state machine: the same batches in the same order give the same state on every member; a command is never
an exception, it is at most a refusal (a replicated method that raises would wedge the whole cluster). It has no
clock and no randomness: time comes in the batch, stamped by the leader. The rules cited are those of
architecture.md section 3. Refuses to know: streams, timers, recall rounds, who is leader (core.py); Raft (raft/);
the wire.
"""

from collections.abc import Iterator
from typing import assert_never

from counting import commands as c
from counting.accounts import ACCOUNT_LIMIT_DEFAULT, UNRESERVED_FLOOR, WHOLE, Account
from counting.sessions import Block, Death, Member, SessionRecord, SessionState
from counting.words import Incarnation, Pool, PoolKind, Session, provisioned, reserved, unreserved

STEP_CAP_S = 60.0
"""Most seconds by which one batch moves ledger time, so that a leader with a wild clock can't carry everybody along."""

__all__ = ["ACCOUNT_LIMIT_DEFAULT", "STEP_CAP_S", "UNRESERVED_FLOOR", "Ledger"]


class Ledger:
    """The state that Raft replicates. Only `apply` changes it; everything else reads."""

    def __init__(self) -> None:
        self.time = 0.0
        self.version = c.OLDEST     # the highest command language of an applied batch: every member knew it (rule 11)
        self.accounts: dict[str, Account] = {}
        self.sessions: dict[Session, SessionRecord] = {}
        self.epochs: dict[str, int] = {}
        self.fences: dict[str, int] = {}
        self.members: dict[str, Member] = {}
        self.gone: dict[str, set[int]] = {}
        self.declared: dict[str, Death] = {}    # the newest by host, for operators to see

    # ------------------------------------------------------------ the one way in

    def apply(self, batch: c.Batch) -> list[c.Result]:
        """Applies a batch; one result per command, in order. Ledger time never goes back and moves by capped steps."""
        step = batch.stamp - self.time
        self.time = batch.stamp if self.time == 0.0 else self.time + min(max(step, 0.0), STEP_CAP_S)
        self.version = max(self.version, batch.version)
        return [self._apply(command) for command in batch.commands]

    def _apply(self, command: c.Command) -> c.Result:
        match command:
            case c.Acquire():
                return self._acquire(command)
            case c.GiveBack() | c.AckGeneration() | c.CloseSession():
                return self._in_sequence(command)
            case c.OpenSession():
                return self._open(command)
            case c.MarkDraining(session=session):
                return c.Drained(session=session, changed=self._drain(session))
            case c.CountBlocks():
                return self._count(command)
            case c.EndOfInvocation():
                return self._end(command)
            case c.SetReserved() | c.SetProvisioned() | c.SetAccountLimit():
                return self._set_limit(command)
            case c.JoinWorker():
                return self._join(command)
            case c.LeaveWorker(incarnation=incarnation):
                self._remove_member(incarnation)
                return c.Done()
            case c.EvictWorker(incarnation=incarnation):
                return c.Evicted(incarnation=incarnation, changed=self._remove_member(incarnation))
            case c.DeclareDead(incarnation=incarnation):
                return self._declare_dead(incarnation)
            case _:
                assert_never(command)

    # ------------------------------------------------------------ reading

    def account(self, name: str) -> Account:
        """The account's limits; one that nothing was written about has the defaults (and is not stored by reading)."""
        return self.accounts.get(name) or Account(limit=ACCOUNT_LIMIT_DEFAULT)

    def limit(self, pool: Pool) -> int:
        """How many permits the pool may have out; 0 for one that is gone or never was."""
        account = self.account(pool.account)
        match pool.kind:
            case PoolKind.UNRESERVED:
                return account.unreserved()
            case PoolKind.RESERVED:
                return account.reserved[pool.function] - account.carved(pool.function) if self.exists(pool) else 0
            case PoolKind.PROVISIONED:
                return account.provisioned.get(pool, 0)
            case _:
                assert_never(pool.kind)

    def exists(self, pool: Pool) -> bool:
        """Whether permits of the pool can be asked for at all."""
        return self.account(pool.account).exists(pool)

    def generation(self, pool: Pool) -> int:
        """When the pool last changed. One that is gone and forgotten has the account's newest: never one below what
        a holder has seen, or the news that it is gone would look old."""
        account = self.account(pool.account)
        return account.generations.get(pool, 0 if self.exists(pool) else account.generation)

    def granted(self, pool: Pool) -> int:
        return self.account(pool.account).granted.get(pool, 0)

    def charge(self, pool: Pool) -> int:
        """What counts against the pool's limit: its own blocks, and what other pools' blocks may still run for it."""
        return self.granted(pool) + self.crossing(pool)

    def crossing(self, pool: Pool) -> int:
        """Permits of other pools that are charged to this one as well: of pools that are gone, and of the rest, because
        its function came from there (rule 9)."""
        account = self.account(pool.account)
        return sum(account.granted[ghost] for ghost in account.ghosts(pool)) + self._moved(pool)

    def _moved(self, pool: Pool) -> int:
        """Permits of the rest that may run a function which has a reservation now."""
        if pool.kind is not PoolKind.RESERVED:
            return 0
        rest = unreserved(pool.account)
        total = 0
        for session, count in self.account(pool.account).crossing.get(pool.function, {}).items():
            size = self._size(session, rest)
            total += size if count == WHOLE else min(count, size)
        return total

    def charged(self, pool: Pool) -> list[Session]:
        """Sessions whose permits count against the pool's limit, its own and those that cross over, in a fixed order:
        before a refusal every one of them is heard, or counted (rule 4)."""
        account, rest = self.account(pool.account), unreserved(pool.account)
        own = [pool, *account.ghosts(pool)]
        moved = account.crossing.get(pool.function, {}) if pool.kind is PoolKind.RESERVED else {}
        return [
            session for session in self.sessions
            if any(self._size(session, one) for one in own) or (moved.get(session) and self._size(session, rest))
        ]

    def precautionary(self, pool: Pool) -> bool:
        """Whether some of what takes the pool's room isn't known to run for it: then a refusal would prove nothing
        (rule 4)."""
        return bool(self.unsaid(pool)) or self.charge(pool) < self.limit(pool)

    def unsaid(self, pool: Pool) -> list[Session]:
        """Who has yet to say, or whose workers have, how much of what takes the pool's room runs. Where less is charged
        than its limit, that is what other pools of the account have out above theirs."""
        account, rest = self.account(pool.account), unreserved(pool.account)
        moved = account.crossing.get(pool.function, {}) if pool.kind is PoolKind.RESERVED else {}
        found = [s for s, count in moved.items() if count == WHOLE and self._size(s, rest)]
        others = account.ghosts(pool)
        if self.charge(pool) < self.limit(pool):
            others = [other for other, count in account.granted.items() if count > self.limit(other)]
        return list(dict.fromkeys(found + [session for other in others for session in self.outstanding(other)]))

    def free(self, pool: Pool) -> int:
        """How many permits may be granted now: within the pool's limit and within the account's (rule 1), and within
        the function's reservation."""
        account = self.account(pool.account)
        own, rest = self.limit(pool) - self.charge(pool), account.limit - account.total()
        room = self.room(pool)
        return max(0, min(own, rest) if room is None else min(own, rest, room))

    def room(self, pool: Pool) -> int | None:
        """What the pool's function has left of its reservation; None without one. What is provisioned out of it may
        still run by the reservation's own permits (docs/specs, `nogroup`)."""
        account = self.account(pool.account)
        if pool.function not in account.reserved:
            return None
        out = account.granted_of(pool.function) + self._moved(reserved(pool.account, pool.function))
        return account.reserved[pool.function] - out

    def holders(self, pool: Pool) -> list[Session]:
        """Live sessions that hold permits of the pool, in a fixed order."""
        return [
            session for session, record in self.sessions.items()
            if record.state is SessionState.LIVE and pool in record.blocks and record.blocks[pool].size > 0
        ]

    def draining(self, pool: Pool) -> list[Session]:
        """Sessions whose block of the pool is fenced and not yet counted."""
        return [
            session for session, record in self.sessions.items()
            if record.state is SessionState.DRAINING and pool in record.blocks and record.blocks[pool].size > 0
        ]

    def outstanding(self, pool: Pool) -> list[Session]:
        """Who has not yet acknowledged the pool's generation, or is fenced and not yet counted (rule 9)."""
        generation = self.generation(pool)
        late = [s for s in self.holders(pool) if self.sessions[s].blocks[pool].generation < generation]
        return late + self.draining(pool)

    def live(self, frontend: str, nonce: int) -> Session | None:
        """The live session of this frontend process, if it has one."""
        session = Session(frontend=frontend, epoch=self.epochs.get(frontend, 0))
        record = self.sessions.get(session)
        return session if record and record.state is SessionState.LIVE and record.nonce == nonce else None

    def is_live(self, session: Session) -> bool:
        record = self.sessions.get(session)
        return record is not None and record.state is SessionState.LIVE

    def is_draining(self, session: Session) -> bool:
        """Fenced, and not yet counted."""
        record = self.sessions.get(session)
        return record is not None and record.state is SessionState.DRAINING

    def become(self, other: "Ledger") -> None:
        """Takes over the state of a snapshot. Who refers to this ledger goes on reading the same object."""
        vars(self).update(vars(other))

    def is_member(self, incarnation: Incarnation) -> bool:
        member = self.members.get(incarnation.host)
        return member is not None and member.nonce == incarnation.nonce

    def is_gone(self, incarnation: Incarnation) -> bool:
        """Evicted, or it left: it runs nothing and never joins again."""
        return incarnation.nonce in self.gone.get(incarnation.host, ())

    def pools(self) -> Iterator[Pool]:
        """Every pool that has a limit or permits out."""
        for name, account in self.accounts.items():
            known = [unreserved(name), *(reserved(name, f) for f in account.reserved), *account.provisioned]
            yield from dict.fromkeys([*known, *account.generations, *account.granted])

    def _size(self, session: Session, pool: Pool) -> int:
        record = self.sessions.get(session)
        block = record.blocks.get(pool) if record else None
        return block.size if block else 0

    # ------------------------------------------------------------ sessions

    def _open(self, command: c.OpenSession) -> c.Result:
        same = self.live(command.frontend, command.nonce)
        if same is not None:
            return c.Opened(session=same, replaced=None)
        old = Session(frontend=command.frontend, epoch=self.epochs.get(command.frontend, 0))
        replaced = old if self._drain(old) else None
        session = Session(frontend=command.frontend, epoch=old.epoch + 1)
        self.epochs[command.frontend] = session.epoch
        self.sessions[session] = SessionRecord(nonce=command.nonce)
        return c.Opened(session=session, replaced=replaced)

    def _drain(self, session: Session) -> bool:
        record = self.sessions.get(session)
        if record is None or record.state is not SessionState.LIVE:
            return False
        record.state = SessionState.DRAINING
        record.need = {Incarnation(host=host, nonce=m.nonce) for host, m in self.members.items()}
        self._fence(session)
        return True

    def _fence(self, session: Session) -> None:
        """A fence is never forgotten, only compacted: every epoch up to the watermark is fenced."""
        self.fences[session.frontend] = max(self.fences.get(session.frontend, 0), session.epoch)

    def _in_sequence(self, command: c.GiveBack | c.AckGeneration | c.CloseSession) -> c.Result:
        """Commands of a frontend are applied once, in its own order; those of a fenced epoch are refused (rules 6,
        10)."""
        record = self.sessions.get(command.session)
        if record is None or record.state is not SessionState.LIVE:
            return c.Fenced(session=command.session)
        if command.sequence <= record.applied:
            return c.Done()
        if command.sequence > record.applied + 1:
            return c.SequenceGap(session=command.session, applied=record.applied)
        record.applied = command.sequence
        match command:
            case c.GiveBack():
                self._give_back(record, command)
            case c.AckGeneration():
                self._acknowledge(record, command)
            case c.CloseSession():
                self._close(command.session, record)
            case _:
                assert_never(command)
        return c.Done()

    def _close(self, session: Session, record: SessionRecord) -> None:
        """Only an empty session closes at once; one that still holds permits is drained like a silent one."""
        if any(block.size for block in record.blocks.values()):
            self._drain(session)
            return
        self._fence(session)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        for pool in list(self.sessions[session].blocks):
            self._resize(session, pool, 0)
        del self.sessions[session]

    # ------------------------------------------------------------ permits

    def _acquire(self, command: c.Acquire) -> c.Result:
        """Requests that wait first, in the order in which the leader listed them; top-ups from what is left then."""
        stale: list[c.Wish] = []
        fit: list[c.Wish] = []
        for wish in command.wishes:
            (fit if self.may_hold(wish) else stale).append(wish)
        waiting = [self._add(wish, wish.waiting) for wish in fit]
        short = {wish.pool for wish, n in zip(fit, waiting, strict=True) if n < wish.waiting}
        spare = [0 if wish.pool in short else self._add(wish, wish.spare) for wish in fit]
        grants = tuple(
            c.Granted(
                session=wish.session, pool=wish.pool, generation=wish.generation, waiting=w, spare=s,
                size=self._size(wish.session, wish.pool), applied=self.sessions[wish.session].applied,
            )
            for wish, w, s in zip(fit, waiting, spare, strict=True) if w + s > 0
        )
        return c.AcquireDone(grants=grants, stale=tuple(stale))

    def may_hold(self, wish: c.Wish) -> bool:
        """A grant goes only to a live session that has seen the pool's generation (rule 9)."""
        record = self.sessions.get(wish.session)
        generation = self.generation(wish.pool)
        if record is None or record.state is not SessionState.LIVE or wish.generation != generation:
            return False
        block = record.blocks.get(wish.pool)
        return self.exists(wish.pool) and (block is None or block.size == 0 or block.generation == generation)

    def _add(self, wish: c.Wish, wanted: int) -> int:
        count = min(wanted, self.free(wish.pool))
        if count <= 0:
            return 0
        self.accounts.setdefault(wish.pool.account, Account(limit=ACCOUNT_LIMIT_DEFAULT))
        block = self.sessions[wish.session].blocks.setdefault(wish.pool, Block())
        block.generation = wish.generation
        self._resize(wish.session, wish.pool, block.size + count)
        return count

    def _give_back(self, record: SessionRecord, command: c.GiveBack) -> None:
        block = record.blocks.get(command.pool)
        if block is None:
            return
        count = min(max(command.count, 0), block.size)
        # Only the block of the rest crosses over: a run of a reservation that went and came back is its own pool's.
        crossing = command.pool.kind is PoolKind.UNRESERVED
        moved = self.account(command.pool.account).crossing.get(command.function, {}) if crossing else {}
        if moved.get(command.session, WHOLE) != WHOLE:
            moved[command.session] = max(0, moved[command.session] - count)
        self._resize(command.session, command.pool, block.size - count)

    def _resize(self, session: Session, pool: Pool, size: int) -> None:
        """The one place where a block's size changes, with the sums that hang on it."""
        record = self.sessions[session]
        block = record.blocks[pool]
        account = self.accounts[pool.account]
        account.add(pool, size - block.size)
        block.size = size
        if size == 0:
            if record.state is not SessionState.LIVE or not self.exists(pool):
                del record.blocks[pool]
            if pool.kind is PoolKind.UNRESERVED:
                account.uncross(session)

    # ------------------------------------------------------------ limits (rule 9)

    def _set_limit(self, command: c.ChangeOfLimit) -> c.Result:
        account = self.account(command.account)
        rest = unreserved(command.account)
        pools: tuple[Pool, ...]
        match command:
            case c.SetReserved(function=function):
                pool = reserved(command.account, function)
                pools, old, new = (rest, pool), account.reserved.get(function), command.value
            case c.SetProvisioned(function=function, qualifier=qualifier):
                pool = provisioned(command.account, function, qualifier)
                pools, old, new = (account.home(pool), pool), account.provisioned.get(pool), command.value
            case c.SetAccountLimit():
                pools, old, new = (rest,), account.limit, command.limit
            case _:
                assert_never(command)
        applied = account.requests.get(command.request)
        if applied is not None:
            return self._limit_set(command, pools, *applied)
        if old == new:
            return self._limit_set(command, pools, self.generation(pools[-1 if old is not None else 0]), changed=False)
        refusal = self._refusal(account, command)
        if refusal is not None:
            return refusal
        self.accounts[command.account] = account
        self._write_limit(account, command)
        account.generation += 1
        for pool in pools:
            if account.exists(pool) or account.granted.get(pool, 0):
                account.generations[pool] = account.generation
            else:
                account.generations.pop(pool, None)     # nobody holds anything of it that could be told
            if not account.exists(pool):
                self._forget_empty(pool)
        return self._limit_set(command, pools, account.generation, changed=True)

    def _forget_empty(self, pool: Pool) -> None:
        """Functions come and go for as long as a frontend lives: nothing stays of those that it holds no permit of."""
        for record in self.sessions.values():
            block = record.blocks.get(pool)
            if block is not None and block.size == 0:
                del record.blocks[pool]

    @staticmethod
    def _refusal(account: Account, command: c.ChangeOfLimit) -> c.BelowFloor | c.AboveReservation | None:
        """The rest keeps its floor where functions take more of it, and what is provisioned fits in the reservation."""
        taken = account.taken()
        if isinstance(command, c.SetAccountLimit):
            below = command.limit < taken
            return c.BelowFloor(account_limit=command.limit, reserved_elsewhere=taken, floor=0) if below else None
        carved, reservation = account.carved(command.function), account.reserved.get(command.function)
        if isinstance(command, c.SetReserved):
            reservation = command.value
        else:
            pool = provisioned(command.account, command.function, command.qualifier)
            carved += (command.value or 0) - account.provisioned.get(pool, 0)
        if reservation is not None and carved > reservation:
            return c.AboveReservation(reserved=reservation, provisioned=carved)
        before, claim = account.claim(command.function), carved if reservation is None else reservation
        elsewhere = taken - before
        if claim > before and account.limit - elsewhere - claim < UNRESERVED_FLOOR:
            return c.BelowFloor(account_limit=account.limit, reserved_elsewhere=elsewhere, floor=UNRESERVED_FLOOR)
        return None

    def _write_limit(self, account: Account, command: c.ChangeOfLimit) -> None:
        match command:
            case c.SetReserved(function=function, value=None):
                del account.reserved[function]
                account.crossing.pop(function, None)
            case c.SetReserved(function=function, value=int(value)):
                if function not in account.reserved:
                    self._carve(account, command)
                account.reserved[function] = value
            case c.SetProvisioned(function=function, qualifier=qualifier, value=value):
                pool = provisioned(command.account, function, qualifier)
                if value is None:
                    del account.provisioned[pool]
                else:
                    account.provisioned[pool] = value
            case c.SetAccountLimit(limit=limit):
                account.limit = limit

    def _limit_set(
        self, command: c.ChangeOfLimit, pools: tuple[Pool, ...], generation: int, changed: bool
    ) -> c.LimitSet:
        """Applied, and remembered by the request's id (an account that nothing was written about has no memory)."""
        if command.account in self.accounts:
            self.accounts[command.account].remember(command.request, generation, changed)
        return c.LimitSet(pools=pools, generation=generation, changed=changed)

    def _carve(self, account: Account, command: c.SetReserved) -> None:
        """The function's runs may be in any block of the rest: each is charged whole until its holder says better."""
        rest = unreserved(command.account)
        moved: dict[Session, int] = {}
        for session, record in self.sessions.items():
            if not self._size(session, rest):
                continue
            if record.state is SessionState.COUNTED:
                moved[session] = sum(run.function == command.function for run in record.runs if run.pool == rest)
            else:
                moved[session] = WHOLE
        account.crossing[command.function] = moved

    def _acknowledge(self, record: SessionRecord, command: c.AckGeneration) -> None:
        block = record.blocks.get(command.pool)
        if block is None or command.generation != self.generation(command.pool):
            return
        block.generation = command.generation
        if command.pool.kind is not PoolKind.UNRESERVED:
            return
        said = dict(command.moved)
        for function, moved in self.account(command.pool.account).crossing.items():
            if command.session in moved:
                moved[command.session] = max(0, min(said.get(function, 0), block.size))

    # ------------------------------------------------------------ workers (rules 5 to 7)

    def _join(self, command: c.JoinWorker) -> c.Result:
        incarnation = command.incarnation
        if self.is_gone(incarnation):
            return c.MemberGone(incarnation=incarnation)
        old = self.members.get(incarnation.host)
        replaced = None
        if old is not None and old.nonce != incarnation.nonce:
            replaced = Incarnation(host=incarnation.host, nonce=old.nonce)
            self._remove_member(replaced)
        self.members[incarnation.host] = Member(nonce=incarnation.nonce, timeout_cap_s=command.timeout_cap_s)
        return c.Joined(replaced=replaced)

    def _remove_member(self, incarnation: Incarnation) -> bool:
        """It runs nothing any more: it isn't waited for, and what was counted on it is free. False: it was no
        member."""
        if not self.is_member(incarnation):
            return False
        del self.members[incarnation.host]
        self.gone.setdefault(incarnation.host, set()).add(incarnation.nonce)
        for session, record in list(self.sessions.items()):
            record.need.discard(incarnation)
            if record.state is SessionState.COUNTED:
                record.runs = {run for run in record.runs if run.incarnation != incarnation}
                self._shrink(session, record)
        return True

    def _declare_dead(self, incarnation: Incarnation) -> c.Result:
        if self.is_gone(incarnation):
            return c.Declared(incarnation=incarnation, changed=False)
        self._remove_member(incarnation)
        self.gone.setdefault(incarnation.host, set()).add(incarnation.nonce)
        self.declared[incarnation.host] = Death(nonce=incarnation.nonce, at=self.time)
        return c.Declared(incarnation=incarnation, changed=True)

    def _count(self, command: c.CountBlocks) -> c.Result:
        """The block keeps what runs of it: size = min(size, ids). One that nobody runs is free (rule 6)."""
        record = self.sessions.get(command.session)
        if record is None or record.state is not SessionState.DRAINING:
            return c.Fenced(session=command.session)
        runs = set(command.runs) if command.first else record.runs | set(command.runs)
        if not command.last:
            record.runs = runs
            return c.Done()
        record.state = SessionState.COUNTED
        record.need = set()
        record.runs = {run for run in runs if self.is_member(run.incarnation)}
        sizes = self._shrink(command.session, record)
        return c.Counted(session=command.session, sizes=sizes)

    def _end(self, command: c.EndOfInvocation) -> c.Result:
        record = self.sessions.get(command.session)
        if record is not None and record.state is SessionState.COUNTED:
            record.runs = {
                run for run in record.runs
                if (run.invocation, run.pool, run.incarnation)
                != (command.invocation, command.pool, command.incarnation)
            }
            self._shrink(command.session, record)
        return c.Done()

    def _shrink(self, session: Session, record: SessionRecord) -> tuple[tuple[Pool, int], ...]:
        sizes = []
        for pool in list(record.blocks):
            ids = [run for run in record.runs if run.pool == pool]
            size = min(record.blocks[pool].size, len(ids))
            if pool.kind is PoolKind.UNRESERVED:
                for function, moved in self.accounts[pool.account].crossing.items():
                    if session in moved:
                        moved[session] = sum(run.function == function for run in ids)
            self._resize(session, pool, size)
            sizes.append((pool, size))
        if not record.blocks:
            del self.sessions[session]
        return tuple(sizes)

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        """What must hold after every batch (invariant 1 rests on it: no permit exists twice)."""
        for host, death in self.declared.items():
            assert death.nonce in self.gone[host], (host, death)
        for host, member in self.members.items():
            assert member.nonce not in self.gone.get(host, ()), (host, member)
        sums: dict[Pool, int] = {}
        for session, record in self.sessions.items():
            assert session.epoch <= self.epochs[session.frontend], (session, self.epochs)
            fenced = session.epoch <= self.fences.get(session.frontend, 0)
            assert fenced == (record.state is not SessionState.LIVE), (session, record.state)
            for pool, block in record.blocks.items():
                assert block.size >= 0, (session, pool, block)
                sums[pool] = sums.get(pool, 0) + block.size
        for name, account in self.accounts.items():
            mine = {pool: total for pool, total in sums.items() if pool.account == name and total}
            assert mine == {pool: total for pool, total in account.granted.items() if total}, (mine, account.granted)
            assert account.unreserved() >= 0, (name, account.limit, account.reserved, account.provisioned)
            for function, value in account.reserved.items():
                assert account.carved(function) <= value, (function, value, account.provisioned)
            for function, moved in account.crossing.items():
                assert function in account.reserved, function
                assert all(session in self.sessions for session in moved), (function, moved)
