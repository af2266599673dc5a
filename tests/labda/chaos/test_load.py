"""The load: its schedule, its requests, and what becomes of their answers, against a small server on loopback."""

import asyncio
import json
from datetime import UTC, datetime
from itertools import islice, takewhile

import pytest

from labda.api import FUNCTIONS
from labda.chaos.connections import BROKEN, Connections, Reply
from labda.chaos.history import Request, now
from labda.chaos.load import Arrival, Load, LoadConfig, Signer, arrivals, request
from labda.signing import sign
from labda.state import Credentials

CREDENTIALS = Credentials("000000000000", "AKIDEXAMPLE", "secret")
ARRIVAL = Arrival(at=0.0, function="chaos-1", nonce="n")
DEADLINE_S = 60.0


# ---------------------------------------------------------------- the schedule


def test_equal_seeds_draw_equal_schedules():
    config = LoadConfig()
    first, again, other = (list(islice(arrivals(config, seed), 500)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({one.nonce for one in first}) == 500
    assert {one.function for one in first} == set(config.names)


def test_the_rate_is_what_was_asked_for_after_a_ramp_from_nothing():
    config = LoadConfig(rate=100.0, ramp_s=20.0)
    times = [one.at for one in takewhile(lambda one: one.at < 120, arrivals(config, 7))]
    assert sum(at >= 20 for at in times) == pytest.approx(100 * 100, rel=0.05)
    assert sum(at < 20 for at in times) == pytest.approx(100 * 20 / 2, rel=0.15)
    assert sum(at < 5 for at in times) < sum(15 <= at < 20 for at in times) / 3


def test_runs_are_as_long_as_the_share_of_the_pools_needs():
    assert LoadConfig(functions=4, pool=50, use=0.5, rate=50.0).run_s == pytest.approx(2.0)


@pytest.mark.parametrize("changed", [
    {"pool": 0}, {"use": 1.5}, {"rate": 0.0}, {"functions": 0}, {"ramp_s": -1.0}, {"pool": 900, "rate": 0.5},
])
def test_a_load_that_cannot_be_is_refused(changed):
    with pytest.raises(ValueError, match=r"it must be between|raise the rate"):
        LoadConfig(**changed)


# ---------------------------------------------------------------- requests


def test_the_quick_signature_is_the_slow_one(monkeypatch):
    at = datetime(2026, 11, 29, 12, 30, 15, tzinfo=UTC)
    monkeypatch.setattr("time.time", at.timestamp)
    body = b'{"nonce": "n"}'
    raw = Signer(CREDENTIALS, endpoint="http://127.0.0.1:9000", region="us-east-1").invoke("chaos-1", body)
    expected = sign(
        CREDENTIALS, region="us-east-1", method="POST", host="127.0.0.1:9000",
        path=f"{FUNCTIONS}/chaos-1/invocations", headers={}, body=body, at=at,
    )
    lines = raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert {name: headers[name] for name in expected} == expected
    assert headers["content-length"] == str(len(body))
    assert raw.endswith(body)


def answer(**changed):
    told = {"nonce": "n", "function": "chaos-1", "sandbox": "s", "calls": 3, "begun": 1.5, "ended": 2.5} | changed
    return Reply(status=200, body=json.dumps(told).encode())


def recorded(reply):
    return request(ARRIVAL, reply, due=1.0, sent=1.1, done=3.0)


def test_an_answer_is_recorded_as_its_own_words():
    told = recorded(answer())
    assert (told.status, told.error, told.echo, told.sandbox, told.calls) == (200, "", "n", "s", 3)
    assert (told.at, told.sent, told.done, told.begun, told.ended) == (1.0, 1.1, 3.0, 1.5, 2.5)


def test_an_answer_of_another_function_is_not_its_own():
    assert recorded(answer(function="chaos-2")).echo == "n of chaos-2"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"no json"])
def test_what_is_no_answer_of_the_function_is_an_error(body):
    told = recorded(Reply(status=200, body=body))
    assert told.error.startswith("not an answer of this function")
    assert not told.explained


def test_a_refusal_says_its_type_and_reason():
    reply = Reply(
        status=503, head=b"http/1.1 503\r\nx-amzn-errortype: serviceunavailableexception\r\n",
        body=json.dumps({"message": "no", "Detail": {"reason": "SHED", "remedy": "wait"}}).encode(),
    )
    told = recorded(reply)
    assert (told.error, told.reason, told.explained) == ("serviceunavailableexception", "SHED", True)
    bare = recorded(Reply(status=502, head=b"http/1.1 502\r\n", body=b"<html>Bad Gateway"))
    assert (bare.error, bare.reason, bare.explained) == ("HTTP 502", "<html>Bad Gateway", False)


# ---------------------------------------------------------------- over a real connection


class Server:
    """Answers each request by the load's own rules, ``after_s`` after it came; breaks what it is told to."""

    def __init__(self, after_s=0.0):
        self.after_s = after_s
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.bodies = []
        self.connections = 0
        self.breaks = False
        self._answers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._answers:
            task.cancel()

    async def _serve(self, reader, writer):
        self._answers.add(asyncio.current_task())
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                event = json.loads(await reader.readexactly(size))
                self.bodies.append(event)
                if self.breaks:
                    return
                await asyncio.sleep(self.after_s)
                await self.may_answer.wait()
                body = answer(nonce=event["nonce"], function=head.split("/")[3]).body
                writer.write(b"HTTP/1.1 200 OK\r\nX-Other: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


def loaded(server, told, **changed):
    config = LoadConfig(**{"functions": 2, "pool": 10, "use": 0.5, "rate": 200.0, "ramp_s": 0.0} | changed)
    return Load(
        config, 3, connections=Connections("127.0.0.1", server.port), tell=told.append,
        signer=Signer(CREDENTIALS, endpoint="http://127.0.0.1:9000", region="us-east-1"),
    )


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_go_out_when_they_are_due_however_slow_the_answers_are():
    told: list[Request] = []
    async with Server() as server:
        server.may_answer.clear()
        load = loaded(server, told)
        sending = asyncio.create_task(load.run())
        await until(lambda: len(server.bodies) >= 100)
        assert server.connections >= 100, "nobody waited for an answer before the next request"
        answered_at = now()
        server.may_answer.set()
        assert await load.stop(DEADLINE_S)
        await asyncio.wait_for(sending, DEADLINE_S)
    assert len(told) == len(server.bodies)
    assert {one.status for one in told} == {200}
    assert [one.nonce for one in told if one.echo != one.nonce] == []
    waited = [one for one in told if one.sent < answered_at]
    assert len(waited) >= 100
    assert all(one.at <= one.sent < answered_at <= one.done for one in waited), "a life is counted from when it was due"


async def test_a_paused_load_sends_nothing_and_begins_again_slowly():
    told: list[Request] = []
    async with Server() as server:
        load = loaded(server, told)
        sending = asyncio.create_task(load.run())
        await until(lambda: len(told) > 20)
        load.pause()
        await until(lambda: not load.under_way)
        paused_at, sent = now(), len(server.bodies)
        await until(lambda: now() > paused_at + 0.3)
        assert len(server.bodies) == sent
        load.resume()
        await until(lambda: len(server.bodies) > sent + 20)
        await load.stop(DEADLINE_S)
        await asyncio.wait_for(sending, DEADLINE_S)


async def test_a_surge_asks_for_more_for_a_while():
    told: list[Request] = []
    async with Server() as server:
        load = loaded(server, told, rate=50.0)
        assert load.capacity == 100.0
        sending = asyncio.create_task(load.run())
        await until(lambda: len(told) > 10)
        began, before = now(), len(server.bodies)
        await load.surge(500.0, 0.5)
        await until(lambda: now() > began + 0.5)
        await until(lambda: len(server.bodies) > before + 200)     # its own schedule alone: 25
        await until(lambda: not load._tasks._tasks)     # it ended by itself
        late = len(server.bodies)
        await until(lambda: len(server.bodies) > late)
        await load.stop(DEADLINE_S)
        await asyncio.wait_for(sending, DEADLINE_S)
    assert len({one.nonce for one in told}) == len(told)


async def test_a_broken_connection_is_a_failure_without_a_status():
    told: list[Request] = []
    async with Server() as server:
        server.breaks = True
        load = loaded(server, told)
        sending = asyncio.create_task(load.run())
        await until(lambda: len(told) > 5)
        await load.stop(DEADLINE_S)
        await asyncio.wait_for(sending, DEADLINE_S)
    assert {(one.status, one.error) for one in told} == {(BROKEN, "the connection broke")}
    assert load.failed == load.answered == len(told)


async def test_nobody_listens():
    replies: list[Reply] = []
    async with Server() as server:
        port = server.port
    connections = Connections("127.0.0.1", port)
    assert connections.send(b"GET / HTTP/1.1\r\n\r\n", replies.append)
    assert await connections.finish(DEADLINE_S)
    assert [(reply.status, reply.body) for reply in replies] == [(BROKEN, b"ConnectionRefusedError")]


async def test_a_connection_too_many_is_not_sent():
    replies: list[Reply] = []
    async with Server(after_s=0.2) as server:
        connections = Connections("127.0.0.1", server.port, connections_max=1)
        asked = b"POST /a/b/f HTTP/1.1\r\ncontent-length: 14\r\n\r\n" + b'{"nonce": "n"}'
        assert connections.send(asked, replies.append)
        assert not connections.send(asked, replies.append)
        assert await connections.finish(DEADLINE_S)
        assert connections.send(asked, replies.append), "the kept one is free again"
        assert await connections.finish(DEADLINE_S)
        assert server.connections == 1
        connections.close()
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].header("x-other") == "1"
    assert replies[0].header("x-none") == ""
