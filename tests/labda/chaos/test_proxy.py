"""Each fault of a link over loopback: what arrives, what doesn't, and who is told."""

import asyncio
import contextlib

import pytest

from labda.chaos.proxy import LinkFault, Proxy, Route

DEADLINE_S = 60.0
SHORT_S = 0.3       # for what must not come
DELAY_S = 3.0       # longer than this loop may stand still for, on a machine that has more to do
THERE, BACK = ("a", "b"), ("b", "a")


class Served:
    """Remembers what came on each connection, and how it ended."""

    def __init__(self) -> None:
        self.connections: list[Heard] = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for one in self.connections:
            one.writer.close()
            if one.task is not None:
                one.task.cancel()

    async def _accept(self, reader, writer):
        one = Heard(reader, writer)
        one.task = asyncio.current_task()
        self.connections.append(one)
        await one.follow()

    async def one(self):
        await until(lambda: self.connections)
        return self.connections[-1]


class Heard:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.bytes = b""
        self.ended = ""
        self.task: asyncio.Task[None] | None = None

    async def follow(self):
        try:
            while data := await self.reader.read(65536):
                self.bytes += data
            self.ended = "eof"
        except ConnectionError:
            self.ended = "reset"


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def quiet(condition):
    """It doesn't come true for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHORT_S):
            while not condition():
                await asyncio.sleep(0.005)
    assert not condition()


@pytest.fixture
async def served():
    async with Served() as found:
        yield found


@pytest.fixture
async def proxy(served):
    found = Proxy([Route(dialler="a", server="b", address=served.address)])
    await found.start()
    yield found
    await found.close()


async def dial(proxy):
    reader, writer = await asyncio.open_connection(*proxy.addresses[THERE].rsplit(":", 1))
    heard = Heard(reader, writer)
    heard.task = asyncio.create_task(heard.follow())
    return heard


@pytest.fixture
async def link(proxy, served):
    """Both ends of a connection that works."""
    near = await dial(proxy)
    near.writer.write(b"hello")
    far = await served.one()
    await until(lambda: far.bytes == b"hello")
    far.writer.write(b"well met")
    await until(lambda: near.bytes == b"well met")
    near.bytes = far.bytes = b""
    yield near, far
    near.writer.close()
    near.task.cancel()


async def test_bytes_go_both_ways_and_one_end_at_a_time(link):
    near, far = link
    much = bytes(range(256)) * 10_000
    near.writer.write(much)
    far.writer.write(much[::-1])
    await until(lambda: far.bytes == much and near.bytes == much[::-1])
    near.writer.write_eof()
    await until(lambda: far.ended == "eof")
    far.writer.write(b"after it")
    await until(lambda: near.bytes.endswith(b"after it"))
    assert near.ended == ""
    far.writer.write_eof()
    await until(lambda: near.ended == "eof")


async def test_a_reset_is_handed_on(link):
    near, far = link
    far.writer.transport.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")    # SO_LINGER: no goodbye
    far.writer.transport.abort()
    await until(lambda: near.ended == "reset")


async def test_nobody_serves(proxy, served):
    served._server.close()
    near = await dial(proxy)
    await until(lambda: near.ended)
    near.writer.close()


async def test_delay(proxy, link):
    near, far = link
    loop = asyncio.get_running_loop()
    proxy.strike([THERE], LinkFault(delay_s=DELAY_S))
    began = loop.time()
    near.writer.write(b"x")
    far.writer.write(b"y")
    await until(lambda: near.bytes == b"y")
    assert far.bytes == b"", "what goes the other way is not late"
    for _ in range(19):
        near.writer.write(b"x")
        await asyncio.sleep(0.01)
    await until(lambda: len(far.bytes) == 20)
    took = loop.time() - began
    assert DELAY_S <= took < 20 * DELAY_S, "they are under way together"


async def test_a_stalled_link_says_nothing_and_delivers_when_it_is_mended(proxy, link):
    near, far = link
    proxy.strike([THERE, BACK], LinkFault(stalled=True))
    near.writer.write(b"there")
    far.writer.write(b"back")
    await quiet(lambda: far.bytes or near.bytes or far.ended or near.ended)
    proxy.mend([THERE, BACK])
    await until(lambda: (far.bytes, near.bytes) == (b"there", b"back"))


async def test_one_way(proxy, link):
    near, far = link
    proxy.strike([BACK], LinkFault(stalled=True))
    near.writer.write(b"heard")
    far.writer.write(b"not heard")
    await until(lambda: far.bytes == b"heard")
    await quiet(lambda: near.bytes)
    near.writer.close()
    await until(lambda: far.ended == "eof")
    proxy.mend([BACK])


async def test_the_end_of_a_connection_is_stalled_too(proxy, link):
    near, far = link
    proxy.strike([THERE], LinkFault(stalled=True))
    near.writer.close()
    await quiet(lambda: far.ended)
    proxy.mend([THERE])
    await until(lambda: far.ended)


async def test_a_new_connection_over_a_stalled_link_arrives_when_it_is_mended(proxy, served):
    proxy.strike([THERE], LinkFault(stalled=True))
    near = await dial(proxy)
    near.writer.write(b"hello")
    await quiet(lambda: served.connections)
    proxy.mend([THERE])
    far = await served.one()
    await until(lambda: far.bytes == b"hello")
    near.writer.close()


async def test_who_gave_up_before_it_arrived_never_arrives(proxy, served):
    proxy.strike([THERE], LinkFault(stalled=True))
    for words in (b"", b"hello"):
        near = await dial(proxy)
        near.writer.write(words)
        await until(lambda: proxy._gates[THERE].dialled)
        near.writer.close()
        await until(lambda: not proxy._gates[THERE].dialled)
    proxy.mend([THERE])
    last = await dial(proxy)
    last.writer.write(b"here")
    far = await served.one()
    await until(lambda: far.bytes == b"here")
    assert len(served.connections) == 1
    last.writer.close()


async def test_reset(proxy, link, served):
    near, far = link
    proxy.strike([THERE], LinkFault(reset=True))
    await until(lambda: (near.ended, far.ended) == ("reset", "reset"))
    again = await dial(proxy)
    await until(lambda: again.ended)
    assert len(served.connections) == 1, "new ones are reset as well, and never arrive"
    proxy.mend([THERE])
    third = await dial(proxy)
    third.writer.write(b"hello")
    await until(lambda: served.connections[-1].bytes == b"hello")
    for one in (again, third):
        one.writer.close()


async def test_reset_is_about_who_dialled(proxy, link):
    near, far = link
    proxy.strike([BACK], LinkFault(reset=True))
    near.writer.write(b"on it goes")
    await until(lambda: far.bytes == b"on it goes")
    assert near.ended == ""


async def test_half_open(proxy, link, served):
    near, far = link
    proxy.strike([THERE], LinkFault(half_open=True))
    await until(lambda: far.ended == "reset")
    near.writer.write(b"is anybody there")
    again = await dial(proxy)
    again.writer.write(b"or there")
    await quiet(lambda: near.ended or near.bytes or again.ended)
    assert len(served.connections) == 1
    proxy.mend([THERE])
    near.writer.write(b"now")
    await quiet(lambda: near.ended or near.bytes or len(served.connections) > 1)
    third = await dial(proxy)
    third.writer.write(b"hello")
    await until(lambda: served.connections[-1].bytes == b"hello")
    for one in (again, third):
        one.writer.close()


async def test_bandwidth_is_shared_by_the_connections_of_a_way(proxy, link, served):
    loop = asyncio.get_running_loop()
    near, far = link
    other = await dial(proxy)
    other.writer.write(b"x")
    await until(lambda: len(served.connections) == 2)
    second = served.connections[-1]
    await until(lambda: second.bytes == b"x")
    proxy.strike([THERE], LinkFault(bytes_per_s=200_000))
    began = loop.time()
    near.writer.write(bytes(50_000))
    other.writer.write(bytes(50_000))
    far.writer.write(bytes(50_000))
    await until(lambda: len(near.bytes) == 50_000)
    await until(lambda: len(far.bytes) == 50_000 and len(second.bytes) == 50_001)
    assert loop.time() - began >= 0.45
    near.writer.write(bytes(2_000_000))
    await quiet(lambda: len(far.bytes) >= 2_000_000)
    proxy.mend([THERE])
    await until(lambda: len(far.bytes) == 2_050_000)
    other.writer.close()


async def test_what_cannot_be_is_refused(proxy):
    with pytest.raises(ValueError, match="no link goes through the proxy from a to c, b to b"):
        proxy.strike([("a", "c"), THERE, ("b", "b")], LinkFault())
    for wrong, words in (
        ({"delay_s": 61.0}, "delay_s is 61.0, allowed are 0 to 60"), ({"bytes_per_s": -1}, "bytes_per_s is -1"),
        ({"reset": True, "half_open": True}, "reset and half_open are both set"),
    ):
        with pytest.raises(ValueError, match=words):
            LinkFault(**wrong)


async def test_nothing_is_left_of_a_proxy_that_was_closed(served):
    proxy = Proxy([Route(dialler="a", server="b", address=served.address)])
    await proxy.start()
    near = await dial(proxy)
    near.writer.write(b"hello")
    far = await served.one()
    await until(lambda: far.bytes == b"hello")
    stalled = await dial(proxy)
    proxy.strike([THERE, BACK], LinkFault(stalled=True))
    await proxy.close()
    await until(lambda: near.ended and far.ended and stalled.ended)
    with pytest.raises(ConnectionRefusedError):
        await dial(proxy)
    near.writer.close()
    stalled.writer.close()
