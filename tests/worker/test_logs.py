"""What a function says: lines, bounds, tails, files, followers, and the platform's own lines in JSON."""

import asyncio
import json
import sys
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

import worker.logs
from chassis.grpc_network import MESSAGE_BYTES_MAX
from tests.worker.region import Frame
from tests.worker.test_core import HELLO
from worker.function_output import LINE_BYTES_MAX, FunctionOutput
from worker.invoke_stream import WINDOW_BYTES, InvokeStream, StreamReply
from worker.logs import FunctionLogs, MemoryFiles, RotatedFiles
from worker.messages import FunctionSettings
from worker.platform_lines import Lines, Report

KEY = ("000000000000", "hello")
OTHER = ("000000000000", "other")


def output(**changes) -> tuple[FunctionOutput, list[str]]:
    lines: list[str] = []
    fields: dict[str, Any] = {"budget_bytes": 10 << 20, "whole_records": False, **changes}
    return FunctionOutput(lines.append, **fields), lines


def test_lines_are_joined_over_chunks():
    out, lines = output()
    for chunk in (b"a", b"b\nc\n", b"\n", b"d"):
        out.feed(chunk)
    assert lines == ["ab\n", "c\n", "\n"]
    out.finish()
    assert lines[-1] == "d"


def test_a_line_without_end_is_cut():
    out, lines = output()
    for _ in range(20):
        out.feed(b"x" * 65536)
    out.feed(b"rest\nnext\n")
    assert [len(line) for line in lines] == [LINE_BYTES_MAX, len(lines[1]), 5]
    assert lines[1] == "[labda] the line above is cut: a log line has at most 262144 bytes\n"
    assert lines[2] == "next\n"


def test_a_flood_is_dropped_and_said():
    out, lines = output(budget_bytes=10)
    out.feed(b"0123456\n" * 3)
    assert out.exhausted
    out.finish()
    assert lines[:2] == ["0123456\n", "01"]
    assert lines[2].startswith("[labda] 14 bytes of output dropped: one invocation may log 10 bytes")
    out.begin(keep_tail=False)
    out.feed(b"again\n")
    assert lines[-1] == "again\n"


@pytest.mark.parametrize("whole", [False, True])
def test_tail(whole):
    out, _ = output(whole_records=whole)
    line = json.dumps({"m": "ä" * 300}, ensure_ascii=False) + "\n"
    for _ in range(100):
        out.feed(line.encode())
    tail = out.tail().decode()
    if whole:
        assert all(json.loads(row) for row in tail.splitlines())
        assert 4096 - len(line.encode()) < len(tail.encode()) <= 4096
    else:
        assert len(tail.encode("utf-8").replace("\ufffd".encode(), b"?")) == 4096


def test_files_are_bounded_and_names_are_no_paths(tmp_path):
    files = RotatedFiles(tmp_path, file_bytes_max=100, functions_max=2)
    for number in range(20):
        files.append(KEY, b"%019d\n" % number)
    kept = files.read(KEY).split()
    assert kept[-1] == b"%019d" % 19
    assert len(kept) in range(5, 11)
    for name in ("..", "../../etc", "a/b"):
        files.append(("0", name), b"x\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"a-0", "a-000000000000"}
    assert len(list(tmp_path.glob("a-*/f-*"))) == 2


@pytest.mark.parametrize("before", [b"", b"before\n"])
def test_a_batch_larger_than_a_file_fills_several(tmp_path, before):
    files = RotatedFiles(tmp_path, file_bytes_max=100)
    if before:
        files.append(KEY, before)
    lines = [b"%018d\n" % number for number in range(17)]
    files.append(KEY, b"".join(lines))
    assert [path.stat().st_size for path in sorted(tmp_path.rglob("*.ndjson"))] == [2 * 19, 5 * 19]
    assert files.read(KEY) == b"".join(lines[-7:])


def test_a_line_longer_than_a_file_has_one_to_itself(tmp_path):
    files = RotatedFiles(tmp_path, file_bytes_max=100)
    long = b"x" * 150 + b"\n"

    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*.ndjson")}

    files.append(KEY, long)
    assert kept() == {"current.ndjson": long}
    files.append(KEY, b"before\n" + long)
    assert kept() == {"previous.ndjson": b"before\n", "current.ndjson": long}
    files.append(KEY, b"after\n")
    files.append(KEY, b"last\n")
    assert kept() == {"previous.ndjson": long, "current.ndjson": b"after\nlast\n"}


async def test_read_and_follow():
    logs = FunctionLogs(MemoryFiles())
    logs.start()
    for number in range(3):
        logs.append(KEY, at_ms=number, stream="s", message=f"{number}\n")
    kept = [line.message async for lines in logs.read(KEY, since_ms=1, follow=False) for line in lines]
    assert kept == ["1\n", "2\n"]
    follower = logs.read(KEY, since_ms=2, follow=True)
    assert [line.message for line in await anext(follower)] == ["2\n"]
    logs.append(KEY, at_ms=3, stream="s", message="3\n")
    logs.append(("0", "other"), at_ms=3, stream="s", message="not for us\n")
    async with asyncio.timeout(60):
        assert [line.message for line in await anext(follower)] == ["3\n"]
    await follower.aclose()
    await logs.close()


class HangingFiles(MemoryFiles):
    """A disk on which every write hangs until ``go`` is set."""

    def __init__(self):
        super().__init__()
        self.began = threading.Event()
        self.go = threading.Event()

    def append(self, key, data):
        self.began.set()
        assert self.go.wait(60)
        super().append(key, data)


async def test_a_reader_that_leaves_stops_no_writing():
    files = HangingFiles()
    logs = FunctionLogs(files)
    for key in (KEY, OTHER):
        logs.append(key, at_ms=1, stream="s", message="kept\n")
    reading = asyncio.ensure_future(anext(logs.read(KEY, since_ms=0, follow=False)))
    assert await asyncio.to_thread(files.began.wait, 60)
    reading.cancel()
    await asyncio.wait([reading])
    files.go.set()
    await logs.close()
    assert set(files.files) == {KEY, OTHER}


async def test_the_end_of_the_process_waits_for_what_is_being_written():
    files = HangingFiles()
    logs = FunctionLogs(files)
    logs.start()
    for key in (KEY, OTHER):
        logs.append(key, at_ms=1, stream="s", message="kept\n")
    assert await asyncio.to_thread(files.began.wait, 60)
    closing = asyncio.ensure_future(logs.close())
    await asyncio.sleep(0)
    files.go.set()
    await closing
    assert set(files.files) == {KEY, OTHER}


@pytest.mark.parametrize("writing_already", [True, False])
async def test_a_follower_gets_each_line_once(writing_already):
    files = HangingFiles()
    logs = FunctionLogs(files)
    logs.append(KEY, at_ms=1, stream="s", message="1\n")
    follower = logs.read(KEY, since_ms=0, follow=True)
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(logs._flush())] if writing_already else []
    if writing_already:
        assert await asyncio.to_thread(files.began.wait, 60)
    tasks.append(asyncio.ensure_future(anext(follower)))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(files.began.wait, 60)
    # Comes from the files where the follower's own write is still to begin, else from memory.
    logs.append(KEY, at_ms=1, stream="s", message="2\n")
    files.go.set()
    batches = [await tasks[-1]]
    logs.append(KEY, at_ms=1, stream="s", message="3\n")
    batches.append(await anext(follower))
    assert [[line.message for line in batch] for batch in batches] == (
        [["1\n", "2\n"], ["3\n"]] if writing_already else [["1\n"], ["2\n", "3\n"]]
    )
    await follower.aclose()
    await logs.close()


async def test_what_waits_for_the_disk_is_bounded_by_bytes(monkeypatch):
    line = "x" * 1000
    room = 300
    monkeypatch.setattr(worker.logs, "BUFFER_BYTES_MAX", room * sys.getsizeof(line))
    files = HangingFiles()
    logs = FunctionLogs(files)

    def say(lines: int) -> None:
        for _ in range(lines):
            logs.append(KEY, at_ms=1, stream="s", message=line)

    say(200)
    writing = asyncio.ensure_future(logs._flush())
    assert await asyncio.to_thread(files.began.wait, 60)
    say(200)    # what is being written takes memory too
    files.go.set()
    with capture_logs() as told:
        await writing
        await logs._flush()
    assert files.read(KEY).count(b"\n") == room
    assert [(entry["event"], entry["lines"]) for entry in told] == [
        ("function logs dropped: the disk doesn't keep up", 100)
    ]
    say(room + 1)
    await logs.close()
    assert files.read(KEY).count(b"\n") == 2 * room


async def test_drops_are_told_though_nothing_follows(monkeypatch):
    monkeypatch.setattr(worker.logs, "BUFFER_LINES_MAX", 1)
    files = HangingFiles()
    logs = FunctionLogs(files)
    logs.start()
    logs.append(KEY, at_ms=1, stream="s", message="kept\n")
    assert await asyncio.to_thread(files.began.wait, 60)
    logs.append(KEY, at_ms=1, stream="s", message="dropped\n")
    with capture_logs() as told:
        files.go.set()
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.01)
    await logs.close()
    assert [entry["lines"] for entry in told] == [1]


async def test_what_waits_for_a_follower_is_bounded_by_bytes(monkeypatch):
    line = "x" * 1000
    monkeypatch.setattr(worker.logs, "FOLLOWER_BYTES_MAX", 300 * sys.getsizeof(line))
    logs = FunctionLogs(MemoryFiles())
    logs.append(KEY, at_ms=1, stream="s", message="first")
    follower = logs.read(KEY, since_ms=0, follow=True)
    assert [kept.message for kept in await anext(follower)] == ["first"]
    for lines in (400, 300):    # it has room again for what comes when it has caught up
        for _ in range(lines):
            logs.append(KEY, at_ms=1, stream="s", message=line)
        with capture_logs() as told:
            async with asyncio.timeout(60):
                assert len(await anext(follower)) == 300
        assert [entry["lines"] for entry in told] == ([100] if lines == 400 else [])
    await follower.aclose()
    await logs.close()


async def test_a_batch_of_long_lines_fits_in_a_message():
    logs = FunctionLogs(MemoryFiles())
    line = "x" * LINE_BYTES_MAX
    lines = MESSAGE_BYTES_MAX // LINE_BYTES_MAX + 1

    def say() -> None:
        for _ in range(lines):
            logs.append(KEY, at_ms=1, stream="s", message=line)

    say()
    follower = logs.read(KEY, since_ms=0, follow=True)
    batches = [await anext(follower)]
    say()       # the first half comes from the files, the other from memory
    while sum(map(len, batches)) < 2 * lines:
        batches.append(await anext(follower))
    assert max(map(len, batches)) * LINE_BYTES_MAX < MESSAGE_BYTES_MAX
    await follower.aclose()
    await logs.close()


class FaultyFiles(MemoryFiles):
    """Has a bug with ``KEY``."""

    def append(self, key, data):
        if key == KEY:
            raise ValueError("a bug")
        super().append(key, data)


async def test_a_bug_with_one_function_costs_no_other_its_lines():
    files = FaultyFiles()
    logs = FunctionLogs(files)
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    try:
        logs.start()
        for key in (KEY, OTHER):
            logs.append(key, at_ms=1, stream="s", message="at once\n")
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.01)
        logs.append(OTHER, at_ms=1, stream="s", message="later\n")
        async with asyncio.timeout(10):
            while b"later" not in files.read(OTHER):
                await asyncio.sleep(0.01)
        await logs.close()
    finally:
        loop.set_exception_handler(None)
    assert [repr(error) for error in told] == ["ValueError('a bug')"]
    assert [json.loads(row)["message"] for row in files.read(OTHER).splitlines()] == ["at once\n", "later\n"]


def test_platform_lines_in_json():
    settings = FunctionSettings(
        arn="arn:hello", runtime="python3.11", handler="a.b", memory_mb=128, timeout_s=3, tmp_mb=512, code_sha256="c",
        code_size=1, region="us-east-1", log_format="JSON",
    )
    lines = Lines(HELLO, settings, init_type="on-demand")
    assert lines.end("id") == ""
    report = Report(request_id="id", duration_ms=1.25, memory_peak_mb=40, init_ms=99.5, status="timeout")
    assert json.loads(lines.report(0.0, report)) == {
        "time": "1970-01-01T00:00:00.000Z", "type": "platform.report",
        "record": {"requestId": "id", "status": "timeout", "metrics": {
            "durationMs": 1.25, "billedDurationMs": 101, "memorySizeMB": 128, "maxMemoryUsedMB": 40,
            "initDurationMs": 99.5,
        }},
    }
    assert json.loads(lines.start(0.0, "id"))["record"]["functionArn"] == "arn:hello"


class Sent:
    """A stream that keeps what is sent."""

    def __init__(self):
        self.frames: list[Frame] = []
        self.cancelled = False

    async def send(self, message):
        self.frames += message.frames

    def cancel(self):
        self.cancelled = True


async def test_a_streamed_response_goes_out_as_credit_allows():
    sent: Any = Sent()
    nobody: Any = None
    stream = InvokeStream(number=1, frontend="f", stream=sent, starter=nobody, incarnation=nobody)
    writer = asyncio.get_running_loop().create_task(stream.outbox.run())
    reply = StreamReply(stream, "i1")
    drained: list[bool] = []
    assert reply.chunk(b"a" * 200_000) == 0
    assert reply.chunk(b"b" * 400_000) == 600_000 - 262_144
    reply.when_drained(lambda: drained.append(True))
    reply.finish_stream()
    reply.end()
    await asyncio.sleep(0.01)
    assert sum(len(frame.chunk.data) for frame in sent.frames) == 262_144
    assert not any(frame.HasField("end") for frame in sent.frames)
    assert not drained
    reply.credit(1_000_000)
    await asyncio.sleep(0.01)
    data = b"".join(frame.chunk.data for frame in sent.frames)
    assert data == b"a" * 200_000 + b"b" * 400_000
    assert max(len(frame.chunk.data) for frame in sent.frames) <= 65536
    assert [frame.chunk.last for frame in sent.frames if frame.HasField("chunk")].index(True) == len(sent.frames) - 3
    assert drained
    assert sent.frames[-1].WhichOneof("frame") == "end"
    assert stream.replies == {}
    assert stream.waiting_bytes == 0
    assert isinstance(sent.frames[0], Frame)
    writer.cancel()


class Piece(bytes):
    """Counts how often its length is asked for."""

    asked = 0

    def __len__(self):
        Piece.asked += 1
        return super().__len__()


async def test_tiny_pieces_that_wait_for_credit_are_counted_once_and_go_out_together():
    sent: Any = Sent()
    nobody: Any = None
    stream = InvokeStream(number=1, frontend="f", stream=sent, starter=nobody, incarnation=nobody)
    writer = asyncio.get_running_loop().create_task(stream.outbox.run())
    reply = StreamReply(stream, "i1")
    assert reply.chunk(b"a" * WINDOW_BYTES) == 0
    await asyncio.sleep(0.01)
    before, Piece.asked = len(sent.frames), 0
    waiting = [reply.chunk(Piece(b"bc")) for _ in range(2000)]
    assert waiting == list(range(2, 4002, 2))
    assert Piece.asked <= 10 * 2000
    reply.credit(1001)
    await asyncio.sleep(0.01)
    reply.finish_stream()
    reply.credit(10_000)
    await asyncio.sleep(0.01)
    assert b"".join(frame.chunk.data for frame in sent.frames[before:]) == b"bc" * 2000
    assert len(sent.frames) - before <= 4
    assert stream.waiting_bytes == 0
    writer.cancel()
