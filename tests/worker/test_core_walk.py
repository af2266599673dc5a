"""Random walks over the worker's core beside a model of the rules: whoever may start starts, and nobody else.

The model repeats "The worker arbitrates" and counting's rules 3 and 5 to 7 in the plainest way: sets and numbers. The
agent's part is played faithfully: it answers orders late and in any order, never falsely. Managers, frontends and
counting say anything that they could have said at some time: older leases, links that are over, ids used before.
"""

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.walking import walk
from tests.worker.test_core import BLOCK, HELLO, HOST, SETTINGS, TICKET
from worker import messages as m
from worker.core import WorkerCore

SANDBOXES = st.sampled_from(["s1", "s2", "s3", "s4"])
FUNCTIONS = st.sampled_from([HELLO, HELLO, HELLO, replace(HELLO, revision=2)])
LINKS = st.integers(1, 2)
PICK = st.integers(0, 9)
FLAWS = ("again", "anywhere", "fenced", "function", "incarnation", "late", "lease", "sequence")
MEMORY_MB, MARGIN_S, BARRED_S = 384, 2.0, 60.0


@dataclass
class Sandbox:
    """``stage``: building, init, idle, busy (an invocation runs on it), leaving (to be destroyed when nothing runs)."""

    function: m.FunctionId
    sequence: int
    stage: str = "building"
    runs: str = ""
    leaving: bool = False
    ordered: bool = False       # DestroySandbox was given


@dataclass
class Run:
    sandbox: str
    block: m.Block
    out: bool = False
    resetting: bool = False


class Walk(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.core = WorkerCore(incarnation=HOST, memory_mb=MEMORY_MB, sandboxes_max=4, runtimes=("python3.11",))
        self.now = 0.0
        self.lease, self.link, self.manager, self.lease_ends = 0, 0, "", float("-inf")
        self.lease_drains = self.returning = self.ending = self.evicted = self.joined = self.left = False
        self.authority = float("-inf")
        self.fences: dict[str, int] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.runs: dict[str, Run] = {}
        self.used: dict[str, float] = {}        # ids that started or were refused, since when: they never start again
        self.unapplied: dict[str, m.Block] = {}
        self.ids = 0

    def feed(self, event):
        return self.core.handle(event, self.now)

    def one(self, effects, kind):
        found = [effect for effect in effects if isinstance(effect, kind)]
        assert len(found) == 1, (kind.__name__, effects)
        return found[0]

    def news(self, effects):
        return [effect.news for effect in effects if isinstance(effect, m.TellManager)]

    def fenced(self, session):
        return session.epoch <= self.fences.get(session.frontend, -1)

    def may_start(self):
        return self.joined and not self.evicted and self.now < self.authority

    @invariant()
    def core_and_model_agree(self):
        self.core.check()
        assert set(self.core.slots) == set(self.sandboxes)
        assert set(self.core.runs) == set(self.runs)
        assert self.core.memory_free_mb == MEMORY_MB - 128 * len(self.sandboxes)

    @initialize(warm=st.integers(0, 2))
    def serves(self, warm):
        """Most of what is worth seeing needs a worker that serves already."""
        if warm:
            self.joins(1, 0)
            self.is_renewed(120.0)
            self.is_adopted(1, 1, "m1", 1000.0)
        for name in ["s1", "s2"][:warm]:
            self.creates(1, 0, name, HELLO, 1)
            self.sandbox_comes_on(0, works=True)
            self.sandbox_comes_on(0, works=True)

    @rule(seconds=st.sampled_from([0.1, 5.0, 60.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(authority=st.booleans())
    def something_runs_out(self, authority):
        """The lease while there is authority, or authority while there is a lease."""
        if authority and self.authority > self.now:
            self.now = self.authority
        elif not authority and self.lease_ends > self.now:
            self.now = self.lease_ends
            self.is_renewed(120.0)

    # ------------------------------------------------------------ counting

    @rule(link=LINKS, epoch=st.integers(0, 5))
    def joins(self, link, epoch):
        effects = self.feed(m.Joined(link=link, watermarks=(m.Session(frontend="f1", epoch=epoch),)))
        self.joined = True
        self.fences["f1"] = max(self.fences.get("f1", -1), epoch)
        assert {e.invocation: e.block for e in effects if isinstance(e, m.ReportEnd)} == self.unapplied
        assert all(e.link == link for e in effects if isinstance(e, m.ReportEnd))

    @rule(lasts_s=st.sampled_from([-5.0, 4.0, 120.0, 120.0]))
    def is_renewed(self, lasts_s):
        """An answer that took long may name a time that has passed."""
        self.feed(m.AuthorityRenewed(until=self.now + lasts_s))
        self.authority = max(self.authority, self.now + lasts_s)

    @rule(link=LINKS, frontend=st.sampled_from(["f1", "f2"]), epoch=st.integers(1, 6))
    def session_is_fenced(self, link, frontend, epoch):
        session = m.Session(frontend=frontend, epoch=epoch)
        said = self.one(self.feed(m.Fenced(link=link, session=session)), m.AcknowledgeFence)
        self.fences[frontend] = max(self.fences.get(frontend, -1), epoch)
        assert (said.link, said.session) == (link, session)
        reported = {(invocation, of.block, of.function) for of in said.running for invocation in of.invocations}
        assert reported == {
            (i, run.block, self.sandboxes[run.sandbox].function.function)
            for i, run in self.runs.items() if run.block.session == session
        }, "rule 6"

    @precondition(lambda self: self.unapplied)
    @rule(pick=PICK)
    def end_is_applied(self, pick):
        invocation = sorted(self.unapplied)[pick % len(self.unapplied)]
        self.feed(m.EndApplied(invocation=invocation))
        del self.unapplied[invocation]

    @precondition(lambda self: self.ids > 20)
    @rule()
    def is_evicted(self):
        self.one(self.feed(m.Evicted()), m.EndProcess)
        self.evicted = True

    # ------------------------------------------------------------ managers

    @rule(link=LINKS, newer=st.sampled_from([-1, 0, 1, 1]), manager=st.sampled_from(["m1", "m2"]),
          lasts_s=st.sampled_from([20.0, 1000.0]))
    def is_adopted(self, link, newer, manager, lasts_s):
        lease = max(0, self.lease + newer)
        news = self.news(self.feed(m.Adopt(link=link, manager=manager, lease=lease, lasts_s=lasts_s)))
        again = lease == self.lease and manager == self.manager and not self.returning
        if lease <= self.lease and not again:
            assert news == [m.StaleLease(highest=self.lease)], "10: adopted under a lease that is over"
            return
        if not again:
            self.lease_drains = self.returning = False
        former = self.link if not again and self.link not in {0, link} else 0
        self.lease, self.link, self.manager = lease, link, manager
        self.lease_ends = self.now + lasts_s - min(MARGIN_S, lasts_s / 10)
        *stale, inventory = news
        assert stale == [m.StaleLease(highest=lease)] * bool(former), "who has it no more is told so"
        assert {(s.sandbox, s.sequence, s.invocation) for s in inventory.sandboxes} == {
            (name, sandbox.sequence, sandbox.runs) for name, sandbox in self.sandboxes.items()
        }

    def order(self, kind, link, behind, **fields):
        """The news of an order; None when it was one of a lease or link that is over, and did nothing."""
        effects = self.feed(kind(link=link, lease=max(0, self.lease - behind), **fields))
        if (behind and self.lease) or link != self.link:
            assert [type(effect) for effect in effects] == [m.TellManager], (kind, effects)
            assert self.news(effects) == [m.StaleLease(highest=self.lease)]
            return None
        return effects

    @rule(
        link=LINKS, behind=st.sampled_from([0, 0, 0, 1]), sandbox=SANDBOXES, function=FUNCTIONS,
        sequence=st.integers(1, 3),
    )
    def creates(self, link, behind, sandbox, function, sequence):
        effects = self.order(
            m.Create, link, behind, sandbox=sandbox, function=function, settings=SETTINGS, ticket=TICKET,
            sequence=sequence,
        )
        if effects is None:
            return
        fits = (
            not self.ending and not self.lease_drains and self.may_start() and self.now < self.lease_ends
            and sandbox not in self.sandboxes and 128 * len(self.sandboxes) + 128 <= MEMORY_MB
        )
        if not fits:
            assert [type(news) for news in self.news(effects)] == [m.NoCapacity], "12: created, and it must not"
            return
        built = self.one(effects, m.BuildSandbox)
        assert (built.sandbox, built.function) == (sandbox, function)
        self.sandboxes[sandbox] = Sandbox(function=function, sequence=sequence)

    @rule(link=LINKS, behind=st.sampled_from([0, 0, 1]), sandbox=SANDBOXES)
    def destroys(self, link, behind, sandbox):
        effects = self.order(m.Destroy, link, behind, sandbox=sandbox, reason="walk")
        if effects is not None and sandbox in self.sandboxes:
            self.leaves(sandbox, effects)
        elif effects is not None:
            assert [type(news) for news in self.news(effects)] == [m.Gone]

    def leaves(self, name, effects):
        sandbox = self.sandboxes[name]
        sandbox.leaving = True
        ordered = [e.sandbox for e in effects if isinstance(e, m.DestroySandbox) and e.sandbox == name]
        due = not sandbox.runs and not sandbox.ordered
        assert ordered == ([name] if due else []), "12: destroyed while it runs, twice, or not at all"
        sandbox.ordered = sandbox.ordered or due

    @rule(link=LINKS, behind=st.sampled_from([0, 0, 1]), sandbox=SANDBOXES, sequence=st.integers(1, 5))
    def raises(self, link, behind, sandbox, sequence):
        effects = self.order(m.Raise, link, behind, sandbox=sandbox, sequence=sequence)
        if effects is None:
            return
        [news] = self.news(effects)
        known = self.sandboxes.get(sandbox)
        if known is None:
            assert isinstance(news, m.Gone)
            return
        known.sequence = max(known.sequence, sequence)
        assert news == m.Raised(sandbox=sandbox, sequence=known.sequence, busy=bool(known.runs))

    @rule(link=LINKS, behind=st.sampled_from([0, 1]), returns=st.booleans())
    def lease_drains_or_ends(self, link, behind, returns):
        effects = self.order(m.Return if returns else m.Drain, link, behind)
        if effects is None:
            return
        self.lease_drains = True
        if returns:
            self.returning = True
            for name in self.sandboxes:
                self.leaves(name, effects)
            assert (m.Returned() in self.news(effects)) == (not self.sandboxes), "returned with sandboxes left"

    @rule(link=LINKS)
    def manager_goes(self, link):
        self.feed(m.ManagerGone(link=link))
        self.link = 0 if link == self.link else self.link

    # ------------------------------------------------------------ frontends

    def known_or_new(self, again, pick):
        # No Start is under way for longer.
        recent = [id_ for id_, at in self.used.items() if at + BARRED_S > self.now]
        if again and recent:
            return recent[pick % len(recent)]
        self.ids += 1
        return f"i{self.ids}"

    @rule(
        flaw=st.sampled_from(["", "", "", *FLAWS]), pick=PICK, ahead=st.integers(0, 1), epoch=st.integers(5, 9),
        sandbox=SANDBOXES, frontend=st.sampled_from(["f1", "f2"]),
    )
    def start_is_asked(self, flaw, pick, ahead, epoch, sandbox, frontend):
        """With nothing wrong about it, or one thing: that alone has to be refused."""
        idle = self.in_stage("idle")
        if idle and flaw != "anywhere":
            sandbox = idle[pick % len(idle)]
        known = self.sandboxes.get(sandbox)
        invocation = self.known_or_new(flaw == "again", pick)
        sequence = (known.sequence if known else 1) + (-1 if flaw == "sequence" else ahead)
        epoch = self.fences.get(frontend, 1) if flaw == "fenced" else epoch
        block = m.Block(session=m.Session(frontend=frontend, epoch=epoch), account=BLOCK.account)
        function = known.function if known else HELLO
        if flaw == "function":
            function = replace(function, revision=function.revision + 1)
        nonce = HOST.nonce - (flaw == "incarnation")
        behind, late = int(flaw == "lease"), 0.0 if flaw == "late" else 10.0
        effects = self.feed(m.StartAsked(
            stream=1, invocation=invocation, incarnation=replace(HOST, nonce=nonce), lease=self.lease - behind,
            sandbox=sandbox, sequence=sequence, function=function, deadline=self.now + late, block=block,
        ))
        allowed = (
            invocation not in self.used and nonce == HOST.nonce and not self.ending and self.may_start()
            and not self.fenced(block.session) and behind == 0 and self.now < self.lease_ends and late > 0
            and known is not None and known.function == function and sequence >= known.sequence
            and known.stage == "idle" and not known.leaving
        )
        started = [e for e in effects if isinstance(e, m.StartInvocation)]
        refused = [e for e in effects if isinstance(e, m.RefuseStart)]
        assert (len(started), len(refused)) == ((1, 0) if allowed else (0, 1)), (allowed, effects)
        self.used.setdefault(invocation, self.now)
        if allowed and known is not None:
            known.sequence, known.stage, known.runs = sequence, "busy", invocation
            self.runs[invocation] = Run(sandbox=sandbox, block=block)

    @rule(again=st.booleans(), pick=PICK)
    def start_is_withdrawn(self, again, pick):
        invocation = self.known_or_new(again, pick)
        if invocation not in self.runs:
            self.feed(m.StartWithdrawn(stream=1, invocation=invocation, reason=m.Refusal.CANCELLED))
            self.used.setdefault(invocation, self.now)

    # ------------------------------------------------------------ sandboxes

    def in_stage(self, *stages):
        return sorted(name for name, sandbox in self.sandboxes.items() if sandbox.stage in stages)

    @precondition(lambda self: self.in_stage("building", "init"))
    @rule(pick=PICK, works=st.sampled_from([True, True, True, False]))
    def sandbox_comes_on(self, pick, works):
        names = self.in_stage("building", "init")
        name = names[pick % len(names)]
        sandbox = self.sandboxes[name]
        if sandbox.stage == "init":
            sandbox.stage = "idle"
            news = self.news(self.feed(m.InitDone(sandbox=name, phases=m.ColdPhases())))
            assert (m.Ready in map(type, news)) == (not sandbox.leaving and bool(self.link)), "a leaving one is ready"
        elif works:
            sandbox.stage = "init"
            self.feed(m.SandboxBuilt(sandbox=name))
        else:
            del self.sandboxes[name]
            self.removed(self.feed(m.BuildFailed(sandbox=name, error_type="E", message="m")))

    def removed(self, effects):
        assert (m.Returned() in self.news(effects)) == (self.returning and not self.sandboxes and bool(self.link))
        drained = any(isinstance(effect, m.Drained) for effect in effects)
        assert drained == (self.ending and not self.sandboxes)

    @precondition(lambda self: self.runs)
    @rule(pick=PICK, resets=st.booleans(), breaks=st.sampled_from([False, False, True]))
    def run_goes_on(self, pick, resets, breaks):
        invocation = sorted(self.runs)[pick % len(self.runs)]
        run = self.runs[invocation]
        sandbox = self.sandboxes[run.sandbox]
        if not run.out:
            self.feed(m.ResultOut(sandbox=run.sandbox, invocation=invocation))
            run.out = True
            return
        if resets and not run.resetting:
            self.feed(m.ResetBegun(sandbox=run.sandbox))
            run.resetting = True
        if breaks:
            self.leaves(run.sandbox, self.feed(m.SandboxBroken(sandbox=run.sandbox, reason="walk")))
        del self.runs[invocation]
        sandbox.runs, sandbox.stage = "", "idle"
        effects = self.feed(m.InvocationEnded(sandbox=run.sandbox, invocation=invocation))
        assert self.one(effects, m.TellEnd).invocation == invocation
        reported = [e.invocation for e in effects if isinstance(e, m.ReportEnd)]
        assert reported == ([invocation] if self.fenced(run.block.session) else []), "rule 3: an END for the ledger"
        if reported:
            self.unapplied[invocation] = run.block
        if sandbox.leaving:
            self.leaves(run.sandbox, effects)
        self.quiet(effects)

    def quiet(self, effects):
        leaves = any(isinstance(effect, m.LeaveCounting) for effect in effects)
        assert leaves == (self.ending and not self.runs and not self.left), "rule 5: it leaves when nothing runs, once"
        self.left = self.left or leaves

    @precondition(lambda self: any(sandbox.ordered for sandbox in self.sandboxes.values()))
    @rule(pick=PICK)
    def sandbox_is_gone(self, pick):
        names = sorted(name for name, sandbox in self.sandboxes.items() if sandbox.ordered)
        name = names[pick % len(names)]
        assert not self.sandboxes.pop(name).runs
        self.removed(self.feed(m.SandboxGone(sandbox=name)))

    @precondition(lambda self: self.ids > 20)
    @rule()
    def process_is_told_to_end(self):
        effects = self.feed(m.DrainSelf())
        if self.ending:
            assert not effects
            return
        self.ending = True
        for name in self.sandboxes:
            self.leaves(name, effects)
        self.quiet(effects)
        assert any(isinstance(effect, m.Drained) for effect in effects) == (not self.sandboxes)


Walk.TestCase.settings = walk(examples=120, steps=50)
TestWalk = Walk.TestCase
