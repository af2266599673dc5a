"""The contract's world on three NATS members: worlds share them and begin with empty streams."""

import json

from chassis.certificates import Tls
from storage.nats import NatsBlobs
from storage.nats_client import NatsClient, NatsSettings
from storage.nats_streams import BlobStreams
from tests.storage.servers import NatsTrio
from tests.storage.worlds import ManualClock


class NatsWorld:
    def __init__(self, trio: NatsTrio, tls: Tls) -> None:
        self.clock = ManualClock()
        self.streams = BlobStreams()
        self._trio = trio
        self._tls = tls
        self._opened: list[NatsBlobs] = []

    async def empty(self) -> None:
        operator = NatsClient(self._trio.addresses, self._trio.authorities.client("operator"))
        for stream in (self.streams.heads, self.streams.chunks):
            assert "error" not in await operator.api(f"STREAM.PURGE.{stream}", {}, until=operator.until())
        await operator.close()

    def blobs(self, *, answer_s: float = 20.0, attempt_s: float = 2.0) -> NatsBlobs:
        blobs = NatsBlobs(
            self._trio.addresses, self._tls, self.clock, NatsSettings(answer_s=answer_s, attempt_s=attempt_s),
        )
        self._opened.append(blobs)
        return blobs

    async def damage(self, sha256: str) -> None:
        """A flipped bit that the servers' own checksums didn't find: another chunk in the place of the last one."""
        blobs = self.blobs()
        head = await blobs._head(sha256)
        assert head is not None
        chunk = await blobs._chunk(head, len(head.chunks) - 1)
        message = await blobs._nats.ask(
            self.streams.chunk(head.put_id), chunk[:-1] + bytes([chunk[-1] ^ 1]), until=blobs._nats.until()
        )
        await blobs._nats.ask(
            self.streams.head(sha256),
            json.dumps({
                "size_bytes": head.size_bytes, "put_id": head.put_id,
                "chunks": [*head.chunks[:-1], json.loads(message.data)["seq"]],
            }).encode(),
            until=blobs._nats.until(),
        )

    async def close(self) -> None:
        for blobs in self._opened:
            await blobs.close()
