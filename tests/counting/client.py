"""A small frontend that speaks counting's protocol: what end-to-end tests and the benchmark hold permits with.

Honest and plain: one waiting list and one block per pool, streams to all members, answers recalls and generations.
"""

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from chassis.faults import Fault
from chassis.process import Tasks
from chassis.rpc import Caller, Network, Outbox, converse
from protos import common_pb2, counting_pb2, counting_rpc

Up = counting_pb2.FrontendMessage
WorkerUp = counting_pb2.WorkerMessage
HEARTBEAT_S = 0.5
REFUSED_S = 60.0


@dataclass
class Held:
    size: int = 0
    in_use: int = 0
    old: int = 0            # of in_use, taken under an older generation: given back when they end
    seen: int = 0
    waiting: dict[int, "asyncio.Future[None]"] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, answer):
        super().__init__(str(answer).replace("\n", " "))
        self.answer = answer


class Client:
    """``take`` waits for a permit or raises Refused; ``give`` says that the run has ended."""

    def __init__(self, network: Network, name: str, addresses: dict[str, str], nonce: int = 1):
        self.name = name
        self.nonce = nonce
        self.session: Any = None
        self.leader = ""
        self.stamp = (0, 0)
        self.held: dict[bytes, Held] = {}
        self.generations: dict[bytes, int] = {}
        self.mute = False           # a hung process: hears nothing and says nothing
        self._network = network
        self._addresses = addresses
        self._outboxes: dict[str, Outbox[Any]] = {}
        self._ids = itertools.count(1)
        self._sequence = 0
        self._unapplied: deque[Up] = deque()
        self._asking: set[bytes] = set()
        self._returning: dict[bytes, int] = {}  # permits handed back in this turn of the event loop
        self._tasks = Tasks()
        self._welcomed = asyncio.Event()

    async def start(self) -> "Client":
        for node, address in self._addresses.items():
            self._tasks.start(self._follow(node, address), name=f"{self.name} to {node}")
        self._tasks.start(self._beat(), name=f"{self.name} beats")
        return self

    async def welcomed(self, within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            await self._welcomed.wait()

    async def stop(self) -> None:
        await self._tasks.cancel()

    # ---------------------------------------------------------------- permits

    def block(self, pool: common_pb2.Pool) -> Held:
        return self.held.setdefault(pool.SerializeToString(deterministic=True), Held())

    async def take(self, pool: common_pb2.Pool, within_s: float = 5.0) -> None:
        block = self.block(pool)
        if block.in_use < block.size:
            block.in_use += 1
            return
        number = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        block.waiting[number] = future
        self._ask(pool)
        try:
            async with asyncio.timeout(within_s):
                await future
        finally:
            block.waiting.pop(number, None)

    async def refused(self, pool: common_pb2.Pool) -> Any:
        """What says that the limit is reached. Nobody knows that while there is no leader, or a holder is silent."""
        async with asyncio.timeout(REFUSED_S):
            while True:
                try:
                    await self.take(pool)
                except Refused as refusal:
                    if isinstance(refusal.answer, counting_pb2.FrontendAnswer.Throttled):
                        return refusal.answer
                except TimeoutError:
                    continue
                else:
                    raise AssertionError("it got a permit")

    def give(self, pool):
        block = self.block(pool)
        block.in_use -= 1
        if block.old:
            block.old -= 1
            self._give_back(pool, 1)
        else:
            self._serve(pool)

    def hand_back(self, pool: common_pb2.Pool) -> None:
        """The run has ended, and its permit goes straight back to the ledger: with what else does so in this turn of
        the event loop, in one message, as a frontend gives back what is idle."""
        key = pool.SerializeToString(deterministic=True)
        block = self.block(pool)
        block.in_use -= 1
        block.size -= 1
        if key not in self._returning:
            self._returning[key] = 0
            asyncio.get_running_loop().call_soon(self._return, key, pool)
        self._returning[key] += 1

    def _return(self, key, pool):
        count = self._returning.pop(key, 0)
        if count:
            self._send_back(pool, count)

    def give_back_idle(self, pool) -> int:
        block = self.block(pool)
        idle = block.size - block.in_use
        if idle > 0:
            self._give_back(pool, idle)
        return max(idle, 0)

    def _give_back(self, pool, count):
        self.block(pool).size -= count
        self._send_back(pool, count)

    def _send_back(self, pool, count):
        self._numbered(Up(give_back=Up.GiveBack(pool=pool, generation=self._generation(pool), count=count)))

    def _numbered(self, message):
        self._sequence += 1
        message.sequence = self._sequence
        self._unapplied.append(message)
        self._put(message)

    def _ask(self, pool):
        """What waits at the end of this turn of the event loop goes into one ask."""
        key = pool.SerializeToString(deterministic=True)
        if key not in self._asking:
            self._asking.add(key)
            asyncio.get_running_loop().call_soon(self._ask_now, key, pool)

    def _ask_now(self, key, pool):
        self._asking.discard(key)
        block = self.block(pool)
        if block.waiting:
            self._put(Up(ask=Up.Ask(
                pool=pool, generation=self._generation(pool), waiting=list(block.waiting), seen=block.seen
            )))

    def _serve(self, pool):
        block = self.block(pool)
        for number, future in list(block.waiting.items()):
            if block.in_use >= block.size:
                return
            del block.waiting[number]
            if not future.done():
                block.in_use += 1
                future.set_result(None)

    def _generation(self, pool):
        return self.generations.get(pool.SerializeToString(deterministic=True), 0)

    # ---------------------------------------------------------------- streams

    def _put(self, message):
        outbox = self._outboxes.get(self.leader)
        if outbox is not None and not self.mute:
            outbox.put(message)

    async def _beat(self):
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._put(Up(heartbeat=Up.Heartbeat()))

    async def _follow(self, node, address):
        channel = self._network.connect(address, service="counting", node=node)
        try:
            while True:
                stream = channel.stream(counting_rpc.FRONTEND)
                outbox = self._outboxes[node] = Outbox(stream)
                outbox.put(self._hello())
                try:
                    await converse(stream, outbox, lambda answer: self._hear(node, answer))
                except Fault:
                    pass
                finally:
                    stream.cancel()
                    del self._outboxes[node]
                await asyncio.sleep(0.1)
        finally:
            await channel.close()

    def _hello(self):
        epoch = self.session.epoch if self.session else 0
        return Up(hello=Up.Hello(frontend=self.name, nonce=self.nonce, epoch=epoch, version=1))

    def _hear(self, node, answer):
        if self.mute:
            return
        kind = answer.WhichOneof("message")
        if kind == "not_leader":
            if node == self.leader:
                self.leader = ""
            return
        stamp = (answer.stamp.term, answer.stamp.index)
        if stamp < self.stamp:
            return
        self.stamp = stamp
        getattr(self, f"_on_{kind}")(node, answer, getattr(answer, kind))

    def _on_welcome(self, node, answer, welcome):
        if self.session is not None and welcome.session.epoch != self.session.epoch:
            self._forget()
        self.session, self.leader = welcome.session, node
        self._unapplied = deque(m for m in self._unapplied if m.sequence > welcome.applied_sequence)
        self._sequence = max(self._sequence, welcome.applied_sequence)
        for message in self._unapplied:
            self._put(message)
        for key, block in self.held.items():
            block.seen = answer.stamp.index
            self._ask(common_pb2.Pool.FromString(key))
        self._welcomed.set()

    def _on_grant(self, node, answer, grant):
        block = self.block(grant.pool)
        while self._unapplied and self._unapplied[0].sequence <= grant.applied_sequence:
            self._unapplied.popleft()
        own = sum(
            m.give_back.count for m in self._unapplied if m.HasField("give_back") and m.give_back.pool == grant.pool
        )
        block.size = grant.size - own - self._returning.get(grant.pool.SerializeToString(deterministic=True), 0)
        block.seen = answer.stamp.index
        self._serve(grant.pool)

    def _on_recall(self, node, answer, recall):
        self._return(recall.pool.SerializeToString(deterministic=True), recall.pool)
        self._serve(recall.pool)
        back = self.give_back_idle(recall.pool)
        block = self.block(recall.pool)
        self._put(Up(recall_answer=Up.RecallAnswer(
            round=recall.round, pool=recall.pool, given_back=back, in_use=block.in_use, waiting=len(block.waiting)
        )))

    def _on_throttled(self, node, answer, refusal):
        self._serve(refusal.pool)
        self._refuse(refusal.pool, refusal.waiting, refusal)

    _on_unavailable = _on_throttled

    def _on_generation(self, node, answer, generation):
        pool = generation.pool
        self.generations[pool.SerializeToString(deterministic=True)] = generation.generation
        self.give_back_idle(pool)
        block = self.block(pool)
        block.old = block.in_use
        self._numbered(Up(generation_ack=Up.GenerationAck(
            pool=pool, generation=generation.generation, in_use_older=block.old
        )))
        if generation.gone:     # asked again, it would be told the same, for ever
            self._refuse(pool, list(block.waiting), generation)
        else:
            self._ask(pool)

    def _refuse(self, pool, requests, why):
        waiting = self.block(pool).waiting
        for number in requests:
            future = waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_exception(Refused(why))

    def _on_fenced(self, node, answer, fenced):
        self._forget()
        self._put(self._hello())

    def _forget(self):
        self.session = None
        self._sequence, self._unapplied, self._returning = 0, deque(), {}
        for block in self.held.values():
            block.size = block.in_use = block.old = block.seen = 0


class WorkerClient:
    """A worker's stream to every member: joins, renews, fences and reports what it is told that runs."""

    def __init__(self, region: Any, host: str = "h7", nonce: int = 70) -> None:
        self.region, self.host, self.nonce = region, host, nonce
        self.streams: dict[str, Any] = {}
        self.joined = asyncio.Event()
        self.fenced: list[common_pb2.Session] = []
        self.renewed: list[float] = []
        self.running: list[counting_pb2.Running] = []
        self.leader = ""
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> "WorkerClient":
        caller = Caller(service="worker", node=f"worker-{self.host}", az="az1", host=self.host)
        for name, address in self.region.addresses.items():
            channel = self.region.network(caller).connect(address, service="counting", node=name)
            stream = self.streams[name] = channel.stream(counting_rpc.WORKER)
            incarnation = common_pb2.Incarnation(host=self.host, nonce=self.nonce)
            await stream.send(WorkerUp(join=WorkerUp.Join(incarnation=incarnation, timeout_cap_s=900)))
            self.tasks.append(asyncio.create_task(self.hear(name, stream)))
        await asyncio.wait_for(self.joined.wait(), 5)
        return self

    async def hear(self, name: str, stream: Any) -> None:
        while True:
            try:
                answer = await stream.receive()
            except Fault:
                return
            if answer is None:
                return
            match answer.WhichOneof("message"):
                case "joined":
                    self.leader = name
                    self.joined.set()
                case "renewed":
                    self.renewed.append(answer.renewed.authority_s)
                case "fence":
                    self.fenced.append(answer.fence.session)
                    report = WorkerUp.FenceAck(session=answer.fence.session, running=self.running)
                    await stream.send(WorkerUp(fence_ack=report))

    async def say(self, message: counting_pb2.WorkerMessage) -> None:
        await self.streams[self.leader].send(message)

    async def stop(self) -> None:
        for stream in self.streams.values():
            stream.cancel()
        await asyncio.gather(*self.tasks)
