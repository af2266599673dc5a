"""Which managers are active and which of them gets a worker: pure functions over the fleet.

Owns the policy. As many managers are active as the AZ with the fewest workers has workers, so that each can hold one
in every AZ; who is active stays so until it is gone, because moving a function means cold starts.
"""

from collections.abc import Iterable, Mapping, Sequence


def active_limit(workers_by_az: Mapping[str, int], managers_active_max: int) -> int:
    """How many managers may be active: at least one."""
    limit = max(1, min(workers_by_az.values(), default=1))
    return min(limit, managers_active_max) if managers_active_max else limit


def choose_active(current: Iterable[str], able: Sequence[str], keep: Iterable[str], limit: int) -> frozenset[str]:
    """Those of ``current`` that are still in ``keep``, filled up from ``able`` in its order up to ``limit``."""
    kept = set(keep)
    active = [manager for manager in sorted(current) if manager in kept]
    for manager in able:
        if len(active) >= limit:
            break
        if manager not in active:
            active.append(manager)
    return frozenset(active)


def choose_handover(managers: Sequence[str], held: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """(manager, AZ) of a worker that another of ``managers`` is to get; empty strings while the parts are fair.

    Fair: in no AZ does one hold two more than another does, nor over all AZs where an AZ allows to mend it; and who is
    none of ``managers`` holds nothing (granted by a placement that didn't know yet that another leads).
    """
    there: dict[tuple[str, str], int] = {}
    everywhere = dict.fromkeys(managers, 0)
    for manager, az in held:
        there[manager, az] = there.get((manager, az), 0) + 1
        everywhere[manager] = everywhere.get(manager, 0) + 1
    strangers = sorted((manager, az) for manager, az in there if manager not in managers)
    if strangers and managers:
        return strangers[0]
    for poor in sorted(managers, key=lambda name: (everywhere[name], name)):
        for (rich, az), count in sorted(there.items(), key=lambda entry: (-entry[1], entry[0])):
            ahead = count - there.get((poor, az), 0)
            if rich != poor and (ahead >= 2 or (ahead == 1 and everywhere[rich] - everywhere[poor] >= 2)):
                return rich, az
    return "", ""


def choose_manager(az: str, managers: Iterable[str], held: Iterable[tuple[str, str]]) -> str:
    """The manager that gets a free worker of ``az``: fewest workers there, then fewest at all, then by name.

    ``held`` are (manager, AZ) of all workers that are leased or about to be. Empty when there is no manager.
    """
    there: dict[str, int] = {}
    everywhere: dict[str, int] = {}
    for manager, place in held:
        everywhere[manager] = everywhere.get(manager, 0) + 1
        if place == az:
            there[manager] = there.get(manager, 0) + 1
    return min(managers, key=lambda name: (there.get(name, 0), everywhere.get(name, 0), name), default="")
