"""A region of one worker in memory: the test plays counting, a frontend that serves code, a manager and a client."""

import asyncio
import contextlib
import hashlib
import io
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

from chassis.certificates import TlsFiles
from chassis.clock import Clock
from chassis.config import NodeConfig
from chassis.faults import Fault
from chassis.memory_network import Fabric
from chassis.rpc import Caller, Handlers, Network, StreamNetwork
from protos import common_pb2, counting_pb2, counting_rpc, frontend_pb2, frontend_rpc, worker_pb2, worker_rpc
from simulation.sandbox_driver import MemoryDriver
from worker.config import WorkerConfig
from worker.logs import MemoryFiles
from worker.sandbox.driver import SandboxDriver
from worker.service import WorkerService

ARCHIVE = b"PK code of a function"
Frame = worker_pb2.InvokeFrame
Order = worker_pb2.ManagerOrder
HELLO = common_pb2.FunctionId(account="000000000000", function="hello", version="$LATEST", revision=1)
SESSION = common_pb2.Session(frontend="frontend-1", epoch=3)


def caller(service: str, node: str = "") -> Caller:
    return Caller(service=service, node=node or f"{service}-1", az="az1", host="h1")


def worker_config(**changes) -> WorkerConfig:
    node = NodeConfig(
        service="worker", node="worker-1", az="az1", host="h1", listen="h1:7000", placement=(),
        tls=TlsFiles(authority="", certificate="", key=""), check=True,
    )
    fields = {
        "counting": {"counting-1": "counting:1"}, "memory_mb": 1024, "state_dir": "/s", "runtimes_dir": "/r", **changes
    }
    return WorkerConfig(node=node, **fields)


@dataclass
class Ledger:
    """A member of counting that always leads."""

    authority_s: float = 120.0
    grace_s: float = 30.0
    silent: bool = False        # hears and answers nothing
    slow_s: float = 0.0         # before a renewal is answered
    left: bool = False          # the worker said so: it is no member any more
    streams: list[Any] = field(default_factory=list)
    heard: list[Any] = field(default_factory=list)
    watermarks: tuple[common_pb2.Session, ...] = ()

    def handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(counting_rpc.WORKER, self.worker)
        return handlers

    async def worker(self, stream, _):
        self.streams.append(stream)
        answer = counting_pb2.WorkerAnswer
        stamp = counting_pb2.Stamp(term=1)
        while (message := await stream.receive()) is not None:
            self.heard.append(message)
            if self.silent:
                continue
            match message.WhichOneof("message"):
                case "leave":
                    self.left = True
                case "join" | "renew" if self.left:
                    await stream.send(answer(stamp=stamp, evicted=answer.Evicted()))
                case "join":
                    await stream.send(answer(stamp=stamp, joined=answer.FenceTable(watermarks=self.watermarks)))
                case "renew":
                    await asyncio.sleep(self.slow_s)
                    renewed = answer.Renewed(
                        number=message.renew.number, authority_s=self.authority_s, grace_s=self.grace_s
                    )
                    await stream.send(answer(stamp=stamp, renewed=renewed))
                case "end":
                    applied = answer.EndApplied(invocation=message.end.invocation)
                    await stream.send(answer(stamp=stamp, end_applied=applied))
                case _:
                    pass

    async def fence(self, session) -> None:
        fence = counting_pb2.WorkerAnswer.Fence(session=session)
        await self.streams[-1].send(counting_pb2.WorkerAnswer(stamp=counting_pb2.Stamp(term=1), fence=fence))


class Client:
    """A frontend's side of the Invoke stream."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.frames: dict[str, asyncio.Queue[Any]] = {}
        self.sending = asyncio.Lock()
        self.welcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self):
        with contextlib.suppress(Fault):  # the region ends, or a test breaks the stream
            while (frames := await self.stream.receive()) is not None:
                for frame in frames.frames:
                    if frame.HasField("welcome"):
                        self.welcome.set_result(frame.welcome)
                    else:
                        self.of(frame.invocation).put_nowait(frame)

    def of(self, invocation) -> asyncio.Queue[Any]:
        return self.frames.setdefault(invocation, asyncio.Queue())

    async def send(self, *frames) -> None:
        async with self.sending:  # one writer at a time, as a stream demands
            await self.stream.send(worker_pb2.InvokeFrames(frames=frames))

    async def next(self, invocation):
        return await asyncio.wait_for(self.of(invocation).get(), 2000)

    async def answer(self, invocation) -> "Answer":
        """Everything until End or NeverStarted, chunks joined, credit given as they come."""
        answer = Answer()
        while True:
            frame = await self.next(invocation)
            kind = frame.WhichOneof("frame")
            answer.kinds.append(kind)
            match kind:
                case "response":
                    answer.error = frame.response.function_error
                    answer.body = frame.response.payload
                    answer.content_type = frame.response.content_type
                case "chunk":
                    answer.body += frame.chunk.data
                    credit = Frame.Credit(bytes=len(frame.chunk.data))
                    await self.send(Frame(invocation=invocation, credit=credit))
                case "result":
                    answer.result = frame.result
                case "never_started":
                    answer.refusal = Frame.NeverStarted.Reason.Name(frame.never_started.reason)
                    return answer
                case "end":
                    return answer


@dataclass
class Answer:
    kinds: list[Any] = field(default_factory=list)
    body: bytes = b""
    error: str = ""
    content_type: str = ""
    refusal: str = ""
    result: worker_pb2.InvokeFrame.Result = field(default_factory=Frame.Result)

    @property
    def json(self):
        return json.loads(self.body)


class Region:
    def __init__(
        self, clock: Clock, *, driver: SandboxDriver | None = None, archive: bytes = ARCHIVE,
        scratch: Callable[[], BinaryIO] = io.BytesIO, **config,
    ) -> None:
        self.clock = clock
        self.fabric = Fabric()
        self.ledger = Ledger()
        self.driver: Any = driver or MemoryDriver()
        self.fetches = 0
        self.ended = asyncio.Event()
        self.archive = archive
        self.sha256 = hashlib.sha256(archive).hexdigest()
        self.size = len(archive)
        network = self.fabric.network(caller("worker", "worker-1"))
        self.worker = WorkerService(
            worker_config(**config), network=network, streams=network, driver=self.driver,
            clock=self.clock, rng=random.Random(1), log_files=MemoryFiles(), scratch=scratch,
            end_process=self.ended.set,
        )

    async def __aenter__(self) -> Self:
        await self.serve()
        await self.worker.start()
        await self.meet("h1:7000")
        return self

    async def __aexit__(self, *exc) -> None:
        await self.worker.close()

    def streams(self, caller: Caller) -> StreamNetwork:
        return self.network(caller)

    def network(self, caller: Caller) -> Network:
        return self.fabric.network(caller)

    async def serve(self, counting="counting:1", frontend="frontend:1") -> None:
        """The parts that the test plays: a member of the ledger, and a frontend that has the code."""
        ledger = await self.network(caller("counting")).serve(counting, self.ledger.handlers())
        handlers = Handlers()
        handlers.fetch(frontend_rpc.FETCH, self.fetch)
        served = await self.network(caller("frontend")).serve(frontend, handlers)
        self.servers = [ledger, served]
        self.code_addresses = ["nobody:1", served.address]

    async def meet(self, address: str) -> None:
        """Adopts the worker at an address and opens a frontend's stream to it."""
        self.address = address
        channel = self.network(caller("worker_manager")).connect(address, service="worker")
        self.manager: Any = channel.stream(worker_rpc.MANAGE)
        await self.manager.send(Order(lease=1, adopt=Order.Adopt(manager="m1", lease=1, lasts_s=36000)))
        self.inventory = await self.news("inventory")
        async with asyncio.timeout(60):
            while not any(message.HasField("renew") for message in self.ledger.heard):
                await asyncio.sleep(0.01)
            while True:
                await asyncio.sleep(0.05)  # the answer to that renewal is on its way
                if self.may_start():
                    break
        self.client = await self.connect()

    def may_start(self) -> bool:
        """Whether the worker has heard that it has authority."""
        return self.worker.agent.core.authority.missing(self.clock.monotonic()) == ""

    async def connect(self, node: str = "frontend-1") -> Client:
        channel = self.streams(caller("frontend", node)).connect(self.inventory.invoke_address, service="worker")
        client = Client(channel.stream(worker_rpc.INVOKE))
        await client.send(Frame(hello=Frame.Hello(frontend=node)))
        await client.welcome
        return client

    async def fetch(self, request, _) -> AsyncIterator[frontend_pb2.CodeChunk]:
        self.fetches += 1
        assert request.ticket.sha256
        for start in range(0, len(self.archive), 1024):
            yield frontend_pb2.CodeChunk(data=self.archive[start:start + 1024])

    async def order(self, **order) -> None:
        await self.manager.send(Order(lease=1, **order))

    async def news(self, kind: str):
        """The next event of a kind; others are skipped."""
        while True:
            event = await asyncio.wait_for(self.manager.receive(), 2000)
            if event.WhichOneof("event") == kind:
                return getattr(event, kind)

    async def create(
        self, sandbox="s1", handler="echo", timeout_s=3, memory_mb=128, on_demand=True,
        runtime="python3.11", **config,
    ) -> None:
        settings = worker_pb2.FunctionConfig(
            arn="arn:aws:lambda:us-east-1:000000000000:function:hello", runtime=runtime, handler=f"app.{handler}",
            memory_mb=memory_mb, timeout_s=timeout_s, tmp_mb=512, code_sha256=self.sha256, code_size=self.size,
            region="us-east-1", **config,
        )
        ticket = worker_pb2.CodeTicket(sha256=self.sha256, size=self.size, addresses=self.code_addresses)
        await self.order(create=Order.Create(
            sandbox=sandbox, function=HELLO, config=settings, ticket=ticket, sequence=1, cause="cold", deadline_s=60,
            on_demand=on_demand,
        ))

    async def ready(self, sandbox="s1", **config):
        await self.create(sandbox, **config)
        return await self.news("ready")

    def start(self, sandbox="s1", payload=b"{}", sequence=1, size=None, deadline_s=60.0, lease=1, **fields):
        pool = common_pb2.Pool(account="000000000000", kind=common_pb2.Pool.UNRESERVED)
        return Frame.Start(
            reservation=common_pb2.Reservation(
                worker="worker-1", incarnation=self.inventory.incarnation, lease=lease, sandbox=sandbox,
                sequence=sequence,
            ),
            block=common_pb2.BlockId(session=SESSION, pool=pool), function=HELLO, deadline_s=deadline_s,
            invoked_arn="arn:aws:lambda:us-east-1:000000000000:function:hello", payload=payload,
            payload_size=len(payload) if size is None else size, **fields,
        )

    async def invoke(self, invocation="i1", **fields) -> Answer:
        await self.client.send(Frame(invocation=invocation, start=self.start(**fields)))
        return await self.client.answer(invocation)

    async def send_whole(self, invocation: str, payload: bytes, **fields) -> Answer:
        """A payload in chunks, as credit allows."""
        await self.client.send(Frame(invocation=invocation, start=self.start(payload=b"", size=len(payload), **fields)))
        sent, window = 0, 256 * 1024
        while sent < len(payload):
            data = payload[sent:sent + min(65536, window)]
            sent += len(data)
            window -= len(data)
            chunk = Frame.Chunk(data=data, last=sent == len(payload))
            await self.client.send(Frame(invocation=invocation, chunk=chunk))
            while window == 0:
                window += (await self.client.next(invocation)).credit.bytes
        return await self.client.answer(invocation)
