"""Links between processes that can be broken: a proxy for TCP connections, with faults by direction.

Owns the listeners, one per dialling and served node, and what becomes of bytes on their way. They are handed on as they
are: TLS goes through from end to end, and the proxy has no keys. Refuses to know who breaks links and why.
"""

import asyncio
import contextlib
import enum
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chassis.process import Tasks

LOOPBACK = "127.0.0.1"
DELAY_S_MAX = 60.0
DIAL_S = 5.0
CHUNK_BYTES = 16 * 1024
CHUNKS_MAX = 64         # on their way in one direction of a connection; then its sender has to wait
_LINGER_NOT = struct.pack("ii", 1, 0)   # so that closing a socket resets its connection

Way = tuple[str, str]
"""From one node to another. A connection that the first dialled carries bytes on it and on its reverse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFault:
    """What becomes of bytes on a way. The default: nothing, they go on as they come.

    ``stalled``: nothing arrives, and nobody is told; what was sent arrives when it is mended, as TCP would repeat it.
    On one way only, that is a host that others don't hear. ``reset`` and ``half_open`` are about connections that were
    dialled along the way, those that are there and new ones: both ends are told that it is over, or the serving end
    alone, so that who dialled speaks to nobody. A half-open connection is never mended: it has to be given up.
    """

    delay_s: float = 0.0
    bytes_per_s: int = 0        # shared by the connections of the way; 0: as fast as they come
    stalled: bool = False
    reset: bool = False
    half_open: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.delay_s <= DELAY_S_MAX:
            raise ValueError(f"delay_s is {self.delay_s}, allowed are 0 to {DELAY_S_MAX:g}")
        if self.bytes_per_s < 0:
            raise ValueError(f"bytes_per_s is {self.bytes_per_s}, it must be 1 at least, or 0 for no bound")
        if self.reset and self.half_open:
            raise ValueError("reset and half_open are both set: the dialling end is told, or it isn't")


WHOLE = LinkFault()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``dialler`` reaches ``server``, which listens at ``address``, by way of the proxy."""

    dialler: str
    server: str
    address: str


class _Mark(enum.Enum):
    """Ends of what one direction carries."""

    EOF = "eof"
    RESET = "reset"


class _Gate:
    """One way. Whoever carries bytes on it asks when they may arrive."""

    def __init__(self) -> None:
        self.fault = WHOLE
        self.dialled: set[_Connection] = set()      # by who is at this way's begin
        self._changed = asyncio.Event()
        self._busy_until = 0.0

    def put(self, fault: LinkFault) -> None:
        self.fault = fault
        self._busy_until = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    async def pass_on(self, since: float, size: int) -> None:
        """Returns when ``size`` bytes that were sent at ``since`` arrive. What is put meanwhile counts for them."""
        loop = asyncio.get_running_loop()
        while True:
            fault, changed = self.fault, self._changed
            if fault.stalled:
                await changed.wait()
                continue
            at = since + fault.delay_s
            if fault.bytes_per_s:
                self._busy_until = max(self._busy_until, loop.time()) + size / fault.bytes_per_s
                at = max(at, self._busy_until)
            if loop.time() >= at:
                return
            try:
                async with asyncio.timeout_at(at):
                    await changed.wait()
            except TimeoutError:
                return


class Proxy:
    """``start`` and ``close`` frame it. Addresses are known from the begin: their ports are taken."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = {(route.dialler, route.server): route for route in routes}
        self._sockets = {way: _bound() for way in self._routes}
        # Where the proxy listens, by (dialler, server).
        self.addresses: Mapping[Way, str] = {
            way: f"{LOOPBACK}:{bound.getsockname()[1]}" for way, bound in self._sockets.items()
        }
        self._gates: dict[Way, _Gate] = defaultdict(_Gate)
        self._servers: list[asyncio.Server] = []
        self._tasks = Tasks()

    @property
    def ways(self) -> frozenset[Way]:
        """Every way that bytes take through here."""
        return frozenset(self._routes) | {(server, dialler) for dialler, server in self._routes}

    async def start(self) -> None:
        for way, bound in self._sockets.items():
            self._servers.append(await asyncio.start_server(self._accepting(self._routes[way]), sock=bound))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for bound in self._sockets.values():
            bound.close()       # also of a proxy that was never started
        for gate in list(self._gates.values()):
            for connection in list(gate.dialled):
                connection.reset()
        await self._tasks.cancel()

    def strike(self, ways: Iterable[Way], fault: LinkFault) -> None:
        """From now on, in the place of what was wrong with these ways before. Raises ValueError for an unknown one."""
        ways = list(ways)
        unknown = sorted(f"{source} to {target}" for source, target in set(ways) - self.ways)
        if unknown:
            raise ValueError(f"no link goes through the proxy from {', '.join(unknown)}")
        for way in ways:
            gate = self._gates[way]
            gate.put(fault)
            for connection in list(gate.dialled):
                if fault.reset:
                    connection.reset()
                elif fault.half_open:
                    connection.leave_half_open()

    def mend(self, ways: Iterable[Way]) -> None:
        self.strike(ways, WHOLE)

    # ------------------------------------------------------------ connections

    def _accepting(self, route: Route) -> Any:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.start(
                self._serve(route, reader, writer), name=f"link from {route.dialler} to {route.server}"
            )
        return accepted

    async def _serve(self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = self._gates[route.dialler, route.server]
        connection = _Connection(_End(reader, writer), there, self._gates[route.server, route.dialler])
        there.dialled.add(connection)
        try:
            await connection.carry(route.address)
        finally:
            there.dialled.discard(connection)


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, 0))
    return bound


# ---------------------------------------------------------------- one connection


@dataclass(frozen=True, slots=True)
class _End:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        found = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):      # it has gone already
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.writer.transport.abort()


class _Connection:
    """``near`` is who dialled. Each direction is carried by itself, its end too."""

    def __init__(self, near: _End, there: _Gate, back: _Gate) -> None:
        self._near = near
        self._far: _End | None = None
        self._there = there
        self._back = back
        self._carrying: asyncio.Task[Any] | None = None
        self._deserted = False

    async def carry(self, address: str) -> None:
        """Until both ends have gone."""
        self._carrying = asyncio.ensure_future(self._both(address))
        try:
            await asyncio.wait((self._carrying,))
            if self._deserted:
                await _swallow(self._near.reader)
            elif not self._carrying.cancelled():
                self._carrying.result()
        finally:
            self._carrying.cancel()
            self.reset()        # what is closed is left alone by it

    def reset(self) -> None:
        for end in (self._near, self._far):
            if end is not None:
                end.reset()

    def leave_half_open(self) -> None:
        self._deserted = True
        if self._carrying is not None:
            self._carrying.cancel()
        if self._far is not None:
            self._far.reset()

    async def _both(self, address: str) -> None:
        if self._there.fault.reset:
            return
        if self._there.fault.half_open:
            self._deserted = True
            return
        said = _Flow(self._near.reader)
        answered: _Flow | None = None
        try:
            if not await self._wished(said):
                return
            host, port = address.rsplit(":", 1)
            try:
                async with asyncio.timeout(DIAL_S):
                    self._far = _End(*await asyncio.open_connection(host, int(port)))
            except (OSError, TimeoutError):
                return      # nobody listens there: who dialled gets a reset
            answered = _Flow(self._far.reader)
            async with asyncio.TaskGroup() as group:
                group.create_task(said.carry(self._far, self._there))
                group.create_task(answered.carry(self._near, self._back))
        finally:
            for flow in filter(None, (said, answered)):
                flow.close()

    async def _wished(self, said: "_Flow") -> bool:
        """Waits until the wish for a connection arrives. False: who dialled gave up before, and nobody hears of it."""
        loop = asyncio.get_running_loop()
        arriving = asyncio.ensure_future(self._there.pass_on(loop.time(), 0))
        over = asyncio.ensure_future(said.over.wait())
        try:
            await asyncio.wait((arriving, over), return_when=asyncio.FIRST_COMPLETED)
            return arriving.done()
        finally:
            arriving.cancel()
            over.cancel()


async def _swallow(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(CHUNK_BYTES):
            pass


class _Flow:
    """What one end sends, read as it comes. ``over``: it sends nothing more."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.over = asyncio.Event()
        self._reader = reader
        self._under_way: asyncio.Queue[tuple[float, bytes | _Mark]] = asyncio.Queue(CHUNKS_MAX)
        self._reading = asyncio.ensure_future(self._read())

    def close(self) -> None:
        self._reading.cancel()

    async def carry(self, end: _End, gate: _Gate) -> None:
        """To the other end, from the first byte to its end. The other direction may go on."""
        while True:
            since, what = await self._under_way.get()
            await gate.pass_on(since, len(what) if isinstance(what, bytes) else 0)
            if what is _Mark.RESET:
                end.reset()
                return
            # An end that has gone says so on the other direction: what still comes for it is lost.
            with contextlib.suppress(OSError):
                if isinstance(what, bytes):
                    end.writer.write(what)
                    await end.writer.drain()
                elif not end.writer.is_closing():
                    end.writer.write_eof()
            if what is _Mark.EOF:
                return

    async def _read(self) -> None:
        time = asyncio.get_running_loop().time
        mark = _Mark.EOF
        try:
            while data := await self._reader.read(CHUNK_BYTES):
                await self._under_way.put((time(), data))
        except OSError:
            mark = _Mark.RESET
        self.over.set()
        await self._under_way.put((time(), mark))
