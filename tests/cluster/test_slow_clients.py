"""Slow, mute and half-open clients at a real frontend: it serves everybody else as ever."""

import contextlib
import socket

import pytest

from tests.cluster.cluster import call

SOURCE = "def handler(event, context):\n    return 'x' * event.get('size', 0)\n"
IDLE, SLOW = 200, 50


@pytest.fixture
def nuisance(cluster):
    """200 idle connections, 50 heads that never end and 50 bodies, all at one frontend."""
    frontend = cluster.processes("frontend")[0]
    host, port = frontend["http"].rsplit(":", 1)
    with contextlib.ExitStack() as kept:
        for number in range(IDLE + 2 * SLOW):
            client = kept.enter_context(socket.create_connection((host, int(port)), timeout=30))
            if number >= IDLE:
                client.sendall(b"POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nhost: x\r\n")
            if number >= IDLE + SLOW:
                client.sendall(b"content-length: 6000000\r\n\r\nx")
        yield f"http://{frontend['http']}"


def test_others_are_served_meanwhile(cluster, functions, nuisance):
    name = functions.make(SOURCE)
    client = cluster.client(endpoint=nuisance)
    try:
        call(client, name)
        for _ in range(20):
            assert call(client, name, {"size": 100_000}).payload == "x" * 100_000
    finally:
        client.close()


def test_a_head_that_is_too_large_is_refused_by_a_real_frontend(cluster):
    host, port = cluster.processes("frontend")[0]["http"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-large: " + b"x" * 200_000 + b"\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 431 ")
