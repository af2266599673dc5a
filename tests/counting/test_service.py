"""Three members end to end: streams, Raft and ledger together, in virtual time over memory."""

import asyncio
import random

import pytest

from chassis.faults import Fault
from chassis.memory_network import Fabric, Link
from protos import common_pb2, counting_pb2, counting_rpc
from simulation.loop import VirtualClock, run
from tests.counting.client import Client, Refused, WorkerClient
from tests.counting.region import RAFT, REST, SERVED, A, Region, call, frontend, pool_of, region_in_memory

Up = counting_pb2.WorkerMessage
SUSPECT_S = 3.0


async def client_of(region, n, nonce=1):
    client = await Client(region.network(frontend(n)), frontend(n).node, region.addresses, nonce).start()
    await client.welcomed()
    return client


def set_limit(region, limit, **how):
    request = counting_pb2.SetAccountLimitRequest(account=A, limit=limit)
    return call(region, counting_rpc.SET_ACCOUNT_LIMIT, request, **how)


def set_reserved(region, function, value):
    request = counting_pb2.SetReservedRequest(account=A, function=function, value=value)
    return call(region, counting_rpc.SET_RESERVED, request, frontend(9))


def set_provisioned(region, value, qualifier="1"):
    request = counting_pb2.SetProvisionedRequest(account=A, function="f", qualifier=qualifier, value=value)
    return call(region, counting_rpc.SET_PROVISIONED, request, frontend(9))


def granted(region, pool_index=0):
    leader = region.services[region.leading()]
    return {str(pool): leader.core.ledger.granted(pool) for pool in leader.core.ledger.pools()}


async def until(condition, within_s=10.0):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)


def test_a_limit_is_granted_over_three_streams_and_the_next_is_refused_with_proof(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        clients = [await client_of(region, n) for n in (1, 2, 3)]
        await set_limit(region, 10)
        for n in range(10):
            await clients[n % 3].take(REST)
        assert sum(client.block(REST).in_use for client in clients) == 10
        for client in clients:
            with pytest.raises(Refused) as caught:
                await client.take(REST)
            answer = caught.value.answer
            assert (answer.limit, answer.in_use) == (10, 10)
            assert answer.round >> 32 == region.services[region.leading()]._raft().term
        clients[0].give(REST)
        await clients[2].take(REST)
        with pytest.raises(Refused):
            await clients[0].take(REST)
        for client in clients:
            await client.stop()
        await region.close()

    run(main)


def test_permits_and_refusals_survive_the_leader(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        clients = [await client_of(region, n) for n in (1, 2)]
        await set_limit(region, 4)
        for n in range(4):
            await clients[n % 2].take(REST)
        old = region.leading()
        await region.kill(old)
        before = loop.time()
        await until(lambda: region.leader() is not None)
        with pytest.raises(Refused) as caught:
            await clients[0].take(REST)
        assert loop.time() - before < 1.5
        assert caught.value.answer.in_use == 4
        clients[1].give(REST)
        await clients[0].take(REST)
        await region.start(int(old[-1]))
        await until(lambda: region.services[old]._raft().index == region.services[region.leading()]._raft().index)
        for client in clients:
            await client.stop()
        await region.close()

    run(main)


def test_reserved_concurrency_is_guarantee_and_ceiling(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        clients = [await client_of(region, n) for n in (1, 2)]
        answer = await set_reserved(region, "f", 2)
        assert (answer.changed, list(answer.outstanding)) == (True, [])
        await clients[0].take(pool_of("f"))
        await clients[1].take(pool_of("f"))
        with pytest.raises(Refused) as caught:
            await clients[0].take(pool_of("f"))
        assert caught.value.answer.limit == 2
        await clients[0].take(REST)
        assert (await set_reserved(region, "f", 2)).changed is False
        below = await set_reserved(region, "g", 899)
        assert (below.below_floor.account_limit, below.below_floor.reserved_elsewhere) == (1000, 2)
        await set_reserved(region, "f", 0)
        for client in clients:
            with pytest.raises(Refused) as caught:
                await client.take(pool_of("f"))
            assert caught.value.answer.limit == 0
        limits = await call(region, counting_rpc.GET_LIMITS, counting_pb2.GetLimitsRequest(account=A))
        assert (limits.account_limit, limits.unreserved, dict(limits.reserved)) == (1000, 1000, {"f": 0})
        for client in clients:
            await client.stop()
        await region.close()

    run(main)


def test_what_is_provisioned_is_a_pool_of_its_own_within_the_reservation(tmp_path):
    version = common_pb2.Pool(account=A, kind=common_pb2.Pool.PROVISIONED, function="f", qualifier="1")

    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        clients = [await client_of(region, n) for n in (1, 2)]
        await set_reserved(region, "f", 2)
        for client in clients:
            await client.take(pool_of("f"))
        answer = await set_provisioned(region, 1)
        assert (answer.changed, list(answer.outstanding)) == (True, [])
        waits = asyncio.create_task(clients[1].take(version))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waits), 1.0)
        clients[0].give(pool_of("f"))
        await waits
        for pool in (version, pool_of("f")):
            with pytest.raises(Refused) as caught:
                await clients[0].take(pool)
            assert caught.value.answer.limit == 1
        above = await set_provisioned(region, 3)
        assert (above.above_reservation.reserved, above.above_reservation.provisioned) == (2, 3)
        with pytest.raises(Fault, match="value is 0"):
            await set_provisioned(region, 0)
        with pytest.raises(Fault, match="qualifier"):
            await set_provisioned(region, 1, qualifier="")
        assert (await set_provisioned(region, None)).changed
        clients[1].give(version)
        await clients[0].take(pool_of("f"))
        for client in clients:
            await client.stop()
        await region.close()

    run(main)


def test_permits_of_a_killed_frontend_return_by_ends(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        worker = await WorkerClient(region).start()
        await worker.say(Up(renew=Up.Renew(number=1)))
        await until(lambda: worker.renewed == [120.0])
        doomed, other = await client_of(region, 1), await client_of(region, 2)
        await set_limit(region, 3)
        for _ in range(3):
            await doomed.take(REST)
        block = common_pb2.BlockId(session=doomed.session, pool=REST)
        worker.running = [counting_pb2.Running(block=block, function="f", invocations=["i1", "i2"])]
        await doomed.stop()
        waiting = asyncio.ensure_future(other.take(REST))
        await until(lambda: worker.fenced, 5.0)
        await waiting   # what didn't run of the dead frontend's
        assert list(granted(region).values()) == [3]
        with pytest.raises(Refused) as caught:
            await other.take(REST)
        assert isinstance(caught.value.answer, counting_pb2.FrontendAnswer.Throttled)
        await worker.say(Up(end=Up.End(block=block, invocation="i1")))
        await until(lambda: list(granted(region).values()) == [2])
        await other.take(REST)
        pools = await call(region, counting_rpc.LIST_POOLS, counting_pb2.ListPoolsRequest())
        holders = {holder.session.frontend: (holder.size, holder.state) for holder in pools.pools[0].holders}
        assert holders == {"frontend-az1-1": (1, "counted"), "frontend-az2-1": (2, "live")}
        assert dict(pools.proofs.fenced) == {"silent": 1, "replaced": 0, "left": 0}
        assert (pools.proofs.uncounted, sum(pools.proofs.evicted.values())) == (0, 0)
        assert pools.proofs.rounds == pools.pools[0].rounds >= 1, "the refusal was proved by one"
        await worker.say(Up(leave=Up.Leave()))
        await until(lambda: list(granted(region).values()) == [2])
        for part in (worker, other):
            await part.stop()
        await region.close()

    run(main)


def test_who_waits_for_a_silent_holder_gets_its_permit_when_it_is_fenced(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        hung, other = await client_of(region, 1), await client_of(region, 2)
        await set_limit(region, 2)
        await hung.take(REST)
        await other.take(REST)
        hung.mute = True
        asked = loop.time()
        await other.take(REST)  # waits until the other is suspected, and counted
        assert SUSPECT_S - 1.0 < loop.time() - asked < SUSPECT_S + 1.0
        hung.mute = False
        await asyncio.sleep(1.0)
        assert hung.session is not None
        assert hung.session.epoch == 2
        for client in (hung, other):
            await client.stop()
        await region.close()

    run(main)


def test_nobody_speaks_for_another(tmp_path):
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        name = next(iter(region.addresses))
        channel = region.network(frontend(1)).connect(region.addresses[name], service="counting", node=name)
        stream = channel.stream(counting_rpc.FRONTEND)
        hello = counting_pb2.FrontendMessage.Hello(frontend="frontend-az2-1", nonce=1)
        await stream.send(counting_pb2.FrontendMessage(hello=hello))
        with pytest.raises(Fault, match="the certificate is frontend-az1-1's"):
            await stream.receive()
        await region.close()

    run(main)


def test_two_runs_are_the_same(tmp_path):
    """Everything draws from what it is given: the same seed gives the same terms, leaders and indices."""

    async def main(loop, directory):
        region = await region_in_memory(loop, directory)
        client = await client_of(region, 1)
        await set_limit(region, 5)
        for _ in range(5):
            await client.take(REST)
        await region.kill(region.leading())
        await until(region.leader)
        await asyncio.sleep(1.0)
        story = [(n, s._raft().term, s._raft().index) for n, s in region.services.items()], loop.time()
        await client.stop()
        await region.close()
        return story

    assert run(lambda loop: main(loop, tmp_path / "1")) == run(lambda loop: main(loop, tmp_path / "2"))


class Slow(Link):
    """Every message takes a while, a few take long."""

    def __init__(self, seed):
        self.dice = random.Random(seed)

    def delay_s(self, sender, receiver):
        return self.dice.uniform(0.05, 0.25) if self.dice.random() < 0.01 else self.dice.uniform(0.0002, 0.004)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_ever_uses_more_than_the_limit_whatever_happens_to_leaders(tmp_path, seed):
    """Invariants 1 and 2 over the whole path: slow links, members killed and restarted from their files."""
    limit = 7

    async def main(loop):
        fabric = Fabric(Slow(seed))
        region = Region(tmp_path, fabric.network, VirtualClock(loop), SERVED, RAFT, durable=False)
        await region.start_all()
        clients = [await client_of(region, n) for n in (1, 2, 3)]
        await set_limit(region, limit)
        dice = random.Random(seed)
        served = {"taken": 0, "late": 0}
        refusals = []
        running = 0
        end = loop.time() + 25.0

        async def invoke(client):
            nonlocal running
            while loop.time() < end:
                await asyncio.sleep(dice.expovariate(8))
                try:
                    await client.take(REST, within_s=4.0)
                except Refused as refusal:
                    refusals.append(refusal.answer)
                    continue
                except TimeoutError:
                    served["late"] += 1
                    continue
                running += 1
                served["taken"] += 1
                assert running <= limit, f"{running} run, the limit is {limit}"
                epoch = client.session.epoch
                await asyncio.sleep(dice.expovariate(3))
                running -= 1
                assert client.session is not None
                assert client.session.epoch == epoch, "an honest frontend was fenced"
                client.give(REST)

        async def break_things():
            while loop.time() < end - 6.0:
                await asyncio.sleep(dice.uniform(2.0, 5.0))
                name = dice.choice(sorted(region.services))
                await region.kill(name)
                await asyncio.sleep(dice.uniform(0.1, 2.0))
                await region.start(int(name[-1]))

        await asyncio.gather(break_things(), *(invoke(client) for client in clients for _ in range(4)))
        for client in clients:
            client.give_back_idle(REST)
        await until(lambda: not any(granted(region).values()), 5.0)
        assert served["taken"] > 200
        throttled = [answer for answer in refusals if isinstance(answer, counting_pb2.FrontendAnswer.Throttled)]
        assert len(throttled) > 20
        assert all(answer.limit == answer.in_use == limit for answer in throttled)
        assert served["late"] == 0
        for client in clients:
            await client.stop()
        await region.close()

    run(main)


def test_nothing_stays_of_functions_that_come_and_go(tmp_path):
    """A frontend lives for weeks, and its session with it."""
    async def main(loop):
        region = await region_in_memory(loop, tmp_path)
        client = await client_of(region, 1)
        for n in range(20):
            await set_reserved(region, f"f{n}", 1)
            await client.take(pool_of(f"f{n}"))
            client.hand_back(pool_of(f"f{n}"))
            if n % 2:
                await until(lambda: not any(granted(region).values()))
            await set_reserved(region, f"f{n}", None)
        await until(lambda: not any(granted(region).values()))
        await set_reserved(region, "last", 1)
        leader = region.services[region.leading()]
        assert {pool for record in leader.core.ledger.sessions.values() for pool in record.blocks} == set()
        assert [pool.function for pool in leader.core.desks if pool.function] == []
        await region.close()

    run(main)
