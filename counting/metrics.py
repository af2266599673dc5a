"""What a member of counting counts: permits by pool, who waits for them, fences, and the Raft group.

Owns names and help texts. The numbers are the core's, read when somebody asks, and what passes its driver. Of permits
only the leader speaks: its followers' ledgers lag, and who waits is known to the leader alone.
"""

from collections.abc import Callable

from chassis.metrics import Counts, Metrics, Numbers, Tally, bounded, tallied
from counting import messages as m
from counting.core import CountingCore
from counting.raft.member import Member
from counting.sessions import SessionState
from counting.words import Pool

_POOL = ("account", "function", "kind")


def measure(metrics: Metrics, core: CountingCore, raft: Callable[[], Member | None]) -> Tally:
    """Names what the core knows; what it returns has to see all that passes the core's driver."""
    tally = Tally()
    _raft(metrics, core, tally, raft)
    _permits(metrics, core, tally)
    _refusals(metrics, core, tally)
    _members(metrics, core, tally)
    return tally


def _raft(metrics: Metrics, core: CountingCore, tally: Tally, raft: Callable[[], Member | None]) -> None:
    def of(read: Callable[[Member], float]) -> Callable[[], float]:
        def number() -> float:
            member = raft()
            return read(member) if member is not None else 0.0
        return number

    metrics.gauge("labda_counting_leader", "1: this member leads the ledger.", of(lambda member: float(member.leads)))
    metrics.gauge("labda_counting_term", "Raft's term, as this member knows it.", of(lambda member: member.term))
    metrics.gauge("labda_counting_commit_index", "The last entry that this member knows to be committed.",
                  of(lambda member: member.committed))
    metrics.gauge("labda_counting_applied_index", "The last entry that this member's ledger contains.",
                  of(lambda member: member.index))
    metrics.gauge("labda_counting_log_entries_unapplied", "How far this member's ledger is behind what is committed.",
                  of(lambda member: member.committed - member.index))
    metrics.counter("labda_counting_leader_changes_total", "How often this member was elected.", tally.of(m.Led))
    metrics.counter("labda_counting_depositions_total", "How often this member lost its leadership, or heard of "
                    "another leader.", tally.of(m.Deposed))
    metrics.gauge("labda_counting_commands_waiting", "Commands for the next batch: one is on its way at a time.",
                  lambda: core.commands_waiting)
    metrics.counter("labda_counting_batches_total", "Batches of commands that this member proposed.",
                    tally.of(m.Propose))


def _permits(metrics: Metrics, core: CountingCore, tally: Tally) -> None:
    def by_pool(read: Callable[[Pool], float]) -> Callable[[], Numbers]:
        def numbers() -> Numbers:
            pools = core.ledger.pools() if core.leads else ()
            return bounded({(pool.account, pool.function, pool.kind.name.lower()): read(pool) for pool in pools})
        return numbers

    ledger = core.ledger
    metrics.gauge("labda_counting_permits_limit", "Permits that a pool may grant; function \"\": what no function has "
                  "reserved. On the leader.", by_pool(ledger.limit), _POOL)
    metrics.gauge("labda_counting_permits_granted", "Permits that frontends hold, in use or not. On the leader.",
                  by_pool(ledger.granted), _POOL)
    metrics.gauge("labda_counting_permits_in_use", "Of these, what runs, as frontends last said. On the leader.",
                  by_pool(lambda pool: sum(desk.in_use.values()) if (desk := core.desks.get(pool)) else 0), _POOL)
    metrics.gauge("labda_counting_permits_waiting", "Requests that wait for a permit. On the leader.",
                  by_pool(lambda pool: len(desk.waiters) if (desk := core.desks.get(pool)) else 0), _POOL)
    metrics.gauge("labda_counting_limit_changes_outstanding", "Changes of limits that don't bind everywhere yet, while "
                  "their callers wait.", lambda: core.changes_outstanding)
    grants = Counts([()])
    tally.on(m.SendGrant, lambda grant: grants.add(amount=grant.count))
    metrics.counter("labda_counting_grants_total", "Permits that this leader granted, one by one.", grants)
    given = Counts([()])
    tally.on(m.GaveBack, lambda back: given.add(amount=back.count))
    metrics.counter("labda_counting_give_backs_total", "Permits that frontends gave back to this leader.",
                    given)


def _refusals(metrics: Metrics, core: CountingCore, tally: Tally) -> None:
    refused = Counts([("throttled",), ("unproven",)])
    tally.on(m.SendThrottled, lambda answer: refused.add("throttled", amount=len(answer.waiting)))
    tally.on(m.SendUnavailable, lambda answer: refused.add("unproven", amount=len(answer.waiting)))
    metrics.counter("labda_counting_refusals_total", "Requests that got no permit: throttled was proved by a "
                    "round (429), unproven wasn't (503).", refused, ("reason",))
    metrics.counter("labda_counting_recall_rounds_total", "Recall rounds begun since this member leads.",
                    lambda: core.proofs.rounds)
    metrics.counter("labda_counting_recalls_total", "Recalls sent to frontends.", tally.of(m.SendRecall))


def _members(metrics: Metrics, core: CountingCore, tally: Tally) -> None:
    ledger = core.ledger
    metrics.gauge("labda_counting_sessions", "Frontends' sessions in this member's ledger, by state.",
                  lambda: tallied((record.state.name.lower() for record in ledger.sessions.values()),
                                  (state.name.lower() for state in SessionState)),
                  ("state",))
    metrics.gauge("labda_counting_workers", "Worker incarnations in this member's ledger.",
                  lambda: len(ledger.members))
    metrics.counter("labda_counting_fences_total", "Fences sent to workers.", tally.of(m.SendFence))
    metrics.counter("labda_counting_fences_acknowledged_total", "Fences that workers reported on.",
                    tally.of(m.FenceAcked))
    metrics.counter("labda_counting_sessions_fenced_total", "Sessions of frontends that were fenced at every worker "
                    "since this member leads, by why.",
                    lambda: {(why,): count for why, count in core.proofs.fenced.items()}, ("why",))
    metrics.counter("labda_counting_evictions_total", "Workers evicted since this member leads, by what proved that "
                    "they run nothing.",
                    lambda: {(proof.replace(" ", "_"),): count for proof, count in core.proofs.evicted.items()},
                    ("proof",))
    metrics.counter("labda_counting_renewals_total", "Renewals of workers' authority that this leader answered.",
                    tally.of(m.SendRenewed))
