"""The worker's inbound edge and its wiring: Manage, Invoke and Logs, registration, drain.

Owns which handler belongs to which stream. Refuses to decide anything.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO, Protocol

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.machine import Trace
from chassis.metrics import Metrics
from chassis.process import Tasks
from chassis.rpc import Caller, Handlers, Network, Outbox, Server, StreamNetwork, converse
from protos import placement_pb2, worker_pb2, worker_rpc
from worker import messages as m
from worker.agent import Agent
from worker.code_cache import CodeCache
from worker.config import WorkerConfig
from worker.core import WorkerCore
from worker.invoke_stream import InvokeStream
from worker.logs import FunctionLogs, LogFiles
from worker.metrics import measure, measure_code
from worker.news import News
from worker.peers import CodeFrontends, CountingLinks
from worker.sandbox.driver import SandboxDriver
from worker.timing import Timing
from worker.translation import incarnation_out, news_out, order

LEAVE_S = 5.0   # how long a drained worker waits for the ledger's word that it left: a change of leaders takes two

_log = structlog.get_logger(__name__)


class ScratchFiles(Protocol):
    def __call__(self) -> BinaryIO:
        """A new, empty, seekable file that has no name."""
        ...


class WorkerService:
    """One worker's agent. ``start`` serves; ``drain`` gives everything back.

    ``end_process`` is called when this incarnation may do nothing more: it must lead to ``drain`` and to a new process.
    """

    def __init__(
        self, config: WorkerConfig, *, network: Network, streams: StreamNetwork, driver: SandboxDriver, clock: Clock,
        rng: random.Random,
        log_files: LogFiles, scratch: ScratchFiles, end_process: Callable[[], None],
        pid: int = 0, trace: Trace | None = None, metrics: Metrics | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        node = config.node
        self.incarnation = m.Incarnation(host=node.host, nonce=rng.getrandbits(63))
        self._network = network
        self._streams = streams
        self._driver = driver
        self._clock = clock
        self._rng = rng
        self._scratch = scratch
        self._end_process = end_process
        self._pid = pid
        self._trace = trace
        self._tasks = Tasks()
        self._numbers = itertools.count(1)
        self._server: Server | None = None
        self._invoke_server: Server | None = None
        self.logs = FunctionLogs(log_files)
        self.agent: Agent
        self.directory: Directory
        self._counting: CountingLinks
        self._code: CodeFrontends

    async def start(self) -> "WorkerService":
        config, node = self.config, self.config.node
        await self._driver.start()
        self._runtimes = tuple(self._driver.runtimes())
        parameters: dict[str, Any] = {
            "incarnation": self.incarnation, "memory_mb": config.memory_mb, "sandboxes_max": config.sandboxes_max,
            "runtimes": self._runtimes, "timeout_cap_s": config.timeout_cap_s,
        }
        core = WorkerCore(**parameters)
        timing = Timing(clock=self._clock, init_s=config.init_s, freeze_after_s=config.freeze_after_s)
        self.agent = agent = Agent(
            core, driver=self._driver, logs=self.logs, timing=timing, rng=self._rng, clock=self._clock,
            tasks=self._tasks, log_bytes_per_invocation=config.log_bytes_per_invocation, trace=self._trace,
            check=node.check, end_process=self._end_process, parameters=parameters,
            observe=measure(self.metrics, core, self._clock),
        )
        self._counting = CountingLinks(
            network=self._network, seeds=config.counting, clock=self._clock, incarnation=self.incarnation,
            timeout_cap_s=config.timeout_cap_s, renew_s=config.renew_s, tasks=self._tasks, feed=agent.feed,
            running=core.running,
        )
        self._server = await self._network.serve(node.listen, self._handlers())
        invoke_listen = config.invoke_listen or f"{node.listen.rsplit(':', 1)[0]}:0"
        self._invoke_server = await self._streams.serve(invoke_listen, self._invoke_handlers())
        self.directory = Directory(
            network=self._network, clock=self._clock, seeds=node.placement, node=self._node(self.address)
        )
        self.directory.refresh = self._tell_idle
        self._code = CodeFrontends(network=self._network, directory=self.directory)
        code = CodeCache(driver=self._driver, source=self._code, scratch=self._scratch, tasks=self._tasks)
        measure_code(self.metrics, code)
        agent.connect(code=code, counting=self._counting, load=self._load_changed)
        self.logs.start()
        self._counting.start()
        self.directory.observe(self._counting.see)
        self.directory.start()
        return self

    @property
    def address(self) -> str:
        assert self._server is not None, "start() comes first"
        return self.config.node.reached(self._server.address)

    @property
    def invoke_address(self) -> str:
        """Of the streams that frontends open."""
        assert self._invoke_server is not None, "start() comes first"
        return self.config.node.reached(self._invoke_server.address)

    async def drain(self) -> None:
        """Says so, refuses new work, lets what runs finish until ``drain_s`` is over, destroys the sandboxes, leaves
        the ledger and waits a while for its word."""
        self.directory.leave()
        await asyncio.sleep(self.config.notice_s)   # managers hear it, and give out nothing more here
        self.agent.feed(m.DrainSelf())
        with contextlib.suppress(TimeoutError):  # what still runs is cut off: its frontends see the stream break
            async with asyncio.timeout(self.config.node.drain_s - self.config.notice_s):
                await self.agent.drained.wait()
                async with asyncio.timeout(LEAVE_S):
                    await self._counting.left.wait()
        if not self._counting.left.is_set():
            _log.warning("the ledger hasn't said that this worker left: it may count as a member until it is evicted")
        await self.close()

    async def close(self) -> None:
        for server in (self._invoke_server, self._server):
            if server is not None:
                await server.close(0.5)
        await self.directory.close()
        await self._tasks.cancel()
        await self._counting.close()
        await self._code.close()
        await self.logs.close()
        await self._driver.close()

    # ------------------------------------------------------------ inbound

    def _handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(worker_rpc.MANAGE, self._manage)
        handlers.fetch(worker_rpc.LOGS, self._logs)
        return handlers

    def _invoke_handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.bidi(worker_rpc.INVOKE, self._invoke)
        return handlers

    async def _manage(self, stream: Any, caller: Caller) -> None:
        link = next(self._numbers)
        outbox: Outbox[worker_pb2.WorkerEvent] = Outbox(stream)

        def translate(effect: m.TellManager) -> worker_pb2.WorkerEvent:
            return news_out(effect, self.incarnation, self._runtimes, self.invoke_address)

        news = News(outbox.put, translate)

        def hear(message: worker_pb2.ManagerOrder) -> None:
            event = order(message, link)
            if event is not None:
                self.agent.feed(event)

        self.agent.manager_opened(link, news.tell)
        try:
            await converse(stream, outbox, hear)
        except Fault as fault:
            _log.info("manager's stream broke", manager=caller.node, fault=fault.message)
        finally:
            self.agent.manager_closed(link)
            news.close()

    async def _invoke(self, stream: Any, caller: Caller) -> None:
        invoke_stream = InvokeStream(
            number=next(self._numbers), frontend=caller.node, stream=stream, starter=self.agent,
            incarnation=incarnation_out(self.incarnation),
        )
        self.agent.stream_opened(invoke_stream)
        try:
            await converse(stream, invoke_stream.outbox, invoke_stream.hear)
        except Fault as fault:
            _log.info("frontend's stream broke", frontend=caller.node, fault=fault.message)
        finally:
            self.agent.stream_closed(invoke_stream)

    async def _logs(self, request: worker_pb2.LogsRequest, caller: Caller) -> AsyncIterator[worker_pb2.LogLines]:
        key = (request.account, request.function)
        found = self.logs.read(key, since_ms=request.since_ms, follow=request.follow)
        async with contextlib.aclosing(found):  # a follower that goes away must not be kept in mind
            async for lines in found:
                yield worker_pb2.LogLines(lines=[
                    worker_pb2.LogLines.Line(at_ms=line.at_ms, stream=line.stream, message=line.message)
                    for line in lines
                ])

    # ------------------------------------------------------------ registration

    def _node(self, address: str) -> placement_pb2.Node:
        node = self.config.node
        return placement_pb2.Node(
            node=node.node, service="worker", az=node.az, host=node.host, address=address,
            nonce=self.incarnation.nonce, pid=self._pid, health="serving", metrics=self.metrics.address,
            capacity=self._capacity(self.config.memory_mb, 0),
        )

    def _load_changed(self, effect: m.LoadChanged) -> None:
        self.directory.load(self._capacity(effect.memory_free_mb, effect.sandboxes))

    def _tell_idle(self, node: placement_pb2.Node) -> None:
        """With heartbeats only: it changes with every invocation."""
        node.capacity.memory_idle_mb = self.agent.core.memory_idle_mb

    def _capacity(self, free_mb: int, sandboxes: int) -> placement_pb2.WorkerCapacity:
        return placement_pb2.WorkerCapacity(
            memory_mb=self.config.memory_mb, memory_free_mb=free_mb, sandboxes=sandboxes, runtimes=self._runtimes
        )
