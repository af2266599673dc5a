"""Frontends killed with -9 and stopped, and limits changed, under load on a real cluster: never a run too many.

How soon a permit is free is asserted in virtual time (tests/simulation/test_permits.py); here the evidence is the
functions' own stamps, and what the ledger says is polled and printed.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from typing import NamedTuple

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.cluster import call, until, until_some
from tests.cluster.ledger import STAMPED, most_at_once, opened_ledger, runs

KILLS = 10
LIMIT = 3
TIMEOUT_S = 30          # no run ends by it: what a run's time limit cuts off doesn't say when it ended
FREE_S = 60.0           # the deadline of a poll; the rule says 3 s until suspicion and 2 s more
STOPPED_S = 30.0        # past suspicion, and past everybody's patience with a peer that says nothing
PUT_S = 60.0            # the deadline of a client's wait; the rule says 10 s at most


@pytest.fixture(scope="module")
def ledger(cluster):
    with opened_ledger(cluster) as opened:
        yield opened


class Holder(NamedTuple):
    """A process that holds permits."""

    node: str
    epoch: int
    pid: int


class Load:
    """Threads that invoke until the block is left, each through a connection of its own."""

    def __init__(self, client, name, threads, seconds):
        self.statuses: Counter[int | str] = Counter()
        self.sent: dict[str, float] = {}    # by request id, of what was served: when it was asked, since boot
        self._client, self._name, self._seconds = client, name, seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number):
        dice = random.Random(number)
        while not self._stop.is_set():
            asked = since_boot()
            try:
                answer = call(self._client, self._name, dice.uniform(*self._seconds))
                self.sent[answer.response["ResponseMetadata"]["RequestId"]] = asked
                outcome: int | str = 200
            except ClientError as error:
                outcome = error.response["ResponseMetadata"]["HTTPStatusCode"]
            except BotoCoreError:
                outcome = "connection lost"
            with self._lock:
                self.statuses[outcome] += 1
            if outcome != 200:
                self._stop.wait(0.1)


def since_boot():
    """The clock that the function's stamps are of."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def quiet(ledger, name):
    until(lambda: ledger.pool(name).granted == 0, "after quiet nothing is granted (invariant 2)", timeout_s=FREE_S)


def test_ten_killed_frontends_never_give_a_permit_twice_nor_keep_one(cluster, functions, client, ledger):
    name = functions.make(STAMPED, Timeout=TIMEOUT_S)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=LIMIT)
    spans, killed = [], ""
    with Load(client, name, threads=9, seconds=(0.3, 1.5)) as load:
        for _ in range(KILLS):
            held = until_some(partial(_held_by_the_living, cluster, ledger, name), "a frontend holds permits")
            # The kill of one that holds much proves most; of equal ones not the same again.
            victim = max(held, key=lambda holder: (held[holder], holder.node != killed))
            killed = victim.node
            os.kill(victim.pid, signal.SIGKILL)
            spans.append(until(
                partial(_released, ledger, name, victim.node, victim.epoch),
                f"every permit of {victim.node}#{victim.epoch} is free", timeout_s=FREE_S,
            ))
        until(lambda: load.statuses[200] > KILLS, "requests are served")
        until(lambda: sum(holder.in_use for holder in ledger.pool(name).holders) == LIMIT, "all permits are in use")
    quiet(ledger, name)
    cluster.await_healthy()
    found = runs(cluster, name)
    print(f"{len(found)} runs, {dict(load.statuses)}, free after {', '.join(f'{s:.1f}' for s in spans)} s")  # noqa: T201
    assert most_at_once(found) == LIMIT, "never a fourth run, and the three were used"
    assert load.statuses["connection lost"] > 0, "no kill met a request"
    assert len(found) >= load.statuses[200]


def test_a_frontend_stopped_at_full_use_and_continued_counts_nothing_twice(cluster, functions, client, ledger):
    name = functions.make(STAMPED, Timeout=TIMEOUT_S)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=LIMIT)
    [stopped] = [p for p in cluster.processes("frontend") if p["node"] == "frontend-az2-1"]
    [other] = [p for p in cluster.processes("frontend") if p["node"] == "frontend-az3-1"]
    direct = cluster.client(endpoint=f"http://{stopped['http']}")
    elsewhere = cluster.client(endpoint=f"http://{other['http']}")
    try:
        with Load(direct, name, threads=8, seconds=(1.0, 2.5)) as late:
            until(lambda: ledger.holders(name).get((stopped["node"], _epoch(ledger, name, stopped["node"]))) == LIMIT,
                  "it is in full use")
            os.kill(stopped["pid"], signal.SIGSTOP)
            try:
                began = time.monotonic()
                with Load(elsewhere, name, threads=4, seconds=(0.5, 1.5)) as others:
                    free = until(
                        lambda: others.statuses[200] > 0, "its permits serve others", timeout_s=FREE_S,
                    )
                    time.sleep(max(0.0, began + STOPPED_S - time.monotonic()))  # the fault's own length
                    os.kill(stopped["pid"], signal.SIGCONT)
                    served = late.statuses[200]
                    until(lambda: late.statuses[200] > served, "it serves again, under another session")
            finally:
                os.kill(stopped["pid"], signal.SIGCONT)
        quiet(ledger, name)
        found = runs(cluster, name)
        refused = _refusals(cluster, stopped["node"])
        print(  # noqa: T201
            f"stopped {STOPPED_S:g} s: {len(found)} runs, late {dict(late.statuses)}, others {dict(others.statuses)}, "
            f"first elsewhere after {free:.1f} s, starts refused {dict(refused)}"
        )
        assert most_at_once(found) == LIMIT
        assert late.statuses.keys() <= {200, 429, 500, 503}, late.statuses
    finally:
        direct.close()
        elsewhere.close()


def _held_by_the_living(cluster, ledger, name):
    """How many permits each frontend holds that runs now, by process."""
    pids = cluster.pids()
    return {Holder(node, epoch, pids[node]): permits for (node, epoch), permits in ledger.holders(name).items()
            if node.startswith("frontend-") and node in pids}


def _released(ledger, name, node, epoch):
    """Whether nothing is left of what this frontend held up to then."""
    return not any(where == node and which <= epoch for where, which in ledger.holders(name))


def _refused_for_sure(client, name):
    """Never served; a 503 says that a holder was silent when it was asked for what it holds: it is asked again."""
    with pytest.raises(ClientError) as refused:
        call(client, name, 0)
    if refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503:
        return False
    assert "Rate Exceeded" in str(refused.value)
    return True


def _served_since(load, since):
    """Whether three requests were served that were sent later than this."""
    return sum(sent > since for sent in list(load.sent.values())) >= 3


def _epoch(ledger, name, node):
    return max((epoch for where, epoch in ledger.holders(name) if where == node), default=0)


def _refusals(cluster, node):
    """Starts that workers refused this frontend, by reason, from its own log."""
    lines = [json.loads(line) for line in (cluster.root / "logs" / f"{node}.log").read_text().splitlines()
             if line.startswith("{")]
    return Counter(line.get("reason") for line in lines if line.get("event") == "start refused")


def test_limits_change_under_load_and_bind_when_put_returns(cluster, functions, client, ledger):
    name = functions.make(STAMPED, Timeout=TIMEOUT_S)
    changes: list[tuple[float, float, int | None]] = []     # began, returned, limit, by the clock of the stamps
    frontends = [cluster.client(endpoint=f"http://{p['http']}") for p in cluster.processes("frontend")]
    try:
        before = frontends[0].get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
        with Load(client, name, threads=8, seconds=(0.1, 0.6)) as load:
            for number, value in enumerate([3, 1, 0, 5, 2, None, 0, 2]):
                at = frontends[number % 3]
                began = since_boot()
                if value is None:
                    at.delete_function_concurrency(FunctionName=name)
                else:
                    at.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=value)
                changes.append((began, since_boot(), value))
                assert changes[-1][1] - began < PUT_S, "Put returns after 10 s at most"
                kept = frontends[(number + 1) % 3].get_function_concurrency(FunctionName=name)
                assert kept.get("ReservedConcurrentExecutions") == value
                assert ledger.limit(name) == (value or 0)
                settings = frontends[(number + 2) % 3].get_account_settings()["AccountLimit"]
                assert settings["UnreservedConcurrentExecutions"] == before - (value or 0) == ledger.limit("")
                if value == 0:
                    for one in frontends:
                        until(partial(_refused_for_sure, one, name), "it is refused because of the limit")
                else:
                    until(partial(_served_since, load, changes[-1][1]), f"invokes run under {value}")
        quiet(ledger, name)
        found = runs(cluster, name)
        assert load.statuses.keys() <= {200, 429, 503}, load.statuses
        assert all(run.end < float("inf") for run in found), "a lowered limit interrupts nothing"
        judged = 0
        begins = [began for began, _, _ in changes]
        for (_, since, limit), until_then in zip(changes, [*begins[1:], float("inf")], strict=True):
            for run in found:
                # Asked after Put had returned: whoever was admitted before counts, wherever it runs.
                if limit is not None and load.sent.get(run.request, 0.0) > since and run.start < until_then:
                    judged += 1
                    assert most_at_once(found, since=run.start, until=run.start) <= limit, (limit, run)
        assert judged > 5
        refused = frontends[0].exceptions.InvalidParameterValueException
        with pytest.raises(refused, match=r"below its minimum value of \[100\]"):
            frontends[0].put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=901)
        print(f"{len(found)} runs, {dict(load.statuses)}")  # noqa: T201
    finally:
        for one in frontends:
            one.close()


def answer(cluster, *arguments):
    said = cluster.labda(*arguments)
    return said.stdout if said.returncode == 0 else ""


def test_the_command_shows_what_the_ledger_has(cluster, functions, client):
    name = functions.make(STAMPED, Timeout=TIMEOUT_S)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    with Load(client, name, threads=4, seconds=(1.0, 1.5)):
        def busy():
            [pool] = [pool for pool in cluster.told("limits")["pools"] if pool["function"] == name]
            return pool["running"] == 1 and pool["refusals"].get("limit", 0) > 0
        until(busy, "it runs, others are refused, and the command says so")
        said = until_some(lambda: answer(cluster, "limits"), "the command finds who leads the ledger")
    [line] = [line for line in said.splitlines() if line.startswith(name)]
    assert line.split()[1] == "1"
    assert " limit" in line
