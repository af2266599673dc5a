"""What can be done to a cluster: which deeds may cost requests, which give back, and what is away because of them.

Owns the kinds of deeds. Refuses to judge.

    kill      SIGKILL; started again at once
    hold      SIGKILL; stays away               release   started again
    restart   SIGTERM, drained, started again
    cut       off the AZs' network              heal
    stop      SIGSTOP                           continue
    strike    links are broken                  mend
    skew      a wall clock is moved             reset
    fill      a disk is full                    empty
    surge     more is asked for                 ease
"""

from collections.abc import Iterable

from labda.chaos.history import Fault, Record, of_type

TAKES = frozenset({"hold", "cut"})
GIVES_BACK = {"hold": "release", "cut": "heal", "stop": "continue", "strike": "mend", "skew": "reset",
              "fill": "empty", "surge": "ease"}
GIVES = frozenset(GIVES_BACK.values())
HITS = frozenset({"kill", "restart", *GIVES_BACK})      # may cost requests


def away(records: Iterable[Record], at: float) -> bool:
    """Whether a worker was held or cut off then."""
    gone: set[str] = set()
    for fault in of_type(records, Fault):
        if fault.at <= at and fault.action in TAKES:
            gone.update(fault.nodes)
        elif fault.at <= at and fault.action in GIVES:
            gone.difference_update(fault.nodes)
    return any(node.startswith("worker-") for node in gone)
