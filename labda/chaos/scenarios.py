"""The scenarios: what each does to a cluster, and what it promises about the requests that go on meanwhile.

Owns the table that `labda chaos list` prints. Invariants hold in every scenario and are judged in every one; a promise
says beyond them which requests may fail.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from labda.chaos.history import Promise, now
from labda.chaos.proxy import LinkFault
from labda.chaos.stage import ROLES, Stage

EMBEDDED, COMPOSE = "embedded", "compose"
BOTH = (EMBEDDED, COMPOSE)
SCALED_OUTAGE_S = 600.0     # of a cluster at time scale 1
COLD, WRITTEN = "chaos-cold", "chaos-written"   # functions that are known and not under load
COLD_ASKS = 3
WRITE_EVERY_S = 5.0
WRITES_AGAIN_S = 15.0
AFTERWARDS_S = 10.0     # of load, where the fault ends before the load does
LOOK_S = 0.5
KILL_EVERY_S = 10.0
HEALED_S = 2.0          # after a lost quorum is back
GOODPUT_S = 10.0        # after an overload
OVERLOAD = 3.0          # times the capacity
AFTER_OVERLOAD_S = 20.0
HOUR_S = 3600.0
SLOW = LinkFault(delay_s=0.1, bytes_per_s=100_000)
SLOW_TOLD = "between them 0.1 s each way, 100 kB/s"
RESET = LinkFault(reset=True)
RESET_EVERY_S = 3.0
HALF_OPEN = LinkFault(half_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``lasts_s``: how long the load goes on from the fault on (``--duration``). ``prepare`` runs before the load."""

    name: str
    does: str
    promises: str
    promise: Promise
    act: Callable[[Stage], Awaitable[None]]
    prepare: Callable[[Stage], Awaitable[None]] | None = None
    lasts_s: float = 20.0
    scaled: bool = False            # ``lasts_s`` is scaled like the cluster's leases
    targets: tuple[str, ...] = BOTH
    known: tuple[str, ...] = ()     # further functions, deployed beforehand and never invoked until the scenario does
    breakable: bool = False         # it breaks links or clocks of a cluster that was started with --breakable


NOTHING_FAILS = Promise(fails=False)
# The endpoint looks every 200 ms, and a check may just have passed.
IN_FLIGHT = Promise(notice_s=0.0)
NOTICED = Promise(notice_s=1.0)
STEADY = Promise(fails=False, leaders_per_min=1.0)


async def _worker_kill(stage: Stage) -> None:
    await stage.kill_agent(stage.rng.choice(stage.nodes("worker")).node)
    await stage.wait(stage.lasts_s)


async def _host_kill(stage: Stage) -> None:
    worker = stage.rng.choice(stage.nodes("worker"))
    await stage.hold([worker.node])
    await stage.wait(stage.lasts_s)


async def _frontend_kill(stage: Stage) -> None:
    await stage.kill([stage.rng.choice(stage.nodes("frontend")).node])
    await stage.wait(stage.lasts_s)


async def _manager_kill(stage: Stage) -> None:
    await stage.kill([stage.leading("worker_manager").node])
    await stage.wait(stage.lasts_s)


async def _placement_kill(stage: Stage) -> None:
    nodes = [node.node for node in stage.nodes("placement")]
    await stage.hold(nodes)
    await stage.wait(stage.lasts_s)
    await stage.release(nodes)
    await stage.all_serve()


async def _counting_kill(stage: Stage) -> None:
    await stage.kill([stage.leading("counting").node])
    await stage.wait(stage.lasts_s)


async def _counting_kills(stage: Stage) -> None:
    until = now() + stage.lasts_s
    while now() < until:
        await stage.kill([(await stage.leader("counting")).node])
        await stage.wait(max(0.0, min(KILL_EVERY_S, until - now())))


async def _counting_all_kill(stage: Stage) -> None:
    await stage.kill([node.node for node in stage.nodes("counting")])
    await stage.wait(stage.lasts_s)


async def _counting_stop(stage: Stage) -> None:
    await _stopped(stage, [stage.leading("counting").node])


async def _counting_quorum(stage: Stage) -> None:
    members = [node.node for node in stage.nodes("counting")]
    leader = stage.leading("counting").node
    others = sorted(set(members) - {leader})
    stage.rng.shuffle(others)
    await _stopped(stage, [leader, *others][:len(members) // 2 + 1])


async def _stopped(stage: Stage, nodes: list[str]) -> None:
    await stage.stop(nodes)
    await stage.wait(stage.lasts_s)
    await stage.go_on(nodes)
    await stage.all_serve()
    await _afterwards(stage)


async def _counting_deaf(stage: Stage) -> None:
    await _deaf(stage, stage.leading("counting").node)


async def _counting_deaf_follower(stage: Stage) -> None:
    leader = stage.leading("counting").node
    await _deaf(stage, stage.rng.choice([node.node for node in stage.nodes("counting") if node.node != leader]))


async def _deaf(stage: Stage, node: str) -> None:
    await stage.deafen(node)
    await _mended(stage, node)


async def _counting_cut(stage: Stage) -> None:
    node = stage.leading("counting").node
    await stage.isolate(node)
    await _mended(stage, node)


async def _mended(stage: Stage, node: str) -> None:
    await stage.wait(stage.lasts_s)
    await stage.mend([node])
    await stage.all_serve()
    await _afterwards(stage)


async def _counting_slow(stage: Stage) -> None:
    members = [node.node for node in stage.nodes("counting")]
    ways = [(one, other) for one in members for other in members if one != other]
    await stage.strike(members, SLOW, how=SLOW_TOLD, ways=ways)
    await stage.wait(stage.lasts_s)
    await stage.mend(members)
    await _afterwards(stage)


async def _counting_resets(stage: Stage) -> None:
    members = [node.node for node in stage.nodes("counting")]
    until = now() + stage.lasts_s
    while now() < until:
        await stage.strike(members, RESET, how="every connection is reset")
        await stage.mend(members)
        await stage.wait(max(0.0, min(RESET_EVERY_S, until - now())))
    await _afterwards(stage)


async def _frontend_half_open(stage: Stage) -> None:
    """Its links alone: requests reach it all the time."""
    node = stage.rng.choice(stage.nodes("frontend")).node
    dialled = [way for way in stage.ways([node]) if way[0] == node]
    await stage.strike([node], HALF_OPEN, how="counting's members see its connections end, it doesn't", ways=dialled)
    await _mended(stage, node)


async def _counting_clock(stage: Stage) -> None:
    node = stage.leading("counting").node
    await stage.skew(node, HOUR_S)
    await stage.wait(stage.lasts_s)
    await stage.reset_clock(node)
    await _afterwards(stage)


async def _small_disk(stage: Stage) -> None:
    """Of the member that will lead: it leads no more when its files have been moved, so that others have to go."""
    node = stage.rng.choice([node.node for node in stage.nodes("counting")])
    await stage.shrink(node)
    await stage.seat("counting", lambda leader: leader.node == node)


async def _counting_full_disk(stage: Stage) -> None:
    [node] = stage.small
    await stage.fill(node)
    await stage.wait(stage.lasts_s)
    await stage.empty(node)
    await stage.all_serve()
    await _afterwards(stage)


async def _overload(stage: Stage) -> None:
    await stage.surge(OVERLOAD)
    await stage.wait(min(AFTER_OVERLOAD_S, stage.lasts_s))


async def _frontends_kill(stage: Stage) -> None:
    frontends = [node.node for node in stage.nodes("frontend")]
    await stage.hold(stage.rng.sample(frontends, (len(frontends) + 1) // 2))
    await stage.wait(stage.lasts_s)


async def _gather(stage: Stage) -> None:
    """Brings the leaders into one AZ, as far as each service has a process there: that of the active manager."""
    az = stage.leading("worker_manager").az
    for service in ("placement", "counting"):
        if not stage.nodes(service, az=az):
            continue
        await stage.seat(service, lambda leader: leader.az == az)


async def _az_loss(stage: Stage) -> None:
    await _lose(stage, stage.leading("worker_manager").az)


async def _az_loss_other(stage: Stage) -> None:
    leading = {stage.leading(service).az for service in ROLES}
    others = [az for az in stage.azs if az not in leading] or [
        az for az in stage.azs if az != stage.leading("worker_manager").az
    ]
    await _lose(stage, stage.rng.choice(others))


async def _lose(stage: Stage, az: str) -> None:
    await stage.hold(stage.everything(az=az))
    await stage.wait(stage.lasts_s)


async def _afterwards(stage: Stage) -> None:
    """What comes back may do harm as well."""
    await stage.wait(min(AFTERWARDS_S, stage.lasts_s))


async def _az_cut(stage: Stage) -> None:
    az = stage.rng.choice(stage.azs)
    await stage.cut(az)
    await stage.wait(stage.lasts_s)
    await stage.heal(az)
    await stage.all_serve()
    await _afterwards(stage)


async def _etcd_kill(stage: Stage) -> None:
    await stage.kill([stage.rng.choice(stage.members("etcd"))])
    await stage.wait(stage.lasts_s)


async def _nats_kill(stage: Stage) -> None:
    await stage.kill([stage.rng.choice(stage.members("nats"))])
    await stage.wait(stage.lasts_s)


async def _stores_away(stage: Stage) -> None:
    """Of each store only a minority is left. Meanwhile writes, and cold invokes of a function that never ran."""
    nodes = [
        node for store in ("etcd", "nats") for members in [stage.members(store)]
        for node in members[:len(members) // 2 + 1]
    ]
    await stage.hold(nodes)
    until = now() + stage.lasts_s
    await stage.wait(min(5.0, stage.lasts_s / 2))
    for _ in range(COLD_ASKS):
        stage.load.ask(COLD)
    while now() < until:
        await stage.write(WRITTEN)
        await stage.wait(max(0.0, min(WRITE_EVERY_S, until - now())))
    await stage.release(nodes)
    await stage.all_serve()
    deadline = now() + WRITES_AGAIN_S
    while (await stage.write(WRITTEN)).status >= 300 and now() < deadline:
        await stage.wait(LOOK_S)
    await _afterwards(stage)


async def _rolling_restart(stage: Stage) -> None:
    for az in stage.azs:
        await stage.restart(stage.everything(az=az))
        await stage.all_serve()
        await stage.wait(stage.lasts_s / len(stage.azs))


async def _power_cut(stage: Stage) -> None:
    nodes = stage.everything()
    stage.load.pause()      # what is in flight is lost; nobody asks a cluster that isn't there
    await stage.hold(nodes)
    await stage.release(nodes)
    await stage.all_serve()
    stage.load.resume()
    await stage.wait(stage.lasts_s)


SCENARIOS = {scenario.name: scenario for scenario in (
    Scenario(
        name="worker-kill", act=_worker_kill, promise=IN_FLIGHT,
        does="SIGKILL to a worker's agent; its spawner ends its sandboxes and starts another agent",
        promises="only what was in flight there fails, within 5 s",
    ),
    Scenario(
        name="host-kill", act=_host_kill, promise=IN_FLIGHT,
        does="SIGKILL to a worker's agent and spawner, its sandboxes with them; it stays away",
        promises="only what was in flight there fails, within 5 s; no new worker is needed",
    ),
    Scenario(
        name="frontend-kill", act=_frontend_kill, promise=NOTICED,
        does="SIGKILL to a frontend",
        promises="only what was in flight there fails, and what arrived there before the endpoint noticed (1 s)",
    ),
    Scenario(
        name="manager-kill", act=_manager_kill, promise=Promise(fails=False, warm_share=0.9),
        does="SIGKILL to the active manager; a peer adopts its workers with their sandboxes",
        promises="no request fails; 5 s later at least 90 % of the runs are warm",
    ),
    Scenario(
        name="placement-kill", act=_placement_kill, promise=NOTHING_FAILS, lasts_s=SCALED_OUTAGE_S, scaled=True,
        does="SIGKILL to every placement; they stay away for 10 min, scaled as the cluster's leases are",
        promises="no request fails",
    ),
    Scenario(
        name="counting-kill", act=_counting_kill, promise=NOTHING_FAILS,
        does="SIGKILL to the leader of counting",
        promises="no request fails",
    ),
    Scenario(
        name="counting-kills", act=_counting_kills, promise=NOTHING_FAILS, lasts_s=180.0,
        does="SIGKILL to whichever member leads counting, every 10 s for 3 min",
        promises="no request fails",
    ),
    Scenario(
        name="counting-all-kill", act=_counting_all_kill, promise=NOTHING_FAILS,
        does="SIGKILL to every member of counting at the same moment; they are started again",
        promises="no request fails, every limit is there",
    ),
    Scenario(
        name="counting-stop", act=_counting_stop, promise=STEADY, lasts_s=8.0, targets=(EMBEDDED,),
        does="SIGSTOP to the leader of counting for 8 s; then it continues",
        promises="no request fails; one change of the leader",
    ),
    Scenario(
        name="counting-quorum", act=_counting_quorum, lasts_s=60.0, targets=(EMBEDDED,),
        promise=Promise(fails=False, refuses=(503,), healed_s=HEALED_S),
        does="SIGSTOP to a majority of counting, its leader too, for 60 s; then they continue",
        promises="permits that are held serve on; a request beyond them gets a 503 that says why and when to come "
                 "again; 2 s after they continue none does",
    ),
    Scenario(
        name="counting-deaf", act=_counting_deaf, promise=STEADY, lasts_s=60.0, targets=(EMBEDDED,), breakable=True,
        does="the leader of counting hears nobody for 60 s, and is heard",
        promises="no request fails; at most one change of the leader per minute",
    ),
    Scenario(
        name="counting-deaf-follower", act=_counting_deaf_follower, promise=STEADY, lasts_s=60.0, targets=(EMBEDDED,),
        breakable=True,
        does="another member of counting hears nobody for 60 s, and is heard",
        promises="as counting-deaf",
    ),
    Scenario(
        name="counting-cut", act=_counting_cut, promise=STEADY, lasts_s=20.0, targets=(EMBEDDED,), breakable=True,
        does="the leader of counting is cut off from members, frontends and workers for 20 s",
        promises="as counting-deaf",
    ),
    Scenario(
        name="counting-slow", act=_counting_slow, promise=STEADY, targets=(EMBEDDED,), breakable=True,
        does="messages between counting's members take 0.1 s, at most 100 kB/s, for 20 s",
        promises="as counting-deaf",
    ),
    Scenario(
        name="counting-resets", act=_counting_resets, promise=STEADY, targets=(EMBEDDED,), breakable=True,
        does="every connection of counting's members is reset, every 3 s for 20 s",
        promises="as counting-deaf",
    ),
    Scenario(
        name="frontend-half-open", act=_frontend_half_open, targets=(EMBEDDED,), breakable=True,
        promise=Promise(fails=False, refuses=(429, 503), healed_s=GOODPUT_S),
        does="counting sees the connections of a frontend end, which isn't told, for 20 s",
        promises="a request may be refused with a reason, until 10 s after it is mended: what waited comes at once",
    ),
    Scenario(
        name="counting-clock", act=_counting_clock, promise=STEADY, targets=(EMBEDDED,), breakable=True,
        does="the wall clock of counting's leader is an hour ahead for 20 s; then it is right again",
        promises="no request fails; at most one change of the leader per minute",
    ),
    Scenario(
        name="counting-full-disk", act=_counting_full_disk, prepare=_small_disk, promise=NOTHING_FAILS,
        targets=(EMBEDDED,),
        does="the disk of counting's leader is full for 20 s; then there is room",
        promises="no request fails; the member serves again",
    ),
    Scenario(
        name="overload", act=_overload, promise=Promise(fails=False, refuses=(429, 503), healed_s=GOODPUT_S),
        lasts_s=30.0, targets=(EMBEDDED,),
        does="three times as many requests as the pools allow, for 30 s",
        promises="a request may be refused with a reason; 10 s later none is",
    ),
    Scenario(
        name="frontends-kill", act=_frontends_kill, promise=NOTICED,
        does="SIGKILL to half of the frontends, rounded up; they stay away",
        promises="as frontend-kill",
    ),
    Scenario(
        name="az-loss", act=_az_loss, prepare=_gather, promise=NOTICED,
        does="SIGKILL to everything in one AZ, that of the active manager, the active placement and the leader of "
             "counting; it stays away",
        promises="only what was in flight there fails, and what arrived there before the endpoint noticed (1 s); "
                 "nothing later than 5 s; no new worker is needed",
    ),
    Scenario(
        name="az-loss-other", act=_az_loss_other, promise=NOTICED,
        does="the same to an AZ that holds none of the leaders, where there is one",
        promises="as az-loss",
    ),
    Scenario(
        name="rolling-restart", act=_rolling_restart, promise=NOTHING_FAILS, lasts_s=15.0,
        does="SIGTERM to everything in one AZ, which drains and is started again; then the next AZ",
        promises="no request fails",
    ),
    Scenario(
        name="power-cut", act=_power_cut, promise=IN_FLIGHT,
        does="SIGKILL to everything at the same moment; it is started again",
        promises="every function and every limit is there; only what was in flight fails",
    ),
    Scenario(
        name="etcd-kill", act=_etcd_kill, promise=NOTHING_FAILS, targets=(COMPOSE,),
        does="SIGKILL to a member of etcd, which is started again",
        promises="no request fails",
    ),
    Scenario(
        name="nats-kill", act=_nats_kill, promise=NOTHING_FAILS, targets=(COMPOSE,),
        does="SIGKILL to a member of NATS, which is started again",
        promises="no request fails",
    ),
    Scenario(
        name="stores-away", act=_stores_away, promise=Promise(fails=False, writes_refused=True), lasts_s=60.0,
        targets=(COMPOSE,), known=(COLD, WRITTEN),
        does="SIGKILL to a majority of etcd and of NATS, for 60 s; then they are started again",
        promises="no request of a known function fails, warm or cold; a write gets a 503 that says why, later it works",
    ),
    Scenario(
        name="az-cut", act=_az_cut, promise=NOTICED, lasts_s=60.0, targets=(COMPOSE,),
        does="an AZ is taken off the network that the AZs share, for 60 s; then it is healed",
        promises="as az-loss; nothing fails when it comes back",
    ),
)}
