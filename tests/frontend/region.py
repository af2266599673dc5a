"""Small peers of a frontend that speak the real protocols in memory: ledger, manager, workers, placement.

Each keeps only the promises that a frontend relies on. They are not the services: those have tests of their own.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chassis.certificates import TlsFiles
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.faults import Fault
from chassis.memory_network import Fabric
from chassis.process import Tasks
from chassis.rpc import Caller, Handlers, Outbox, Server, Stream, converse
from frontend.api.model import Model
from frontend.api.ports import InvokeRequest
from frontend.config import FrontendConfig
from frontend.functions import Code, Configuration, FunctionRecord, Phase
from frontend.service import FrontendService, World
from protos import (
    common_pb2,
    counting_pb2,
    counting_rpc,
    placement_pb2,
    placement_rpc,
    worker_manager_pb2,
    worker_manager_rpc,
    worker_pb2,
    worker_rpc,
)
from storage.memory import MemoryBlobs, MemoryMetadata

Answer = counting_pb2.FrontendAnswer
Frame = worker_pb2.InvokeFrame
ACCOUNT = "000000000000"
NO_TLS = TlsFiles(authority="", certificate="", key="")
COLD = worker_pb2.ColdPhases(place_ms=1, code_ms=3, sandbox_ms=9, runtime_ms=45, init_ms=2)


class Plain:
    """A cipher that encrypts nothing: what is at rest isn't tested here."""

    def encrypt(self, plain: bytes, record: str) -> bytes:
        return plain

    def decrypt(self, encrypted: bytes, record: str) -> bytes:
        return encrypted


@dataclass
class Block:
    outbox: Outbox[Any]
    link: int
    size: int = 0
    applied: int = 0


class MemoryCounting:
    """One pool, no top-ups: a free permit goes to the oldest request that waits, else a round of recalls is proof."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.term, self.index, self.rounds = 1, 0, 0
        self.blocks: dict[str, Block] = {}
        self.waiting: list[tuple[str, int]] = []    # (frontend, id), oldest first
        self.pending: set[str] = set()
        self.bound: list[tuple[str, int]] = []
        self.found = False
        self.throttled = 0
        self.gone: set[tuple[str, int]] = set()     # worker incarnations that are members no more
        self.pool = common_pb2.Pool(account=ACCOUNT, kind=common_pb2.Pool.UNRESERVED)

    def handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(counting_rpc.FRONTEND, self.frontend)
        handlers.unary(counting_rpc.GET_LIMITS, self.get_limits)
        handlers.unary(counting_rpc.SET_RESERVED, self.set_reserved)
        return handlers

    async def get_limits(self, request, caller):
        return counting_pb2.GetLimitsAnswer(account_limit=self.limit, unreserved=self.limit)

    async def set_reserved(self, request, caller):
        if request.value > 900:
            return counting_pb2.SetReservedAnswer(below_floor=counting_pb2.SetReservedAnswer.BelowFloor(floor=100))
        return counting_pb2.SetReservedAnswer(generation=1, changed=True)

    @property
    def granted(self) -> int:
        return sum(block.size for block in self.blocks.values())

    async def frontend(self, stream: Stream[Any, Any], caller: Caller) -> None:
        outbox: Outbox[Any] = Outbox(stream)
        try:
            await converse(stream, outbox, lambda message: self.hear(caller.node, outbox, message))
        finally:
            block = self.blocks.get(caller.node)
            if block is not None and block.outbox is outbox:
                self.pending.discard(caller.node)

    def say(self, node: str, **answer) -> None:
        stamp = counting_pb2.Stamp(term=self.term, index=self.index)
        self.blocks[node].outbox.put(Answer(stamp=stamp, **answer))

    def hear(self, node, outbox, message) -> None:
        kind = message.WhichOneof("message")
        if kind == "hello":
            block = self.blocks.setdefault(node, Block(outbox, 0))
            block.outbox = outbox
            session = common_pb2.Session(frontend=node, epoch=1)
            self.say(node, welcome=Answer.Welcome(session=session, applied_sequence=block.applied))
            return
        block = self.blocks[node]
        if kind == "ask":
            self.ask(node, list(message.ask.waiting))
        elif kind == "give_back":
            if message.sequence == block.applied + 1:
                block.applied += 1
                block.size -= message.give_back.count
                assert block.size >= 0
        elif kind == "recall_answer":
            self.found |= message.recall_answer.given_back > 0
            self.pending.discard(node)
        elif kind == "ask_gone":
            gone = [i for i in message.ask_gone.incarnations if (i.host, i.nonce) in self.gone]
            self.say(node, gone=Answer.Gone(incarnations=gone))
        elif kind == "goodbye":
            assert block.size == 0, "goodbye with permits in hand"
            self.say(node, fenced=Answer.Fenced())
            del self.blocks[node]
        self.advance()

    def ask(self, node, ids) -> None:
        self.waiting = [w for w in self.waiting if w[0] != node or w[1] in ids]
        self.waiting += [(node, id_) for id_ in ids if (node, id_) not in self.waiting]

    def advance(self) -> None:
        while self.waiting and self.granted < self.limit:
            node, id_ = self.waiting.pop(0)
            if (node, id_) in self.bound:
                self.bound.remove((node, id_))
            block = self.blocks[node]
            block.size += 1
            self.index += 1
            self.say(node, grant=Answer.Grant(
                pool=self.pool, count=1, applied_sequence=block.applied, size=block.size
            ))
        if self.bound and not self.pending:
            bound, self.bound = self.bound, []
            if not self.found:
                for node, id_ in bound:
                    if (node, id_) in self.waiting:
                        self.waiting.remove((node, id_))
                        self.throttled += 1
                        self.say(node, throttled=Answer.Throttled(
                            pool=self.pool, waiting=[id_], limit=self.limit, in_use=self.granted, round=self.rounds
                        ))
        if self.waiting and not self.bound:
            self.rounds += 1
            self.bound, self.found = list(self.waiting), False
            self.pending = {node for node, block in self.blocks.items() if block.size}
            for node in sorted(self.pending):
                self.say(node, recall=Answer.Recall(round=self.rounds, pool=self.pool))
            if not self.pending:
                assert self.granted == 0, "a round without holders"
                self.advance()


@dataclass
class Sandbox:
    name: str
    worker: "MemoryWorker"
    function: common_pb2.FunctionId
    sequence: int = 1
    holder: Outbox[Any] | None = None
    used: int = 0


class MemoryManager:
    """Gives each request an idle sandbox of its function, or has one made at once."""

    def __init__(self, node: str, workers: list["MemoryWorker"], linger_s: float = 0.05) -> None:
        self.node = node
        self.workers = workers
        self.linger_s = linger_s
        self.pass_on_s = 0.0
        self.sandboxes: dict[str, Sandbox] = {}
        self.refusals: list[worker_manager_pb2.ManagerReply.Refused] = []
        self.asked = self.made = 0
        self.cancelled: list[str] = []
        self.served: list[str] = []     # of those: under a reservation that was passed on
        self.revised: list[worker_manager_pb2.FrontendRequest.Revised] = []
        self.hold: asyncio.Event | None = None    # set: reservations wait for it
        self.tasks = Tasks()

    def handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(worker_manager_rpc.RESERVE, self.reserve)
        return handlers

    async def reserve(self, stream: Stream[Any, Any], caller: Caller) -> None:
        outbox: Outbox[Any] = Outbox(
            stream, combine=lambda replies: worker_manager_pb2.ManagerReplies(replies=replies)
        )

        def hear(requests) -> None:
            for request in requests.requests:
                match request.WhichOneof("request"):
                    case "reserve":
                        self.tasks.start(self.serve(outbox, request), name=f"reserve {request.invocation}")
                    case "release":
                        sandbox = self.sandboxes.get(request.release.sandbox)
                        if sandbox is not None and sandbox.sequence == request.release.sequence:
                            sandbox.holder = None
                    case "cancel":
                        self.cancelled.append(request.invocation)
                        if request.cancel.served:
                            self.served.append(request.invocation)
                    case "revised":
                        self.revised.append(request.revised)
                        if request.invocation:
                            reply = worker_manager_pb2.ManagerReply(invocation=request.invocation)
                            reply.retired.SetInParent()
                            outbox.put(reply)

        await converse(stream, outbox, hear)

    async def serve(self, outbox, request) -> None:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.refusals:
            refused = self.refusals.pop(0)
            outbox.put(worker_manager_pb2.ManagerReply(invocation=request.invocation, refused=refused))
            return
        wanted = request.reserve.function
        idle = [s for s in self.sandboxes.values() if s.function == wanted and s.holder is None]
        cold = not idle
        if cold:
            self.made += 1
            worker = self.workers[self.made % len(self.workers)]
            sandbox = Sandbox(f"s{self.made}", worker, wanted)
            self.sandboxes[sandbox.name] = sandbox
            worker.sandboxes[sandbox.name] = sandbox
        else:
            sandbox = max(idle, key=lambda s: s.used)
            sandbox.sequence += 1
        sandbox.holder = outbox
        sandbox.used = self.made
        reply = worker_manager_pb2.ManagerReply.Reserved(
            reservation=common_pb2.Reservation(
                worker=sandbox.worker.node, address=sandbox.worker.address, incarnation=sandbox.worker.incarnation,
                lease=1, sandbox=sandbox.name, sequence=sandbox.sequence,
            ),
            cold=cold, linger_s=self.linger_s, pass_on_s=self.pass_on_s,
            phases=COLD if cold else None,
        )
        outbox.put(worker_manager_pb2.ManagerReply(invocation=request.invocation, reserved=reply))

    def recall(self, sandbox: Sandbox) -> None:
        assert sandbox.holder is not None
        recall = worker_manager_pb2.ManagerReply.Recall(sandbox=sandbox.name, sequence=sandbox.sequence)
        sandbox.holder.put(worker_manager_pb2.ManagerReply(recall=recall))


@dataclass
class Run:
    start: Frame.Start
    data: bytearray = field(default_factory=bytearray)
    credit: int = 256 * 1024
    unsent: bytes = b""
    begun: bool = False


class MemoryWorker:
    """Starts what it is told to, refuses what it must, and answers with what ``function`` makes of the payload."""

    def __init__(self, node: str, host: str) -> None:
        self.node = node
        self.address = ""
        self.incarnation = common_pb2.Incarnation(host=host, nonce=1)
        self.sandboxes: dict[str, Sandbox] = {}
        self.running: dict[str, Run] = {}
        self.barred: set[str] = set()
        self.starts: list[str] = []
        self.peak = 0
        self.refuse: list[Frame.NeverStarted] = []
        self.takes_s = 0.0
        self.hold: asyncio.Event | None = None           # set: results wait for it
        self.hold_end: asyncio.Event | None = None       # set: ENDs wait for it
        self.function: Callable[[bytes], bytes] = lambda payload: payload
        self.outboxes: dict[str, Outbox[Any]] = {}            # by frontend: its newest stream
        self.owners: dict[str, str] = {}                 # invocation -> frontend
        self.tasks = Tasks()

    def handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(worker_rpc.INVOKE, self.invoke)
        return handlers

    async def invoke(self, stream: Stream[Any, Any], caller: Caller) -> None:
        outbox: Outbox[Any] = Outbox(stream, combine=lambda frames: worker_pb2.InvokeFrames(frames=frames))
        self.outboxes[caller.node] = outbox

        def hear(frames) -> None:
            for frame in frames.frames:
                self.hear(caller.node, frame)

        await converse(stream, outbox, hear)

    def say(self, invocation: str, **frame) -> None:
        self.outboxes[self.owners[invocation]].put(Frame(invocation=invocation, **frame))

    def hear(self, frontend: str, frame: Frame) -> None:
        invocation = frame.invocation
        self.owners[invocation] = frontend
        match frame.WhichOneof("frame"):
            case "hello":
                mine = [name for name in self.running if self.owners[name] == frontend]
                self.say("", welcome=Frame.Welcome(incarnation=self.incarnation, running=mine))
            case "start":
                self.start(invocation, frame.start)
            case "chunk":
                run = self.running[invocation]
                assert len(frame.chunk.data) <= 64 * 1024
                run.data += frame.chunk.data
                self.say(invocation, credit=Frame.Credit(bytes=len(frame.chunk.data)))
                if frame.chunk.last:
                    self.begin(invocation, run)
            case "credit":
                if invocation in self.running:
                    self.running[invocation].credit += frame.credit.bytes
                    self.pump(invocation, self.running[invocation])

    def never(self, invocation, reason, detail="") -> None:
        self.barred.add(invocation)
        self.say(invocation, never_started=Frame.NeverStarted(reason=reason, detail=detail))

    def start(self, invocation: str, start: Frame.Start) -> None:
        self.starts.append(invocation)
        sandbox = self.sandboxes.get(start.reservation.sandbox)
        refusal = Frame.NeverStarted
        if invocation in self.barred:
            self.never(invocation, refusal.BARRED)
        elif self.refuse:
            self.barred.add(invocation)
            self.say(invocation, never_started=self.refuse.pop(0))
        elif start.reservation.incarnation != self.incarnation:
            self.never(invocation, refusal.WRONG_INCARNATION)
        elif sandbox is None:
            self.never(invocation, refusal.UNKNOWN_SANDBOX)
        elif start.reservation.sequence < sandbox.sequence:
            self.never(invocation, refusal.STALE_SEQUENCE)
        elif any(run.start.reservation.sandbox == sandbox.name for run in self.running.values()):
            self.never(invocation, refusal.BUSY)
        elif start.function != sandbox.function:
            self.never(invocation, refusal.WRONG_FUNCTION)
        elif start.deadline_s <= 0:
            self.never(invocation, refusal.SHED)
        else:
            run = self.running[invocation] = Run(start)
            self.peak = max(self.peak, len(self.running))
            run.data += start.payload
            if len(run.data) == start.payload_size:
                self.begin(invocation, run)

    def begin(self, invocation: str, run: Run) -> None:
        run.begun = True
        self.tasks.start(self.run(invocation, run), name=f"run {invocation}")

    async def run(self, invocation: str, run: Run) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        payload = self.function(bytes(run.data))
        whole = len(payload) <= 64 * 1024
        self.say(invocation, response=Frame.Response(
            size=len(payload), payload=payload if whole else b"", complete=whole, content_type="application/json"
        ))
        if not whole:
            run.unsent = payload
            self.pump(invocation, run)
            while run.unsent:
                await asyncio.sleep(0.001)
        self.say(invocation, result=Frame.Result(
            executed_version="$LATEST", duration_ms=1.5, billed_ms=2, memory_peak_mb=40, status="success",
            log_tail=b"END", cold=False,
        ))
        if self.hold_end is not None:
            await self.hold_end.wait()
        del self.running[invocation]
        self.say(invocation, end=Frame.End())

    def pump(self, invocation: str, run: Run) -> None:
        while run.unsent and run.credit > 0:
            size = min(64 * 1024, run.credit)
            data, run.unsent = run.unsent[:size], run.unsent[size:]
            run.credit -= len(data)
            self.say(invocation, chunk=Frame.Chunk(data=data, last=not run.unsent))


class MemoryPlacement:
    """Tells everybody the same view."""

    def __init__(self) -> None:
        self.view = placement_pb2.RegionView(term=1, version=0, active=True, leader="placement-1", whole=True)
        self.outboxes: list[Outbox[Any]] = []

    def handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(placement_rpc.REGISTER, self.register)
        return handlers

    def publish(self, nodes, managers) -> None:
        self.view.version += 1
        del self.view.nodes[:], self.view.owners[:]
        self.view.nodes.extend(nodes)
        self.view.owners.extend(
            placement_pb2.RegionView.Owner(manager=node, address=address) for node, address in managers
        )
        for outbox in self.outboxes:
            outbox.put(self.view)

    async def register(self, stream: Stream[Any, Any], caller: Caller) -> None:
        outbox: Outbox[Any] = Outbox(stream)
        self.outboxes.append(outbox)
        outbox.put(self.view)
        try:
            await converse(stream, outbox, lambda _report: None)
        finally:
            self.outboxes.remove(outbox)


class Region:
    """Everything that one or more frontends need, on one fabric."""

    def __init__(self, clock: Clock, *, limit: int = 10, linger_s: float = 0.05, workers: int = 1) -> None:
        self.clock = clock
        self.fabric: Any = Fabric()
        self.anywhere = "mem:0"     # an address with any free port
        self.counting = MemoryCounting(limit)
        self.workers = [MemoryWorker(f"worker-az{n}", f"h{n}") for n in range(1, workers + 1)]
        self.manager = MemoryManager("manager-1", self.workers, linger_s)
        self.placement = MemoryPlacement()
        self.metadata = MemoryMetadata(clock)
        self.blobs = MemoryBlobs()
        self.frontends: list[FrontendService] = []
        self.servers: dict[str, Server] = {}
        self.nodes: list[placement_pb2.Node] = []

    async def serve(self, service: str, node: str, handlers: Handlers, host: str = "h0") -> str:
        caller = Caller(service=service, node=node, az="az1", host=host)
        server = await self.fabric.network(caller).serve(self.anywhere, handlers)
        self.servers[node] = server
        self.nodes.append(placement_pb2.Node(
            node=node, service=service, az="az1", host=host, address=server.address, health="serving", nonce=1,
            capacity=placement_pb2.WorkerCapacity(runtimes=["python3.11"]) if service == "worker" else None,
        ))
        return str(server.address)

    async def start_counting(self) -> dict[str, str]:
        """The ledger's members; their addresses."""
        return {"counting-az1": await self.serve("counting", "counting-az1", self.counting.handlers())}

    async def start(self, frontends: int = 1) -> None:
        counting = await self.start_counting()
        for worker in self.workers:
            worker.address = await self.serve(
                "worker", worker.node, worker.handlers(), worker.incarnation.host
            )
        manager = await self.serve("worker_manager", self.manager.node, self.manager.handlers())
        placement = await self.serve("placement", "placement-1", self.placement.handlers())
        self.placement.publish(self.nodes, [(self.manager.node, manager)])
        for number in range(1, frontends + 1):
            node = f"frontend-az{number}"
            caller = Caller(service="frontend", node=node, az=f"az{number}", host=f"h{number}")
            frontend = FrontendService(
                FrontendConfig(
                    node=NodeConfig(
                        service="frontend", node=node, az=f"az{number}", host=f"h{number}", listen=self.anywhere,
                        placement=(placement,), tls=NO_TLS, check=True,
                    ),
                    counting=counting, store="memory:", key_file="", permit_s=1.0,
                ),
                World(
                    network=self.fabric.network(caller), streams=self.fabric.network(caller), clock=self.clock,
                    rng=random.Random(number), metadata=self.metadata, blobs=self.blobs, cipher=Plain(),
                    data_key=b"k" * 32, nonce=number, model=NO_MODEL,
                ),
            )
            await frontend.start()
            await frontend.register(http="", pid=1, version="0")
            self.frontends.append(frontend)

    async def close(self) -> None:
        for frontend in self.frontends:
            await frontend.close()
        for server in self.servers.values():
            await server.close(0)
        await self.manager.tasks.cancel()
        for worker in self.workers:
            await worker.tasks.cancel()

    async def invoke(self, payload: bytes = b"{}", *, frontend: int = 0, request_id: str = "", **changes):
        self._requests = getattr(self, "_requests", 0) + 1
        return await self.frontends[frontend].invoker.invoke(
            self.request(payload, request_id or f"r{self._requests}", **changes)
        )

    def request(self, payload: bytes, request_id: str, *, within_s: float = 10.0, **record) -> InvokeRequest:
        return InvokeRequest(
            request_id=request_id, account=ACCOUNT, function=function(**record), qualifier=None,
            invoked_arn=f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:hello", payload=payload, client_context=None,
            log_tail=True, trace_id="Root=1-0-0", deadline=self.clock.monotonic() + within_s,
        )


# The API is not called here: reading the real description would cost a third of a second.
NO_MODEL = Model(operations={}, shapes={}, runtimes=())


def function(name: str = "hello", revision: int = 1) -> FunctionRecord:
    return FunctionRecord(
        account=ACCOUNT, name=name, revision=revision, revision_id="r", phase=Phase.ACTIVE,
        configuration=Configuration(role="role", runtime="python3.11", handler="app.main"),
        code=Code(sha256="0" * 64, size_bytes=10), last_modified="", changed_at=0.0,
    )


async def until(true: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


__all__ = ["Fault", "Region", "function", "until"]
