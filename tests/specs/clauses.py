"""The switches: each clause of the counting rules by the line of code that holds it, and how that reads without it.

A switch rewrites one function's source, for one test, and fails when the line is no longer there: who moves a rule
moves its switch. Production code has none. The names are those of docs/specs/mutants.txt, where the model loses the
same clause. A clause that two lines hold loses both.
"""

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

from counting import core, desk, fencing, frontends, leadership, ledger, limits, rounds, workers
from frontend import core as frontend_core
from frontend import invoke
from frontend.peers import workers as frontend_workers
from worker import admission, agent
from worker import core as worker_core
from worker import peers as worker_peers
from worker.sandbox import watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """In `owner.name` (a module's function or a class's method) `line` becomes `instead`."""

    owner: Any
    name: str
    line: str
    instead: str


def edit(owner: Any, name: str, line: str, instead: str) -> Edit:
    return Edit(owner=owner, name=name, line=line, instead=instead)


Ledger, Frontend, Worker = ledger.Ledger, frontend_core.FrontendCore, worker_core.WorkerCore
Counting = core.CountingCore

CLAUSES: dict[str, tuple[Edit, ...]] = {
    # ------------------------------------------------------------ 1: blocks
    "overgrant": (edit(Ledger, "free", "own, rest = self.limit(pool) - self.charge(pool),",
                       "own, rest = account.limit,"),),
    "noacct": (edit(Ledger, "free", "account.limit - account.total()", "account.limit"),),
    "nogroup": (edit(Ledger, "free", "room = self.room(pool)", "room = None"),),
    "lentlimit": (edit(Ledger, "free", "account.limit - account.total()",
                       "sum(x.limit - x.total() for x in self.accounts.values())"),),
    "anyorder": (edit(rounds, "acquire", "desk.wishes()[:WISHES_MAX]", "desk.wishes()[::-1]"),),
    # ------------------------------------------------------------ 2: the hot path
    "absans": (edit(Frontend, "_granted", "event.size - on_their_way - stock.running_older",
                    "event.size - stock.running_older"),),
    "giveused": (edit(Frontend, "_recalled", "idle = stock.block.idle", "idle = stock.block.size"),
                 edit(Frontend, "_give_back", "    assert count <= stock.block.idle, (str(stock.pool), count)\n", "")),
    "coldfree": (edit(invoke.FunctionInvoker, "_wait", "        request, got = await self._sandbox(",
                      "        self._admission.give(block, name)\n"
                      "        request, got = await self._sandbox("),
                 edit(invoke.FunctionInvoker, "_run", "    now = self._clock.monotonic()\n",
                      "    block.in_use += 1\n"
                      "    block.runs[name] = block.runs.get(name, 0) + 1\n"
                      "    now = self._clock.monotonic()\n")),
    # ------------------------------------------------------------ 3: when a permit is free
    "result": (edit(frontend_workers._Link, "_frame", "case \"result\":\n",
                    "case \"result\":\n            flight.over(flight)\n            flight.over = lambda _: None\n"),),
    "timeoutfrees": (edit(frontend_workers._Link, "lose", "        flight.lost = True\n",
                          "        flight.lost = True\n"
                          "        flight.over(flight)\n"
                          "        flight.over = lambda _: None\n"),),
    "nobar": (edit(agent.Agent, "hello", "        older.close()\n        older.cut()\n", "        pass\n"),),
    "refusenobar": (edit(Worker, "_refuse", "    self.barred.add(invocation, now)\n", ""),),
    # ------------------------------------------------------------ 4: refusals
    "oldround": (edit(desk.Desk, "begin", "bound=self._order", "bound=2**60"),),
    "foundignored": (edit(rounds, "close", "if turn.found or ledger.free(pool) > 0:", "if ledger.free(pool) > 0:"),),
    "freeignored": (edit(rounds, "close", "if turn.found or ledger.free(pool) > 0:", "if turn.found:"),
                    edit(rounds, "close", "    elif ledger.precautionary(pool):\n", "    elif False:\n")),
    "unordered": (edit(Counting, "_committed", "desk.round.closing == event.batch.number", "not desk.round.pending"),),
    "recallfirst": (edit(frontends, "welcome", "    for pool in lead.ledger.pools():\n",
                         "    for desk in lead.desks.values():\n"
                         "        if desk.round is not None and session in desk.round.pending:\n"
                         "            lead.do(m.SendRecall(\n"
                         "                link=link, round=desk.round.number, pool=desk.pool, cause=\"\"))\n"
                         "    for pool in lead.ledger.pools():\n"),),
    "staleclose": (edit(frontends, "recall_answered", "        turn.found |= event.given_back > 0\n",
                        "        turn.found |= event.given_back > 0\n"
                        "        if not turn.pending:\n"
                        "            from counting import rounds\n"
                        "            rounds.close(lead, desk, turn, 0.0)\n"),),
    "reuseround": (edit(rounds, "begin", "(lead.term << 32) | lead.rounds", "lead.rounds"),),
    "silent429": (edit(Counting, "_tick",
                       "rounds.refuse_unproven(self._own, desk, turn, Why.SILENT, turn.pending, now)",
                       "rounds.close(self._own, desk, turn, now)"),),
    "drainasused": (edit(rounds, "close", "    if draining:\n", "    if False:\n"),),
    "movedunasked": (edit(rounds, "begin", "in lead.ledger.charged(desk.pool)", "in lead.ledger.holders(desk.pool)"),),
    "moveddrainasused": (edit(rounds, "close", "in ledger.charged(pool)", "in ledger.draining(pool)"),),
    "precautionasused": (edit(rounds, "close", "    elif ledger.precautionary(pool):\n", "    elif False:\n"),),
    # ------------------------------------------------------------ 5: members
    "notable": (edit(workers, "joined", "sorted(lead.ledger.fences.items())", "()"),),
    "beforetable": (edit(admission.Authority, "missing", "if not self.joined:", "if False:"),),
    "leaverunning": (edit(Worker, "_leave_if_quiet", "self.draining and not self.runs and not self._left",
                          "self.draining and not self._left"),),
    "leavestarts": (edit(Worker, "_refusal", "    if self.draining:\n", "    if False:\n"),
                    edit(Worker, "_drain_self",
                         "    self._retire_all(\"the worker ends\", event.cause, now, asked=False)\n", "")),
    "fencegc": (edit(Ledger, "_shrink", "        del self.sessions[session]\n",
                     "        del self.sessions[session]\n        del self.fences[session.frontend]\n"),),
    # ------------------------------------------------------------ 6: fences and counts
    "nofence": (edit(Worker, "_counting", "            self.fences.raise_to(event.session)\n", ""),),
    "countearly": (edit(fencing.Fencing, "complete", "need <= self.reports.get(session, {}).keys()", "True"),),
    "noevidence": (edit(Ledger, "_count", "{run for run in runs if self.is_member(run.incarnation)}", "set()"),),
    "sumofreports": (edit(Ledger, "_shrink", "min(record.blocks[pool].size, len(ids))", "len(ids)"),),
    "firstpool": (edit(Ledger, "_shrink", "if run.pool == pool]",
                       "if run.pool == pool == next(iter(record.blocks))]"),),
    "endcount": (edit(Ledger, "_end",
                      "            if (run.invocation, run.pool, run.incarnation)\n"
                      "            != (command.invocation, command.pool, command.incarnation)\n",
                      "            if run != min(record.runs, key=str)\n"),),
    "givelate": (edit(Ledger, "_in_sequence", "if record is None or record.state is not SessionState.LIVE:",
                      "if record is None:"),),
    "oldreport": (edit(workers, "joined", "if known == event.incarnation]", "if False]"),),
    "retryunsure": (edit(invoke.FunctionInvoker, "_attempts",
                         "    outcome = await self._attempt(request, phases, request.request_id, fresh=False)\n",
                         "    from chassis.faults import Fault\n"
                         "    try:\n"
                         "        outcome = await self._attempt(request, phases, request.request_id, fresh=False)\n"
                         "    except Fault as fault:\n"
                         "        outcome = NotStarted(reason=\"UNKNOWN\", detail=fault.message)\n"),),
    "noack": (edit(workers, "joined", "if event.incarnation in record.need:", "if False:"),),
    # ------------------------------------------------------------ 7: authority and eviction
    "nocheck": (edit(admission.Authority, "missing", "if now >= self.until:", "if False:"),),
    "receipt": (edit(worker_peers.CountingLinks, "_hear", "until=sent + answer.renewed.authority_s",
                     "until=self._clock.monotonic() + answer.renewed.authority_s"),),
    "staleleader": (edit(workers, "handle", "lead.gathering.renewals.append(event)", "renew(lead, event, now)"),),
    "early": (edit(leadership.Timing, "evict_after_s", "(self.authority_s + timeout_cap_s + self.grace_s)",
                   "timeout_cap_s"),),
    "notimeout": (edit(leadership.Timing, "evict_after_s", "(self.authority_s + timeout_cap_s + self.grace_s)",
                       "self.authority_s"),),
    "nodrift": (edit(leadership.Timing, "evict_after_s", " * (1 + self.drift)", ""),),
    "noreset": (edit(Counting, "_change_leadership", "dict.fromkeys(members, now)", "dict.fromkeys(members, 0.0)"),),
    "nowatchdog": (edit(watchdog.Watchdog, "expired", "self.due is not None and now >= self.due", "False"),),
    "noinc": (edit(Worker, "_refusal", "if event.incarnation != self.incarnation:", "if False:"),),
    # ------------------------------------------------------------ 9: limits
    "oldonly": (edit(Ledger, "charge", "self.granted(pool) + self.crossing(pool)", "self.granted(pool)"),),
    "newonly": (edit(Ledger, "charge", "self.granted(pool) + self.crossing(pool)",
                     "self.granted(pool) + self.crossing(pool) - (pool.kind is PoolKind.UNRESERVED) * sum(\n"
                     "        max(n, 0) for x in self.account(pool.account).crossing.values() for n in x.values())"),),
    "chargeatack": (edit(Ledger, "_moved", "size if count == WHOLE else", "0 if count == WHOLE else"),),
    "fencednoxcharge": (edit(Ledger, "_moved", "size = self._size(session, rest)",
                             "size = self._size(session, rest) if self.is_live(session) else 0"),),
    "oldgengrant": (edit(Ledger, "may_hold", " or wish.generation != generation", ""),),
    "keepold": (edit(Frontend, "_freed", "    self._send_back(stock, 1, event.function, event.cause)\n",
                     "    stock.block.size += 1\n    self._serve(stock)\n"),),
    "nogen": (edit(limits, "answer_bound", "if late and now < binding.deadline:", "if False:"),),
    "putonmark": (edit(Ledger, "outstanding", "return late + self.draining(pool)", "return late"),),
    # ------------------------------------------------------------ 10: leaders
    "twice": (edit(Ledger, "_in_sequence", "if command.sequence <= record.applied:", "if False:"),),
    "oldanswer": (edit(Frontend, "_handle", "if event.link == self._link and event.stamp >= self._newest:",
                       "if event.link == self._link:"),),
}


def take_out(clause: str, patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone. Raises AssertionError where a line of the clause isn't found exactly once."""
    edits = CLAUSES[clause]
    for owner, name in dict.fromkeys((one.owner, one.name) for one in edits):
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for one in edits:
            if (one.owner, one.name) == (owner, name):
                found = source.count(one.line)
                assert found == 1, f"{function.__qualname__} has {one.line!r} {found} times: move the switch {clause}"
                source = source.replace(one.line, one.instead)
        made: dict[str, Any] = {}
        exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, made)
        patch.setattr(owner, name, made[name])
