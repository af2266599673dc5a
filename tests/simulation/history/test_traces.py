"""Traces say what the records do: of every core, of a whole simulated region, and of one that was tampered with."""

import asyncio
import json
from typing import Any

import pytest

from chassis.machine import Host, as_json
from counting import commands as c
from counting import messages as m
from counting.ledger import Ledger
from counting.words import Session, reserved, unreserved
from simulation import loop
from simulation.history import History, bounds_of, judge, judge_files, records, traces
from simulation.history.ledger_trace import LedgerReader
from simulation.region import ConnectionLost, Region
from simulation.scenario import create, first_invokes, reserve

W = "worker-az1-1"
CORES = {"worker": "WorkerCore", "manager": "ManagerCore", "placement": "PlacementCore"}
FUNCTION = {"type": "FunctionId", "account": "a", "function": "f", "version": "$LATEST", "revision": 1}
BLOCK = {"type": "Block", "session": {"type": "Session", "frontend": "frontend-az1-1", "epoch": 1}, "account": "a",
         "function": "f", "kind": 2, "qualifier": ""}


def line(at, node, event, *effects):
    return {"at": at, "node": node, "core": CORES[node.split("-")[0]], "event": event, "effects": list(effects)}


def grant(at, lease, manager="manager-az2", hard_end_s=36_000.0):
    return line(at, "placement-az1", {"type": "RecordWritten"}, {
        "type": "Grant", "worker": W, "lease": lease, "manager": manager, "hard_end_s": hard_end_s,
    })


def adopt(at, lease, manager="manager-az2", lasts_s=100.0):
    return line(at, W, {"type": "Adopt", "lease": lease, "manager": manager, "lasts_s": lasts_s},
                {"type": "TellManager", "news": {"type": "Inventory"}})


def start(at, lease, invocation="i"):
    return line(at, W, {"type": "StartAsked", "lease": lease, "function": FUNCTION, "block": BLOCK},
                {"type": "StartInvocation", "sandbox": "s", "invocation": invocation})


def made(at, lease):
    return line(at, W, {"type": "Create", "lease": lease},
                {"type": "BuildSandbox", "sandbox": "s", "function": FUNCTION})


def end(at, invocation="i"):
    return line(at, W, {"type": "InvocationEnded", "sandbox": "s", "invocation": invocation})


def drain(at, lease, *effects):
    return line(at, W, {"type": "Drain", "lease": lease}, *effects)


def gone(at):
    return line(at, W, {"type": "Destroy", "lease": 1}, {"type": "DestroySandbox", "sandbox": "s"})


def returned(at):
    return line(at, W, {"type": "SandboxGone"}, {"type": "TellManager", "news": {"type": "Returned"}})


def order(at, kind, **fields):
    return line(at, "manager-az2", {"type": "Tick"}, {"type": kind, "worker": W, "sandbox": "s", **fields})


HONEST = [
    grant(0, 1), adopt(0, 1), made(1, 1), start(2, 1), drain(3, 1), end(4), gone(5), returned(6), grant(7, 2),
    grant(7.5, 2, hard_end_s=35_999.5), adopt(8, 2, lasts_s=50.0), made(9, 2), start(10, 2, "j"), end(11, "j"),
]
PLANTED = {
    "granted twice under one number": (9, [grant(20, 2, "manager-az3")]),
    "granted under a lower number": (9, [grant(20, 1, hard_end_s=30_000.0)]),
    "adopted by two under one number": (9, [adopt(20, 2, "manager-az3")]),
    "adopted under a lower number": (9, [adopt(20, 1)]),
    "started under a lower number": (10, [start(20, 1, "k")]),
    "made under a lower number": (10, [made(20, 1)]),
    "started after the lease's end": (11, [start(60, 2, "k")]),
    "returned after the lease's end": (11, [returned(60)]),
    "too long a lease": (11, [grant(20, 3, hard_end_s=36_001.0)]),
    "too short a lease": (11, [grant(20, 3, hard_end_s=21_000.0)]),
    "made while draining": (12, [drain(20, 2), made(21, 2)]),
    "killed by draining": (12, [start(20, 2, "k"), drain(21, 2), gone(22)]),
    "placed by a manager that drains": (12, [order(20, "DrainWorker"), order(21, "Create")]),
}


def judged(lines):
    return judge(map(json.dumps, lines))


def test_an_honest_trace_has_no_violation():
    verdict = judged([
        *HONEST, order(20, "DrainWorker"), order(21, "Connect"), order(22, "Create"), start(23, 2, "k"),
        drain(24, 1, {"type": "TellManager", "news": {"type": "StaleLease", "highest": 2}}), made(25, 2),
    ])
    assert verdict.violations == []
    assert (verdict.ends, verdict.starts, verdict.creates, verdict.unfinished) == (1, 3, 3, 1)
    assert {"LeaseGranted": 3, "Adopted": 2}.items() <= verdict.counts.items()


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_found(planted):
    invariant, lines = PLANTED[planted]
    found = judged([*HONEST, *lines]).violations
    assert {violation.invariant for violation in found} == {invariant}, list(map(str, found))


# ---------------------------------------------------------------- a region


@pytest.fixture(scope="module")
def trace():
    """Invokes, a throttle, limits that are lowered and given up, a frontend, a worker and counting's leader killed."""
    async def run(_virtual):
        async with Region(11) as region:
            await first_invokes(region)
            await create(region, "other", "echo")
            lost = asyncio.create_task(region.invoke("sleeper", b"2", frontend=0))
            await asyncio.sleep(1)
            await region.kill_frontend(0)
            with pytest.raises(ConnectionLost):
                await lost
            for _ in range(3):
                await region.invoke("hello", frontend=1)
            await region.kill_worker("az1")
            for number in range(4):
                await region.invoke("other", frontend=1 + number % 2)
            await region.kill_counting(region.counting_leader())
            await region.until(lambda: bool(region.counting_leader()), "another leader", within_s=10)
            for number in range(4):
                await region.invoke("hello", frontend=1 + number % 2)
            await region.restart_frontend(0)
            await reserve(region, "sleeper", 3)
            await asyncio.gather(*(region.invoke("sleeper", b"1", frontend=number % 3) for number in range(5)))
            await region.until(lambda: region.clock.monotonic() > 60, "quiet", within_s=120)
        return region.trace()

    recorded: str = loop.run(run)
    return recorded.splitlines()


def test_a_simulated_region_has_no_violation(trace):
    verdict = judge(trace)
    assert list(map(str, verdict.violations)) == []
    unheard = {"Header", "Clock", "Lost", "Rest", "LeaseHeld", "EventAccepted", "EventRan", "DeadLettered", "Cut",
               "Closed", "Draining"}
    rare = {"Refused", "Returned", "Deposed", "Unproven"}
    assert records.KINDS.keys() - unheard - rare <= verdict.counts.keys(), "what is never recorded?"
    assert verdict.unfinished == 0


def test_the_order_of_lines_of_several_traces_does_not_matter(trace):
    by_node = sorted(trace, key=lambda text: json.loads(text)["node"])
    assert judge(by_node).counts == judge(trace).counts
    assert judge(by_node).violations == []


def _first(trace, **wanted):
    return next(
        number for number, text in enumerate(trace)
        if all(part in text for part in wanted.values())
    )


def _tamper(trace, number, change):
    parsed = json.loads(trace[number])
    change(parsed)
    return [*trace[:number], json.dumps(parsed), *trace[number + 1:]]


def test_a_digest_that_changed_on_the_way_is_found(trace):
    number = _first(trace, kind='"type":"Responded"')
    tampered = _tamper(trace, number, lambda parsed: parsed["note"].update(digest="other"))
    assert [violation.invariant for violation in judge(tampered).violations] == [6]


def test_an_entry_that_one_member_applied_otherwise_is_found(trace):
    number = next(
        n for n, text in enumerate(trace)
        if '"Applied"' in text and '"counting-az3"' in text and '"commands":[]' not in text
    )

    def change(parsed):
        next(item for item in parsed["aside"] if item["type"] == "Applied")["batch"]["stamp"] += 1

    assert 14 in {violation.invariant for violation in judge(_tamper(trace, number, change)).violations}


def test_a_start_under_another_session_that_was_fenced_is_found(trace):
    fence = next(
        json.loads(text) for text in trace if '"AcknowledgeFence"' in text
    )
    session = next(effect for effect in fence["effects"] if effect["type"] == "AcknowledgeFence")["session"]
    number = next(
        n for n, text in enumerate(trace)
        if '"StartInvocation"' in text and json.loads(text)["node"] == fence["node"] and
        json.loads(text)["at"] > fence["at"]
    )
    tampered = _tamper(trace, number, lambda parsed: parsed["event"]["block"].update(session=session))
    assert 1 in {violation.invariant for violation in judge(tampered).violations}


def test_a_grant_over_the_limit_is_found(trace):
    """Every member applies an Acquire twice over: prefix-equal, and more than there is."""
    changed = []
    for text in trace:
        parsed = json.loads(text)
        for item in parsed.get("aside", ()):
            if item["type"] == "Applied":
                for command in item["batch"]["commands"]:
                    if command["type"] == "SetReserved" and command["value"] == 1:
                        command["value"] = 0
        changed.append(json.dumps(parsed))
    found = {violation.invariant for violation in judge(changed).violations}
    assert 1 in found, found


# ---------------------------------------------------------------- the ledger


def test_a_wish_waits_only_when_its_session_may_hold_permits_of_the_pools_generation():
    """A grant was lost on the way, and the limit changed: the frontend can't know what it has to give up first."""
    ledger = Ledger()
    log: list[Any] = []

    def apply(stamp, *commands):
        batch = c.Batch(stamp=float(stamp), number=stamp, commands=commands)
        log.append({"type": "Applied", "index": len(log), "batch": as_json(batch)})
        return batch, ledger.apply(batch)

    def heard(at, event, *aside):
        return {"at": at, "node": "counting-az1", "core": "CountingCore", "event": as_json(event), "effects": [],
                "aside": list(aside)}

    pool, session = reserved("a", "f"), Session(frontend="frontend-az1-1", epoch=1)
    apply(1, c.OpenSession(frontend=session.frontend, nonce=1), c.SetReserved(account="a", function="f", value=2))
    apply(2, c.Acquire(wishes=(c.Wish(session=session, pool=pool, generation=ledger.generation(pool), waiting=1,
                                      spare=0),)))
    apply(3, c.SetReserved(account="a", function="f", value=5))
    generation = ledger.generation(pool)
    began = [*log]
    wish = c.Wish(session=session, pool=pool, generation=generation, waiting=1, spare=0)
    batch, results = apply(4, c.Acquire(wishes=(wish,)))
    ask = m.Ask(link=7, pool=pool, generation=generation, waiting=(21,), spare=0)
    lines = [
        heard(4.0, m.Led(term=1), *began),
        heard(4.1, m.Hello(link=7, frontend=session.frontend, nonce=1, epoch=1)),
        heard(4.2, ask),
        heard(4.3, m.Committed(index=3, batch=batch, results=tuple(results)), log[-1]),
        heard(4.4, ask),
    ]
    reader = LedgerReader("counting-az1")
    said = [record for each in lines for record in reader.event(each["at"], each)]
    assert [(record.at, record.waiting) for record in said if isinstance(record, records.Wanted)] == [
        (4.2, (21,)), (4.3, ()), (4.4, (21,)),
    ]


def test_what_is_charged_elsewhere_ends_with_its_last_permit():
    """The function got a reservation while a permit of the rest was out; it came back."""
    rest, pool = unreserved("a"), reserved("a", "f")
    session = Session(frontend="frontend-az1-1", epoch=1)
    commands: list[c.Command] = [
        c.OpenSession(frontend=session.frontend, nonce=1),
        c.Acquire(wishes=(c.Wish(session=session, pool=rest, generation=0, waiting=1, spare=0),)),
        c.SetReserved(account="a", function="f", value=2),
        c.GiveBack(session=session, sequence=1, pool=rest, count=1),
    ]
    reader = LedgerReader("counting-az1")
    said = [record for number, command in enumerate(commands) for record in reader.event(number, {
        "at": number, "node": "counting-az1", "core": "CountingCore", "effects": [],
        "event": {"type": "Led", "term": 1} if number == 0 else {"type": "Tick"},
        "aside": [{"type": "Applied", "index": number, "batch": as_json(
            c.Batch(stamp=float(number), number=number + 1, commands=(command,)))}],
    })]
    assert [(record.at, record.crossing) for record in said
            if isinstance(record, records.Level) and record.pool == str(pool)] == [(2, 1), (3, 0)]


# ---------------------------------------------------------------- files and hosts


def test_files_are_read_without_what_a_kill_tore(tmp_path):
    path = tmp_path / "trace.ndjson"
    path.write_text("".join(json.dumps(one) + "\n" for one in HONEST) + json.dumps(start(60, 2))[:30])
    assert judge_files([path]).violations == []
    path.write_text("".join(json.dumps(one) + "\n" for one in [*HONEST, start(60, 2, "k")]))
    assert [violation.invariant for violation in judge_files([path]).violations] == [11]


def host(node, boot):
    return {"at": 0, "node": node, "note": as_json(Host(boot=boot))}


@pytest.mark.parametrize("boot", ["another", ""])
def test_clocks_of_two_boots_are_not_compared(boot):
    two = [host(W, "one"), host("manager-az2", boot)]
    assert [violation.invariant for violation in judged([*two, *HONEST]).violations] == [0]
    assert judged([host(W, "one"), host("manager-az2", "one"), *HONEST]).violations == []
    bounds = {"manager-az2": (-0.1, 0.1)}
    assert judge(map(json.dumps, [*two, *HONEST]), bounds=bounds).violations == []


def test_stamps_of_another_clock_are_put_where_they_belong():
    late = [{**one, "at": one["at"] + 1000} if one["node"] == W else one for one in HONEST]
    there = list(traces.records(map(json.dumps, late), bounds={W: (-1000.0, -1000.0)}))
    assert [type(record) for record in there[1:]] == [
        type(record) for record in traces.records(map(json.dumps, HONEST))
    ]


def test_a_region_whose_clocks_run_apart_is_judged_by_their_bounds(trace):
    """A worker and a member of counting are 1 % fast: their own stamps say what did not happen in that order."""
    fast = {"worker-az1-1", "worker-az2-1", "worker-az3-1", "counting-az3"}
    true, lines = [], []
    for text in trace:
        parsed = json.loads(text)
        true.append(parsed["at"])
        if parsed["node"] in fast:
            parsed["at"] *= 1.01
            if parsed.get("event", {}).get("type") == "AuthorityRenewed":
                parsed["event"]["until"] *= 1.01
        lines.append(parsed)
    bounds = bounds_of(lines, true)
    assert bounds["worker-az1-1"][0] < -0.5 < bounds["worker-az1-1"][1] <= 0
    assert max(map(abs, bounds["frontend-az1-1"])) == 0
    history = History(bounds=bounds)
    for parsed in lines:
        history.read(parsed)
    verdict = history.end()
    assert list(map(str, verdict.violations)) == []
    assert verdict.starts == judge(trace).starts
