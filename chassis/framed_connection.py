"""One connection of the framed network: bytes to frames and back, flow control, and a peer that hangs.

A frame: one byte of kind, three of length, then the bytes. Either side may send MESSAGE, PING and FINISH, and sends at
least a PING every ``PING_S``: a peer that says nothing for much longer hangs or is gone. Refuses to know who dialled,
what a method is and what messages mean (``chassis.framed_network``).
"""

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import cast

from chassis.beat import until_beat
from chassis.faults import Fault
from chassis.rpc import LAST_SEND_S

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
PING_S = 0.5
# A peer that said nothing for so long is noticed at the next ping. Breaking a stream is final for the answers that were
# to come by it, so that it waits as long as counting does before it suspects (rule 6); routing around comes sooner.
SILENT_S = 3.0
UNREAD_BYTES = 4 * 1024 * 1024      # of messages that nobody has received yet: above it the socket isn't read
UNSENT_BYTES = 1024 * 1024          # above it ``send`` waits
_HEAD_BYTES = 4


class Kind(enum.IntEnum):
    OPEN = 1
    MESSAGE = 2
    PING = 3
    FINISH = 4
    REFUSED = 5


_PING_FRAME = bytes((Kind.PING, 0, 0, 0))


class Connection(asyncio.Protocol):
    """Bytes and frames of one stream, either side's. What is read waits here for ``receive``."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.fault: Fault | None = None     # why nothing more comes
        self._data = bytearray()
        self._inbox: deque[bytes] = deque()
        self._unread = 0
        self._finished = False              # the peer sends nothing more
        self._bug: Exception | None = None  # what the listener raised
        self._receiver: asyncio.Future[None] | None = None
        self._listener: Callable[[bytes], None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._paused = False                # more is unsent than should be
        self._reading = True
        self._sent = self._heard = 0.0
        self._next_tick = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        if self.fault is not None:
            self.transport.abort()      # given up while it was being opened
            return
        self.transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self._heard = self._loop.time()
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(Fault(f"the connection broke ({exc or 'closed by the peer'})"))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        _wake(self._sender)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        buffer = self._data
        buffer += data
        begin, end = 0, len(buffer)
        while end - begin >= _HEAD_BYTES:
            size = int.from_bytes(buffer[begin + 1:begin + _HEAD_BYTES], "big")
            if size > MESSAGE_BYTES_MAX:
                self.fail(Fault(f"the peer sent a frame of {size} bytes, over {MESSAGE_BYTES_MAX}"))
                return
            if end - begin < _HEAD_BYTES + size:
                break
            body = bytes(buffer[begin + _HEAD_BYTES:begin + _HEAD_BYTES + size])
            kind = buffer[begin]
            begin += _HEAD_BYTES + size
            self.frame(kind, body)
        del buffer[:begin]

    def frame(self, kind: int, body: bytes) -> None:
        match kind:
            case Kind.MESSAGE if self._listener is not None:
                self._push(body)
            case Kind.MESSAGE:
                self._inbox.append(body)
                self._unread += len(body)
                if self._unread > UNREAD_BYTES and self._reading:
                    self._read(reading=False)
                _wake(self._receiver)
            case Kind.FINISH:
                self._finished = True
                _wake(self._receiver)
            case Kind.PING:
                pass    # that it came is all it says
            case _:
                self.fail(Fault(f"the peer sent a frame of kind {kind}, which has no meaning here"))

    def _read(self, *, reading: bool) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._reading = reading
            if reading:
                self._heard = self._loop.time()     # what it said meanwhile could not be heard
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # ------------------------------------------------------------ a hung peer

    def _arm(self) -> None:
        now = self._loop.time()
        self._next_tick = now + until_beat(now, PING_S)
        self._ticker = self._loop.call_at(self._next_tick, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        if not self._reading or now - self._next_tick > PING_S:
            self._heard = now   # we didn't listen: this process was held up, and what came waits in the socket
        if now - self._heard > SILENT_S:
            self.fail(Fault(f"the peer said nothing for {now - self._heard:.1f} s"))
            return
        if now - self._sent >= PING_S / 2 and not self._paused:
            self.write(_PING_FRAME)
        self._arm()

    # ------------------------------------------------------------ both sides' verbs

    def write(self, data: bytes) -> None:
        """A closed transport must not be written to."""
        if self.transport is not None and not self.transport.is_closing():
            self._sent = self._loop.time()
            self.transport.write(data)

    @property
    def free(self) -> bool:
        """Whether ``send`` would not wait and not fail now."""
        return self.fault is None and not self._paused

    def send_now(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_BYTES_MAX, f"a message of {len(message)} bytes"
        self.write(head(Kind.MESSAGE, len(message)) + message)

    async def send(self, message: bytes) -> None:
        if self.fault is None:
            self.send_now(message)
            while self._paused and self.fault is None:
                self._sender = self._loop.create_future()
                await self._sender
        if self.fault is not None:
            raise self.fault

    async def receive(self) -> bytes | None:
        while not self._inbox:
            if self._finished:
                return None
            if self.fault is not None:
                raise self.fault
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        message = self._inbox.popleft()
        self._unread -= len(message)
        if not self._reading and self._unread < UNREAD_BYTES // 2:
            self._read(reading=True)
        return message

    async def listen(self, listener: Callable[[bytes], None]) -> None:
        """Instead of ``receive``: each message as it arrives."""
        while self._inbox:
            body = await self.receive()
            assert body is not None, "it lay there"
            listener(body)
        self._listener = listener
        try:
            await self.receive()
        finally:
            self._listener = None
        if self._bug is not None:
            raise self._bug

    def _push(self, body: bytes) -> None:
        assert self._listener is not None, "frame() looked"
        try:
            self._listener(body)
        except Exception as error:  # noqa: BLE001 - goes to whoever listens; the transport must not swallow it
            self._bug = error
            self._listener = None
            self._finished = True
            _wake(self._receiver)

    def fail(self, fault: Fault) -> None:
        """Nothing more comes or goes."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self.transport is not None:
            self.transport.abort()
        self.over(fault)

    def over(self, fault: Fault) -> None:
        """Who sends or receives is told. The first reason is the one that counts."""
        if self.fault is None:
            self.fault = fault
        _wake(self._receiver)
        _wake(self._sender)

    def finish(self) -> None:
        self.write(head(Kind.FINISH, 0))

    def close(self) -> None:
        """After what was written has gone out, or was not taken for a second."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            self._loop.call_later(LAST_SEND_S, self.transport.abort)


def head(kind: int, size: int) -> bytes:
    return bytes((kind,)) + size.to_bytes(3, "big")


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
