"""A frontend as a real process: it starts quickly, answers signed requests, refuses in words, and ends on SIGTERM."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chassis import config as files
from chassis.certificates import Authority, TlsFiles, write_private
from chassis.clock import SystemClock
from chassis.config import NodeConfig
from chassis.rpc import Caller
from frontend.auth.keys import AccessKey, store_key
from frontend.config import FrontendConfig, HttpTls
from storage.cipher import Cipher
from storage.open import open_store
from tests.frontend_api.world import client_for
from tests.ports import free_port

KEY = AccessKey(key_id="AKIAQQQQQQQQQQQQQQQQ", account="000000000000", secret="s" * 40, created=0.0)


def configured(folder: Path, port: int, **changes: Any) -> Path:
    """A frontend's files. Neither placement nor the ledger is there: it has to start without them."""
    caller = Caller(service="frontend", node="frontend-az1", az="az1", host="h1")
    authority = Authority.create()
    tls = authority.issue(caller)
    paths = TlsFiles(
        authority=str(folder / "ca.pem"), certificate=str(folder / "node.pem"), key=str(folder / "node.key")
    )
    Path(paths.authority).write_bytes(tls.authority)
    Path(paths.certificate).write_bytes(tls.certificate)
    write_private(Path(paths.key), tls.key)
    config = FrontendConfig(
        node=NodeConfig(
            service="frontend", node="frontend-az1", az="az1", host="h1", listen="127.0.0.1:0",
            placement=(f"127.0.0.1:{free_port()}",), tls=paths,
        ),
        counting={"counting-az1": f"127.0.0.1:{free_port()}"}, store=f"sqlite://{folder}/store",
        key_file=str(folder / "data.key"),
        **{"listen": f"127.0.0.1:{port}", "session_s": 0.05, "permit_s": 0.2, **changes},
    )
    path = folder / "frontend.toml"
    path.write_text(files.dump(config))

    async def add_key() -> None:
        stores = open_store(config.store, SystemClock())
        await store_key(stores.metadata, Cipher.open(Path(config.key_file)), KEY)
        await stores.close()

    asyncio.run(add_key())
    return path


@pytest.fixture
def process(tmp_path):
    port = free_port()
    with running(tmp_path, configured(tmp_path, port), port) as started:
        yield started, f"http://127.0.0.1:{port}", tmp_path / "log"


@contextlib.contextmanager
def running(tmp_path: Path, path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once somebody listens at ``port``."""
    log = (tmp_path / "log").open("w+")
    begun = time.monotonic()
    started = subprocess.Popen([sys.executable, "-m", "frontend", "--config", str(path)], stderr=log)
    try:
        while True:
            assert started.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < begun + 60, (tmp_path / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        yield started
    finally:
        started.kill()
        started.wait()
        log.close()


def test_it_answers_refuses_in_words_and_drains(process):
    started, url, log = process
    client = client_for(url, KEY.key_id, KEY.secret)
    try:
        assert client.list_functions()["Functions"] == []
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            client.invoke(FunctionName="absent")
    finally:
        client.close()
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(60) == 0, log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["event"] == "drained"
    assert not [line for line in lines if line["level"] == "error"]


def test_beyond_loopback_it_is_https_with_its_own_certificate_or_the_endpoints(tmp_path):
    """At its own address its own certificate is shown, at the published one the given one, also a renewed one."""
    own, port = free_port(), free_port()
    endpoint = Authority.create()
    files = HttpTls(certificate=str(tmp_path / "endpoint.pem"), key=str(tmp_path / "endpoint.key"))
    shown = endpoint.issue_plain("endpoint", hosts=["127.0.0.1"])
    Path(files.certificate).write_bytes(shown.certificate)
    write_private(Path(files.key), shown.key)
    (tmp_path / "root.pem").write_bytes(endpoint.pem)
    path = configured(tmp_path, port, http=f"0.0.0.0:{own}", http_tls=files)
    with running(tmp_path, path, port):
        client = client_for(f"https://127.0.0.1:{port}", KEY.key_id, KEY.secret, verify=str(tmp_path / "root.pem"))
        assert client.list_functions()["Functions"] == []
        client.close()
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with (
            socket.create_connection(("127.0.0.1", own)) as plain,
            trust.wrap_socket(plain, server_hostname="frontend.labda") as secured,
        ):
            secured.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = b""
            while more := secured.recv(4096):
                answer += more
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"not serving: it has had no session with the ledger yet\n")


def test_a_certificate_that_can_not_be_used_is_one_sentence(tmp_path):
    port = free_port()
    path = configured(tmp_path, port, http_tls=HttpTls(certificate=str(tmp_path / "node.pem"), key="/nowhere"))
    done = subprocess.run(
        [sys.executable, "-m", "frontend", "--config", str(path)], capture_output=True, text=True, timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "http_tls can't be used" in done.stderr.splitlines()[-1]


def test_a_draining_frontend_says_so_before_it_stops_listening(tmp_path):
    port = free_port()
    path = configured(tmp_path, port, notice_s=3.0)
    with running(tmp_path, path, port) as started:
        began = time.monotonic()
        os.kill(started.pid, signal.SIGTERM)
        told = b""
        while b"it drains" not in told:
            assert time.monotonic() < began + 3.0, told
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                told = plain.makefile("rb").read()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert started.wait(60) == 0
        assert time.monotonic() > began + 3.0


def test_a_wrong_configuration_is_one_sentence(tmp_path):
    path = tmp_path / "frontend.toml"
    path.write_text("[counting]\n")
    done = subprocess.run(
        [sys.executable, "-m", "frontend", "--config", str(path)], capture_output=True, text=True, timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "node is missing" in done.stderr
