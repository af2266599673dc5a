"""Which of the things that were done to a cluster last, and what is away at some instant because of them.

Owns the kinds of deeds. Refuses to judge.
"""

from collections.abc import Iterable

from labda.chaos.history import Fault, Record, of_type

TAKES = frozenset({"hold", "cut"})
GIVES = frozenset({"release", "heal"})


def away(records: Iterable[Record], at: float) -> bool:
    """Whether a worker was held or cut off then."""
    gone: set[str] = set()
    for fault in of_type(records, Fault):
        if fault.at <= at and fault.action in TAKES:
            gone.update(fault.nodes)
        elif fault.at <= at and fault.action in GIVES:
            gone.difference_update(fault.nodes)
    return any(node.startswith("worker-") for node in gone)
