"""Between the protocol (counting.proto) and the core's messages: translation and nothing else.

What a peer may say is checked here, so that the core meets only well-formed events. Refuses to know streams and state.
"""

from collections.abc import Iterable
from typing import assert_never

from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller
from counting import messages as m
from counting.commands import DECLARING, Run
from counting.core import CountingCore
from counting.desk import Why
from counting.sessions import SessionState
from counting.words import Incarnation, Pool, PoolKind, Session
from protos import common_pb2, counting_pb2


def bad(message: str) -> Fault:
    return Fault(message, code=FaultCode.INVALID, definite=True)


def pool_in(pool: common_pb2.Pool) -> Pool:
    """Raises Fault for a pool that names no account or that contradicts its kind."""
    try:
        kind = PoolKind(pool.kind)
    except ValueError:
        raise bad(f"a pool of kind {pool.kind}: there are UNRESERVED, RESERVED and PROVISIONED") from None
    if not pool.account or bool(pool.function) == (kind is PoolKind.UNRESERVED):
        name = f"{pool.account}/{pool.function}"
        raise bad(f"a pool names its account, and a function unless it is UNRESERVED: got {name}")
    return Pool(account=pool.account, kind=kind, function=pool.function, qualifier=pool.qualifier)


def pool_out(pool: Pool) -> common_pb2.Pool:
    kind = common_pb2.Pool.Kind.ValueType(int(pool.kind))
    return common_pb2.Pool(account=pool.account, function=pool.function, kind=kind, qualifier=pool.qualifier)


def session_in(session: common_pb2.Session) -> Session:
    return Session(frontend=session.frontend, epoch=session.epoch)


def session_out(session: Session) -> common_pb2.Session:
    return common_pb2.Session(frontend=session.frontend, epoch=session.epoch)


def frontend_event(link: int, message: counting_pb2.FrontendMessage, caller: Caller) -> m.Event:
    """Raises Fault (invalid, denied) for what a frontend may not say."""
    kind = message.WhichOneof("message")
    match kind:
        case "hello":
            hello = message.hello
            if hello.frontend != caller.node:
                raise Fault(
                    f"the certificate is {caller.node}'s, the hello {hello.frontend}'s",
                    code=FaultCode.DENIED, definite=True,
                )
            return m.Hello(
                link=link, frontend=hello.frontend, nonce=hello.nonce, epoch=hello.epoch,
                holdings=_holdings(hello.holdings),
            )
        case "ask":
            ask = message.ask
            return m.Ask(
                link=link, pool=pool_in(ask.pool), generation=ask.generation, waiting=tuple(ask.waiting),
                spare=ask.spare, seen=ask.seen,
            )
        case "give_back":
            back = message.give_back
            return m.GaveBack(
                link=link, sequence=message.sequence, pool=pool_in(back.pool), count=back.count, function=back.function
            )
        case "recall_answer":
            answer = message.recall_answer
            return m.RecallAnswered(
                link=link, round=answer.round, pool=pool_in(answer.pool), given_back=answer.given_back,
                in_use=answer.in_use,
            )
        case "generation_ack":
            ack = message.generation_ack
            return m.GenerationAcked(
                link=link, sequence=message.sequence, pool=pool_in(ack.pool), generation=ack.generation,
                moved=tuple(sorted(ack.moved.items())),
            )
        case "heartbeat":
            return m.Heartbeat(link=link, holdings=_holdings(message.heartbeat.holdings))
        case "ask_gone":
            asked = tuple(Incarnation(host=i.host, nonce=i.nonce) for i in message.ask_gone.incarnations)
            return m.GoneAsked(link=link, incarnations=asked)
        case "goodbye":
            return m.Goodbye(link=link, sequence=message.sequence)
        case None:
            raise bad("an empty message on a frontend's stream")
        case _:
            assert_never(kind)


def _holdings(said: Iterable[counting_pb2.FrontendMessage.Holding]) -> tuple[m.Holding, ...]:
    return tuple(m.Holding(pool=pool_in(holding.pool), in_use=holding.in_use) for holding in said)


def worker_events(link: int, message: counting_pb2.WorkerMessage, caller: Caller, who: Incarnation) -> list[m.Event]:
    """`who`: the incarnation that joined on this stream. Raises Fault (invalid, denied)."""
    kind = message.WhichOneof("message")
    match kind:
        case "join":
            join = message.join
            if join.incarnation.host != caller.host:
                raise Fault(
                    f"the certificate is of host {caller.host}, the join of {join.incarnation.host}",
                    code=FaultCode.DENIED, definite=True,
                )
            return [m.Join(link=link, incarnation=incarnation_of(message), timeout_cap_s=join.timeout_cap_s)]
        case "renew":
            return [m.Renew(link=link, number=message.renew.number)]
        case "fence_ack":
            runs = tuple(run for item in message.fence_ack.running for run in _runs(item, who))
            return [m.FenceAcked(link=link, session=session_in(message.fence_ack.session), runs=runs)]
        case "end":
            block = message.end.block
            return [m.Ended(
                link=link, session=session_in(block.session), pool=pool_in(block.pool),
                invocation=message.end.invocation, cause=message.end.invocation,
            )]
        case "leave":
            return [m.Leave(link=link)]
        case None:
            raise bad("an empty message on a worker's stream")
        case _:
            assert_never(kind)


def incarnation_of(message: counting_pb2.WorkerMessage) -> Incarnation:
    incarnation = message.join.incarnation
    return Incarnation(host=incarnation.host, nonce=incarnation.nonce)


def _runs(running: counting_pb2.Running, who: Incarnation) -> list[Run]:
    pool = pool_in(running.block.pool)
    return [
        Run(pool=pool, function=running.function, invocation=invocation, incarnation=who)
        for invocation in running.invocations
    ]


ToFrontend = (
    m.SendWelcome | m.SendGrant | m.SendRecall | m.SendThrottled | m.SendUnavailable | m.SendGeneration | m.SendFenced
    | m.SendGone
)
ToWorker = m.SendJoined | m.SendFence | m.SendRenewed | m.SendEvicted | m.SendEndApplied

RETRY_AFTER_S = 1


def to_frontend(effect: ToFrontend, version: int) -> counting_pb2.FrontendAnswer:
    answer = counting_pb2.FrontendAnswer
    match effect:
        case m.SendWelcome():
            return answer(welcome=answer.Welcome(
                session=session_out(effect.session), applied_sequence=effect.applied, version=version
            ))
        case m.SendGrant():
            return answer(grant=answer.Grant(
                pool=pool_out(effect.pool), generation=effect.generation, count=effect.count,
                applied_sequence=effect.applied, size=effect.size,
            ))
        case m.SendRecall():
            return answer(recall=answer.Recall(round=effect.round, pool=pool_out(effect.pool)))
        case m.SendThrottled():
            return answer(throttled=answer.Throttled(
                pool=pool_out(effect.pool), waiting=effect.waiting, limit=effect.limit, in_use=effect.in_use,
                round=effect.round,
            ))
        case m.SendUnavailable():
            return answer(unavailable=answer.Unavailable(
                pool=pool_out(effect.pool), waiting=effect.waiting, reason=effect.reason, silent=effect.silent,
                retry_after_s=RETRY_AFTER_S,
            ))
        case m.SendGeneration():
            return answer(generation=answer.Generation(
                pool=pool_out(effect.pool), generation=effect.generation, limit=effect.limit, gone=effect.gone
            ))
        case m.SendFenced():
            return answer(fenced=answer.Fenced())
        case m.SendGone():
            return answer(gone=answer.Gone(incarnations=[_incarnation_out(x) for x in effect.incarnations]))
        case _:
            assert_never(effect)


def to_worker(effect: ToWorker) -> counting_pb2.WorkerAnswer:
    answer = counting_pb2.WorkerAnswer
    match effect:
        case m.SendJoined():
            return answer(joined=answer.FenceTable(watermarks=[session_out(mark) for mark in effect.watermarks]))
        case m.SendFence():
            return answer(fence=answer.Fence(session=session_out(effect.session)))
        case m.SendRenewed():
            return answer(renewed=answer.Renewed(
                number=effect.number, authority_s=effect.authority_s, grace_s=effect.grace_s
            ))
        case m.SendEvicted():
            return answer(evicted=answer.Evicted())
        case m.SendEndApplied():
            return answer(end_applied=answer.EndApplied(invocation=effect.invocation))
        case _:
            assert_never(effect)


def pools_out(core: CountingCore, account: str, now: float, wall: float) -> counting_pb2.ListPoolsAnswer:
    """Every pool with its holders, for operators. `account` empty: all."""
    proofs = core.proofs
    answer = counting_pb2.ListPoolsAnswer(
        leads_since=wall + core.leads_since - now,
        members=[
            _incarnation_out(Incarnation(host=host, nonce=member.nonce))
            for host, member in sorted(core.ledger.members.items())
        ],
        proofs=counting_pb2.ListPoolsAnswer.Proofs(
            rounds=proofs.rounds, rounds_open=proofs.rounds_open, fenced=proofs.fenced, uncounted=proofs.uncounted,
            evicted=proofs.evicted,
        ),
    )
    outstanding = counting_pb2.SetReservedAnswer.Outstanding
    for report in core.report(account, now):
        status = answer.pools.add(
            pool=pool_out(report.pool), limit=report.limit, granted=report.granted, generation=report.generation,
            waiting=report.waiting, charged=report.charged, throttled=report.refusals.get(Why.LIMIT.word, 0),
            refusals=report.refusals,
            outstanding=[outstanding(node=node, until=wall + wait_s) for node, wait_s in report.outstanding],
            rounds=report.rounds, round_waits_for=report.round_waits_for,
        )
        for holder in report.holders:
            status.holders.add(
                session=session_out(holder.session), size=holder.size, in_use=holder.in_use,
                state=holder.state.name.lower(), waits_for=holder.waits_for,
                until=wall + holder.free_in_s if holder.state is not SessionState.LIVE else 0.0,
            )
    return answer


def hosts_out(core: CountingCore, now: float, wall: float) -> counting_pb2.ListHostsAnswer:
    """Every host that the ledger knows, for operators."""
    answer = counting_pb2.ListHostsAnswer(leads_since=wall + core.leads_since - now)
    for report in core.hosts(now):
        host = answer.hosts.add(
            incarnation=_incarnation_out(report.incarnation), member=report.member, heard=report.heard,
            owes=report.owes, declared_dead_at=report.declared_at,
        )
        if report.member:
            host.authority_until, host.evicted_by = wall + report.authority_s, wall + report.evicted_in_s
    return answer


def declared_out(effect: m.Effect, version: int) -> counting_pb2.DeclareDeadAnswer:
    answer = counting_pb2.DeclareDeadAnswer
    match effect:
        case m.AnswerNotLeader():
            return answer(not_leader=counting_pb2.NotLeader(term=effect.term, hint=effect.hint))
        case m.AnswerDeclared():
            return answer(declared=answer.Declared(changed=effect.changed))
        case m.AnswerHeard():
            return answer(refused=answer.Refused(reason=answer.Refused.HEARD, message=(
                "this incarnation is connected right now: it isn't dead"
            )))
        case m.AnswerTooOld():
            message = too_old(effect.version, DECLARING, version)
            return answer(refused=answer.Refused(reason=answer.Refused.UPGRADE, message=message))
        case _:
            raise AssertionError(f"a declaration was answered by {effect}")


def too_old(known: int, takes: int, version: int) -> str:
    return (
        f"a member of counting knows command version {known} only, this takes {takes}, and the leader knows {version}: "
        "upgrade every member, and see that all are up"
    )


def _incarnation_out(incarnation: Incarnation) -> common_pb2.Incarnation:
    return common_pb2.Incarnation(host=incarnation.host, nonce=incarnation.nonce)
