"""For how long the other side of a framed connection may say nothing, on a loop in virtual time."""

import asyncio

import pytest

from chassis import framed_network as framed
from chassis.credentials import Revocations
from chassis.framed_connection import SILENT_S
from chassis.rpc import Handlers
from simulation import loop as virtual


class Wire(asyncio.Transport):
    """What is written is kept; nothing is ever heard."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self.aborted = False

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def write(self, data):
        self.written += bytes(data)

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True


def server():
    return framed._ServerConnection(framed._Server(Handlers(), Revocations()))


@pytest.mark.parametrize("made", [framed._ClientConnection, server])
def test_a_silent_peer_is_borne_for_three_seconds(made):
    """To cut off one that is late loses the answers that are on their way."""
    async def main(loop):
        wire, connection = Wire(), made()
        connection.connection_made(wire)
        await asyncio.sleep(SILENT_S - 0.1)
        assert connection.fault is None
        assert wire.written, "this side says all the while that it is there"
        await asyncio.sleep(0.7)
        assert wire.aborted
        return str(connection.fault)

    assert "the peer said nothing for" in virtual.run(main)


def test_a_process_that_was_held_up_itself_listens_before_it_judges():
    async def main(loop):
        wire, connection = Wire(), framed._ClientConnection()
        connection.connection_made(wire)
        loop.advance(10.0)
        await asyncio.sleep(SILENT_S - 0.1)
        return connection.fault

    assert virtual.run(main) is None
