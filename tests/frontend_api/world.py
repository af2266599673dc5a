"""A frontend's API with everything behind it in memory: real store, watch, settling, codec and signatures.

Only the data path and the ledger are replaced, by the smallest things that keep their promises.
"""

import asyncio
import hashlib
import io
import random
import threading
import zipfile
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from chassis.clock import SystemClock
from chassis.credentials import Credentials
from frontend.api.app import Application
from frontend.api.context import Services
from frontend.api.model import load
from frontend.api.ports import AccountLimits, BelowFloor, InvokeAnswer, InvokeRequest, Throttled, Unavailable
from frontend.auth.authenticator import Authenticator
from frontend.auth.keys import AccessKey, KeyRing, new_key, store_key
from frontend.auth.links import CodeLinks
from frontend.code_blobs import CodeBlobs
from frontend.config import HttpLimits
from frontend.functions import FunctionRecord
from frontend.gate import Gate, GateBounds
from frontend.health import Health
from frontend.http_server import HttpServer
from frontend.ids import RandomIds
from frontend.metadata import Follower, WatchedFunctions
from frontend.settling import Settler
from storage.memory import MemoryBlobs, MemoryMetadata

REGION = "us-east-1"
ACCOUNT = "000000000000"
OTHER_ACCOUNT = "111122223333"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/any"
RUNTIMES = frozenset({"python3.11", "provided.al2023"})
T = TypeVar("T")


class StreamCipher:
    """Encryption bound to the record's key, small enough to read: a keyed stream and a checksum."""

    def __init__(self, key: bytes = b"a key of the tests") -> None:
        self._key = key

    def encrypt(self, plain: bytes, record: str) -> bytes:
        return hashlib.sha256(record.encode() + plain).digest()[:8] + self._mix(plain, record)

    def decrypt(self, encrypted: bytes, record: str) -> bytes:
        plain = self._mix(encrypted[8:], record)
        if self.encrypt(plain, record) != encrypted:
            raise ValueError("not encrypted for this record")
        return plain

    def _mix(self, text: bytes, record: str) -> bytes:
        stream = hashlib.shake_256(self._key + record.encode()).digest(len(text))
        return bytes(a ^ b for a, b in zip(text, stream, strict=True))


class MemoryLimits:
    """The ledger's part for limits."""

    def __init__(self, concurrency: int = 1000) -> None:
        self.concurrency = concurrency
        self.reserved: dict[tuple[str, str], int] = {}

    async def put_reserved(self, account: str, function: str, value: int | None) -> bool:
        before = self.reserved.get((account, function))
        others = sum(n for (a, f), n in self.reserved.items() if a == account and f != function)
        if value is not None and others + value > self.concurrency - 100:
            raise BelowFloor(account_limit=self.concurrency, reserved_elsewhere=others, floor=100)
        if value is None:
            self.reserved.pop((account, function), None)
        else:
            self.reserved[account, function] = value
        return before != value

    async def get(self, account: str) -> AccountLimits:
        mine = {function: n for (a, function), n in self.reserved.items() if a == account}
        return AccountLimits(
            concurrency=self.concurrency, unreserved=self.concurrency - sum(mine.values()), reserved=mine
        )


class EchoInvoker:
    """Answers with the payload; functions whose name begins with a word of fate get theirs."""

    def __init__(self) -> None:
        self.requests: list[InvokeRequest] = []

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        self.requests.append(request)
        name = request.function.name
        if name.startswith("throttled"):
            raise Throttled(
                "ReservedFunctionConcurrentInvocationLimitExceeded",
                {"limit": 0, "running": 0, "counter": f"reserved concurrency of {name}", "remedy": "raise it"},
                retry_after_s=1,
            )
        if name.startswith("unavailable"):
            raise Unavailable("No worker is registered.", {"remedy": "start one"})
        if name.startswith("broken"):
            raise ZeroDivisionError("a secret of the inside")
        if name.startswith("endless"):
            await asyncio.Event().wait()
        error = "Unhandled" if name.startswith("failing") else None
        log = b"START\n" + "\u00e9".encode() * 3000
        content_type = "application/octet-stream" if name.startswith("streaming") else "application/json"
        return InvokeAnswer(
            payload=request.payload, content_type=content_type, function_error=error, executed_version="$LATEST",
            log_tail=log, phases={"permit": 0.25, "run": 2.0},
        )


async def nothing_runs(_record: FunctionRecord, _deleted: bool) -> None:
    """What managers answer where nothing was ever started."""


class World:
    """One frontend's API. Make it inside a running loop; ``start`` and ``stop`` it there."""

    def __init__(self, metadata: MemoryMetadata | None = None, *, node: str = "frontend-1") -> None:
        rng = random.Random(7)
        self.clock = SystemClock()
        self.metadata = metadata or MemoryMetadata(self.clock)
        self.cipher = StreamCipher()
        self.ids = RandomIds(rng)
        self.functions = WatchedFunctions(self.metadata, self.cipher, self.clock)
        self.ring = KeyRing(self.metadata, self.cipher)
        self.settler = Settler(self.metadata, self.functions, self.ids, nothing_runs)
        self.functions.on_unsettled = self.settler.adopt
        self.follower = Follower(self.metadata, self.functions, self.ring, node=node, clock=self.clock)
        self.limits = MemoryLimits()
        self.invoker = EchoInvoker()
        self.links = CodeLinks(b"k" * 32)
        self.keys = {
            account: new_key(account, rng, self.clock.wall()) for account in (ACCOUNT, OTHER_ACCOUNT)
        }
        self.services = Services(
            region=REGION,
            model=load(),
            clock=self.clock,
            ids=self.ids,
            links=self.links,
            functions=self.functions,
            settling=self.settler,
            blobs=CodeBlobs(MemoryBlobs()),
            limits=self.limits,
            invoker=self.invoker,
            runtimes=lambda: RUNTIMES,
        )
        self.gate = Gate(GateBounds(), self.clock, lambda key_id: ACCOUNT if self.ring.known(key_id) else "")
        self.health = Health(lambda: "")
        authenticator = Authenticator(self.ring, REGION, self.clock)
        self.application = Application(self.services, authenticator, self.gate, self.health)
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for key in self.keys.values():
            await store_key(self.metadata, self.cipher, key)
        await self.join()

    async def join(self) -> None:
        self._following = asyncio.create_task(self.follower.run())
        async with asyncio.timeout(60):
            await self.follower.ready.wait()

    async def stop(self) -> None:
        await self.follower.withdraw()
        await self.settler.close()
        assert self._following is not None
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    def key(self, account: str = ACCOUNT) -> AccessKey:
        return self.keys[account]


class Served:
    """A world on a real port, its loop in a thread of its own, so that blocking clients can be used."""

    def __init__(self, world: World, loop: asyncio.AbstractEventLoop, url: str) -> None:
        self.world = world
        self.loop = loop
        self.port = int(url.rsplit(":", 1)[1])
        self.url = url
        self._clients: list[Any] = []

    def run(self, what: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await what

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(10)

    def client(self, account: str = ACCOUNT, **changes: Any) -> Any:
        key = self.world.key(account)
        return self.connect(key.key_id, key.secret, **changes)

    def connect(self, key_id: str, secret: str, **changes: Any) -> Any:
        """A client of the real kind, closed by ``close_clients``."""
        client = client_for(self.url, key_id, secret, **changes)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()


def client_for(url: str, key_id: str, secret: str, **changes: Any) -> Any:
    import botocore.config
    import botocore.session

    config = botocore.config.Config(retries={"total_max_attempts": 1}, **changes.pop("config", {}))
    arguments: dict[str, Any] = {
        "region_name": REGION,
        "endpoint_url": url,
        "aws_access_key_id": key_id,
        "aws_secret_access_key": secret,
        "config": config,
        **changes,
    }
    return botocore.session.get_session().create_client("lambda", **arguments)


@contextmanager
def served(credentials: Credentials | None = None) -> Iterator[Served]:
    """A served world, by HTTPS with ``credentials``; stopped and joined on the way out."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        world = World()
        await world.start()
        server = HttpServer(world.application, HttpLimits())
        address = await server.listen("127.0.0.1:0", credentials=credentials)
        over = asyncio.Event()
        found.update(
            world=world, over=over, loop=asyncio.get_running_loop(),
            url=f"{'http' if credentials is None else 'https'}://{address}",
        )
        ready.set()
        await over.wait()
        world.health.leave()
        await server.finish(1)
        await world.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Served(found["world"], found["loop"], found["url"])
    finally:
        found["loop"].call_soon_threadsafe(found["over"].set)
        thread.join(60)
        assert not thread.is_alive()


def archive(files: Mapping[str, str] | None = None) -> bytes:
    """A zip of the given files: the same bytes whenever it is made."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in (files or {"handler.py": "def main(event, context):\n    return event\n"}).items():
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, text)
    return buffer.getvalue()
