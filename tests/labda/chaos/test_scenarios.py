"""Each scenario on a town of names: what it hits, that it gives everything back, and that its records say so."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from labda.chaos.faults import GIVES, GIVES_BACK
from labda.chaos.hands import Place
from labda.chaos.history import Fault, Record, Write, of_type
from labda.chaos.proxy import LinkFault, Way
from labda.chaos.scenarios import COLD, COMPOSE, SCENARIOS
from labda.chaos.stage import Stage
from protos import placement_pb2

LASTS_S = 0.2
LEADERS = {"counting": "leader", "placement": "active", "worker_manager": "active"}
AZS = ("az1", "az2", "az3")


class Town:
    """A region without processes: nodes by name, one leader per service, which another succeeds at once."""

    def __init__(self, *, leaders: dict[str, str]) -> None:
        self.by_name: dict[str, placement_pb2.Node] = {}
        for az in AZS:
            for service, name in (
                ("counting", "counting"), ("placement", "placement"), ("worker_manager", "manager"),
                ("frontend", "frontend"), ("worker", "worker"),
            ):
                node = f"{name}-{az}"
                role = LEADERS.get(service, "") if leaders.get(service) == az else ""
                self.by_name[node] = placement_pb2.Node(
                    node=node, service=service, az=az, health="serving", role=role, nonce=1, pid=7
                )

    @property
    def nodes(self) -> list[placement_pb2.Node]:
        return list(self.by_name.values())

    def end(self, names: Sequence[str], *, back: bool) -> None:
        for node in (self.by_name[name] for name in names if name in self.by_name):
            node.health = "dead"
            if node.role:
                heirs = [one for one in self.nodes if one.service == node.service and one.node not in names]
                node.role = ""
                if heirs:
                    heirs[0].role = LEADERS[node.service]
            if back:
                self.begin([node.node])

    def begin(self, names: Sequence[str]) -> None:
        for node in (self.by_name[name] for name in names if name in self.by_name):
            node.health, node.nonce = "serving", node.nonce + 1
            role = LEADERS.get(node.service, "")
            if role and not any(one.role for one in self.nodes if one.service == node.service):
                node.role = role


class TownHands:
    """``Hands`` on a town. ``away`` is what a scenario still owes."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self.away: set[str] = set()
        self.cut_off: set[str] = set()
        self.stopped: set[str] = set()
        self.struck: dict[Way, LinkFault] = {}
        self.ever_struck: set[Way] = set()
        self.skewed: dict[str, float] = {}
        self.disks: list[str] = []
        self.stores = tuple(Place(node=f"{one}-{az}", service=one, az=az) for one in ("etcd", "nats") for az in AZS)

    async def missing(self) -> list[str]:
        return sorted(self.away)

    async def kill(self, nodes: Sequence[str]) -> None:
        self._town.end(nodes, back=True)

    async def kill_agent(self, worker: str) -> None:
        self._town.end([worker], back=True)

    async def hold(self, nodes: Sequence[str]) -> None:
        self.away.update(nodes)
        self._town.end(nodes, back=False)

    async def release(self, nodes: Sequence[str]) -> None:
        self.away.difference_update(nodes)
        self._town.begin(nodes)

    async def restart(self, nodes: Sequence[str]) -> None:
        self._town.end(nodes, back=True)

    async def cut(self, az: str) -> None:
        self.cut_off.add(az)

    async def heal(self, az: str) -> None:
        self.cut_off.discard(az)

    async def stop(self, nodes: Sequence[str]) -> None:
        self.stopped.update(nodes)
        self._town.end(nodes, back=False)

    async def go_on(self, nodes: Sequence[str]) -> None:
        self.stopped.difference_update(nodes)
        self._town.begin(nodes)

    async def strike(self, ways: Sequence[Way], fault: LinkFault) -> None:
        self.ever_struck.update(ways)
        self.struck.update(dict.fromkeys(ways, fault))

    async def mend(self, ways: Sequence[Way]) -> None:
        for way in ways:
            self.struck.pop(way, None)

    async def skew(self, nodes: Sequence[str], by_s: float) -> None:
        self.skewed.update(dict.fromkeys(nodes, by_s))

    async def disk(self, word: str, nodes: Sequence[str]) -> None:
        self.disks += [f"{word} {node}" for node in nodes]
        if word in {"shrink", "enlarge"}:
            self._town.end(nodes, back=True)

    async def restore(self) -> None:
        small = [words.split()[1] for words in self.disks if words.startswith("shrink")]
        if small and not self.disks[-1].startswith("enlarge"):
            await self.disk("enlarge", small)
        await self.skew(list(self.skewed), 0.0)
        await self.release(sorted(self.away))
        await self.go_on(sorted(self.stopped))
        await self.mend(list(self.struck))
        self.cut_off.clear()

    async def close(self) -> None:
        return None


class Quiet:
    """A load of which nothing is sent."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.capacity = 30.0

    def ask(self, function: str) -> None:
        self.told.append(f"ask {function}")

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    async def surge(self, rate: float, lasts_s: float) -> None:
        self.told.append(f"surge {rate:g} {lasts_s:g}")


class Desk:
    """The public API's part in it: 503 while a store is away."""

    def __init__(self, hands: TownHands) -> None:
        self._hands = hands

    def configure(self, name: str, settings: dict[str, Any]) -> Any:
        del name, settings
        refused = bool(self._hands.away)

        class Answer:
            status = 503 if refused else 200
            headers = {"x-amzn-errortype": "ServiceUnavailableException"} if refused else {}

            def json(self) -> Any:
                return {"Detail": {"reason": "the store is away"}} if refused else {}

        return Answer()

    def close(self) -> None:
        return None


def staged(lasts_s: float = LASTS_S, /, **leaders: str) -> tuple[Stage, TownHands, Quiet, list[Record]]:
    town = Town(leaders={"counting": "az1", "placement": "az1", "worker_manager": "az1"} | leaders)
    hands, load, records = TownHands(town), Quiet(), list[Record]()
    stage = Stage(
        region=town, hands=hands, load=load, rng=random.Random(1), lasts_s=lasts_s, time_scale=1.0,  # type: ignore[arg-type]
        tell=records.append, say=lambda _: None, open_api=lambda: closing(Desk(hands)),  # type: ignore[arg-type]
    )
    return stage, hands, load, records


async def played(
    name: str, lasts_s: float = LASTS_S, /, **leaders: str
) -> tuple[list[Fault], Quiet, list[Record]]:
    stage, hands, load, records = staged(lasts_s, **leaders)
    scenario = SCENARIOS[name]
    if scenario.prepare is not None:
        await scenario.prepare(stage)
    async with asyncio.timeout(60):
        await scenario.act(stage)
    await stage.restore()
    assert not hands.away
    assert not hands.cut_off
    assert not hands.stopped
    assert not hands.struck
    assert not any(hands.skewed.values())
    assert stage.missing() == []
    gone: set[str] = set()
    for fault in of_type(records, Fault):
        assert fault.done >= fault.at
        if fault.action in GIVES_BACK:
            gone.update(fault.nodes)
        elif fault.action in GIVES:
            gone.difference_update(fault.nodes)
    assert not gone, "the records say that it is back"
    return of_type(records, Fault), load, records


@pytest.mark.parametrize("name", SCENARIOS)
async def test_it_does_something_and_gives_it_back(name):
    faults, _, _ = await played(name)
    assert faults
    assert faults[0].nodes
    assert SCENARIOS[name].does
    assert SCENARIOS[name].promises


@pytest.mark.parametrize(("name", "actions", "services"), [
    ("worker-kill", ["kill"], {"worker"}),
    ("host-kill", ["hold", "release"], {"worker"}),
    ("frontend-kill", ["kill"], {"frontend"}),
    ("manager-kill", ["kill"], {"manager"}),
    ("counting-kill", ["kill"], {"counting"}),
    ("counting-kills", ["kill"], {"counting"}),
    ("counting-all-kill", ["kill"], {"counting"}),
    ("counting-stop", ["stop", "continue"], {"counting"}),
    ("counting-quorum", ["stop", "continue"], {"counting"}),
    ("counting-deaf", ["strike", "mend"], {"counting"}),
    ("counting-deaf-follower", ["strike", "mend"], {"counting"}),
    ("counting-cut", ["strike", "mend"], {"counting"}),
    ("frontends-kill", ["hold", "release"], {"frontend"}),
    ("counting-slow", ["strike", "mend"], {"counting"}),
    ("counting-resets", ["strike", "mend"], {"counting"}),
    ("frontend-half-open", ["strike", "mend"], {"frontend"}),
    ("counting-clock", ["skew", "reset"], {"counting"}),
    ("counting-full-disk", ["fill", "empty"], {"counting"}),
    ("overload", ["surge", "ease"], {"the endpoint"}),
    ("placement-kill", ["hold", "release"], {"placement"}),
    ("etcd-kill", ["kill"], {"etcd"}),
    ("nats-kill", ["kill"], {"nats"}),
    ("stores-away", ["hold", "release"], {"etcd", "nats"}),
    ("az-loss", ["hold", "release"], {"counting", "placement", "manager", "frontend", "worker", "etcd", "nats"}),
    ("az-cut", ["cut", "heal"], {"counting", "placement", "manager", "frontend", "worker", "etcd", "nats"}),
    ("rolling-restart", ["restart"] * 3, {"counting", "placement", "manager", "frontend", "worker", "etcd", "nats"}),
    ("power-cut", ["hold", "release"], {"counting", "placement", "manager", "frontend", "worker", "etcd", "nats"}),
])
async def test_it_hits_what_it_says(name, actions, services):
    faults, _, _ = await played(name)
    assert [fault.action for fault in faults] == actions
    assert {node.split("-")[0] for fault in faults for node in fault.nodes} == services


async def test_the_lost_az_holds_all_the_leaders():
    for leaders in ({}, {"placement": "az3"}, {"counting": "az2", "placement": "az3"}, {"worker_manager": "az1"}):
        faults, _, _ = await played("az-loss", **leaders)
        assert set(faults[0].held) == {"the leader of counting", "the active placement", "the active manager"}
        assert {node.split("-")[1] for node in faults[0].nodes} == {"az1"}


async def test_another_az_holds_none_where_there_is_one():
    faults, _, _ = await played("az-loss-other", counting="az2")
    assert faults[0].held == ()
    assert {node.split("-")[1] for node in faults[0].nodes} == {"az3"}


async def test_a_leader_that_is_killed_is_told_of():
    faults, _, _ = await played("counting-kill", counting="az2")
    assert (faults[0].nodes, faults[0].held) == (("counting-az2",), ("the leader of counting",))


async def test_an_overload_is_three_times_what_the_pools_allow():
    faults, load, _ = await played("overload")
    assert load.told == [f"surge 90 {LASTS_S:g}"]
    assert "3 times what the pools allow: 90 requests/s" in faults[0].how


async def test_the_full_disk_is_the_leaders():
    stage, hands, _, records = staged()
    prepare = SCENARIOS["counting-full-disk"].prepare
    assert prepare is not None
    await prepare(stage)
    [shrunk] = hands.disks
    node = shrunk.removeprefix("shrink ")
    assert stage.leading("counting").node == node
    await SCENARIOS["counting-full-disk"].act(stage)
    await stage.restore()
    assert hands.disks == [f"{word} {node}" for word in ("shrink", "fill", "empty", "enlarge")]
    assert of_type(records, Fault)[0].held == ("the leader of counting",)


async def test_a_quorum_is_lost_with_its_leader():
    faults, _, _ = await played("counting-quorum", counting="az2")
    assert len(faults[0].nodes) == 2
    assert "counting-az2" in faults[0].nodes


async def test_half_of_the_frontends_is_rounded_up():
    faults, _, _ = await played("frontends-kill")
    assert len(faults[0].nodes) == 2


@pytest.mark.parametrize(("name", "deaf", "mute"), [
    ("counting-deaf", {"counting-az2"}, set()), ("counting-cut", {"counting-az2"}, {"counting-az2"}),
    ("counting-deaf-follower", {"counting-az1", "counting-az3"}, set()),
])
async def test_who_hears_nobody_is_heard_unless_it_is_cut_off(name, deaf, mute):
    stage, hands, _, _ = staged(counting="az2")
    await SCENARIOS[name].act(stage)
    [victim] = mute or {target for _, target in hands.ever_struck}
    assert victim in deaf
    others = {f"{one}-{az}" for one in ("counting", "frontend", "worker") for az in AZS} - {victim}
    heard = {(other, victim) for other in others}
    assert hands.ever_struck == heard | ({(victim, other) for other in others} if mute else set())


async def test_slow_links_are_those_between_members():
    stage, hands, _, _ = staged()
    await SCENARIOS["counting-slow"].act(stage)
    members = {f"counting-{az}" for az in AZS}
    assert hands.ever_struck == {(one, other) for one in members for other in members if one != other}


async def test_a_frontend_that_is_not_told_is_the_one_who_dialled():
    stage, hands, _, _ = staged()
    await SCENARIOS["frontend-half-open"].act(stage)
    assert len({source for source, _ in hands.ever_struck}) == 1
    assert {target for _, target in hands.ever_struck} == {f"counting-{az}" for az in AZS}


async def test_without_stores_writes_are_tried_and_a_function_that_never_ran_is_asked():
    faults, load, records = await played("stores-away", 3.0)    # a write is tried in the second half of it
    writes = of_type(records, Write)
    away = [write for write in writes if write.done <= faults[1].at]
    assert away
    assert all(write.status == 503 and write.explained for write in away)
    assert writes[-1].status == 200
    assert load.told == [f"ask {COLD}"] * 3
    assert {node.split("-")[1] for node in faults[0].nodes} == {"az1", "az2"}, "a majority of three"


async def test_a_power_cut_is_no_time_for_requests():
    _, load, _ = await played("power-cut")
    assert load.told == ["pause", "resume"]


def test_what_needs_a_network_or_replicated_stores_is_for_containers():
    elsewhere = {name for name, scenario in SCENARIOS.items() if scenario.targets == (COMPOSE,)}
    assert elsewhere == {"az-cut", "etcd-kill", "nats-kill", "stores-away"}

