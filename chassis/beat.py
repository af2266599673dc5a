"""Periodic work of a host's processes at the same moments, so that a region at rest wakes up seldom.

A process that wakes for one heartbeat at a time meets cold caches each time, and so does whoever hears it: a dozen
heartbeats that come together cost the active placement half of what they cost one by one. Owns the moments: multiples
of the period on the clock of event loops, which starts when the host does. Refuses to know what is done then.
"""

import asyncio


def until_beat(now: float, period_s: float) -> float:
    """Seconds from ``now`` to the next beat but never less than a quarter of a period: a timer
    that was early makes no two."""
    wait_s = period_s - now % period_s
    return wait_s if wait_s >= period_s / 4 else wait_s + period_s


async def next_beat(period_s: float) -> None:
    """Sleeps until then: a quarter of a period at least, one and a quarter at most."""
    await asyncio.sleep(until_beat(asyncio.get_running_loop().time(), period_s))
