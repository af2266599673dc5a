"""Outbound: one stream to every other member, for Raft's messages.

Owns dialling and dialling again, and what each peer says of its version. A peer counts as connected from its first
receipt on, so that nothing is sent into a connection that isn't there. Dialled are the voters, and whoever dials us and
says where it is reached: a new member is answered before the log knows it. Refuses to know what the messages say.
"""

import asyncio
from collections import Counter
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
        own: str,
        connected: Callable[[str], None],
        disconnected: Callable[[str], None],
    ) -> None:
        """``own``: the address under which this member introduces itself."""
        self._network = network
        self._own = own
        self._connected = connected
        self._disconnected = disconnected
        self.versions = {}
        self.introduced: dict[str, str] = {}    # address of each peer that has a stream open to here, as it says
        self._streams: Counter[str] = Counter()
        self._voters: dict[str, str] = {}
        self._dialled: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._outboxes: dict[str, Outbox[raft_pb2.RaftMessage]] = {}
        self._tasks = Tasks()

    def follow(self, voters: dict[str, str]) -> None:
        """Whom the log names, this member not among them, each with its address."""
        self._voters = voters
        self._dial()

    def arrived(self, peer: str) -> None:
        """It has a stream open to here."""
        self._streams[peer] += 1

    def introduce(self, peer: str, address: str) -> None:
        self.introduced[peer] = address
        self._dial()

    def left(self, peer: str) -> None:
        """A stream of it has ended; another may have come before."""
        self._streams[peer] -= 1
        if not self._streams[peer] and self.introduced.pop(peer, None) is not None:
            self._dial()

    def heard(self, peer: str) -> bool:
        """Whether messages get through to it."""
        return peer in self._outboxes

    def send(self, peer: str, message: raft_pb2.RaftMessage) -> bool:
        """Queues a message. False when there is no connection now: Raft repeats itself."""
        outbox = self._outboxes.get(peer)
        if outbox is None:
            return False
        outbox.put(message)
        return True

    async def close(self) -> None:
        await self._tasks.cancel()

    def _dial(self) -> None:
        wanted = self.introduced | self._voters
        for peer, (address, task) in list(self._dialled.items()):
            if wanted.get(peer) != address:
                del self._dialled[peer]
                task.cancel()
        for peer, address in wanted.items():
            if peer not in self._dialled:
                self._dialled[peer] = address, self._tasks.start(self._follow(peer, address), name=f"raft to {peer}")

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
        outbox.put(raft_pb2.RaftMessage(introduction=raft_pb2.RaftMessage.Introduction(address=self._own)))

        def on_receipt(receipt: raft_pb2.RaftReceipt) -> None:
            self.versions[peer] = receipt.version or OLDEST
            self._outboxes[peer] = outbox
            self._connected(peer)

        try:
            await converse(stream, outbox, on_receipt)
        finally:
            if self._outboxes.get(peer) is outbox:
                del self._outboxes[peer]
                self._disconnected(peer)
