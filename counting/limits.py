"""Changes of limits at the leader: told to every holder, answered when they bind everywhere (rule 9).

A part of the leader's core. Refuses to know what the limits mean for a grant (ledger.py).
"""


from counting import commands as c
from counting import messages as m
from counting.leadership import Binding, Leadership
from counting.words import reserved, unreserved


def changed(lead: Leadership, origin: m.Event | None, result: c.ReservedSet, now: float) -> None:
    pools = [unreserved(result.account)]
    if result.function:
        pools.append(reserved(result.account, result.function))
    if result.changed:
        for link in lead.links.values():
            for pool in pools:
                lead.send_generation(link, pool, origin.cause if origin else "")
    if isinstance(origin, m.SetReservedCall | m.SetAccountLimitCall):
        lead.bindings.append(Binding(
            call=origin.call, pools=tuple(pools), generation=result.generation, changed=result.changed,
            deadline=now + lead.timing.put_s,
        ))


def answer_bound(lead: Leadership, now: float) -> None:
    waiting: list[Binding] = []
    for binding in lead.bindings:
        late = {s: None for pool in binding.pools for s in lead.ledger.outstanding(pool)}
        if late and now < binding.deadline:
            waiting.append(binding)
            continue
        # What a silent holder runs ends by its workers' longest timeout, or with their eviction.
        cap = max((x.timeout_cap_s for x in lead.ledger.members.values()), default=0.0)
        until = lead.timing.evict_after_s(cap)
        lead.do(m.AnswerLimit(
            call=binding.call, generation=binding.generation, changed=binding.changed,
            outstanding=tuple(m.Outstanding(node=s.frontend, wait_s=until) for s in late),
        ))
    lead.bindings = waiting
