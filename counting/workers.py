"""Workers at the leader: joins, renewals, fences and the reports that turn a fenced session into a counted one.

A part of the leader's core (rules 5 to 7). Refuses to know who waits.
"""

from typing import assert_never

from counting import commands as c
from counting import messages as m
from counting.leadership import Leadership
from counting.words import Session


def handle(lead: Leadership, event: m.Join | m.Renew | m.FenceAcked | m.Ended | m.Leave, now: float) -> None:
    if isinstance(event, m.Join):
        lead.gathering.add(
            c.JoinWorker(incarnation=event.incarnation, timeout_cap_s=event.timeout_cap_s), event
        )
        return
    incarnation = lead.workers.get(event.link)
    if incarnation is None:
        return  # not joined on this leader yet: it repeats what matters after the fence table
    match event:
        case m.Renew():
            lead.gathering.renewals.append(event)
        case m.FenceAcked(session=session, runs=runs):
            lead.fencing.report(session, incarnation, runs)
        case m.Ended(session=session, pool=pool, invocation=invocation):
            lead.fencing.ended(session, pool, invocation, incarnation)
            lead.gathering.add(
                c.EndOfInvocation(session=session, pool=pool, invocation=invocation, incarnation=incarnation),
                event,
            )
        case m.Leave():
            lead.gathering.add(c.LeaveWorker(incarnation=incarnation), event)
        case _:
            assert_never(event)


def joined(lead: Leadership, event: m.Join, now: float) -> None:
    lead.workers[event.link] = event.incarnation
    lead.fencing.answered[event.incarnation] = now
    marks = tuple(Session(frontend=f, epoch=e) for f, e in sorted(lead.ledger.fences.items()))
    lead.do(m.SendJoined(link=event.link, watermarks=marks, cause=event.cause))
    for session, record in lead.ledger.sessions.items():
        if event.incarnation in record.need:
            lead.do(m.SendFence(link=event.link, session=session, cause=event.cause))


def renew(lead: Leadership, renewal: m.Renew, now: float) -> None:
    """A quorum confirmed us since the renewal arrived, so no eviction by another leader overtook it (rule 7)."""
    incarnation = lead.workers.get(renewal.link)
    if incarnation is None or not lead.ledger.is_member(incarnation):
        lead.do(m.SendEvicted(link=renewal.link, cause=renewal.cause))
        return
    lead.fencing.answered[incarnation] = now
    lead.do(m.SendRenewed(
        link=renewal.link, number=renewal.number, authority_s=lead.timing.authority_s, cause=renewal.cause
    ))


def fence_everywhere(lead: Leadership, session: Session, cause: str) -> None:
    lead.heard.pop(session, None)
    for desk in lead.desks.values():
        desk.drop(session)
    link = lead.links.pop(session, None)
    if link is not None:
        lead.do(m.SendFenced(link=link, cause=cause))
    for worker in lead.workers:
        lead.do(m.SendFence(link=worker, session=session, cause=cause))


def count_reported(lead: Leadership) -> None:
    for session, record in lead.ledger.sessions.items():
        if not lead.ledger.is_draining(session) or session in lead.fencing.counting:
            continue
        if not lead.fencing.complete(session, record.need):
            continue
        lead.fencing.counting.add(session)
        lead.gathering.add(c.CountBlocks(session=session, runs=lead.fencing.runs(session)))
