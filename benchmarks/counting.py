"""Grants by three real counting processes over gRPC with mutual TLS on loopback, and what they cost at rest; the same
load on three members of etcd, where a grant is one transaction.

    python -m benchmarks.counting [SECONDS]

Runs the code of production with production's settings; the load comes from this one process. A grant here is one
request that waits: ask, quorum commit, grant, give-back. Both sync to disk before they answer. Without etcd (`make
stores`) that part is left out, and says so.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.rig.processes import spent_s
from chassis.grpc_network import connect_foreign
from chassis.rpc import Channel
from protos import counting_pb2, counting_rpc, etcd_pb2, etcd_rpc
from tests.counting.client import Client, Refused
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, frontend
from tests.storage.servers import PROGRAMS, EtcdTrio

AGAINST = 64    # requests that wait at a time, where etcd is compared


class Synced(EtcdTrio):
    """Members that sync what they write, as counting's do."""

    def command(self, name: str) -> list[str]:
        return [word for word in super().command(name) if word != "--unsafe-no-fsync"]


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
            rates = {
                waiting: await grants(processes, clients, waiting, seconds) for waiting in (1, 8, AGAINST, 256)
            }
            await refusals(processes, clients, seconds)
        finally:
            for client in clients:
                await client.stop()
            processes.close()
        await against_etcd(Path(folder) / "etcd", rates[AGAINST], seconds)


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


async def grants(processes: Processes, clients: list[Client], waiting: int, seconds: float) -> float:
    """`waiting` requests at a time over all clients; each permit goes back at once: every request asks."""
    spans: list[float] = []
    end = time.monotonic() + seconds

    async def one(client: Client) -> None:
        while (start := time.monotonic()) < end:
            await client.take(REST)
            spans.append(time.monotonic() - start)
            client.hand_back(REST)

    before, own = sum(processes.cpu_s(name) for name in processes.running), time.process_time()
    start = time.monotonic()
    await asyncio.gather(*(one(clients[n % len(clients)]) for n in range(waiting)))
    span, own = time.monotonic() - start, time.process_time() - own
    cpu = sum(processes.cpu_s(name) for name in processes.running) - before
    return told(f"{waiting:4} waiting", spans, span, "counting", cpu, own)


def told(what: str, spans: list[float], span: float, server: str, cpu: float, own: float) -> float:
    """Prints one measurement; grants a second."""
    spans.sort()
    print(
        f"{what}: {len(spans) / span:7.0f} grants/s, p50 {statistics.median(spans) * 1e3:.2f} ms, "
        f"p99 {spans[int(len(spans) * 0.99)] * 1e3:.2f} ms, CPU per grant: {server} {cpu / len(spans) * 1e6:.0f} us, "
        f"client {own / len(spans) * 1e6:.0f} us"
    )
    return len(spans) / span


async def against_etcd(folder: Path, ours: float, seconds: float) -> None:
    """Each member in turn takes all of the load: the leader's figure is the best of the three."""
    if not (PROGRAMS / "etcd").exists():
        print("etcd: not installed, `make stores` gets it")
        return
    trio = Synced(folder)
    trio.start_all()
    try:
        await trio.ready()
        tls = trio.authorities.client("operator")
        best = 0.0
        for name, address in zip(trio.names, trio.addresses, strict=True):
            channel = connect_foreign(address, tls, name=name)
            best = max(best, await transactions(trio, name, channel, seconds))
            await channel.close()
    finally:
        trio.end()
    print(f"{AGAINST:4} waiting: counting grants {ours / best:.2f} x what etcd does")


async def transactions(trio: EtcdTrio, name: str, channel: Channel, seconds: float) -> float:
    spans: list[float] = []
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        turn = 0
        while (start := time.monotonic()) < end:
            key, turn = f"grants/{name}/{number}/{turn}".encode(), turn + 1
            absent = etcd_pb2.Compare(key=key, target=etcd_pb2.Compare.MOD, mod_revision=0)
            grant = etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key, value=name.encode()))
            answer = await channel.call(
                etcd_rpc.TXN, etcd_pb2.TxnRequest(compare=[absent], success=[grant]), timeout_s=10.0
            )
            assert answer.succeeded, f"{key!r} was there before"
            spans.append(time.monotonic() - start)

    before, own = sum(spent_s(process.pid) for process in trio.processes.values()), time.process_time()
    start = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(AGAINST)))
    span, own = time.monotonic() - start, time.process_time() - own
    cpu = sum(spent_s(process.pid) for process in trio.processes.values()) - before
    return told(f"{AGAINST:4} waiting, {name}", spans, span, "etcd", cpu, own)


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
