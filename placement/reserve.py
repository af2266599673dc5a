"""Capacity for the loss of an AZ: whether what runs in one fits into the room of the others. Pure functions.

Owns the arithmetic. It is done for each manager by itself, because a function's sandboxes live on its own manager's
workers, and it counts workers that are leased and serving. An idle sandbox counts as room: its manager destroys it
where another needs that. Refuses to know what becomes of a margin: placement tells it, managers keep it
(``worker_manager.leases.reserve_missing_mb``).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from placement.ranking import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """What the loss of ``az`` leaves, in MB, at the manager that it leaves least; below 0: so much is missing."""

    az: str
    margin_mb: int
    manager: str


def margins(candidates: Iterable[Candidate]) -> dict[str, int]:
    """One manager's margin in MB by AZ: the others' room, less what runs there. Empty where it has workers in one AZ
    only: their loss is the loss of everything."""
    runs: dict[str, int] = {}
    room: dict[str, int] = {}
    for worker in candidates:
        if worker.usable:
            has_mb = worker.memory_free_mb + worker.memory_idle_mb
            room[worker.az] = room.get(worker.az, 0) + has_mb
            runs[worker.az] = runs.get(worker.az, 0) + worker.memory_mb - has_mb
    if len(room) < 2:
        return {}
    everywhere = sum(room.values())
    return {az: everywhere - room[az] - runs[az] for az in sorted(room)}


def tightest(by_manager: Iterable[tuple[str, Iterable[Candidate]]]) -> list[Margin]:
    """The region's margins by AZ: of each, the manager's that has least."""
    found: dict[str, Margin] = {}
    for manager, candidates in by_manager:
        for az, margin_mb in margins(candidates).items():
            if az not in found or margin_mb < found[az].margin_mb:
                found[az] = Margin(az=az, margin_mb=margin_mb, manager=manager)
    return [found[az] for az in sorted(found)]
