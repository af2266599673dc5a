"""How soon a cluster serves, and what it takes while nobody asks it anything.

    python -m benchmarks.rest [SECONDS]

`labda up` as a person types it, three AZs: time to "ready" and to the first answer, of a new cluster that deploys
examples/hello, and of one that is started again with the function deployed before; the median of three starts. Then
memory and CPU time at rest, over SECONDS (30), itemised by process. References in the same minute: one bare start of
the interpreter with its interface client, and how fast a busy loop runs.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rig import bare
from benchmarks.rig.cluster import ROOT, RUNTIME, SOURCE, Cluster
from benchmarks.rig.machine import Others, busy_loop
from benchmarks.rig.processes import Usage, files_kb, spent_s, usage

STARTS = 3
EXAMPLE = ROOT / "examples/hello"
START_AIM_S = 5.0
MEMORY_LIMIT_MB = 700.0
CPU_AIM_PERCENT = 5.0
SETTLED_S = 10.0        # what the last request left behind has been given back by then


def said_at(cluster: Cluster, word: str) -> float:
    """When the start printed its first line with this beginning, seconds since the command."""
    return next(at for at, line in cluster.said if line.startswith(word))


def starts() -> None:
    """Each kind three times; the machine's own work is over the same time."""
    fresh_ready, fresh_answer, again_ready, again_answer = [], [], [], []
    for _ in range(STARTS):
        with Cluster("--deploy", str(EXAMPLE)) as cluster:
            fresh_ready.append(said_at(cluster, "labda "))
            fresh_answer.append(said_at(cluster, "invoked"))
        with Cluster() as cluster:
            cluster.deploy("echo")
            cluster.down()
            began = time.monotonic()
            cluster.up()
            again_ready.append(said_at(cluster, "labda "))
            answer = cluster.api.invoke("echo", b"{}")
            again_answer.append(time.monotonic() - began)
            assert "x-amz-function-error" not in answer.headers, answer.body
    for title, ready, answered in (
        ("new, with --deploy", fresh_ready, fresh_answer), ("again, deployed before", again_ready, again_answer),
    ):
        print(
            f"{title:<24} ready after {statistics.median(ready):.2f} s, first answer after "
            f"{statistics.median(answered):.2f} s (slowest of {STARTS}: {max(answered):.2f}){verdict(answered)}"
        )


def verdict(answered: list[float]) -> str:
    return f"   aim {START_AIM_S:g} s: {'met' if statistics.median(answered) <= START_AIM_S else 'MISSED'}"


def reference() -> None:
    with tempfile.TemporaryDirectory(prefix="labda-bare-") as name:
        folder = Path(name)
        (folder / "app.py").write_text(SOURCE)
        took = [bare.starts(RUNTIME, folder, 1)[0] for _ in range(6)][1:]
    print(f"reference: bare start {statistics.median(took) * 1e3:.0f} ms, busy loop {busy_loop():.1f} M additions/s")


def memory(groups: dict[str, list[int]]) -> None:
    found = {group: sum(map(usage, pids), Usage()) for group, pids in groups.items()}
    whole = sum(found.values(), Usage())
    total_mb = whole.pss_kb / 1024
    print(
        f"memory at rest: {total_mb:.0f} MB PSS in {whole.processes} processes, {whole.anonymous_kb / 1024:.0f} of it "
        f"anonymous   limit {MEMORY_LIMIT_MB:g} MB: {'met' if total_mb <= MEMORY_LIMIT_MB else 'MISSED'}"
    )
    alone_mb = (whole.anonymous_kb + files_kb(pid for pids in groups.values() for pid in pids)) / 1024
    print(f"    {alone_mb:.0f} MB if no other process of the machine shared its files")
    for group, used in found.items():
        print(
            f"    {group:<28}{used.pss_kb / 1024:7.1f} MB   {used.threads:3} threads {used.descriptors:4} descriptors"
        )


def cpu(cluster: Cluster, seconds: float) -> None:
    groups = cluster.groups()
    others = Others(cluster.pids)
    before = {group: sum(map(spent_s, pids)) for group, pids in groups.items()}
    began = time.monotonic()
    time.sleep(seconds)
    span = time.monotonic() - began
    shares = {group: (sum(map(spent_s, pids)) - before[group]) / span * 100 for group, pids in groups.items()}
    total = sum(shares.values())
    print(
        f"CPU at rest: {total:.1f} % of one core over {span:.0f} s   aim {CPU_AIM_PERCENT:g} %: "
        f"{'met' if total <= CPU_AIM_PERCENT else 'MISSED'}"
    )
    for group, share in sorted(shares.items(), key=lambda share: -share[1]):
        print(f"    {group:<28}{share:7.2f} %")
    print(f"machine meanwhile: {others.told()}; load before {os.getloadavg()[1]:.1f} (5 min)")


def main(seconds: float) -> None:
    reference()
    starts()
    with Cluster() as cluster:
        cluster.deploy("echo")      # and invoked: one sandbox is idle, as it is after anybody tried anything
        time.sleep(SETTLED_S)
        memory(cluster.groups())
        cpu(cluster, seconds)
    reference()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
