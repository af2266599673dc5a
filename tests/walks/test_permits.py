"""Random walks of the permit: frontends, the ledger's members and workers, in any order that streams and Raft allow.

What must hold after each step is World.check and what World asserts on the way; at the end all is healed, and nothing
may have leaked.
"""

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from counting import ledger
from counting import messages as cm
from counting.words import Session
from tests.walking import walk
from tests.walks.parts import frontend_name
from tests.walks.permits import World

TWO = st.integers(0, 1)
SEED = st.integers(0, 2**32 - 1)


class Permits(RuleBasedStateMachine):
    @initialize(room=st.integers(1, 3), reserved=st.sampled_from([None, 1, 2]))
    def begin(self, room, reserved):
        self.floor, ledger.UNRESERVED_FLOOR = ledger.UNRESERVED_FLOOR, 1    # so that small accounts can be carved
        self.world = World(limit=room + (reserved or 0))
        if reserved is not None:
            self.world.call(cm.SetReservedCall, function="f", value=reserved)
            self.world.calm()

    def moves(self, seed, most):
        """Requests come, messages move and invocations end, each on its own."""
        rng = random.Random(seed)
        for _ in range(rng.randint(0, most)):
            self.world.something_moves(rng)
            self.world.check()

    @rule(seed=SEED, steps=st.sampled_from([20, 60, 150]))
    def time_goes_on(self, seed, steps):
        self.moves(seed, steps)

    @rule()
    def everything_arrives(self):
        self.world.turn()
        while self.world.starts:
            self.world.start_arrives(0)

    @rule(end=st.booleans())
    def all_is_calm(self, end):
        if end:
            self.world.all_end()
        self.world.calm()

    # ------------------------------------------------------------ limits

    @rule(value=st.sampled_from([None, None, 0, 1, 2, 3]), seed=SEED)
    def reservation_changes(self, value, seed):
        self.world.call(cm.SetReservedCall, function="f", value=value)
        self.moves(seed, 40)

    @rule(limit=st.integers(1, 5), seed=SEED)
    def account_limit_changes(self, limit, seed):
        self.world.call(cm.SetAccountLimitCall, limit=limit)
        self.moves(seed, 40)

    @rule(number=TWO, value=st.sampled_from([None, 1, 2]), fenced=st.booleans(), seed=SEED)
    def what_ran_before_a_change_ends_out_of_sight(self, number, value, fenced, seed):
        """Its frontend said what runs of it, and can't say that it ended, nor can a worker once that frontend is
        fenced; the others' requests go on coming."""
        world = self.world
        world.request(number, "f", 0)
        world.calm()
        world.call(cm.SetReservedCall, function="f", value=value)
        world.calm()
        for member in range(2):
            world.cut_frontend(number, member)
        world.all_end()
        if fenced:
            for member in range(2):
                world.cut_worker(0, member)
            self.others_go_on(number, 3.5, beat=True)
        world.request(1 - number, "f", 1)
        self.moves(seed, 80)
        for member in range(2):
            world.link_frontend(number, member)
            world.link_worker(0, member)
        self.moves(seed + 1, 20)

    # ------------------------------------------------------------ faults

    @rule(number=TWO, member=TWO, frontend=st.booleans(), seed=SEED, back=st.booleans())
    def stream_breaks(self, number, member, frontend, seed, back):
        """And is opened again, at once or later."""
        world = self.world
        (world.cut_frontend if frontend else world.cut_worker)(number, member)
        if not back:
            self.moves(seed, 20)
        (world.link_frontend if frontend else world.link_worker)(number, member)
        self.moves(seed + 1, 20)

    @rule(number=TWO, frontend=st.booleans(), seed=SEED)
    def process_is_killed(self, number, frontend, seed):
        (self.world.kill_frontend if frontend else self.world.kill_worker)(number)
        self.moves(seed, 10)
        for member in range(2):
            (self.world.link_frontend if frontend else self.world.link_worker)(number, member)
        self.moves(seed + 1, 40)

    @rule(number=TWO, waits=st.booleans(), seed=SEED)
    def frontend_leaves(self, number, waits, seed):
        """It says goodbye, perhaps while a grant is on its way to it, and its process ends: another takes its place."""
        world = self.world
        if waits:
            world.request(number, "g", 0)
            world.flush_frontend(number)
            world.member_hears(number, world.leader, 100)
            world.flush_member(world.leader)
            self.moves(seed, 3)
        session = Session(frontend=frontend_name(number), epoch=world.homes[number].core.epoch)
        world.leave_frontend(number)
        if waits:
            world.member_hears(number, world.leader, 100)
        self.moves(seed + 1, 4)
        world.kill_frontend(number)
        self.moves(seed + 2, 20)
        world.calm()
        assert not world.truth().is_draining(session), f"all workers are there, and nobody counts {session}"

    @rule(number=TWO, joins=st.booleans(), seed=SEED)
    def host_dies(self, number, joins, seed):
        """And stays away until it is evicted, perhaps while its next worker was about to join."""
        world = self.world
        world.kill_worker(number)
        if joins:
            for member in range(2):
                world.link_worker(number, member)
            self.moves(seed, 4)
            world.kill_worker(number)
        self.moves(seed + 1, 20)
        world.is_evicted(number)
        for member in range(2):
            world.link_worker(number, member)

    @rule(number=TWO, kept=st.integers(0, 2), unaware=st.booleans(), seed=SEED)
    def another_leads(self, number, kept, unaware, seed):
        self.world.elect(number, kept=kept, unaware=unaware)
        self.moves(seed, 40)

    @rule(number=TWO, seed=SEED)
    def another_leads_as_a_stream_is_opened(self, number, seed):
        """Whom the former leader has just welcomed may hear the new one first."""
        world, former = self.world, self.world.leader
        world.cut_frontend(number, former)
        world.link_frontend(number, former)
        world.member_hears(number, former, 1)
        world.elect(1 - former)
        world.frontend_hears(number, 1 - former, 1)
        self.moves(seed, 40)

    @rule(number=TWO, seed=SEED)
    def a_follower_catches_up(self, number, seed):
        self.world.depose(1 - self.world.leader)
        self.world.restore(number)
        self.moves(seed, 20)

    @rule(number=TWO, seconds=st.sampled_from([1.2, 2.9, 3.5, 12.0]), beat=st.booleans())
    def is_stopped(self, number, seconds, beat):
        """One frontend says nothing for so long; everybody else goes on."""
        self.others_go_on(number, seconds, beat)

    def others_go_on(self, number, seconds, beat):
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.heartbeat(1 - number)
            for worker in range(2):
                self.world.renew(worker)
            if beat:
                self.world.turn()
            self.world.pass_time(0.9)

    @rule(seconds=st.sampled_from([0.6, 1.2, 3.5, 12.0, 28.0]))
    def all_stand_still(self, seconds):
        self.world.pass_time(seconds)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def holds(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            try:
                self.world.nothing_leaks()
            finally:
                ledger.UNRESERVED_FLOOR = self.floor


TestPermits = Permits.TestCase
TestPermits.settings = walk(examples=50, steps=30)
