"""Ports for servers that have to be told theirs before they start, or are started again at the same one."""

import contextlib
import random
import socket

LOOPBACK = "127.0.0.1"
# Below the kernel's range for outgoing connections, one of which may take a port that was free a moment ago; and below
# what clusters draw theirs from (labda/launch.py).
PORTS = range(12_000, 20_000)


def free_ports(count: int) -> list[int]:
    """Nobody listens there now, and nobody but another test may before long."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind((LOOPBACK, port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"no {count} ports are free in {PORTS}")


def free_port() -> int:
    return free_ports(1)[0]
