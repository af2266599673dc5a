"""Frontends at the leader: hellos and welcomes, wishes, recall answers, grants on their way out.

A part of the leader's core: decides what follows from a frontend's message. Refuses to know workers and rounds' proof.
"""

from typing import assert_never

from counting import commands as c
from counting import messages as m
from counting.leadership import Leadership
from counting.words import Session


def handle(lead: Leadership, event: m.Event, now: float) -> None:
    """Everything that a frontend says after its hello."""
    assert isinstance(
        event, m.Ask | m.GaveBack | m.RecallAnswered | m.GenerationAcked | m.Heartbeat | m.GoneAsked | m.Goodbye
    ), event
    session = lead.sessions.get(event.link)
    if session is None:
        return  # its hello is still on its way through the log, or it was told that its session is fenced
    if not lead.ledger.is_live(session):
        lead.do(m.SendFenced(link=event.link, cause=event.cause))
        return
    lead.heard[session] = now
    match event:
        case m.Heartbeat(holdings=holdings):
            for holding in holdings:
                lead.desk(holding.pool).use(session, holding.in_use)
        case m.GoneAsked(incarnations=incarnations):
            gone = tuple(x for x in incarnations if lead.ledger.is_gone(x))
            if gone:
                lead.do(m.SendGone(link=event.link, incarnations=gone, cause=event.cause))
        case m.Ask():
            ask(lead, session, event, now)
        case m.RecallAnswered():
            recall_answered(lead, session, event)
        case m.GaveBack(sequence=sequence, pool=pool, count=count, function=function):
            lead.gathering.add(
                c.GiveBack(session=session, sequence=sequence, pool=pool, count=count, function=function), event
            )
        case m.GenerationAcked(sequence=sequence, pool=pool, generation=generation, moved=moved):
            lead.gathering.add(
                c.AckGeneration(
                    session=session, sequence=sequence, pool=pool, generation=generation, moved=moved
                ),
                event,
            )
        case m.Goodbye(sequence=sequence):
            lead.gathering.add(c.CloseSession(session=session, sequence=sequence), event)
        case _:
            assert_never(event)


def hello(lead: Leadership, hello: m.Hello, now: float) -> None:
    live = lead.ledger.live(hello.frontend, hello.nonce)
    if live is not None:
        welcome(lead, hello, live, now)
    elif hello.epoch:
        lead.do(m.SendFenced(link=hello.link, cause=hello.cause))
    else:
        lead.gathering.add(c.OpenSession(frontend=hello.frontend, nonce=hello.nonce), hello)


def welcome(lead: Leadership, hello: m.Hello, session: Session, now: float) -> None:
    """The session's truth: limits first, then the size of each block, which makes up for grants lost on the way."""
    link = hello.link
    older = lead.links.get(session)
    if older is not None:
        lead.sessions.pop(older, None)  # what an older stream still carries is older than what this one will say
    lead.sessions[link] = session
    lead.links[session] = link
    lead.heard[session] = now
    record = lead.ledger.sessions[session]
    lead.do(m.SendWelcome(link=link, session=session, applied=record.applied, cause=hello.cause))
    for pool in lead.ledger.pools():
        if pool in record.blocks or lead.ledger.exists(pool):
            lead.send_generation(link, pool, hello.cause)
    for pool, block in record.blocks.items():
        lead.do(m.SendGrant(
            link=link, pool=pool, generation=block.generation, count=0, applied=record.applied, size=block.size,
            cause=hello.cause,
        ))
    for holding in hello.holdings:
        lead.desk(holding.pool).use(session, holding.in_use)
    for desk in lead.desks.values():
        if desk.round is not None and session in desk.round.pending:
            lead.do(m.SendRecall(link=link, round=desk.round.number, pool=desk.pool, cause=hello.cause))


def ask(lead: Leadership, session: Session, event: m.Ask, now: float) -> None:
    """A wish under an older generation is refused: its sender learns the newer one and wishes again (rule 9)."""
    pool = event.pool
    if event.generation != lead.ledger.generation(pool) or not lead.ledger.exists(pool):
        if pool in lead.desks:
            lead.desks[pool].ask(session, (), 0, 0, now)
        lead.send_generation(event.link, pool, event.cause)
        return
    desk = lead.busy[pool] = lead.desk(pool)
    desk.ask(session, event.waiting, event.spare, event.seen, now)


def recall_answered(lead: Leadership, session: Session, event: m.RecallAnswered) -> None:
    desk = lead.desk(event.pool)
    desk.use(session, event.in_use)
    turn = desk.round
    if turn is not None and turn.number == event.round:
        turn.pending.discard(session)
        turn.found |= event.given_back > 0


def granted(lead: Leadership, result: c.AcquireDone, now: float) -> None:
    for grant in result.grants:
        desk = lead.desk(grant.pool)
        desk.serve(grant.session, grant.waiting, lead.index, now)
        if grant.spare:
            desk.spare[grant.session] = 0  # one top-up per wish
        link = lead.links.get(grant.session)
        if link is not None:
            lead.do(m.SendGrant(
                link=link, pool=grant.pool, generation=grant.generation, count=grant.waiting + grant.spare,
                applied=grant.applied, size=grant.size,
            ))
    for wish in result.stale:
        lead.desk(wish.pool).ask(wish.session, (), 0, 0, now)
        link = lead.links.get(wish.session)
        if link is not None:
            lead.send_generation(link, wish.pool, "stale")
