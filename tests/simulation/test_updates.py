"""Updates and deletions while three frontends serve: which revision a request gets, in virtual time and by seed.

The function answers with the COLOUR of its configuration and the digest of its code, so that every answer names the
revision that gave it.
"""

import asyncio
import base64
import json
import random

from frontend.metadata import LEASE_S
from frontend.settling import ORPHAN_S
from simulation import loop as virtual
from simulation.region import ACCOUNT, FUNCTIONS, Region
from simulation.sandbox_driver import INITS
from simulation.scenario import archive, create

NOT_FOUND = f"Function not found: arn:aws:lambda:us-east-1:{ACCOUNT}:function:painter:$LATEST"


async def paint(event, invocation):
    await asyncio.sleep(float(json.loads(event)))
    spec = invocation.sandbox.spec
    return json.dumps({"colour": spec.environment.get("COLOUR", ""), "code": spec.code}).encode()


def in_region(seed, main):
    async def live(_loop):
        async with Region(seed, handlers={"paint": paint, "paint_again": paint}) as region:
            return await main(region)

    return virtual.run(live)


async def configure(region, colour, *, frontend=0):
    body = json.dumps({"Environment": {"Variables": {"COLOUR": colour}}}).encode()
    return await region.request("PUT", f"{FUNCTIONS}/painter/configuration", body, frontend=frontend)


async def recode(region, handler, *, frontend=0):
    body = json.dumps({"ZipFile": base64.b64encode(archive(handler)).decode()}).encode()
    return await region.request("PUT", f"{FUNCTIONS}/painter/code", body, frontend=frontend)


async def successful(region, *, frontend=0, within_s=15.0):
    async with asyncio.timeout(within_s):
        while True:
            answer = await region.request("GET", f"{FUNCTIONS}/painter/configuration", frontend=frontend)
            assert answer.status == 200, answer.body
            if answer.json()["LastUpdateStatus"] == "Successful":
                return answer.json()
            await asyncio.sleep(0.02)


def alive(region):
    """Sandboxes of the function on all workers."""
    return [sandbox for worker in region.workers.values() for sandbox in worker.agent.lives.values()]


class Traffic:
    """Requests on all three frontends until it is stopped."""

    def __init__(self, region, seed, *, takes_s):
        self.region = region
        self.rng = random.Random(seed)
        self.takes_s = takes_s
        self.stopped = False
        self.settled = 0                     # number of the newest revision that was Successful
        self.answers = []                    # (settled when it was sent, answer)

    async def drive(self, frontend):
        while not self.stopped:
            before = self.settled
            answer = await self.region.invoke("painter", str(self.takes_s).encode(), frontend=frontend)
            self.answers.append((before, answer))
            await asyncio.sleep(self.rng.uniform(0, 0.03))


def test_after_successful_no_request_gets_an_older_revision(seed):
    async def main(region):
        await create(region, "painter", "paint")
        revisions = {}
        traffic = Traffic(region, seed, takes_s=0.02)
        codes = ["paint", "paint_again"]
        first = await successful(region)
        revisions["", first["CodeSha256"]] = 0
        async with asyncio.TaskGroup() as group:
            drivers = [group.create_task(traffic.drive(frontend)) for frontend in (0, 1, 2) for _ in range(3)]
            for number in range(1, 7):
                await asyncio.sleep(0.2)
                if number % 2:
                    changed = await configure(region, f"c{number}", frontend=number % 3)
                else:
                    changed = await recode(region, codes[number // 2 % 2], frontend=number % 3)
                assert changed.status == 200, changed.body
                now = await successful(region, frontend=(number + 1) % 3)
                colour = now["Environment"]["Variables"]["COLOUR"]
                revisions[colour, now["CodeSha256"]] = number
                traffic.settled = number
            await asyncio.sleep(0.2)
            traffic.stopped = True
            await asyncio.gather(*drivers)
        return revisions, traffic.answers

    revisions, answers = in_region(seed, main)
    assert {answer.status for _, answer in answers} == {200}
    seen = set()
    for before, answer in answers:
        told = answer.json()
        number = revisions[told["colour"], base64.b64encode(bytes.fromhex(told["code"])).decode()]
        assert number >= before, f"revision {number} answered a request that came after {before} was Successful"
        seen.add(number)
    assert len(seen) == 7, "every revision served"


def test_requests_that_wait_for_a_cold_sandbox_start_on_the_new_revision(seed, monkeypatch):
    """They came before the update, which turns Successful while they wait; none has started before that."""
    monkeypatch.setitem(INITS, "paint", 0.8)

    async def main(region):
        await create(region, "painter", "paint")
        await configure(region, "old")
        await successful(region)
        cold = [asyncio.create_task(region.invoke("painter", b"0", frontend=n)) for n in (0, 1, 2)]
        await asyncio.sleep(0.03)
        assert (await configure(region, "new", frontend=1)).status == 200
        await successful(region)
        assert not any(task.done() for task in cold), "the update waits for nobody's init"
        return await asyncio.gather(*cold)

    answers = in_region(seed, main)
    assert [answer.status for answer in answers] == [200] * 3
    assert {answer.json()["colour"] for answer in answers} == {"new"}


def test_requests_that_wait_while_their_function_is_deleted_are_told(seed, monkeypatch):
    monkeypatch.setitem(INITS, "paint", 0.8)

    async def main(region):
        await create(region, "painter", "paint")
        cold = [asyncio.create_task(region.invoke("painter", b"0", frontend=n)) for n in (0, 1, 2)]
        await asyncio.sleep(0.03)
        assert (await region.request("DELETE", f"{FUNCTIONS}/painter", frontend=2)).status == 204
        answers = await asyncio.gather(*cold)
        await region.until(lambda: not alive(region), "its sandboxes to be destroyed", within_s=3.0)
        return answers

    for answer in in_region(seed, main):
        assert answer.status == 404
        assert answer.json()["Message"] == NOT_FOUND


def test_a_deletion_during_traffic_ends_in_clean_404s(seed):
    async def main(region):
        await create(region, "painter", "paint")
        await configure(region, "old")
        await successful(region)
        running = asyncio.create_task(region.invoke("painter", b"2", frontend=1))
        await asyncio.sleep(0.3)
        traffic = Traffic(region, seed, takes_s=0.02)
        drivers = [asyncio.create_task(traffic.drive(frontend)) for frontend in (0, 1, 2) for _ in range(2)]
        await asyncio.sleep(0.5)
        gone = await region.request("DELETE", f"{FUNCTIONS}/painter", frontend=2)
        traffic.settled = 1
        assert gone.status == 204
        await asyncio.sleep(0.3)
        traffic.stopped = True
        await asyncio.gather(*drivers)
        ran = await running
        await region.until(lambda: not alive(region), "its sandboxes to be destroyed", within_s=3.0)
        await create(region, "painter", "paint_again")
        again = [await region.invoke("painter", b"0", frontend=n) for n in (0, 1, 2)]
        return traffic.answers, ran, again

    answers, ran, again = in_region(seed, main)
    assert ran.json()["colour"] == "old", "what ran when it was deleted has finished"
    assert {answer.status for before, answer in answers if before} == {404}
    assert {answer.status for _, answer in answers} == {200, 404}
    for _, answer in answers:
        if answer.status == 404:
            assert answer.json()["Message"] == NOT_FOUND
            assert answer.headers["x-amzn-errortype"] == "ResourceNotFoundException"
    assert {answer.status for answer in again} == {200}
    assert {answer.json()["colour"] for answer in again} == {""}
    assert len({answer.json()["code"] for answer in again}) == 1


def test_an_update_whose_frontend_is_killed_in_the_middle_is_completed_by_another(seed):
    async def main(region):
        await create(region, "painter", "paint")
        await configure(region, "old")
        await successful(region)
        await region.invoke("painter", b"0", frontend=1)
        changed = await configure(region, "new", frontend=0)
        assert changed.json()["LastUpdateStatus"] == "InProgress"
        await region.kill_frontend(0)
        began = region.clock.monotonic()
        refused = await configure(region, "other", frontend=1)
        await successful(region, frontend=2)
        took_s = region.clock.monotonic() - began
        return refused, took_s, [await region.invoke("painter", b"0", frontend=n) for n in (1, 2)]

    refused, took_s, answers = in_region(seed, main)
    assert refused.status == 409
    assert refused.headers["x-amzn-errortype"] == "ResourceConflictException"
    assert refused.json()["message"] == (
        "The operation cannot be performed at this time. An update is in progress for resource: "
        f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:painter"
    )
    assert ORPHAN_S <= took_s <= LEASE_S + 2.0, "the dead one's lease, and not for ever"
    assert {answer.json()["colour"] for answer in answers} == {"new"}


def test_no_invoke_waits_for_the_store(seed):
    """Its disk is full for a minute: warm and cold invokes go on everywhere, changes are refused by name."""

    async def main(region):
        await create(region, "painter", "paint")
        await region.invoke("painter", b"0", frontend=0)
        for frontend in region.frontends:
            region.stores[frontend.service.directory.node.node].fill()
        await asyncio.sleep(60.0)
        assert not any(frontend.service.functions.sure for frontend in region.frontends)
        cold = await asyncio.gather(*(region.invoke("painter", b"0.2", frontend=n) for n in (0, 1, 2)))
        warm = [await region.invoke("painter", b"0", frontend=n) for n in (0, 1, 2)]
        refused = await configure(region, "new")
        for frontend in region.frontends:
            region.stores[frontend.service.directory.node.node].heal()
        await asyncio.sleep(5.0)
        changed = await configure(region, "new")
        await successful(region)
        return cold + warm, refused, changed, await region.invoke("painter", b"0", frontend=2)

    answers, refused, changed, after = in_region(seed, main)
    assert [answer.status for answer in answers] == [200] * 6
    assert refused.status == 503
    assert refused.headers["x-amzn-errortype"] == "ServiceUnavailableException"
    assert changed.status == 200
    assert after.json()["colour"] == "new"


def test_a_frontend_without_the_store_serves_the_old_revision_until_it_is_not_current(seed):
    async def main(region):
        await create(region, "painter", "paint")
        await configure(region, "old")
        await successful(region)
        await region.invoke("painter", b"0", frontend=1)
        region.stores["frontend-az1-1"].cut()
        await asyncio.sleep(15.0)
        before = await region.invoke("painter", b"0", frontend=0)
        lingers = asyncio.create_task(region.invoke("painter", b"0.4", frontend=0))
        await asyncio.sleep(0.1)
        await configure(region, "new", frontend=1)
        await successful(region, frontend=2)
        after = [await region.invoke("painter", b"0", frontend=n) for n in (0, 1, 2, 0)]
        ran = await lingers
        after.append(await region.invoke("painter", b"0", frontend=0))
        region.stores["frontend-az1-1"].heal()
        await region.until(lambda: region.frontends[0].service.functions.sure, "the copy to catch up", within_s=5.0)
        return before, ran, after, await region.invoke("painter", b"0", frontend=0)

    before, ran, after, at_last = in_region(seed, main)
    assert before.json()["colour"] == "old"
    assert ran.json()["colour"] == "old", "it ran when the update came"
    assert [answer.status for answer in after] == [503, 200, 200, 503, 503]
    assert {answer.json()["colour"] for answer in after if answer.status == 200} == {"new"}
    assert after[0].json()["Detail"]["reason"] == "REVISED"
    assert at_last.json()["colour"] == "new"
