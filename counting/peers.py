"""Outbound: one stream to every other member, for Raft's messages.

Owns dialling and dialling again, and what each peer says of its version. A peer counts as connected from its first
receipt on, so that nothing is sent into a connection that isn't there. Refuses to know what the messages say.
"""

import asyncio
from collections.abc import Callable

import structlog

from chassis.faults import Fault
from chassis.process import Tasks
from chassis.rpc import Outbox, Stream, StreamNetwork, converse
from counting.commands import OLDEST
from protos import raft_pb2, raft_rpc

REDIAL_S = 0.1

_log = structlog.get_logger(__name__)


class RaftLinks:
    """``connected`` and ``disconnected`` are told of each peer's coming and going."""

    versions: dict[str, int]    # command language of each peer that ever answered (rule 11)

    def __init__(
        self,
        *,
        network: StreamNetwork,
        peers: dict[str, str],
        connected: Callable[[str], None],
        disconnected: Callable[[str], None],
    ) -> None:
        self._network = network
        self._peers = peers
        self._connected = connected
        self._disconnected = disconnected
        self.versions = {}
        self._outboxes: dict[str, Outbox[raft_pb2.RaftMessage]] = {}
        self._tasks = Tasks()

    def start(self) -> None:
        for peer, address in self._peers.items():
            self._tasks.start(self._follow(peer, address), name=f"raft to {peer}")

    def send(self, peer: str, message: raft_pb2.RaftMessage) -> bool:
        """Queues a message. False when there is no connection now: Raft repeats itself."""
        outbox = self._outboxes.get(peer)
        if outbox is None:
            return False
        outbox.put(message)
        return True

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _follow(self, peer: str, address: str) -> None:
        channel = self._network.connect(address, service="counting", node=peer)
        try:
            while True:
                stream = channel.stream(raft_rpc.EXCHANGE)
                try:
                    await self._converse(peer, stream)
                except Fault as fault:
                    _log.debug("raft peer", peer=peer, fault=fault.message)
                finally:
                    stream.cancel()
                await asyncio.sleep(REDIAL_S)
        finally:
            await channel.close()

    async def _converse(self, peer: str, stream: Stream[raft_pb2.RaftMessage, raft_pb2.RaftReceipt]) -> None:
        outbox = Outbox(stream)

        def on_receipt(receipt: raft_pb2.RaftReceipt) -> None:
            self.versions[peer] = receipt.version or OLDEST
            self._outboxes[peer] = outbox
            self._connected(peer)

        try:
            await converse(stream, outbox, on_receipt)
        finally:
            if self._outboxes.pop(peer, None) is not None:
                self._disconnected(peer)
