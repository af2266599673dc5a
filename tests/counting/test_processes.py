"""Edge test: three real processes, gRPC, TLS, kill -9 and restart from files."""

import asyncio

import pytest

from tests.counting.client import Client
from tests.counting.processes import Processes
from tests.counting.region import REST, frontend

SERVES_S = 60.0


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    try:
        yield started.start()
    finally:
        started.close()


async def test_three_processes_grant_refuse_and_survive_kill_9(processes):
    clients = [
        await Client(processes.network(frontend(n)), frontend(n).node, processes.addresses).start() for n in (1, 2)
    ]
    for client in clients:
        await client.welcomed(SERVES_S)
    await processes.set_limit(clients[0], 4)
    for n in range(4):
        await clients[n % 2].take(REST, within_s=SERVES_S)
    assert (await clients[0].refused(REST)).limit == 4

    killed = await led_by(clients[0])
    processes.kill(killed)
    clients[0].give(REST)
    await clients[1].take(REST, within_s=SERVES_S)
    assert (await clients[0].refused(REST)).limit == 4
    second = await led_by(clients[0])
    assert second != killed

    processes.launch(int(killed[-1]))
    processes.kill(second)
    assert (await clients[0].refused(REST)).limit == 4
    for client in clients:
        await client.stop()
    assert set(processes.close().values()) == {0}


async def led_by(client):
    """None leads for a moment where a follower lost patience with a busy one."""
    async with asyncio.timeout(SERVES_S):
        while not client.leader:
            await asyncio.sleep(0.02)
    return client.leader
