"""Metrics: counting, and /metrics as a scraper sees it, read by prometheus_client's own parsers."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from chassis import tls_contexts
from chassis.certificates import Authority, Tls, TlsFiles
from chassis.clock import SystemClock
from chassis.config import NodeConfig
from chassis.credentials import Credentials
from chassis.faults import Fault
from chassis.machine import Driver
from chassis.metrics import LABEL_SETS_MAX, OTHER, Counts, Histogram, LoopLag, Metrics, Numbers, Tally, bounded, tallied
from chassis.metrics_server import CONNECTIONS_MAX, HEAD_BYTES_MAX, MetricsServer, serve
from chassis.rpc import Caller
from simulation.loop import VirtualClock, VirtualLoop, run

NODE = NodeConfig(
    service="frontend", node="frontend-az1-1", az="az1", host="control-az1", listen="127.0.0.1:0", placement=(),
    tls=TlsFiles(authority="", certificate="", key=""),
)


# ---------------------------------------------------------------- counting


def test_a_histogram_counts_each_value_in_every_bucket_that_is_above_it() -> None:
    histogram = Histogram((0.01, 0.1, 1.0))
    for value in (0.005, 0.01, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.01", 2.0), ("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == pytest.approx(7.515)


def test_counts_by_labels_are_bounded() -> None:
    counts = Counts([("known",)])
    for number in range(LABEL_SETS_MAX + 50):
        counts.add(f"from a request {number}")
    counts.add("known")
    assert counts["known",] == 1
    assert counts[OTHER,] == 51     # the bound holds "known" too
    assert len(counts) == LABEL_SETS_MAX + 1


def test_bounded_numbers_keep_the_largest_and_the_sum() -> None:
    numbers: Numbers = {(f"pool{i}", "unreserved"): float(i) for i in range(LABEL_SETS_MAX * 2)}
    kept = bounded(numbers)
    assert len(kept) == LABEL_SETS_MAX
    assert kept[f"pool{LABEL_SETS_MAX * 2 - 1}", "unreserved"] == LABEL_SETS_MAX * 2 - 1
    assert sum(kept.values()) == sum(numbers.values())
    assert kept[OTHER, OTHER] > 0
    assert bounded({("a",): 1.0}) == {("a",): 1.0}


def test_things_by_state_show_the_states_that_nothing_is_in() -> None:
    assert tallied(["busy", "busy"], ["busy", "idle"]) == {("busy",): 2, ("idle",): 0}


class Door:
    """A core: every push gives two words back."""

    def handle(self, event: str, now: float) -> list[int]:
        return [len(event), 0]

    def check(self) -> None:
        pass


def test_a_driver_shows_its_observer_each_event_with_its_effects() -> None:
    tally = Tally()
    events, effects = tally.of(str), tally.by(int, lambda number: f"{number}", ["9"])
    done: list[int] = []
    driver: Driver[str, int] = Driver(Door(), clock=SystemClock(), perform=done.append, observe=tally)
    for word in ("ab", "cd", "xyz"):
        driver.feed(word)
    assert events == {(): 3}
    assert effects == {("9",): 0, ("0",): 3, ("2",): 2, ("3",): 1}
    assert done == [2, 0, 2, 0, 3, 0]


@pytest.mark.parametrize(("name", "kind"), [
    ("labda_things", "counter"), ("labda_things_total", "gauge"), ("labda_wait", "histogram"), ("Things", "gauge"),
])
def test_a_name_against_the_conventions_is_a_bug(name: str, kind: str) -> None:
    metrics = Metrics()
    with pytest.raises(AssertionError, match=name):
        getattr(metrics, kind)(name, "Some.", dict[tuple[str, ...], Any]())


def test_a_name_is_given_once() -> None:
    metrics = Metrics()
    metrics.gauge("labda_things", "Some.", lambda: 1)
    with pytest.raises(AssertionError, match="labda_things is there already"):
        metrics.gauge("labda_things", "Some.", lambda: 1)
    with pytest.raises(AssertionError, match="labda_things_total is there already"):
        metrics.counter("labda_things_total", "Some.", lambda: 1)


def test_the_lag_of_a_loop_is_what_its_timer_was_late() -> None:
    async def story(loop: VirtualLoop) -> Histogram:
        metrics = Metrics()
        lag = LoopLag(metrics, VirtualClock(loop))
        lag.start()
        await asyncio.sleep(10.5)
        lag.close()
        await asyncio.sleep(5)
        histogram: Histogram = metrics.families["labda_event_loop_lag_seconds"].read()[()]
        return histogram

    histogram = run(story)
    assert sum(histogram.counts) == histogram.counts[0] == 10     # none after the close, none late in virtual time


# ---------------------------------------------------------------- served


ROOT = Authority.create()
CREDENTIALS = Credentials(ROOT.issue(NODE.identity))


@asynccontextmanager
async def served(
    metrics: Metrics, listen: str = "127.0.0.1:0", credentials: Credentials = CREDENTIALS
) -> AsyncIterator[str]:
    server = MetricsServer(metrics, credentials)
    address = await server.listen(listen)
    try:
        yield address
    finally:
        await server.close()


async def ask(address: str, request: bytes) -> tuple[str, dict[str, str], str]:
    """(status line, headers, body)"""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            answer = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return status, dict(line.lower().split(": ", 1) for line in lines), body


def get(path: str = "/metrics", method: str = "GET", accept: str = "*/*") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()


def some() -> tuple[Metrics, Counts, Histogram]:
    metrics, counts, histogram = Metrics(), Counts([("ok",)]), Histogram((0.1, 1.0))
    metrics.counter("labda_things_total", "Things that came.", counts, ("outcome",))
    metrics.gauge("labda_waiting", "Things that wait.", lambda: 7)
    metrics.histogram("labda_wait_seconds", "How long they waited.", {("short",): histogram}, ("queue",))
    return metrics, counts, histogram


async def test_what_is_counted_is_read_at_the_scrape() -> None:
    metrics, counts, histogram = some()
    async with served(metrics) as address:
        assert metrics.address == address
        for step in (1, 2):
            counts.add("ok")
            counts.add('with "quotes"\n')
            histogram.observe(0.5)
            status, headers, body = await ask(address, get())
            assert status == "HTTP/1.1 200 OK"
            assert headers["content-type"].startswith("text/plain")
            assert headers["content-length"] == str(len(body.encode()))
            found = {
                (s.name, *sorted(s.labels.values())): s.value
                for f in text_string_to_metric_families(body) for s in f.samples
            }
            assert found["labda_things_total", "ok"] == step
            assert found["labda_things_total", 'with "quotes"\n'] == step
            assert found["labda_waiting",] == 7
            assert found["labda_wait_seconds_bucket", "0.1", "short"] == 0
            assert found["labda_wait_seconds_bucket", "1.0", "short"] == step
            assert found["labda_wait_seconds_count", "short"] == step
            assert found["labda_wait_seconds_sum", "short"] == step * 0.5
            assert found["process_resident_memory_bytes",] > 1_000_000
            assert found["process_open_fds",] > 3
            assert ("python_gc_collections_total", "0") in found


async def test_open_metrics_for_who_asks_for_it() -> None:
    metrics, counts, _ = some()
    counts.add("ok")
    async with served(metrics) as address:
        _, headers, body = await ask(address, get(accept="application/openmetrics-text; version=1.0.0"))
    assert headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(body)}
    assert families["labda_things"].type == "counter"
    assert families["labda_things"].samples[0].value == 1
    assert families["labda_wait_seconds"].type == "histogram"


@pytest.mark.parametrize(("request_", "status"), [
    (get("/"), "404"), (get("/metrics/x"), "404"), (get(method="POST"), "405"), (b"hello\r\n\r\n", "400"),
    (get("/metrics?name=x"), "200"),
])
async def test_other_requests_are_refused(request_: bytes, status: str) -> None:
    async with served(some()[0]) as address:
        line, headers, body = await ask(address, request_)
    assert line.split()[1] == status
    assert headers["content-length"] == str(len(body.encode()))


async def test_head_has_no_body() -> None:
    async with served(some()[0]) as address:
        line, headers, body = await ask(address, get(method="HEAD"))
    assert line == "HTTP/1.1 200 OK"
    assert int(headers["content-length"]) > 1000
    assert body == ""


async def cut_off(address: str, request: bytes) -> bool:
    """Whether the connection was ended without an answer: to a client that is a reset or an early end."""
    try:
        return await ask(address, request) == ("", {}, "")
    except ConnectionError:
        return True


async def test_a_head_without_an_end_is_cut_off() -> None:
    async with served(some()[0]) as address:
        assert await cut_off(address, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (2 * HEAD_BYTES_MAX))


async def test_who_holds_connections_open_shuts_out_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chassis.metrics_server.REQUEST_S", 2.0)
    async with served(some()[0]) as address:
        host, port = address.split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS_MAX)]
        try:
            assert await cut_off(address, get())
            deadline = time.monotonic() + 60
            while await cut_off(address, get()):
                assert time.monotonic() < deadline, "still shut out"
                await asyncio.sleep(0.05)
        finally:
            for _, writer in held:
                writer.close()


async def test_an_address_that_is_taken_is_a_fault_that_names_it() -> None:
    async with served(some()[0]) as address:
        with pytest.raises(Fault, match=f"{address}.*node.metrics_listen"):
            await MetricsServer(Metrics(), CREDENTIALS).listen(address)


async def test_a_process_without_an_address_counts_and_serves_nowhere() -> None:
    metrics = await serve(NODE, SystemClock(), CREDENTIALS)
    assert metrics.address == ""
    assert list(metrics.families) == [
        "labda_event_loop_lag_seconds", "labda_certificate_ends_timestamp_seconds", "labda_revoked_nodes"
    ]


# ---------------------------------------------------------------- where others than this host reach it


EVERYWHERE = "0.0.0.0:0"    # reached by loopback, and not only by it
SCRAPER = Caller(service="operator", node="operator", az="az1", host="operator")


async def scraped(address: str, tls: Tls, *, name: str = "frontend-az1-1.frontend.labda") -> str:
    """The status line; empty where the connection was ended instead."""
    port = int(address.rpartition(":")[2])
    async with asyncio.timeout(60):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls_contexts.dialling(tls), server_hostname=name
            )
        except OSError:
            return ""
        try:
            writer.write(get())
            line = (await reader.readline()).decode()
            length = int((await reader.readuntil(b"\r\n\r\n")).partition(b"Length: ")[2].split()[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return ""
        finally:
            writer.close()
    return line.rstrip()


async def test_beyond_loopback_a_scraper_shows_a_certificate_of_the_root() -> None:
    elsewhere = Authority.create().issue(SCRAPER)
    async with served(some()[0], EVERYWHERE) as address:
        operator = ROOT.issue(SCRAPER)
        assert await scraped(address, operator) == "HTTP/1.1 200 OK"
        assert await scraped(address, operator, name="worker.labda") == ""
        assert await scraped(address, ROOT.issue_plain("prometheus")) == "HTTP/1.1 200 OK"
        assert await scraped(address, replace(elsewhere, authority=ROOT.pem)) == ""
        assert await cut_off(f"127.0.0.1:{address.rpartition(':')[2]}", get())


async def test_a_revoked_node_scrapes_nothing_more() -> None:
    credentials = Credentials(ROOT.issue(NODE.identity))
    worker = ROOT.issue(Caller(service="worker", node="worker-az1-1", az="az1", host="h", enrolment=1))
    async with served(some()[0], EVERYWHERE, credentials) as address:
        assert await scraped(address, worker) == "HTTP/1.1 200 OK"
        credentials.revoked.add({"worker-az1-1": 1})
        assert await scraped(address, worker) == ""
        assert await scraped(address, ROOT.issue(SCRAPER)) == "HTTP/1.1 200 OK"


async def test_a_scrape_gets_the_newest_certificate() -> None:
    past = time.time() - 60
    credentials = Credentials(ROOT.issue(NODE.identity, lifetime_s=30, now=past))
    async with served(some()[0], EVERYWHERE, credentials) as address:
        assert await scraped(address, ROOT.issue(SCRAPER)) == ""
        credentials.replace(ROOT.issue(NODE.identity))
        assert await scraped(address, ROOT.issue(SCRAPER)) == "HTTP/1.1 200 OK"


async def test_handshakes_that_never_end_shut_out_nobody() -> None:
    async with served(some()[0], EVERYWHERE) as address:
        port = int(address.rpartition(":")[2])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX + 4)]
        try:
            assert await scraped(address, ROOT.issue(SCRAPER)) == "HTTP/1.1 200 OK"
            async with asyncio.timeout(60):
                for reader, _ in held[:5]:      # the oldest gave way, to each other and to the scraper
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
        finally:
            for _, writer in held:
                writer.close()


async def test_a_scraper_can_not_resume_a_session_past_its_certificates_end() -> None:
    async with served(some()[0], EVERYWHERE) as address:
        context = tls_contexts.dialling(ROOT.issue(SCRAPER))

        def ask() -> ssl.SSLSession | None:
            with (
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as plain,
                context.wrap_socket(plain, server_hostname="frontend.labda") as secured,
            ):
                secured.sendall(get(method="HEAD"))
                assert secured.recv(4096).startswith(b"HTTP/1.1 200")
                return secured.session

        session = await asyncio.to_thread(ask)
        assert session is None or not session.has_ticket
