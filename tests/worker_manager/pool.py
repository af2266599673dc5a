"""Short ways to say what happens to a manager."""

from worker_manager.config import PoolConfig
from worker_manager.core import ManagerCore
from worker_manager.messages import (
    Busy,
    FunctionKey,
    Gone,
    Granted,
    Idle,
    Inventory,
    Phases,
    Placed,
    Ready,
    RegionSeen,
    Release,
    Reserve,
    RoleGiven,
)

ME = "worker_manager-az1"


ACCOUNT = "000000000000"


def key(name="f", revision=1, account=ACCOUNT):
    return FunctionKey(account=account, function=name, version="$LATEST", revision=revision)


def reserve(cause, *, name="f", revision=1, frontend="frontend-az1", memory_mb=128, deadline_s=30.0, az="az1",
            runtime="python3.12", account=ACCOUNT, unsure=False):
    return Reserve(
        frontend=frontend, cause=cause, function=key(name, revision, account), memory_mb=memory_mb, runtime=runtime,
        deadline_s=deadline_s, az=az, sandbox=f"s-{cause}", unsure=unsure,
    )


def granted(worker, lease=1, *, soft_end_s=27000.0, hard_end_s=30600.0, drain_s=900.0, az_reserve=False):
    az = worker.split("-")[1]
    return Granted(
        worker=worker, address=f"{worker}:1", host=f"host-{worker}", az=az, lease=lease, soft_end_s=soft_end_s,
        hard_end_s=hard_end_s, drain_s=drain_s, az_reserve=az_reserve,
    )


def inventory(worker, lease=1, *, memory_mb=1024, sandboxes=()):
    taken_mb = sum(sandbox.memory_mb for sandbox in sandboxes)
    return Inventory(
        worker=worker, lease=lease, nonce=7, sandboxes=tuple(sandboxes), memory_mb=memory_mb,
        memory_free_mb=memory_mb - taken_mb, runtimes=("python3.12",), invoke_address=f"{worker}:2",
    )


def placed(cause, *workers, refusal=""):
    return Placed(sandbox=f"s-{cause}", workers=workers, refusal=refusal, cause=cause)


def ready(cause, worker="worker-az1"):
    return Ready(worker=worker, sandbox=f"s-{cause}", sequence=1, phases=Phases(code_ms=3, init_ms=2), cause=cause)


def busy(cause, sequence=1, worker="worker-az1"):
    return Busy(worker=worker, sandbox=f"s-{cause}", sequence=sequence)


def idle(cause, sequence=1, worker="worker-az1"):
    return Idle(worker=worker, sandbox=f"s-{cause}", sequence=sequence)


def new_core(*workers, memory_mb=1024, az_reserve=False, **settings):
    """An active manager that holds and has adopted ``workers``, at 0.0."""
    core = ManagerCore(node=ME, config=PoolConfig(**settings))
    feed(core, [
        (0.0, RoleGiven(active=True, term=1)),
        (0.0, RegionSeen(owners_version=1, owners=(ME,))),
        *((0.0, granted(worker, az_reserve=az_reserve)) for worker in workers),
        *((0.0, inventory(worker, memory_mb=memory_mb)) for worker in workers),
    ])
    return core


def feed(core, events):
    effects = []
    for now, event in events:
        effects += core.handle(event, now)
        core.check()
    return effects


def warm(core, cause="a", at=0.0, *, worker="worker-az1", **fields):
    """Makes one sandbox, s-<cause>, used once and idle: its sequence is 1."""
    return feed(core, [
        (at, reserve(cause, **fields)), (at, placed(cause, worker)), (at, ready(cause, worker)),
        (at, busy(cause, worker=worker)), (at, idle(cause, worker=worker)),
    ])


def release_of(cause, sequence=1, frontend="frontend-az1"):
    return Release(frontend=frontend, sandbox=f"s-{cause}", sequence=sequence)


def gone_of(sandbox, worker):
    return Gone(worker=worker, sandbox=sandbox, reason="destroyed")
