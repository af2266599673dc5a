"""The cluster in containers beside an embedded one: what replicated storage, certificates from placement, networks and
the regional endpoint cost.

    python -m benchmarks.containers [COUNT]

Both run at the same time on the same machine and are asked in turns, one client each: COUNT (200) warm invokes, then as
many new functions as a tenth of that: from CreateFunction to the first answer, and of that the first invoke, which is
cold, its code fetched. Then memory and CPU time at rest, by container, with the embedded cluster gone.
"""

import statistics
import sys
import time
from collections.abc import Mapping

from benchmarks.rig.client import Client
from benchmarks.rig.cluster import SOURCE, Cluster, archive
from benchmarks.rig.containers import Containers
from benchmarks.rig.machine import Others
from benchmarks.rig.processes import Usage, spent_s, usage
from benchmarks.rig.samples import percentile

RUNTIME = "python3.13"      # the one that the image has
MEMORY_LIMIT_MB = 2048.0
CPU_AIM_PERCENT = 25.0
SETTLED_S = 10.0
REST_S = 30.0
CONTAINERS, EMBEDDED = "containers", "embedded"


def ask(client: Client, name: str) -> float:
    """Seconds of one invoke."""
    answer = client.invoke(name, b"{}")
    assert "x-amz-function-error" not in answer.headers, answer.body
    return answer.elapsed_s


def warm(clients: Mapping[str, Client], count: int) -> None:
    for client in clients.values():
        client.create("warm", runtime=RUNTIME, archive=archive(SOURCE))
        ask(client, "warm")
    took: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(count):
        for name, client in clients.items():
            took[name].append(ask(client, "warm"))
    print(compared("warm invoke, one client", took))


def new(clients: Mapping[str, Client], count: int) -> None:
    """From nothing to the first answer: code that nobody has seen, each time."""
    whole: dict[str, list[float]] = {name: [] for name in clients}
    first: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(count):
        for name, client in clients.items():
            began = time.monotonic()
            client.create(f"new-{number}", runtime=RUNTIME, archive=archive(f"{SOURCE}# {number}\n"))
            first[name].append(ask(client, f"new-{number}"))
            whole[name].append(time.monotonic() - began)
    print(compared("cold invoke, code new", first))
    print(compared("CreateFunction to the first answer", whole))


def compared(title: str, took: Mapping[str, list[float]]) -> str:
    p50 = {name: statistics.median(values) * 1e3 for name, values in took.items()}
    p99 = {name: percentile(values, 0.99) * 1e3 for name, values in took.items()}
    return (
        f"{title:<36}" + "   ".join(f"{name} p50 {p50[name]:.1f} ms, p99 {p99[name]:.1f} ms" for name in took)
        + f"   = {p50[CONTAINERS] / p50[EMBEDDED]:.2f} x embedded"
    )


def rest(cluster: Containers) -> None:
    time.sleep(SETTLED_S)
    groups = cluster.groups()
    memory = {node: sum(map(usage, pids), Usage()) for node, pids in groups.items()}
    others = Others(cluster.pids)
    before = {node: sum(map(spent_s, pids)) for node, pids in groups.items()}
    began = time.monotonic()
    time.sleep(REST_S)
    span = time.monotonic() - began
    shares = {node: (sum(map(spent_s, pids)) - before[node]) / span * 100 for node, pids in groups.items()}
    total_mb = sum(memory.values(), Usage()).pss_kb / 1024
    print(
        f"at rest: {total_mb:.0f} MB PSS{met(total_mb, MEMORY_LIMIT_MB)}; CPU {sum(shares.values()):.1f} % of one core"
        f"{met(sum(shares.values()), CPU_AIM_PERCENT)}"
    )
    for node in sorted(groups):
        print(f"    {node:<20}{memory[node].pss_kb / 1024:7.1f} MB{shares[node]:7.2f} %")
    print(f"machine meanwhile: {others.told()}")


def met(value: float, limit: float) -> str:
    return f" (aim {limit:g}: {'met' if value <= limit else 'MISSED'})"


def main(count: int) -> None:
    with Containers() as cluster:
        with Cluster() as embedded:
            clients = {CONTAINERS: cluster.client(), EMBEDDED: embedded.client()}
            others = Others(lambda: [*cluster.pids(), *embedded.pids()])
            warm(clients, count)
            new(clients, max(1, count // 10))
            print(f"machine: {others.told()}")
            for client in clients.values():
                client.close()
        rest(cluster)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
