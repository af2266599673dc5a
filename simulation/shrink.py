"""A plan that fails made small: entries are taken away for as long as the same invariant is still violated.

Owns the search (delta debugging, Zeller and Hildebrandt 2002, over the plan's entries, the seed stays). Refuses to know
what a run is.
"""

from collections.abc import Callable, Sequence

from simulation.plan import Entry, Plan


def shrink(plan: Plan, fails: Callable[[Plan], bool], *, runs_max: int = 200) -> Plan:
    """The smallest plan that was found within so many runs; it fails. ``plan`` itself does."""
    left = runs_max

    def still(entries: Sequence[Entry]) -> bool:
        nonlocal left
        left -= 1
        return fails(plan.only(entries))

    entries = list(plan.entries)
    parts = 2
    while len(entries) > 1 and left > 0:
        size = -(-len(entries) // parts)
        chunks = [entries[at : at + size] for at in range(0, len(entries), size)]
        for chunk in chunks:
            gone = {id(entry) for entry in chunk}
            rest = [entry for entry in entries if id(entry) not in gone]
            if left > 0 and rest and still(rest):
                entries, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(len(entries), parts * 2)
    return plan.only(entries)
