"""Every process killed with -9, one after the other: requests work again within seconds, and the process comes back.

How soon is printed, not asserted: on a busy machine a process takes as long to start as it takes.
"""

import os
import signal

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.cluster import call, until

NODES = (
    "frontend-az1-1", "frontend-az2-1", "frontend-az3-1", "counting-az1", "counting-az2", "counting-az3",
    "manager-az2", "manager-az3", "placement-az1", "placement-az2", "worker-az1-1", "worker-az2-1", "worker-az3-1",
)


@pytest.mark.parametrize("node", NODES)
def test_the_next_requests_work_and_the_process_comes_back(cluster, functions, client, node):
    name = functions.make("def handler(event, context):\n    return 'ok'\n")
    assert call(client, name).payload == "ok"
    victim, failures = cluster.pids()[node], []

    def served():
        try:
            return call(client, name).payload == "ok"
        except (ClientError, BotoCoreError) as error:
            failures.append(str(error))
            return False

    os.kill(victim, signal.SIGKILL)
    served_s = until(served, "a request works")
    back_s = until(lambda: cluster.pids().get(node) not in {None, victim}, f"{node} is started again")
    print(f"{node}: served after {served_s:.2f} s and {len(failures)} failures, back {back_s:.2f} s later")  # noqa: T201
    cluster.await_healthy()
    until(served, "requests work with all processes there")
