"""The contract on NATS JetStream, and what only a cluster has: servers that go away, users."""

import asyncio
import base64
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest

from storage.faults import BlobCorrupt, OutcomeUnknown, StorageFault, StoreDenied, StoreFull, StoreUnavailable
from storage.founding import NO_PEERS, _found_stream, found_nats
from storage.nats import ABANDONED_S, LIST_PAGE, NatsBlobs
from storage.nats_answers import Head
from storage.nats_client import NatsClient, NatsSettings, Silent
from storage.nats_streams import CHUNK_BYTES, BlobStreams
from tests.storage import contract
from tests.storage.nats_world import NatsWorld
from tests.storage.servers import Authorities, NatsTrio
from tests.storage.worlds import ManualClock, eventually


@pytest.fixture(scope="module")
async def trio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsTrio]:
    trio = NatsTrio(tmp_path_factory.mktemp("nats"))
    try:
        trio.start_all()
        await trio.ready()
        await found_nats(trio.addresses, trio.authorities.client("operator"))
        yield trio
    finally:
        trio.end()


@pytest.fixture
async def world(trio: NatsTrio) -> AsyncIterator[NatsWorld]:
    world = NatsWorld(trio, trio.authorities.client("frontend"))
    await world.empty()
    yield world
    await world.close()


class TestBlob(contract.BlobContract): ...


async def test_founding_again_changes_nothing(trio: NatsTrio, world: NatsWorld) -> None:
    blob = await world.blobs().put(contract.pieces(b"x"))
    await found_nats(trio.addresses, trio.authorities.client("operator"))
    assert await world.blobs().list() == (blob,)


async def test_each_service_touches_only_its_own_subjects(trio: NatsTrio, world: NatsWorld) -> None:
    frontend = NatsClient(trio.addresses, trio.authorities.client("frontend"))
    until = frontend.until()
    try:
        assert "error" not in await frontend.api(f"STREAM.INFO.{world.streams.heads}", {}, until=until)
        for subject in ("STREAM.NAMES", f"STREAM.DELETE.{world.streams.heads}", f"STREAM.UPDATE.{world.streams.heads}",
                        f"CONSUMER.CREATE.{world.streams.chunks}"):
            with pytest.raises(StoreDenied) as denied:
                await frontend.api(subject, {}, until=until)
            assert denied.value.definite
        with pytest.raises(StoreDenied):
            await frontend.ask("other.subject", b"", until=until)
        # Nor does it hear what others are answered.
        client = await frontend.connected(until)
        overheard = await client.subscribe("_INBOX.operator.>")
        operator = NatsBlobs(trio.addresses, trio.authorities.client("operator"), world.clock)
        await operator.list()
        await operator.close()
        with pytest.raises(nats.errors.TimeoutError):
            await overheard.next_msg(timeout=0.2)
    finally:
        await frontend.close()


@pytest.mark.parametrize("user", ["placement", "worker"])
async def test_a_service_without_blobs_gets_no_connection(trio: NatsTrio, world: NatsWorld, user: str) -> None:
    tls = trio.authorities.client(user)
    blobs = NatsBlobs(trio.addresses, tls, world.clock)
    with pytest.raises(StoreDenied):
        await blobs.list()
    await blobs.close()


async def test_a_stranger_is_let_in_by_nobody(trio: NatsTrio, world: NatsWorld) -> None:
    settings = NatsSettings(answer_s=4.0, attempt_s=2.0)    # it is in vain, and a handshake takes its time
    other = NatsBlobs(trio.addresses, Authorities().client("frontend"), world.clock, settings)
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        await other.list()
    await other.close()
    elsewhere = NatsBlobs(
        ["nats.elsewhere:4222"], trio.authorities.client("frontend"), world.clock, settings,
        resolve=lambda _: trio.addresses[0],
    )
    with pytest.raises(StoreUnavailable, match=r"nats\.elsewhere"):
        await elsewhere.list()
    await elsewhere.close()


async def test_a_name_that_is_not_known_here_is_resolved(trio: NatsTrio, world: NatsWorld) -> None:
    where = dict(zip([f"{name}:4222" for name in trio.names], trio.addresses, strict=True))
    blobs = NatsBlobs(list(where), trio.authorities.client("frontend"), world.clock, resolve=where.__getitem__)
    assert await blobs.list() == ()
    await blobs.close()


# ---------------------------------------------------------------- servers that go away


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("member", [0, 1, 2])
async def test_a_server_may_go_and_nothing_acknowledged_is_lost(
    trio: NatsTrio, world: NatsWorld, fault: str, member: int
) -> None:
    """Whichever it is: one of them leads each stream."""
    blobs = world.blobs()
    name = trio.names[member]
    put: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            content = len(put).to_bytes(4, "big") * 200_000
            put[(await blobs.put(contract.pieces(content))).sha256] = content

    writing = asyncio.create_task(write())
    try:
        await eventually(lambda: len(put) > 2)
        at = len(put)
        if fault == "kill":
            trio.kill(name)
            await eventually(lambda: len(put) > at + 2)
            trio.start(name)
            await trio.ready()
        else:
            with trio.paused(name):
                await eventually(lambda: len(put) > at + 2)
        await eventually(lambda: len(put) > at + 4)
        stop.set()
        await writing
        for sha256, content in put.items():
            assert b"".join([chunk async for chunk in blobs.get(sha256)]) == content
        assert {blob.sha256 for blob in await blobs.list()} == set(put)
    finally:
        stop.set()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_without_a_majority_nothing_is_claimed(trio: NatsTrio, world: NatsWorld) -> None:
    blobs = world.blobs(answer_s=2.0, attempt_s=0.5)
    kept = await world.blobs().put(contract.pieces(b"kept"))
    with trio.paused(*trio.names[:2]):
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await blobs.put(contract.pieces(b"x"))
        with pytest.raises(StoreUnavailable):
            await blobs.list()
    await trio.ready()
    again = world.blobs()
    assert await again.has(kept.sha256)
    await again.put(contract.pieces(b"x"))
    assert len(await again.list()) == 2


# ---------------------------------------------------------------- a head whose answer doesn't come


class Answer:
    def __init__(self, headers: dict[str, str], data: bytes) -> None:
        self.headers = headers
        self.data = data


class OneServer:
    """Both streams in memory, with a script of what becomes of each head that is sent: stored unless it says otherwise.
    """

    def __init__(self) -> None:
        self.streams = BlobStreams()
        self.script: list[str] = []
        self.sequence = 0
        self.stored: dict[int, tuple[str, bytes]] = {}
        self.waited_for = asyncio.Event()

    def until(self) -> float:
        return asyncio.get_running_loop().time() + 30.0

    def unavailable(self, why: str) -> StorageFault:
        return StoreUnavailable(why)

    async def ask_once(
        self, subject: str, payload: bytes, *, until: float, headers: dict[str, str] | None = None
    ) -> Answer:
        if headers is None:
            return self.store(subject, payload)
        fate = self.script.pop(0) if self.script else "stored"
        last = max((at for at, (other, _) in self.stored.items() if other == subject), default=0)
        if fate == "full":
            return self.said({"error": {"code": 400, "err_code": 10077, "description": "maximum bytes exceeded"}})
        if fate == "refused":
            return self.said({"error": {"code": 400, "err_code": 10052, "description": "stream is sealed"}})
        if int(headers["Nats-Expected-Last-Subject-Sequence"]) != last:
            return self.said({"error": {"code": 400, "err_code": 10071, "description": "wrong last sequence"}})
        self.stored.pop(last, None)
        answer = self.store(subject, payload)
        if fate == "held":
            self.waited_for.set()
            await asyncio.Event().wait()
        if fate == "stored, answer lost":
            raise Silent("no answer")
        if fate == "stored, answered with 0":
            return self.said({"seq": 0})
        return answer

    async def ask(self, subject: str, payload: bytes, *, until: float) -> Answer:
        found, content = self.stored.get(json.loads(payload)["seq"], ("", b""))
        return Answer({"Nats-Subject": found}, content)

    async def api(self, subject: str, request: Any, *, until: float) -> dict[str, Any]:
        if subject.startswith("STREAM.PURGE."):
            self.stored = {at: of for at, of in self.stored.items() if of[0] != request["filter"]}
            return {"success": True}
        assert subject.startswith("STREAM.MSG.GET.")
        wanted = request.get("last_by_subj")
        for at, (found, content) in self.stored.items():
            if found == wanted or at == request.get("seq"):
                return {"message": {"subject": found, "data": base64.b64encode(content).decode(), "seq": at}}
        return {"error": {"code": 404, "description": "no message found"}}

    def store(self, subject: str, payload: bytes) -> Answer:
        self.sequence += 1
        self.stored[self.sequence] = (subject, payload)
        return self.said({"seq": self.sequence})

    def said(self, answer: dict[str, Any]) -> Answer:
        return Answer({}, json.dumps(answer).encode())

    def chunk_ids(self) -> set[str]:
        return {subject.rsplit(".", 1)[-1] for subject, _ in self.stored.values() if ".chunk." in subject}


@pytest.fixture
def server() -> OneServer:
    return OneServer()


@pytest.fixture
def blobs_of_one(server: OneServer) -> NatsBlobs:
    blobs = NatsBlobs(["any:4222"], Authorities().client("frontend"), ManualClock(), streams=server.streams)
    blobs._nats = server  # type: ignore[assignment]
    return blobs


async def content_of(blobs: NatsBlobs, sha256: str) -> bytes:
    await asyncio.gather(*blobs._purging)
    return b"".join([chunk async for chunk in blobs.get(sha256)])


async def test_a_put_that_is_cancelled_when_its_head_is_sent_takes_nothing_away(
    server: OneServer, blobs_of_one: NatsBlobs
) -> None:
    """Its head has replaced the one of the same bytes by then: what a function runs lives on its chunks."""
    blob = await blobs_of_one.put(contract.pieces(b"code"))
    server.script = ["held"]
    putting = asyncio.create_task(blobs_of_one.put(contract.pieces(b"code")))
    await server.waited_for.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await content_of(blobs_of_one, blob.sha256) == b"code"


@pytest.mark.parametrize("first", ["stored, answer lost", "stored, answered with 0"])
async def test_a_refusal_after_a_head_without_an_answer_claims_nothing(
    server: OneServer, blobs_of_one: NatsBlobs, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The leader that answers may not know yet that it was stored."""
    blob = await blobs_of_one.put(contract.pieces(b"code"))
    stale = await blobs_of_one._head(blob.sha256)

    async def behind(_: str) -> Head | None:
        return stale

    server.script = [first, "refused"]
    with monkeypatch.context() as patch:
        patch.setattr(blobs_of_one, "_head", behind)
        with pytest.raises(OutcomeUnknown):
            await blobs_of_one.put(contract.pieces(b"code"))
    assert await content_of(blobs_of_one, blob.sha256) == b"code"


async def test_a_head_whose_answer_was_lost_is_not_sent_again_over_another_ones(
    server: OneServer, blobs_of_one: NatsBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other put has replaced it, and its chunks are gone."""
    look, looks = blobs_of_one._head, 0

    async def head(sha256: str) -> Head | None:
        nonlocal looks
        looks += 1
        if looks == 2:      # between the first try and the second
            await blobs_of_one.put(contract.pieces(b"code"))
            await asyncio.gather(*blobs_of_one._purging)
        return await look(sha256)

    server.script = ["stored, answer lost"]
    with monkeypatch.context() as patch:
        patch.setattr(blobs_of_one, "_head", head)
        with pytest.raises(OutcomeUnknown, match="put again or deleted since"):
            await blobs_of_one.put(contract.pieces(b"code"))
    assert await content_of(blobs_of_one, hashlib.sha256(b"code").hexdigest()) == b"code"


async def test_a_refused_head_leaves_what_is_there_and_nothing_else(
    server: OneServer, blobs_of_one: NatsBlobs
) -> None:
    blob = await blobs_of_one.put(contract.pieces(b"code"))
    server.script = ["full"]
    with pytest.raises(StoreFull):
        await blobs_of_one.put(contract.pieces(b"code"))
    assert await content_of(blobs_of_one, blob.sha256) == b"code"
    assert server.chunk_ids() == {blob.put_id}


# ---------------------------------------------------------------- what lies around


async def chunk_ids(world: NatsWorld) -> set[str]:
    client = world.blobs()._nats
    answer = await client.api(
        f"STREAM.INFO.{world.streams.chunks}", {"subjects_filter": ">"}, until=client.until()
    )
    return {subject.rsplit(".", 1)[-1] for subject in answer["state"].get("subjects") or {}}


async def test_replaced_failed_and_deleted_puts_leave_no_chunks(world: NatsWorld) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        raise ConnectionResetError

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        await asyncio.Event().wait()

    blobs = world.blobs()
    await blobs.put(contract.pieces(b"x" * 1_000_000))
    again = await blobs.put(contract.pieces(b"x" * 1_000_000))
    deleted = await blobs.put(contract.pieces(b"y"))
    assert await blobs.delete(deleted)
    with pytest.raises(ConnectionResetError):
        await blobs.put(broken())
    putting = asyncio.create_task(blobs.put(endless()))
    async with asyncio.timeout(60):
        while len(await chunk_ids(world)) < 2:
            await asyncio.sleep(0.005)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    await blobs.close()     # lets what it removes end
    assert await chunk_ids(world) == {again.put_id}


async def test_what_a_crashed_writer_left_is_swept(world: NatsWorld) -> None:
    blobs = world.blobs()
    kept = await blobs.put(contract.pieces(b"kept"))
    for put_id in (f"{int(world.clock.now * 1000):x}-crashed", f"{int((world.clock.now + 3000) * 1000):x}-young"):
        await blobs._nats.ask(world.streams.chunk(put_id), b"left", until=blobs._nats.until())
    world.clock.now += ABANDONED_S + 1
    await blobs.sweep()
    assert {put_id.split("-")[1] for put_id in await chunk_ids(world)} == {kept.put_id.split("-")[1], "young"}
    assert await blobs.list() == (kept,)


class JetStream:
    """Answers to the making of a stream, in turn; it isn't there before."""

    def __init__(self, *answers: dict[str, Any], answer_s: float) -> None:
        self.answers = list(answers)
        self.answer_s = answer_s

    def until(self) -> float:
        return asyncio.get_running_loop().time() + self.answer_s

    async def api(self, subject: str, request: Any, *, until: float) -> dict[str, Any]:
        if subject.startswith("STREAM.INFO."):
            return {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
        return self.answers.pop(0)


async def test_members_that_have_just_started_are_waited_for_when_streams_are_founded() -> None:
    """Seen on a busy machine: JetStream's leader had not heard of the other two yet."""
    early = {"error": {"code": 400, "err_code": NO_PEERS, "description": "no suitable peers for placement"}}
    server: Any = JetStream(early, early, {"config": {}}, answer_s=30.0)
    await _found_stream(server, {"name": "any"})
    assert server.answers == []
    late: Any = JetStream(early, early, answer_s=0.1)
    with pytest.raises(StorageFault, match="no suitable peers"):
        await _found_stream(late, {"name": "any"})
    other: Any = JetStream({"error": {"code": 400, "err_code": 10052}}, answer_s=30.0)
    with pytest.raises(StorageFault, match="10052"):
        await _found_stream(other, {"name": "any"})


async def test_a_chunk_that_is_gone_is_corruption(world: NatsWorld) -> None:
    content = b"x" * 1_200_000
    blobs = world.blobs()
    blob = await blobs.put(contract.pieces(content))
    await blobs._purge(blob.put_id)
    with pytest.raises(BlobCorrupt, match=r"chunk [123] of 3 is missing"):
        await read_until_refused(blobs, blob.sha256, content)


async def read_until_refused(blobs: NatsBlobs, sha256: str, content: bytes) -> None:
    """Any member may be asked for a chunk, and the leader's purge reaches the others a little later."""
    async with asyncio.timeout(60):
        while True:
            received: list[bytes] = []
            await contract.exhaust(blobs.get(sha256), received)
            assert b"".join(received) == content


async def test_a_reader_outlives_a_replacement(world: NatsWorld) -> None:
    """The same bytes under another put: the rest comes from there."""
    content = b"x" * (20 * CHUNK_BYTES)
    blobs = world.blobs()
    blob = await blobs.put(contract.pieces(content))
    received: list[bytes] = []
    async with contextlib.aclosing(blobs.get(blob.sha256)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            if not received:
                await blobs.put(contract.pieces(content))
                await asyncio.gather(*blobs._purging)
            received.append(chunk)
    assert b"".join(received) == content


async def test_many_blobs_are_listed_in_few_answers(world: NatsWorld) -> None:
    blobs = world.blobs()
    digests = sorted(hashlib.sha256(b"%d" % number).hexdigest() for number in range(2 * LIST_PAGE + 100))
    head = json.dumps({"size_bytes": 0, "put_id": "0-0", "chunks": []}).encode()
    for start in range(0, len(digests), 50):
        await asyncio.gather(*(
            blobs._nats.ask(world.streams.head(digest), head, until=blobs._nats.until())
            for digest in digests[start : start + 50]
        ))
    client = await blobs._nats.connected(blobs._nats.until())
    looked = Counter[str]()
    all_up_to = blobs._all_up_to

    async def look(mark: int, until: float) -> dict[str, Head] | None:
        looked["times"] += 1
        return await all_up_to(mark, until)

    blobs._all_up_to = look  # type: ignore[method-assign]
    sent = client.stats["out_msgs"]
    assert [blob.sha256 for blob in await blobs.list()] == digests
    # One message is the mark. A copy of the stream that hasn't got it yet is asked again from the start.
    assert client.stats["out_msgs"] - sent <= 1 + 4 * looked["times"]


async def test_a_gap_in_the_stream_is_no_end_of_the_list(world: NatsWorld) -> None:
    blobs = world.blobs()
    put = [await blobs.put(contract.pieces(b"%d" % number)) for number in range(6)]
    for blob in put[1:4]:
        assert await blobs.delete(blob)
    assert {blob.sha256 for blob in await blobs.list()} == {put[number].sha256 for number in (0, 4, 5)}
    assert await blobs.delete(put[5])
    assert {blob.sha256 for blob in await blobs.list()} == {put[number].sha256 for number in (0, 4)}
