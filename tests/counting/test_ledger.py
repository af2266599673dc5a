"""The ledger: totality, and random walks in which every frontend is honest and every rule is checked after each
command."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from counting import commands as c
from counting.ledger import STEP_CAP_S, Ledger
from counting.snapshot import dump, load
from counting.words import Incarnation, Session, provisioned, reserved, unreserved
from tests.walking import walk

A = "000000000000"
REST, F, VERSION = unreserved(A), reserved(A, "f"), provisioned(A, "f", "1")
W1 = Incarnation(host="h1", nonce=1)
S1 = Session(frontend="fe1", epoch=1)


def apply(ledger: Ledger, *commands: c.Command) -> list[Any]:
    results = ledger.apply(c.decode(c.encode(c.Batch(stamp=1.0, number=1, commands=commands))))
    ledger.check()
    assert dump(load(dump(ledger))) == dump(ledger)
    return results


def wish(session=S1, pool=REST, generation=0, waiting=1, spare=0) -> c.Acquire:
    return c.Acquire(wishes=(
        c.Wish(session=session, pool=pool, generation=generation, waiting=waiting, spare=spare),
    ))


@pytest.mark.parametrize("command", [
    c.CloseSession(session=S1, sequence=1),
    wish(),
    wish(pool=F),
    wish(pool=VERSION),
    c.GiveBack(session=S1, sequence=1, pool=REST, count=10**9),
    c.AckGeneration(session=S1, sequence=1, pool=REST, generation=99),
    c.SetReserved(account=A, function="f", value=None),
    c.SetReserved(account=A, function="f", value=10**9),
    c.SetProvisioned(account=A, function="f", qualifier="1", value=None),
    c.SetProvisioned(account=A, function="f", qualifier="1", value=10**9),
    c.SetAccountLimit(account=A, limit=0),
    c.LeaveWorker(incarnation=W1),
    c.EvictWorker(incarnation=W1),
    c.DeclareDead(incarnation=W1),
    c.MarkDraining(session=S1),
    c.CountBlocks(session=S1, runs=(c.Run(pool=REST, function="f", invocation="i", incarnation=W1),)),
    c.EndOfInvocation(session=S1, pool=REST, invocation="i", incarnation=W1),
], ids=lambda command: type(command).__name__)
def test_no_command_raises_on_an_empty_ledger(command):
    ledger = Ledger()
    assert len(apply(ledger, command, command)) == 2


def test_ledger_time_never_goes_back_and_moves_by_capped_steps():
    ledger = Ledger()
    for stamp, expected in [(1000.0, 1000.0), (990.0, 1000.0), (1005.0, 1005.0), (9e9, 1005.0 + STEP_CAP_S)]:
        ledger.apply(c.Batch(stamp=stamp, number=1, commands=()))
        assert ledger.time == expected


def test_a_later_command_language_is_not_guessed_at():
    now, later = b"[%d," % c.VERSION, b"[%d," % (c.VERSION + 1)
    data = c.encode(c.Batch(stamp=1.0, number=1, commands=())).replace(now, later, 1)
    with pytest.raises(c.UnknownVersionError, match="upgrade"):
        c.decode(data)


def test_a_carved_permit_moves_and_is_not_made():
    ledger = Ledger()
    apply(ledger, c.SetAccountLimit(account=A, limit=200), c.OpenSession(frontend="fe1", nonce=1))
    apply(ledger, wish(generation=1, waiting=200))
    apply(ledger, c.SetReserved(account=A, function="f", value=50))
    assert ledger.free(F) == 0
    assert ledger.precautionary(F)
    apply(ledger, c.AckGeneration(session=S1, sequence=1, pool=REST, generation=2, moved=(("f", 30),)))
    assert (ledger.charge(F), ledger.free(F)) == (30, 0)
    apply(ledger, c.GiveBack(session=S1, sequence=2, pool=REST, count=60))
    assert ledger.free(F) == 20
    assert ledger.free(REST) == 10
    apply(ledger, c.GiveBack(session=S1, sequence=3, pool=REST, count=30, function="f"))
    assert ledger.charge(F) == 0


def test_a_run_of_a_reservation_that_went_and_came_back_frees_only_its_own_permit():
    """Found by a simulated region (limits under load, seed 2): its give-back took the charge of another run off."""
    ledger = Ledger()
    apply(
        ledger, c.OpenSession(frontend="fe1", nonce=1), c.SetReserved(account=A, function="f", value=1),
        wish(pool=F, generation=1), c.SetReserved(account=A, function="f", value=None),
        c.AckGeneration(session=S1, sequence=1, pool=F, generation=2, moved=(("f", 1),)),
        wish(generation=2, waiting=3), c.SetReserved(account=A, function="f", value=6),
        c.AckGeneration(session=S1, sequence=2, pool=REST, generation=3, moved=(("f", 3),)),
        c.AckGeneration(session=S1, sequence=3, pool=F, generation=3, moved=(("f", 1),)),
    )
    assert (ledger.charge(F), ledger.free(F)) == (4, 2)
    apply(ledger, c.GiveBack(session=S1, sequence=4, pool=F, count=1, function="f"))
    assert (ledger.charge(F), ledger.free(F)) == (3, 3), "three of the rest still run"
    apply(ledger, c.GiveBack(session=S1, sequence=5, pool=REST, count=1, function="f"))
    assert (ledger.charge(F), ledger.free(F)) == (2, 4)


def test_what_is_provisioned_is_carved_from_the_reservation_or_else_from_the_rest():
    ledger = Ledger()
    apply(ledger, c.SetAccountLimit(account=A, limit=120), provide(8))
    assert [ledger.limit(pool) for pool in (REST, F, VERSION)] == [112, 0, 8]
    [refused] = apply(ledger, provide(21))
    assert refused == c.BelowFloor(account_limit=120, reserved_elsewhere=0, floor=100)
    [refused] = apply(ledger, c.SetReserved(account=A, function="f", value=7))
    assert refused == c.AboveReservation(reserved=7, provisioned=8)
    apply(ledger, c.SetReserved(account=A, function="f", value=10))
    assert [ledger.limit(pool) for pool in (REST, F, VERSION)] == [110, 2, 8]
    [refused] = apply(ledger, provide(3, qualifier="2"))
    assert refused == c.AboveReservation(reserved=10, provisioned=11)
    apply(ledger, c.SetReserved(account=A, function="f", value=None))
    assert [ledger.limit(pool) for pool in (REST, F, VERSION)] == [112, 0, 8]
    [refused] = apply(ledger, c.SetAccountLimit(account=A, limit=7))
    assert refused == c.BelowFloor(account_limit=7, reserved_elsewhere=8, floor=0)
    [gone] = apply(ledger, provide(None))
    assert (gone.changed, ledger.limit(REST), ledger.exists(VERSION)) == (True, 120, False)


def test_what_was_provisioned_is_charged_to_where_it_came_from_until_its_runs_end():
    ledger = Ledger()
    apply(
        ledger, c.SetAccountLimit(account=A, limit=120), provide(8), c.OpenSession(frontend="fe1", nonce=1),
        wish(pool=VERSION, generation=2, waiting=8), provide(None),
    )
    assert (ledger.charge(REST), ledger.free(REST), ledger.outstanding(VERSION)) == (8, 112, [S1])
    assert ledger.precautionary(REST), "who holds them hasn't said what runs"
    apply(ledger, c.SetReserved(account=A, function="f", value=8))
    assert (ledger.charge(REST), ledger.charge(F), ledger.free(F)) == (0, 8, 0)
    apply(
        ledger, c.AckGeneration(session=S1, sequence=1, pool=VERSION, generation=3),
        c.GiveBack(session=S1, sequence=2, pool=VERSION, count=5),
    )
    assert (ledger.charge(F), ledger.free(F), ledger.outstanding(VERSION)) == (3, 5, [])
    apply(ledger, c.GiveBack(session=S1, sequence=3, pool=VERSION, count=3))
    assert VERSION not in set(ledger.pools())


def provide(value, qualifier="1"):
    return c.SetProvisioned(account=A, function="f", qualifier=qualifier, value=value)


POOLS = st.sampled_from([REST, F, VERSION])


class Walk(RuleBasedStateMachine):
    """Honest frontends over a small account. ``running`` is the truth that limits are about."""

    LIMIT = 120

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        apply(self.ledger, c.SetAccountLimit(account=A, limit=self.LIMIT))
        apply(self.ledger, c.JoinWorker(incarnation=W1, timeout_cap_s=1))
        self.sessions: dict[Session, Any] = {}
        self.nonce = 0
        self.ids = 0

    def live(self):
        return sorted(s for s in self.sessions if self.ledger.is_live(s))

    def say(self, session, make):
        state = self.sessions[session]
        state["sequence"] += 1
        return apply(self.ledger, make(state["sequence"]))[0]

    def block(self, session, pool):
        return self.ledger._size(session, pool)

    @rule(frontend=st.sampled_from(["fe1", "fe2"]))
    def open(self, frontend):
        self.nonce += 1
        [opened] = apply(self.ledger, c.OpenSession(frontend=frontend, nonce=self.nonce))
        self.sessions[opened.session] = {"sequence": 0, "runs": {}}

    @precondition(lambda self: self.live())
    @rule(data=st.data(), waiting=st.integers(0, 90), spare=st.integers(0, 20), pool=POOLS)
    def acquire(self, data, waiting, spare, pool):
        session = data.draw(st.sampled_from(self.live()))
        generation = self.ledger.generation(pool)
        before = self.ledger.free(pool)
        acquire = wish(session=session, pool=pool, generation=generation, waiting=waiting, spare=spare)
        [done] = apply(self.ledger, acquire)
        got = sum(grant.waiting + grant.spare for grant in done.grants)
        assert got <= before
        if got:
            assert self.ledger.charge(pool) <= self.ledger.limit(pool)
            assert self.ledger.account(A).total() <= self.ledger.account(A).limit
            self.check_reservation(pool)
        runs = self.sessions[session]["runs"]
        apart = "f" in self.ledger.account(A).reserved  # who knows the generation doesn't start f from the rest
        for _ in range(got // 2):
            self.ids += 1
            runs[f"i{self.ids}"] = (pool, "f" if pool != REST or (self.ids % 2 and not apart) else "g")

    def check_reservation(self, pool):
        """What the function runs by the rest, and what may run by its own pools, stays within its reservation."""
        reservation = self.ledger.account(A).reserved.get("f")
        if pool == REST or reservation is None:
            return
        runs = [run for state in self.sessions.values() for run in state["runs"].values()]
        may_run = runs.count((REST, "f")) + self.ledger.granted(F) + self.ledger.granted(VERSION)
        assert may_run <= reservation, (may_run, reservation)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), pool=POOLS)
    def give_back_idle(self, data, pool):
        session = data.draw(st.sampled_from(self.live()))
        running = sum(p == pool for p, _ in self.sessions[session]["runs"].values())
        idle = self.block(session, pool) - running
        assert idle >= 0, "the ledger took a permit away that runs"
        self.say(session, lambda n: c.GiveBack(session=session, sequence=n, pool=pool, count=idle))

    @precondition(lambda self: any(state["runs"] for state in self.sessions.values()))
    @rule(data=st.data())
    def end(self, data):
        session = data.draw(st.sampled_from(sorted(s for s, state in self.sessions.items() if state["runs"])))
        state = self.sessions[session]
        invocation = data.draw(st.sampled_from(sorted(state["runs"])))
        pool, function = state["runs"].pop(invocation)
        if self.ledger.is_live(session):
            self.say(session, lambda n: c.GiveBack(session=session, sequence=n, pool=pool, count=1, function=function))
        else:
            apply(self.ledger, c.EndOfInvocation(session=session, pool=pool, invocation=invocation, incarnation=W1))

    @precondition(lambda self: self.live())
    @rule(data=st.data(), pool=POOLS)
    def acknowledge(self, data, pool):
        session = data.draw(st.sampled_from(self.live()))
        mine = [f for p, f in self.sessions[session]["runs"].values() if p == pool]
        idle = self.block(session, pool) - len(mine)
        self.say(session, lambda n: c.GiveBack(session=session, sequence=n, pool=pool, count=idle))
        generation = self.ledger.generation(pool)
        self.say(session, lambda n: c.AckGeneration(
            session=session, sequence=n, pool=pool, generation=generation, moved=(("f", mine.count("f")),)
        ))

    @rule(value=st.sampled_from([None, 0, 3, 15]))
    def set_reserved(self, value):
        apply(self.ledger, c.SetReserved(account=A, function="f", value=value))

    @rule(value=st.sampled_from([None, 1, 3, 8]))
    def set_provisioned(self, value):
        apply(self.ledger, provide(value))

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def fall_silent(self, data):
        apply(self.ledger, c.MarkDraining(session=data.draw(st.sampled_from(self.live()))))

    @rule()
    def count(self):
        for session in sorted(s for s in self.sessions if self.ledger.is_draining(s)):
            runs = tuple(
                c.Run(pool=pool, function=function, invocation=i, incarnation=W1)
                for i, (pool, function) in self.sessions[session]["runs"].items()
            )
            apply(self.ledger, c.CountBlocks(session=session, runs=runs))

    @invariant()
    def what_runs_is_covered(self):
        """Conservation: every run has its permit in the ledger, in the pool that it was taken from (invariant 1)."""
        for session, state in self.sessions.items():
            for pool in (REST, F, VERSION):
                running = sum(p == pool for p, _ in state["runs"].values())
                assert running <= self.block(session, pool), (session, pool, running)
        total = sum(len(state["runs"]) for state in self.sessions.values())
        assert total <= self.ledger.account(A).total() <= self.LIMIT

    @invariant()
    def runs_of_a_moved_function_are_charged_to_its_pool(self):
        """Rule 9: a function with a reservation never runs more than the pool is charged for, wherever it was
        admitted."""
        if "f" in self.ledger.account(A).reserved:
            running = sum(
                function == "f" and not (pool == VERSION and self.ledger.exists(VERSION))
                for state in self.sessions.values() for pool, function in state["runs"].values()
            )
            assert running <= self.ledger.charge(F), (running, self.ledger.charge(F))

    def teardown(self):
        """Invariant 2: when everything has ended, everything is free."""
        for session, state in self.sessions.items():
            if self.ledger.is_live(session):
                apply(self.ledger, c.MarkDraining(session=session))
            state["runs"].clear()
        self.count()
        for session in list(self.ledger.sessions):
            for run in list(self.ledger.sessions[session].runs):
                apply(self.ledger, c.EndOfInvocation(
                    session=session, pool=run.pool, invocation=run.invocation, incarnation=run.incarnation
                ))
        assert self.ledger.account(A).total() == 0
        assert not self.ledger.sessions


TestWalk = Walk.TestCase
TestWalk.settings = walk(examples=60, steps=40)
