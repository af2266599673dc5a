"""The frontend's own share of one warm Invoke: ASGI in, ASGI out, with an invoker that answers at once.

Run: python -m benchmarks.frontend_api. Prints microseconds per request against a reference measured in the same run
(hashing and comparing one SHA-256 HMAC), so that machines can be compared.
"""

import asyncio
import hmac
import statistics
import time
from collections.abc import MutableMapping
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials

from frontend.functions import Code, Configuration, create, settle
from tests.frontend_api.world import ACCOUNT, REGION, ROLE, World

ROUNDS = 15
REQUESTS_SMALL, REQUESTS_LARGE = 2000, 100
TURN = 20       # requests until the event loop has its turn: the gate refuses when it never gets one


def request(world: World, body: bytes) -> dict[str, Any]:
    """The scope of a signed Invoke as uvicorn would give it."""
    path = "/2015-03-31/functions/hello/invocations"
    made = botocore.awsrequest.AWSRequest("POST", f"http://127.0.0.1:9000{path}", data=body)
    made.headers["User-Agent"] = "Boto3/1.44 md/Botocore#1.44 ua/2.1 os/linux md/arch#x86_64 lang/python#3.11"
    made.headers["amz-sdk-invocation-id"] = "0b7b4a2e-6b0b-4b52-8e0a-1c9d7ad4e0d5"
    made.headers["amz-sdk-request"] = "attempt=1"
    key = world.key()
    credentials = botocore.credentials.Credentials(key.key_id, key.secret)
    botocore.auth.SigV4Auth(credentials, "lambda", REGION).add_auth(made)
    headers = [(name.lower().encode(), value.encode()) for name, value in made.headers.items()]
    headers += [(b"host", b"127.0.0.1:9000"), (b"content-length", str(len(body)).encode())]
    return {
        "type": "http", "method": "POST", "scheme": "http", "raw_path": path.encode(), "query_string": b"",
        "headers": headers,
    }


async def measure(world: World, body: bytes) -> float:
    """Microseconds per request, the median of the rounds."""
    scope = request(world, body)
    requests = REQUESTS_SMALL if len(body) < 100_000 else REQUESTS_LARGE
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for n in range(requests):
            await world.application(scope, receive, send)
            if n % TURN == 0:
                await asyncio.sleep(0)
        rounds.append((time.perf_counter() - began) / requests * 1e6)
        world.invoker.requests.clear()
        assert status == 200, status
    return statistics.median(rounds)


def reference() -> float:
    """Microseconds for one HMAC and its comparison."""
    began = time.perf_counter()
    for _ in range(20_000):
        hmac.compare_digest(hmac.digest(b"k" * 32, b"x" * 200, "sha256"), b"y" * 32)
    return (time.perf_counter() - began) / 20_000 * 1e6


async def main() -> None:
    world = World()
    await world.start()
    record = create(
        ACCOUNT, "hello", Configuration(role=ROLE, runtime="python3.11", handler="h.m"),
        Code(sha256="0" * 64, size_bytes=1), tags={}, revision=1, now=0.0, revision_id="1",
    )
    done = await world.functions.create(ACCOUNT, "hello", lambda _revision: settle(record, revision_id="2"))
    assert done is not None
    await world.settler.acknowledged(done[1])
    unit = reference()
    for size in (2, 100, 4096, 262_144):
        body = b'"' + b"x" * (size - 2) + b'"'
        took = await measure(world, body)
        print(f"payload {size:7} B   {took:8.1f} us per request   {took / unit:7.1f} x reference ({unit:.2f} us)")
    await world.stop()


if __name__ == "__main__":
    asyncio.run(main())
