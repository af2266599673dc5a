"""Grants by three real counting processes over gRPC with mutual TLS on loopback, and what they cost at rest.

    python -m benchmarks.counting [SECONDS]

Runs the code of production with production's settings; the load comes from this one process. A grant here is one
request that waits: ask, quorum commit, grant, give-back.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from protos import counting_pb2, counting_rpc
from tests.counting.client import Client, Refused
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, frontend


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder)).start()
        clients: list[Client] = []
        try:
            for n in (1, 2, 3):
                network = processes.network(frontend(n))
                clients.append(await Client(network, frontend(n).node, processes.addresses).start())
            for client in clients:
                await client.welcomed(20.0)
            await at_rest(processes, seconds)
            for waiting in (1, 8, 64, 256):
                await grants(processes, clients, waiting, seconds)
            await refusals(processes, clients, seconds)
        finally:
            for client in clients:
                await client.stop()
            processes.close()


async def at_rest(processes: Processes, seconds: float) -> None:
    await asyncio.sleep(1.0)
    names = sorted(processes.running)
    before = {name: processes.cpu_s(name) for name in names}
    start = time.monotonic()
    await asyncio.sleep(max(seconds, 10.0))
    span = time.monotonic() - start
    shares = {name: (processes.cpu_s(name) - before[name]) / span * 100 for name in names}
    each = ", ".join(f"{name} {share:.2f} %" for name, share in shares.items())
    print(f"at rest (3 frontends connected): {sum(shares.values()):.2f} % of a core together ({each})")


async def grants(processes: Processes, clients: list[Client], waiting: int, seconds: float) -> None:
    """`waiting` requests at a time over all clients; each permit goes back at once: every request asks."""
    spans: list[float] = []
    end = time.monotonic() + seconds

    async def one(client: Client) -> None:
        while (start := time.monotonic()) < end:
            await client.take(REST)
            spans.append(time.monotonic() - start)
            client.hand_back(REST)

    before = sum(processes.cpu_s(name) for name in processes.running)
    start = time.monotonic()
    await asyncio.gather(*(one(clients[n % len(clients)]) for n in range(waiting)))
    span = time.monotonic() - start
    cpu = sum(processes.cpu_s(name) for name in processes.running) - before
    spans.sort()
    print(
        f"{waiting:4} waiting: {len(spans) / span:7.0f} grants/s, p50 {statistics.median(spans) * 1e3:.2f} ms, "
        f"p99 {spans[int(len(spans) * 0.99)] * 1e3:.2f} ms, counting {cpu / len(spans) * 1e6:.0f} us CPU per grant"
    )


async def refusals(processes: Processes, clients: list[Client], seconds: float) -> None:
    """A full pool of 10: each refusal is a recall round over three holders and a quorum commit."""
    channel = processes.network(OPERATOR).connect(processes.addresses[clients[0].leader], service="counting")
    request = counting_pb2.SetAccountLimitRequest(account=A, limit=10)
    await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=12)
    await channel.close()
    for n in range(10):
        await clients[n % 3].take(REST)
    spans: list[float] = []
    end = time.monotonic() + seconds
    while (start := time.monotonic()) < end:
        try:
            await clients[len(spans) % 3].take(REST)
        except Refused:
            spans.append(time.monotonic() - start)
    print(f"proven refusals, one at a time: p50 {statistics.median(spans) * 1e3:.2f} ms, {len(spans) / seconds:.0f}/s")


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
