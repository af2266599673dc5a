"""What operators see of the ledger and of its leader: per pool, who holds what, who is waited for, and until when.

Reads, and changes nothing. Refuses to know the wire and wall clocks: spans are seconds from the time that it is given.
"""

from dataclasses import dataclass

from counting.leadership import Leadership
from counting.limits import binds_in_s, free_in_s
from counting.sessions import SessionState
from counting.words import Incarnation, Pool, Session
from counting.workers import is_heard


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderReport:
    """One session's block. `free_in_s`: of what is no frontend's any more, at the latest."""

    session: Session
    state: SessionState
    size: int
    in_use: int
    waits_for: tuple[str, ...] = ()
    free_in_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """`charged`: other pools' permits that count here as well. `outstanding`: (node, seconds until it binds there).
    `rounds`: recall rounds begun in this leadership. `round_waits_for`: frontends that the one on its way asked."""

    pool: Pool
    limit: int
    granted: int
    generation: int
    waiting: int
    charged: int
    holders: tuple[HolderReport, ...]
    outstanding: tuple[tuple[str, float], ...]
    refusals: dict[str, int]
    rounds: int
    round_waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofReport:
    """What this leadership did to learn which permits are free, by its parts' words. `rounds_open`: pools of which a
    round is on its way now. `uncounted`: sessions of frontends that are fenced and not yet counted, now."""

    rounds: int
    rounds_open: int
    fenced: dict[str, int]
    uncounted: int
    evicted: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """A host's worker. `authority_s`, `evicted_in_s`: how long it may start functions, and run them, at the latest if
    it is never renewed again. `owes`: frontends of which it hasn't said what it runs. `declared_at`: Unix seconds; then
    the incarnation is a dead one, and the spans are 0."""

    incarnation: Incarnation
    member: bool
    heard: bool = False
    authority_s: float = 0.0
    evicted_in_s: float = 0.0
    owes: tuple[str, ...] = ()
    declared_at: float = 0.0


def hosts(lead: Leadership, now: float) -> list[HostReport]:
    """By host: its member, and what was declared dead last, if that is another incarnation."""
    ledger, timing = lead.ledger, lead.timing
    found = []
    for host, member in ledger.members.items():
        incarnation = Incarnation(host=host, nonce=member.nonce)
        answered = lead.fencing.answered.get(incarnation, now)
        found.append(HostReport(
            incarnation=incarnation, member=True, heard=is_heard(lead, incarnation),
            authority_s=max(0.0, answered + timing.authority_s - now),
            evicted_in_s=max(0.0, answered + timing.evict_after_s(member.timeout_cap_s) - now),
            owes=tuple(sorted({
                session.frontend for session, record in ledger.sessions.items()
                if incarnation in record.need - lead.fencing.reports.get(session, {}).keys()
            })),
        ))
    found += [
        HostReport(incarnation=Incarnation(host=host, nonce=death.nonce), member=False, declared_at=death.at)
        for host, death in ledger.declared.items()
    ]
    return sorted(found, key=lambda report: (report.incarnation.host, not report.member))


def pools(lead: Leadership, account: str, now: float) -> list[PoolReport]:
    """Every pool, in order. `account` empty: of all accounts."""
    return [_pool(lead, pool, now) for pool in sorted(lead.ledger.pools()) if account in {"", pool.account}]


def _pool(lead: Leadership, pool: Pool, now: float) -> PoolReport:
    ledger, desk = lead.ledger, lead.desks.get(pool)
    return PoolReport(
        pool=pool, limit=ledger.limit(pool), granted=ledger.granted(pool), generation=ledger.generation(pool),
        waiting=len(desk.waiters) if desk else 0, charged=ledger.crossing(pool),
        holders=tuple(
            _holder(lead, pool, session, now) for session, record in sorted(ledger.sessions.items())
            if pool in record.blocks and record.blocks[pool].size
        ),
        outstanding=tuple((session.frontend, binds_in_s(lead, session, now)) for session in ledger.outstanding(pool)),
        refusals=dict(sorted(desk.refused.items())) if desk else {},
        rounds=desk.rounds if desk else 0,
        round_waits_for=tuple(sorted(s.frontend for s in desk.round.pending)) if desk and desk.round else (),
    )


def proofs(lead: Leadership) -> ProofReport:
    return ProofReport(
        rounds=lead.rounds, rounds_open=sum(desk.round is not None for desk in lead.busy.values()),
        fenced={why.value: count for why, count in lead.fencing.fenced.items()},
        uncounted=sum(record.state is SessionState.DRAINING for record in lead.ledger.sessions.values()),
        evicted={proof.value: count for proof, count in lead.fencing.evicted.items()},
    )


def _holder(lead: Leadership, pool: Pool, session: Session, now: float) -> HolderReport:
    record = lead.ledger.sessions[session]
    size = record.blocks[pool].size
    match record.state:
        case SessionState.LIVE:
            desk = lead.desks.get(pool)
            in_use = min(size, desk.in_use.get(session, 0)) if desk else 0  # told a moment ago, the size is of now
            return HolderReport(session=session, state=record.state, size=size, in_use=in_use)
        case SessionState.DRAINING:
            silent = record.need - lead.fencing.reports.get(session, {}).keys()
            waits_for, in_use = tuple(sorted(incarnation.host for incarnation in silent)), 0
        case SessionState.COUNTED:
            waits_for, in_use = (), size
    return HolderReport(
        session=session, state=record.state, size=size, in_use=in_use, waits_for=waits_for,
        free_in_s=free_in_s(lead, session, now),
    )
