"""Workers at the leader: joins, renewals, fences and the reports that turn a fenced session into a counted one.

A part of the leader's core (rules 5 to 7). Refuses to know who waits.
"""

from typing import assert_never

from counting import commands as c
from counting import messages as m
from counting.fencing import Ending, Proof
from counting.leadership import Leadership
from counting.sessions import SessionState
from counting.words import Incarnation, Session


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
            if lead.ledger.is_draining(session):  # one that is closed or counted needs no report any more
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
    for link in [link for link, known in lead.workers.items() if known == event.incarnation]:
        del lead.workers[link]  # what an older stream still carries is older than what this one will say
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
        link=renewal.link, number=renewal.number, authority_s=lead.timing.authority_s, grace_s=lead.timing.grace_s,
        cause=renewal.cause,
    ))


def is_heard(lead: Leadership, incarnation: Incarnation) -> bool:
    """Whether it joined on a stream that is open: one whose peer is gone is cut within seconds."""
    return incarnation in lead.workers.values()


def declare_dead(lead: Leadership, call: m.DeclareDeadCall) -> None:
    """Proof of death by an operator's word (rule 7). What a worker says itself counts more, unless he insists."""
    known = lead.version = max(lead.version, lead.ledger.version, call.version)
    if known < c.DECLARING:
        lead.do(m.AnswerTooOld(call=call.call, version=known, cause=call.cause))
    elif not call.force and is_heard(lead, call.incarnation):
        lead.do(m.AnswerHeard(call=call.call, cause=call.cause))
    else:
        lead.gathering.add(c.DeclareDead(incarnation=call.incarnation), call)


def declared(lead: Leadership, origin: m.Event | None, result: c.Declared) -> None:
    """It is told, in case that it lives; so is every frontend: nothing is to be started there any more."""
    lead.fencing.answered.pop(result.incarnation, None)
    lead.fencing.evicted[Proof.DECLARED] += result.changed
    cause = origin.cause if origin is not None else ""
    for link, incarnation in lead.workers.items():
        if incarnation == result.incarnation:
            lead.do(m.SendEvicted(link=link, cause=cause))
    for link in lead.links.values():
        lead.do(m.SendGone(link=link, incarnations=(result.incarnation,), cause=cause))
    if isinstance(origin, m.DeclareDeadCall):
        lead.do(m.AnswerDeclared(call=origin.call, changed=result.changed, cause=cause))


def fence_everywhere(lead: Leadership, session: Session, why: Ending, cause: str) -> None:
    lead.fencing.fenced[why] += 1
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
        if record.state is not SessionState.DRAINING or session in lead.fencing.counting:
            continue
        if not lead.fencing.complete(session, record.need):
            continue
        lead.fencing.counting.add(session)
        runs = lead.fencing.runs(session)
        step = c.PART_RUNS if lead.version > 1 else max(1, len(runs))
        parts = [runs[at:at + step] for at in range(0, len(runs), step)] or [()]
        for number, part in enumerate(parts, start=1):
            lead.gathering.add(
                c.CountBlocks(session=session, runs=part, first=number == 1, last=number == len(parts))
            )
