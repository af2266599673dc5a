"""chassis.rpc within one process: for tests, and the ground of the simulation's network.

Owns delivery. Messages are serialised and parsed on the way, so that what arrives is what gRPC would have carried, and
the identity table is checked as on the wire. ``Link`` decides how long a message takes and whether it arrives: here at
once and always; the simulation puts seeded delays and faults in its place.
"""

import asyncio
import contextvars
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message

from chassis.credentials import Revocations
from chassis.faults import Fault, FaultCode
from chassis.identity import authorise
from chassis.rpc import Caller, Channel, Handlers, Server, Stream
from protos.rpc import Method

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_log = structlog.get_logger(__name__)

_WIRE = contextvars.Context()
"""What is on its way is nobody's: it arrives whatever becomes of its sender."""


class Link:
    """How messages travel from one process to another: subclass it to delay or to break."""

    def delay_s(self, sender: str, receiver: str) -> float | None:
        """Seconds that the next message takes; None: it is lost, and with it the connection."""
        return 0.0

    def noticed_s(self, sender: str, receiver: str, method: str) -> float:
        """After how many seconds both ends learn that a message was lost: until then there is silence."""
        return 0.0

    def repeated_s(self, sender: str, receiver: str, method: str) -> float | None:
        """How much later a message of a stream comes a second time, and after what was sent behind it. None: never, as
        with gRPC; worse than that only where a protocol has to bear it."""
        return None


class Fabric:
    """The addresses of one region in memory. Each process gets a ``MemoryNetwork`` of its own on it."""

    def __init__(self, link: Link | None = None) -> None:
        self.link = link or Link()
        self._servers: dict[str, _MemoryServer] = {}
        self._next_port = 1
        self.pipes: dict[Pipe, None] = {}  # open streams in order of opening: a crash breaks them in that order
        self._networks: dict[str, list[MemoryNetwork]] = {}     # of those that live, by node

    def network(self, caller: Caller) -> "MemoryNetwork":
        """For one process: another one of that name gets another."""
        network = MemoryNetwork(self, caller)
        self._networks.setdefault(caller.node, []).append(network)
        return network

    def listen(self, address: str, handlers: Handlers, owner: Caller, revoked: Revocations) -> "_MemoryServer":
        host, port = address.rsplit(":", 1)
        if port == "0":
            port, self._next_port = str(self._next_port), self._next_port + 1
        bound = f"{host}:{port}"
        if bound in self._servers:
            raise Fault(f"can't listen on {bound}: it is taken", code=FaultCode.CONFLICT, definite=True)
        self._servers[bound] = server = _MemoryServer(self, bound, handlers, owner, revoked)
        return server

    def server(self, address: str) -> "_MemoryServer | None":
        return self._servers.get(address)

    def unlisten(self, address: str) -> None:
        self._servers.pop(address, None)

    def crash(self, node: str) -> None:
        """The process ``node`` is gone as with kill -9: what it served and dialled breaks, and it opens nothing any
        more, whatever is left of it here."""
        for network in self._networks.pop(node, ()):
            network.over = True
        for server in [server for server in self._servers.values() if server.owner.node == node]:
            server.crash()
        for pipe in [pipe for pipe in self.pipes if pipe.dialler == node]:
            pipe.break_off()


class MemoryNetwork:
    """``Network`` on a fabric."""

    def __init__(self, fabric: Fabric, caller: Caller) -> None:
        self._fabric = fabric
        self._caller = caller
        self._revoked = Revocations()
        self.over = False   # its process has gone

    def connect(self, address: str, *, service: str, node: str = "") -> Channel:
        return _MemoryChannel(self, self._fabric, self._caller, address, service, node)

    async def serve(self, address: str, handlers: Handlers) -> Server:
        server = self._fabric.listen(address, handlers, self._caller, self._revoked)
        self._revoked.observe(server.cut_revoked)
        return server

    def revoke(self, nodes: Mapping[str, int]) -> None:
        self._revoked.add(nodes)


class _MemoryServer:
    def __init__(
        self, fabric: Fabric, address: str, handlers: Handlers, owner: Caller, revoked: Revocations
    ) -> None:
        self._fabric = fabric
        self.address = address
        self.owner = owner
        self.handlers = handlers
        self.revoked = revoked
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.pipes: dict[Pipe, None] = {}
        self._context = contextvars.copy_context()

    def run(self, coroutine: Any) -> "asyncio.Task[None]":
        """In the context of whoever listens, not of whoever calls."""
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))
        return task

    def cut_revoked(self, _news: Mapping[str, int]) -> None:
        for pipe in list(self.pipes):
            try:
                self.revoked.admit(pipe.caller)
            except Fault as fault:
                pipe.break_off(fault)

    async def close(self, grace_s: float) -> None:
        self._fabric.unlisten(self.address)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        self.crash()
        if self.tasks:
            await asyncio.wait(self.tasks)

    def crash(self) -> None:
        """Everything at once gone, as with kill -9."""
        self._fabric.unlisten(self.address)
        for pipe in list(self.pipes):
            pipe.break_off()
        for task in list(self.tasks):
            task.cancel()


class _MemoryChannel:
    def __init__(
        self, network: MemoryNetwork, fabric: Fabric, caller: Caller, address: str, service: str, node: str
    ) -> None:
        self._network = network
        self._fabric = fabric
        self._caller = caller
        self._address = address
        self._service = service
        self._node = node

    def _dial(self, method: Method[Any, Any]) -> tuple[_MemoryServer, Any]:
        server = None if self._network.over else self._fabric.server(self._address)
        if server is None:
            raise Fault(f"{method.name} at {self._node or self._service} at {self._address}: nobody listens")
        if server.owner.service != self._service or (self._node and server.owner.node != self._node):
            wanted = self._node or self._service
            raise Fault(f"{self._address} is {server.owner.node}, not {wanted}", code=FaultCode.DENIED)
        server.revoked.admit(self._caller)
        authorise(method.path, self._caller)
        handler = server.handlers.by_path.get(method.path)
        if handler is None:
            raise Fault(f"{method.name}: not served at {self._address}", code=FaultCode.INVALID, definite=True)
        return server, handler.handle

    async def call(self, method: Method[Request, Response], request: Request, *, timeout_s: float) -> Response:
        server, handle = self._dial(method)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            try:
                await self._travel(self._caller.node, server.owner.node, method.name)
                response = await handle(_copy(request), self._caller)
                await self._travel(server.owner.node, self._caller.node, method.name)
            except Fault as fault:
                _settle(answer, fault)
            except asyncio.CancelledError:
                _settle(answer, Fault(f"{method.name}: the peer has gone"))
                raise
            else:
                _settle(answer, _copy(response))

        server.run(serve())
        try:
            async with asyncio.timeout(timeout_s):
                response: Response = await answer
        except TimeoutError:
            raise Fault(f"{method.name} took more than {timeout_s} s", code=FaultCode.TIMEOUT) from None
        return response

    def stream(self, method: Method[Request, Response]) -> Stream[Request, Response]:
        pipe = Pipe(self._fabric, self._caller, method.name)
        try:
            server, handle = self._dial(method)
        except Fault as fault:
            pipe.break_off(fault)
            return pipe.client
        pipe.peer = server.owner.node
        server.pipes[pipe] = self._fabric.pipes[pipe] = None

        async def serve() -> None:
            fault: Fault | None = None
            try:
                await handle(pipe.server, self._caller)
            except Fault as raised:
                fault = raised
            except asyncio.CancelledError:
                pipe.break_off()
                raise
            finally:
                server.pipes.pop(pipe, None)
                self._fabric.pipes.pop(pipe, None)
            pipe.end(fault)

        server.run(serve())
        return pipe.client

    async def fetch(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float
    ) -> AsyncIterator[Response]:
        server, handle = self._dial(method)
        try:
            async with asyncio.timeout(timeout_s):
                await self._travel(self._caller.node, server.owner.node, method.name)
                async for response in handle(_copy(request), self._caller):
                    await self._travel(server.owner.node, self._caller.node, method.name)
                    yield _copy(response)
        except TimeoutError:
            raise Fault(f"{method.name} took more than {timeout_s} s", code=FaultCode.TIMEOUT) from None

    async def close(self) -> None:
        return None

    async def _travel(self, sender: str, receiver: str, method: str) -> None:
        delay = self._fabric.link.delay_s(sender, receiver)
        if delay is None:
            await asyncio.sleep(self._fabric.link.noticed_s(sender, receiver, method))
            raise Fault(f"lost on the way from {sender} to {receiver}")
        await asyncio.sleep(delay)


class Pipe:
    """A stream's two ends, with a queue each way."""

    def __init__(self, fabric: Fabric, caller: Caller, method: str) -> None:
        self.fabric = fabric
        self.caller = caller
        self.dialler = caller.node
        self.method = method
        self.peer = ""
        self._doomed = False
        self.fault: Fault | None = None
        self.to_server = _Lane(self, up=True)
        self.to_client = _Lane(self, up=False)
        self.client: _End = _End(self, sends=self.to_server, receives=self.to_client)
        self.server: _End = _End(self, sends=self.to_client, receives=self.to_server)

    def break_off(self, fault: Fault | None = None) -> None:
        """At once, for both sides; what is on its way is lost."""
        self.fault = self.fault or fault or Fault(f"the stream between {self.dialler} and {self.peer} broke")
        for lane in (self.to_server, self.to_client):
            lane.close(at_once=True)

    def lose(self, sender: str, receiver: str) -> None:
        """A message was lost: what follows it is lost too, until the ends notice and the stream breaks. What comes the
        other way arrives until then."""
        lane = self.to_server if sender == self.dialler else self.to_client
        lane.doomed = True
        if self._doomed:
            return
        self._doomed = True
        noticed_s = self.fabric.link.noticed_s(sender, receiver, self.method)
        if noticed_s <= 0.0:
            self.break_off()
        else:
            asyncio.get_running_loop().call_later(noticed_s, self.break_off, context=_WIRE)

    def end(self, fault: Fault | None) -> None:
        """The serving side returned: what it sent still arrives."""
        if fault is not None:
            self.fault = self.fault or fault
        if self.to_client.doomed:
            return  # of this nothing arrives either
        self.to_client.close(at_once=False)
        self.to_server.close(at_once=True)


class _Lane:
    """One direction: messages in order, each delayed by the link."""

    def __init__(self, pipe: Pipe, *, up: bool) -> None:
        self._pipe = pipe
        self._up = up
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._arrives = 0.0
        self.closed = False
        self.doomed = False

    def put(self, message: Any) -> None:
        pipe = self._pipe
        ends = (pipe.dialler, pipe.peer) if self._up else (pipe.peer, pipe.dialler)
        delay = None if self.doomed else pipe.fabric.link.delay_s(*ends)
        if delay is None:
            pipe.lose(*ends)
            return
        loop = asyncio.get_running_loop()
        # Strictly later than the one before: timers of one instant fire in no particular order.
        self._arrives = max(math.nextafter(self._arrives, math.inf), loop.time() + delay)
        if self._arrives <= loop.time():
            self._queue.put_nowait(message)
        else:
            loop.call_at(self._arrives, self._queue.put_nowait, message, context=_WIRE)
        again_s = pipe.fabric.link.repeated_s(*ends, pipe.method)
        if again_s is not None:
            loop.call_at(self._arrives + again_s, self._arrive_again, message, context=_WIRE)

    def _arrive_again(self, message: Any) -> None:
        if not self.closed:
            self._queue.put_nowait(_copy(message))

    def close(self, *, at_once: bool) -> None:
        if self.closed:
            return
        self.closed = True
        if at_once:
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)
        else:
            loop = asyncio.get_running_loop()
            loop.call_at(
                max(math.nextafter(self._arrives, math.inf), loop.time()), self._queue.put_nowait, None, context=_WIRE
            )

    async def get(self) -> Any:
        message = await self._queue.get()
        if message is None:
            self._queue.put_nowait(None)  # an end stays an end
        return message


class _End:
    def __init__(self, pipe: Pipe, *, sends: _Lane, receives: _Lane) -> None:
        self._pipe = pipe
        self._sends = sends
        self._receives = receives

    async def send(self, message: Any) -> None:
        if not self.free:
            raise self._pipe.fault or Fault("the stream is over")
        self.send_now(message)
        await asyncio.sleep(0)

    @property
    def free(self) -> bool:
        return not self._sends.closed

    def send_now(self, message: Any) -> None:
        self._sends.put(_copy(message))

    async def receive(self) -> Any:
        message = await self._receives.get()
        if message is None and self._pipe.fault is not None:
            raise self._pipe.fault
        return message

    async def finish(self) -> None:
        self._sends.close(at_once=False)

    def cancel(self) -> None:
        self._pipe.break_off(Fault("the stream was cancelled", code=FaultCode.CANCELLED))


def _copy(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def _settle(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, Fault):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
