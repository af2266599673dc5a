"""Between protobuf and the core's words. Owns nothing but the mapping."""

from collections.abc import Iterable

from protos import common_pb2, counting_pb2, worker_pb2
from worker import messages as m
from worker.invocation import Result

_Event = worker_pb2.WorkerEvent
_Frame = worker_pb2.InvokeFrame

# ---------------------------------------------------------------- values


def function_id(function: common_pb2.FunctionId) -> m.FunctionId:
    return m.FunctionId(
        account=function.account, function=function.function, version=function.version, revision=function.revision
    )


def function_id_out(function: m.FunctionId) -> common_pb2.FunctionId:
    return common_pb2.FunctionId(
        account=function.account, function=function.function, version=function.version, revision=function.revision
    )


def incarnation_out(incarnation: m.Incarnation) -> common_pb2.Incarnation:
    return common_pb2.Incarnation(host=incarnation.host, nonce=incarnation.nonce)


def session(value: common_pb2.Session) -> m.Session:
    return m.Session(frontend=value.frontend, epoch=value.epoch)


def session_out(value: m.Session) -> common_pb2.Session:
    return common_pb2.Session(frontend=value.frontend, epoch=value.epoch)


def block(value: common_pb2.BlockId) -> m.Block:
    pool = value.pool
    return m.Block(
        session=session(value.session), account=pool.account, function=pool.function, kind=pool.kind,
        qualifier=pool.qualifier,
    )


def block_out(value: m.Block) -> common_pb2.BlockId:
    pool = common_pb2.Pool(
        account=value.account, function=value.function, kind=common_pb2.Pool.Kind.ValueType(value.kind),
        qualifier=value.qualifier,
    )
    return common_pb2.BlockId(session=session_out(value.session), pool=pool)


def running_out(running: tuple[m.Running, ...]) -> list[counting_pb2.Running]:
    return [
        counting_pb2.Running(block=block_out(of.block), function=of.function, invocations=of.invocations)
        for of in running
    ]


def ticket_out(ticket: m.Ticket) -> worker_pb2.CodeTicket:
    return worker_pb2.CodeTicket(
        sha256=ticket.sha256, size=ticket.size, expires=ticket.expires, signature=ticket.signature,
        addresses=ticket.addresses,
    )


# ---------------------------------------------------------------- managers


def order(message: worker_pb2.ManagerOrder, link: int) -> m.Event | None:
    """None: nothing that the core must know (a keepalive, or an order of a later release)."""
    lease = message.lease
    match message.WhichOneof("order"):
        case "adopt":
            adopt = message.adopt
            return m.Adopt(
                link=link, manager=adopt.manager, lease=adopt.lease, lasts_s=adopt.lasts_s,
                timeout_cap_s=adopt.timeout_cap_s or float("inf"), cause=adopt.manager,
            )
        case "create":
            return _create(message.create, link, lease)
        case "destroy":
            return m.Destroy(link=link, lease=lease, sandbox=message.destroy.sandbox, reason=message.destroy.reason)
        case "raise":
            order = getattr(message, "raise")
            return m.Raise(link=link, lease=lease, sandbox=order.sandbox, sequence=order.sequence, used=order.used)
        case "drain":
            return m.Drain(link=link, lease=lease)
        case "return":
            return m.Return(link=link, lease=lease)
        case _:
            return None


def _create(create: worker_pb2.ManagerOrder.Create, link: int, lease: int) -> m.Create:
    config, ticket = create.config, create.ticket
    settings = m.FunctionSettings(
        arn=config.arn, runtime=config.runtime, handler=config.handler, memory_mb=config.memory_mb,
        timeout_s=config.timeout_s, tmp_mb=config.tmp_mb or 512, code_sha256=config.code_sha256,
        code_size=config.code_size, region=config.region, log_format=config.log_format or "Text",
        log_group=config.log_group, environment=dict(config.environment),
    )
    return m.Create(
        link=link, lease=lease, sandbox=create.sandbox, function=function_id(create.function), settings=settings,
        ticket=m.Ticket(
            sha256=ticket.sha256, size=ticket.size, expires=ticket.expires, signature=ticket.signature,
            addresses=tuple(ticket.addresses),
        ),
        sequence=create.sequence, on_demand=create.on_demand, cause=create.cause,
    )


def phases_out(phases: m.ColdPhases, *, run_ms: float = 0.0) -> worker_pb2.ColdPhases:
    return worker_pb2.ColdPhases(
        code_ms=phases.code_ms, sandbox_ms=phases.sandbox_ms, runtime_ms=phases.runtime_ms, init_ms=phases.init_ms,
        run_ms=run_ms,
    )


def news_out(
    tell: m.TellManager, incarnation: m.Incarnation, runtimes: tuple[str, ...], invoke_address: str
) -> worker_pb2.WorkerEvent:
    news, lease = tell.news, tell.lease
    match news:
        case m.Inventory():
            return _Event(lease=lease, inventory=_Event.Inventory(
                lease=lease, incarnation=incarnation_out(incarnation), memory_mb=news.memory_mb,
                memory_free_mb=news.memory_free_mb, runtimes=runtimes, invoke_address=invoke_address,
                sandboxes=[_status_out(status) for status in news.sandboxes],
            ))
        case m.StaleLease():
            return _Event(lease=lease, stale_lease=_Event.StaleLease(highest=news.highest))
        case m.NoCapacity():
            return _Event(lease=lease, no_capacity=_Event.NoCapacity(
                sandbox=news.sandbox, reason=news.reason, memory_free_mb=news.memory_free_mb
            ))
        case m.CreateFailed():
            return _Event(lease=lease, create_failed=_Event.CreateFailed(
                sandbox=news.sandbox, error_type=news.error_type, message=news.message
            ))
        case m.Ready():
            return _Event(lease=lease, ready=_Event.Ready(
                sandbox=news.sandbox, sequence=news.sequence, phases=phases_out(news.phases)
            ))
        case m.Idle() | m.Busy():
            return uses_out(lease, [news])
        case m.Going() | m.Gone():
            return _Event(lease=lease, gone=_Event.Gone(
                sandbox=news.sandbox, reason=news.reason, going=isinstance(news, m.Going)
            ))
        case m.Raised():
            return _Event(lease=lease, raised=_Event.Raised(
                sandbox=news.sandbox, sequence=news.sequence, busy=news.busy, kept=news.kept
            ))
        case m.Returned():
            return _Event(lease=lease, returned=_Event.Returned())


def uses_out(lease: int, uses: Iterable[m.Idle | m.Busy]) -> worker_pb2.WorkerEvent:
    return _Event(lease=lease, uses=_Event.Uses(uses=[
        _Event.Use(
            sandbox=use.sandbox, sequence=use.sequence, invocation=use.invocation if isinstance(use, m.Busy) else ""
        )
        for use in uses
    ]))


def _status_out(status: m.SandboxStatus) -> worker_pb2.WorkerEvent.SandboxStatus:
    return _Event.SandboxStatus(
        sandbox=status.sandbox, function=function_id_out(status.function), sequence=status.sequence,
        state=status.state, invocation=status.invocation, memory_mb=status.memory_mb,
    )


# ---------------------------------------------------------------- frontends


def start(invocation: str, message: worker_pb2.InvokeFrame.Start, *, stream: int, now: float) -> m.StartAsked:
    reservation = message.reservation
    return m.StartAsked(
        stream=stream, invocation=invocation,
        incarnation=m.Incarnation(host=reservation.incarnation.host, nonce=reservation.incarnation.nonce),
        lease=reservation.lease, sandbox=reservation.sandbox, sequence=reservation.sequence,
        block=block(message.block), function=function_id(message.function), deadline=now + message.deadline_s,
        cause=invocation,
    )


def result_out(invocation: str, result: Result) -> worker_pb2.InvokeFrame:
    return _Frame(invocation=invocation, result=_Frame.Result(
        executed_version=result.executed_version, log_tail=result.log_tail, duration_ms=result.duration_ms,
        billed_ms=result.billed_ms, memory_peak_mb=result.memory_peak_mb, cold=result.cold,
        phases=phases_out(result.phases, run_ms=result.run_ms), status=result.status, error_type=result.error_type,
    ))
