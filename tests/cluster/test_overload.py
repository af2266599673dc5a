"""Three times the capacity on a real cluster, for a few seconds; `python -m benchmarks.overload` does thirty.

No figure of time is asserted but the ten seconds within which everything has to work again.
"""

import asyncio
import json

from benchmarks.open_loop import OpenLoop
from benchmarks.rig.cluster import signed_invoke
from benchmarks.rig.processes import usage
from labda.state import State
from tests.cluster.cluster import REGION, call, until

ECHO = "def handler(event, context):\n    return event\n"
def signed(cluster, endpoint, name, body=b'{"n": 1}'):
    return signed_invoke(State(cluster.root).credentials(), endpoint, name, body, region=REGION).raw()


SLEEP = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'ran'\n"
CONCURRENCY = 12
CAPACITY_S, OVERLOAD_S, BACK_S = 1.5, 6.0, 10.0
GROWTH_MB_MAX = 100.0


def test_three_times_the_capacity_is_refused_with_reasons_and_leaves_nothing_behind(cluster, functions, client):
    name = functions.make(ECHO, Timeout=5)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=CONCURRENCY)
    call(client, name)
    endpoint = cluster.environment()["AWS_ENDPOINT_URL"]
    request = signed(cluster, endpoint, name)
    pids = cluster.pids()
    before = {node: usage(pid).pss_kb / 1024 for node, pid in pids.items()}
    load, end, peak = asyncio.run(overload(endpoint, request, pids))

    tally = load.tally
    statuses = tally.statuses("overload")
    assert set(statuses) <= {200, 429, 503}, tally.reasons()
    assert not tally.unexplained(), tally.unexplained()[:3]
    assert statuses[429] + statuses[503] > statuses[200] / 4, f"it was no overload: {statuses}"
    assert tally.recovered_after_s("afterwards", end, end + BACK_S) < BACK_S, tally.statuses("afterwards")
    grown = {node: peak[node] - before[node] for node in pids}
    assert max(grown.values()) < GROWTH_MB_MAX, grown
    assert cluster.pids() == pids, "a process ended"

    def at_rest():
        (row,) = [one for one in cluster.status()["functions"] if one["name"] == name]
        return row["running"] == 0

    until(at_rest, "every permit is back")


async def overload(endpoint, request, pids):
    host, port = endpoint.removeprefix("http://").rsplit(":", 1)
    load = OpenLoop(host, int(port))
    await load.closed(request, CONCURRENCY, CAPACITY_S)     # sandboxes are made
    capacity = await load.closed(request, CONCURRENCY, CAPACITY_S)
    _, end = await load.run({"overload": (request, 3 * capacity)}, OVERLOAD_S)
    peak = {node: usage(pid).pss_kb / 1024 for node, pid in pids.items()}
    await load.run({"afterwards": (request, capacity / 4)}, BACK_S)
    assert await load.finish(30.0), f"{load.under_way} requests got no answer"
    load.close()
    return load, end, peak


def test_a_client_that_goes_while_it_waits_holds_nothing(cluster, functions, client):
    """It hangs up while its sandbox is awaited; the function's only permit is there for the next."""
    name = functions.make(SLEEP)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    endpoint = cluster.environment()["AWS_ENDPOINT_URL"]
    request = signed(cluster, endpoint, name, json.dumps(0).encode())
    asyncio.run(hang_up(endpoint, request))
    until(lambda: served(client, name), "the next one runs", timeout_s=5.0)


async def hang_up(endpoint, request):
    host, port = endpoint.removeprefix("http://").rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await writer.drain()
    await asyncio.sleep(0.03)
    writer.close()


def served(client, name):
    try:
        return call(client, name, 0).payload == "ran"
    except client.exceptions.TooManyRequestsException:
        return False
