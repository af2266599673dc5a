"""Edge test: three real processes, gRPC, TLS, kill -9 and restart from files."""


import pytest

from protos import counting_pb2, counting_rpc
from tests.counting.client import Client, Refused
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, frontend


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
        await client.welcomed(20.0)
    channel = processes.network(OPERATOR).connect(processes.addresses[clients[0].leader], service="counting")
    request = counting_pb2.SetAccountLimitRequest(account=A, limit=4)
    answer = await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=12)
    assert answer.changed
    await channel.close()
    for n in range(4):
        await clients[n % 2].take(REST)
    with pytest.raises(Refused, match="limit: 4"):
        await clients[0].take(REST)

    killed = clients[0].leader
    processes.kill(killed)
    clients[0].give(REST)
    await clients[1].take(REST, within_s=8.0)
    with pytest.raises(Refused, match="limit: 4"):
        await clients[0].take(REST, within_s=8.0)
    assert clients[0].leader != killed

    processes.launch(int(killed[-1]))
    second = clients[0].leader
    processes.kill(second)
    with pytest.raises(Refused, match="limit: 4"):
        await clients[0].take(REST, within_s=15.0)
    for client in clients:
        await client.stop()
    assert set(processes.close().values()) == {0}
