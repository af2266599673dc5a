"""Workers as a frontend reaches them: one stream to each that it ever needed, many invocations on it.

Owns the streams, payload chunks with credit, and what becomes of invocations whose stream broke. Refuses to know
permits, and reservations beyond the messages that carry them.

A broken stream frees nothing (rule 3). The Welcome on the next one says which of this frontend's invocations still
run there, and their Ends come on it; whatever else was started before has ended, or never began and never will. A
Welcome of another incarnation says that nothing of the older one runs. Of an incarnation that stays silent the ledger
says when it is a member no more (``lost`` and ``gone``); it says so unasked of one that an operator declared dead, and
then also what is on an open stream is over.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from chassis.process import Tasks
from chassis.rpc import Stream, StreamNetwork, converse
from frontend.peers.flight import Answered, Flight, NotStarted
from frontend.peers.frames import CHUNK_BYTES, CREDIT_BYTES, FrameWriter
from protos import common_pb2, worker_pb2, worker_rpc

RESPONSE_BYTES_MAX = 8 * 1024 * 1024   # the worker refuses far less; this bounds what a wrong one may make us keep
REDIAL_S_MIN, REDIAL_S_MAX = 0.1, 1.0
OPEN_S = 1.5     # a worker that hasn't said Welcome by then is away: what waits for it was never sent
SWEEP_S = 1.0
ASK_GONE_S = 0.25   # between questions to the ledger, while anything is lost
GONE_MAX = 256      # incarnations that are remembered to be members no more; managers stop naming them within seconds

Incarnation = tuple[str, int]   # host, nonce
_Frame = worker_pb2.InvokeFrame
_log = structlog.get_logger(__name__)


class Workers:
    """All links to workers. ``start`` sends an invocation on its way."""

    def __init__(self, *, network: StreamNetwork, clock: Clock, node: str) -> None:
        self._network = network
        self._clock = clock
        self._node = node
        self._links: dict[str, _Link] = {}
        self._gone: dict[Incarnation, None] = {}    # in order of hearing
        self._tasks = Tasks()
        self._sweeper: asyncio.TimerHandle | None = None
        self._asker: asyncio.TimerHandle | None = None
        self.ask_gone: Callable[[list[Incarnation]], None] = lambda _incarnations: None

    def start(self, flight: Flight) -> None:
        """Sends the Start, or queues it behind the stream's opening. What becomes of it is the flight's to tell."""
        if _incarnation(flight) in self._gone:
            _refuse_gone(flight)
            return
        worker = flight.reservation.worker
        link = self._links.get(worker)
        if link is None or link.address != flight.reservation.address:
            link = _Link(
                flight.reservation, self._network, self._node, self._clock, on_lost=self._watch_lost
            )
            old = self._links.get(worker)
            if old is not None:
                link.inherit(old)
                self._retire(old)
            self._links[worker] = link
        if not link.running:
            link.running = True  # here and not in the task: a second start may come before the task's first step
            self._tasks.start(link.run(), name=f"invoke stream to {worker}")
        link.start(flight)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def cancel(self, flight: Flight) -> None:
        """The client is gone: an invocation that hasn't begun is dropped, one that runs goes on."""
        link = self._links.get(flight.reservation.worker)
        if link is not None:
            link.cancel(flight)

    def see(self, directory: Directory) -> None:
        """The region's newest view: links to workers that left it end when nothing is on them."""
        for worker, link in list(self._links.items()):
            node = directory.nodes.get(worker)
            link.wanted = node is not None and node.health != "dead" and node.nonce == link.nonce
            link.see(well=node is not None and node.health == "serving")
            if not link.wanted and not link.busy:
                self._retire(link)
                del self._links[worker]

    def gone(self, incarnations: Iterable[Incarnation]) -> None:
        """The ledger's word: these are members no more, so that nothing runs on them."""
        known = frozenset(incarnations)
        self._gone.update(dict.fromkeys(sorted(known)))
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        for link in self._links.values():
            link.gone(known)

    @property
    def in_flight(self) -> int:
        return sum(len(link.flights) for link in self._links.values())

    async def close(self) -> None:
        for timer in (self._sweeper, self._asker):
            if timer is not None:
                timer.cancel()
        await self._tasks.cancel()
        for link in self._links.values():
            await link.close()

    def _watch_lost(self) -> None:
        if self._asker is None:
            self._asker = asyncio.get_running_loop().call_later(ASK_GONE_S, self._ask_gone)

    def _ask_gone(self) -> None:
        self._asker = None
        lost = sorted({incarnation for link in self._links.values() for incarnation in link.lost()})
        if lost:
            self.ask_gone(lost)
            self._watch_lost()

    def _retire(self, link: "_Link") -> None:
        link.retire()
        self._tasks.start(link.close(), name=f"close {link.worker}")

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._clock.monotonic()
        for link in self._links.values():
            link.sweep(now)
        if any(link.busy for link in self._links.values()):
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


def _incarnation(flight: Flight) -> Incarnation:
    incarnation = flight.reservation.incarnation
    return incarnation.host, incarnation.nonce


def _refuse_gone(flight: Flight) -> None:
    """Never sent: it may be tried elsewhere."""
    flight.over(flight)
    flight.settle(NotStarted(reason="UNREACHABLE", detail="the ledger says that this worker is gone"))


class _Link:
    """One worker's process: at one address, under one nonce."""

    def __init__(
        self, reservation: common_pb2.Reservation, network: StreamNetwork, node: str, clock: Clock, *,
        on_lost: Callable[[], None],
    ) -> None:
        self._on_lost = on_lost
        self.worker = reservation.worker
        self.address = reservation.address
        self.nonce = reservation.incarnation.nonce
        self.flights: dict[str, Flight] = {}
        self.wanted = True
        self.running = False
        self._channel = network.connect(self.address, service="worker", node=self.worker)
        self._node = node
        self._clock = clock
        self._stream: Stream[worker_pb2.InvokeFrames, worker_pb2.InvokeFrames] | None = None
        self._writer: FrameWriter | None = None
        self._open = False                       # the worker's Welcome came: what is sent from here on may arrive
        self._dialled_at = 0.0
        self._queued: dict[str, Flight] = {}     # not sent yet: a break before the Welcome is a definite "no"
        self._retired = False
        self._well = True                        # by the region's view
        self._back = asyncio.Event()

    # ------------------------------------------------------------ invocations

    def start(self, flight: Flight) -> None:
        if self._open:
            self._send(flight)
        else:
            self._queued[flight.invocation] = flight

    def cancel(self, flight: Flight) -> None:
        if self._queued.pop(flight.invocation, None) is not None:
            flight.over(flight)
        elif flight.invocation in self.flights and self._writer is not None:
            self._writer.put(_Frame(invocation=flight.invocation, cancel=_Frame.Cancel()))

    def retire(self) -> None:
        assert not self.busy, f"nobody would answer what is on the link to {self.worker}"
        self._retired = True
        if self._stream is not None:
            self._stream.cancel()

    def see(self, *, well: bool) -> None:
        """A worker that is back is dialled at once: what was begun while it was away may hang, and so would starts."""
        if well and not self._well and self.running and not self._open:
            self._back.set()
            if self._stream is not None:
                self._stream.cancel()
        self._well = well

    def inherit(self, old: "_Link") -> None:
        """The worker is at another address now, so that its process is another one: its Welcome says what is over."""
        old.lose("it has moved to another address")
        self.flights.update(old.flights)
        old.flights.clear()

    @property
    def busy(self) -> bool:
        return bool(self.flights or self._queued)

    async def close(self) -> None:
        await self._channel.close()

    def sweep(self, now: float) -> None:
        """An invocation far past its time: its client is told, its permit stays. A stream that doesn't open is cut."""
        if self._queued and not self._open and self._stream is not None and now >= self._dialled_at + OPEN_S:
            self._stream.cancel()
        for flight in self.flights.values():
            if flight.answer_by < now and not flight.answer.done():
                flight.settle(Fault(
                    f"worker {self.worker} has not answered in time: whether the function ran is not known",
                    code=FaultCode.TIMEOUT,
                ))

    def _send(self, flight: Flight) -> None:
        assert self._writer is not None
        self.flights[flight.invocation] = flight
        start, payload = flight.start, flight.payload
        start.payload_size = len(payload)
        if len(payload) <= CHUNK_BYTES:
            start.payload = payload
            flight.sent = len(payload)
        self._writer.hold(_Frame(invocation=flight.invocation, start=start))
        if flight.sent < len(payload):
            flight.credit = CREDIT_BYTES
            self._pump(flight)
        self._writer.flush()

    def _pump(self, flight: Flight) -> None:
        """Sends as much of the payload as the worker is ready for."""
        assert self._writer is not None
        payload, total = flight.payload, len(flight.payload)
        while flight.sent < total and flight.credit > 0:
            end = min(total, flight.sent + min(CHUNK_BYTES, flight.credit))
            chunk = _Frame.Chunk(data=payload[flight.sent:end], last=end == total)
            flight.credit -= end - flight.sent
            flight.sent = end
            self._writer.put_chunk(_Frame(invocation=flight.invocation, chunk=chunk))

    # ------------------------------------------------------------ the stream

    async def run(self) -> None:
        """Keeps the stream while it is wanted, or while something of an older one isn't known to be over."""
        pause_s = REDIAL_S_MIN
        try:
            while not self._retired:
                opened = await self._converse()
                if not self.flights and not self._queued:
                    return  # opened again when it is needed
                pause_s = REDIAL_S_MIN if opened else min(REDIAL_S_MAX, 2 * pause_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._back.wait()
                self._back.clear()
        finally:
            self.running = False

    async def _converse(self) -> bool:
        self._dialled_at = self._clock.monotonic()
        self._stream = stream = self._channel.stream(worker_rpc.INVOKE)
        self._writer = writer = FrameWriter(stream)
        writer.put(_Frame(hello=_Frame.Hello(frontend=self._node)))
        reason = "the worker closed it"
        try:
            await converse(stream, writer, self._hear)
        except Fault as fault:
            reason = fault.message
        finally:
            stream.cancel()
            opened, self._open, self._writer, self._stream = self._open, False, None, None
            self.lose(reason)
        return opened

    def lose(self, reason: str) -> None:
        """The stream is gone: who waits is told, and nothing is freed but what was never sent."""
        _log.info("invoke stream over", worker=self.worker, reason=reason, in_flight=len(self.flights))
        queued, self._queued = self._queued, {}
        for flight in queued.values():
            flight.over(flight)
            flight.settle(NotStarted(reason="UNREACHABLE", detail=reason))
        for flight in self.flights.values():
            flight.lost = True
            flight.settle(Fault(
                f"the stream to worker {self.worker} broke while the function may have run ({reason})",
                code=FaultCode.UNAVAILABLE,
            ))
        if self.flights:
            self._on_lost()

    def lost(self) -> Iterator[Incarnation]:
        """Where invocations are of which nobody knows whether they run."""
        for flight in self.flights.values():
            if flight.lost:
                yield _incarnation(flight)

    def gone(self, incarnations: frozenset[Incarnation]) -> None:
        """What was lost there is over for its client already; what was not is answered now."""
        for flight in list(self._queued.values()):
            if _incarnation(flight) in incarnations:
                del self._queued[flight.invocation]
                _refuse_gone(flight)
        for flight in list(self.flights.values()):
            if _incarnation(flight) in incarnations:
                self._over(flight)
                flight.settle(Fault(
                    f"worker {self.worker} is a member of the ledger no more: what ran there is lost",
                    code=FaultCode.UNAVAILABLE,
                ))

    def _over(self, flight: Flight) -> None:
        if self.flights.pop(flight.invocation, None) is not None:
            flight.over(flight)

    def _hear(self, frames: worker_pb2.InvokeFrames) -> None:
        for frame in frames.frames:
            kind = frame.WhichOneof("frame")
            if kind == "welcome":
                self._welcome(frame.welcome)
                continue
            flight = self.flights.get(frame.invocation)
            if flight is not None:
                self._frame(flight, kind, frame)

    def _welcome(self, welcome: worker_pb2.InvokeFrame.Welcome) -> None:
        self._open = True
        running = frozenset(welcome.running)
        for flight in list(self.flights.values()):
            assert flight.lost, f"{flight.invocation} was sent before the worker's Welcome"
            if flight.reservation.incarnation != welcome.incarnation or flight.invocation not in running:
                self._over(flight)
            else:
                flight.lost = False
        queued, self._queued = self._queued, {}
        for flight in queued.values():
            self._send(flight)

    def _frame(self, flight: Flight, kind: str | None, frame: worker_pb2.InvokeFrame) -> None:
        match kind:
            case "response":
                flight.function_error = frame.response.function_error
                flight.content_type = frame.response.content_type
                flight.parts.append(frame.response.payload)
            case "chunk":
                self._chunk(flight, frame.chunk.data)
            case "credit":
                flight.credit += frame.credit.bytes
                if self._writer is not None:
                    self._pump(flight)
            case "result":
                flight.result = frame.result
                flight.settle(Answered(
                    payload=b"".join(flight.parts), function_error=flight.function_error,
                    content_type=flight.content_type, result=frame.result,
                ))
                flight.parts.clear()
            case "never_started":
                refusal = frame.never_started
                self._over(flight)
                flight.settle(NotStarted(reason=_Frame.NeverStarted.Reason.Name(refusal.reason), detail=refusal.detail))
            case "end":
                flight.ended = True
                self._over(flight)
                flight.settle(Fault(f"worker {self.worker} ended the invocation without a result"))
            case _:
                pass  # a kind of a later release

    def _chunk(self, flight: Flight, data: bytes) -> None:
        flight.parts.append(data)
        if sum(map(len, flight.parts)) > RESPONSE_BYTES_MAX:
            flight.settle(Fault(f"worker {self.worker} sent more than {RESPONSE_BYTES_MAX} bytes as one response"))
            flight.parts.clear()
        if self._writer is not None:
            credit = _Frame.Credit(bytes=len(data))
            self._writer.put(_Frame(invocation=flight.invocation, credit=credit))
