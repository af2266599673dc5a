"""Ranks a manager's workers for one new sandbox: a pure function, no draws.

Owns the strategy, in the words of container schedulers: constraints first (memory, runtime, health), then spread (one
function's sandboxes over AZs and hosts), then binpack (the fullest worker that still has room), so that big free
workers stay free for big sandboxes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that the manager leases."""

    worker: str
    az: str
    host: str
    usable: bool
    memory_free_mb: int
    runtimes: tuple[str, ...]
    memory_mb: int = 0
    memory_idle_mb: int = 0     # of sandboxes that nothing runs on


def rank(
    candidates: Iterable[Candidate], *, memory_mb: int, runtime: str, az: str, same: Mapping[str, int]
) -> tuple[tuple[str, ...], str]:
    """Workers, best first, and why there is none where there is none. ``same``: sandboxes of the function by worker."""
    workers = list(candidates)
    usable = [worker for worker in workers if worker.usable]
    if not usable:
        return (), f"none of {len(workers)} leased workers is serving: start a worker or wait for one"
    able = [worker for worker in usable if runtime in worker.runtimes]
    if not able:
        known = sorted({runtime for worker in usable for runtime in worker.runtimes})
        return (), f"no leased worker has the runtime {runtime}; there are {', '.join(known) or 'none'}"
    fitting = [worker for worker in able if worker.memory_free_mb >= memory_mb]
    if not fitting:
        most = max(able, key=lambda worker: worker.memory_free_mb)
        return (), (
            f"{memory_mb} MB fit on none of {len(able)} workers; {most.worker} has most, "
            f"{most.memory_free_mb} MB free: add workers or lower the function's memory"
        )
    in_az: dict[str, int] = {}
    on_host: dict[str, int] = {}
    for worker in workers:
        count = same.get(worker.worker, 0)
        in_az[worker.az] = in_az.get(worker.az, 0) + count
        on_host[worker.host] = on_host.get(worker.host, 0) + count
    fitting.sort(key=lambda worker: (
        in_az[worker.az], on_host[worker.host], worker.az != az, worker.memory_free_mb, worker.worker,
    ))
    return tuple(worker.worker for worker in fitting), ""
