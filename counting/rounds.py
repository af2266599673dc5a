"""What the leader grants and what it may refuse: wishes for the next batch, and recall rounds with their proof.

A part of the leader's core (rules 1 and 4). Refuses to know where messages come from.
"""

from collections.abc import Iterable

from counting import commands as c
from counting import messages as m
from counting.desk import PAUSE_S, Desk, Round, Why, top_up
from counting.leadership import Gathering, Leadership
from counting.words import Session

WISHES_MAX = 500
"""Most wishes of one pool in one batch: who is left over is in the next one."""

WISHES_BYTES_MAX = 256 * 1024
"""Of one batch, over all pools: a pool that doesn't fit is in the next one."""


def acquire(lead: Leadership, desk: Desk, gathering: Gathering) -> None:
    """All who wait, oldest first; top-ups only beyond them. The ledger grants what is free when it applies."""
    pool, ledger = desk.pool, lead.ledger
    generation, free = ledger.generation(pool), ledger.free(pool)
    waiting = desk.wishes()[:WISHES_MAX]
    comes_back = any(isinstance(x, c.GiveBack) and x.pool.account == pool.account for x in gathering.commands)
    spare = top_ups(lead, desk, free - len(desk.waiters))
    if not (waiting and (free > 0 or comes_back)) and not spare:
        return
    wishes = [
        c.Wish(session=session, pool=pool, generation=generation, waiting=count, spare=spare.pop(session, 0))
        for session, count in waiting
    ]
    wishes += [
        c.Wish(session=session, pool=pool, generation=generation, waiting=0, spare=count)
        for session, count in spare.items()
    ]
    command = c.Acquire(wishes=tuple(wishes))
    if gathering.wishes_bytes + c.weight(command) <= WISHES_BYTES_MAX:
        gathering.wishes_bytes += c.weight(command)
        gathering.add(command)


def top_ups(lead: Leadership, desk: Desk, free: int) -> dict[Session, int]:
    limit, sessions = lead.ledger.limit(desk.pool), len(lead.heard)
    if free <= 0:
        return {}
    wanted = {s: top_up(spare=n, free=free, limit=limit, sessions=sessions) for s, n in desk.spare.items()}
    return {session: count for session, count in wanted.items() if count > 0}


def begin(lead: Leadership, now: float) -> None:
    """Only between batches: a grant that is on its way through the log must reach its holder before the recall.

    Whose runs of another pool are charged here is asked as well: its answer comes behind what it gave back."""
    for desk in lead.busy.values():
        if not desk.waiters or desk.round is not None or lead.ledger.free(desk.pool) > 0 or now < desk.pause_until:
            continue
        lead.rounds += 1
        # The term makes the number one that no other leader uses, ever.
        number = (lead.term << 32) | lead.rounds
        holders = [session for session in lead.ledger.charged(desk.pool) if lead.ledger.is_live(session)]
        desk.begin(number, holders, now + lead.timing.recall_s)
        for session in holders:
            link = lead.links.get(session)
            if link is not None:
                lead.do(m.SendRecall(link=link, round=number, pool=desk.pool, cause=f"round {number}"))


def close(lead: Leadership, desk: Desk, turn: Round, now: float) -> None:
    """Everybody answered, their give-backs are applied, and a quorum confirmed us after that."""
    desk.round = None
    ledger, pool = lead.ledger, desk.pool
    if turn.found or ledger.free(pool) > 0:
        return  # something came back: it goes to the oldest, and who still waits gets a round of their own
    draining = [session for session in ledger.charged(pool) if ledger.is_draining(session)]
    if draining:
        refuse_unproven(lead, desk, turn, Why.DRAINING, draining, now)
    elif ledger.precautionary(pool):
        unsaid = ledger.unsaid(pool)
        gone = [session for session in unsaid if ledger.is_draining(session)]
        why = Why.DRAINING if gone else Why.PENDING if unsaid else Why.BESIDE
        refuse_unproven(lead, desk, turn, why, gone or unsaid, now)
    else:
        for session, ids in desk.refuse(turn.bound, Why.LIMIT).items():
            link = lead.links.get(session)
            if link is not None:
                lead.do(m.SendThrottled(
                    link=link, pool=pool, waiting=ids, limit=ledger.limit(pool), in_use=ledger.charge(pool),
                    round=turn.number, cause=f"round {turn.number}",
                ))


def refuse_unproven(
    lead: Leadership, desk: Desk, turn: Round, why: Why, waits_for: Iterable[Session], now: float
) -> None:
    """Only who has waited for a while: where a host or an AZ has just gone, permits come free all the time, and what
    isn't proved now soon is. The others stay, and are served by the next round."""
    desk.pause_until = now + PAUSE_S
    silent = tuple(sorted({session.frontend for session in waits_for}))
    for session, ids in desk.refuse(turn.bound, why, came_by=now - lead.timing.unproven_s).items():
        link = lead.links.get(session)
        if link is not None:
            lead.do(m.SendUnavailable(
                link=link, pool=desk.pool, waiting=ids, reason=why.reason, silent=silent, cause=f"round {turn.number}"
            ))
