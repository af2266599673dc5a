"""How long a leader that no majority answers goes on leading: less long than the others wait for it.

Owns this one relation, for guards.py that keeps it and for the config that refuses what would break it.
"""

HEAD_START_S = 0.07
"""By so much a leader gives up before a follower may stand for election. An answer was under way before it counted, and
a busy process looks at its clock late: neither is longer on a fast network, so this is no share of the spans."""


def fallback_s(election_min_s: float) -> float:
    """After so many seconds without an answer of a majority a leader stops leading (defect 7)."""
    return round(election_min_s - HEAD_START_S, 6)


def election_least_s(heartbeat_s: float) -> float:
    """`election_min_s` must be above this: three heartbeats pass before others stand for election, and two before a
    leader gives up."""
    return round(max(3 * heartbeat_s, 2 * heartbeat_s + HEAD_START_S), 6)
