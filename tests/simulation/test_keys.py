"""Keys in virtual time: how soon a revoked one is refused, whatever the store's watch says."""

import asyncio

import pytest

from frontend.auth.keys import new_key, store_key
from protos import frontend_pb2, frontend_rpc
from simulation import members
from simulation.client import Client
from simulation.region import ACCOUNT, FUNCTIONS, REGION
from storage.cipher import Cipher
from tests.simulation.test_region import in_region

BINDS_S = 2.0


@pytest.mark.parametrize("mute", [False, True])
def test_a_revoked_key_is_refused_by_every_frontend_within_2_s(seed, mute):
    async def main(region):
        generator = members.generator(seed, "key")
        key = new_key(ACCOUNT, generator, region.clock.wall())
        cipher = Cipher(region.ground.data_key(), random_bytes=generator.randbytes)
        await store_key(region.ground.metadata, cipher, key)
        clients = [
            Client(frontend.service.application, host="client", key=key, region=REGION, clock=region.clock)
            for frontend in region.frontends
        ]
        assert [(await client.send("GET", f"{FUNCTIONS}/")).status for client in clients] == [200] * 3
        if mute:
            for frontend in region.frontends:
                frontend.store.mute()
        revoking = region.frontends[0].service.directory.node.address
        channel = region.ground.fabric.network(members.OPERATOR).connect(revoking, service="frontend")
        await channel.call(frontend_rpc.REVOKE_KEY, frontend_pb2.RevokeKeyRequest(key_id=key.key_id), timeout_s=5.0)
        revoked = region.clock.monotonic()

        async def refused_after_s(client):
            while (answer := await client.send("GET", f"{FUNCTIONS}/")).status == 200:
                await asyncio.sleep(0.01)
            assert answer.headers["x-amzn-errortype"] == "UnrecognizedClientException"
            return region.clock.monotonic() - revoked

        return await asyncio.gather(*map(refused_after_s, clients))

    spans, _ = in_region(seed, main)
    assert max(spans) < (BINDS_S if mute else 0.5)
