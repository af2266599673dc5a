"""The active manager or placement goes, in virtual time: who takes over, what is kept, what clients see."""

import asyncio
import json
import sys

import pytest

from placement.config import FleetConfig
from simulation.history import judge
from simulation.members import MANAGERS, PLACEMENTS, generator
from simulation.network import LostAnswers
from simulation.scenario import create
from storage.memory import calm
from tests.simulation.test_region import in_region

RUNS_S = 0.1


def told(line):
    sys.stdout.write(f"{line}\n")


class Load:
    """Clients that invoke one after the other, until told to stop: what each answer was, and whether it was cold."""

    def __init__(self, region, function, *, clients=4, runs_s=RUNS_S, pause_s=0.0):
        self.region, self.function, self.runs_s, self.pause_s = region, function, runs_s, pause_s
        self.answers = []
        self._stop = False
        self._clients = [asyncio.create_task(self._client(number)) for number in range(clients)]

    async def _client(self, number):
        while not self._stop:
            began = self.region.clock.monotonic()
            answer = await self.region.invoke(self.function, json.dumps(self.runs_s).encode(), frontend=number % 3)
            self.answers.append((began, self.region.clock.monotonic(), answer))
            await asyncio.sleep(self.pause_s if answer.status == 200 else 0.1)

    async def end(self):
        self._stop = True
        await asyncio.gather(*self._clients)

    @property
    def failures(self):
        return [(round(began, 3), round(end - began, 3), answer.body) for began, end, answer in self.answers
                if answer.status != 200 or "x-amz-function-error" in answer.headers]

    def warm_rate(self, since, until=float("inf")):
        """The share of invokes begun between these times that got a sandbox which was there."""
        cold = ["init=" in answer.headers["x-labda-phases"] for began, _, answer in self.answers
                if since <= began < until]
        return 1 - sum(cold) / len(cold)


async def under_load(region, **settings):
    assert (await create(region, "sleeper", "sleep", timeout_s=10)).status == 200
    load = Load(region, "sleeper", **settings)
    await asyncio.sleep(1.0)
    return load


def test_a_killed_managers_warm_sandboxes_serve_on(seed):
    async def main(region):
        load = await under_load(region)
        killed, at = region.active_manager(), region.clock.monotonic()
        before = {az: set(worker.agent.lives) for az, worker in region.workers.items()}
        await region.kill_manager(killed)
        await region.until(lambda: region.active_manager() not in {"", killed} and len(region.held_by()) == 3,
                           "the other manager to hold every worker", within_s=4.0)
        took_s = region.clock.monotonic() - at
        await asyncio.sleep(1.0)
        await load.end()
        kept = all(lives <= set(region.workers[az].agent.lives) for az, lives in before.items())
        return load, killed, at, took_s, kept, set(region.managers.nodes)

    (load, killed, at, took_s, kept, nodes), _ = in_region(seed, main)
    assert load.failures == []
    assert kept, "a sandbox was lost with the manager"
    assert nodes == set(MANAGERS), f"{killed} was not started again"
    assert took_s < 3.0
    before, after = load.warm_rate(at - 1, at), load.warm_rate(at)
    told(f"seed {seed}: warm {before:.1%} before, {after:.1%} after; taken over within {took_s:.2f} s")
    assert after >= before - 0.02


@pytest.mark.parametrize("stalled_s", [1.5, 6.0])
def test_a_stopped_manager_that_goes_on_does_no_harm(seed, stalled_s):
    """Stopped for less than it takes to be replaced, and for longer: then it wakes up as a stranger."""
    async def main(region):
        load = await under_load(region)
        stopped = region.active_manager()
        region.stall(stopped, stalled_s)
        await asyncio.sleep(stalled_s + 1.0)
        await load.end()
        answer = await region.invoke("sleeper", b"0")
        numbers = {node: dict(region.managers[node]._held()) for node in region.managers.nodes}
        return load, stopped, region.active_manager(), answer, numbers

    (load, stopped, active, answer, numbers), _ = in_region(seed, main)
    assert load.failures == []
    assert answer.status == 200
    assert (active == stopped) == (stalled_s < 3.0)
    assert len(numbers.pop(active)) == 3
    assert list(numbers.values()) == [{}], "a manager still believes to hold what another holds"


def test_a_killed_placement_is_replaced_under_a_higher_term(seed):
    async def main(region):
        load = await under_load(region)
        killed = region.active_placement()
        term = region.placements[killed].core.leadership.term
        held = region.held_by()
        await region.kill_placement(killed)
        await region.until(lambda: region.active_placement() not in {"", killed}, "the other to lead", within_s=6.0)
        new = region.placements[region.active_placement()].core.leadership.term
        await asyncio.sleep(2.0)
        await load.end()
        return load, term, new, held == region.held_by(), {n for frontend in region.frontends
                                                           for n in frontend.service.directory.nodes}

    (load, term, new, same, nodes), _ = in_region(seed, main)
    assert load.failures == []
    assert new == term + 1
    assert same, "a lease was lost with the placement"
    assert set(PLACEMENTS) <= nodes


def test_without_any_placement_warm_and_cold_invokes_go_on(seed):
    async def main(region):
        load = await under_load(region)
        for node in list(region.placements.nodes):
            await region.kill_placement(node, again=False)
        await asyncio.sleep(1.0)
        cold = [await region.invoke("sleeper", b"0", frontend=frontend) for frontend in range(3)]
        more = Load(region, "sleeper", clients=10)
        await asyncio.sleep(3.0)
        await more.end()
        await load.end()
        made = max(end - began for began, end, _ in more.answers)
        for node in PLACEMENTS:
            await region.placements.start(node)
        await region.until(lambda: region.active_placement() != "", "a placement to lead", within_s=6.0)
        manager = region.active_manager()
        await region.kill_manager(manager)
        await region.until(lambda: region.active_manager() not in {"", manager} and len(region.held_by()) == 3,
                           "the region to heal", within_s=6.0)
        answer = await region.invoke("sleeper", b"0")
        return load, more, cold, answer, made

    (load, more, cold, answer, made), _ = in_region(seed, main)
    assert load.failures == more.failures == []
    assert [one.status for one in cold] == [200, 200, 200]
    assert any("init=" in one.headers["x-labda-phases"] for _, _, one in more.answers), "none was cold"
    assert made < 2.0
    assert answer.status == 200


@pytest.mark.timeout(900)                # nothing waits here: a busy machine takes its time
@pytest.mark.parametrize("seed", [0])    # where a request met two drains in a row
def test_hundreds_of_leases_end_under_load_and_nothing_fails(seed):
    scale = 1 / 36_000      # leases of 0.6 to 1 s; what runs has 25 ms from the drain's beginning on, and takes 20

    async def main(region):
        load = await under_load(region, clients=3, runs_s=0.02, pause_s=0.02)
        await asyncio.sleep(55.0)
        await load.end()
        return load

    load, region = in_region(seed, main, fleet=FleetConfig(time_scale=scale))
    assert load.failures == []
    verdict = judge(region.trace().splitlines(), time_scale=scale)
    told(f"seed {seed}: {verdict.ends} lease ends, {verdict.starts} runs, {verdict.creates} sandboxes")
    assert verdict.violations == []
    assert verdict.ends >= 200
    assert verdict.unfinished == 0


def test_scaled_time_caps_how_long_a_function_may_run():
    async def main(region):
        await create(region, "sleeper", "sleep", timeout_s=10)
        return await region.invoke("sleeper", b"5")

    answer, _ = in_region(1, main, fleet=FleetConfig(time_scale=1 / 3600))
    assert answer.headers["x-amz-function-error"] == "Unhandled"
    assert b"Task timed out after 0.25 seconds" in answer.body


def test_an_unknown_outcome_of_a_write_is_read_again_before_anything_else(seed):
    """A third of all answers of the store are lost, to lease records and to leadership; placements are killed too."""
    scale = 1 / 14_400

    async def main(region):
        lost = LostAnswers(generator(seed, "lost"), share=0.3, prefixes=("leases/", "leadership/"))
        load = await under_load(region, clients=2, runs_s=0.02, pause_s=0.05)
        region.ground.metadata.after_write = lost
        for _ in range(3):
            await asyncio.sleep(4.0)
            if region.active_placement():
                await region.kill_placement(region.active_placement())
        await asyncio.sleep(4.0)
        region.ground.metadata.after_write = calm
        await region.until(lambda: region.active_placement() != "" and len(region.held_by()) == 3, "rest", within_s=6.0)
        await load.end()
        return load, lost.lost

    (load, lost), region = in_region(seed, main, fleet=FleetConfig(time_scale=scale))
    verdict = judge(region.trace().splitlines(), time_scale=scale)
    told(f"seed {seed}: {lost} answers lost, {verdict.ends} lease ends")
    assert load.failures == []
    assert verdict.violations == []
    assert lost >= 5
    assert verdict.ends > 10
