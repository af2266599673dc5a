"""Limits: L run and the next is refused, whichever frontend it reaches; every refusal names its counter."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from tests.cluster.cluster import SETTLE_S, call, served, until

SLOW = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'ran'\n"
SPAN = """
import time, uuid
ME = uuid.uuid4().hex
def handler(event, context):
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    time.sleep(event)
    return ME, begun, time.clock_gettime(time.CLOCK_BOOTTIME)
"""


def decided(client, name, event):
    """The payload, or the refusal that says the limit is reached.

    Nobody knows whether it is while a holder of permits is silent: that is a 503, and asked again.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            return call(client, name, event).payload
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 503 or time.monotonic() > deadline:
                return error
            time.sleep(0.05)


def outcomes(clients, name, count, event=4.0):
    """``count`` invokes at once, spread over the clients: results and refusals."""
    together = threading.Barrier(count)

    def one(client):
        together.wait()
        return decided(client, name, event)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, [clients[i % len(clients)] for i in range(count)]))
    return [o for o in found if not isinstance(o, ClientError)], [o for o in found if isinstance(o, ClientError)]


def reason(error):
    return error.response.get("Reason")


@pytest.fixture(scope="module")
def frontends(cluster):
    """One client per frontend, at its own address."""
    made = [cluster.client(endpoint=f"http://{process['http']}") for process in cluster.processes("frontend")]
    assert len(made) == 3
    yield made
    for one in made:
        one.close()


def test_reserved_concurrency_is_a_ceiling_over_all_frontends(functions, client, frontends):
    name = functions.make(SLOW)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)
    ran, refused = outcomes(frontends, name, 3)
    assert ran == ["ran", "ran"], refused
    [error] = refused
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert error.response["Error"]["Code"] == "TooManyRequestsException"
    assert error.response["Error"]["Message"] == "Rate Exceeded."
    assert reason(error) == "ReservedFunctionConcurrentInvocationLimitExceeded"
    # What ran is free again, soon after its answer: the next invoke is served.
    assert served(client, name, 0).payload == "ran"


def test_detail_names_limit_value_counter_and_remedy(functions, client, cluster):
    name = functions.make(SLOW)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    ran, [error] = outcomes([client], name, 1)
    assert ran == []
    assert reason(error) == "ReservedFunctionConcurrentInvocationLimitExceeded"
    detail = json.dumps(error.response.get("Detail") or _raw_detail(cluster, name))
    assert "0" in detail
    assert name in detail
    said = cluster.labda("invoke", name)
    assert said.returncode == 4
    assert "Rate Exceeded." in said.stderr
    assert said.stderr.count("\n") == 1
    client.delete_function_concurrency(FunctionName=name)
    assert call(client, name, 0).payload == "ran"


def _raw_detail(cluster, name):
    """botocore keeps modelled members only: the member ``Detail`` is read from the wire."""
    from labda.api import FUNCTIONS, Api
    from labda.state import State

    state = State(cluster.root)
    api = Api(state.cluster()["endpoint"], state.credentials(), "us-east-1")
    try:
        answer = api._send("POST", f"{FUNCTIONS}/{name}/invocations", raw=b"{}")
    finally:
        api.close()
    assert answer.status == 429
    return answer.json()["Detail"]


def test_zero_binds_the_next_request_at_every_frontend(functions, client, frontends):
    name = functions.make(SLOW)
    for one in frontends:
        assert call(one, name, 0).payload == "ran"
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    for one in frontends:
        assert "Rate Exceeded" in str(decided(one, name, 0))


def test_concurrency_over_all_frontends(functions, frontends):
    """As many as asked for run at the same time, each in a sandbox of its own."""
    name = functions.make(SPAN, Timeout=60)
    for seconds in (2.0, 8.0, 32.0):    # it is no claim that nine sandboxes start within two seconds
        ran, refused = outcomes(frontends, name, 9, event=seconds)
        assert not refused
        if max(begun for _, begun, _ in ran) < min(ended for _, _, ended in ran):
            break
    assert max(begun for _, begun, _ in ran) < min(ended for _, _, ended in ran), "all nine at one instant"
    assert len({sandbox for sandbox, _, _ in ran}) == 9


def test_permits_come_back(functions, client, cluster):
    name = functions.make(SLOW)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=3)

    def free() -> bool:
        pool = cluster.pool(name)
        return bool(pool["in_use"] == 0 and pool["granted"] == 0)

    for _ in range(3):
        ran, refused = outcomes([client], name, 3, event=0)
        assert len(ran) == 3, refused
        # The answer comes before the END: until the runtime asked for its next event, the permit is taken.
        until(free, "the ledger has every permit back (invariant 2)")
