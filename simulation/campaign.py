"""A fault plan run and judged.

Owns the course of a run: a region with its load, the plan's faults, healing, and what must be true then. Refuses to
know single faults (``inflict.py``), what is asked (``work.py``) and invariants (``verdict.py``).
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from chassis.faults import Fault
from placement.config import FleetConfig
from simulation import azs, loop, nodes, verdict
from simulation.coverage import cover
from simulation.inflict import Inflict, clocks
from simulation.plan import FUNCTIONS, LOADS, Entry, Kind, Plan
from simulation.record import Bug, Record
from simulation.region import Region, RegionBug
from simulation.verdict import Violation
from simulation.work import TIMEOUT_S, Functions, Work

# Small enough that a silent worker is evicted within a run, and in the same relations as the defaults.
AUTHORITY_S, GRACE_S, DRIFT = 5.0, 1.0, 0.01
EVICTED_S = (AUTHORITY_S + TIMEOUT_S + GRACE_S) * (1 + DRIFT)
INVOKES_MIN = 300   # of a run
TOP_UP_S = 0.025    # between those that the plan's load left out
HEALED_S = 30.0     # after healing the region is whole and serves within this
ANSWERED_S = 40.0   # by then every request has an answer: its client would have left long before
QUIET_S = 5.0       # invariant 2
LONGEST_RUN_S, SHORT_LEASE_RUN_S = 5.0, 0.6     # above the silence after which a frontend is suspected, if it may be


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Of one plan. ``violations`` with their stories; empty for a good run."""

    plan: Plan
    violations: list[Violation]
    story: list[str]
    trace_hash: str         # empty where nobody asked: it takes a tenth of a run's time
    virtual_s: float
    cpu_s: float
    coverage: Counter[str] = field(default_factory=Counter)

    @property
    def invokes(self) -> int:
        return sum(count for name, count in self.coverage.items() if name.startswith("answers "))

    @property
    def invariants(self) -> set[int]:
        return {violation.invariant for violation in self.violations}


def run(
    plan: Plan, *, judge: verdict.Judge = verdict.judge, hashed: bool = True,
) -> tuple[Outcome, Record]:
    """Deterministic: the same plan gives the same trace in every process."""
    record = Record(seed=plan.seed, lease_scale=plan.lease_scale)
    functions = Functions(record)
    short = plan.lease_scale < 1.0
    began = time.process_time()
    region = Region(
        plan.seed, handlers=functions.handlers(), fleet=FleetConfig(time_scale=plan.lease_scale), changes={
            "counting": {"authority_s": AUTHORITY_S, "grace_s": GRACE_S, "drift": DRIFT,
                         "compact_entries": plan.compact_entries},
            "worker": {"timeout_cap_s": TIMEOUT_S},
        }, rates=clocks(plan.entries), lines=record.lines,
    )

    async def live(virtual: loop.VirtualLoop) -> float:
        async with region:
            work = Work(region, record, random.Random(f"{plan.seed}/work"),
                        longest_s=SHORT_LEASE_RUN_S if short else LONGEST_RUN_S)
            await work.deploy()
            await _befall(region, record, plan, work)
            await _recover(region, record, work, functions)
            record.over_at = virtual.now
        return virtual.now

    virtual_s = 0.0
    try:
        virtual_s = loop.run(live)
    except (AssertionError, Fault, TimeoutError, ExceptionGroup) as bug:
        record.bugs += region.bugs or [Bug(what=_plain(bug))]
    violations = judge(record)
    story = verdict.story(record, violations[0]) if violations else []
    return Outcome(
        plan=plan, violations=violations, story=story, virtual_s=virtual_s, cpu_s=time.process_time() - began,
        trace_hash=region.trace_hash() if hashed else "", coverage=cover(record, region.logs),
    ), record


async def _befall(region: Region, record: Record, plan: Plan, work: Work) -> None:
    """The plan from its first entry to its end; nothing that a fault takes down keeps the next from coming."""
    inflict = Inflict(region, record, random.Random(f"{plan.seed}/inflict"))
    begin = region.clock.monotonic()
    if plan.account_limit < 1_000:
        assert await work.account_limit(plan.account_limit), "nothing is wrong yet"

    async def one(entry: Entry) -> None:
        await asyncio.sleep(max(0.0, begin + entry.at - region.clock.monotonic()))
        if entry.kind not in LOADS:
            record.told.append((region.clock.monotonic(), str(entry)))
        match entry.kind:
            case Kind.OPEN:
                await work.open(entry)
            case Kind.CLOSED:
                await work.closed(entry)
            case Kind.LIMIT:
                await work.limit(entry.target, int(entry.amount) if entry.amount >= 0 else None)
            case Kind.ACCOUNT:
                await work.account_limit(int(entry.amount))
            case Kind.UPDATE:
                await work.update(entry.target)
            case _:
                await inflict.do(entry)

    tasks = [asyncio.create_task(one(entry)) for entry in plan.entries]
    await asyncio.sleep(plan.length_s)
    nodes.resume(region)
    done, late = await asyncio.wait(tasks, timeout=HEALED_S) if tasks else (set(), set())
    if late:
        raise RegionBug(f"{len(late)} entries of the plan are not over {HEALED_S:g} s after its end")
    for task in done:
        task.result()
    record.told.append((region.clock.monotonic(), "everything is healed"))
    azs.heal(region)


async def _recover(region: Region, record: Record, work: Work, functions: Functions) -> None:
    """Everything is healed: the region is whole, every frontend serves every function, and nothing is left over."""
    await region.until(region.ready, "the region to be whole", within_s=HEALED_S)
    await region.until(lambda: region.counting_leader() != "", "a leader of counting", within_s=HEALED_S)
    for function in FUNCTIONS:
        await _until_true(region, partial(_limited, work, function), f"{function} to get its limit")
    for function in FUNCTIONS:
        for number in range(len(region.frontends)):
            served = partial(_served, work, function, number)
            await _until_true(region, served, f"frontend {number} to serve {function}")
    turns = itertools.cycle(FUNCTIONS)
    while len(record.requests) < INVOKES_MIN:   # faults keep clients from asking
        await asyncio.sleep(TOP_UP_S)
        work.ask_soon(next(turns))
    await work.answered(ANSWERED_S)
    end = region.clock.monotonic() + EVICTED_S + QUIET_S    # of a worker that is gone the ledger must be sure
    while any(pool.granted for pool in await region.pools()) or functions.running:
        if region.clock.monotonic() > end:
            left = [f"{pool.pool.function or 'the rest'}: {pool.granted} held by "
                    f"{[(h.session.frontend, h.session.epoch, h.size) for h in pool.holders]}"
                    for pool in await region.pools() if pool.granted]
            raise RegionBug(f"invariant 2: {functions.running} run after quiet and {'; '.join(left)}")
        await asyncio.sleep(0.1)
    for frontend in region.frontends:
        for pool, stock in frontend.service.admission.core.stocks.items():
            assert stock.in_use == 0, f"invariant 2: a frontend believes that {stock.in_use} of {pool} run"


async def _limited(work: Work, function: str) -> bool:
    return await work.limit(function, None) in (200, 204)


async def _served(work: Work, function: str, number: int) -> bool:
    request = await work.ask(function, frontend=number, seconds=0.0)
    return request is not None and request.status == 200 and not request.failed


async def _until_true(region: Region, ask: Callable[[], Awaitable[bool]], what: str) -> None:
    end = region.clock.monotonic() + HEALED_S
    while not await ask():
        if region.clock.monotonic() > end:
            raise RegionBug(f"waited {HEALED_S:g} s for {what}")
        await asyncio.sleep(0.1)


def _plain(bug: BaseException) -> str:
    if isinstance(bug, BaseExceptionGroup):
        return "; ".join(_plain(one) for one in bug.exceptions)
    return f"{type(bug).__name__}: {bug}"
