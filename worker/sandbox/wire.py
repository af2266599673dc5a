"""Messages between agent and spawner: JSON with descriptors over a SEQPACKET Unix socket. Standard library only.

Owns framing (one packet is one message) and the bounds of what is accepted. A request is {"id", "op", ...}; an answer
{"id", "ok": true, ...} or {"id", "ok": false, "fault", "message", ...}; the spawner's own news are {"event", ...}.
"""

import array
import json
import os
import socket
from typing import Any

Message = dict[str, Any]

# A function's environment is at most 4 KB of its own; the platform's part is below 2 KB. Room for a lot of escapes.
BYTES_MAX = 128 * 1024
FDS_MAX = 8


class BadMessage(ValueError):
    """A packet that is not a message: too long, truncated, or not a JSON object."""


def encode(message: Message) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > BYTES_MAX:
        raise BadMessage(f"a message of {len(data)} bytes is over the {BYTES_MAX} that a packet may have")
    return data


def send(channel: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    """Sends one packet; raises BlockingIOError if the channel is non-blocking and full."""
    data = encode(message)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Takes one packet; None when the other side is gone. Descriptors arrive close-on-exec and belong to the caller.

    Raises BlockingIOError when there is none on a non-blocking channel, BadMessage for an impossible one.
    """
    data, ancillary, flags, _ = channel.recvmsg(
        BYTES_MAX + 1, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC,
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    held = list(fds)
    if not data:
        return None
    try:
        return _decode(data, flags), held
    except BadMessage:
        for fd in held:
            os.close(fd)
        raise


def _decode(data: bytes, flags: int) -> Message:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > BYTES_MAX:
        raise BadMessage("a packet was cut: too long, too many descriptors, or no room for them in this process")
    try:
        message = json.loads(data)
    except ValueError as error:
        raise BadMessage(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadMessage("a message is a JSON object")
    return message
