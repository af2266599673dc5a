"""What other commands may ask of a running supervisor: to end processes, to keep them away, to break their links.

Owns the socket in the state directory (STATE/control.sock, for its owner alone) and the words on it: a JSON object per
line each way, `{"do": "hold", "nodes": ["worker-az1-1"]}` answered by `{"done": true}` or `{"error": "..."}`:

    kill      SIGKILL, all at the same moment; the supervisor starts them again at once
    hold      the same, and they stay away until they are released
    release   what this connection holds is started again
    restart   SIGTERM and time to drain; then started again
    stop      SIGSTOP: they are there and do nothing
    continue  SIGCONT
    strike    `"ways": [["a", "b"], ...], "fault": {...}`: what a says doesn't reach b as before (`labda.chaos.proxy`)
    mend      `"ways"`: it does again
    skew      `"by_s": 3600`: a counting member's wall clock is off by that from now on; 0: by nothing
    shrink    SIGKILL; a counting member's files are moved onto a small disk, and it is started again
    fill      there, not a byte more fits
    empty     there is room again
    enlarge   SIGKILL; the files are moved back, and it is started again

What a connection did is undone when it closes: who asked may crash, the cluster is whole again. Links can be struck and
clocks be moved in a cluster that was started for it (`labda up --breakable`). Refuses to know why somebody asks.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chassis.clock import write_offset
from labda.children import Children
from labda.refusal import Refusal, Status
from labda.state import State

if TYPE_CHECKING:
    from labda.chaos.proxy import LinkFault, Proxy, Way

SOCKET = "control.sock"
ANSWER_S = 60.0
WORDS = ("kill", "hold", "release", "restart", "stop", "continue")
LINK_WORDS = ("strike", "mend")
DISK_WORDS = ("shrink", "fill", "empty", "enlarge")
ALL_WORDS = (*WORDS, *LINK_WORDS, "skew", *DISK_WORDS)
SKEW_S_MAX = 10 * 366 * 86_400.0


@dataclass(slots=True)
class _Owed:
    """What one connection broke, and is as before when it closes."""

    held: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    struck: "set[Way]" = field(default_factory=set)
    skewed: set[str] = field(default_factory=set)
    small: set[str] = field(default_factory=set)


class Control:
    """The supervisor's side. ``start`` and ``close`` frame it. ``proxy``: where links go through one."""

    def __init__(self, state: State, children: Children, *, drain_s: float) -> None:
        self._state = state
        self._children = children
        self._drain_s = drain_s
        self.proxy: Proxy | None = None
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._talk, sock=_listen(self._state))

    async def close(self) -> None:
        """What is held stays away: the cluster is being ended."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for talk in list(self._talks):
            talk.cancel()
        if self._talks:
            await asyncio.wait(self._talks)
        (self._state.root / SOCKET).unlink(missing_ok=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        owed = _Owed()
        try:
            while request := await reader.readline():
                writer.write(json.dumps(await self._do(request, owed)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # it went without a word: what follows is the same
        finally:
            self._talks.discard(task)
            if not self._closing:
                self._children.release(owed.held)
            self._children.go_on(owed.stopped)
            if self.proxy is not None:
                self.proxy.mend(owed.struck)
            for node in owed.skewed:
                write_offset(self._state.clock_offset(node), 0.0)
            writer.close()
            if owed.small and not self._closing:    # else when all have ended: `leftovers.move_back`
                await self._move(owed.small, onto_small=False)

    async def _do(self, line: bytes, owed: _Owed) -> dict[str, Any]:
        try:
            request = json.loads(line)
            word = request["do"]
            if word in LINK_WORDS:
                return self._strike([(str(a), str(b)) for a, b in request["ways"]], request.get("fault", {}), owed)
            nodes = list(request["nodes"])
        except (ValueError, KeyError, TypeError) as error:
            return {"error": f"not a request: {error!r}"}
        unknown = sorted(set(nodes) - set(self._children.by_name))
        if unknown:
            return {"error": f"there is no process {', '.join(unknown)}"}
        try:
            if word in DISK_WORDS:
                return await self._disk(word, nodes, owed)
            if word == "skew":
                return self._skew(nodes, request.get("by_s"), owed)
            return await self._obey(word, nodes, owed)
        except (OSError, subprocess.CalledProcessError) as error:
            if not isinstance(error, TimeoutError):
                return {"error": f"{word} {' '.join(nodes)}: {error}"}
            return {"error": f"one of {', '.join(nodes)} is still there: the kernel can't end it yet"}

    def _strike(self, ways: "list[Way]", fault: dict[str, Any], owed: _Owed) -> dict[str, Any]:
        """A fault without a field mends. Raises ValueError and TypeError."""
        from labda.chaos.proxy import LinkFault  # noqa: PLC0415 - most supervisors have no proxy

        if self.proxy is None:
            return {"error": "links of this cluster don't go through a proxy: start it with `labda up --breakable`"}
        try:
            self.proxy.strike(ways, LinkFault(**fault))
        except ValueError as error:
            return {"error": str(error)}
        if fault:
            owed.struck.update(ways)
        else:
            owed.struck.difference_update(ways)
        return {"done": True}

    def _skew(self, nodes: list[str], by_s: Any, owed: _Owed) -> dict[str, Any]:
        if not isinstance(by_s, int | float) or not abs(by_s) <= SKEW_S_MAX:
            return {"error": f"by_s is {by_s!r}, a number of seconds is needed, {SKEW_S_MAX:.0f} at most either way"}
        files = [self._state.clock_offset(node) for node in nodes]
        if any(not file.exists() for file in files):
            return {"error": "clocks of this cluster can't be moved: start it with `labda up --breakable`"}
        for file in files:
            write_offset(file, by_s)
        owed.skewed.update(nodes)
        return {"done": True}

    async def _disk(self, word: str, nodes: list[str], owed: _Owed) -> dict[str, Any]:
        from labda.chaos.small_disk import SmallDisk  # noqa: PLC0415 - most supervisors have none

        without = [node for node in nodes if not self._state.raft(node).exists()]
        if without:
            return {"error": f"{', '.join(without)} is no member of counting"}
        if word in {"shrink", "enlarge"}:
            owed.small.update(nodes)
            await self._move(nodes, onto_small=word == "shrink")
            if word == "enlarge":
                owed.small.difference_update(nodes)
            return {"done": True}
        if not owed.small.issuperset(nodes):
            return {"error": f"who asked didn't shrink {', '.join(nodes)}"}
        for node in nodes:
            disk = SmallDisk(self._state.raft(node).resolve().parent)
            await asyncio.to_thread(disk.fill if word == "fill" else disk.empty)
        return {"done": True}

    async def _move(self, nodes: Iterable[str], *, onto_small: bool) -> None:
        from labda.chaos import small_disk  # noqa: PLC0415 - likewise

        nodes = sorted(nodes)
        await self._children.hold(nodes)
        try:
            for node in nodes:
                move = small_disk.move_onto if onto_small else small_disk.move_back
                await asyncio.to_thread(move, self._state.raft(node))
        finally:
            self._children.release(nodes)

    async def _obey(self, word: str, nodes: list[str], owed: _Owed) -> dict[str, Any]:
        held = owed.held
        match word:
            case "kill":
                await self._children.kill_all(nodes)
            case "hold":
                held.update(nodes)
                await self._children.hold(nodes)
            case "release":
                self._children.release(held.intersection(nodes))
                held.difference_update(nodes)
            case "restart":
                held.update(nodes)  # whoever goes away while it drains
                await self._children.hold(nodes, grace_s=self._drain_s)
                self._children.release(nodes)
                held.difference_update(nodes)
            case "stop":
                owed.stopped.update(nodes)
                self._children.pause(nodes)
            case "continue":
                self._children.go_on(nodes)
                owed.stopped.difference_update(nodes)
            case _:
                return {"error": f"{word}: one of {', '.join(ALL_WORDS)} is needed"}
        return {"done": True}


class Asker:
    """The other side: one connection, one question at a time. What it holds is released by ``close``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, state: State) -> "Asker":
        """Raises Refusal when no supervisor listens there."""
        try:
            with _place(state) as path:
                reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise Refusal(
                f"the supervisor of {state.root} can't be asked ({error.strerror}): `labda up --state {state.root}` "
                "starts one; restart one that is older than this labda", Status.NO_CLUSTER,
            ) from error
        return cls(reader, writer)

    async def ask(self, word: str, nodes: Sequence[str]) -> None:
        """Returns when it was done. Raises Refusal."""
        await self._ask(word, " ".join(nodes), nodes=list(nodes))

    async def strike(self, ways: "Sequence[Way]", fault: "LinkFault") -> None:
        """Likewise."""
        await self._ask("strike", _shown(ways), ways=list(ways), fault=dataclasses.asdict(fault))

    async def mend(self, ways: "Sequence[Way]") -> None:
        """Likewise."""
        await self._ask("mend", _shown(ways), ways=list(ways))

    async def skew(self, nodes: Sequence[str], by_s: float) -> None:
        """Likewise."""
        await self._ask("skew", " ".join(nodes), nodes=list(nodes), by_s=by_s)

    async def _ask(self, word: str, whom: str, **words: Any) -> None:
        self._writer.write(json.dumps({"do": word, **words}).encode() + b"\n")
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._writer.drain()
                answer = json.loads(await self._reader.readline() or b'{"error": "the supervisor went away"}')
        except (OSError, TimeoutError) as error:
            raise Refusal(f"the supervisor doesn't answer to {word} {whom}: {error!r}") from error
        if "error" in answer:
            raise Refusal(f"the supervisor refuses {word}: {answer['error']}")

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _shown(ways: "Sequence[Way]") -> str:
    return ", ".join(f"{source} to {target}" for source, target in ways)


def _listen(state: State) -> socket.socket:
    (state.root / SOCKET).unlink(missing_ok=True)     # of a supervisor that was killed
    listener = socket.socket(socket.AF_UNIX)
    with _place(state) as path:
        listener.bind(path)
    (state.root / SOCKET).chmod(0o600)
    return listener


@contextlib.contextmanager
def _place(state: State) -> Iterator[str]:
    """The socket's path by way of an open directory: a path of its own may be too long for a socket's name (108)."""
    directory = os.open(state.root, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)
