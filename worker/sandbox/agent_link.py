"""The spawner's end of the agent's socket: requests in, answers and news out, nothing ever waited for.

Owns the queue of what the agent has not read yet, and when an agent counts as gone. Refuses to know what is asked.
"""

import os
import selectors
import socket
from collections import deque
from collections.abc import Callable

from worker.sandbox import wire

_REQUESTS_PER_TURN = 64     # so that no agent keeps the loop from its other work, the watchdog's alarm foremost
_OUTGOING_MAX = 10_000      # unread messages after which the agent counts as gone


class AgentGone(Exception):
    """The agent's end of the socket is closed, or it doesn't read, or it may not go on."""


class AgentLink:
    """``serve(message, descriptors)`` gets each request; the descriptors are closed after it."""

    def __init__(
        self, channel: socket.socket, selector: selectors.BaseSelector,
        serve: Callable[[wire.Message, list[int]], None],
    ) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._selector = selector
        self._serve = serve
        self._outgoing: deque[tuple[wire.Message, list[int]]] = deque()
        self._closed = False

    def open(self) -> None:
        self._selector.register(self._channel, selectors.EVENT_READ, self.on_event)

    def close(self) -> None:
        """From here on nothing is read or said. The socket stays open: its end says that all is gone."""
        if not self._closed:
            self._closed = True
            self._selector.unregister(self._channel)

    def on_event(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        for _ in range(_REQUESTS_PER_TURN):
            try:
                received = wire.receive(self._channel)
            except BlockingIOError:
                return
            except (wire.BadMessage, ConnectionError):
                raise AgentGone from None
            if received is None:
                raise AgentGone
            message, fds = received
            try:
                self._serve(message, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def say(self, message: wire.Message, fds: list[int] | None = None) -> None:
        """Queues a message; its descriptors are closed once sent."""
        if self._closed:
            for fd in fds or ():
                os.close(fd)
            return
        self._outgoing.append((message, fds or []))
        if len(self._outgoing) > _OUTGOING_MAX:
            raise AgentGone
        if len(self._outgoing) == 1:
            self._flush()

    def refuse(self, number: int, fault: str, message: str, **more: str) -> None:
        self.say({"id": number, "ok": False, "fault": fault, "message": message, **more})

    def _flush(self) -> None:
        while self._outgoing:
            message, fds = self._outgoing[0]
            try:
                wire.send(self._channel, message, fds)
            except BlockingIOError:
                break
            except ConnectionError:
                raise AgentGone from None
            self._outgoing.popleft()
            for fd in fds:
                os.close(fd)
        writes = selectors.EVENT_WRITE if self._outgoing else 0
        self._selector.modify(self._channel, selectors.EVENT_READ | writes, self.on_event)
