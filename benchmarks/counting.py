"""Counting in figures: an admission from a block; grants by three real processes over gRPC with mutual TLS on loopback,
and what they cost at rest; the same load on three members of etcd, where a grant is one transaction; then failover
(`benchmarks.failover`) and an hour of churn in virtual time (`benchmarks.churn`).

    python -m benchmarks.counting [SECONDS] [--failovers N] [--churn MINUTES]

Runs the code of production with production's settings; the load comes from this one process. A grant here is one
request that waits: ask, quorum commit, grant, give-back. What asks, or comes back, in one turn of a frontend's event
loop goes in one message, as with a frontend. etcd gets one transaction per grant, which isn't undone. Both sync to disk
before they answer; both serve in turns, since other load on the machine comes and goes. Without etcd (`make stores`)
that part is left out, and says so. 0 leaves failover, or the churn, out.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks import churn, failover
from benchmarks.rig.machine import Others
from benchmarks.rig.processes import spent_s
from chassis.grpc_network import connect_foreign
from chassis.rpc import Channel
from frontend.permits import Block, unreserved
from protos import counting_pb2, counting_rpc, etcd_pb2, etcd_rpc
from tests.counting.client import Client, Refused
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, frontend
from tests.storage.servers import PROGRAMS, EtcdTrio

AGAINST = 64    # requests that wait at a time, where etcd is compared,
TURNS = 5       # so many times
CALLS, ROUNDS = 100_000, 7
CALL_NS_MAX = 1000.0


class Synced(EtcdTrio):
    """Members that sync what they write, as counting's do."""

    def command(self, name: str) -> list[str]:
        return [word for word in super().command(name) if word != "--unsafe-no-fsync"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Grants a second, and the servers' CPU time for one in microseconds: of the two, the one that is left alone by
    what else the machine does."""

    grants: float
    cpu_us: float


def block() -> None:
    """What the hot path pays: a start and an end, from a block that has room. Best of the rounds: the rest is noise."""
    held = Block(unreserved(A), epoch=1, generation=1)
    held.size = CALLS

    def nothing(_function: str) -> None: ...

    taken = given = call = float("inf")
    for _ in range(ROUNDS):
        call = min(call, _each_ns(nothing))
        taken = min(taken, _each_ns(held.try_take))
        given = min(given, _each_ns(held.give))
    verdict = "yes" if max(taken, given) <= CALL_NS_MAX else "NO"
    print(
        f"block: try_take {taken:.0f} ns, give {given:.0f} ns (at most {CALL_NS_MAX:.0f} each: {verdict}); a call that "
        f"does nothing takes {call:.0f} ns"
    )


def _each_ns(function: Callable[[str], object]) -> float:
    began = time.perf_counter_ns()
    for _ in range(CALLS):
        function("thumbnails")
    return (time.perf_counter_ns() - began) / CALLS


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
            for waiting in (1, 8, AGAINST, 256):
                await grants(processes, clients, waiting, seconds)
            await against_etcd(Path(folder) / "etcd", processes, clients, seconds)
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


async def grants(processes: Processes, clients: list[Client], waiting: int, seconds: float) -> Rate:
    """`waiting` requests at a time over all clients; each permit goes back at once: every request asks."""
    spans: list[float] = []

    async def one(client: Client) -> None:
        while (start := time.monotonic()) < end:
            await client.take(REST)
            spans.append(time.monotonic() - start)
            client.hand_back(REST)

    batches = await _batches(processes)
    before, own = sum(processes.cpu_s(name) for name in processes.running), time.process_time()
    end = (start := time.monotonic()) + seconds
    await asyncio.gather(*(one(clients[n % len(clients)]) for n in range(waiting)))
    span, own = time.monotonic() - start, time.process_time() - own
    cpu = sum(processes.cpu_s(name) for name in processes.running) - before
    batches = await _batches(processes) - batches
    return told(f"{waiting:4} waiting", spans, span, "counting", cpu, own, f", {len(spans) / batches:.1f} to a batch")


async def _batches(processes: Processes) -> float:
    """That the members proposed so far: each is one entry of the log, synced once by every member."""
    def read(address: str) -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5.0) as answer:
            return str(answer.read(), "utf-8")

    texts = [await asyncio.to_thread(read, processes.metrics[name]) for name in processes.running]
    found = (re.search(r"^labda_counting_batches_total (\S+)", text, re.MULTILINE) for text in texts)
    return sum(float(match[1]) for match in found if match)


def told(
    what: str, spans: list[float], span: float, server: str, cpu: float, own: float, more: str = ""
) -> Rate:
    """Prints one measurement."""
    spans.sort()
    print(
        f"{what}: {len(spans) / span:7.0f} grants/s, p50 {statistics.median(spans) * 1e3:.2f} ms, "
        f"p99 {spans[int(len(spans) * 0.99)] * 1e3:.2f} ms, CPU per grant: {server} {cpu / len(spans) * 1e6:.0f} us, "
        f"client {own / len(spans) * 1e6:.0f} us{more}"
    )
    return Rate(grants=len(spans) / span, cpu_us=cpu / len(spans) * 1e6)


async def against_etcd(folder: Path, processes: Processes, clients: list[Client], seconds: float) -> None:
    """First each member of etcd takes all of the load: the leader is the fastest. Then it and counting in turns."""
    if not (PROGRAMS / "etcd").exists():
        print("etcd: not installed, `make stores` gets it")
        return
    trio = Synced(folder)
    trio.start_all()
    try:
        await trio.ready()
        tls = trio.authorities.client("operator")
        channels = {
            name: connect_foreign(address, tls, name=name)
            for name, address in zip(trio.names, trio.addresses, strict=True)
        }
        rates = {name: await transactions(trio, name, channel, seconds) for name, channel in channels.items()}
        leader = max(rates, key=lambda name: rates[name].grants)
        others = Others(lambda: [
            process.pid for process in (*trio.processes.values(), *processes.running.values())
        ])
        ratios, cpu = [], []
        for _ in range(TURNS):
            theirs = await transactions(trio, leader, channels[leader], seconds)
            ours = await grants(processes, clients, AGAINST, seconds)
            ratios.append(ours.grants / theirs.grants)
            cpu.append(ours.cpu_us / theirs.cpu_us)
        for channel in channels.values():
            await channel.close()
        print(
            f"{AGAINST:4} waiting: counting grants {statistics.median(ratios):.2f} x what etcd does ({TURNS} turns, "
            f"{min(ratios):.2f} to {max(ratios):.2f}) at {statistics.median(cpu):.2f} x its CPU time per grant; "
            f"{others.told()}"
        )
    finally:
        trio.end()


async def transactions(trio: EtcdTrio, name: str, channel: Channel, seconds: float) -> Rate:
    spans: list[float] = []
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        while (start := time.monotonic()) < end:
            key = f"grants/{name}/{number}/{time.monotonic_ns()}".encode()
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


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counting")
    parser.add_argument("seconds", nargs="?", type=float, default=5.0, metavar="SECONDS", help="of each load")
    parser.add_argument("--failovers", type=int, default=failover.COUNT, metavar="N", help="leaders that are killed")
    parser.add_argument("--churn", type=int, default=60, metavar="MINUTES", help="of virtual time")
    options = parser.parse_args()
    block()
    uvloop.run(main(options.seconds))
    if options.failovers:
        uvloop.run(failover.main(options.failovers))
    if options.churn:
        churn.main(options.churn)


if __name__ == "__main__":
    run()
