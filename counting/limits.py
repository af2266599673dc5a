"""Changes of limits at the leader: told to every holder, answered when they bind everywhere (rule 9).

A part of the leader's core. Owns how long that may take where a part is silent. Refuses to know what the limits mean
for a grant (ledger.py).
"""

from typing import assert_never

from counting import commands as c
from counting import messages as m
from counting.leadership import Binding, Leadership
from counting.sessions import SessionState
from counting.words import Incarnation, Session


def ask(lead: Leadership, call: m.LimitCall) -> None:
    """What not every member of counting knows yet is refused."""
    if isinstance(call, m.SetProvisionedCall):
        lead.version = max(lead.version, lead.ledger.version, call.version)
        if lead.version < c.PROVISIONING:
            lead.do(m.AnswerTooOld(call=call.call, version=lead.version, cause=call.cause))
            return
    lead.gathering.add(_command(call), call)


def _command(call: m.LimitCall) -> c.Command:
    match call:
        case m.SetReservedCall(account=account, function=function, value=value, request=request):
            return c.SetReserved(account=account, function=function, value=value, request=request)
        case m.SetProvisionedCall(account=account, function=function, value=value, request=request):
            return c.SetProvisioned(
                account=account, function=function, qualifier=call.qualifier, value=value, request=request
            )
        case m.SetAccountLimitCall(account=account, limit=limit, request=request):
            return c.SetAccountLimit(account=account, limit=limit, request=request)
        case _:
            assert_never(call)


def changed(lead: Leadership, origin: m.Event | None, result: c.LimitSet, now: float) -> None:
    if result.changed:
        lead.forget_desks()
        for link in lead.links.values():
            for pool in result.pools:
                lead.send_generation(link, pool, origin.cause if origin else "")
    if isinstance(origin, m.LimitCall):
        lead.bindings.append(Binding(
            call=origin.call, pools=result.pools, generation=result.generation, changed=result.changed,
            deadline=now + lead.timing.put_s,
        ))


def refused(lead: Leadership, origin: m.Event | None, result: c.BelowFloor | c.AboveReservation) -> None:
    if not isinstance(origin, m.LimitCall):
        return
    match result:
        case c.BelowFloor(account_limit=limit, reserved_elsewhere=elsewhere, floor=floor):
            lead.do(m.AnswerBelowFloor(
                call=origin.call, account_limit=limit, reserved_elsewhere=elsewhere, floor=floor, cause=origin.cause
            ))
        case c.AboveReservation(reserved=reserved, provisioned=provisioned):
            lead.do(m.AnswerAboveReservation(
                call=origin.call, reserved=reserved, provisioned=provisioned, cause=origin.cause
            ))
        case _:
            assert_never(result)


def answer_bound(lead: Leadership, now: float) -> None:
    waiting: list[Binding] = []
    for binding in lead.bindings:
        late = {s: None for pool in binding.pools for s in lead.ledger.outstanding(pool)}
        if late and now < binding.deadline:
            waiting.append(binding)
            continue
        lead.do(m.AnswerLimit(
            call=binding.call, generation=binding.generation, changed=binding.changed,
            outstanding=tuple(m.Outstanding(node=s.frontend, wait_s=binds_in_s(lead, s, now)) for s in late),
        ))
    lead.bindings = waiting


def binds_in_s(lead: Leadership, session: Session, now: float) -> float:
    """Seconds until a change binds at a holder that hasn't acknowledged it, at the latest: silent, it is fenced, and
    counted when the last worker has said what it runs, or is evicted."""
    suspected = lead.heard.get(session, now) + lead.timing.suspect_s if lead.ledger.is_live(session) else now
    return max(0.0, suspected - now) + free_in_s(lead, session, now)


def free_in_s(lead: Leadership, session: Session, now: float) -> float:
    """Seconds until nothing of a session can run any more, at the latest: a worker that falls silent is evicted."""
    record = lead.ledger.sessions.get(session)
    if record is None:
        return 0.0
    match record.state:
        case SessionState.LIVE:
            on = {Incarnation(host=host, nonce=member.nonce) for host, member in lead.ledger.members.items()}
        case SessionState.DRAINING:
            on = record.need
        case SessionState.COUNTED:
            on = {run.incarnation for run in record.runs}
    evicted = [
        lead.fencing.answered.get(i, now) + lead.timing.evict_after_s(lead.ledger.members[i.host].timeout_cap_s)
        for i in sorted(on) if lead.ledger.is_member(i)
    ]
    return max(0.0, max(evicted, default=now) - now)
